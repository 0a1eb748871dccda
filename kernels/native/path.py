"""A transition of training with gradients whose core is native code: blocks of a few rows that stay in cache.

It computes `reference.transition` of token-mixing models in bf16, forward and backward, on a processor with AVX-512
products of bf16 (`core.cpp`). Trajectories go through all core calls four at a time. What lies between two products is
done in registers, so that gates, hidden units and their gradients are neither converted nor passed through memory
twice. The gradients of weights are summed in fp32 over all calls and rows. Rounded less often, it is nearer to fp32
than the compiled path in bf16.

Shapes: `B` rows, `L` tokens, `D` channels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, MutableSequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gram.kernels.experts import Routing
from gram.kernels.native.build import FOLDER, VERSION, library
from gram.kernels.reference import Damping, Guide, Weights
from gram.kernels.spec import Spec

PARTS = ("mixer.gate_up", "mixer.down", "channel.gate_up", "channel.down")
BF16 = torch.bfloat16


class Shape(NamedTuple):
    """What the code is compiled for."""

    tokens: int
    dim: int
    mixer_hidden: int
    hidden: int
    blocks: int
    updates: int
    norm_eps: float
    """May be 0: only tokens are normed, no padding."""

    @classmethod
    def of(cls, weights: Weights, spec: Spec) -> Shape:
        """That of a model."""
        hidden = weights["low.0.channel.down"].shape[1]
        mixer_hidden = weights["low.0.mixer.down"].shape[1]
        updates = spec.low_level_updates
        return cls(spec.length, spec.dim, mixer_hidden, hidden, spec.blocks, updates, spec.norm_eps)

    @classmethod
    def named(cls, sizes: list[int], norm_eps: float) -> Shape:
        """That which an operation is told."""
        return cls._make([*sizes[:6], norm_eps])


class _Sizes(NamedTuple):
    """Numbers of each buffer, as the code was compiled."""

    packed: int
    saved: int
    """Of a group, in all calls."""
    norms: int
    """Likewise."""
    grads: int
    scratch: int
    """In bytes."""
    padded: int
    """Tokens of a row of the mixer's gradients."""
    group: int
    """Rows that go together."""


def has_avx512_bfloat16() -> bool:
    """Whether this processor has AVX-512 products of bfloat16."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def unsupported_reason(
    weights: Weights, spec: Spec, *, gradient_calls: int = 0, path_noise: float = 0.0, gradient_steps: int = 1
) -> str | None:
    """Why a model's training cannot take this path here, in a few words, or None."""
    table = weights["decoder.weight"]
    if table.dtype is not BF16:
        return "only bfloat16"
    if table.device.type != "cpu" or not has_avx512_bfloat16():
        return "no processor with AVX-512 products of bfloat16"
    if spec.mixer != "token" or spec.mixer_norm != "columns":
        return "only tokens mixed by a SwiGLU and normed by columns"
    if not spec.is_core_shared or spec.experts or spec.lookup or spec.demonstrations or spec.active_share < 1:
        return "only one dense core"
    if spec.path_keep or path_noise or gradient_calls:
        return "no damping, path noise or cut gradient"
    if gradient_steps > 1:
        return "no gradient through several steps"
    shape = Shape.of(weights, spec)
    if shape.dim % 32 or shape.hidden % 32 or shape.mixer_hidden % 4:
        return "dim and hidden must be multiples of 32, mixer_hidden of 4"
    return None


def prepare(weights: Weights, spec: Spec) -> None:
    """Builds and opens the library of a model. Raises `RuntimeError` where this machine's compiler cannot."""
    _opened(Shape.of(weights, spec))


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
    """As `reference.transition`; no gradient flows into or out of `l`. Raises `ValueError` for damping or experts."""
    if damping is not None or routed is not None:
        raise ValueError("the native core must have neither damping nor experts, got some")
    if guide is not None and spec.noise_order == "before":
        h = guide(h)
    named = [weights[f"low.{block}.{part}"] for block in range(spec.blocks) for part in PARTS]
    *sizes, norm_eps = tuple(Shape.of(weights, spec))  # PyTorch 2.8 cannot trace a slice of the named one
    is_saving = torch.is_grad_enabled()
    h, l, _, _ = torch.ops.gram.native_core(h, l.detach(), e_x, named, [*sizes, VERSION], norm_eps, is_saving)
    if guide is not None and spec.noise_order == "after":
        h = guide(h)
    return h, l.detach()


@cache
def _opened(shape: Shape) -> tuple[ctypes.CDLL, _Sizes]:
    names = ("L", "D", "HM", "F", "BLOCKS", "UPDATES", "EPS")
    values = [*map(str, shape[:6]), f"{shape.norm_eps!r}f"]
    found = library(FOLDER / "core.cpp", tuple(f"{name}={value}" for name, value in zip(names, values, strict=True)))
    sizes = (ctypes.c_int64 * 7)()
    found.sizes(sizes)
    return found, _Sizes(*sizes)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def in_threads(run: Callable[[slice, int], None], parts: list[slice]) -> None:
    """Runs each part, with its number, in a thread of its own."""
    list(_pool(len(parts)).map(run, parts, range(len(parts))))


