"""Makes the file that recipe sudoku9 trains on: `python scripts/make_sudoku_file.py runs/sudoku9.csv`.

Rows of question, answer and rating, alternately a puzzle of the task's training split (24 to 38 givens, no filter of
difficulty) and one made hard. No grid is held out. Every row is a function of its number alone, rows come
in order, and the same command goes on with a file that was cut short.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from pathlib import Path
from typing import NamedTuple

from gram.tasks.registry import get_task
from gram.tasks.sudoku import Sudoku
from gram.tasks.sudoku_hard import hard_puzzle

HEADER = ["question", "answer", "rating"]
COUNT = 8000


class Row(NamedTuple):
    """One line of the file."""

    question: str
    answer: str
    rating: int


def make(number: int) -> Row:
    """Row `number`: even ones are plain, odd ones hard."""
    task = get_task("sudoku9")
    assert isinstance(task, Sudoku)
    if number % 2:
        return Row(*hard_puzzle(task, number // 2))
    made = task.puzzle("train", number // 2)
    assert made.answers is not None
    assert made.ratings is not None
    puzzle = made.puzzles[0]
    return Row(task.format(puzzle), task.format(puzzle, made.answers[0]), int(made.ratings[0]))


def whole_rows(path: Path) -> int:
    """Cuts half a last line off the file; the number of rows that are left."""
    if not path.is_file():
        return 0
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    lines = whole.splitlines()
    if lines and lines[0] != ",".join(HEADER):
        raise SystemExit(f"file must be one that this script began, got header {lines[0][:60]!r} in {path}")
    return max(0, len(lines) - 1)


def main() -> None:
    """Appends the rows that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="CSV file")
    parser.add_argument("--count", type=int, default=COUNT, help=f"rows in all (default: {COUNT})")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    for name in ("count", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"{name} must be at least 1, got {getattr(arguments, name)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = whole_rows(arguments.out)
    with arguments.out.open("a", newline="") as file, multiprocessing.Pool(arguments.jobs) as pool:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(HEADER)
        for number, row in enumerate(pool.imap(make, range(done, arguments.count), chunksize=4), start=done + 1):
            writer.writerow(row)
            file.flush()
            if number % 100 == 0:
                print(f"{number} of {arguments.count}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
