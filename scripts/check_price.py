"""Prices of cells against real runs: `python scripts/check_price.py CHECKPOINT --puzzles FILE [--cells 1x8,16x8]`.

Every cell is run for real on random puzzles of the file, one at a time; the price comes from step times alone, which
are timed between the real runs, and from the steps that trajectories of all puzzles take. `ratio`: price over the mean
of the real runs; `same puzzles`: the price of the very puzzles that were run, which leaves out which ones were drawn.
Both with 95 % intervals (real runs and rounds of timing resampled). Prints a table in Markdown, or one JSON object.

Without `--puzzles`: one trajectory one puzzle at a time, launched as one row and as eight padded ones.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

import gram
from gram.api import Sampler
from gram.config import Kernel, SamplerConfig
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.latency import courses_of, measure
from gram.evals.frontier.prefix_timing import alone, time_prefix, timed
from gram.evals.frontier.prices import StepTimes, expected_prices
from gram.formatting import markdown
from gram.tasks.protocol import Tokens

RUNS_A_ROUND = 10
"""Real runs of each cell between two rounds of timing."""
DRAWS = 2_000


def run_ms(sampler: Sampler, puzzle: Tokens, config: SamplerConfig) -> float:
    """Milliseconds from tokens in to answer out."""
    started = time.perf_counter()
    sampler.sample(puzzle, config)
    return 1e3 * (time.perf_counter() - started)


def check(
    sampler: Sampler, puzzles: Tokens, cells: list[tuple[int, int]], runs: int, seed: int, kernel: Kernel = "auto"
) -> list[dict[str, Any]]:
    """One object per cell `(width, depth)`."""
    config, rng = sampler.settings(width_policy="fixed", kernel=kernel), np.random.default_rng(seed)
    # What a trace's halting gives, without the steps beyond, `[P, N]`.
    sized = {cell: replace(config, width=cell[0], depth=cell[1]) for cell in cells}
    steps = {cell: sampler.sample(puzzles, each).steps.astype(np.int32) for cell, each in sized.items()}
    courses = courses_of(("interactive",), (False,), max(width for width, _ in cells), 0)
    real: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    drawn = {cell: rng.integers(len(puzzles), size=runs) for cell in cells}
    entries: dict[str, list[Any]] = {"step_ms": [], "ending_ms": [], "overhead_ms": []}
    for first in range(0, runs, RUNS_A_ROUND):
        timing = measure(
            courses,
            lambda course, index: time_prefix(sampler, puzzles[index], timed(config, course, len(index))),
            puzzles=len(puzzles),
            rounds=1,
            seed=first,
        )["clock"][0]
        for name, lines in entries.items():
            lines += timing[name]
        for number in range(first, min(first + RUNS_A_ROUND, runs)):
            for place in rng.permutation(len(cells)):
                cell = cells[place]
                puzzle = puzzles[drawn[cell][number] : drawn[cell][number] + 1]
                real[cell].append(run_ms(sampler, puzzle, alone(config, *cell)))
    times = StepTimes.of({"rows": timing["rows"], **entries})
    return [_row(cell, steps[cell], drawn[cell], np.array(real[cell]), times, seed) for cell in cells]


def _row(
    cell: tuple[int, int],
    steps: NDArray[np.int32],
    drawn: NDArray[np.int64],
    real: NDArray[np.float64],
    times: StepTimes,
    seed: int,
) -> dict[str, Any]:
    width, depth = cell
    grid = Grid(widths=tuple(sorted({1, width})), depths=(depth,), trained_depth=depth, haltings=("head",))

    def price(some: NDArray[np.int32]) -> tuple[float, NDArray[np.float64]]:
        found = expected_prices(some[None], grid, {"head": times}, resamples=DRAWS, seed=seed)
        assert found.draws is not None
        return float(found.mean[0, 0, -1]), found.draws[:, 0, 0, -1]

    means = real[np.random.default_rng(seed).integers(len(real), size=(DRAWS, len(real)))].mean(axis=1)
    row: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "runs": len(real),
        "mean_steps": float(steps.mean()),
        "mean_ms": float(real.mean()),
    }
    for name, some in (("price", steps), ("same_puzzles", steps[drawn])):
        mean, draws = price(some)
        low, high = np.percentile(draws / means, (2.5, 97.5))
        row |= {f"{name}_ms": mean, f"{name}_ratio": mean / float(real.mean())}
        row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def launches(sampler: Sampler, rounds: int, seed: int) -> dict[str, Any]:
    """One trajectory launched as one row against the same in a padded launch of eight."""
    puzzles = sampler.task.split("train", limit=rounds).puzzles
    one = alone(sampler.settings(), 1, sampler.settings().depth or 1)
    eight = replace(one, launch=8, slots=8, is_padded=True)
    rng = np.random.default_rng(seed)
    times: dict[int, list[float]] = {0: [], 1: []}
    for number in range(-1, rounds):
        puzzle = puzzles[number % len(puzzles)][None]
        for which in rng.permutation(2):
            ms = run_ms(sampler, puzzle, (one, eight)[which])
            if number >= 0:
                times[int(which)].append(ms)
    pairs = np.array([times[0], times[1]])
    index = rng.integers(rounds, size=(DRAWS, rounds))
    low, high = np.percentile(pairs[0][index].mean(axis=1) / pairs[1][index].mean(axis=1), (2.5, 97.5))
    share = float(pairs[0].mean() / pairs[1].mean())
    return {"one_ms": pairs[0].mean(), "eight_ms": pairs[1].mean(), "share": share, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--puzzles", type=Path, help="file of puzzles")
    parser.add_argument("--rows", default="1-400", help="first and last row of the file")
    parser.add_argument("--cells", default="1x8,1x128,8x16,16x8")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernel", default="auto", choices=get_args(Kernel))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sampler = gram.load(given.checkpoint)
    if given.puzzles is None:
        found = launches(sampler, min(given.runs, 60), given.seed)
        share = f"{found['share']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        line = f"{given.checkpoint}: one row {found['one_ms']:.1f} ms, eight {found['eight_ms']:.1f} ms: {share}"
        print(json.dumps({"checkpoint": given.checkpoint, **found}) if given.json else line)
        return
    first, last = (int(part) for part in given.rows.split("-"))
    cells = [(int(width), int(depth)) for width, depth in (cell.split("x") for cell in given.cells.split(","))]
    puzzles = sampler.task.load(given.puzzles).puzzles[first - 1 : last]
    rows = check(sampler, puzzles, cells, given.runs, given.seed, given.kernel)
    if given.json:
        print(json.dumps({"checkpoint": given.checkpoint, "puzzles": len(puzzles), "cells": rows}))
        return
    lines = []
    for row in rows:
        ratios = [
            f"{row[f'{name}_ratio']:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
            for name in ("price", "same_puzzles")
        ]
        figures = [f"{row[name]:.1f}" for name in ("mean_steps", "mean_ms", "price_ms")]
        lines.append([f"{row['width']}x{row['depth']}", *figures, *ratios])
    print(markdown(["cell", "mean steps", "real, ms", "price, ms", "ratio", "same puzzles"], lines))


if __name__ == "__main__":
    main()
