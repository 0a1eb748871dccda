"""A table of training methods: checkpoints trained alike, judged on the same held-out puzzles, with intervals.

Not the sampling (the caller's) and not the training. Runs of one recipe with several training seeds are one row; its
intervals hold the chance of training and that among puzzles (`training_variance.py`).

Shapes: `R` training seeds, `P` puzzles, `N` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals import metrics, paired, statistics, training_variance
from gram.evals.evaluate import count_solutions, judge, single_accuracy_of, solution_counts
from gram.formatting import markdown as markdown_table
from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleSet, Task

Floats = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A value and its 95 % interval."""
MAIN = "gram"
"""The method that the others are compared with: the recipe `TASK-gram`, as long as they are."""
BASELINE = "trm-set"
"""The deterministic baseline, with which the others are compared where it is there: the model at its best target."""
PTRM = "ptrm"
"""The baseline sampled with Gaussian noise (PTRM, 2605.19943)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedRun:
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
class MethodRow:
    """One method."""

    method: str
    runs: int
    optimiser_steps: int
    minutes: float
    parameters: int
    figures: dict[str, Estimate]
    """`single` (one trajectory, the precision of what coverage counts), `accuracy` and, for tasks of several solutions,
    `coverage`: means over puzzles; `pooled`: `coverage` weighted by each puzzle's number of solutions."""
    ranges: dict[str, tuple[float, float]]
    """Least and largest of a run of each figure; empty where there is one run."""
    minus_main: dict[str, Estimate]
    """Each figure minus the main method's, paired by puzzle; empty for the main method."""
    minus_baseline: dict[str, Estimate]
    """The same minus the deterministic baseline's; empty for the baseline, and where there is none."""


def method_of(task: str, recipe: str) -> str:
    """Short name of a recipe: what stands behind its task's name; `main` for the main recipe, of its own length."""
    return "main" if recipe == task else recipe.removeprefix(f"{task}-")


def judge_run(
    task: Task,
    puzzles: PuzzleSet,
    results: Sequence[SampleResult],
    card: dict[str, Any],
    *,
    method: str | None = None,
) -> JudgedRun:
    """A run's values from its samples, one result for each sampling seed; `method` where it is not the recipe's. Raises
    `ValueError` for none."""
    if not results:
        raise ValueError("results must be of at least one sampling seed, got none")
    singles, chosen, covered = [], [], []
    every = np.array(count_solutions(task, puzzles.puzzles), dtype=float) if task.is_multi_solution else None
    for result in results:
        right = judge(task, result.puzzles, result.candidates, result.is_counted)
        singles.append(single_accuracy_of(right, result.widths, result.config))
        chosen.append(right[np.arange(len(right)), result.selected].astype(float))
        if every is not None:
            counts = solution_counts(task, result.candidates, right)
            covered.append(metrics.coverage_at_k(counts, result.widths, every, result.widths))
    return JudgedRun(
        method=method or method_of(card["task"], card["recipe"]["name"]),
        card=card,
        single=np.mean(singles, axis=0),
        accuracy=np.mean(chosen, axis=0),
        coverage=np.mean(covered, axis=0) if covered else None,
    )


