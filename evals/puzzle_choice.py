"""Which puzzles an evaluation is of, and whether its checkpoint has seen them in training, by what its card says.

Weights are not looked at: a card without a recipe (an imported checkpoint) says nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gram.api import Puzzles, Sampler
from gram.hub_files import load_puzzles
from gram.tasks.protocol import PuzzleSet, Task, check_judgeable, input_tokens, training_split

log = logging.getLogger(__name__)
PERMUTATION_SEED = 0
"""Of the order in which `limit` takes the rows of a user's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PuzzleChoice:
    """A split of the task in its own fixed order, or puzzles of the caller's."""

    puzzles: Path | Puzzles | None = None
    """A file (`Path`) or puzzles themselves; None: the split."""
    split: str = "test"
    rows: str | None = None
    """A part of either, `A-B`, counted from 1."""
    limit: int | None = None
    """How many of them: the first of a split, and of the caller's puzzles in a fixed permutation. None: all."""

    def of(self, task: Task, *, is_judged: bool = True) -> PuzzleSet:
        """The puzzles; where they are to be judged, only those that the task can judge. Raises `PuzzleError` and
        `ValueError`."""
        if self.puzzles is None:
            chosen = task.split(self.split, limit=self.limit if self.rows is None else None)
        elif isinstance(self.puzzles, Path):
            chosen = load_puzzles(task, self.puzzles)
        elif isinstance(self.puzzles, PuzzleSet):
            chosen = self.puzzles
        else:
            chosen = PuzzleSet(puzzles=input_tokens(task, self.puzzles))
        chosen = chosen.part(self.rows)
        if self.puzzles is None:
            chosen = chosen.take(slice(self.limit))
        elif self.limit is not None:
            chosen = chosen.take(np.random.default_rng(PERMUTATION_SEED).permutation(len(chosen))[: self.limit])
        if is_judged:
            check_judgeable(task, chosen.puzzles, self.puzzles if isinstance(self.puzzles, Path) else None)
        return chosen

    @property
    def judged_split(self) -> str | None:
        """The split, where the puzzles are of one."""
        return self.split if self.puzzles is None else None

    def facts(self, card: dict[str, Any]) -> dict[str, Any]:
        """Fields of a JSON: where the puzzles came from, what the checkpoint was trained on, and whether that is
        other puzzles (None where nobody knows)."""
        found: dict[str, Any] = {}
        if self.puzzles is None:
            found["split"] = self.split
        elif isinstance(self.puzzles, Path):
            found["puzzle_file"] = str(self.puzzles)
        if self.rows is not None:
            found["rows"] = self.rows
        split = self.judged_split
        return found | {
            "trained_split": trained_split(card),
            "is_unseen": None if split is None else is_unseen(card, split),
        }

    def warn(self, sampler: Sampler) -> None:
        """Logs one line where a split that should be unseen is not."""
        split = self.judged_split
        if split is None or is_unseen(sampler.card, split) is not False or "train" in split:
            return
        trained = trained_split(sampler.card)
        own = "" if trained is None else trained.replace("train", "test", 1)
        log.warning(
            "checkpoint %s was trained on %r: puzzles of %r are not unseen by it%s",
            sampler.name,
            trained,
            split,
            f" (those of {own!r} are)" if own in sampler.task.splits else "",
        )


def trained_split(card: dict[str, Any]) -> str | None:
    """The split that a checkpoint was trained on, None where its card does not say."""
    recipe = card.get("recipe")
    training = recipe.get("training") if isinstance(recipe, dict) else None
    named = card.get("split") or (training.get("split") if isinstance(training, dict) else None)
    return named if isinstance(named, str) else None


def is_unseen(card: dict[str, Any], split: str) -> bool | None:
    """Whether a split is held out from the one trained on; None where the card does not say which that was."""
    trained = trained_split(card)
    if trained is None:
        return None
    try:
        return training_split(split) == trained and split not in card.get("also_trained_on", ())
    except ValueError:
        return False
