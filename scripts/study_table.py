"""Finished ablations as Markdown: `python scripts/study_table.py DIR...`, folders of `gram ablate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = "| cell | accuracy (95 % interval) | less the first cell, points | one trajectory | pass@N | coverage | steps |"


def section(made: dict[str, Any]) -> str:
    """A study's heading, command and table; a difference in bold is told apart after Holm's correction."""
    about, cells = made["about"], made["cells"]
    lines = [f"## {made['name']}", "", f"`{about['command']}`, {about['puzzles']:,} puzzles of `{about['task']}`.", ""]
    lines += [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *map(row, cells), ""]
    return "\n".join(lines)


def row(cell: dict[str, Any]) -> str:
    """One cell's line."""
    found, difference = cell.get("less_baseline"), "-"
    if cell.get("never_fired"):
        difference = "never fired"
    elif found is not None:
        difference = f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
        difference = f"**{difference}**" if found["is_told_apart"] else difference
    accuracy, *shares = (
        _share(cell[name], cell.get(f"{name}_low"), cell.get(f"{name}_high"))
        for name in ("accuracy", "single_accuracy", "pass_at_width", "coverage")
    )
    parts = [cell["label"], accuracy, difference, *shares, f"{cell['mean_steps']:.2f}"]
    return f"| {' | '.join(parts)} |"


def _share(value: float | None, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return "-" if value is None else f"{100 * value:.1f} %{ends}"


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        raise SystemExit("name at least one folder of gram ablate")
    print(*(section(json.loads((folder / "ablation.json").read_text())) for folder in folders), sep="\n")


if __name__ == "__main__":
    main()
