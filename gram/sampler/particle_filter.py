"""The particle filter (sequential Monte Carlo): a puzzle's running trajectories are resampled as they advance.

All running trajectories of a puzzle, its particles, wait at a barrier for each other after every supervision step.
Their weights come from a score. When the effective number of particles falls under a share, systematic resampling
copies the good states over the bad ones, and all go on. So the outcome does not depend on how many slots there are.

A copy keeps the lineage of the trajectory it came from, and the majority vote counts lineages, so copies never inflate
it. Halted trajectories keep their answers and take no part.

Shapes: `n` running particles of one puzzle.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gram.config import ResolvedConfig
from gram.kernels.philox import Site, counter_word1, random_bits
from gram.sampler.scheduler import ShardState, Trajectory

Floats = NDArray[np.float64]
SMALLEST = 1e-6
"""Predicted accuracies are clipped to it before their logarithm is taken."""


class Resampler:
    """Weights from a score, or from how it has grown since the last resampling."""

    def __init__(self, score: str, *, is_increment: bool, threshold: float) -> None:
        self.score, self.is_increment, self.threshold = score, is_increment, threshold

    def log_scores(self, halt: NDArray[np.float32], lprm: NDArray[np.float32]) -> Floats:
        """Log of the score, `[n]`: predicted accuracy (LPRM), or the halt head's probability."""
        if self.score == "lprm":
            return np.log(np.clip(lprm.astype(np.float64), SMALLEST, 1.0))
        return -np.logaddexp(0.0, -halt.astype(np.float64))

    def ancestors(self, log_scores: Floats, reference: Floats, uniform: float) -> NDArray[np.int64] | None:
        """Index of the particle that each particle continues, `[n]`; None where all go on as they are.

        `reference` is each particle's log score at the last resampling (increments count from there); `uniform` is the
        one random number of systematic resampling, in (0, 1).
        """
        logs = log_scores - reference if self.is_increment else log_scores
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        if 1 / np.square(weights).sum() >= self.threshold * len(weights):
            return None
        return systematic(weights, uniform)


def systematic(weights: Floats, uniform: float) -> NDArray[np.int64]:
    """Systematic resampling (Kitagawa 1996): every particle is drawn `n w` times, rounded down or up; in order."""
    count = len(weights)
    points = (uniform + np.arange(count)) / count
    drawn = np.searchsorted(np.cumsum(weights), points, side="right")
    return np.minimum(drawn, count - 1).astype(np.int64)


def in_place(ancestors: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same draw, arranged so that every particle that survives continues itself and only others are overwritten."""
    count = len(ancestors)
    copies = np.bincount(ancestors, minlength=count)
    arranged = np.where(copies > 0, np.arange(count), -1)
    arranged[arranged < 0] = np.repeat(np.arange(count), np.maximum(copies - 1, 0))
    return arranged


def resampler_of(config: ResolvedConfig) -> Resampler:
    """The resampler of settings that name one."""
    score, _, increment = config.resampler.partition("-")
    return Resampler(score, is_increment=bool(increment), threshold=config.resample_threshold)


class Waiting(NamedTuple):
    """A running trajectory that waits at its puzzle's barrier."""

    trajectory: Trajectory
    halt: float
    lprm: float


@dataclass(slots=True)
class Population:
    """The particles of one puzzle."""

    running: int
    """How many have not ended."""
    waiting: dict[int, Waiting] = field(default_factory=dict)
    """By column."""
    reference: dict[int, float] = field(default_factory=dict)
    """Log score of each column's state at its last resampling."""


class ParticleFilter:
    """All populations that are under way."""

    def __init__(self, resampler: Resampler, seed: int) -> None:
        self.resampler, self.seed = resampler, seed
        self.populations: dict[tuple[int, int], Population] = {}
        self.touched: dict[tuple[int, int], None] = {}

    def _of(self, state: ShardState, puzzle: int) -> tuple[tuple[int, int], Population]:
        key = state.shard.index, puzzle
        if key not in self.populations:
            self.populations[key] = Population(running=state.shard.trajectories)
        self.touched[key] = None
        return key, self.populations[key]

    def wait(self, trajectory: Trajectory, halt: float, lprm: float) -> None:
        """Holds a trajectory, which carries its state, at its puzzle's barrier."""
        _, population = self._of(trajectory.shard, trajectory.puzzle)
        population.waiting[trajectory.column] = Waiting(trajectory, halt, lprm)

    def end(self, trajectory: Trajectory) -> None:
        """Removes a trajectory that has ended from its population."""
        key, population = self._of(trajectory.shard, trajectory.puzzle)
        population.running -= 1
        if not population.running:
            del self.populations[key], self.touched[key]

    def released(self) -> list[Trajectory]:
        """The trajectories of every puzzle that has all of them at the barrier, resampled, in order."""
        released: list[Trajectory] = []
        for key in sorted(self.touched):
            population = self.populations[key]
            if len(population.waiting) == population.running:
                released += self._resampled(population)
                population.waiting = {}
        self.touched = {}
        return released

    def _resampled(self, population: Population) -> list[Trajectory]:
        columns = sorted(population.waiting)
        waiting = [population.waiting[column] for column in columns]
        scores = self.resampler.log_scores(
            np.array([each.halt for each in waiting], np.float32), np.array([each.lprm for each in waiting], np.float32)
        )
        reference = np.array(
            [population.reference.get(column, score) for column, score in zip(columns, scores, strict=True)]
        )
        for column, value in zip(columns, reference, strict=True):
            population.reference.setdefault(column, float(value))
        ancestors = self.resampler.ancestors(scores, reference, self._uniform(waiting[0].trajectory))
        if ancestors is None:
            return [each.trajectory for each in waiting]
        resampled = []
        for column, ancestor in zip(columns, in_place(ancestors), strict=True):
            resampled.append(replace(waiting[ancestor].trajectory, column=column))
            population.reference[column] = float(scores[ancestor])
        return resampled

    def _uniform(self, trajectory: Trajectory) -> float:
        """The random number of one puzzle's resampling after one step, in (0, 1)."""
        word = counter_word1(torch.tensor([trajectory.step]), Site.RESAMPLING)
        puzzle = torch.tensor([int(trajectory.shard.hashes[trajectory.puzzle])])
        bits = random_bits(4, self.seed, word, torch.zeros(1, dtype=torch.int64), puzzle)
        return (float(bits[0, 0]) + 0.5) / 2**23
