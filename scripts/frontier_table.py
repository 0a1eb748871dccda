"""Verdicts of finished frontiers as Markdown: `python scripts/frontier_table.py DIR...`, folders of `gram frontier`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = (
    "| checkpoint | measure | latency budget | depth only | width only "
    "| width less depth, points (95 % interval) | budgets: width, depth, not told apart | noise |"
)


def row(frontier: dict[str, Any]) -> str:
    """One checkpoint's line of the table.

    Beside the budget stands its ratio to one trajectory at the trained depth; noise is the spread of the control's
    timings, p95 less p5 over the median.
    """
    verdict, about, latency = frontier["verdict"], frontier["about"], frontier["latency"]
    start = next(each["budget"] for each in frontier["budgets"] if each["matched_by"] == "latency interactive")
    cells = [f"{100 * verdict[family]['value']:.1f} % ({_size(verdict[family])})" for family in ("depth", "width")]
    points, low, high = (100 * verdict[name] for name in ("difference", "low", "high"))
    counts = verdict["counts"]
    spread = f"{100 * latency['control_spread']:.0f} %"
    budget = f"{verdict['budget']:.3g} ms ({verdict['budget'] / start:.0f}x)"
    parts = [f"`{about['checkpoint']}`", verdict["measure"], budget, *cells]
    parts += [f"{points:+.1f} ({low:+.1f} to {high:+.1f})"]
    parts += [f"{counts['width']}, {counts['depth']}, {counts['not told apart'] + counts['same cell']}", spread]
    return f"| {' | '.join(parts)} |"


def _size(cell: dict[str, Any]) -> str:
    """Width x depth; both where each half of the puzzles chose its own cell."""
    sizes = [f"{each['width']} x {each['depth']}" for each in (cell, cell["other_half"]) if each]
    return " / ".join(dict.fromkeys(sizes))


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        raise SystemExit("name at least one folder of gram frontier")
    made = [json.loads((folder / "frontier.json").read_text()) for folder in folders]
    print(HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", *map(row, made), sep="\n")
    print()
    for each in made:
        noise = " The machine was noisy." if each["latency"]["is_noisy"] else ""
        print(f"- `{each['about']['checkpoint']}`: {each['verdict']['sentence']}{noise} `{each['about']['command']}`")


if __name__ == "__main__":
    main()