def split(rows: int, group: int) -> list[slice]:
    """The rows of each thread: whole groups, as many for each as can be."""
    groups, threads = -(-rows // group), torch.get_num_threads()
    ends = [min(rows, group * (groups * (part + 1) // threads)) for part in range(threads)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _groups(rows: int, each: _Sizes) -> int:
    return -(-rows // each.group)


def address(tensor: Tensor, row: int = 0) -> ctypes.c_void_p:
    """The address of a contiguous tensor's row."""
    return ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())


def _packed(shape: Shape, weights: list[Tensor]) -> Tensor:
    """The weights in the orders in which the code reads them."""
    code, sizes = _opened(shape)
    out = torch.empty(shape.blocks, sizes.packed, dtype=BF16)
    for block in range(shape.blocks):
        own = [weight.contiguous() for weight in weights[len(PARTS) * block : len(PARTS) * (block + 1)]]
        code.pack(*map(address, own), address(out, block))
    return out


@torch.library.custom_op("gram::native_core", mutates_args=())
def _forward(
    h: Tensor, l: Tensor, e_x: Tensor, weights: list[Tensor], sizes: list[int], norm_eps: float, is_saving: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`h` and `l` after the core calls, and what the backward pass reads (unless saving: nothing of use)."""
    shape = Shape.named(sizes, norm_eps)
    code, each = _opened(shape)
    packed = _packed(shape, weights)
    h, l, e_x = (x.contiguous() for x in (h, l, e_x))
    parts = split(len(h), each.group)
    kept = _groups(len(h), each) if is_saving else len(parts)
    saved, norms = torch.empty(kept, each.saved, dtype=BF16), torch.empty(kept, each.norms)
    h_out, l_out = torch.empty_like(h), l.clone() if not shape.updates else torch.empty_like(l)

    def run(part: slice, number: int) -> None:
        row, first = part.start, part.start // each.group if is_saving else number
        scratch = torch.empty(each.scratch, dtype=torch.uint8)
        code.forward(
            *(
                address(packed),
                address(h, row),
                address(l, row),
                address(e_x, row),
                address(h_out, row),
                address(l_out, row),
            ),
            *(address(saved, first), address(norms, first), ctypes.c_int64(part.stop - row), ctypes.c_int64(is_saving)),
            address(scratch),
        )

    in_threads(run, parts)
    return (h_out, l_out, saved, norms) if is_saving else (h_out, l_out, saved[:0], norms[:0].clone())


@torch.library.custom_op("gram::native_core_backward", mutates_args=())
def _backward(
    dh: Tensor, saved: Tensor, norms: Tensor, weights: list[Tensor], sizes: list[int], norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `h` and `e_x`, and those of the weights, fp32, as the code orders them, `[blocks, numbers]`."""
    shape = Shape.named(sizes, norm_eps)
    code, each = _opened(shape)
    packed, dh = _packed(shape, weights), dh.contiguous()
    parts = split(len(dh), each.group)
    grads = torch.zeros(len(parts), shape.blocks, each.grads)
    dh_in, de = torch.empty_like(dh), torch.empty_like(dh)

    def run(part: slice, number: int) -> None:
        row, group = part.start, part.start // each.group
        scratch = torch.empty(each.scratch, dtype=torch.uint8)
        code.backward(
            *(address(packed), address(saved, group), address(norms, group)),
            *(address(dh, row), address(dh_in, row), address(de, row)),
            *(address(grads, number), ctypes.c_int64(part.stop - row)),
            address(scratch),
        )

    in_threads(run, parts)
    return dh_in, de, grads.sum(0)


@_forward.register_fake
def _(
    h: Tensor, l: Tensor, e_x: Tensor, weights: list[Tensor], sizes: list[int], norm_eps: float, is_saving: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = Shape.named(sizes, norm_eps)
    _, each = _opened(shape)
    kept = _groups(len(h), each) if is_saving else 0
    return (
        h.new_empty(h.shape),
        h.new_empty(h.shape),
        h.new_empty(kept, each.saved),
        h.new_empty(kept, each.norms, dtype=torch.float32),
    )


@_backward.register_fake
def _(
    dh: Tensor, saved: Tensor, norms: Tensor, weights: list[Tensor], sizes: list[int], norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    shape = Shape.named(sizes, norm_eps)
    grads = dh.new_empty(shape.blocks, _opened(shape)[1].grads, dtype=torch.float32)
    return dh.new_empty(dh.shape), dh.new_empty(dh.shape), grads


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, _, weights, ctx.sizes, ctx.norm_eps, ctx.is_saving = inputs
    ctx.save_for_backward(*output[2:], *weights)


def _differentiate(ctx: Any, dh: Tensor, *_: Tensor) -> tuple[Any, ...]:
    saved, norms, *weights = ctx.saved_tensors
    dh_in, de, grads = torch.ops.gram.native_core_backward(dh, saved, norms, weights, ctx.sizes, ctx.norm_eps)
    shape = Shape.named(ctx.sizes, ctx.norm_eps)
    each = _opened(shape)[1]
    unit = shape.mixer_hidden * each.padded
    sizes = [2 * unit, unit, 2 * shape.hidden * shape.dim, shape.hidden * shape.dim]
    made = []
    for own in grads:
        gate_up, down, *channel = own.split(sizes)
        gate_up = gate_up.view(-1, each.padded)[:, : shape.tokens]
        down = down.view(-1, each.padded)[:, : shape.tokens].t()
        made += [gate_up, down, channel[0].view(-1, shape.dim), channel[1].view(-1, shape.dim).t()]
    return dh_in, None, de, [gradient.to(BF16) for gradient in made], None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
