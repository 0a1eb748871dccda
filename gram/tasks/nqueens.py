"""N-Queens completion: a solution with some queens removed; every way to complete it is right.

Shapes: `n` board side, `L = A = n * n` tokens, `P` puzzles, `S` solutions of the empty board. Tokens: 1 empty, 2 queen.
Splits are by orbit of the solutions (`gram/tasks/nqueens_splits.py`). `input-train` and `input-test` are the older
ones, by unique input alone: every test puzzle of theirs has a turned twin in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.tasks import nqueens_splits
from gram.tasks.protocol import Board, BoardCell, CellKind, Lookup, PuzzleError, PuzzleSet, Task, Tokens, training_split
from gram.tasks.puzzle_sets import PARTS
from gram.tasks.views import SYMMETRIES, Views, chosen, square_cells, square_views

EMPTY, QUEEN = 1, 2
SIZES = range(4, 13)
ORBITS = {4: 1, 5: 2, 6: 1, 7: 6, 8: 12, 9: 46, 10: 92, 11: 341, 12: 1787}
"""Orbits of the solutions under the eight symmetries of the board, by its side."""
SPLITS = {side: nqueens_splits.split_names(orbits) for side, orbits in ORBITS.items()}
INPUT_TEST_SHARE = 0.15
"""Of `input-test`."""
ORDER_SEED = 0
Square = tuple[int, int]
"""Row and column."""
ALIASES = str.maketrans("q10_", "QQ..", "/")
"""Other symbols that puzzles are written with, and what parts their rows."""


def all_solutions(n: int) -> NDArray[np.int64]:
    """Column of the queen of each row, for every solution of the empty board: `[S, n]`, in lexicographic order."""
    found: list[list[int]] = []
    columns: list[int] = []

    def place(taken: int, falling: int, rising: int) -> None:
        if len(columns) == n:
            found.append(columns.copy())
            return
        free = ~(taken | falling | rising) & ((1 << n) - 1)
        while free:
            bit = free & -free
            free -= bit
            columns.append(bit.bit_length() - 1)
            place(taken | bit, (falling | bit) << 1, (rising | bit) >> 1)
            columns.pop()

    place(0, 0, 0)
    return np.array(sorted(found), dtype=np.int64)


class _Inputs(NamedTuple):
    """All inputs of a board size, one entry each."""

    codes: NDArray[np.int64]
    """The given queens as one number."""
    first: NDArray[np.int64]
    """The first solution that completes it."""
    completions: NDArray[np.int64]
    """How many solutions complete it."""
    left_by: NDArray[np.int64]
    """Input that each solution leaves without each set of rows, `[S * sets of rows]`."""


class NQueens(Task):
    """The task `nqueensN`."""

    family = "nqueens"
    symbols = "?.Q"
    relations = ("row", "column", "diagonal", "antidiagonal", "all")
    symmetry_words = 1

    def __init__(self, n: int) -> None:
        if n not in SIZES:
            raise ValueError(f"N-Queens board must be {SIZES.start} to {SIZES.stop - 1} wide, got {n}")
        self.n = n
        self.name = f"nqueens{n}"
        self.tokens = self.output_tokens = n * n
        self._split_members: dict[str, NDArray[np.int64]] = {}
        self.splits = (*SPLITS[n], "input-train", "input-test")
        removed = self.removed
        self.summary = f"{n}x{n} N-Queens, {removed[0]} to {removed[-1]} queens removed; every completion is right"

    @property
    def removed(self) -> range:
        """How many queens a puzzle lacks."""
        return range(self.n - 3, self.n)

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        return all_solutions(self.n)

    @cached_property
    def _queens(self) -> NDArray[np.bool_]:
        """All solutions of the empty board, `[S, L]`."""
        columns = self._columns
        queens = np.zeros((len(columns), self.tokens), dtype=bool)
        queens[np.arange(len(columns))[:, None], np.arange(self.n) * self.n + columns] = True
        return queens

    @cached_property
    def _queens_by_cell(self) -> NDArray[np.float32]:
        """The same `[L, S]`, for products."""
        return np.ascontiguousarray(self._queens.T, dtype=np.float32)

    @cached_property
    def _orbits(self) -> NDArray[np.int64]:
        """Symmetry orbit of each solution under the eight symmetries of the board, `[S]`."""
        return nqueens_splits.classes(self._queens, self.n)

    @cached_property
    def _digit_values(self) -> NDArray[np.int64]:
        """Place values, first row first, of the number that codes some given queens: a digit for each row."""
        return (self.n + 2) ** np.arange(self.n - 1, -1, -1, dtype=np.int64)

    @cached_property
    def _inputs(self) -> _Inputs:
        """All unique inputs, in the fixed seeded order.

        A row's digit is 1 + the column of its given queen; a row without one has n + 1, but 0 below the last given
        queen. So numbers sort as the tuples of given cells do, and 12x12 with its millions of inputs stays small.
        """
        subsets = [rows for count in self.removed for rows in itertools.combinations(range(self.n), self.n - count)]
        codes = np.empty((len(self._columns), len(subsets)), dtype=np.int64)
        for place, rows in enumerate(subsets):
            between = [row for row in range(rows[-1]) if row not in rows]
            codes[:, place] = (self._columns[:, rows] + 1) @ self._digit_values[list(rows)]
            codes[:, place] += (self.n + 1) * self._digit_values[between].sum()
        unique, first, number = np.unique(codes, return_index=True, return_inverse=True)
        order = np.random.default_rng(ORDER_SEED).permutation(len(unique))
        return _Inputs(
            codes=unique[order],
            first=first[order] // len(subsets),
            completions=np.bincount(number.ravel())[order],
            left_by=np.argsort(order)[number.ravel()],
        )

    def _given(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Given queens `[P, L]` of coded inputs `[P]`."""
        columns = codes[:, None] // self._digit_values % (self.n + 2) - 1
        given = (columns[:, :, None] == np.arange(self.n)).reshape(len(codes), self.tokens)
        return np.asarray(given)

    def _completions(self, given: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which solutions hold all given queens `[P, L]`: `[P, S]`."""
        overlap = given.astype(np.float32) @ self._queens_by_cell
        return np.asarray(overlap == given.sum(1, keepdims=True))

    def _members(self, name: str) -> NDArray[np.int64]:
        """Indices of a split's inputs. Raises `ValueError` for an unknown split."""
        self.check_split(name)
        if name not in self._split_members:
            self._split_members[name] = self._find_members(name)
        return self._split_members[name]

    def _find_members(self, name: str) -> NDArray[np.int64]:
        inputs = self._inputs
        every = np.arange(len(inputs.codes))
        if name.startswith("input-"):
            test = round(INPUT_TEST_SHARE * len(every))
            return every[:test] if name == "input-test" else every[test:]
        if not nqueens_splits.has_folds(ORBITS[self.n]):
            parts = nqueens_splits.part_of_inputs(nqueens_splits.classes(self._given(inputs.codes), self.n))
            return np.flatnonzero(parts == PARTS.index(name))
        parts = nqueens_splits.part_of_each(ORBITS[self.n], name)[self._orbits]
        parts = np.repeat(parts, len(inputs.left_by) // len(parts))
        return np.flatnonzero(nqueens_splits.pure_members(name, parts, inputs.left_by, inputs.completions))

    def split_orbits(self, name: str = "test") -> int:
        """Orbits of the solutions that a split's puzzles have. Raises `ValueError` for an unknown split."""
        is_member = np.zeros(len(self._inputs.codes), dtype=bool)
        is_member[self._members(name)] = True
        has_one = is_member[self._inputs.left_by].reshape(len(self._columns), -1).any(axis=1)
        return len(np.unique(self._orbits[has_one]))

    def lookup(self, name: str = "test") -> Lookup:
        """Answers with a solution of a training puzzle that holds the given queens, the board as it stands."""
        asked, trained = self._members(name), self._members(training_split(name))
        left_by = self._inputs.left_by.reshape(len(self._columns), -1)
        is_known = np.zeros(len(self._inputs.codes), dtype=bool)
        is_known[left_by[np.isin(left_by, trained).any(axis=1)]] = True
        asked_keys, trained_keys = (
            nqueens_splits.canonical_keys(self._given(self._inputs.codes[members]), self.n)
            for members in (asked, trained)
        )
        return Lookup(
            training=len(trained),
            twins=float(np.isin(asked_keys, trained_keys).mean()),
            accuracy=float(is_known[asked].mean()),
            rule="a training board that holds the given queens",
        )

    def split_size(self, name: str = "test") -> int | None:
        return len(self._members(name))

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """Groups are canonical inputs: a puzzle, its rotations and its reflections stand and fall together."""
        members = self._members(name)[:limit]
        given = self._given(self._inputs.codes[members])
        return PuzzleSet(
            puzzles=_board_tokens(given),
            answers=_board_tokens(self._queens[self._inputs.first[members]]),
            groups=nqueens_splits.classes(given, self.n),
        )

    def classes(self, puzzles: Tokens) -> NDArray[np.int64]:
        """Class of each puzzle `[P, L]` under the eight symmetries of the board, numbered from 0 among these, `[P]`."""
        return nqueens_splits.classes(puzzles == QUEEN, self.n)

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        members = self._members(split)
        if not len(members):
            raise ValueError(f"split must have puzzles to train on, got {split} of {self.name} with none")
        given = self._given(self._inputs.codes[members[rng.integers(0, len(members), count)]])
        completions = self._completions(given)
        target = (rng.random(completions.shape) * completions).argmax(1)
        return _board_tokens(given), _board_tokens(self._queens[target])

    def symmetry(self, puzzles: Tokens, words: NDArray[np.uint32]) -> Views:
        """One word: one of the eight symmetries of the board."""
        return square_views(square_cells(self.n), chosen(words[:, 0], SYMMETRIES), self.vocabulary)

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Attacking pairs in rows, columns and diagonals, plus a wrong number of queens, given queens missing and cells
        that are neither empty nor queen."""
        queens = answers == QUEEN
        # Counts of at most n * n, which a product of float32 has exactly.
        counts = queens.astype(np.float32) @ self._lines
        attacking = (counts * (counts - 1) / 2).sum(1)
        wrong_number = np.abs(queens.sum(1) - self.n)
        missing = ((puzzles == QUEEN) & (answers != QUEEN)).sum(1)
        strange = ((answers != EMPTY) & (answers != QUEEN)).sum(1)
        return np.asarray(attacking + wrong_number + missing + strange, dtype=np.int64)

    @cached_property
    def _lines(self) -> NDArray[np.float32]:
        """Which cells are on each row, column and diagonal, `[n * n, 6 n - 2]`."""
        row, column = np.divmod(np.arange(self.n * self.n), self.n)
        along = (row, column, row - column, row + column)
        return np.concatenate([line[:, None] == np.unique(line) for line in along], axis=1).astype(np.float32)

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        return np.isin(puzzles, (EMPTY, QUEEN))

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All completions `[S, A]` of a puzzle with any given queens; there are at most 14,200 (n = 12)."""
        return _board_tokens(self._queens[self._completions((puzzle == QUEEN)[None])[0]])

    def count_solutions(self, puzzle: Tokens) -> int:
        return int(self._completions((puzzle == QUEEN)[None]).sum())

    def parse(self, text: str) -> Tokens:
        """`n * n` symbols, `Q`, `q` or `1` a queen, `.`, `0` or `_` empty; white space and `/` are ignored."""
        tokens = self._read(text, "puzzle", self.tokens)
        self._check(tokens)
        return tokens

    def _read(self, text: str, what: str, count: int) -> Tokens:
        return super()._read(text.translate(ALIASES), what, count)

    def _check(self, puzzle: Tokens) -> None:
        """Raises `PuzzleError` for a puzzle without a completion."""
        if self.count_solutions(puzzle):
            return
        for (row, column), (other_row, other_column) in _attacking((puzzle == QUEEN).reshape(self.n, self.n)):
            raise PuzzleError(
                f"{self.name} puzzle must have no attacking queens, got row {row + 1} column {column + 1} "
                f"attacking row {other_row + 1} column {other_column + 1}"
            )
        raise PuzzleError(f"{self.name} puzzle must have a solution, got {self.format(puzzle)} with none")

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        tokens = puzzle if answer is None else answer
        rows = tokens.reshape(self.n, self.n)
        return "/".join("".join("Q" if token == QUEEN else "." for token in row) for row in rows)

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        shown = (puzzle if answer is None else answer).reshape(self.n, self.n)
        given = (puzzle == QUEEN).reshape(self.n, self.n)
        attacked = {queen for pair in _attacking(shown == QUEEN) for queen in pair}
        return [[self._cell(shown, given, attacked, row, column) for column in range(self.n)] for row in range(self.n)]

    @staticmethod
    def _cell(shown: Tokens, given: NDArray[np.bool_], attacked: set[Square], row: int, column: int) -> BoardCell:
        if shown[row, column] != QUEEN:
            return BoardCell("Q", "conflict") if given[row, column] else BoardCell("·", "blank")
        kind: CellKind = "given" if given[row, column] else "filled"
        return BoardCell("Q", "conflict" if (row, column) in attacked else kind)


def _attacking(queens: NDArray[np.bool_]) -> Iterator[tuple[Square, Square]]:
    """Pairs of queens `[n, n]` that attack each other, in reading order."""
    squares = [(row, column) for row, column in np.argwhere(queens).tolist()]
    for (row, column), (other_row, other_column) in itertools.combinations(squares, 2):
        if row == other_row or column == other_column or abs(row - other_row) == abs(column - other_column):
            yield (row, column), (other_row, other_column)


def _board_tokens(queens: NDArray[np.bool_]) -> Tokens:
    """Boards of queens as tokens."""
    return np.where(queens, QUEEN, EMPTY).astype(np.uint8)
