"""The learned noise of training in native code: prior, posterior, their KL, what is drawn, and all of its gradients.

It computes what `gram/training/guidance.py` and `reference.gaussian` define, in bf16 on a processor with AVX-512
products of bf16 (`guide.cpp`), where the state that is read takes no gradient (`noise_order` "before"). Products,
Gaussians, noise and KL of a few rows are made at once, and only what the backward pass multiplies by is kept. What the
posterior reads of a target is one row of a table for each token, so that it costs no product. Rows without noise cost
nothing: their KL reads 0.

Shapes: `B` rows, `L` tokens, `D` channels, `G` hidden units of a Gaussian, `V` tokens of the vocabulary.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gram.kernels import reference
from gram.kernels.native import path
from gram.kernels.native.build import FOLDER, VERSION, library
from gram.kernels.native.path import BF16, address, in_threads, split
from gram.kernels.philox import NoiseKey, Site, counter_word1
from gram.kernels.reference import Step, Weights
from gram.kernels.spec import LEARNED, Injection, Spec


class GuideShape(NamedTuple):
    """What the code is compiled for."""

    tokens: int
    dim: int
    hidden: int

    @classmethod
    def of(cls, weights: Weights, spec: Spec) -> GuideShape:
        """That of a model."""
        return cls(spec.length, spec.dim, weights["prior.down"].shape[1])


class _GuideSizes(NamedTuple):
    """Numbers of each buffer, as the code was compiled."""

    packed: int
    saved: int
    """Of a token."""
    grads: int
    scratch: int
    """In bytes."""
    group: int
    """Rows that go together."""


class _GuideOptions(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("center", "width", "balance", "temperature")]


def unsupported_reason(weights: Weights, spec: Spec) -> str | None:
    """Why a model's noise cannot take this path where its core takes the native one, in a few words, or None."""
    if spec.guidance != "full" or spec.noise_order != "before":
        return "only noise with a mean and a deviation, added before the core"
    if spec.dim % 32 or weights["prior.down"].shape[1] % 32:
        return "dim and guidance_hidden must be multiples of 32"
    return None


def prepare(weights: Weights, spec: Spec) -> None:
    """Builds and opens the library of a model. Raises `RuntimeError` where this machine's compiler cannot."""
    _opened(GuideShape.of(weights, spec))


def led(
    weights: Weights,
    spec: Spec,
    u: Tensor,
    targets: Tensor,
    noisy_B: Tensor,
    is_prior_B: Tensor,
    key: NoiseKey,
    transition_B: Tensor,
    balance: float,
) -> tuple[Tensor, Tensor]:
    """The state `u [B, L, D]` moved by the posterior's noise, or by the prior's in rows that follow it, and the KL of
    both, `[B, L]`, with balanced gradient (`guidance.balanced_kl`); 0 in rows without noise.

    `targets [B, A]` are tokens. Raises `ValueError` where `u` requires a gradient.
    """
    if u.requires_grad:
        raise ValueError("the state must take no gradient, got one that requires it")
    gate_up, embedding = weights["posterior.gate_up"], weights["target_embedding.weight"]
    # In fp32, as it costs next to nothing; where no target stands, a row of zeros.
    shown = embedding.to(torch.float32) * spec.dim**0.5 @ gate_up[:, spec.dim :].to(torch.float32).t()
    before = spec.answer_start
    index = pad(targets, (before, spec.length - before - targets.shape[1]), value=len(embedding))
    named = [weights["prior.gate_up"], weights["prior.down"], gate_up[:, : spec.dim], weights["posterior.down"]]
    words = torch.stack([counter_word1(transition_B, Site.POSTERIOR), key.trajectory, key.puzzle_hash])
    options = [spec.log_sigma_center, spec.log_sigma_range, balance, 1.0]
    is_saving = torch.is_grad_enabled()
    table = pad(shown, (0, 0, 0, 1))
    h, kl, _ = torch.ops.gram.native_guide(
        u, named, table, index, noisy_B, is_prior_B, words, key.seed, options, is_saving, VERSION
    )
    return h, kl


