"""Slots of training: puzzles in progress, each at its own supervision step (as HRM and TRM train).

One optimiser step advances every slot by one supervision step (or `gradient_steps`). A sequence ends after `depth`
steps, and a new puzzle takes its slot. (HRM's and TRM's sequences end early when they halt; under the posterior nearly
all would, at once.) The first sequences are shorter, so that the slots are spread over all steps. With best-of-many a
slot holds several trajectories of its puzzle, one row each. How a slot may begin otherwise than from `z0` and the
puzzle: `starts.py`.

Shapes: `B` rows of all ranks, of which this one holds the states of its share.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ModelConfig
from gram.identities import IdentityTable
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step, Weights, initial_noise
from gram.kernels.spec import Injection
from gram.model import embed
from gram.tasks.protocol import puzzle_hash
from gram.training import starts
from gram.training.config import TrainConfig
from gram.training.data_parallel import Ranks
from gram.training.objective import SlotBatch
from gram.training.puzzles import TrainingPuzzles

MOST_SOLUTIONS = 128
"""Valid answers that a slot is shown which aims at any of them (`prior_share`, target `set`)."""


class TrainingSlots:
    """The state carried from one optimiser step to the next."""

    def __init__(
        self,
        puzzles: TrainingPuzzles,
        config: ModelConfig,
        training: TrainConfig,
        dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.source, self.config, self.training, self.ranks = puzzles, config, training, ranks
        count, length = training.rows, config.length
        own = ranks.share(training.batch, "batch")
        self.own = slice(own.start * training.best_of, own.stop * training.best_of)
        """Rows whose states this rank holds."""
        self.h = torch.zeros(self.own.stop - self.own.start, length, config.dim, dtype=dtype, device=device)
        self.l = torch.zeros_like(self.h)
        self.puzzles = np.zeros((count, config.tokens), np.int64)
        self.targets = np.zeros((count, config.output_tokens), np.int64)
        has_several = puzzles.task.is_multi_solution and config.is_conditional
        is_listing = training.prior_share > 0 or training.target == "set"
        names = len(puzzles.task.renamings(np.zeros((1, config.output_tokens), np.uint8))) if puzzles.renames else 1
        listed = MOST_SOLUTIONS * names if is_listing and has_several else 1
        self.solutions = np.zeros((count, listed, config.output_tokens), np.int64)
        self.is_empty = np.zeros(count, bool)
        self.is_prior = np.zeros(count, bool)
        self.identities = np.zeros(count, np.int64)
        """Rows of the model's table of task embeddings, where it has one."""
        self.hashes = np.zeros(count, np.int64)
        self.trajectory = np.zeros(count, np.int64)
        self.taken = np.zeros(count, np.int64)
        self.left = np.zeros(count, np.int64)
        self.late = np.zeros(count, np.int64)
        """Supervision steps that new slots have still to run without gradient (`run_late`)."""
        self.ran_late = np.zeros(1, np.int64)
        """Such steps that all slots have run so far."""
        self.segments = training.segments(config.depth)
        self.started = 0

    def refill(self, weights: Weights, rng: np.random.Generator, step: int = 0, fraction: float = 0.0) -> None:
        """Puts new puzzles where sequences have ended, before optimiser step `step`, at a fraction of training."""
        free = self.replace(rng, step, fraction)
        if len(rows := free[(free >= self.own.start) & (free < self.own.stop)]):
            arrays = self.hashes[rows], self.trajectory[rows], self.taken[rows]
            key = NoiseKey.of_arrays(self.training.seed, *arrays, self.h.device)
            begin(self.h, self.l, rows - self.own.start, self.config, weights, key)

    def replace(self, rng: np.random.Generator, step: int, fraction: float) -> NDArray[np.int64]:
        """The part of `refill` that touches no state: returns the rows (of all ranks) that are to begin anew."""
        free = np.flatnonzero(self.left == 0)
        if not len(free):
            return free
        copies = self.training.best_of
        count = len(free) // copies
        puzzles, targets, identities = self.source.draw_identified(rng, count)
        training = self.training
        if most := starts.most_revealed(training, fraction):
            own = starts.stream(training.seed, step, "reveal")
            puzzles = starts.reveal(own, puzzles, targets, share=training.reveal_share, most=most)
        self.puzzles[free], self.targets[free] = puzzles.repeat(copies, 0), targets.repeat(copies, 0)
        self.identities[free] = identities.repeat(copies)
        is_empty = rng.random(count) < (self.training.empty_probability if self.config.is_conditional else 1.0)
        self.is_empty[free] = is_empty.repeat(copies)
        follows = rng.random(len(free)) < self.training.prior_share
        self.is_prior[free] = follows & (~self.is_empty[free] | (not self.config.is_conditional))
        self.solutions[free] = 0
        if self.config.is_conditional:
            aims_at_all = ~self.is_empty[free] if self.training.target == "set" else self.is_prior[free]
            for slot in free[aims_at_all]:
                self._list_solutions(int(slot), rng)
        hashes = np.array([puzzle_hash(self.source.task.name, puzzle) for puzzle in puzzles], np.int64)
        self.hashes[free] = hashes.repeat(copies)
        self.trajectory[free] = self.started + np.arange(len(free))
        place = np.arange(count).repeat(copies) % self.segments
        self.left[free] = self.config.depth if self.started else training.gradient_steps * (1 + place)
        self.started += len(free)
        self.taken[free] = 0
        if training.late_share:
            own = starts.stream(training.seed, step, "late starts")
            self.late[free] = starts.late_lengths(own, count, training).repeat(copies)
        return free

    @torch.no_grad()
    def run_late(
        self,
        step_function: Callable[..., Step],
        weights: Weights,
        injection: Injection,
        table: IdentityTable | None = None,
    ) -> None:
        """Takes the steps of late starts as sampling does, all of this rank's at once: a row leaves as soon as it has
        its own number."""
        lengths = self.late[self.own]
        late = np.flatnonzero(lengths)
        rows = late[np.argsort(-lengths[late], kind="stable")]
        if len(rows):
            index = torch.from_numpy(rows).to(self.h.device)
            view = self.view().take(index)
            registers = None
            if table is not None:
                registers = table.fill(table.take(torch.from_numpy(self.identities[self.own][rows])))
                registers = registers.to(self.h.device, self.h.dtype)
            is_empty = view.is_empty if "empty" in weights else None
            e_x = embed(weights, self.config, view.puzzles, is_empty_P=is_empty, registers_PRD=registers)
            h, l, key = view.h, view.l, view.key(self.training.seed)
            for step in range(lengths.max()):
                live = slice(int((lengths > step).sum()))
                now = key._replace(step=key.step + step).at(live)
                state = step_function(weights, self.config.spec, h[live], l[live], e_x[live], now, injection=injection)
                h[live], l[live] = state.h, state.l
            self.h[index], self.l[index] = h, l
        self.taken += self.late
        self.ran_late += self.late.sum()
        self.late[:] = 0

    def _list_solutions(self, slot: int, rng: np.random.Generator) -> None:
        """Lists the slot's valid answers, a random part of them where there are many."""
        if not self.source.task.is_multi_solution:
            self.solutions[slot, 0] = self.targets[slot]
            return
        valid, most = self.source.solutions(self.puzzles[slot].astype(np.uint8)), self.solutions.shape[1]
        if len(valid) > most:
            valid = valid[rng.permutation(len(valid))[:most]]
        self.solutions[slot, : len(valid)] = valid

    def aim(self, answers: Tensor) -> None:
        """Sets the targets of on-policy slots without a condition: boards near to their last answers (`answers [B, A]`,
        this rank's), since there are too many boards to list."""
        if self.config.is_conditional or not self.training.prior_share:
            return
        near = np.zeros(answers.shape, np.int64)
        led = self.is_prior[self.own]
        near[led] = self.source.task.nearest_boards(answers[torch.from_numpy(led)].to(torch.uint8).cpu().numpy())
        self.solutions[:, 0] = self.ranks.gather(torch.from_numpy(near).to(answers.device)).cpu().numpy()

    def view(self) -> SlotBatch:
        """This rank's slots as the loss takes them."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[self.own].copy()).to(self.h.device)

        return SlotBatch(self.h, self.l, *(tensor(getattr(self, name)) for name in _SHOWN))

    def carry(self, h: Tensor, l: Tensor) -> None:
        """Takes the state after the supervision steps of an optimiser step."""
        self.h, self.l = h.clone(), l.clone()
        self.count()

    def count(self) -> None:
        """Counts the supervision steps of an optimiser step."""
        self.taken += self.training.gradient_steps
        self.left -= self.training.gradient_steps

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, of all ranks; each must ask."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in self._arrays()}
        h, l = self.ranks.gather(self.h), self.ranks.gather(self.l)
        return {"h": h, "l": l, "started": torch.tensor(self.started), **arrays}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.h.copy_(tensors["h"][self.own])
        self.l.copy_(tensors["l"][self.own])
        self.started = int(tensors["started"])
        for name in self._arrays():
            setattr(self, name, tensors[name].numpy().copy())

    def _arrays(self) -> tuple[str, ...]:
        """What a state holds beside the latent ones."""
        late = ("ran_late",) if self.training.late_share else ()
        return (*_ARRAYS, *late, "identities") if self.config.identity_dim else (*_ARRAYS, *late)


_SHOWN = ("puzzles", "targets", "solutions", "is_empty", "is_prior", "hashes", "trajectory", "taken")
"""In the order of `SlotBatch`."""
_ARRAYS = (*_SHOWN, "left")


def begin(h: Tensor, l: Tensor, rows: NDArray[np.int64], config: ModelConfig, weights: Weights, key: NoiseKey) -> None:
    """Puts the initial states of training sequences into `rows` of `h, l [B, L, D]`: stored, or random (EqR)."""
    new = weights["z0_h"], weights["z0_l"]
    if config.initial_std:
        new = initial_noise(config, key, config.initial_std)
    put(h, l, torch.from_numpy(rows).to(h.device), new)


def put(h: Tensor, l: Tensor, index: Tensor, new: tuple[Tensor, Tensor]) -> None:
    """Puts initial states `new` into the rows `index` of `h, l [B, L, D]`."""
    h[index], l[index] = new[0].to(h.dtype), new[1].to(l.dtype)
