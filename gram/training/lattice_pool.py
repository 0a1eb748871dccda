"""Lattice states in training: each is a puzzle in progress, advanced by the rounds of sampling (after LDT, 2605.08605).

A state leaves when it is rightly solved, found in a conflict that is one, left without a value, or too old; a new
puzzle takes its place. A share of new states reveals a random part of the solution, so that some can be finished from
the first step on. The first states start at ages of their own: a pool that is filled at once would be solved, or lost,
at once.

Shapes: `B` states of all ranks, `L` puzzle tokens, `A` answer tokens, `V` symbols, `v` of them values of a lattice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ModelConfig
from gram.kernels.philox import NoiseKey
from gram.sampler.lattice import Round
from gram.tasks.protocol import Tokens, puzzle_hash
from gram.training.config import TrainConfig
from gram.training.puzzles import TrainingPuzzles
from gram.training.starts import MOST_REVEALED


class States(NamedTuple):
    """Some states of the pool, on the device."""

    puzzles: Tensor
    """int64 `[B, L]`."""
    given: Tensor
    """Tokens that the puzzle decides, bool `[B, A]`."""
    sets: Tensor
    """Possible values, bool `[B, A, v]`."""
    survivors: Tensor
    """Values of the solutions within the sets, bool `[B, A, v]`; of a lost state none."""
    shares: Tensor
    """Share of these solutions that take each value, fp32 `[B, A, v]`; 1 of each survivor where `value_target` is
    `any`, which does not count them. With notes, of the one solution."""
    is_lost: Tensor
    """No solution is left, `[B]`."""


class LatticePool:
    """The states carried from one optimiser step to the next."""

    def __init__(
        self, puzzles: TrainingPuzzles, config: ModelConfig, training: TrainConfig, device: torch.device
    ) -> None:
        self.source, self.training, self.device = puzzles, training, device
        self.values = list(config.values)
        count, shape = training.batch, (training.batch, config.output_tokens, config.symbols)
        self.puzzles = np.zeros((count, config.tokens), np.uint8)
        self.answers = np.zeros((count, config.output_tokens), np.uint8)
        self.first, self.sets = np.zeros(shape, bool), np.zeros(shape, bool)
        self.hashes = np.zeros(count, np.int64)
        self.trajectory = np.zeros(count, np.int64)
        self.age = np.zeros(count, np.int64)
        self.is_free = np.ones(count, bool)
        self.started = 0

    def refill(self, rng: np.random.Generator) -> None:
        """Puts new puzzles where states have left."""
        free = np.flatnonzero(self.is_free)
        if len(free):
            self._begin(free, rng)

    def _begin(self, free: NDArray[np.int64], rng: np.random.Generator) -> None:
        """New puzzles for some states."""
        task = self.source.task
        puzzles, answers = self.source.draw(rng, len(free))
        first = task.candidates(puzzles)
        share = rng.random((len(free), 1)) * MOST_REVEALED
        shown = (rng.random(answers.shape) < share) & (rng.random((len(free), 1)) < self.training.reveal_share)
        known = answers[:, :, None] == np.arange(first.shape[2])
        self.sets[free] = np.where(shown[:, :, None], first & known, first)
        self._enter(free, rng, puzzles, answers, first)

    def _enter(
        self,
        free: NDArray[np.int64],
        rng: np.random.Generator,
        puzzles: Tokens,
        answers: Tokens,
        first: NDArray[np.bool_],
    ) -> None:
        """Names the states of new puzzles."""
        self.puzzles[free], self.answers[free], self.first[free] = puzzles, answers, first
        self.hashes[free] = [puzzle_hash(self.source.task.name, puzzle) for puzzle in puzzles]
        self.trajectory[free] = self.started + np.arange(len(free))
        self.age[free] = 0 if self.started else rng.integers(0, self.training.longest_life, len(free))
        self.started += len(free)
        self.is_free[free] = False

    def view(self) -> States:
        """All states as the loss takes them."""
        found = self._found(self.sets)
        return self._seen(found > 0, found, _is_lost(found > 0))

    def _seen(self, survivors: NDArray[np.bool_], shares: NDArray[Any], is_lost: NDArray[np.bool_]) -> States:
        """The states, with what is to be learnt of them: `[B, A, S]`, `[B, A, S]` and `[B]`."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.copy()).to(self.device)

        return States(
            tensor(self.puzzles).long(),
            tensor(self.first.sum(-1) == 1),
            tensor(self.sets[..., self.values]),
            tensor(survivors[..., self.values]),
            tensor(shares[..., self.values].astype(np.float32)),
            tensor(is_lost),
        )

    def key(self) -> NoiseKey:
        """Names the noise of every state's next round."""
        return NoiseKey.of_arrays(self.training.seed, self.hashes, self.trajectory, self.age, self.device)

    def carry(self, played: Round, rng: np.random.Generator) -> tuple[float, float]:
        """Takes a round; returns the numbers of states that it solved rightly and wrongly. `rng` is of use to a search
        that backtracks."""
        sets, is_conflict, is_solved = (part.cpu().numpy() for part in played[:3])
        is_lost = self._is_lost(sets)
        # What the model judges wrongly stays, so that it meets it again: as it was where a conflict is none.
        is_mistaken = is_conflict & ~is_lost
        self.sets = np.where(is_mistaken[:, None, None], self.sets, sets)
        self.age += 1
        is_empty = (sets.sum(2) == 0).any(1)
        self.is_free = (
            (is_solved & ~is_lost) | (is_conflict & is_lost) | is_empty | (self.age >= self.training.longest_life)
        )
        return float((is_solved & ~is_lost).sum()), float((is_solved & is_lost).sum())

    def _is_lost(self, sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return _is_lost(self._found(sets) > 0)

    def _found(self, sets: NDArray[np.bool_]) -> NDArray[Any]:
        """Values of the solutions within the sets, `[B, A, V]`, by their shares where these are learnt."""
        task = self.source.task
        if self.training.value_target == "share":
            return task.solution_shares(self.puzzles, self.answers, sets)
        if task.has_several(self.source.split):
            return task.survivors(self.puzzles, self.answers, sets)
        # The answer is the only solution: a solver would find it anew for every puzzle.
        found: NDArray[np.bool_] = np.equal(self.answers[:, :, None], np.arange(sets.shape[2]))
        found[(found & ~sets).sum((1, 2)) > 0] = False
        return found

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS}
        return {"started": torch.tensor(self.started), **arrays}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.started = int(tensors["started"])
        for name in _ARRAYS:
            setattr(self, name, tensors[name].numpy().copy())


_ARRAYS = ("puzzles", "answers", "first", "sets", "hashes", "trajectory", "age", "is_free")


def _is_lost(survivors: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether no solution is left, `[B]`."""
    return np.asarray(survivors.sum((1, 2)) == 0)