def prior_led(
    weights: Weights, spec: Spec, u: Tensor, noisy_B: Tensor, key: NoiseKey, transition_B: Tensor, temperature: float
) -> Tensor:
    """`u [B, L, D]` moved by the prior's noise in the rows where `noisy_B`; no gradient flows."""
    named = [weights["prior.gate_up"].detach(), weights["prior.down"].detach()]
    words = torch.stack([counter_word1(transition_B, Site.PRIOR), key.trajectory, key.puzzle_hash])
    options = [spec.log_sigma_center, spec.log_sigma_range, 0.0, temperature]
    empty = torch.empty(0)
    moved: Tensor = torch.ops.gram.native_guide(
        u.detach(), named, empty, words[:0], noisy_B, noisy_B, words, key.seed, options, False, VERSION
    )[0]
    return moved


def supervision_step(
    weights: Weights, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor, key: NoiseKey, *, injection: Injection = LEARNED
) -> Step:
    """As `reference.supervision_step`, without gradients; core and learned noise are native."""
    if injection.injector != "prior" or not injection.temperature:
        return reference.supervision_step(weights, spec, h, l, e_x, key, injection=injection, advance=path.transition)
    noisy_B = key.step >= spec.noise_free_steps
    for index in range(spec.transitions):
        transition_B = key.step * spec.transitions + index
        u = prior_led(weights, spec, h, noisy_B, key, transition_B, injection.temperature)
        h, l = path.transition(weights, spec, u, l, e_x, None)
    return Step(h, l, *reference.read_heads(weights, h, spec))


@cache
def _opened(shape: GuideShape) -> tuple[ctypes.CDLL, _GuideSizes]:
    found = library(FOLDER / "guide.cpp", tuple(f"{name}={value}" for name, value in zip("LDG", shape, strict=True)))
    sizes = (ctypes.c_int64 * len(_GuideSizes._fields))()
    found.sizes(sizes)
    return found, _GuideSizes(*sizes)


def _packed(shape: GuideShape, weights: list[Tensor]) -> Tensor:
    """The weights in the order in which the code reads them; the posterior's are the prior's where there are none."""
    code, sizes = _opened(shape)
    out = torch.empty(sizes.packed, dtype=BF16)
    own = [weight.contiguous() for weight in (weights if len(weights) == 4 else weights * 2)]
    gate_up, down = ((ctypes.c_void_p * 2)(*(each.data_ptr() for each in own[part::2])) for part in (0, 1))
    code.pack(gate_up, down, address(out))
    return out


def _scratch(each: _GuideSizes) -> Tensor:
    return torch.empty(each.scratch, dtype=torch.uint8)


