"""Hard 9x9 Sudoku puzzles for training: minimal ones, made harder by local search on the exact solver's guesses.

Not a split of the task (`gram/tasks/sudoku.py`): its test set has no filter of difficulty. A puzzle starts minimal (no
given can go without a second solution); then, `ROUNDS` times, some givens come back, others are dug out until it is
minimal again, and the change stays where the rating has not fallen.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gram.tasks.sudoku import FIRST_DIGIT, SEED, Sudoku

ROUNDS = 80
BACK = 4
"""Givens that come back in a round."""
HARD = 2
"""Sets these random numbers apart from those of the splits (`sudoku.STREAMS`)."""


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
