"""How often 95 % intervals hold the truth: `python scripts/simulate_statistics.py [STUDIES]`, two minutes on one core.

Prints Markdown: for accuracies and numbers of bases the lowest and the highest share of 2,000 studies (unless told
otherwise) over correlations of the two systems and true differences of 0, 2, 10 and 25 points; then of one system, for
which four times as many studies are made: only one setting stands behind each of these figures.

Puzzles of one base share their difficulty half of the time, so they are alike but not equal. Two arms find the same
puzzles hard with chance `shared`; the rest is each arm's own. Shapes: `P` puzzles, `C` studies (columns).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals.paired import paired_differences
from gram.evals.statistics import clustered_intervals
from gram.formatting import markdown, span

ACCURACIES = (0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999)
BASES = (12, 30, 100, 300)
SIZES = ("1", "4", "1 to 7")
"""Puzzles of a base."""
SHARED = (0.0, 0.6, 0.9)
DIFFERENCES = (0.0, 0.02, 0.1, 0.25)
ENOUGH = 10
"""How many must be expected on either side before an interval can be asked not to hold the truth too often."""
_WIDTH = 16
"""Trajectories behind a simulated share of right ones."""
SINGLE = 4
"""Times as many studies of one system as of two."""


class IntervalCheck(NamedTuple):
    """Outcome of the studies of one setting."""

    held: float
    """Share of studies whose interval holds the truth."""
    fewer: float
    """What is expected on the rarer side: of pairs, bases ahead or behind; of means, errors or hits among puzzles."""
    contradictions: int
    """Studies in which the p-value and the interval disagree; of means, which are not tested, 0."""


def bases_of(bases: int, size: str) -> NDArray[np.int64]:
    """Base of each puzzle `[P]`."""
    sizes = 1 + np.arange(bases) % 7 if size == "1 to 7" else np.full(bases, int(size))
    return np.repeat(np.arange(bases), sizes)


def draws(rng: np.random.Generator, labels: NDArray[np.int64], studies: int) -> NDArray[np.float32]:
    """Difficulty of each puzzle, uniform, `[P, C]`; puzzles of a base have one in common half of the time."""
    own = rng.random((len(labels), studies), dtype=np.float32)
    if labels[-1] + 1 == len(labels):
        return own
    common = rng.random((labels[-1] + 1, studies), dtype=np.float32)[labels]
    return np.where(rng.random(own.shape, dtype=np.float32) < 0.5, common, own)


def paired_cell(
    bases: int, size: str, accuracy: float, difference: float, shared: float, *, studies: int, seed: int = 0
) -> IntervalCheck:
    """Studies of two systems, the second worse by `difference`."""
    rng, labels = np.random.default_rng(seed), bases_of(bases, size)
    difficulty = draws(rng, labels, studies)

    def arm(right: float) -> NDArray[np.bool_]:
        own, is_shared = rng.random((2, *difficulty.shape), dtype=np.float32)
        return np.asarray(np.where(is_shared < shared, difficulty, own) < right)

    a, b = arm(accuracy), arm(accuracy - difference)
    found = paired_differences(a, b, labels)
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    sums = np.add.reduceat(a.astype(np.int8) - b.astype(np.int8), starts, axis=0)
    is_held = (found.low - 1e-9 <= difference) & (difference <= found.high + 1e-9)
    disagree = (found.p_value < 0.05) != ((found.low > 0) | (found.high < 0))
    fewer = min((sums > 0).sum(), (sums < 0).sum()) / studies
    return IntervalCheck(float(is_held.mean()), float(fewer), int(disagree.sum()))


def mean_cell(bases: int, size: str, accuracy: float, *, is_share: bool, studies: int, seed: int = 0) -> IntervalCheck:
    """Studies of one system: verdicts, or shares of right trajectories where bases differ much."""
    rng, labels = np.random.default_rng(seed), bases_of(bases, size)
    if is_share:
        ability = rng.beta(2 * accuracy, 2 * (1 - accuracy), (bases, studies))[labels]
        values: NDArray[Any] = rng.binomial(_WIDTH, ability) / _WIDTH
    else:
        values = draws(rng, labels, studies) < accuracy
    low, high = clustered_intervals(values, labels).T
    is_held = (low - 1e-9 <= accuracy) & (accuracy <= high + 1e-9)
    fewer = round(len(labels) * min(accuracy, 1 - accuracy), 6)
    return IntervalCheck(float(is_held.mean()), fewer, 0)


def table(title: str, sides: str, cells_of: Callable[[int, str, float], Sequence[IntervalCheck]]) -> None:
    """One table and a line of its ends; `sides`: what must be expected on both before a share can be too high."""
    every: list[IntervalCheck] = []
    rows = []
    for bases, size in product(BASES, SIZES):
        shown = []
        for accuracy in ACCURACIES:
            cells = cells_of(bases, size, accuracy)
            every += cells
            low, high = min(cell.held for cell in cells), max(cell.held for cell in cells)
            shown.append(f"{100 * low:.1f}" if low == high else span(low, high))
        rows.append([str(bases), size, *shown])
    print(f"## {title}\n\n{markdown(['bases', 'puzzles of a base', *map(str, ACCURACIES)], rows)}")
    enough = [cell.held for cell in every if cell.fewer >= ENOUGH]
    print(
        f"\nLowest of {len(every)}: {100 * min(cell.held for cell in every):.1f} %. Highest of the {len(enough)} "
        f"where at least {ENOUGH} {sides} are expected: {100 * max(enough):.1f} %. Studies in which "
        f"interval and p-value disagree: {sum(cell.contradictions for cell in every)}.\n"
    )


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    print("# How often 95 % intervals hold the truth\n")
    command = " ".join(["python scripts/simulate_statistics.py", *sys.argv[1:]])
    print(f"`{command}`: {studies:,} studies each, {SINGLE * studies:,} of one system, per cent.\n")

    def pairs(bases: int, size: str, accuracy: float) -> list[IntervalCheck]:
        return [
            paired_cell(bases, size, accuracy, min(difference, accuracy), shared, studies=studies)
            for difference, shared in product(DIFFERENCES, SHARED)
        ]

    def means(is_share: bool, bases: int, size: str, accuracy: float) -> list[IntervalCheck]:
        return [mean_cell(bases, size, accuracy, is_share=is_share, studies=SINGLE * studies)]

    table("Difference of two systems, by the accuracy of the better one", "bases on either side", pairs)
    for is_share, title in ((False, "Accuracy of one system"), (True, "Share of right trajectories of one system")):
        table(title, "errors and as many hits", partial(means, is_share))


if __name__ == "__main__":
    main()
