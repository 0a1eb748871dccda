"""Contrasting pairs of the shipped behaviours, from the rules alone: `scripts/make_behaviours.py` writes them to files.

4x4 Sudoku: a puzzle in which one direct rule alone gives a cell its value, and the same puzzle with that digit and
another changed for each other. 8x8 N-Queens: three queens that leave a square as the only place of its row, and the
same with one queen moved to a diagonal of that square.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gram.tasks.nqueens import EMPTY, QUEEN, NQueens
from gram.tasks.protocol import BLANK
from gram.tasks.registry import get_task
from gram.tasks.sudoku import GIVENS, Sudoku

PAIRS = 40
SEED = 0
Contrast = tuple[np.ndarray, np.ndarray, int, int, int]
"""Two puzzles, the position, and its tokens in each."""


def _sudoku_pairs(task: Sudoku, find: Callable[..., Iterator[tuple[np.ndarray, int]]]) -> Iterator[Contrast]:
    """Pairs from puzzles that `find` makes of random grids, each with one cell to ask for."""
    rng, seen = np.random.default_rng(SEED), set[bytes]()
    low, high = GIVENS[task.n]
    while True:
        grid = np.array(task.full_grid(rng), dtype=np.uint8) + np.uint8(BLANK)
        for puzzle, cell in find(task, grid, rng):
            right = int(grid[cell])
            wrong = int(rng.choice([token for token in task.answer_values if token != right]))
            names = np.arange(task.vocabulary, dtype=np.uint8)
            names[[right, wrong]] = wrong, right
            is_new = puzzle.tobytes() not in seen and names[puzzle].tobytes() not in seen
            givens = int((puzzle > BLANK).sum())
            if (
                is_new
                and low <= givens <= high
                and task.count_solutions(puzzle) == 1
                and (puzzle != names[puzzle]).any()
            ):
                seen |= {puzzle.tobytes(), names[puzzle].tobytes()}
                yield puzzle, names[puzzle], cell, right, wrong
                break


def _last_of(unit_of: str) -> Callable[..., Iterator[tuple[np.ndarray, int]]]:
    """Puzzles whose asked cell is the last of its row (or box), with nothing else given along its other lines."""

    def find(task: Sudoku, grid: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
        rows, columns, boxes = (np.array(task.solver.units).reshape(3, task.n, task.n)[kind] for kind in range(3))
        cell = int(rng.integers(task.tokens))
        own = next(unit for unit in (rows if unit_of == "row" else boxes) if cell in unit)
        near = {int(at) for unit in (*rows, *columns, *boxes) if cell in unit for at in unit}
        far = [at for at in range(task.tokens) if at not in near]
        chosen = rng.permutation(far)[: int(rng.integers(1, len(far)))]
        puzzle = np.full(task.tokens, BLANK, dtype=np.uint8)
        given = np.array([*(at for at in own if at != cell), *chosen], dtype=np.int64)
        puzzle[given] = grid[given]
        yield puzzle, cell

    return find


def _hidden_single(task: Sudoku, grid: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Puzzles whose asked cell may by its own lines have several values, one of which no other cell of its box may."""
    puzzle = np.full(task.tokens, BLANK, dtype=np.uint8)
    given = rng.permutation(task.tokens)[: int(rng.integers(GIVENS[task.n][0], GIVENS[task.n][1] + 1))]
    puzzle[given] = grid[given]
    units = [set(unit) for unit in task.solver.units]

    def possible(cell: int) -> set[int]:
        seen = {int(puzzle[at]) for unit in units if cell in unit for at in unit}
        return set(task.answer_values) - seen

    for cell in rng.permutation(np.flatnonzero(puzzle == BLANK)).tolist():
        box = next(unit for unit in units[2 * task.n :] if cell in unit)
        others = [possible(at) for at in box if at != cell and puzzle[at] == BLANK]
        if len(possible(cell)) > 1 and not any(int(grid[cell]) in values for values in others):
            yield puzzle, cell


def _attacked(task: NQueens) -> Iterator[Contrast]:
    """Three queens under which a square holds one in every completion, and the same with one queen moved to a diagonal
    of that square, so that it alone attacks it."""
    rng, n = np.random.default_rng(SEED), task.n
    solutions = task.solutions(task.blank_puzzle())
    queens = solutions == QUEEN

    def completions(given: list[int]) -> np.ndarray:
        is_completed: np.ndarray = queens[:, given].all(1)
        return np.compress(is_completed, queens, axis=0)

    def on_diagonal(one: int, other: int) -> bool:
        return abs(one // n - other // n) == abs(one % n - other % n) and one != other

    def puzzle_of(given: list[int]) -> np.ndarray:
        puzzle = np.full(task.tokens, EMPTY, dtype=np.uint8)
        puzzle[given] = QUEEN
        return puzzle

    seen = set[bytes]()
    while True:
        solution = np.flatnonzero(queens[rng.integers(len(queens))])
        square, *given = rng.permutation(solution)[:4].tolist()
        if not completions(given)[:, square].all():
            continue
        kept = given[:2]
        moves = [
            at
            for at in range(task.tokens)
            if at not in given and on_diagonal(at, square) and len(completions([*kept, at]))
        ]
        puzzle = puzzle_of(given)
        if not moves or puzzle.tobytes() in seen:
            continue
        seen.add(puzzle.tobytes())
        yield puzzle_of([*kept, int(rng.choice(moves))]), puzzle, square, EMPTY, QUEEN


def behaviours() -> dict[str, dict[str, Any]]:
    """The content of every shipped file, by name."""
    sudoku, board = get_task("sudoku4"), get_task("nqueens8")
    assert isinstance(sudoku, Sudoku)
    assert isinstance(board, NQueens)
    made = {
        "sudoku4-row": ("The last value of a row", sudoku, _sudoku_pairs(sudoku, _last_of("row"))),
        "sudoku4-box": ("The last value of a box", sudoku, _sudoku_pairs(sudoku, _last_of("box"))),
        "sudoku4-hidden": (
            "The one cell of a box that may have a value (hidden single)",
            sudoku,
            _sudoku_pairs(sudoku, _hidden_single),
        ),
        "nqueens8-diagonal": ("A square that a queen attacks along a diagonal is empty", board, _attacked(board)),
    }
    return {
        name: {
            "task": task.name,
            "description": description,
            "pairs": [
                {
                    "puzzles": [task.format(one), task.format(other)],
                    "position": cell,
                    "values": [task.symbols[first], task.symbols[second]],
                }
                for one, other, cell, first, second in itertools.islice(pairs, PAIRS)
            ],
        }
        for name, (description, task, pairs) in made.items()
    }
