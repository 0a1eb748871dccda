"""Training on a data set of ARC tasks under many views (`gram data arc`): each puzzle has an identity, which a model's
table of task embeddings knows by its row.

A pair is drawn as TRM draws it: a task, one of its views, and one of that view's examples. Nothing else is changed: the
identity names the view, and the data set has moved the grids. Padding is no part of an answer.

Shapes: `k` pairs.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gram.config import ModelConfig
from gram.tasks.arc import Arc
from gram.tasks.arc_folder import NAMES_FILE, is_arc_folder, open_arc_folder, read_names
from gram.tasks.arc_grids import PAD
from gram.tasks.protocol import PuzzleError, PuzzleSet, Tokens
from gram.tasks.puzzle_sets import TEST, TRAIN
from gram.training.config import TrainConfig
from gram.training.puzzles import HELD_OUT_SEED, TrainingPuzzles
from gram.training.recipe import Recipe, RecipeError


class ArcFolderPuzzles(TrainingPuzzles):
    """Pairs of the data set's `train`; labelled tests of its `test` are held out."""

    def __init__(self, task: Arc, config: ModelConfig, training: TrainConfig, path: Path) -> None:
        """Raises `PuzzleError` for a damaged data set, or one without anything to train on or to judge by."""
        self.task, self.split, self.is_conditional = task, training.split, config.is_conditional
        self.is_stored = self.renames = False
        self.pairs, self.blank, self.path = None, None, path
        folder = open_arc_folder(path)
        self.names = path / NAMES_FILE
        self.train = folder.split(TRAIN)
        test = folder.split(TEST)
        order = np.random.default_rng(HELD_OUT_SEED).permutation(len(test.inputs))
        chosen = [example for example in order.tolist() if test.labels[example].any()][: training.evaluate_puzzles]
        if not chosen:
            raise PuzzleError(f"{path}: must hold a test with its output to judge training by, got none")
        examples = np.array(chosen, dtype=np.int64)
        puzzles = test.puzzles_of(examples)
        self.held_out = PuzzleSet(
            puzzles=np.asarray(test.inputs[examples]),
            answers=np.asarray(test.labels[examples]),
            groups=np.searchsorted(test.groups, puzzles, side="right") - 1,
            identities=test.identities[puzzles],
        )
        assert self.held_out.answers is not None
        task.remember(self.held_out.puzzles, self.held_out.answers)

    def draw_identified(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens, NDArray[np.int64]]:
        examples = self.train.draw(rng, count)
        identities = self.train.identities[self.train.puzzles_of(examples)]
        return np.asarray(self.train.inputs[examples]), np.asarray(self.train.labels[examples]), identities

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tokens, Tokens]:
        return self.draw_identified(rng, count)[:2]

    def are_right(self, puzzles: Tokens, targets: Tokens, answers: Tokens) -> NDArray[np.bool_]:
        """Whether answers `[k, 900]` are their targets wherever these are no padding."""
        return np.asarray(((answers == targets) | (targets == PAD)).all(axis=1))

    def digest(self) -> str:
        """SHA-256 of the names and of all pairs that train."""
        digest = hashlib.sha256(self.names.read_bytes())
        for kind in ("inputs", "labels"):
            with (self.path / TRAIN / f"all__{kind}.npy").open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def open_training_puzzles(recipe: Recipe, puzzles: Path | str | None) -> TrainingPuzzles:
    """What a recipe trains on: its task's own puzzles, a file of pairs, or a data set of views. Raises
    `PuzzleError`."""
    if puzzles is not None and isinstance(recipe.task, Arc) and is_arc_folder(Path(puzzles)):
        return ArcFolderPuzzles(recipe.task, recipe.model, recipe.training, Path(puzzles))
    return TrainingPuzzles(recipe.task, recipe.model, recipe.training, puzzles)


def with_identities(recipe: Recipe, puzzles: Path | str | None) -> Recipe:
    """A recipe of a model with task embeddings, which has a row for each name of its data set; any other as it is.

    Raises `RecipeError` where no such data set is named.
    """
    if not recipe.model.identity_dim:
        return recipe
    if puzzles is None or not is_arc_folder(Path(puzzles)):
        raise RecipeError(
            f"recipe {recipe.name} must be given --puzzles DIR, a data set of views (gram data arc) whose names are "
            f"its identities, got {puzzles or 'none'}"
        )
    count = len(read_names(Path(puzzles) / NAMES_FILE))
    if recipe.model.identities not in (0, count):
        raise RecipeError(f"identities must be the {count:,} of {puzzles}, got {recipe.model.identities:,}")
    return replace(recipe, model=replace(recipe.model, identities=count))
