"""The engine with each kernel path on this device: whether results depend on slots, and how many trajectories a second.

Speed is paired in one run, as ratios to `eager` (`timing.py`). On a GPU each path runs with and without CUDA graphs of
its supervision steps, and each run tells the host's share of its time: all but what the host has waited for the device.
While the host works the device does, too, so the share is the most by which the host can have held it up. Two paths
round in different places, so their trajectories are not compared here; `gpu_benchmark.py` and the check before a path's
first use compare their steps.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, get_args

from gram.api import Sampler
from gram.config import Kernel
from gram.evals.benchmarks import sampler_benchmark
from gram.evals.benchmarks.timing import Measurement, paired
from gram.kernels import dispatch
from gram.sampler.engine import Engine, Observer
from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleSet

CHECKPOINTS = ("sudoku6", "colouring8", "sudoku9")
"""Shipped ones: token mixer and attention at D = 128, which `fused` takes, and a wider one, which `gemm` takes."""
WIDTHS = {"cpu": 20, "cuda": 400}
"""Trajectories of each puzzle, by device: on a GPU enough that graphs are captured and launched many times."""
QUICK_WIDTHS = {"sudoku6": 1600}
"""The same on a GPU, of checkpoints whose trajectories take two steps: 200 puzzles are 40 stretches of 2,048 slots."""
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


class Waits(Observer):
    """Takes note of how long the host has waited for a device that halts and refills by itself."""

    waited_s: float | None = None
    captures = 0
    capture_s = 0.0

    def on_advanced(self, engine: Engine) -> None:
        """After every stretch."""
        if engine.loop is not None:
            stretches = engine.loop.stretches
            self.waited_s, self.captures = engine.loop.reports.waited_s, stretches.captures
            self.capture_s = stretches.capture_s


class Version(NamedTuple):
    """How a run's steps are computed."""

    kernel: Kernel
    has_graphs: bool = True

    @property
    def name(self) -> str:
        return self.kernel if self.has_graphs else f"{self.kernel} without graphs"


@contextmanager
def graphs(has_graphs: bool) -> Iterator[None]:
    """Runs take CUDA graphs meanwhile, or none."""
    before = os.environ.get("GRAM_GRAPHS")
    os.environ["GRAM_GRAPHS"] = "on" if has_graphs else "off"
    try:
        yield
    finally:
        del os.environ["GRAM_GRAPHS"]
        if before is not None:
            os.environ["GRAM_GRAPHS"] = before


def versions_of(sampler: Sampler) -> list[Version]:
    """The kernel paths that can run a model, and on a GPU each of them without graphs, too, where it has some."""
    is_gpu = sampler.model.device.type == "cuda"
    return [
        version
        for kernel in kernels_of(sampler)
        for version in (Version(kernel), Version(kernel, has_graphs=False))
        if version.has_graphs or (is_gpu and kernel != "gemm")
    ]


def speed_rows(
    load: Callable[[str], Sampler], *, limit: int, rounds: int, width: int | None = None
) -> Iterator[Measurement]:
    """Each kernel path over `eager`, whole runs with the launch and slots of the device's defaults.

    Facts say trajectories and supervision steps a second. A path that fails is a row with its error.
    """
    for name in CHECKPOINTS:
        sampler = load(name)
        puzzles = sampler.task.split("test", limit=limit)
        device = sampler.model.device.type
        count = width or (QUICK_WIDTHS if device == "cuda" else {}).get(name, WIDTHS[device])
        yield from speed_rows_of(sampler, puzzles, versions_of(sampler), width=count, rounds=rounds)


def speed_rows_of(
    sampler: Sampler, puzzles: PuzzleSet, versions: list[Version], *, width: int, rounds: int
) -> Iterator[Measurement]:
    """The rows of one checkpoint."""
    made: dict[Version, SampleResult] = {}
    failed: dict[Version, Exception] = {}
    shares: dict[Version, list[float]] = {version: [] for version in versions}
    watches: dict[Version, Waits] = {}

    def run(version: Version) -> None:
        """Does nothing for a version that has failed: the others go on."""
        if version in failed:
            return
        watch, began = Waits(), time.perf_counter()
        try:
            with graphs(version.has_graphs):
                made[version] = sampler.sample(puzzles, width=width, kernel=version.kernel, observer=watch)
        except Exception as error:
            failed[version] = error
            return
        if watch.waited_s is not None:
            shares[version].append(1 - watch.waited_s / (time.perf_counter() - began))
            watches[version] = watch

    tried: list[Version] = []
    for version in versions:
        with_graphs = watches.get(Version(version.kernel))
        if version.has_graphs or (with_graphs is not None and with_graphs.captures):  # else it would be the same
            run(version)
            tried.append(version)
    seconds = paired({version.name: partial(run, version) for version in tried if version not in failed}, rounds)
    title = f"{sampler.name}, width {width}, {len(puzzles)} puzzles: "
    for version, error in failed.items():
        yield Measurement.failed(title + version.name, error, kernel=version.kernel)
    right = [version for version in tried if version not in failed]
    for version in right:
        config, result = made[version].config, made[version]
        median = statistics.median(seconds[version.name])
        facts = {
            "kernel": version.kernel,
            "has_graphs": version.has_graphs,
            "launch": config.launch,
            "slots": config.slots,
            "seconds": seconds[version.name],
            "steps_run": result.steps_run,
            "trajectories_per_s": len(puzzles) * width / median,
            "steps_per_s": result.steps_run / median,
            "device": sampler.model.device.type,
        }
        if watch := watches.get(version):
            captured = {"captures": watch.captures, "capture_s": watch.capture_s}
            facts |= {"host_share": shares[version][-rounds:], **captured}
        label = f"{title}{right[0].name} / {version.name}, time"
        yield Measurement.of_ratios(label, seconds[right[0].name], seconds[version.name], facts=facts)