def rows(task: Task, puzzles: PuzzleSet, runs: Sequence[JudgedRun]) -> list[MethodRow]:
    """The main method first, the others by accuracy of one trajectory. Raises `ValueError` without the main one, and
    where runs of one method are not of one length."""
    methods: dict[str, list[JudgedRun]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    if MAIN not in methods:
        raise ValueError(
            f"runs must hold one of recipe '{task.name}-{MAIN}' to compare with, got {', '.join(methods) or 'none'}"
        )
    every = np.array(count_solutions(task, puzzles.puzzles), dtype=float) if task.is_multi_solution else None
    values = {method: _of_runs(group, every) for method, group in methods.items()}
    made = []
    for method, group in methods.items():
        steps = {int(run.card["optimiser_steps"]) for run in group}
        if len(steps) > 1:
            raise ValueError(
                f"runs of {method} must be of one length, got {' and '.join(map(str, sorted(steps)))} optimiser steps"
            )
        made.append(
            MethodRow(
                method=method,
                runs=len(group),
                optimiser_steps=steps.pop(),
                minutes=float(np.mean([run.card["minutes"] for run in group])),
                parameters=int(group[0].card["parameters"]),
                figures={name: _estimate(each, puzzles) for name, each in values[method].items()},
                ranges=_ranges(values[method]) if len(group) > 1 else {},
                minus_main=_minus(values, method, MAIN, puzzles),
                minus_baseline=_minus(values, method, BASELINE, puzzles),
            )
        )
    return sorted(made, key=lambda row: (row.method != MAIN, -row.figures["single"][0]))


def one_answer(task: Task, puzzles: PuzzleSet) -> tuple[float, float]:
    """What one answer of each puzzle covers at most: mean of `1 / S`, and pooled over puzzles."""
    every = np.array(count_solutions(task, puzzles.puzzles), dtype=float)
    return float((1 / every).mean()), len(every) / float(every.sum())


def joined(parts: Sequence[tuple[PuzzleSet, Sequence[JudgedRun]]]) -> tuple[PuzzleSet, list[JudgedRun]]:
    """Folds as one: their test puzzles one after another, and as many runs as each fold has. Groups of different folds
    are different. Raises `ValueError` where folds differ in runs."""
    counts = sorted({len(runs) for _, runs in parts})
    if len(counts) != 1:
        raise ValueError(f"every fold must have as many runs, got {' and '.join(map(str, counts)) or 'none'}")
    groups, answers = [], []
    first = 0
    for puzzles, _ in parts:
        own = np.arange(len(puzzles)) if puzzles.groups is None else np.unique(puzzles.groups, return_inverse=True)[1]
        groups.append(first + own)
        first += int(own.max()) + 1
        answers.append(puzzles.puzzles if puzzles.answers is None else puzzles.answers)
    whole = PuzzleSet(
        puzzles=np.concatenate([puzzles.puzzles for puzzles, _ in parts]),
        answers=np.concatenate(answers),
        groups=np.concatenate(groups),
    )
    made = []
    for number in range(counts[0]):
        own_runs = [runs[number] for _, runs in parts]
        covered = [run.coverage for run in own_runs if run.coverage is not None]
        made.append(
            JudgedRun(
                method=MAIN,
                card=own_runs[0].card,
                single=np.concatenate([run.single for run in own_runs]),
                accuracy=np.concatenate([run.accuracy for run in own_runs]),
                coverage=np.concatenate(covered) if covered else None,
            )
        )
    return whole, made


class _Runs(NamedTuple):
    """Values of each training seed and puzzle `[R, P]`, and each puzzle's weight in the mean."""

    values: Floats
    weights: Floats | None = None

    def each(self) -> list[float]:
        """The mean of each seed."""
        if self.weights is None:
            return [metrics.mean_defined(run) for run in self.values]
        return [metrics.pooled(run, self.weights) for run in self.values]


def _of_runs(runs: Sequence[JudgedRun], every: Floats | None) -> dict[str, _Runs]:
    own = {
        "single": _Runs(np.stack([run.single for run in runs])),
        "accuracy": _Runs(np.stack([run.accuracy for run in runs])),
    }
    covered = [run.coverage for run in runs if run.coverage is not None]
    if every is None or not covered:
        return own
    return {**own, "coverage": _Runs(np.stack(covered)), "pooled": _Runs(np.stack(covered), every)}


def _estimate(runs: _Runs, puzzles: PuzzleSet) -> Estimate:
    """The interval is never narrower than that of chance among puzzles alone, which keeps a width near 0 and 1."""
    spread = training_variance.mean_of_runs(runs.values, puzzles.groups, weights=runs.weights)
    alone = statistics.clustered_interval(runs.values.mean(0), puzzles.groups, weights=runs.weights)
    return spread.estimate, min(spread.low, alone.low), max(spread.high, alone.high)


def _ranges(values: dict[str, _Runs]) -> dict[str, tuple[float, float]]:
    return {name: (min(runs.each()), max(runs.each())) for name, runs in values.items()}


def _minus(values: dict[str, dict[str, _Runs]], method: str, other: str, puzzles: PuzzleSet) -> dict[str, Estimate]:
    if method == other or other not in values:
        return {}
    made = {}
    for name, (ours, weights) in values[method].items():
        theirs = values[other][name].values
        spread = training_variance.mean_of_runs(ours, puzzles.groups, minus=theirs, weights=weights)
        alone = paired.paired_difference(ours.mean(0), theirs.mean(0), puzzles.groups, weights=weights)
        made[name] = (spread.estimate, min(spread.low, alone.low), max(spread.high, alone.high))
    return made


def markdown(task: Task, table: Sequence[MethodRow], *, width: int) -> str:
    """The rows as Markdown tables: figures, differences in points, and the range over training seeds."""
    names = _names(task, width)
    main = next(row.parameters for row in table if row.method == MAIN)
    figures = []
    for row in table:
        size = f"{row.parameters:,}" + (f" ({row.parameters / main - 1:+.1%})" if row.parameters != main else "")
        cells = [f"`{row.method}`", str(row.runs), size, f"{row.optimiser_steps:,}"]
        figures.append([*cells, f"{row.minutes:.1f}", *(_share(row.figures[name]) for name in names)])
    parts = [markdown_table(["method", "runs", "parameters", "optimiser steps", "minutes", *names.values()], figures)]
    for other, differing in ((MAIN, "minus_main"), (BASELINE, "minus_baseline")):
        every = [(row.method, getattr(row, differing)) for row in table]
        differences = [[f"`{method}`", *(_points(less[name]) for name in names)] for method, less in every if less]
        if differences:
            parts.append(markdown_table([f"points minus `{other}`", *names.values()], differences))
    ranges = [
        [f"`{row.method}`", str(row.runs), *(f"{100 * low:.1f} to {100 * high:.1f} %" for low, high in ends)]
        for row in table
        if (ends := list(row.ranges.values()))
    ]
    if ranges:
        parts.append(markdown_table(["range over training seeds", "runs", *names.values()], ranges))
    return "\n\n".join(parts) + "\n"


def fold_markdown(task: Task, folds: dict[str, tuple[PuzzleSet, Sequence[JudgedRun]]], *, width: int) -> str:
    """The main method on the test split of each fold, by its name, as a Markdown table; below it the range over folds
    and their standard deviation. Raises `ValueError` for fewer than two folds."""
    if len(folds) < 2:
        raise ValueError(f"folds must be at least two, got {', '.join(folds) or 'none'}")
    names = _names(task, width)
    own = {
        split: (len(puzzles), rows(task, puzzles, [replace(run, method=MAIN) for run in runs])[0])
        for split, (puzzles, runs) in folds.items()
    }
    lines = [
        [f"`{split}`", f"{count:,}", str(row.runs), *(_share(row.figures[name]) for name in names)]
        for split, (count, row) in own.items()
    ]
    values = np.array([[row.figures[name][0] for name in names] for _, row in own.values()])
    ends = zip(100 * values.min(0), 100 * values.max(0), strict=True)
    lines.append(["range over folds", "", "", *(f"{low:.1f} to {high:.1f} %" for low, high in ends)])
    spread = 100 * values.std(0, ddof=1)
    lines.append(["standard deviation over folds, points", "", "", *(f"{points:.1f}" for points in spread)])
    return markdown_table(["test split", "puzzles", "runs", *names.values()], lines) + "\n"


def _names(task: Task, width: int) -> dict[str, str]:
    """Figures of a task and the heads of their columns."""
    names = {"single": "one trajectory (precision)", "accuracy": f"vote of {width}"}
    if task.is_multi_solution:
        names |= {"coverage": f"coverage@{width}, mean", "pooled": "pooled"}
    return names


def _share(figure: Estimate) -> str:
    value, low, high = (100 * part for part in figure)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _points(figure: Estimate) -> str:
    value, low, high = (100 * part for part in figure)
    verdict = "" if low > 0 or high < 0 else ", not significant"
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}){verdict}"
