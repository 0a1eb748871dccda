"""Slots of training: puzzles being thought about, each at its own supervision step (as HRM and TRM train).

One optimiser step advances every slot by one supervision step; a sequence leaves after `depth` steps (HRM's and TRM's
leave early when they halt; led by the posterior nearly all would, at once) and a new puzzle takes its place. The first
sequences are cut short so that the slots are spread over all steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gram.config import ModelConfig, TrainConfig
from gram.objective import Slots
from gram.tasks.identity import puzzle_hash
from gram.tasks.protocol import Task

MOST_SOLUTIONS = 32
"""Valid answers that a slot which follows the prior is shown."""


class TrainingSlots:
    """The state carried from one optimiser step to the next."""

    def __init__(
        self, task: Task, config: ModelConfig, training: TrainConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.task, self.config, self.training = task, config, training
        count, length = training.batch, config.registers + config.tokens
        self.h = torch.zeros(count, length, config.dim, dtype=dtype, device=device)
        self.l = torch.zeros_like(self.h)
        self.puzzles = np.zeros((count, config.tokens), np.int64)
        self.targets = np.zeros((count, config.output_tokens), np.int64)
        self.solutions = np.zeros((count, MOST_SOLUTIONS, config.output_tokens), np.int64)
        self.is_empty = np.zeros(count, bool)
        self.is_prior = np.zeros(count, bool)
        self.hashes = np.zeros(count, np.int64)
        self.trajectory = np.zeros(count, np.int64)
        self.taken = np.zeros(count, np.int64)
        self.left = np.zeros(count, np.int64)
        self.started = 0

    def refill(self, z0_h: Tensor, z0_l: Tensor, rng: np.random.Generator) -> None:
        """Puts new puzzles where sequences have ended."""
        free = np.flatnonzero(self.left == 0)
        if not len(free):
            return
        puzzles, targets = self.task.training_batch(rng, len(free), split=self.training.split)
        self.puzzles[free], self.targets[free] = puzzles, targets
        self.is_empty[free] = rng.random(len(free)) < (
            self.training.empty_probability if self.config.is_conditional else 1.0
        )
        self.is_prior[free] = (rng.random(len(free)) < self.training.prior_share) & ~self.is_empty[free]
        for slot in free[self.is_prior[free]]:
            self._list_solutions(int(slot), rng)
        self.hashes[free] = [puzzle_hash(self.task.name, puzzle) for puzzle in puzzles]
        self.trajectory[free] = self.started + np.arange(len(free))
        depth = self.config.depth
        self.left[free] = depth if self.started else 1 + np.arange(len(free)) % depth
        self.started += len(free)
        self.taken[free] = 0
        index = torch.from_numpy(free).to(self.h.device)
        self.h[index] = z0_h.to(self.h.dtype)
        self.l[index] = z0_l.to(self.l.dtype)

    def _list_solutions(self, slot: int, rng: np.random.Generator) -> None:
        """Writes down the slot's valid answers, a random part of them where there are many."""
        valid = self.task.solutions(self.puzzles[slot].astype(np.uint8))
        if len(valid) > MOST_SOLUTIONS:
            valid = valid[rng.permutation(len(valid))[:MOST_SOLUTIONS]]
        self.solutions[slot] = 0
        self.solutions[slot, : len(valid)] = valid

    def view(self) -> Slots:
        """The slots as the loss takes them."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.copy()).to(self.h.device)

        return Slots(
            h=self.h,
            l=self.l,
            puzzles=tensor(self.puzzles),
            targets=tensor(self.targets),
            solutions=tensor(self.solutions),
            is_empty=tensor(self.is_empty),
            is_prior=tensor(self.is_prior),
            puzzle_hash=tensor(self.hashes),
            trajectory=tensor(self.trajectory),
            step=tensor(self.taken),
        )

    def carry(self, h: Tensor, l: Tensor) -> None:
        """Takes the state after a supervision step."""
        self.h, self.l = h.clone(), l.clone()
        self.taken += 1
        self.left -= 1

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS}
        return {"h": self.h, "l": self.l, "started": torch.tensor(self.started), **arrays}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.h.copy_(tensors["h"])
        self.l.copy_(tensors["l"])
        self.started = int(tensors["started"])
        for name in _ARRAYS:
            setattr(self, name, tensors[name].numpy().copy())


_ARRAYS = ("puzzles", "targets", "solutions", "is_empty", "is_prior", "hashes", "trajectory", "taken", "left")
