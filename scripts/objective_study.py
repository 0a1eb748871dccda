"""What the settings for hard puzzles bring at equal counted operations: `scripts/objective_study.py --runs DIR`.

A small model of 6x6 Sudoku without noise (gated sums along rows, columns and boxes), trained with several seeds to one
number of counted floating-point operations, late starts included:

- base: one supervision step at a time, as every recipe has it;
- segments: gradient through 4 supervision steps, of a quarter of the slots, so that a step costs and teaches as much;
- late: a fifth of the slots begin after 8 to 32 steps without gradient;
- revealed: half of the slots see a part of the solution in the first half of training.

Judged on the validation split, one trajectory at several depths. Intervals of 95 % of differences are paired by puzzle,
training seeds drawn anew (`gram/evals/training_variance.py`). A training that is there is kept, an unfinished one
continued. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import gram
from gram.evals.training_variance import mean_of_runs
from gram.formatting import markdown
from gram.training.cost import cost_of
from gram.training.recipe import Recipe, load_recipe

ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "segments": {"gradient_steps": 4, "batch": 16, "rows_at_once": 16},
    "late": {"late_share": 0.2, "late_steps": (8, 32)},
    "revealed": {"reveal_until": 0.5},
}
DEPTHS = (4, 8, 16, 64)
PUZZLES = 300
FLOPS = 1e12
MODEL: dict[str, Any] = {
    "mixer": "relations",
    "relations": ("row", "column", "box", "all"),
    "positions": "none",
    "dim": 64,
    "hidden": 128,
    "mixer_hidden": 128,
    "head_hidden": 0,
}


def recipe_of(arm: str, seed: int, flops: float, **also: Any) -> Recipe:
    """The training of one run, to so many counted operations."""
    base = load_recipe("sudoku6-trm")
    settings = {"batch": 64, "rollout_slots": 4, "learning_rate": 2e-3, "final_learning_rate": 0.01, "ema": 0.98}
    settings |= {"warmup_steps": 50, "evaluate_puzzles": 8, "evaluate_every_steps": 10**9, "seed": seed}
    training = replace(base.training, **{**settings, **ARMS[arm], **also})
    made = Recipe(f"objective-{arm}", "Settings for hard puzzles", base.task, replace(base.model, **MODEL), training)
    steps = max(1, round(flops / cost_of(made).step_flops))
    return replace(made, training=replace(training, steps=steps))


def read_run(folder: Path, recipe: Recipe, puzzles: int) -> list[NDArray[np.bool_]]:
    """Whether one trajectory of each validation puzzle is right, at each depth."""
    sampler, held_out = gram.load(folder), recipe.task.split("validation", limit=puzzles)
    found = (sampler.sample(held_out, width=1, depth=depth, halting="fixed") for depth in DEPTHS)
    return [recipe.task.verify(held_out.puzzles, each.candidates[:, 0]) for each in found]


def study(
    runs: Path, arms: list[str], seeds: int, flops: float, puzzles: int, start: Path | None = None
) -> dict[str, NDArray[np.float64]]:
    """Trains what is missing and reads every run: right answers of each arm, `[depths, R, P]`. With `start`, from the
    weights of the same seed's base in that study's folder."""
    made: dict[str, list[Any]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            recipe, folder = recipe_of(arm, seed, flops), runs / f"{arm}-seed{seed}"
            weights = None if start is None else start / f"base-seed{seed}"
            card = gram.train(recipe, folder, is_compiled=False, dtype="float32", device="cpu", start=weights)
            right = read_run(folder, recipe, puzzles)
            told = ", ".join(
                f"{depth} steps {100 * each.mean():.1f}" for depth, each in zip(DEPTHS, right, strict=True)
            )
            print(f"{folder.name}: {told}, {card['minutes']} minutes", file=sys.stderr, flush=True)
            made[arm].append(right)
    return {arm: np.array(each, dtype=float).swapaxes(0, 1) for arm, each in made.items()}


def print_study(found: dict[str, NDArray[np.float64]], flops: float) -> None:
    """Accuracy of every arm and depth, and the differences from the first arm."""
    first, *others = found
    rows = []
    for arm, values in found.items():
        training = recipe_of(arm, 0, flops).training
        rows.append([arm, f"{training.steps:,} of {training.batch} x {training.gradient_steps}"])
        for right in values:
            each = ", ".join(f"{100 * value:.1f}" for value in right.mean(1))
            rows[-1].append(f"{100 * right.mean():.1f} ({each})")
    depths = [str(depth) for depth in DEPTHS[1:]]
    heads = ["training", "optimiser steps, slots x supervision steps", f"right after {DEPTHS[0]} steps, % (by seed)"]
    print(markdown([*heads, *depths], rows) + "\n")
    rows = []
    for arm in others:
        gaps = (mean_of_runs(right, minus=base) for right, base in zip(found[arm], found[first], strict=True))
        rows.append(
            [arm, *(f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})" for gap in gaps)]
        )
    print(markdown([f"points minus {first} (95 % interval)", f"{DEPTHS[0]} steps", *depths], rows))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained runs")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="the first is the base")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flops", type=float, default=FLOPS, help="counted operations of a run [default: %(default)g]")
    parser.add_argument("--start", type=Path, help="folder of an earlier study, whose base runs are trained further")
    parser.add_argument("--limit", type=int, default=PUZZLES, help="validation puzzles [default: %(default)s]")
    given = parser.parse_args()
    try:
        if given.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {given.seeds}")
        if not 0 < given.flops < 1e18:
            raise ValueError(f"flops must be above 0 and below 1e18, got {given.flops:g}")
        if given.limit < 1:
            raise ValueError(f"limit must be at least 1, got {given.limit}")
        if given.start is not None and not given.start.is_dir():
            raise ValueError(f"start must be a folder of runs, got {given.start}")
        if given.runs.exists() and not given.runs.is_dir():
            raise ValueError(f"runs must be a folder, got the file {given.runs}")
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(1)
    found = study(given.runs, given.arms, given.seeds, given.flops, given.limit, given.start)
    print_study(found, given.flops)


if __name__ == "__main__":
    main()
