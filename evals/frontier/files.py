"""Files of a frontier's folder, and of a folder of frontiers: written whole, and rendered again from their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gram.checkpoint import write_atomically, write_json
from gram.config import read_json
from gram.evals.frontier import outcomes as outcomes_file
from gram.evals.frontier.analysis import VERSION, cells_csv
from gram.evals.frontier.multi_checkpoint import Member, join
from gram.evals.frontier.outcomes import OUTCOMES_FILE, Arrays
from gram.evals.pages import multi_checkpoint_page, pictures, report
from gram.formatting import plain

FRONTIER_FILE, JOINT_FILE, CELLS_FILE, REPORT_FILE = "frontier.json", "joint.json", "cells.csv", "report.html"
PICTURES = "pictures"


def write(folder: Path, made: dict[str, Any], outcomes: Arrays | None = None) -> None:
    """`frontier.json`, `cells.csv`, the report and the pictures, each moved into place once complete; `outcomes.npz`
    where outcomes are given."""
    page = report.render(made).encode()
    if outcomes is not None:
        write_atomically(folder / OUTCOMES_FILE, outcomes_file.to_bytes(outcomes))
    write_json(folder / FRONTIER_FILE, made)
    write_atomically(folder / CELLS_FILE, cells_csv(made).encode())
    write_atomically(folder / REPORT_FILE, page)
    pictures.draw(made, folder / PICTURES)


def folders(root: Path) -> list[Path]:
    """Folders in `root` that hold a frontier, by name."""
    return sorted(path.parent for path in root.glob(f"*/{FRONTIER_FILE}"))


def members(root: Path) -> list[Member]:
    """Every frontier in a folder of frontiers. Raises `ValueError` for a damaged one."""
    found = []
    for folder in folders(root):
        made = read_json(folder / FRONTIER_FILE)
        if made.get("version") != VERSION:
            raise ValueError(f"{folder / FRONTIER_FILE}: must be of version {VERSION}, got {made.get('version')!r}")
        found.append(Member(folder.name, made, outcomes_file.read(folder / OUTCOMES_FILE, made["grid"])))
    return found


def write_multi_checkpoint(root: Path, found: Sequence[Member]) -> dict[str, Any]:
    """`joint.json`, the page and the pictures that compare the `members` of `root`; returns what the JSON holds."""
    made: dict[str, Any] = plain(join(found))
    frontiers = {each.label: each.frontier for each in found}
    page = multi_checkpoint_page.render(made, frontiers).encode()
    write_json(root / JOINT_FILE, made)
    write_atomically(root / REPORT_FILE, page)
    pictures.draw_multi_checkpoint(frontiers, root / PICTURES)
    return made
