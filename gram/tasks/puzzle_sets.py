"""Sets of puzzles and what belongs to them: tokens, drawn boards, the hash that keys a puzzle's noise. Plain numpy.

Shapes: `P` puzzles, `L` tokens of a puzzle (output tokens included), `A` tokens of an answer. Puzzles and answers are
`uint8` arrays of tokens; 0 is always padding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint8]
CellKind = Literal["given", "filled", "blank", "conflict", "label"]
PARTS = TRAIN, VALIDATION, TEST = "train", "validation", "test"
TEST_PER_CENT, VALIDATION_PER_CENT = 15, 5
"""Shares of the splits of tasks that split by a hash."""


class PuzzleError(ValueError):
    """A puzzle that cannot be used; the message is one line: the thing, its value and what was expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PuzzleSet:
    """Puzzles with what is known about them."""

    puzzles: Tokens
    """Input tokens `[P, L]`."""
    answers: Tokens | None = None
    """One stored answer per puzzle `[P, A]`, where known."""
    ratings: NDArray[np.float64] | None = None
    """Difficulty `[P]`, where known (for Sudoku: branches of the exact solver)."""
    groups: NDArray[np.int64] | None = None
    """Cluster of each puzzle `[P]`: puzzles of one cluster are resampled together (2411.00640)."""
    identities: NDArray[np.int64] | None = None
    """Row of each puzzle in a model's table of task embeddings `[P]`, where puzzles have one."""

    def __len__(self) -> int:
        return int(self.puzzles.shape[0])

    def take(self, index: NDArray[np.int64] | slice) -> PuzzleSet:
        """The puzzles at `index`, with everything known about them."""

        def pick(array: NDArray | None) -> NDArray | None:  # type: ignore[type-arg]
            return None if array is None else array[index]

        return PuzzleSet(
            puzzles=self.puzzles[index],
            answers=pick(self.answers),
            ratings=pick(self.ratings),
            groups=pick(self.groups),
            identities=pick(self.identities),
        )

    def part(self, rows: str | None) -> PuzzleSet:
        """The puzzles `A-B` in their own order, counted from 1, both included; None: all. Raises `ValueError`."""
        if rows is None:
            return self
        found = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", rows)
        if found is None or not 1 <= int(found[1]) <= int(found[2]) <= len(self):
            raise ValueError(f"rows must be A-B within 1 and {len(self)}, got {rows!r}")
        return self.take(slice(int(found[1]) - 1, int(found[2])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """The score of a table of training puzzles on a held-out set: what memory alone explains."""

    training: int
    """Training puzzles in the table."""
    twins: float
    """Share of the set's inputs that a symmetry of the task turns into a training input."""
    accuracy: float
    """Share of the set's puzzles that the table answers correctly."""
    rule: str
    """What the table answers."""


@dataclass(frozen=True, slots=True)
class BoardCell:
    """One cell of a drawn board: its text (one line) and its kind, which a terminal shows as a colour."""

    text: str
    kind: CellKind


Board = list[list[BoardCell]]
"""Rows of cells, drawn top to bottom by the caller; a task never prints."""


def split_by_hash(hashes: NDArray[np.uint64]) -> NDArray[np.str_]:
    """`test`, `validation` or `train` for each hash, in shares of 15, 5 and 80 %."""
    share = hashes % np.uint64(100)
    bounds = [share < TEST_PER_CENT, share < TEST_PER_CENT + VALIDATION_PER_CENT]
    return np.select(bounds, ["test", "validation"], "train")


def dealt(count: int, seed: int, test_share: float, validation_share: float) -> NDArray[np.int64]:
    """Index in `PARTS` of each of a few things: a random share of at least one tests, another validates."""
    order = np.random.default_rng(seed).permutation(count)
    test, validation = (max(1, round(share * count)) for share in (test_share, validation_share))
    parts = np.zeros(count, dtype=np.int64)
    parts[order[:test]] = PARTS.index(TEST)
    parts[order[test : test + validation]] = PARTS.index(VALIDATION)
    return parts


class PuzzlePool:
    """Numbered puzzles, each made when first asked for: `make(index)` gives a puzzle, an answer and a rating."""

    def __init__(self, make: Callable[[int], tuple[Tokens, Tokens, int]], tokens: int) -> None:
        self._make, self._tokens = make, tokens
        self._made: dict[int, tuple[Tokens, Tokens, int]] = {}

    def take(self, indices: Iterable[int]) -> tuple[Tokens, Tokens, NDArray[np.float64]]:
        """Puzzles and answers `[P, L]`, and ratings `[P]`."""
        found = []
        for index in indices:
            if index not in self._made:
                self._made[index] = self._make(index)
            found.append(self._made[index])
        shape = (len(found), self._tokens)
        puzzles = np.array([puzzle for puzzle, _, _ in found], dtype=np.uint8).reshape(shape)
        answers = np.array([answer for _, answer, _ in found], dtype=np.uint8).reshape(shape)
        return puzzles, answers, np.array([rating for _, _, rating in found], dtype=np.float64)


def training_split(name: str) -> str:
    """The split that trains for a held-out one: `train` for `test` and `validation`, `train-x` for `test-x`.

    Raises `ValueError` for a split that is not held out.
    """
    found = re.sub("validation|test", "train", name, count=1)
    if found == name:
        raise ValueError(f"split must be one that is held out, got {name!r}")
    return found
