"""Bytes that one supervision step moves, counted from shapes: device memory's, and the second-level cache's; and its
special functions. Counts, not measurements.

Eager: every operation reads its inputs and writes its outputs, views apart; an expanded tensor counts once. Fused: the
kernel's loads and stores of states, by trajectory, and weights once per launch, since all programs share them in the
second-level cache. Scratch states are counted in full, though most stay in that cache too. Kernel C: all of its
operations. Tests compare the counts of states with the loads and stores of the kernels in the interpreter. Special
functions are those of the reference, since every path computes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gram.kernels import reference
from gram.kernels.fused import pack, tuning
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Weights
from gram.kernels.spec import LEARNED, Spec

SPECIAL = frozenset(
    getattr(torch.ops.aten, name) for name in ("_softmax", "exp", "rsqrt", "sigmoid", "silu", "sqrt", "tanh")
)
"""Operations that take a special-function unit at least once for each element: SiLU as one hyperbolic tangent, a
softmax as an exponential. Logarithms, sines and cosines of the noise are polynomials in the kernels, and not here."""


class Count(NamedTuple):
    """Bytes moved, operations launched, special functions computed."""

    bytes: int
    """To and from device memory."""
    launches: int
    l2_bytes: int
    """Through the second-level cache: every program of a launch reads the weights from there, while device memory gives
    them once. Of library products, whose tiles are not ours, what device memory moves."""
    special_functions: int
    """Results of the special-function units, at least."""


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Meter(TorchDispatchMode):
    bytes = 0
    launches = 0
    special_functions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        if not func.is_view and "_unsafe_view" not in str(func):
            self.launches += 1
            self.bytes += sum(map(_bytes, tensors))
        if func.overloadpacket in SPECIAL:
            self.special_functions += made.numel()
        return made


def count_eager(run: Callable[[], Any]) -> Count:
    """Counts what eager PyTorch does in `run`; meta tensors will do."""
    make: Any = _Meter  # its base class is not annotated
    with make() as meter:
        run()
    return Count(meter.bytes, meter.launches, meter.bytes, meter.special_functions)


def eager_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """The reference's supervision step of `count` trajectories."""
    meta = {name: tensor.detach().to("meta", dtype) for name, tensor in weights.items()}
    state = torch.empty(count, spec.length, spec.dim, dtype=dtype, device="meta")
    rows = torch.empty(count, dtype=torch.int64, device="meta")
    key = NoiseKey(0, rows, rows, rows)
    e_x = state.new_empty(count, spec.length, spec.embedded_dim)
    return count_eager(lambda: reference.supervision_step(meta, spec, state, state, e_x, key))


def special_functions(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> int:
    """What every path computes of them in a supervision step of `count` trajectories."""
    return eager_step(weights, spec, count, dtype).special_functions


def _state_bytes(spec: Spec, dtype: torch.dtype) -> int:
    return spec.length * spec.dim * dtype.itemsize


def _tables(packed: pack.Packed, spec: Spec) -> int:
    """Bytes of the rotary tables, where there are any."""
    is_rotary = spec.is_rotary and spec.mixer == "attention"
    return 4 * (packed.cos.numel() + packed.sin.numel()) if is_rotary else 0


TARGET = "sm_90"
"""Whose cut of the fused kernel is counted."""
KEYS, HEADS = 3 * 8, 2 * 4
"""Bytes of one trajectory's puzzle hash, id and step number, and of its two heads."""
NAME = 8
"""Bytes of one of the first three."""


def _numbers_read(packed: pack.Packed, spec: Spec) -> int:
    """Numbers of the packed weights that one trajectory's step reads: a block's at every call, the heads' once."""
    layout = packed.layout
    block = layout.core_rows * spec.dim + 3 * layout.mixer_hidden * layout.token_rows
    heads = (packed.matrix.shape[0] - layout.head_row) * spec.dim
    prior = (4 if spec.guidance == "full" else 3) * layout.guidance_hidden * spec.dim  # 0 units without guidance
    return spec.transitions * ((spec.low_level_updates + 1) * spec.blocks * block + prior) + heads


def fused_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """The fused kernel's supervision step of `count` trajectories with the prior's noise: one launch."""
    calls, low_calls = spec.transitions * (spec.low_level_updates + 1), spec.transitions * spec.low_level_updates
    guided = 2 * spec.transitions if spec.guidance != "none" else 0
    loaded = spec.transitions + calls + low_calls  # l once in a transition, h in every call, e_x in low-level ones
    stored = spec.transitions + min(low_calls, spec.transitions)  # what `f_H` and the last low-level call made
    if spec.path_keep > 0:
        loaded, stored = loaded + calls, calls
    states = 4 + guided + loaded + stored + 1  # both copied first; the heads load h
    packed = pack.pack(weights, spec, dtype, tuning.default(TARGET, dtype, spec, weights))
    numbers = packed.matrix.numel() + (packed.tokens.numel() if spec.mixer == "token" else 0)
    rest = 4 * packed.vector.numel() + _tables(packed, spec)
    # The noise loads a trajectory's names again, also its step to store by; in a group for each part of the channels.
    group, turns = packed.layout.tuning.group, guided // 2
    parts = 1 if group == 1 else spec.dim // max(16, spec.dim // 4)
    names = turns * (KEYS if group == 1 else parts * (KEYS + NAME))
    each = states * _state_bytes(spec, dtype) + KEYS + names + HEADS
    read = dtype.itemsize * _numbers_read(packed, spec) + rest + (0 if group == 1 else turns * parts * NAME)
    programs = -(-count // group)
    return Count(
        count * each + dtype.itemsize * numbers + rest,
        1,
        count * each + programs * read,
        special_functions(weights, spec, count, dtype),
    )


def blocks_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """The same of the per-block kernels: a launch for both states, two per block, one per prior, one for the heads."""
    calls, low_calls = spec.transitions * (spec.low_level_updates + 1), spec.transitions * spec.low_level_updates
    guided = spec.transitions if spec.guidance != "none" else 0
    # Of each block the mixer and the channel SwiGLU read and write one; a call's first mixer sums two or three.
    states = 4 + 4 * calls * spec.blocks + calls + low_calls + (spec.path_keep > 0) * calls + 2 * guided + 1
    packed = pack.pack(weights, spec, dtype)
    rest = 4 * packed.vector.numel() + calls * spec.blocks * _tables(packed, spec)
    shared = dtype.itemsize * _numbers_read(packed, spec) + rest
    each = states * _state_bytes(spec, dtype) + KEYS + guided * KEYS + HEADS
    return Count(
        count * each + shared,
        2 + 2 * calls * spec.blocks + guided,
        count * (each + shared),
        special_functions(weights, spec, count, dtype),
    )


def gemm_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """Kernel C's supervision step of `count` trajectories with the prior's noise.

    What every operation of its plan reads and writes, and the copies into and out of its buffers.

    All of its launches but the copies are one graph to whoever launches them.
    """
    from gram.kernels.gemm import plan as gemm_plan  # triton is slow to load

    meta = {name: tensor.detach().to("meta") for name, tensor in weights.items()}
    matrices = gemm_pack.pack(meta, spec, dtype)
    plan = gemm_plan.StepPlan(matrices, spec, count, LEARNED, has_active=False, device=torch.device("meta"))
    moved = [tensor for operation in plan.operations for tensor in operation.moved()]
    copied = [*plan.given(), plan.state, plan.score]  # key and scales are written where they change
    total = sum(map(_bytes, moved)) + 2 * sum(map(_bytes, copied))
    return Count(total, len(plan.operations) + len(copied), total, special_functions(weights, spec, count, dtype))
