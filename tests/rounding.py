"""The fused kernel's arithmetic in PyTorch: what it rounds and where. For tests of what compares kernels; not a kernel.

Products add up in fp32, and only what the kernel keeps between them is rounded to the state's type. The sums run in
another order than the kernel's, which is another rounding of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

from gram.kernels import reference
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.reference import Step, Weights
from gram.kernels.spec import LEARNED, Injection, Spec

Rounding = Callable[[Tensor], Tensor]
TANH_ERROR = 2.0**-11
"""Largest relative error of NVIDIA's `tanh.approx.f32` (PTX ISA, `tanh`)."""


def silu_by_tanh(wrong: Callable[[Tensor], Tensor]) -> Rounding:
    """SiLU as the fused kernel computes it with bfloat16 on sm_90 and sm_100: by a hyperbolic tangent that is off by
    `wrong`, within -1 and 1, of the largest error."""

    def act(x: Tensor) -> Tensor:
        half = 0.5 * x
        return half * (torch.tanh(half) * (1 + TANH_ERROR * wrong(half))) + half

    return act


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor, keep: Rounding, act: Rounding) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, -1)
    return keep(act(gate) * up) @ down.T


def _mixed(weights: Weights, name: str, x: Tensor, spec: Spec, keep: Rounding, act: Rounding) -> Tensor:
    if spec.mixer == "token":
        return _swiglu(x.mT, weights[name + "gate_up"], weights[name + "down"], keep, act).mT
    width = spec.dim // spec.heads
    query, key, value = (x @ weights[name + "qkv"].T).unflatten(-1, (3, spec.heads, width)).permute(2, 0, 3, 1, 4)
    if spec.is_rotary:
        cos, sin = reference.rotary_tables(spec.length, width, spec.rope_theta, x.device)
        query, key = reference._rotate(query, cos, sin), reference._rotate(key, cos, sin)
    scores = keep(query * width**-0.5) @ keep(key).mT
    mixed = keep(keep(scores.softmax(-1)) @ keep(value))
    return mixed.transpose(1, 2).flatten(2) @ weights[name + "out"].T


def _core(weights: Weights, name: str, x: Tensor, spec: Spec, keep: Rounding, act: Rounding) -> Tensor:
    for block in range(spec.blocks):
        mixer, channel = f"{name}.{block}.mixer.", f"{name}.{block}.channel."
        mixed = _mixed(weights, mixer, x, spec, keep, act)
        x = keep(reference.rmsnorm(x + mixed, spec.norm_eps, axis=1 if spec.mixer_norm == "tokens" else -1))
        made = _swiglu(x, weights[channel + "gate_up"], weights[channel + "down"], keep, act)
        x = keep(reference.rmsnorm(x + made, spec.norm_eps))
    return x


def _head(weights: Weights, name: str, h: Tensor, spec: Spec, keep: Rounding, act: Rounding) -> Tensor:
    if name + ".gate_up" in weights:
        gate, up = (h @ weights[name + ".gate_up"].T).chunk(2, -1)
        h = keep(act(gate) * up)
    readout = h.mean(1) if spec.head_readout == "mean" else h[:, 0]
    return (readout @ weights[name + ".weight"].T + weights[name + ".bias"]).squeeze(-1)


@torch.no_grad()
def supervision_step(
    weights: Weights,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
    act: Rounding = silu,
) -> Step:
    """`reference.supervision_step` as the fused kernel rounds it, in the type of the states; `act` in SiLU's place."""
    dtype = h.dtype

    def keep(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    weights = {name: tensor.float() for name, tensor in weights.items()}
    h, l, e_x = h.float(), l.float(), e_x.float()
    noisy_B = key.step >= spec.noise_free_steps
    temperature = injection.temperature if injection.injector == "prior" else 0.0

    def normals(site: Site, index_B: Tensor) -> Tensor:
        return noise((spec.length, spec.dim), key, site, index_B)

    def guided(u: Tensor, transition_B: Tensor) -> Tensor:
        made = _swiglu(u, weights["prior.gate_up"], weights["prior.down"], keep, act)
        mean, raw = made.chunk(2, -1)
        mean = torch.zeros_like(mean) if spec.guidance == "noise" else mean
        log_sigma = spec.log_sigma_center + spec.log_sigma_range * torch.tanh(raw / spec.log_sigma_range)
        normal = normals(Site.PRIOR, transition_B)
        return keep(reference.add_noise(u, mean, log_sigma, normal, noisy_B, spec, temperature))

    if injection.injector == "gaussian" and injection.sigma:
        if injection.site in ("h", "both"):
            h = keep(reference.perturb(h, injection.sigma, normals(Site.FIXED_SCALE_HIGH, key.step)))
        if injection.site in ("l", "both"):
            l = keep(reference.perturb(l, injection.sigma, normals(Site.FIXED_SCALE_LOW, key.step)))
    has_path = injection.injector == "path" and injection.sigma != 0
    for index in range(spec.transitions):
        transition_B = key.step * spec.transitions + index
        if spec.guidance != "none" and spec.noise_order == "before":
            h = guided(h, transition_B)
        for call in range(spec.low_level_updates + 1):
            is_low = call < spec.low_level_updates
            name = "low" if is_low or spec.is_core_shared else "high"
            old = l if is_low else h
            new = _core(weights, name, keep(l + (h + e_x if is_low else h)), spec, keep, act)
            if spec.path_keep or has_path:
                call_B = transition_B * (spec.low_level_updates + 1) + call
                eps = injection.sigma * normals(Site.PATH, call_B) if has_path else None
                new = keep(reference.damp(old, new, spec.path_keep, eps))
            h, l = (h, new) if is_low else (new, l)
        if spec.guidance != "none" and spec.noise_order == "after":
            h = guided(h, transition_B)
    heads = (_head(weights, name, h, spec, keep, act) for name in ("halt", "lprm"))
    return Step(h.to(dtype), l.to(dtype), *heads)
