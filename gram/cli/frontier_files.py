"""Files of a frontier's folder, and of a folder of frontiers: written whole, and rendered again from their JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gram.evals.frontier.joint import Member
    from gram.evals.frontier.outcomes import Arrays

FRONTIER_FILE, JOINT_FILE, CELLS_FILE, REPORT_FILE = "frontier.json", "joint.json", "cells.csv", "report.html"
PICTURES = "pictures"


def write(folder: Path, made: dict[str, Any], outcomes: Arrays | None = None) -> None:
    """`frontier.json`, `cells.csv`, the report and the pictures, each moved into place once complete; `outcomes.npz`
    where outcomes are given."""
    from gram.checkpoint import write_atomically, write_json
    from gram.evals.frontier.analysis import cells_csv
    from gram.evals.frontier.outcomes import OUTCOMES_FILE, to_bytes
    from gram.evals.pages.pictures import draw
    from gram.evals.pages.report import render

    page = render(made).encode()
    if outcomes is not None:
        write_atomically(folder / OUTCOMES_FILE, to_bytes(outcomes))
    write_json(folder / FRONTIER_FILE, made)
    write_atomically(folder / CELLS_FILE, cells_csv(made).encode())
    write_atomically(folder / REPORT_FILE, page)
    draw(made, folder / PICTURES)


def read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` where the file holds none."""
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold one JSON object, got a {type(values).__name__}")
    return values


def folders(root: Path) -> list[Path]:
    """Folders in `root` that hold a frontier, by name."""
    return sorted(path.parent for path in root.glob(f"*/{FRONTIER_FILE}"))


def members(root: Path) -> list[Member]:
    """Every frontier in a folder of frontiers. Raises `ValueError` for a damaged one."""
    from gram.evals.frontier.analysis import VERSION
    from gram.evals.frontier.joint import Member
    from gram.evals.frontier.outcomes import OUTCOMES_FILE
    from gram.evals.frontier.outcomes import read as read_outcomes

    found = []
    for folder in folders(root):
        made = read(folder / FRONTIER_FILE)
        if made.get("version") != VERSION:
            raise ValueError(f"{folder / FRONTIER_FILE}: must be of version {VERSION}, got {made.get('version')!r}")
        found.append(Member(folder.name, made, read_outcomes(folder / OUTCOMES_FILE, made["grid"])))
    return found


def write_joint(root: Path, found: Sequence[Member]) -> dict[str, Any]:
    """`joint.json`, the page and the pictures that compare the `members` of `root`; returns what the JSON holds."""
    from gram.checkpoint import write_atomically, write_json
    from gram.evals.frontier.joint import join
    from gram.evals.pages.joint_page import render
    from gram.evals.pages.pictures import draw_joint
    from gram.json_values import plain

    made: dict[str, Any] = plain(join(found))
    frontiers = {each.label: each.frontier for each in found}
    page = render(made, frontiers).encode()
    write_json(root / JOINT_FILE, made)
    write_atomically(root / REPORT_FILE, page)
    draw_joint(frontiers, root / PICTURES)
    return made
