"""Bytes that one supervision step moves to and from device memory, counted from shapes. Counts, not measurements.

Eager: every operation reads its inputs and writes its outputs, views apart; an expanded tensor counts once. Fused: the
kernel's loads and stores of states, by trajectory, and weights once per launch, since all programs share them in the
second-level cache. Scratch states are counted in full, though they mostly stay in that cache too. Kernel C: all of its
operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gram.kernels import pack, reference
from gram.kernels.reference import Spec, Weights


class Count(NamedTuple):
    """Bytes moved and operations launched."""

    bytes: int
    launches: int


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Meter(TorchDispatchMode):
    bytes = 0
    launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        if not func.is_view and "_unsafe_view" not in str(func):
            self.launches += 1
            self.bytes += sum(map(_bytes, tensors))
        return made


def count_eager(run: Callable[[], Any]) -> Count:
    """Counts what eager PyTorch moves in `run`; meta tensors will do."""
    make: Any = _Meter  # its base class is not annotated
    with make() as meter:
        run()
    return Count(meter.bytes, meter.launches)


def eager_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """The reference's supervision step of `count` trajectories."""
    meta = {name: tensor.detach().to("meta", dtype) for name, tensor in weights.items()}
    state = torch.empty(count, spec.tokens, spec.dim, dtype=dtype, device="meta")
    rows = torch.empty(count, dtype=torch.int64, device="meta")
    return count_eager(
        lambda: reference.supervision_step(
            meta, spec, state, state, state, seed=0, puzzle_hash_B=rows, trajectory_B=rows, step_B=rows
        )
    )


def fused_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """The fused kernel's supervision step of `count` trajectories with the prior's noise: one launch."""
    state = spec.tokens * spec.dim * dtype.itemsize
    calls = spec.transitions * (spec.low_level_updates + 1)
    copied = 4  # both states, read and written
    in_calls = calls * 3 + spec.transitions * spec.low_level_updates  # h, l read, one written; e_x in low-level calls
    guided = 2 * spec.transitions if spec.guidance != "none" else 0
    keys_and_heads = 3 * 8 + 2 * 4
    packed = pack.pack(weights, spec, dtype)
    shared = sum(x.numel() * x.element_size() for x in (packed.matrix, packed.tokens, packed.vector))
    return Count(count * ((copied + in_calls + guided + 1) * state + keys_and_heads) + shared, 1)


def gemm_step(weights: Weights, spec: Spec, count: int, dtype: torch.dtype) -> Count:
    """Kernel C's supervision step of `count` trajectories with the prior's noise.

    What every operation of its plan reads and writes, and the copies into and out of its buffers.

    All of its launches but the copies are one graph to whoever launches them.
    """
    from gram.kernels import gemm_pack, gemm_plan

    meta = {name: tensor.detach().to("meta") for name, tensor in weights.items()}
    matrices = gemm_pack.pack(meta, spec, dtype)
    plan = gemm_plan.lay_out(matrices, spec, count, reference.LEARNED, has_active=False, device=torch.device("meta"))
    moved = [tensor for operation in plan.operations for tensor in operation.moved()]
    copied = [*plan.given(), plan.state, plan.score]
    return Count(sum(map(_bytes, moved)) + 2 * sum(map(_bytes, copied)), len(plan.operations) + len(copied))
