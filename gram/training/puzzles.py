"""Where training takes its puzzles from: the task's own generator, or a file of pairs under the task's symmetries.

Shapes: `P` puzzles, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gram.config import ModelConfig
from gram.hub_files import local_file
from gram.tasks.protocol import PuzzleError, PuzzleSet, Task, Tokens, puzzle_hash
from gram.training.config import TrainConfig

HELD_OUT_SEED = 0


class TrainingPuzzles:
    """Pairs to train on, puzzles held out from them, and whether an answer is right."""

    def __init__(self, task: Task, config: ModelConfig, training: TrainConfig, file: Path | str | None = None) -> None:
        """`file`: question and answer of each puzzle, in a format that the task reads. Raises `PuzzleError`."""
        self.task, self.split, self.is_conditional = task, training.split, config.is_conditional
        self.is_stored = training.target == "stored" and task.has_several(training.split)
        self.renames = config.has_graph
        self.pairs: PuzzleSet | None = None
        has_own = task.split_size("train") != 0
        if file is not None:
            self.pairs = task.load_training(local_file(file))
            if self.pairs.answers is None:
                raise PuzzleError(f"{file}: must hold an answer of every puzzle to train on, got some without")
        if file is None or has_own:
            self.held_out = task.split(validation_split(task, self.split), limit=training.evaluate_puzzles)
        else:
            assert self.pairs is not None
            self.held_out, self.pairs = _hold_out(self.pairs, training.evaluate_puzzles, file)
        self.blank = None if config.is_conditional else task.blank_puzzle()

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        """`count` pairs from `rng` alone: puzzles `[count, L]` and targets `[count, A]`."""
        puzzles, targets = self._draw(rng, count)
        if self.is_stored:
            targets = np.stack([self._stored(puzzle) for puzzle in puzzles])
        if self.renames:
            # A graph's nodes have no order, so a model of nodes cannot know which colour comes first.
            every = self.task.renamings(targets)
            targets = every[rng.integers(0, len(every), count), np.arange(count)]
        return puzzles, targets

    def draw_identified(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens, NDArray[np.int64]]:
        """`draw`, and the identity of each pair `[count]`: 0 where puzzles have none."""
        return *self.draw(rng, count), np.zeros(count, dtype=np.int64)

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All answers `[S, A]` to a puzzle `[L]` that a model may learn to give."""
        found = self.task.solutions(puzzle)
        return self.task.renamings(found).reshape(-1, found.shape[1]) if self.renames else found

    def _stored(self, puzzle: Tokens) -> Tokens:
        """The one solution `[A]` that stands for all of a puzzle's, by its hash: the same in any run."""
        solutions = self.task.solutions(puzzle)
        chosen: Tokens = solutions[puzzle_hash(self.task.name, puzzle) % len(solutions)]
        return chosen

    def _draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        """Pairs as the generator or the file has them."""
        if self.pairs is None:
            return self.task.training_batch(rng, count, split=self.split)
        assert self.pairs.answers is not None
        chosen = rng.integers(0, len(self.pairs), count)
        return self.task.augment(rng, self.pairs.puzzles[chosen], self.pairs.answers[chosen])

    def are_right(self, puzzles: Tokens, targets: Tokens, answers: Tokens) -> NDArray[np.bool_]:
        """Whether answers `[P, A]` are right: by the rules where there may be several, else by the target."""
        if self.blank is not None:
            return self.task.verify(np.repeat(self.blank[None], len(answers), axis=0), answers)
        if self.task.has_several(self.split):
            return self.task.verify(puzzles, answers)
        return np.asarray((self.task.canonical(answers) == self.task.canonical(targets)).all(axis=1))

    def digest(self) -> str | None:
        """SHA-256 of the file's pairs; None without a file."""
        if self.pairs is None:
            return None
        assert self.pairs.answers is not None
        return hashlib.sha256(self.pairs.puzzles.tobytes() + self.pairs.answers.tobytes()).hexdigest()


def validation_split(task: Task, split: str) -> str:
    """The split that judges a training on `split` while it runs. Raises `ValueError` where the task has none."""
    name = split.replace("train", "validation", 1)
    if name == split or name not in task.splits:
        raise ValueError(
            f"task {task.name} must have a split {name!r} to judge training on {split!r} by, "
            f"got {', '.join(task.splits)}"
        )
    return name


def _hold_out(pairs: PuzzleSet, count: int, file: Path | str) -> tuple[PuzzleSet, PuzzleSet]:
    """At least `count` pairs of a fixed choice of groups, and the others. Raises `PuzzleError` where none are left."""
    groups = np.arange(len(pairs)) if pairs.groups is None else pairs.groups
    order = np.random.default_rng(HELD_OUT_SEED).permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in order])
    taken = order[: int(np.searchsorted(sizes.cumsum(), count)) + 1]
    is_held_out = np.isin(groups, taken)
    if is_held_out.all():
        raise PuzzleError(
            f"{file}: must hold more than the {count} puzzles held out (evaluate_puzzles), got {len(pairs)}"
        )
    return pairs.take(np.flatnonzero(is_held_out)), pairs.take(np.flatnonzero(~is_held_out))