@torch.library.custom_op("gram::native_guide", mutates_args=())
def _forward(
    u: Tensor,
    weights: list[Tensor],
    table: Tensor,
    index: Tensor,
    is_noisy: Tensor,
    is_prior: Tensor,
    words: Tensor,
    seed: int,
    options: list[float],
    is_saving: bool,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The state moved, the KL `[B, L]`, and what the backward pass reads (unless saving: nothing). An empty `table`:
    by the prior alone."""
    rows, tokens, dim = u.shape
    shape = GuideShape(tokens, dim, weights[1].shape[1])
    code, each = _opened(shape)
    has_posterior = table.numel() > 0
    packed, u, table, index, words = _packed(shape, weights), *(x.contiguous() for x in (u, table, index, words))
    h, kl = torch.empty_like(u), torch.empty(rows, tokens) if has_posterior else torch.empty(0)
    saved = torch.empty(rows if is_saving else 0, tokens, each.saved, dtype=BF16)

    def run(part: slice, _: int) -> None:
        scratch = _scratch(each)
        code.forward(
            *(address(packed), address(u), _given(table), _given(index), address(is_noisy), address(is_prior)),
            *(address(words), ctypes.c_int64(seed), address(h), _given(kl), _given(saved)),
            *map(ctypes.c_int64, (part.start, part.stop - part.start, rows)),
            *(ctypes.byref(_GuideOptions(*options)), address(scratch)),
        )

    in_threads(run, split(rows, each.group))
    return h, kl, saved


@torch.library.custom_op("gram::native_guide_backward", mutates_args=())
def _backward(
    dh: Tensor,
    dkl: Tensor,
    u: Tensor,
    weights: list[Tensor],
    table_rows: int,
    index: Tensor,
    is_noisy: Tensor,
    is_prior: Tensor,
    saved: Tensor,
    options: list[float],
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights, fp32, as the code orders them, and of the table."""
    rows, tokens, dim = u.shape
    shape = GuideShape(tokens, dim, weights[1].shape[1])
    code, each = _opened(shape)
    packed, dh, dkl, u, index = _packed(shape, weights), *(x.contiguous() for x in (dh, dkl, u, index))
    parts = split(rows, each.group)
    grads, table = torch.zeros(len(parts), each.grads), torch.zeros(len(parts), table_rows, 2 * shape.hidden)

    def run(part: slice, number: int) -> None:
        scratch = _scratch(each)
        code.backward(
            *(address(packed), address(u), address(index), address(is_noisy), address(is_prior), address(saved)),
            *(address(dh), address(dkl), address(grads, number), address(table, number)),
            *map(ctypes.c_int64, (part.start, part.stop - part.start)),
            *(ctypes.byref(_GuideOptions(*options)), address(scratch)),
        )

    in_threads(run, parts)
    return grads.sum(0), table.sum(0)


@_forward.register_fake
def _(
    u: Tensor,
    weights: list[Tensor],
    table: Tensor,
    index: Tensor,
    is_noisy: Tensor,
    is_prior: Tensor,
    words: Tensor,
    seed: int,
    options: list[float],
    is_saving: bool,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens, dim = u.shape
    each = _opened(GuideShape(tokens, dim, weights[1].shape[1]))[1]
    kl = u.new_empty(*((rows, tokens) if table.numel() else (0,)), dtype=torch.float32)
    return u.new_empty(u.shape), kl, u.new_empty(rows if is_saving else 0, tokens, each.saved)


@_backward.register_fake
def _(
    dh: Tensor,
    dkl: Tensor,
    u: Tensor,
    weights: list[Tensor],
    table_rows: int,
    index: Tensor,
    is_noisy: Tensor,
    is_prior: Tensor,
    saved: Tensor,
    options: list[float],
) -> tuple[Tensor, Tensor]:
    (_, tokens, dim), hidden = u.shape, weights[1].shape[1]
    each = _opened(GuideShape(tokens, dim, hidden))[1]
    return dkl.new_empty(each.grads), dkl.new_empty(table_rows, 2 * hidden)


def _given(tensor: Tensor) -> ctypes.c_void_p:
    """The address of a tensor, or null where it is empty."""
    return address(tensor) if tensor.numel() else ctypes.c_void_p(None)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, weights, table, index, is_noisy, is_prior, _, _, ctx.options, *_ = inputs
    ctx.table_rows = len(table)
    ctx.save_for_backward(u, index, is_noisy, is_prior, output[2], *weights)


def _differentiate(ctx: Any, dh: Tensor, dkl: Tensor, *_: Tensor) -> tuple[Any, ...]:
    u, index, is_noisy, is_prior, saved, *weights = ctx.saved_tensors
    backward = partial(torch.ops.gram.native_guide_backward, dh, dkl, u, weights, ctx.table_rows)
    grads, table = backward(index, is_noisy, is_prior, saved, ctx.options)
    (doubled, dim), hidden = weights[0].shape, weights[1].shape[1]
    gate_up = grads[: 2 * doubled * dim].view(2, doubled, dim).to(BF16)
    down = grads[2 * doubled * dim :].view(2, hidden, 2 * dim).transpose(1, 2).to(BF16)
    made = [gate_up[0], down[0], gate_up[1], down[1]]
    return None, made, table, *([None] * 8)


_forward.register_autograd(_differentiate, setup_context=_keep)
