"""What a transition and a supervision step compute: the definition that every faster path must equal.

Plain functions of a dictionary of weights, without modules or training. Method: GRAM (2605.19376, section 3);
the core is TRM's (2510.04871): state and injection are summed, then post-norm blocks.

Shapes: `B` trajectories, `L` tokens (registers included), `D` channels, `R` registers, `A` answer tokens, `V`
vocabulary. Weights are stored `[out, in]`, as `torch.nn.functional.linear` takes them:

    low.{i}.mixer.gate_up [2*Hm, L]   low.{i}.mixer.down [L, Hm]       token mixer
    low.{i}.mixer.qkv [3*D, D]        low.{i}.mixer.out [D, D]         attention
    low.{i}.mixer.gate_up [2*Hm, D]   low.{i}.mixer.down [D, Hm]       relations
    low.{i}.channel.gate_up [2*F, D]  low.{i}.channel.down [D, F]      channel SwiGLU
    high.{i}...                                                        f_H, where it has weights of its own
    lookup.table [rows, C]  lookup.key [D, E]  lookup.value [D, E]     n-grams (`lookup.py`)
    lookup.scale [D]        lookup.taps [D, 4]
    low.{i}.experts.router [E, D]  .gate_up [E, 2*F, D]  .down [E, D, F]   routed experts (`experts.py`)
    prior.gate_up [2*G, D]            prior.down [2*D, G]              mu and raw log sigma
    decoder.weight [V, D]
    halt.weight [1, D or Hh]  halt.bias [1]  (halt.gate_up [2*Hh, D])  and the same for lprm
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableSequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from gram.kernels import experts, lookup, memory, patterns, relations
from gram.kernels.experts import Routing
from gram.kernels.lookup import LookedUp
from gram.kernels.memory import Remembered
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.spec import LEARNED, Injection, Spec

Weights = Mapping[str, Tensor]
Guide = Callable[[Tensor], Tensor]
Damping = Callable[[Tensor, Tensor, int], Tensor]


class Step(NamedTuple):
    """State after a supervision step, and its heads."""

    h: Tensor
    """High-level state `[B, L, D]`."""
    l: Tensor
    """Low-level state `[B, L, D]`."""
    halt: Tensor
    """Halt logit `[B]`, fp32."""
    lprm: Tensor
    """Predicted final accuracy `[B]`, fp32."""


def rmsnorm(x: Tensor, eps: float, axis: int = -1) -> Tensor:
    """`x / rms(x)` over one axis, without weight; computed in fp32, returned in `x`'s dtype."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.square().mean(axis, keepdim=True) + eps)).to(x.dtype)


def keep_largest(x: Tensor, share: float, axis: int = -1) -> Tensor:
    """A share of the hidden units along an axis, at least one, those largest in size; the others are zero (AbsTopK,
    2511.13653). Of units of equal size any may stay."""
    if share == 1:
        return x
    kept = x.abs().topk(max(1, math.ceil(share * x.shape[axis])), dim=axis).indices
    return torch.zeros_like(x).scatter(axis, kept, x.gather(axis, kept))


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, active_share: float = 1.0) -> Tensor:
    """`down(silu(gate(x)) * up(x))` over the last axis; `gate_up` stacks gate, then up."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(keep_largest(silu(gate) * up, active_share), down)


def mix_tokens(x_BLD: Tensor, gate_up: Tensor, down: Tensor, active_share: float = 1.0) -> Tensor:
    """SwiGLU over the token axis; the weights multiply from the left, so nothing is transposed."""
    rows = x_BLD.shape[0]
    gate, up = torch.bmm(gate_up.expand(rows, -1, -1), x_BLD).chunk(2, dim=1)
    return torch.bmm(down.expand(rows, -1, -1), keep_largest(silu(gate) * up, active_share, 1))


def rotary_tables(tokens: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[L, width]`, fp32, halves repeated (not interleaved), as HRM and TRM."""
    return (_rotary_tables if torch.compiler.is_compiling() else _kept_rotary_tables)(tokens, width, theta, device)


