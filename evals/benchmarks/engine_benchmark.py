"""The engine with each kernel path on this device: whether results depend on slots, and how many trajectories a second.

Speed is paired in one run, as ratios to `eager` (`timing.py`). Two paths round in different places, so their
trajectories are not compared here; `gpu_benchmark.py` and the check before a path's first use compare their steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args

from gram.api import Sampler
from gram.config import Kernel
from gram.evals.benchmarks import sampler_benchmark
from gram.evals.benchmarks.timing import Measurement, paired
from gram.kernels import dispatch
from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleSet

CHECKPOINTS = ("sudoku6", "colouring8", "sudoku9")
"""Shipped ones: token mixer and attention at D = 128, which `fused` takes, and a wider one, which `gemm` takes."""
LAUNCH = 64
"""Of the rows on slots, small enough that the slot counts make several launches."""


def kernels_of(sampler: Sampler) -> list[Kernel]:
    """The kernel paths that can run a model on its device, but `compiled`."""
    found: list[Kernel] = []
    for kernel in get_args(dispatch.Kernel):
        try:
            dispatch.choose(sampler.model.device, sampler.model.spec, sampler.model.dtype, kernel)
        except ValueError:
            continue
        if kernel != "compiled":
            found.append(kernel)
    return found


def slot_rows(load: Callable[[str], Sampler], *, limit: int) -> Iterator[Measurement]:
    """Distinct digests over slot counts and orders of each checkpoint and kernel path; one that fails is a row with its
    error."""
    for name in CHECKPOINTS:
        sampler = load(name)
        puzzles = sampler.task.split("test", limit=limit)
        for kernel in kernels_of(sampler):
            try:
                yield sampler_benchmark.slot_row(sampler, puzzles, width=20, kernel=kernel, launch=LAUNCH)
            except Exception as error:
                yield Measurement.failed(f"{name}: distinct digests with {kernel}", error, kernel=kernel)


def speed_rows(load: Callable[[str], Sampler], *, limit: int, width: int, rounds: int) -> Iterator[Measurement]:
    """Each kernel path over `eager`, whole runs with the launch and slots of the device's defaults.

    Facts say trajectories and supervision steps a second. A path that fails is a row with its error.
    """
    for name in CHECKPOINTS:
        sampler = load(name)
        puzzles = sampler.task.split("test", limit=limit)
        yield from speed_rows_of(sampler, puzzles, kernels_of(sampler), width=width, rounds=rounds)


def speed_rows_of(
    sampler: Sampler, puzzles: PuzzleSet, kernels: list[Kernel], *, width: int, rounds: int
) -> Iterator[Measurement]:
    """The rows of one checkpoint."""
    made: dict[str, SampleResult] = {}

    def run(kernel: Kernel) -> None:
        made[kernel] = sampler.sample(puzzles, width=width, kernel=kernel)

    right = []
    for kernel in kernels:
        label = f"{sampler.name}, width {width}, {len(puzzles)} puzzles: {kernel}"
        try:
            run(kernel)
        except Exception as error:
            yield Measurement.failed(label, error, kernel=kernel)
        else:
            right.append(kernel)
    seconds = paired({kernel: partial(run, kernel) for kernel in right}, rounds)
    for kernel in right:
        config, result = made[kernel].config, made[kernel]
        median = statistics.median(seconds[kernel])
        facts = {
            "kernel": kernel,
            "launch": config.launch,
            "slots": config.slots,
            "seconds": seconds[kernel],
            "steps_run": result.steps_run,
            "trajectories_per_s": len(puzzles) * width / median,
            "steps_per_s": result.steps_run / median,
            "device": sampler.model.device.type,
        }
        label = f"{sampler.name}, width {width}, {len(puzzles)} puzzles: {right[0]} / {kernel}, time"
        yield Measurement.of_ratios(label, seconds[right[0]], seconds[kernel], facts=facts)
