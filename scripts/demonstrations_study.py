"""What a memory of demonstrations is worth: `python scripts/demonstrations_study.py`.

    python scripts/demonstrations_study.py number gram/weights/recolour --out docs/figures
    python scripts/demonstrations_study.py ablate --runs runs/recolour --steps 1000

`number`: accuracy of one trajectory of a checkpoint with 1, 2, 4, 8 and 16 demonstrations of the same held-out puzzles,
each paired with twice as few, and for each family of rules; with `--out` a picture too. `ablate`: trains every kind of
memory with several seeds (a run that is there is continued, a finished one kept) and compares the full memory with each
other kind on `--task`, paired by puzzle. Puzzles of one rule are one cluster; seeds are resampled too, as
`gram/evals/training_variance.py` says. Both print Markdown.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gram
from gram.config import SamplerConfig
from gram.evals.pages.charts import Chart
from gram.evals.pages.figures import shares
from gram.evals.pages.pictures import write
from gram.evals.paired import paired_difference
from gram.evals.statistics import clustered_interval
from gram.evals.training_variance import mean_of_runs
from gram.tasks.puzzle_sets import PuzzleSet
from gram.tasks.recolour import DEMONSTRATIONS, Recolour
from gram.training.recipe import load_recipe

NUMBERS = (1, 2, 4, 8, 16)
KINDS = ("titans", "no-momentum", "no-forgetting", "delta", "sum", "mean", "none")
SPLITS = ("test", "test-families")


def task_name(demonstrations: int) -> str:
    """The task of that many demonstrations."""
    return "recolour" if demonstrations == DEMONSTRATIONS else f"recolour{demonstrations}"


def right(checkpoint: Path | str, task: str, split: str, limit: int | None) -> tuple[NDArray[np.bool_], PuzzleSet]:
    """Whether one trajectory at full depth answers each puzzle of a split rightly, `[P]`."""
    sampler = gram.load(checkpoint, task=task)
    puzzles = sampler.task.split(split, limit=limit)
    result = sampler.sample(puzzles, SamplerConfig(width=1, halting="fixed"))
    return sampler.task.verify(puzzles.puzzles, result.candidates[:, 0]), puzzles


def points(value: float) -> str:
    """A difference in points."""
    return f"{100 * value:+.1f}"


def chance(p_value: float) -> str:
    """A p-value."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def by_number(checkpoint: str, limit: int | None, out: Path | None) -> None:
    """Accuracy by the number of demonstrations."""
    chart = Chart(x_range=(0.9, 18), y_range=(0, 1), title="recolour", is_log_x=True, width=480)
    shares(chart, list(NUMBERS), x_label="demonstrations", y_label="accuracy of one trajectory", x_format="{:g}".format)
    print("| split | demonstrations | accuracy (95 % interval) | minus half as many | p |\n|---|---|---|---|---|")
    for place, split in enumerate(SPLITS):
        before, drawn = None, []
        colour = f"s{place + 1}"
        for number in NUMBERS:
            found, puzzles = right(checkpoint, task_name(number), split, limit)
            low, high = clustered_interval(found, puzzles.groups)
            said = "| | "
            if before is not None:
                gap = paired_difference(found, before, puzzles.groups)
                said = f"| {points(gap.estimate)} ({points(gap.low)} to {points(gap.high)}) | {chance(gap.p_value)} "
            print(f"| {split} | {number} | {found.mean():.1%} ({low:.1%} to {high:.1%}) {said}|", flush=True)
            chart.whisker(number, low, high, colour)
            chart.dot(number, float(found.mean()), colour, f"{found.mean():.1%}")
            drawn.append((float(number), float(found.mean())))
            before = found
        chart.line(drawn, colour)
        chart.key.append((colour, {"test": "held-out parameters", "test-families": "held-out families"}[split]))
        families = np.array(Recolour().families(split))[: len(puzzles)]
        shown = (f"{name} {found[families == name].mean():.0%}" for name in dict.fromkeys(families.tolist()))
        print(f"| {split} | {NUMBERS[-1]}, by family | {', '.join(shown)} | | |")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write(out, {"recolour": chart})


def ablate(
    runs: Path, recipe: str, seeds: int, steps: int | None, kinds: list[str], task: str, limit: int | None
) -> None:
    """Trains what is missing and compares kinds of memory."""
    found: dict[str, list[NDArray[np.bool_]]] = {}
    groups = None
    for seed in range(seeds):
        for kind in kinds:
            base = load_recipe(recipe, seed=seed, steps=steps)
            own = replace(base, name=f"{base.name}-{kind}", model=replace(base.model, memory=kind))
            folder = runs / f"{kind}-seed{seed}"
            print(f"{folder}: training", file=sys.stderr, flush=True)
            gram.train(own, folder, is_compiled=False)
            verdicts, puzzles = right(folder, task, "test", limit)
            found.setdefault(kind, []).append(verdicts)
            groups = puzzles.groups
    print(f"| memory | accuracy on {task} (95 % interval) | full minus this, points | by seed |\n|---|---|---|---|")
    full = np.stack(found[kinds[0]]).astype(float)
    for kind in kinds:
        own_runs = np.stack(found[kind]).astype(float)
        mean = mean_of_runs(own_runs, groups)
        said = ""
        if kind != kinds[0]:
            gap = mean_of_runs(full, groups, minus=own_runs)
            said = f"{points(gap[0])} ({points(gap[1])} to {points(gap[2])})"
        by_seed = ", ".join(f"{run.mean():.1%}" for run in own_runs)
        print(f"| {kind} | {mean[0]:.1%} ({mean[1]:.1%} to {mean[2]:.1%}) | {said} | {by_seed} |")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    number = verbs.add_parser("number", help="accuracy by the number of demonstrations")
    number.add_argument("checkpoint")
    number.add_argument("--out", type=Path, help="folder of the picture")
    kinds = verbs.add_parser("ablate", help="train and compare kinds of memory")
    kinds.add_argument("--runs", type=Path, required=True, help="folder of the trained runs")
    kinds.add_argument("--recipe", default="recolour")
    kinds.add_argument("--seeds", type=int, default=3)
    kinds.add_argument("--steps", type=int, help="optimiser steps of each run [default: the recipe's length]")
    kinds.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="the first is the full one")
    kinds.add_argument("--task", default="recolour8")
    for verb in (number, kinds):
        verb.add_argument("--limit", type=int, help="first puzzles of each split [default: all]")
    given = parser.parse_args()
    if given.verb == "number":
        by_number(given.checkpoint, given.limit, given.out)
    else:
        ablate(given.runs, given.recipe, given.seeds, given.steps, given.kinds, given.task, given.limit)


if __name__ == "__main__":
    main()