def _rotary_tables(tokens: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept for later calls, which may need gradients: the first one often comes from sampling.
    with torch.inference_mode(False):
        frequency = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
        angle = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * frequency
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()


_kept_rotary_tables = lru_cache(maxsize=16)(_rotary_tables)
"""Not for the compiler: it looks through a cache, and warns that it does."""


def _rotate(x_BHLW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_BHLW.chunk(2, dim=-1)
    return (x_BHLW * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHLW.dtype)


def attend(x_BLD: Tensor, qkv: Tensor, out: Tensor, spec: Spec) -> Tensor:
    """Non-causal attention, to all tokens or along a pattern (`patterns.py`). Plain products and a softmax: bf16
    `scaled_dot_product_attention` is slow on CPUs."""
    width = spec.dim // spec.heads
    query, key, value = linear(x_BLD, qkv).unflatten(-1, (3, spec.heads, width)).permute(2, 0, 3, 1, 4)
    if spec.is_rotary:
        cos, sin = rotary_tables(spec.length, width, spec.rope_theta, x_BLD.device)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    if spec.pattern != "full":
        return linear(patterns.attend(query, key, value, spec).transpose(1, 2).flatten(2), out)
    scores = (query * width**-0.5) @ key.transpose(-1, -2)
    attention = torch.softmax(scores.to(torch.float32), dim=-1).to(x_BLD.dtype)
    return linear((attention @ value).transpose(1, 2).flatten(2), out)


def relate(x_BLD: Tensor, gate_up: Tensor, down: Tensor, spec: Spec, graph_BLL: Tensor | None = None) -> Tensor:
    """Gated sums along relations. Each relation has an equal part of the hidden channels and sums them over the tokens
    that it relates (`relations.tables`); each token gates the sums that it receives. A large grid is summed by line;
    `graph_BLL` is the relation `graph`, each row's own."""
    gate, up = linear(x_BLD, gate_up).chunk(2, dim=-1)
    return linear(keep_largest(silu(gate) * hear(up, spec, graph_BLL), spec.active_share), down)


def hear(x_BLD: Tensor, spec: Spec, graph_BLL: Tensor | None = None) -> Tensor:
    """What each token hears: equal shares of the channels, one a relation, each summed over the tokens it relates."""
    if not spec.are_sums_products:
        return relations.sums(spec.relations, x_BLD, axis=1, values=spec.value_tokens)
    table = iter(relations.tables(relations.fixed(spec.relations), spec.length, x_BLD.device).to(x_BLD.dtype))
    matrices = [graph_BLL if name == "graph" and graph_BLL is not None else next(table) for name in spec.relations]
    sums = [matrix @ part for matrix, part in zip(matrices, x_BLD.chunk(len(matrices), -1), strict=True)]
    return torch.cat(sums, -1)


def core(
    weights: Weights,
    name: str,
    x_BLD: Tensor,
    spec: Spec,
    graph_BLL: Tensor | None = None,
    remembered: Remembered | None = None,
    found: LookedUp | None = None,
    routed: MutableSequence[Routing] | None = None,
) -> Tensor:
    """`f_L` (`name` "low") or `f_H` ("high") on the sum of its state and injection; first it reads the memory, or what
    was looked up, where there is one. `routed` takes what experts were chosen."""
    if remembered is not None:
        x_BLD = memory.read(weights, spec, x_BLD, remembered)
    if found is not None:
        x_BLD = lookup.read(x_BLD, found, weights["lookup.taps"], spec)
    for block in range(spec.blocks):
        mixer, channel = f"{name}.{block}.mixer.", f"{name}.{block}.channel."
        if spec.mixer == "token":
            mixed = mix_tokens(x_BLD, weights[mixer + "gate_up"], weights[mixer + "down"], spec.active_share)
        elif spec.mixer == "relations":
            mixed = relate(x_BLD, weights[mixer + "gate_up"], weights[mixer + "down"], spec, graph_BLL)
        else:
            mixed = attend(x_BLD, weights[mixer + "qkv"], weights[mixer + "out"], spec)
        x_BLD = rmsnorm(x_BLD + mixed, spec.norm_eps, axis=1 if spec.mixer_norm == "tokens" else -1)
        said = swiglu(x_BLD, weights[channel + "gate_up"], weights[channel + "down"], spec.active_share)
        if spec.experts:
            said = said + experts.route(x_BLD, weights, f"{name}.{block}.experts.", spec, routed)
        x_BLD = rmsnorm(x_BLD + said, spec.norm_eps)
    return x_BLD


def gaussian(weights: Weights, name: str, condition: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """`mu` and bounded `log sigma`, fp32 `[B, L, D]`, of the prior or posterior given its condition."""
    mean, raw = swiglu(condition, weights[name + ".gate_up"], weights[name + ".down"]).to(torch.float32).chunk(2, -1)
    if spec.guidance == "noise":
        mean = torch.zeros_like(mean)
    width = spec.log_sigma_range
    return mean, spec.log_sigma_center + width * torch.tanh(raw / width)


def add_noise(
    u: Tensor, mean: Tensor, log_sigma: Tensor, normal: Tensor, noisy_B: Tensor, spec: Spec, temperature: float | Tensor
) -> Tensor:
    """`u + eps` with `eps = mu + temperature * sigma * n` in the rows where `noisy_B`; other rows stay bit for bit."""
    eps = mean if spec.guidance == "mean" else mean + temperature * log_sigma.exp() * normal
    return torch.where(noisy_B[:, None, None], (u.to(torch.float32) + eps).to(u.dtype), u)


def transition(
    weights: Weights,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    guide: Guide | None,
    damping: Damping | None = None,
    routed: MutableSequence[Routing] | None = None,
) -> tuple[Tensor, Tensor]:
    """One transition: `K` low-level updates, one high-level update, `guide` (adds the noise) before or after them.

    `h, l, e_x` are `[B, L, D]` (`e_x` has its puzzle's graph, memory or n-grams behind, where there are some:
    `Spec.embedded_dim`);
    2605.19376, eqs. 3 to 5. `damping(old, new, call)` makes the next state from what core
    call number `call` of the transition read and gave (EqR's damping and path noise). `routed` takes what experts were
    chosen, block by block.
    """
    if guide is not None and spec.noise_order == "before":
        h = guide(h)
    e_x, graph = relations.split_graph(e_x, spec)
    e_x, remembered = memory.split_memory(e_x, spec) if spec.memory_channels else (e_x, None)
    e_x, found = lookup.split_lookup(e_x, spec) if spec.lookup else (e_x, None)
    injection = h + e_x if spec.low_level_updates else l
    for call in range(spec.low_level_updates):
        new = core(weights, "low", l + injection, spec, graph, remembered, found, routed)
        l = new if damping is None else damping(l, new, call)
    new = core(weights, "low" if spec.is_core_shared else "high", h + l, spec, graph, remembered, found, routed)
    h = new if damping is None else damping(h, new, spec.low_level_updates)
    if guide is not None and spec.noise_order == "after":
        h = guide(h)
    return h, l


Transition = Callable[..., tuple[Tensor, Tensor]]
"""`transition`, or what computes the same."""


def damp(old: Tensor, new: Tensor, keep: float, eps: Tensor | None) -> Tensor:
    """`keep old + (1 - keep) new + eps` (EqR, 2605.21488): the state after a core call. Without damping and noise it is
    `new`, bit for bit."""
    damped = new if keep == 0 else keep * old + (1 - keep) * new
    return damped if eps is None else (damped.to(torch.float32) + eps).to(new.dtype)


def perturb(state: Tensor, sigma: float, normal: Tensor) -> Tensor:
    """`state + sigma * rms(state) * n`, RMS per token (PTRM, 2605.19943)."""
    wide = state.to(torch.float32)
    return (wide + sigma * wide.square().mean(-1, keepdim=True).sqrt() * normal).to(state.dtype)


def read_head(weights: Weights, name: str, h: Tensor, spec: Spec) -> Tensor:
    """Halt head or LPRM: one fp32 number per trajectory, `[B]`."""
    if name + ".gate_up" in weights:
        gate, up = linear(h, weights[name + ".gate_up"]).chunk(2, dim=-1)
        h = silu(gate) * up  # a SwiGLU whose last layer comes after the readout
    if spec.head_readout == "max":
        # By index: where equals share a gradient, a compiler that rounds them differently finds none.
        readout = h.max(1).values if torch.is_grad_enabled() else h.amax(1)
    else:
        readout = h.to(torch.float32).mean(1).to(h.dtype) if spec.head_readout == "mean" else h[:, 0]
    return linear(readout, weights[name + ".weight"], weights[name + ".bias"]).squeeze(-1).to(torch.float32)


def read_heads(weights: Weights, h: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Halt head and LPRM, `[B]` each; a lattice has no LPRM, which reads 0."""
    halt = read_head(weights, "halt", h, spec)
    return halt, torch.zeros_like(halt) if spec.value_tokens > 1 else read_head(weights, "lprm", h, spec)


def decode(weights: Weights, spec: Spec, h: Tensor) -> Tensor:
    """Logits `[B, A, V]`, fp32, at the output positions."""
    start = spec.answer_start
    return linear(h[:, start : start + spec.output_tokens], weights["decoder.weight"]).to(torch.float32)


def supervision_step(
    weights: Weights,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
    advance: Transition = transition,
) -> Step:
    """`T` transitions, then both heads. Each row is a trajectory of its own, whose noise `key` names. `advance` takes a
    transition."""
    noisy_B = key.step >= spec.noise_free_steps

    def normals(site: Site, transition_B: Tensor) -> Tensor:
        return noise((spec.length, spec.dim), key, site, transition_B)

    if injection.injector == "gaussian" and injection.sigma:
        if injection.site in ("h", "both"):
            h = perturb(h, injection.sigma, normals(Site.FIXED_SCALE_HIGH, key.step))
        if injection.site in ("l", "both"):
            l = perturb(l, injection.sigma, normals(Site.FIXED_SCALE_LOW, key.step))
    temperature = injection.temperature if injection.injector == "prior" else 0.0
    path_scale = injection.sigma if injection.injector == "path" else 0.0

    for index in range(spec.transitions):
        transition_B = key.step * spec.transitions + index

        def guide(u: Tensor, transition_B: Tensor = transition_B) -> Tensor:
            normal = normals(Site.PRIOR, transition_B) if temperature else torch.zeros_like(u, dtype=torch.float32)
            return add_noise(u, *gaussian(weights, "prior", u, spec), normal, noisy_B, spec, temperature)

        def damping(old: Tensor, new: Tensor, call: int, transition_B: Tensor = transition_B) -> Tensor:
            call_B = transition_B * (spec.low_level_updates + 1) + call
            return damp(old, new, spec.path_keep, path_scale * normals(Site.PATH, call_B) if path_scale else None)

        h, l = advance(
            weights,
            spec,
            h,
            l,
            e_x,
            None if spec.guidance == "none" else guide,
            damping if spec.path_keep or path_scale else None,
        )
    return Step(h, l, *read_heads(weights, h, spec))


def initial_noise(spec: Spec, key: NoiseKey, scale: float) -> tuple[Tensor, Tensor]:
    """Random initial `h` and `l`, fp32 `[B, L, D]`, of deviation `scale` (EqR draws one for every trajectory).

    EqR's code draws them from the normal distribution truncated at two deviations, widened to deviation 1 again. The
    key's step is not used.
    """
    shape = spec.length, spec.dim
    states = (torch.full_like(key.trajectory, state) for state in (0, 1))
    h, l = (scale * truncated(noise(shape, key, Site.INITIAL_STATE, state_B)) for state_B in states)
    return h, l


def truncated(normal: Tensor) -> Tensor:
    """Standard normal numbers as numbers of the normal truncated at +-2, scaled to deviation 1: by its quantiles."""
    mass = math.erf(2**0.5)
    deviation = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / mass)
    drawn: Tensor = torch.special.erfinv(mass * torch.special.erf(normal * 0.5**0.5)) * (2**0.5 / deviation)
    return drawn
