"""A table of training methods: checkpoints trained alike, judged on the same held-out puzzles, with intervals.

Not the sampling (the caller's) and not the training. Runs of one recipe with several training seeds are one row: each
puzzle's values are their means, the interval is that of chance among puzzles, and the range over seeds stands apart.

Shapes: `P` puzzles, `N` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals import metrics, paired, statistics
from gram.evals.evaluate import count_solutions, judge, solution_counts
from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleSet, Task

Floats = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A value and its 95 % interval."""
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
    figures: dict[str, Estimate]
    """`single`, `accuracy` and, for tasks of several solutions, `coverage`: means over puzzles; `pooled`: `coverage`
    weighted by each puzzle's number of solutions."""
    ranges: dict[str, tuple[float, float]]
    """Least and largest of a run of each figure; empty where there is one run."""
    less_main: dict[str, Estimate]
    """Each figure less the main method's, paired by puzzle; empty for the main method."""
    less_twin: dict[str, Estimate]
    """The same less the deterministic twin's; empty for the twin, and where there is none."""


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
    means = {method: _means([_values(run, every) for run in group]) for method, group in methods.items()}
    made = []
    for method, group in methods.items():
        made.append(
            Row(
                method=method,
                runs=len(group),
                optimiser_steps=float(np.mean([run.card["optimiser_steps"] for run in group])),
                minutes=float(np.mean([run.card["minutes"] for run in group])),
                parameters=int(group[0].card["parameters"]),
                figures={name: _estimate(mean, puzzles) for name, mean in means[method].items()},
                ranges=_ranges([_values(run, every) for run in group]) if len(group) > 1 else {},
                less_main=_less(means, method, MAIN, puzzles),
                less_twin=_less(means, method, TWIN, puzzles),
            )
        )
    return sorted(made, key=lambda row: (row.method != MAIN, -row.figures["single"][0]))


class _Mean(NamedTuple):
    """One value of each puzzle `[P]`, and its weight in the mean."""

    values: Floats
    weights: Floats | None = None

    def value(self) -> float:
        if self.weights is None:
            return metrics.mean_defined(self.values)
        return metrics.pooled(self.values, self.weights)


def _values(run: Judged, every: Floats | None) -> dict[str, _Mean]:
    own = {"single": _Mean(run.single), "accuracy": _Mean(run.accuracy)}
    if run.coverage is None or every is None:
        return own
    return {**own, "coverage": _Mean(run.coverage), "pooled": _Mean(run.coverage, every)}


def _means(runs: Sequence[dict[str, _Mean]]) -> dict[str, _Mean]:
    return {
        name: _Mean(np.mean([run[name].values for run in runs], axis=0), mean.weights) for name, mean in runs[0].items()
    }


def _estimate(mean: _Mean, puzzles: PuzzleSet) -> Estimate:
    return mean.value(), *statistics.clustered_interval(mean.values, puzzles.groups, weights=mean.weights)


def _ranges(runs: Sequence[dict[str, _Mean]]) -> dict[str, tuple[float, float]]:
    each = [{name: mean.value() for name, mean in run.items()} for run in runs]
    return {name: (min(run[name] for run in each), max(run[name] for run in each)) for name in each[0]}


def _less(means: dict[str, dict[str, _Mean]], method: str, other: str, puzzles: PuzzleSet) -> dict[str, Estimate]:
    if method == other or other not in means:
        return {}
    made = {}
    for name, (values, weights) in means[method].items():
        others = means[other][name].values
        less = paired.paired_difference(values, others, puzzles.groups, weights=weights)
        made[name] = (less.estimate, less.low, less.high)
    return made


def markdown(task: Task, table: Sequence[Row], *, width: int) -> str:
    """The rows as Markdown tables: figures, differences in points, and the range over training seeds."""
    names = {"single": "one trajectory", "accuracy": f"vote of {width}"}
    if task.is_multi_solution:
        names |= {"coverage": f"coverage@{width}, mean", "pooled": "pooled"}
    figures = [["method", "runs", "parameters", "optimiser steps", "minutes", *names.values()]]
    for row in table:
        cells = [f"`{row.method}`", str(row.runs), f"{row.parameters:,}", f"{row.optimiser_steps:,.0f}"]
        figures.append([*cells, f"{row.minutes:.1f}", *(_share(row.figures[name]) for name in names)])
    parts = [_table(figures)]
    for other, every_less in ((MAIN, [row.less_main for row in table]), (TWIN, [row.less_twin for row in table])):
        differences = [
            [f"`{row.method}`", *(_points(less[name]) for name in names)]
            for row, less in zip(table, every_less, strict=True)
            if less
        ]
        if differences:
            parts.append(_table([[f"points less `{other}`", *names.values()], *differences]))
    ranges = [
        [f"`{row.method}`", str(row.runs), *(f"{100 * low:.1f} to {100 * high:.1f} %" for low, high in ends)]
        for row in table
        if (ends := list(row.ranges.values()))
    ]
    if ranges:
        parts.append(_table([["range over training seeds", "runs", *names.values()], *ranges]))
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def _share(figure: Estimate) -> str:
    value, low, high = (100 * part for part in figure)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _points(figure: Estimate) -> str:
    value, low, high = (100 * part for part in figure)
    verdict = "" if low > 0 or high < 0 else ", not told apart"
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}){verdict}"
