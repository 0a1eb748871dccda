"""Makes the file that recipe sudoku9 trains on: `python scripts/make_sudoku_file.py runs/sudoku9.csv`.

Rows of question, answer and rating, alternately a puzzle of the task's training split (24 to 38 givens, no filter of
difficulty) and one made hard by local search on the exact solver's guesses. A hard puzzle starts minimal (no given can
go without a second solution); then, `ROUNDS` times, some givens come back, others are dug out until it is minimal
again, and the change stays where the rating has not fallen. No grid is held out. Every row is a function of its number
alone, rows come in order, and the same command goes on with a file that was cut short.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gram.tasks.registry import get_task
from gram.tasks.sudoku import FIRST_DIGIT, SEED, Sudoku

HEADER = ["question", "answer", "rating"]
COUNT = 8000
ROUNDS = 80
BACK = 4
"""Givens that come back in a round."""
HARD = 2
"""Sets these random numbers apart from those of the splits (`sudoku.STREAMS`)."""


class Row(NamedTuple):
    """One line of the file."""

    question: str
    answer: str
    rating: int


def hard_puzzle(task: Sudoku, index: int, *, rounds: int = ROUNDS) -> tuple[str, str, int]:
    """Hard puzzle number `index`: question, answer and rating (guesses). A function of its arguments alone; the grid is
    never one that is held out."""
    rng = np.random.default_rng([SEED, task.n, HARD, index])
    while True:
        grid = task.full_grid(rng)
        answer = np.array(grid, dtype=np.uint8) + np.uint8(FIRST_DIGIT - 1)
        if task.split_of(answer[None])[0] == "train":
            break
    board = _minimal(task, grid, grid, rng.permutation(task.tokens).tolist())
    rating = task.solver.rating(board)
    for _ in range(rounds):
        blanks = [cell for cell, digit in enumerate(board) if not digit]
        back = rng.permutation(blanks)[:BACK].tolist()
        changed = [grid[cell] if cell in back else digit for cell, digit in enumerate(board)]
        given = [cell for cell, digit in enumerate(changed) if digit and cell not in back]
        # What has come back goes last, else it would go first and leave the old puzzle.
        changed = _minimal(task, changed, grid, [*rng.permutation(given).tolist(), *back])
        found = task.solver.rating(changed)
        if found >= rating:
            board, rating = changed, found
    return _text(board), _text(grid), rating


def _minimal(task: Sudoku, board: list[int], grid: list[int], order: Iterable[int]) -> list[int]:
    """`board` without the givens that can go, tried in `order`, while `grid` stays the only solution."""
    board = list(board)
    for cell in order:
        board[cell] = 0
        if task.solver.has_other(board, cell, grid[cell]):
            board[cell] = grid[cell]
    return board


def _text(board: list[int]) -> str:
    return "".join(str(digit) if digit else "." for digit in board)


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
