"""Views: puzzles turned by symmetries of their task, and answers turned back.

A symmetry moves the tokens of a puzzle and renames them, so that a solution of the puzzle becomes one of the turned
puzzle. A task names the symmetries of its puzzles by random words (`Task.symmetry`). Training turns pairs by the same
tables (`Task.augment`).

Shapes: `P` puzzles, `L` tokens of a puzzle, `A` tokens of an answer, `V` vocabulary, `n` side of a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gram.tasks.puzzle_sets import Tokens

SYMMETRIES = 8
"""Of the square."""
INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
"""Number of the symmetry that undoes each."""
TRANSPOSING = (1, 3, 6, 7)
"""Those that turn rows into columns."""


@dataclass(frozen=True, slots=True)
class Views:
    """One view of each of `P` puzzles: its symmetry as tables."""

    positions: NDArray[np.int64]
    """Place in the puzzle of the token that stands at each place of the turned one, `[P, L]`. Answer tokens keep to the
    places of answer tokens."""
    values: Tokens
    """New token of each token, `[P, V]`."""
    output_start: int = 0
    """Place of the first answer token."""

    def apply(self, puzzles: Tokens) -> Tokens:
        """Puzzles `[P, L]` as the views show them: `values[puzzle[positions]]`."""
        turned: Tokens = np.take_along_axis(self.values, np.take_along_axis(puzzles, self.positions, 1), 1)
        return turned

    def apply_to_answers(self, answers: Tokens) -> Tokens:
        """Answers `[P, A]` to the puzzles as answers to the turned ones."""
        turned: Tokens = np.take_along_axis(self.values, np.take_along_axis(answers, self._places(answers), 1), 1)
        return turned

    def undo(self, answers: Tokens) -> Tokens:
        """Answers `[P, A]` to the turned puzzles as answers to the puzzles: the inverse of `apply_to_answers`."""
        found = np.empty_like(answers)
        names = np.argsort(self.values, axis=1).astype(np.uint8)
        np.put_along_axis(found, self._places(answers), np.take_along_axis(names, answers, 1), 1)
        return found

    def _places(self, answers: Tokens) -> NDArray[np.int64]:
        """Place in the answer of the token that stands at each place of the turned answer, `[P, A]`."""
        end = self.output_start + answers.shape[1]
        return self.positions[:, self.output_start : end] - self.output_start

    def at(self, rows: NDArray[np.int64]) -> Self:
        """A copy of some of the views."""
        tables: dict[str, Any] = {name: table[rows] for name, table in self._tables().items()}
        return replace(self, **tables)

    def put(self, rows: NDArray[np.int64], views: Self) -> None:
        """Writes other views over those in `rows`."""
        for name, table in views._tables().items():
            getattr(self, name)[rows] = table

    def is_consistent(self, output_tokens: int) -> bool:
        """Whether tokens are moved and renamed one to one, answer tokens among themselves."""
        places, names = (np.arange(table.shape[1]) for table in (self.positions, self.values))
        own = self._places(np.empty((0, output_tokens), np.uint8))
        return bool(
            (np.sort(self.positions, axis=1) == places).all()
            and (np.sort(self.values, axis=1) == names).all()
            and ((own >= 0) & (own < output_tokens)).all()
        )

    def _tables(self) -> dict[str, NDArray[Any]]:
        """The arrays, whose first axis is the puzzles'."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def same_values(count: int, vocabulary: int) -> Tokens:
    """The `values` of views that rename nothing, `[count, V]`."""
    return np.tile(np.arange(vocabulary, dtype=np.uint8), (count, 1))


def chosen(words: NDArray[np.uint32], count: int) -> NDArray[np.int64]:
    """One of `count` things for each 32-bit word, all equally often; a word of 0 names thing 0."""
    return (words.astype(np.uint64) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


def permutations(keys: NDArray[Any]) -> NDArray[np.int64]:
    """A permutation `[..., k]` from `k` random numbers each, all equally often; equal numbers leave the order as it
    is. Among `k` 32-bit words two are equal with probability `k^2 / 2^33`."""
    return np.argsort(keys, axis=-1, kind="stable").astype(np.int64)


def turn(grid: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """A symmetry of the square: 0 none, 1 to 3 quarter turns to the left, 4 columns reversed, 5 rows reversed, 6 the
    transpose, 7 the other diagonal. Raises `ValueError`."""
    if symmetry not in range(SYMMETRIES):
        raise ValueError(f"symmetry must be within 0 and 7, got {symmetry}")
    if symmetry < 4:
        return np.rot90(grid, symmetry)
    if symmetry == 7:
        return np.rot90(grid)[:, ::-1]
    return (grid[:, ::-1], grid[::-1], grid.T)[symmetry - 4]


def square_cells(n: int, order: Sequence[int] = range(SYMMETRIES)) -> NDArray[np.int64]:
    """Cell that stands at each place of a square board under each symmetry, in the order of `turn`'s numbers:
    `[8, n * n]`."""
    place = np.arange(n * n).reshape(n, n)
    return np.stack([turn(place, symmetry).reshape(-1) for symmetry in order])


def square_views(cells: NDArray[np.int64], numbers: NDArray[np.int64], vocabulary: int) -> Views:
    """Views of square boards: for each the symmetry at its number `[P]` in `cells [8, L]`."""
    return Views(cells[numbers], same_values(len(numbers), vocabulary))
