"""Kernel C: a supervision step as matrix products and fused pointwise kernels, for any `D` (made for 512).

At `D = 512` no program can hold a trajectory. So the device's library computes the products, and Triton kernels all
that lies between them (`kernel.py`). On a GPU a step is one CUDA graph. Its operations (`plan.py`) are captured once
for a launch shape and replayed on the same buffers, so a step costs one launch. Elsewhere the same operations run one
by one in Triton's interpreter.

A product's rounding may change with the number of rows. So a trajectory's result depends on the launch size, which the
sampler keeps fixed, but on neither its slot nor the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gram.kernels import graphs
from gram.kernels.fused import path as fused
from gram.kernels.gemm.pack import Matrices
from gram.kernels.gemm.plan import StepPlan
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step
from gram.kernels.spec import LEARNED, Injection, Spec

KEPT = 8
"""Launch shapes whose graphs are kept: what a frontier's launches and kinds of noise alternate between."""


class Captured(NamedTuple):
    """A plan, and its graph where there is one."""

    plan: StepPlan
    graph: Any
    """`torch.cuda.CUDAGraph`, or None off a GPU and where `GRAM_GRAPHS=off` says so."""


@contextmanager
def _full_sums() -> Iterator[None]:
    """Products add up in fp32 throughout, whatever the process allows elsewhere."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_bf16_reduced_precision_reduction
    switch.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        switch.allow_bf16_reduced_precision_reduction = before


def _capture(plan: StepPlan, device: torch.device) -> Any:
    """The graph of a plan. Runs it once first: kernels are compiled and the library's workspaces made then."""
    with torch.cuda.device(device), _full_sums():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            plan.run()
        torch.cuda.current_stream().wait_stream(aside)
        pool = torch.cuda.graph_pool_handle()
        return graphs.capture(plan.run, stream=aside, pool=pool, what="a step of gemm")


def _noise_kind(spec: Spec, injection: Injection) -> tuple[Any, ...]:
    """What of an injection a plan is laid out for: its scales are given anew at every step."""
    return tuple(fused.noise_constants(spec, injection).values())


def captured(
    matrices: Matrices, spec: Spec, count: int, injection: Injection, *, has_active: bool, device: torch.device
) -> Captured:
    """The plan of a launch shape, from an earlier step or laid out (and captured) now.

    The last `KEPT` shapes are kept; the buffers of each take room for about `B L (4 D + 3 F)` numbers.
    """
    is_graph = device.type == "cuda" and graphs.are_on()
    shape = (spec, count, _noise_kind(spec, injection), has_active, device, is_graph)
    known: Captured | None = matrices.captured.pop(shape, None)
    if known is None:
        while len(matrices.captured) >= KEPT:
            del matrices.captured[next(iter(matrices.captured))]  # frees its buffers before new ones are made
        plan = StepPlan(matrices, spec, count, injection, has_active=has_active, device=device)
        for given in plan.given():
            given.zero_()  # capturing runs the plan once
        plan.write_numbers(0, 0.0, 0.0)
        known = Captured(plan, _capture(plan, device) if is_graph else None)
    matrices.captured[shape] = known  # the last one used is the last one
    return known


def supervision_step(
    matrices: Matrices,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
    active_B: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """See `fused.supervision_step`: the same arguments, results and errors, with the matrices of `pack.py`."""
    fused.check_states(matrices.dtype, spec, h, l, e_x)
    count = h.shape[0]
    state, score = out or fused.empty_results(spec, h)
    if not count:
        return Step(state[0], state[1], score[0], score[1])
    with fused.on_device(h.device):
        # Buffers outlive this call, so they must not be what inference mode makes; nothing here takes gradients.
        with torch.inference_mode(False), torch.no_grad():
            ready = captured(matrices, spec, count, injection, has_active=active_B is not None, device=h.device)
        plan = ready.plan
        with torch.no_grad():
            plan.write_numbers(key.seed, injection.temperature, injection.sigma)
            values = [h, l, e_x, *key[1:], *([] if active_B is None else [active_B])]
            for given, value in zip(plan.given(), values, strict=True):
                given.copy_(value)
            if ready.graph is None:
                with _full_sums():
                    plan.run()
            else:
                ready.graph.replay()
            state.copy_(plan.state)
            score.copy_(plan.score)
    return Step(state[0], state[1], score[0], score[1])
