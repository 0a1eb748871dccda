"""Lattice states in training whose search backtracks: each keeps its way back, as in sampling.

A conflict that is one takes the last commitment back, and ends a state only where there is none. A share of them goes
on back, to where a solution was still left: those made later have nothing to teach but that, and a search that
backtracks visits many of them for each state with a solution.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ModelConfig
from gram.sampler.backtracking import Trail, begin, follow
from gram.sampler.lattice import Round
from gram.training.config import TrainConfig
from gram.training.lattice_pool import LatticePool
from gram.training.puzzles import TrainingPuzzles

GOES_ON_BACK = 0.5
"""Share of conflicts that lead back to a state with a solution."""


class BacktrackingPool(LatticePool):
    """The states carried from one optimiser step to the next, with their trails."""

    def __init__(
        self, puzzles: TrainingPuzzles, config: ModelConfig, training: TrainConfig, device: torch.device
    ) -> None:
        super().__init__(puzzles, config, training, device)
        self.trail = begin(torch.from_numpy(self.sets))

    def _begin(self, free: NDArray[np.int64], rng: np.random.Generator) -> None:
        super()._begin(free, rng)
        rows = torch.from_numpy(free)
        for tensor, anew in zip(self.trail, begin(torch.from_numpy(self.sets[free])), strict=True):
            tensor[rows] = anew

    def carry(self, played: Round, rng: np.random.Generator) -> tuple[float, float]:
        played = Round(*(part.cpu() for part in played))
        is_conflict, is_solved = played.is_conflict.numpy(), played.is_solved.numpy()
        is_lost = self._is_lost(played.sets.numpy())
        # What the model judges wrongly stays, so that it meets it again: as it was where a conflict is none.
        is_mistaken = is_conflict & ~is_lost
        is_at_start = self.trail.level.numpy() == 0
        first = torch.from_numpy(self.first)
        after = self._on_back(
            follow(self.trail, first, played), is_conflict & (rng.random(len(is_lost)) < GOES_ON_BACK)
        )
        self.trail = _where(is_mistaken, self.trail, after)
        self.sets = self.trail.sets.numpy()
        self.age += 1
        self.is_free = (
            (is_solved & ~is_lost) | (is_conflict & is_lost & is_at_start) | (self.age >= self.training.longest_life)
        )
        return float((is_solved & ~is_lost).sum()), float((is_solved & is_lost).sum())

    def _on_back(self, trail: Trail, goes: NDArray[np.bool_]) -> Trail:
        """The trails where some of them (`goes`, `[B]`) go back to a state with a solution, or to their puzzles."""
        while True:
            goes = goes & (trail.level.numpy() > 0) & self._is_lost(trail.sets.numpy())
            if not goes.any():
                return trail
            conflict = torch.from_numpy(goes)
            nothing = Round(trail.sets, conflict, ~conflict, trail.sets, torch.full((len(goes),), -1))
            trail = follow(trail, torch.from_numpy(self.first), nothing)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {name: part.clone() for name, part in self.trail._asdict().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        super().load_state(tensors)
        self.trail = Trail(*(tensors[name].clone() for name in Trail._fields))


def _where(mask: NDArray[np.bool_], first: Trail, second: Trail) -> Trail:
    rows = torch.from_numpy(mask)
    return Trail(
        *(
            torch.where(rows.view(-1, *[1] * (one.ndim - 1)), one, other)
            for one, other in zip(first, second, strict=True)
        )
    )
