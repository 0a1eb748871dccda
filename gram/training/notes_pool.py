"""Lattice states in training that take notes: each is a puzzle some steps into its deductions.

The core is taught one step: what follows from the state that it sees, no more and no less. Then all that is deduced at
once is equally far from what was known before, so that no part of a large puzzle runs ahead of another. A share of the
states has a token decided wrongly, which is to be found, or is a whole answer gone astray (`Notes.astray`).

Shapes: `B` states, `A` answer tokens, `S` symbols.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ModelConfig
from gram.sampler.lattice import Round
from gram.sizes import notes_of
from gram.tasks.notes import NEVER, Symbols
from gram.tasks.protocol import Tokens
from gram.training.config import TrainConfig
from gram.training.lattice_pool import LatticePool, States
from gram.training.puzzles import TrainingPuzzles

WRONG_SHARE = 0.2
"""Share of the states in which a token is decided wrongly."""
ASTRAY_SHARE = 0.2
"""Share of the states that are whole answers gone astray, where the puzzle has such."""


class NotesPool(LatticePool):
    """States at a step of their deductions, carried to the next one."""

    def __init__(
        self, puzzles: TrainingPuzzles, config: ModelConfig, training: TrainConfig, device: torch.device
    ) -> None:
        super().__init__(puzzles, config, training, device)
        self.notes = notes_of(puzzles.task)
        self.gone_at = np.zeros(self.sets.shape, np.int32)
        self.step = np.zeros(len(self.sets), np.int64)
        self.is_astray = np.zeros(len(self.sets), bool)

    def _begin(self, free: NDArray[np.int64], rng: np.random.Generator) -> None:
        puzzles, _ = self.source.draw(rng, len(free))
        noted = self.notes.write(puzzles)
        first = self.first[free] = self.notes.candidates(puzzles)
        self.gone_at[free] = self.notes.deductions(puzzles, noted, rng)
        for row in free.tolist():
            self.step[row] = rng.choice(self._steps(row))
            self.sets[row] = self.gone_at[row] > self.step[row]
            if rng.random() < WRONG_SHARE:
                self._mistake(row, rng)
        self.is_astray[free] = rng.random(len(free)) < ASTRAY_SHARE
        for row, puzzle, symbols in zip(free.tolist(), puzzles, noted, strict=True):
            if self.is_astray[row]:
                self._lead_astray(row, puzzle, symbols, rng)
        self._enter(free, rng, puzzles, noted, first)

    def _steps(self, row: int) -> NDArray[np.int32]:
        """Steps after which something new is known, and the puzzle itself (0)."""
        steps = np.unique(self.gone_at[row])
        return steps[steps < NEVER]

    def _mistake(self, row: int, rng: np.random.Generator) -> None:
        """Decides one token, of which something is known, on a symbol that is ruled out."""
        wrong = self.first[row] & ~self.sets[row]
        if (tokens := np.flatnonzero(wrong.any(1))).size:
            token = rng.choice(tokens)
            self.sets[row, token] = np.arange(wrong.shape[1]) == rng.choice(np.flatnonzero(wrong[token]))

    def _lead_astray(self, row: int, puzzle: Tokens, noted: Symbols, rng: np.random.Generator) -> None:
        """Replaces a state by a whole answer of which no more is to be ruled out than what its neighbours rule out."""
        found = self.notes.astray(puzzle, noted, rng)
        self.is_astray[row] = found is not None
        if found is not None:
            symbols, faults = found
            self.step[row] = 0
            self.sets[row] = symbols[:, None] == np.arange(self.sets.shape[2])
            self.gone_at[row] = np.where(self.sets[row], NEVER, 0)
            self.gone_at[row, faults, symbols[faults]] = 1

    def view(self) -> States:
        known = np.equal(self.answers[:, :, None], np.arange(self.sets.shape[2]))
        # What only follows from a fault far away is not to be known.
        known = np.where(self.is_astray[:, None, None] & (self.gone_at == NEVER).any(2)[..., None], self.sets, known)
        return self._seen(self.gone_at > self.step[:, None, None] + 1, known, self._misses(self.sets))

    def carry(self, played: Round, rng: np.random.Generator) -> tuple[float, float]:
        """To the next step, whatever the round made of this one."""
        is_wrong, is_solved = self._misses(self.sets), played.is_solved.cpu().numpy()
        self.age += 1
        self.is_free = is_wrong | (self.age >= self.training.longest_life)
        for row in np.flatnonzero(~self.is_free).tolist():
            later = self._steps(row)
            later = later[later > self.step[row]]
            self.is_free[row] = not len(later)
            if len(later):
                self.step[row] = later[0]
                self.sets[row] = self.gone_at[row] > later[0]
        return float((is_solved & ~is_wrong).sum()), float((is_solved & is_wrong).sum())

    def _misses(self, sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether the solution is not within the sets, `[B]`."""
        own = np.take_along_axis(sets, self.answers[:, :, None].astype(np.int64), 2)[..., 0]
        return np.asarray(~own.all(1))

    def state(self) -> dict[str, Tensor]:
        own = {name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS}
        return super().state() | own

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        super().load_state(tensors)
        for name in _ARRAYS:
            setattr(self, name, tensors[name].numpy().copy())


_ARRAYS = ("gone_at", "step", "is_astray")
