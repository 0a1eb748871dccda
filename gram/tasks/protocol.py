"""The base class of all tasks: the one interface between puzzles and everything else.

A new task derives from `Task` and writes six members: `name`, `symbols`, `tokens`, `draw`, `conflicts`, `solutions`.
All others have defaults. A task is plain numpy: no torch here.

Shapes: `P` puzzles, `L` tokens of a puzzle (output tokens included), `A` tokens of an answer, `S` solutions.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gram.tasks.notes import Notes
from gram.tasks.parsing import load_puzzles
from gram.tasks.puzzle_sets import (
    Board,
    BoardCell,
    CellKind,
    Lookup,
    PuzzleError,
    PuzzleSet,
    Tokens,
    split_by_hash,
    training_split,
)
from gram.tasks.views import Views

__all__ = [
    "Board",
    "BoardCell",
    "CellKind",
    "Lookup",
    "PuzzleError",
    "PuzzleSet",
    "Task",
    "Tokens",
    "Views",
    "training_split",
]

BLANK = 1
"""Token of an empty cell in every task whose answer stands on the puzzle's own grid."""
DRAWS, BLOCK = 20_000, 500
"""Draws that a default split is made of, and how many are made at once."""


class Task(ABC):
    """A family of puzzles. Your own: a file that defines `task`, given by `--task-module FILE`.

    A task with symmetries, stored sets or a text format of its own overrides more than the six members that it must
    write; one whose puzzles have one solution each sets `is_multi_solution`.
    """

    name: str
    """Name on the command line; part of every noise counter, so renaming a task changes its trajectories."""
    symbols: str = ""
    """Symbol of each token, padding (0) first and, on the puzzle's own grid, the empty cell (1) second. The default
    `parse`, `format` and `board` read and write these; a task that overrides them sets `vocabulary` instead."""
    tokens: int
    """`L`: tokens of a puzzle, output tokens included, registers not."""
    summary: str = cast(str, cached_property(lambda self: (type(self).__doc__ or self.name).splitlines()[0]))
    """One line for `gram tasks`; by default the first line of the docstring."""
    vocabulary: int = cast(int, cached_property(lambda self: len(self.symbols)))
    """`V`: number of tokens, padding (0) included."""
    output_start: int = 0
    """Position in `[0, L)` of the first answer token."""
    output_tokens: int = cast(int, cached_property(lambda self: self.tokens - self.output_start))
    """`A`: tokens of an answer; they stand at `output_start .. output_start + A`."""
    is_multi_solution: bool = True
    """Whether a puzzle may have several correct answers (then accuracy is the verifier's verdict)."""
    has_comments: bool = True
    """Whether a line that starts with `#` in a file of puzzles is a comment."""
    family: str = ""
    """Tasks of one family differ in size alone: a model that knows no size can do them all (`gram/sizes.py`). Empty:
    the task stands alone."""
    relations: tuple[str, ...] = ()
    """Relations of the tokens (`gram.config.Relation`) that a model with the mixer `relations` sums along where its
    recipe names none. Tasks of one family that name the same can share a model, whatever their number of tokens."""
    demonstrations: int = 0
    """Pairs of an input and an output that stand before the test input in a puzzle, each of `A` tokens."""
    answer_values: tuple[int, ...] = cast(
        tuple[int, ...], cached_property(lambda self: tuple(range(1, self.vocabulary)))
    )
    """Tokens that an answer may have where the puzzle leaves it open (`candidates`); by default all but padding."""
    are_values_alike: bool = False
    """Whether any renaming of `answer_values`, in puzzle and answer alike, is a symmetry."""
    has_givens: bool = cast(bool, cached_property(lambda self: self._accepts_answers()))
    """Whether tokens of an answer can stand in its puzzle as givens; by default where answers stand on the puzzle's own
    grid and `is_input` takes all of their values."""
    notes: Notes | None = None
    """What a lattice may write down beside the tokens of an answer (`gram/tasks/notes.py`)."""
    symmetry_words: int = 0
    """Random 32-bit words that name a symmetry of a puzzle (`symmetry`); 0: the task knows none."""
    splits: tuple[str, ...] = ("train", "validation", "test")
    """Names accepted by `split`: at least `train`, `validation` and `test`.

    They share no puzzle, nor one that a symmetry of the task turns into another. All that happens before the last
    evaluation (training, its evaluations, choices of settings) reads `train` and `validation` alone. A training split
    of another name, `train-x`, is judged by `validation-x`.
    """

    # What every task writes.

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        """`count` random puzzles `[count, L]`, each with one correct answer `[count, A]`, from `rng` alone.

        A task that overrides `split` and `training_batch` needs none.
        """
        raise NotImplementedError(f"task {self.name} must write draw, or split and training_batch")

    @abstractmethod
    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Number of violated constraints of each answer, `[P]`, by the rules alone; 0 exactly where it solves its
        puzzle. The stored answer plays no part."""

    @abstractmethod
    def solutions(self, puzzle: Tokens) -> Tokens:
        """All canonical solutions `[S, A]` of one puzzle `[L]`. Raises `PuzzleError` above the task's documented
        cap."""

    def unwritten(self) -> list[str]:
        """Members that this task still has to write."""
        kind = type(self)
        values = [name for name in ("name", "tokens", "vocabulary") if not getattr(self, name, None)]
        own = [name for name in ("split", "training_batch") if getattr(kind, name) is getattr(Task, name)]
        needed = {"draw": bool(own), "symmetry": self.symmetry_words > 0}
        return values + [
            name for name, is_needed in needed.items() if is_needed and getattr(kind, name) is getattr(Task, name)
        ]

    # Sets of puzzles.

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """The puzzles of a split in its fixed seeded order; `limit` gives the first so many of exactly that order.

        By default: the different puzzles among the first 20,000 draws whose hash falls to the split. Raises
        `ValueError` for an unknown split.
        """
        self.check_split(name)
        rng, found = np.random.default_rng(0), dict[bytes, tuple[Tokens, Tokens]]()
        for _ in range(DRAWS // BLOCK):
            puzzles, answers = self.draw(rng, BLOCK)
            for row in np.flatnonzero(self._split_of(puzzles) == name):
                found.setdefault(puzzles[row].tobytes(), (puzzles[row], answers[row]))
            if limit is not None and len(found) >= limit:
                break
        kept = list(found.values())[:limit]
        puzzles = np.array([puzzle for puzzle, _ in kept], dtype=np.uint8).reshape(-1, self.tokens)
        answers = np.array([answer for _, answer in kept], dtype=np.uint8).reshape(-1, self.output_tokens)
        return PuzzleSet(puzzles=puzzles, answers=answers, groups=self.classes(puzzles))

    def split_size(self, name: str = "test") -> int | None:
        """Number of puzzles in a split; None where the generator is endless. Raises `ValueError`, as `split`."""
        return None if name == "train" else len(self.split(name))

    def check_split(self, name: str, among: tuple[str, ...] = ()) -> None:
        """Raises `ValueError` where there is no split of this name (or none `among` these)."""
        if name not in (among or self.splits):
            what = "training split" if among else "split"
            raise ValueError(f"{what} must be one of {', '.join(among or self.splits)}, got {name!r}")

    def _split_of(self, puzzles: Tokens) -> NDArray[np.str_]:
        return split_by_hash(np.array([puzzle_hash(self.name, puzzle) for puzzle in puzzles], dtype=np.uint64))

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        """`count` training pairs: puzzles `[count, L]` and targets `[count, A]`, drawn from `rng` alone.

        By default: draws whose hash falls to `train`. Raises `ValueError` for a split that is none of training.
        """
        self.check_split(split, ("train",))
        kept: list[tuple[Tokens, Tokens]] = []
        for _ in range(DRAWS):
            puzzles, targets = self.draw(rng, count)
            rows = np.flatnonzero(self._split_of(puzzles) == "train")
            kept.append((puzzles[rows], targets[rows]))
            if sum(len(part) for part, _ in kept) >= count:
                puzzles, targets = (np.concatenate(parts)[:count] for parts in zip(*kept, strict=True))
                return puzzles, targets
        raise ValueError(f"task {self.name} must draw puzzles of the split train, got none in {DRAWS} draws")

    def load(self, path: Path | str) -> PuzzleSet:
        """Puzzles from a user's file (CSV, JSON lines, one string a line, or a task's own format).

        Raises `PuzzleError` naming the line at fault, `FileNotFoundError` for a missing file.
        """
        return load_puzzles(self, Path(path))

    def load_training(self, path: Path | str) -> PuzzleSet:
        """The training pairs of such a file, where they are not what `load` gives."""
        return self.load(path)

    def blank_puzzle(self) -> Tokens:
        """The puzzle with every cell empty, `[L]`: unconditional samples are verified against it.

        Raises `ValueError` where answers do not stand on the puzzle's own grid.
        """
        if self.output_start != 0 or self.output_tokens != self.tokens:
            raise ValueError(f"task must write its answers on the puzzle's own grid to generate, got {self.name!r}")
        return np.full(self.tokens, BLANK, dtype=np.uint8)

    # Rules.

    def verify(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.bool_]:
        """Whether each answer `[P, A]` solves its puzzle `[P, L]`, by the rules alone: `[P]`."""
        return np.asarray(self.conflicts(puzzles, answers) == 0)

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        """Whether each token may stand where it does in a puzzle, `[P, L]`; the sampler refuses all others.

        By default: any token but padding, and padding alone where answers stand behind the puzzle.
        """
        is_answer = np.arange(self.tokens) >= (self.output_start or self.tokens)
        return np.where(is_answer, puzzles == 0, (puzzles > 0) & (puzzles < self.vocabulary))

    def _accepts_answers(self) -> bool:
        boards = np.array(self.answer_values, dtype=np.uint8)[:, None].repeat(self.tokens, 1)
        return self.output_start == 0 and self.output_tokens == self.tokens and bool(self.is_input(boards).all())

    def canonical(self, answers: Tokens) -> Tokens:
        """One representative of each answer's equivalence class, same shape (colouring: colours renamed).

        Answers are `[P, A]`, or `[P, N, A]` as the sampler gives them.
        """
        return answers

    def count_solutions(self, puzzle: Tokens) -> int:
        """Exact number of canonical solutions of one puzzle `[L]`. Raises `PuzzleError` above the task's cap."""
        return len(self.solutions(puzzle))

    def renamings(self, answers: Tokens) -> Tokens:
        """All that `canonical` takes for each answer `[P, A]`, `[K, P, A]`: a model that cannot tell tokens apart by
        their places (relation `graph`) learns them all. By default: the answers alone."""
        return answers[None]

    def candidates(self, puzzles: Tokens) -> NDArray[np.bool_]:
        """Which values each answer token may have before anything is deduced, `[P, A, V]`: what a lattice starts from.

        By default `answer_values`; on the puzzle's own grid a token that is not blank keeps its value.
        """
        possible = np.zeros((len(puzzles), self.output_tokens, self.vocabulary), dtype=bool)
        possible[:, :, list(self.answer_values)] = True
        if self.output_start == 0 and self.output_tokens == self.tokens:
            own = puzzles[:, :, None] == np.arange(self.vocabulary)
            possible = np.where((puzzles > BLANK)[:, :, None], own, possible)
        return possible

    def survivors(self, puzzles: Tokens, answers: Tokens, sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Values that solutions within `sets [P, A, V]` take, `[P, A, V]`: what a lattice is trained to keep. None are
        left of a puzzle `[P, L]` without a solution within its sets. By default those that have a share in them."""
        return np.asarray(self.solution_shares(puzzles, answers, sets) > 0)

    def solution_shares(self, puzzles: Tokens, answers: Tokens, sets: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Share of the solutions within `sets [P, A, V]` that take each value, `[P, A, V]`; 0 where there is none. From
        all of `known_solutions`."""
        found = np.zeros(sets.shape, dtype=np.float32)
        places = np.arange(self.output_tokens)
        for row, (puzzle, answer) in enumerate(zip(puzzles, answers, strict=True)):
            solutions = self.known_solutions(puzzle, answer)
            within = solutions[sets[row][places, solutions].all(1)]
            if len(within):
                np.add.at(found[row], (places, within), np.float32(1 / len(within)))
        return found

    def known_solutions(self, puzzle: Tokens, answer: Tokens) -> Tokens:
        """Solutions `[S, A]` of a puzzle `[L]` in training: by default all, or its answer `[A]` where a puzzle has one
        alone. Raises `PuzzleError` above the task's cap."""
        return self.solutions(puzzle) if self.is_multi_solution else answer[None]

    def has_several(self, split: str) -> bool:
        """Whether puzzles of a split may have several correct answers."""
        return self.is_multi_solution

    # Text and drawing.

    def parse(self, text: str) -> Tokens:
        """One puzzle `[L]` from a user's text. Raises `PuzzleError` for a wrong length, an unknown symbol or a puzzle
        without a solution."""
        puzzle = np.zeros(self.tokens, dtype=np.uint8)
        shown = self.output_start or self.tokens
        puzzle[:shown] = self._read(text, "puzzle", shown)
        if not self.is_input(puzzle[None]).all() or not self.count_solutions(puzzle):
            raise PuzzleError(f"{self.name} puzzle must have a solution, got {self.format(puzzle)} with none")
        return puzzle

    def parse_solved(self, text: str) -> Tokens:
        """`parse` of a puzzle whose stored answer will be verified, so that it need not be solved."""
        return self.parse(text)

    def parse_answer(self, text: str) -> Tokens:
        """One answer `[A]`, of the form that `format` writes. Raises `PuzzleError`; the rules are not checked."""
        return self._read(text, "answer", self.output_tokens)

    def _read(self, text: str, what: str, count: int) -> Tokens:
        """Tokens of `count` symbols; `what` names the text in errors."""
        found = "".join(text.split())
        if len(found) != count:
            raise PuzzleError(f"{self.name} {what} must have {count} symbols, got {len(found)}")
        tokens = [self.symbols.find(symbol) for symbol in found]
        for place, token in enumerate(tokens):
            if token < 1:
                known = self.symbols[1:]
                raise PuzzleError(f"{self.name} {what} must be of {known}, got {found[place]!r} at symbol {place + 1}")
        return np.array(tokens, dtype=np.uint8)

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        """The one-line text of a puzzle (what `parse` reads) or, with `answer`, of that answer."""
        shown = puzzle[: self.output_start or self.tokens] if answer is None else answer
        return "".join(self.symbols[token] if token < self.vocabulary else "?" for token in shown.tolist())

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        """The puzzle, or an answer to it, as rows of cells; by default a square where there are as many tokens."""
        given = puzzle[: self.output_start or self.tokens] if answer is None else puzzle[self.output_start :]
        shown = given if answer is None else answer
        text = self.format(puzzle, answer)
        # A given that an answer has replaced is no given any more.
        is_given = ((given > BLANK) & (shown == given)).tolist()
        cells = [
            BoardCell(symbol, "blank" if symbol == self.symbols[BLANK] else "given" if known else "filled")
            for symbol, known in zip(text, is_given, strict=True)
        ]
        side = math.isqrt(len(cells))
        width = side if side * side == len(cells) else len(cells)
        return [cells[first : first + width] for first in range(0, len(cells), width)]

    # Symmetries, and what only some tasks know.

    def symmetry(self, puzzles: Tokens, words: NDArray[np.uint32]) -> Views:
        """The views of puzzles `[P, L]` that random words `[P, symmetry_words]` name (`--views random`).

        Uniform words reach all of the task's symmetries, equally often as far as words allow; words of 0 name the
        puzzle as it is. An answer solves a puzzle exactly where it solves the turned one when turned. A view depends
        on its own puzzle and words alone.
        """
        raise NotImplementedError(f"task {self.name} must write symmetry where symmetry_words is above 0")

    def augment(self, rng: np.random.Generator, puzzles: Tokens, answers: Tokens) -> tuple[Tokens, Tokens]:
        """Pairs `[P, L]` and `[P, A]` under random symmetries, applied where training reads a file."""
        return puzzles, answers

    def classes(self, puzzles: Tokens) -> NDArray[np.int64]:
        """Class of each puzzle `[P, L]` under the task's symmetries, numbered from 0 among these, `[P]`.

        Twins are one cluster of an interval. By default: equal puzzles alone.
        """
        return np.unique(puzzles, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def nearest_boards(self, answers: Tokens) -> Tokens:
        """Correct boards `[P, A]` near to the given ones, 0 where there is none to train on: the targets of
        unconditional training on-policy (`prior_share`). Raises `ValueError` where the task finds none."""
        raise ValueError(f"prior_share must be 0 for {self.name}, which finds no nearest boards, got more")

    def position_features(self) -> NDArray[np.float32] | None:
        """Features `[L, F]` (0 or 1): tokens that share some start training with similar learned positions."""
        return None

    def lookup(self, name: str) -> Lookup | None:
        """How much of a held-out split a table of its training puzzles knows."""
        return None

    def split_orbits(self, name: str) -> int | None:
        """Classes of solutions, under the task's symmetries, in a split."""
        return None

    def is_test_grid(self, answers: Tokens) -> NDArray[np.bool_] | None:
        """Whether training never shows an answer `[P, A]` (`gram generate`): `[P]`."""
        return None


def puzzle_hash(task_name: str, puzzle: Tokens) -> int:
    """32-bit hash of a task's name and a puzzle's tokens `[L]`: blake2b, little-endian.

    It identifies the puzzle in the noise (word c3 of every counter), whatever its place in a file.
    """
    return puzzle_hashes(task_name, np.asarray(puzzle)[None])[0]


def puzzle_hashes(task_name: str, puzzles: Tokens) -> list[int]:
    """`puzzle_hash` of each of puzzles `[P, L]`."""
    puzzles = np.ascontiguousarray(puzzles, dtype=np.uint8)
    content, length = puzzles.tobytes(), puzzles.shape[1]
    of_task, found = hashlib.blake2b(task_name.encode() + b"\0", digest_size=4), []
    for first in range(0, len(content), length):
        digest = of_task.copy()
        digest.update(content[first : first + length])
        found.append(int.from_bytes(digest.digest(), "little"))
    return found


def input_tokens(task: Task, puzzles: Any) -> Tokens:
    """Puzzles as tokens `[P, L]`: a text or texts that the task parses, a `PuzzleSet`, or an array of whole numbers.

    Raises `PuzzleError` for anything else, for another length and for a number that is no input token.
    """
    if isinstance(puzzles, PuzzleSet):
        puzzles = puzzles.puzzles
    if isinstance(puzzles, str):
        puzzles = [puzzles]
    if isinstance(puzzles, list | tuple) and puzzles and all(isinstance(text, str) for text in puzzles):
        return np.stack([task.parse(text) for text in puzzles])
    tokens = _whole_numbers(task, puzzles)
    if tokens.ndim != 2 or tokens.shape[1] != task.tokens:
        raise PuzzleError(f"puzzles must be [P, {task.tokens}] tokens, got {list(tokens.shape)}")
    # What does not fit a token's type would wrap around to another one.
    fits = (tokens >= 0) & (tokens < task.vocabulary)
    made = np.where(fits, tokens, 0).astype(np.uint8)
    wrong = np.argwhere(~(fits & task.is_input(made)))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise PuzzleError(
            f"puzzles must be of {task.name}'s input tokens, got {tokens[row, place]} at place {place} of puzzle {row}"
        )
    return made


def check_judgeable(task: Task, puzzles: Tokens, file: Path | None = None) -> None:
    """Refuses puzzles `[P, L]` of which the task cannot judge answers, before any is sampled. Raises `PuzzleError`."""
    try:
        task.verify(puzzles, np.zeros((len(puzzles), task.output_tokens), dtype=np.uint8))
    except PuzzleError as error:
        raise error if file is None else PuzzleError(f"{file}: {error}") from None


def _whole_numbers(task: Task, puzzles: Any) -> Any:
    """An array of whole numbers, of whichever type it came in."""
    expected = f"puzzles must be texts in a list or [P, {task.tokens}] tokens"
    if isinstance(puzzles, bytes):
        raise PuzzleError(f"{expected}, got bytes")
    try:
        found = np.asarray(puzzles)
    except Exception as error:
        # Ragged lists, tensors of other devices: their own types of error.
        reason = " ".join(str(error).split())[:80]
        raise PuzzleError(f"{expected}, got {type(puzzles).__name__} ({reason})") from None
    if found.dtype.kind == "f":
        is_whole = np.isfinite(found) & (found == np.trunc(found))
        if not is_whole.all():
            raise PuzzleError(f"{expected}, got {found[~is_whole][0]}, which is no whole number")
    elif found.dtype.kind not in "iu":
        got = "none" if puzzles is None else f"{type(puzzles).__name__} of {found.dtype.name}"
        raise PuzzleError(f"{expected}, got {got}")
    return found
