"""Particles of resampled puzzles: a barrier after every supervision step, and the resampling at it.

A puzzle's running trajectories are taken out of their slots and wait here until all of them have taken the same step;
then the weights are compared, states are copied where they have become unequal, and all go back to the queue. So the
outcome does not depend on how many slots there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gram.kernels.philox import Site, counter_word1, random_bits
from gram.sampler.resamplers import Resampler, in_place
from gram.sampler.tracker import Tracker
from gram.sampler.work import Work
from gram.tasks.protocol import Tokens


class Parked(NamedTuple):
    """A running trajectory that waits for the others of its puzzle."""

    work: Work
    halt: float
    lprm: float


@dataclass(slots=True)
class Population:
    """The trajectories of one puzzle."""

    running: int
    """How many have not ended."""
    parked: dict[int, Parked] = field(default_factory=dict)
    """By column."""
    reference: dict[int, float] = field(default_factory=dict)
    """Log score of each column's state at its last resampling."""


class Particles:
    """All populations that are under way."""

    def __init__(self, resampler: Resampler, seed: int) -> None:
        self.resampler, self.seed = resampler, seed
        self.populations: dict[tuple[int, int], Population] = {}
        self.touched: dict[tuple[int, int], None] = {}

    def _of(self, tracker: Tracker, puzzle: int) -> tuple[tuple[int, int], Population]:
        key = tracker.shard.index, puzzle
        if key not in self.populations:
            self.populations[key] = Population(running=tracker.shard.trajectories)
        self.touched[key] = None
        return key, self.populations[key]

    def park(self, work: Work, state: Tensor, step: int, halt: float, lprm: float, memory: tuple[Tokens, int]) -> None:
        """A trajectory that goes on after `step` supervision steps."""
        _, population = self._of(work.tracker, work.puzzle)
        population.parked[work.column] = Parked(replace(work, state=state, step=step, memory=memory), halt, lprm)

    def leave(self, work: Work) -> None:
        """A trajectory that has ended."""
        key, population = self._of(work.tracker, work.puzzle)
        population.running -= 1
        if not population.running:
            del self.populations[key], self.touched[key]

    def ready(self) -> list[Work]:
        """The trajectories of every puzzle that is complete at its step, resampled, in order."""
        works: list[Work] = []
        for key in sorted(self.touched):
            population = self.populations[key]
            if len(population.parked) == population.running:
                works += self._resampled(population)
                population.parked = {}
        self.touched = {}
        return works

    def _resampled(self, population: Population) -> list[Work]:
        columns = sorted(population.parked)
        parked = [population.parked[column] for column in columns]
        scores = self.resampler.log_scores(
            np.array([each.halt for each in parked], np.float32), np.array([each.lprm for each in parked], np.float32)
        )
        reference = np.array(
            [population.reference.get(column, score) for column, score in zip(columns, scores, strict=True)]
        )
        for column, value in zip(columns, reference, strict=True):
            population.reference.setdefault(column, float(value))
        ancestors = self.resampler.ancestors(scores, reference, self._uniform(parked[0].work))
        if ancestors is None:
            return [each.work for each in parked]
        works = []
        for column, ancestor in zip(columns, in_place(ancestors), strict=True):
            works.append(replace(parked[ancestor].work, column=column))
            population.reference[column] = float(scores[ancestor])
        return works

    def _uniform(self, work: Work) -> float:
        """The random number of one puzzle's resampling after one step, in (0, 1)."""
        word = counter_word1(torch.tensor([work.step]), Site.RESAMPLING)
        puzzle = torch.tensor([int(work.tracker.hashes[work.puzzle])])
        bits = random_bits(4, self.seed, word, torch.zeros(1, dtype=torch.int64), puzzle)
        return (float(bits[0, 0]) + 0.5) / 2**23
