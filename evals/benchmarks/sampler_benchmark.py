"""What the engine saves, measured: paired in one run, as ratios (`timing.py`). A ratio is never given where the results
differ. Counts of supervision steps are exact and have no spread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gram import checkpoint
from gram.api import Sampler, SamplerOptions
from gram.config import Kernel, ModelConfig
from gram.evals.benchmarks.timing import ROOT, Measurement, paired
from gram.evals.evaluate import judge
from gram.evals.paired import paired_difference
from gram.model import Model
from gram.sampler.engine import Engine
from gram.sampler.result import SampleResult
from gram.sampler.run import shards_of, slots_of
from gram.sampler.scheduler import ShardResult
from gram.tasks.protocol import PuzzleSet

MEMORY_RUNS = (1_000, 100_000)
"""Trajectories of the two runs whose peak memory is compared."""
SLOT_COUNTS = (1, 3, 64, 100, 512)


def refill_rows(sampler: Sampler, puzzles: PuzzleSet, *, width: int, rounds: int) -> Iterator[Measurement]:
    """Slots with refill against launches that run until all of their trajectories have halted.

    Same kernel path, type, seed, launch and one launch of slots: both must give the same trajectories.
    """
    config = sampler.settings(width=width)
    config = replace(config, slots=config.launch)
    runs: dict[str, tuple[int, list[ShardResult]]] = {}

    def run(is_rectangular: bool) -> None:
        engine = Engine(
            sampler.model,
            sampler.task,
            puzzles.puzzles,
            config,
            is_static=is_rectangular,
            kind_of_slots=slots_of(sampler.model),
        )
        made = [
            result for _, result in sorted(engine.run(shards_of(len(puzzles), config)), key=lambda one: one[0].index)
        ]
        runs["rectangular" if is_rectangular else "refill"] = engine.steps_run, made

    seconds = paired({"rectangular": lambda: run(True), "refill": lambda: run(False)}, rounds)
    for one, other in zip(runs["rectangular"][1], runs["refill"][1], strict=True):
        if not (np.array_equal(one.candidates, other.candidates) and np.array_equal(one.steps, other.steps)):
            raise AssertionError(
                f"{sampler.task.name}: refill must give the rectangular sampler's trajectories, got others"
            )
    steps = {name: count for name, (count, _) in runs.items()}
    facts = {
        "puzzles": len(puzzles),
        "width": width,
        "launch": config.launch,
        "steps_run": steps,
        "same_trajectories": True,
    }
    saved, name = steps["rectangular"] / steps["refill"], f"{sampler.task.name}: halting with refill"
    yield Measurement.of(f"{name}, supervision steps", [saved], 2.0, facts=facts)
    slow, fast = seconds["rectangular"], seconds["refill"]
    yield Measurement.of_ratios(f"{name}, time", slow, fast, 1.7, facts={"seconds": seconds})


def adaptive_rows(
    sampler: Sampler, puzzles: PuzzleSet, *, depth: int, width: int, policies: dict[str, dict[str, Any]]
) -> Iterator[Measurement]:
    """Adaptive width against a fixed one at few steps, where width matters; no verifier. Cancelled steps count."""
    fixed = sampler.sample(puzzles, width=width, depth=depth)
    right = _selected_right(sampler, puzzles, fixed)
    single = float(judge(sampler.task, fixed.puzzles, fixed.candidates).mean())
    for name, settings in policies.items():
        adaptive = sampler.sample(puzzles, width=width, depth=depth, **settings)
        mine = _selected_right(sampler, puzzles, adaptive)
        points = paired_difference(mine, right, puzzles.groups)
        saved = fixed.steps_run / adaptive.steps_run
        facts = {
            "puzzles": len(puzzles), "depth": depth, "width": width, **settings, "mean_width":
            float(adaptive.widths.mean()), "steps_run": {"fixed": fixed.steps_run, "adaptive": adaptive.steps_run},
            "single_accuracy": single, "accuracy": {"fixed": float(right.mean()), "adaptive": float(mine.mean())},
        }  # fmt: skip
        label = f"{sampler.task.name} at depth {depth}: width {name}"
        yield Measurement.of(f"{label}, supervision steps", [saved], 2.5, facts=facts)
        value, low, high = (100 * each for each in (points.estimate, points.low, points.high))
        name = f"{label}, selected accuracy in points"
        yield Measurement(name=name, ratio=value, low=low, high=high, floor=-0.5)


def slot_row(
    sampler: Sampler, puzzles: PuzzleSet, *, width: int, kernel: Kernel = "auto", launch: int | None = None
) -> Measurement:
    """Distinct digests over slot counts and orders of the puzzles, with a width that stops early: 1."""
    digests = {}
    given: SamplerOptions = {"width": width, "width_policy": "decided", "kernel": kernel, "launch": launch}
    for slots in SLOT_COUNTS:
        result = sampler.sample(puzzles, **given | SamplerOptions(slots=slots))
        digests[f"slots {slots}"] = result.trajectories_sha256
    order = np.random.default_rng(0).permutation(len(puzzles))
    shuffled = sampler.sample(puzzles.take(order), **given)
    inverse = np.argsort(order)
    digests["another order"] = replace(
        shuffled,
        puzzles=shuffled.puzzles[inverse],
        widths=shuffled.widths[inverse],
        steps=shuffled.steps[inverse],
        candidates=shuffled.candidates[inverse],
    ).trajectories_sha256
    count = float(len(set(digests.values())))
    name = f"{sampler.task.name}: distinct digests over slots and orders, adaptive width"
    name += f", {kernel}" if kernel != "auto" else ""
    return Measurement.of(name, [count], 1.0, is_ceiling=True, facts=digests)


def memory_row() -> Measurement:
    """Growth of a process's peak memory from 1,000 to 100,000 trajectories kept in a folder, in MiB."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        shape = {"tokens": 16, "output_tokens": 16, "dim": 16, "hidden": 16, "mixer_hidden": 8, "guidance_hidden": 8}
        tiny = Model(ModelConfig(task="nqueens4", depth=2, low_level_updates=1, **shape))  # type: ignore[arg-type]
        checkpoint.save(tiny, Path(folder) / "tiny")
        for count in MEMORY_RUNS:
            command = [sys.executable, "-m", "gram.evals.benchmarks.memory_probe", folder, str(count)]
            # In the package's own folder: `-m` looks in the working directory first, which may hold another gram.
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            peaks[count] = json.loads(done.stdout)["peak_mib"]
    growth = peaks[MEMORY_RUNS[1]] - peaks[MEMORY_RUNS[0]]
    name = "growth of peak memory, 1,000 to 100,000 trajectories, MiB"
    facts = {"peak_mib": {str(count): peak for count, peak in peaks.items()}}
    return Measurement.of(name, [growth], 64.0, is_ceiling=True, facts=facts)


def _selected_right(sampler: Sampler, puzzles: PuzzleSet, result: SampleResult) -> np.ndarray:
    return sampler.task.verify(puzzles.puzzles, result.answers).astype(np.float64)
