"""Verdicts of finished frontiers as Markdown: `python scripts/frontier_table.py DIR...`, folders of `gram frontier`.

Accuracy of the selected answer first, under each checkpoint's own selector, then coverage with the ceiling of one
answer, then every selector, then the verdicts in words with their commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gram.evals.frontier.beside import beside, beside_sentences, coverage_line, selector_heads, selector_lines
from gram.evals.pages.tables import sizes
from gram.formatting import difference, markdown, milliseconds, percent

Frontier = dict[str, Any]
ACCURACY = (
    "checkpoint (selector)",
    "budget",
    "one trajectory, deeper",
    "width, at once",
    "width minus depth, points (95 % interval)",
    "halting `fixed`",
    "equal MACs",
    "restarts, one by one",
    "width minus restarts",
    "noise",
)
COVERAGE = (
    "checkpoint",
    "one answer at most",
    "one trajectory, deeper",
    "width, at once",
    "width minus depth, points (95 % interval)",
    "by construction",
    "restarts, one by one",
    "width minus restarts",
)


def accuracy_row(frontier: Frontier) -> list[str]:
    """One checkpoint's line of the first table. Noise is the spread of the control's timings, p95 less p5 over the
    median."""
    verdict = frontier["verdict"]
    ways = {("macs" if each["matched_by"] == "macs" else each["halting"]): each for each in beside(frontier)}
    spread = frontier["latency"].get("control_spread")
    return [
        f"`{frontier['about']['checkpoint']}` ({verdict['selector']})",
        milliseconds(verdict["budget"]),
        *(arm(verdict.get(family)) for family in ("depth", "width")),
        points(verdict),
        *(points(ways.get(way)) for way in ("fixed", "macs")),
        arm(verdict.get("restarts")),
        points(verdict.get("restarts_difference")),
        percent(spread, 0) + (" (noisy)" if frontier["latency"].get("is_noisy") else ""),
    ]


def coverage_row(frontier: Frontier) -> list[str]:
    """One checkpoint's line of the second table."""
    covered = frontier["coverage"]
    built = covered["by_construction"]
    return [
        f"`{frontier['about']['checkpoint']}`",
        percent(covered["one_answer_ceiling"]),
        *(arm(covered.get(family), has_precision=True) for family in ("depth", "width")),
        points(covered),
        "-" if built is None else f"{100 * built:.1f}",
        arm(covered.get("restarts"), has_precision=True),
        points(covered.get("restarts_difference")),
    ]


def arm(cell: dict[str, Any] | None, *, has_precision: bool = False) -> str:
    """A chosen cell: its share, size and what it spends; beside coverage the single accuracy of its trajectories."""
    if cell is None:
        return "-"
    single = f", single {percent(cell['single_accuracy'])}" if has_precision else ""
    return f"{percent(cell['value'])} ({sizes(cell)}, {milliseconds(cell['spent'])}{single})"


def points(found: dict[str, Any] | None) -> str:
    """A difference with its interval, bold where it counts."""
    if found is None or found.get("difference") is None:
        return "-"
    return f"**{difference(found)}**" if found["winner"] is not None else difference(found)


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        raise SystemExit("name at least one folder of gram frontier")
    made: list[Frontier] = [json.loads((folder / "frontier.json").read_text()) for folder in folders]
    parts = [markdown(ACCURACY, map(accuracy_row, made))]
    if covered := [each for each in made if each["coverage"] is not None]:
        parts.append(markdown(COVERAGE, map(coverage_row, covered)))
    for each in made:
        lines = selector_lines(each) + ([coverage_line(each)] if each["coverage"] is not None else [])
        parts += [f"`{each['about']['checkpoint']}`, every selector:", markdown(selector_heads(each), lines)]
    for each in made:
        told = " ".join([each["verdict"]["sentence"], *beside_sentences(each), *each["verdict"]["warnings"]])
        parts.append(f"- `{each['about']['checkpoint']}`: {told} `{each['about']['command']}`")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
