"""How often 95 % intervals hold the truth: `python scripts/simulate_statistics.py [STUDIES]`, two minutes on one core.

Prints Markdown: for accuracies and numbers of bases the lowest and the highest share of 2,000 studies (unless told
otherwise) over correlations of the two systems and true differences of 0, 2, 10 and 25 points; then of one system, for
which four times as many studies are made: only one setting stands behind each of these figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from gram.evals.interval_simulation import (
    ACCURACIES,
    BASES,
    ENOUGH,
    SIZES,
    IntervalCheck,
    mean_cell,
    paired_cell,
    paired_settings,
)

SINGLE = 4
"""Times as many studies of one system as of two."""
Row = Callable[[int, str, float], Sequence[IntervalCheck]]


def table(title: str, sides: str, cells_of: Row) -> None:
    """One table and a line of its ends; `sides`: what must be expected on both before a share can be too high."""
    print(f"## {title}\n\n| bases | puzzles of a base | " + " | ".join(map(str, ACCURACIES)) + " |")
    print("|---|---|" + "---|" * len(ACCURACIES))
    every: list[IntervalCheck] = []
    for bases in BASES:
        for size in SIZES:
            shown = []
            for accuracy in ACCURACIES:
                cells = cells_of(bases, size, accuracy)
                every += cells
                low, high = min(cell.held for cell in cells), max(cell.held for cell in cells)
                shown.append(f"{100 * low:.1f}" if low == high else f"{100 * low:.1f} to {100 * high:.1f}")
            print(f"| {bases} | {size} | " + " | ".join(shown) + " |", flush=True)
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
    table(
        "Difference of two systems, by the accuracy of the better one",
        "bases on either side",
        lambda bases, size, accuracy: [
            paired_cell(bases, size, accuracy, *setting, studies=studies) for setting in paired_settings(accuracy)
        ],
    )
    for is_share, title in ((False, "Accuracy of one system"), (True, "Share of right trajectories of one system")):

        def one(bases: int, size: str, accuracy: float, is_share: bool = is_share) -> list[IntervalCheck]:
            return [mean_cell(bases, size, accuracy, is_share=is_share, studies=SINGLE * studies)]

        table(title, "errors and as many hits", one)


if __name__ == "__main__":
    main()
