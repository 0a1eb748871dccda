"""A model of every size beside the checkpoints of one size, paired by puzzle.

    python scripts/compare_sizes.py queens nqueens8 nqueens10 --limit 300 --out evals/results/sizes.md

For each checkpoint of one size: its task's test split, sampled by both with settings of their own (depth, halting,
width 20), the means over sampling seeds. Single accuracy is that of a trajectory; pooled coverage counts distinct
solutions found, of all solutions of all puzzles. Intervals are paired, clusters of twins kept together. `--out` has a
section for each model of every size; a table measured anew leaves the words below it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gram
from gram.checkpoint import find, read_config, write_atomically
from gram.evals.evaluate import clusters_of, count_solutions, judge, single_accuracy_of, solution_counts
from gram.evals.paired import Difference, paired_difference
from gram.tasks.protocol import PuzzleSet
from gram.tasks.registry import get_task

TITLE = "# Every size against one size\n"
HEAD = """| task | puzzles | measure | {general} | specialist | difference (95 %) |
|---|---|---|---|---|---|
"""


def measured(
    name: str, task: str, puzzles: PuzzleSet, width: int, seeds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Single accuracy and coverage of each puzzle `[P]`, the means over sampling seeds."""
    sampler = gram.load(name, task=task)
    every = np.array(count_solutions(sampler.task, puzzles.puzzles), dtype=float)
    singles, coverages = [], []
    for seed in range(seeds):
        print(f"{name}: {task}, {len(puzzles)} puzzles, seed {seed}", file=sys.stderr, flush=True)
        found = sampler.sample(puzzles, width=width, seed=seed)
        right = judge(sampler.task, puzzles.puzzles, found.candidates, found.is_counted)
        singles.append(single_accuracy_of(right, found.widths, found.config))
        coverages.append((solution_counts(sampler.task, found.candidates, right) > 0).sum(1) / every)
    return np.mean(singles, axis=0), np.mean(coverages, axis=0)


def row(task: str, count: int, measure: str, a: float, b: float, found: Difference[float], scale: float) -> str:
    """A line of the table, in points or shares."""
    digits = 1 if scale == 100 else 3
    ends = f"{scale * found.low:+.{digits}f} to {scale * found.high:+.{digits}f}"
    sides = " | ".join(f"{scale * value:.{digits}f}" for value in (a, b))
    return f"| `{task}` | {count} | {measure} | {sides} | {scale * found.estimate:+.{digits}f} ({ends}) |\n"


def with_section(page: str, general: str, told: str) -> str:
    """The page with a model's section, its command and table (`told`); words that stood below its table stay."""
    heading = f"\n## `{general}`\n"
    before, found, rest = (page or TITLE).partition(heading)
    own, next_heading, after = rest.partition("\n## ")
    words = own.rpartition("|\n")[2]
    return before + heading + "\n" + told + (words if found else "") + next_heading + after


def main() -> None:
    """Samples, compares, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("general", help="checkpoint of every size")
    parser.add_argument("specialists", nargs="+", help="checkpoints of one size")
    parser.add_argument("--limit", type=int, help="puzzles of each test split [default: all]")
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file, whose other sections stay")
    given = parser.parse_args()
    table = HEAD.format(general=f"`{given.general}`")
    for name in given.specialists:
        task = read_config(find(name)).task
        puzzles = get_task(task).split("test", limit=given.limit)
        ours, theirs = (measured(one, task, puzzles, given.width, given.seeds) for one in (given.general, name))
        clusters = clusters_of(puzzles)
        weights = np.array(count_solutions(get_task(task), puzzles.puzzles), dtype=float)
        single = paired_difference(ours[0], theirs[0], clusters)
        pooled = paired_difference(ours[1], theirs[1], clusters, weights=weights)
        means = (ours[0].mean(), theirs[0].mean()), [np.average(each[1], weights=weights) for each in (ours, theirs)]
        table += row(task, len(puzzles), "one trajectory, %", *means[0], single, 100)
        table += row(task, len(puzzles), "pooled coverage", *means[1], pooled, 1)
    print(table)
    if given.out is not None:
        command = shlex.join(["python", *sys.argv])
        page = given.out.read_text() if given.out.is_file() else ""
        write_atomically(given.out, with_section(page, given.general, f"    {command}\n\n{table}").encode())


if __name__ == "__main__":
    main()
