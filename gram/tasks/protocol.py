"""What a task is: the one interface between puzzles and everything else.

Not a registry (`gram/tasks/registry.py`) and not a family of puzzles (one file each beside this one). A task is
plain numpy: no torch here, so listing tasks stays fast.

Shapes: `P` puzzles, `L` tokens of a puzzle (output tokens included), `A` tokens of an answer, `S` solutions.
Puzzles and answers are `uint8` arrays of tokens; 0 is always padding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint8]
CellKind = Literal["given", "filled", "blank", "conflict", "label"]


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
    """Base of each puzzle `[P]`: puzzles of one base are resampled together (2411.00640)."""

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
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """What a table of training puzzles knows of a set: the part of a score that memory alone explains."""

    training: int
    """Training puzzles in the table."""
    twins: float
    """Share of the set's inputs that a symmetry of the task turns into a training input."""
    accuracy: float
    """Share of the set's puzzles that the table answers rightly."""
    rule: str
    """What the table answers."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a drawn board: its text (one line) and what it is, for colouring on a terminal."""

    text: str
    kind: CellKind


Board = list[list[Cell]]
"""Rows of cells, drawn top to bottom by the caller; a task never prints."""


def training_split(name: str) -> str:
    """The split that trains for a held-out one: `train` for `test` and `validation`, `train-x` for `test-x`.

    Raises `ValueError` for a split that is not held out.
    """
    found = re.sub("validation|test", "train", name, count=1)
    if found == name:
        raise ValueError(f"split must be one that is held out, got {name!r}")
    return found


@runtime_checkable
class Task(Protocol):
    """A family of puzzles. Users implement this in a file of their own and pass `--task-module FILE`.

    A task may also have

    - `position_features() -> [L, F]` (fp32, 0 or 1): tokens that share features start training with learned positions
      that are alike (`Model.start_positions`);
    - `augment(rng, puzzles, answers) -> (puzzles, answers)`: random symmetries of pairs `[P, L]` and `[P, A]`, applied
      where training takes its pairs from a file;
    - `load_training(path) -> PuzzleSet`: the pairs of such a file, where `load` would give something else;
    - `nearest_boards(answers) -> [P, A]`: boards that are right and near to the given ones, 0 where there is none to
      train on (unconditional training whose slots follow the prior);
    - `classes(puzzles) -> [P]`: number of each puzzle's class under the task's symmetries, from 0 among these. Twins
      are one cluster of an interval; without this method, equal puzzles alone are;
    - `lookup(name) -> Lookup`: how much of a split that is held out a table of its training puzzles knows;
    - `split_orbits(name) -> int`: classes of solutions, under the task's symmetries, that a split has;
    - `is_test_grid(answers) -> [P]`: whether an answer `[P, A]` is one that training never shows (`gram generate`).
    """

    name: str
    """Name on the command line; part of every noise counter, so renaming a task changes its trajectories."""
    summary: str
    """One line for `gram tasks`."""
    vocabulary: int
    """`V`: number of tokens, padding (0) included."""
    tokens: int
    """`L`: tokens of a puzzle, output tokens included, registers not."""
    output_start: int
    """Position in `[0, L)` of the first answer token."""
    output_tokens: int
    """`A`: tokens of an answer; they stand at `output_start .. output_start + A`."""
    is_multi_solution: bool
    """Whether a puzzle may have several right answers (then accuracy is the verifier's verdict)."""
    splits: tuple[str, ...]
    """Names accepted by `split`: at least `train`, `validation` and `test`.

    They share no puzzle, nor one that a symmetry of the task turns into another. All that happens before the last
    evaluation (training, its evaluations, choices of settings) reads `train` and `validation` alone. A training split
    of another name, `train-x`, is judged by `validation-x`.
    """

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """The puzzles of a split in its fixed seeded order; `limit` gives the first so many of exactly that order.

        Raises `ValueError` for an unknown split.
        """
        ...

    def split_size(self, name: str = "test") -> int | None:
        """Number of puzzles in a split; None where the generator is endless."""
        ...

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        """`count` training pairs: puzzles `[count, L]` and targets `[count, A]`, drawn from `rng` alone."""
        ...

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        """Whether each token may stand where it does in a puzzle, `[P, L]`: padding only where the task pads, marks of
        an answer nowhere."""
        ...

    def verify(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.bool_]:
        """Whether each answer `[P, A]` solves its puzzle `[P, L]`, by the rules alone (no stored answer): `[P]`."""
        ...

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Number of violated constraints of each answer, `[P]`; 0 exactly where `verify` is true."""
        ...

    def canonical(self, answers: Tokens) -> Tokens:
        """One representative of each answer's equivalence class, same shape (colouring: colours renamed).

        Answers are `[P, A]`, or `[P, N, A]` as the sampler gives them.
        """
        ...

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All canonical solutions `[S, A]` of one puzzle `[L]`. Raises `PuzzleError` above the task's documented
        cap."""
        ...

    def count_solutions(self, puzzle: Tokens) -> int:
        """Exact number of canonical solutions of one puzzle `[L]`. Raises `PuzzleError` above the task's cap."""
        ...

    def parse(self, text: str) -> Tokens:
        """One puzzle `[L]` from a user's text. Raises `PuzzleError` for a wrong length, symbol or an insoluble
        puzzle."""
        ...

    def load(self, path: Path | str) -> PuzzleSet:
        """Puzzles from a user's file (CSV, JSON lines, one string a line, or a task's own format).

        Raises `PuzzleError` naming the line at fault, `FileNotFoundError` for a missing file.
        """
        ...

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        """The one-line text of a puzzle (what `parse` reads) or, with `answer`, of that answer."""
        ...

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        """The puzzle, or an answer to it, as rows of cells."""
        ...


def clusters(task: Task, puzzles: Tokens) -> NDArray[np.int64]:
    """Cluster of each puzzle `[P, L]` of a user's file, `[P]`: equal puzzles, and twins where the task can tell."""
    classes = getattr(task, "classes", None)
    if classes is not None:
        found: NDArray[np.int64] = classes(puzzles)
        return found
    return np.unique(puzzles, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
