"""Finished ablations as Markdown: `python scripts/study_table.py DIR...`, folders of `gram ablate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gram.formatting import difference, markdown, percent, span

HEADS = (
    "cell",
    "accuracy (95 % interval)",
    "less the first cell, points",
    "one trajectory",
    "pass@N",
    "coverage",
    "width",
    "steps",
)


def section(made: dict[str, Any]) -> str:
    """A study's heading, command and table; a difference in bold is told apart after Holm's correction."""
    about, cells = made["about"], made["cells"]
    head = f"## {made['name']}\n\n`{about['command']}`, {about['puzzles']:,} puzzles of `{about['task']}`."
    return f"{head}\n\n{markdown(HEADS, map(row, cells))}\n"


def row(cell: dict[str, Any]) -> list[str]:
    """One cell's line."""
    found, ahead = cell.get("less_baseline"), "-"
    if cell.get("never_fired"):
        ahead = "never fired"
    elif found is not None:
        ahead = f"**{difference(found)}**" if found["is_told_apart"] else difference(found)
    shares = []
    for name in ("accuracy", "single_accuracy", "pass_at_width", "coverage"):
        ends = span(cell.get(f"{name}_low"), cell.get(f"{name}_high"))
        shares.append(percent(cell[name]) + (f" ({ends})" if ends else ""))
    return [cell["label"], shares[0], ahead, *shares[1:], f"{cell['mean_width']:.2f}", f"{cell['mean_steps']:.2f}"]


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        raise SystemExit("name at least one folder of gram ablate")
    print(*(section(json.loads((folder / "ablation.json").read_text())) for folder in folders), sep="\n")


if __name__ == "__main__":
    main()
