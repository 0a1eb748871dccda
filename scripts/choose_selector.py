"""A checkpoint's default selector, chosen on puzzles it is never tested on: `python scripts/choose_selector.py NAME`.

Samples the task's `validation` puzzles (or rows of a file) once, picks with every selector that the model has a trained
head for, and compares each with `vote` by puzzle. Selectors that pick alike for every puzzle are one comparison. The
rule is fixed: the most accurate selector, if its difference from `vote` is told apart after Holm's correction over the
comparisons; else `vote`, which needs no head. Of equally accurate ones `lprm` goes first, then `halt` and the rest in
the order of the settings. On puzzles with one solution easy ones tie, so the hard ones are what decides. The choice
goes into `config.json`, the evidence into `card.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gram
from gram.checkpoint import write_atomically
from gram.evals.selector_choice import chosen, compare_selectors
from gram.sampler.run import supported_selectors
from gram.tasks.protocol import PuzzleSet, Task

WEIGHTS = Path(__file__).resolve().parent.parent / "gram" / "weights"
LIMIT = 200


def chosen_puzzles(task: Task, file: Path | None, rows: str | None, limit: int | None) -> PuzzleSet:
    """The puzzles that decide. Raises `ValueError`."""
    if limit is None and rows is None:
        limit = LIMIT
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if file is not None:
        return task.load(file).part(rows).take(slice(limit))
    if rows is not None:
        raise ValueError("rows must come with --puzzles FILE, got no file")
    return task.split("validation", limit=limit)


def source(arguments: argparse.Namespace) -> str:
    """Where the puzzles came from, for the card."""
    if arguments.puzzles is None:
        return "validation"
    part = "first rows" if arguments.rows is None else f"rows {arguments.rows}"
    return f"{part} of {arguments.puzzles.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="shipped checkpoint")
    parser.add_argument("--puzzles", type=Path, help="file whose rows decide [default: the validation split]")
    parser.add_argument("--rows", metavar="A-B", help="rows A to B of the file alone, counted from 1")
    parser.add_argument("--limit", type=int, help=f"first puzzles taken [default: {LIMIT}, with --rows all of them]")
    parser.add_argument("--width", type=int, help="trajectories of a puzzle [default: 16]", default=16)
    parser.add_argument("--depth", type=int, help="supervision steps at most [default: the checkpoint's]")
    arguments = parser.parse_args()
    sampler = gram.load(arguments.name)
    task = sampler.task
    try:
        puzzles = chosen_puzzles(task, arguments.puzzles, arguments.rows, arguments.limit)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    result = sampler.sample(puzzles, width=arguments.width, depth=arguments.depth)
    compared = compare_selectors(task, puzzles, result, supported_selectors(sampler.model))
    told = [f"{arguments.puzzles.name}" if word == str(arguments.puzzles) else word for word in sys.argv[1:]]
    evidence: dict[str, Any] = {
        "selector": chosen(compared),
        "command": " ".join(["python scripts/choose_selector.py", *told]),
        "split": source(arguments),
        "puzzles": len(puzzles),
        "width": result.config.width,
        "depth": result.config.depth,
        "compared": compared,
    }
    folder = WEIGHTS / arguments.name
    for file, key, value in (
        ("config.json", "selector", evidence["selector"]),
        ("card.json", "selection", evidence),
    ):
        values = json.loads((folder / file).read_text()) | {key: value}
        write_atomically(folder / file, (json.dumps(values, indent=2) + "\n").encode())
    print(json.dumps(evidence, indent=2))


if __name__ == "__main__":
    main()
