"""A table of training methods: checkpoints trained alike, judged on the same held-out puzzles, with intervals.

Not the sampling (the caller's) and not the training. Runs of one recipe with several training seeds are one row: each
puzzle's values are their means, the interval is that of chance among puzzles, and the range over seeds stands beside.

Shapes: `P` puzzles, `N` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals import metrics, statistics
from gram.evals.evaluate import count_solutions, judge, solution_counts
from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleSet, Task

Floats = NDArray[np.float64]
MAIN = "gram"
"""The method that the others are compared with: the recipe named as its task."""
TWIN = "trm"
"""The other one that they are compared with, where it is there: the deterministic model, without any noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One trained run on the held-out puzzles, per puzzle."""

    method: str
    card: dict[str, Any]
    single: Floats
    """Share of right trajectories `[P]`."""
    accuracy: Floats
    """1 where the selected answer is right, `[P]`; a mean where there are several sampling seeds."""
    coverage: Floats | None
    """Distinct valid solutions found / all `[P]`; None for a task of one solution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One method."""

    method: str
    runs: int
    optimiser_steps: float
    """Mean over runs."""
    minutes: float
    parameters: int
    figures: dict[str, tuple[float, float, float]]
    """`single`, `accuracy`, `coverage`: mean and its 95 % interval."""
    single_range: tuple[float, float] | None
    """Least and largest `single` of a run; None where there is one run."""
    coverage_pooled: float
    less_main: tuple[float, float, float] | None
    """`single` less the main method's, paired by puzzle, with its 95 % interval; None for the main method."""
    less_twin: tuple[float, float, float] | None
    """The same less the deterministic twin's; None for the twin, and where there is none."""


def method_of(task: str, recipe: str) -> str:
    """Short name of a recipe: what stands behind its task's name, or `gram`."""
    return MAIN if recipe == task else recipe.removeprefix(f"{task}-")


def judge_run(task: Task, puzzles: PuzzleSet, results: Sequence[SampleResult], card: dict[str, Any]) -> Judged:
    """A run's values from its samples, one result for each sampling seed. Raises `ValueError` for none."""
    if not results:
        raise ValueError("results must be of at least one sampling seed, got none")
    singles, chosen, covered = [], [], []
    every = np.array(count_solutions(task, puzzles.puzzles), dtype=float) if task.is_multi_solution else None
    for result in results:
        right = judge(task, result.puzzles, result.candidates, result.is_counted)
        singles.append(right.sum(axis=1) / result.widths)
        chosen.append(right[np.arange(len(right)), result.selected].astype(float))
        if every is not None:
            counts = solution_counts(task, result.candidates, right)
            covered.append(metrics.coverage_at_k(counts, result.widths, every, result.widths))
    return Judged(
        method=method_of(card["task"], card["recipe"]["name"]),
        card=card,
        single=np.mean(singles, axis=0),
        accuracy=np.mean(chosen, axis=0),
        coverage=np.mean(covered, axis=0) if covered else None,
    )


def rows(task: Task, puzzles: PuzzleSet, runs: Sequence[Judged]) -> list[Row]:
    """The main method first, the others by accuracy of one trajectory. Raises `ValueError` without the main one."""
    methods: dict[str, list[Judged]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    if MAIN not in methods:
        raise ValueError(
            f"runs must hold one of recipe {task.name!r} to compare with, got {', '.join(methods) or 'none'}"
        )
    every = np.array(count_solutions(task, puzzles.puzzles), dtype=float) if task.is_multi_solution else None
    means = {method: np.mean([run.single for run in group], axis=0) for method, group in methods.items()}
    made = []
    for method, group in methods.items():
        coverages = [run.coverage for run in group if run.coverage is not None]
        values = {"single": means[method], "accuracy": np.mean([run.accuracy for run in group], axis=0)}
        pooled = float("nan")
        if every is not None and coverages:
            values["coverage"] = np.mean(coverages, axis=0)
            pooled = metrics.pooled(values["coverage"], every)
        each = [float(run.single.mean()) for run in group]
        made.append(
            Row(
                method=method,
                runs=len(group),
                optimiser_steps=float(np.mean([run.card["optimiser_steps"] for run in group])),
                minutes=float(np.mean([run.card["minutes"] for run in group])),
                parameters=int(group[0].card["parameters"]),
                figures={
                    name: (float(value.mean()), *statistics.clustered_interval(value, puzzles.groups))
                    for name, value in values.items()
                },
                single_range=(min(each), max(each)) if len(each) > 1 else None,
                coverage_pooled=pooled,
                less_main=_less(means, method, MAIN, puzzles),
                less_twin=_less(means, method, TWIN, puzzles),
            )
        )
    return sorted(made, key=lambda row: (row.method != MAIN, -row.figures["single"][0]))


def _less(means: dict[str, Floats], method: str, other: str, puzzles: PuzzleSet) -> tuple[float, float, float] | None:
    if method == other or other not in means:
        return None
    less = statistics.paired_difference(means[method], means[other], puzzles.groups)
    return less.estimate, less.low, less.high


def markdown(task: Task, table: Sequence[Row], *, width: int) -> str:
    """The rows as a Markdown table; percentages, and points for differences."""
    has_coverage = task.is_multi_solution
    head = ["method", "runs", "parameters", "optimiser steps", "minutes", "one trajectory", "range over runs"]
    head += [f"vote of {width}"]
    head += [f"coverage@{width}, mean", "pooled"] if has_coverage else []
    head += [f"one trajectory less `{MAIN}`", f"less `{TWIN}`"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in table:
        cells = [f"`{row.method}`", str(row.runs), f"{row.parameters:,}", f"{row.optimiser_steps:,.0f}"]
        cells += [f"{row.minutes:.1f}", _share(row.figures["single"])]
        cells += ["-" if row.single_range is None else " to ".join(f"{100 * end:.1f}" for end in row.single_range)]
        cells += [_share(row.figures["accuracy"])]
        cells += [_share(row.figures["coverage"]), f"{100 * row.coverage_pooled:.1f} %"] if has_coverage else []
        cells += ["-" if less is None else _points(less) for less in (row.less_main, row.less_twin)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(figure: tuple[float, float, float]) -> str:
    value, low, high = (100 * part for part in figure)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _points(figure: tuple[float, float, float]) -> str:
    value, low, high = (100 * part for part in figure)
    verdict = "" if low > 0 or high < 0 else ", not told apart"
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}){verdict}"
