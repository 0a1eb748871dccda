"""The particle filter (sequential Monte Carlo): a puzzle's running trajectories are resampled as they advance.

All running trajectories of a puzzle, its particles, wait at a barrier for each other after every supervision step.
Their weights come from a score. When the effective number of particles falls under a share, systematic resampling
copies the good states over the bad ones, and all go on. So the outcome does not depend on how many slots there are.

A copy keeps the lineage of the trajectory it came from, and the majority vote counts lineages, so copies never inflate
it. Halted trajectories keep their answers and take no part.

A particle is a row of the table of trajectories (`gram/sampler/scheduler.py`), and its state stands in a slot, where it
stays while it waits. Resampling names for every particle the slot of the state it goes on from; the engine then moves
all states at once.

Shapes: `R` rows, `k` some of them, `E` puzzles that have `n` running particles each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gram.config import ResolvedConfig
from gram.kernels.philox import Site, counter_word1, random_bits
from gram.sampler.scheduler import Floats as Scores
from gram.sampler.scheduler import OpenShard, RowArrays, Rows, Trajectories

Floats = NDArray[np.float64]
SMALLEST = 1e-6
"""Predicted accuracies are clipped to it before their logarithm is taken."""


class Resampler:
    """Weights from a score, or from how it has grown since the last resampling."""

    def __init__(self, score: str, *, is_increment: bool, threshold: float) -> None:
        self.score, self.is_increment, self.threshold = score, is_increment, threshold

    def log_scores(self, halt: Scores, lprm: Scores) -> Floats:
        """Log of the score, any shape: predicted accuracy (LPRM), or the halt head's probability."""
        if self.score == "lprm":
            return np.log(np.clip(lprm.astype(np.float64), SMALLEST, 1.0))
        return -np.logaddexp(0.0, -halt.astype(np.float64))

    def ancestors(self, log_scores: Floats, reference: Floats, uniforms: Floats) -> tuple[Rows, NDArray[np.bool_]]:
        """Which particle of its puzzle each particle continues, `[E, n]`, and which puzzles are resampled at all,
        `[E]`; in the others all go on as they are.

        Log scores are `[E, n]`, and so is `reference`: each particle's log score at the last resampling, from which
        increments count. `uniforms [E]` are the random numbers of systematic resampling, in (0, 1).
        """
        logs = log_scores - reference if self.is_increment else log_scores
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        count = weights.shape[1]
        is_resampled = ~(1 / np.square(weights).sum(axis=1) >= self.threshold * count)
        chosen = np.tile(np.arange(count), (len(weights), 1))
        if is_resampled.any():
            chosen[is_resampled] = in_place(systematic(weights[is_resampled], uniforms[is_resampled]))
        return chosen, is_resampled


def systematic(weights: Floats, uniforms: Floats) -> Rows:
    """Systematic resampling (Kitagawa 1996) of each of the rows `weights [E, n]`: every particle is drawn `n w` times,
    rounded down or up; in order, `[E, n]`."""
    count = weights.shape[1]
    points = (uniforms[:, None] + np.arange(count)) / count
    # A point draws the first particle whose cumulative weight is above it: as many are not, sorted before the point.
    both = np.concatenate([np.cumsum(weights, axis=1), points], axis=1)
    place = np.argsort(np.argsort(both, axis=1, kind="stable"), axis=1)
    drawn: Rows = np.minimum(place[:, count:] - np.arange(count), count - 1)
    return drawn


def in_place(ancestors: Rows) -> Rows:
    """The same draws `[E, n]`, arranged so that every particle that survives continues itself and only others are
    overwritten."""
    puzzles, count = ancestors.shape
    each = np.arange(count)
    drawn = ancestors + np.arange(puzzles)[:, None] * count
    copies = np.bincount(drawn.ravel(), minlength=puzzles * count).reshape(puzzles, count)
    arranged: Rows = np.where(copies > 0, each, -1)
    spare = np.maximum(copies - 1, 0)  # a puzzle has as many spare copies as particles that are not drawn
    arranged[arranged < 0] = np.repeat(np.tile(each, puzzles), spare.ravel())
    return arranged


def resampler_of(config: ResolvedConfig) -> Resampler:
    """The resampler of settings that name one."""
    score, _, increment = config.resampler.partition("-")
    return Resampler(score, is_increment=bool(increment), threshold=config.resample_threshold)


class Move(NamedTuple):
    """Where the particles stand next, `[k]` each."""

    rows: Rows
    """The particles."""
    source: Rows
    """The slots of the states that they go on from."""
    running: int
    """The first so many may take their next step; the others wait."""


class ParticleFilter(RowArrays):
    """All populations that are under way. What belongs to a puzzle is kept in the row of its first trajectory."""

    slot: Rows
    """Where the state of a particle is that has taken its step."""
    step: Rows
    """Supervision steps taken."""
    halt: Scores
    lprm: Scores
    reference: Floats
    """Log score of the particle's state at its last resampling; NaN before its first step."""
    is_waiting: NDArray[np.bool_]
    running: Rows
    """Particles of the puzzle that have not ended."""
    waiting: Rows
    """Particles of the puzzle that wait."""

    def __init__(self, resampler: Resampler, seed: int, table: Trajectories) -> None:
        super().__init__(
            **dict.fromkeys(("slot", "step", "running", "waiting"), (np.int64,)),
            **dict.fromkeys(("halt", "lprm"), (np.float32,)),
            reference=(np.float64,),
            is_waiting=(bool,),
        )
        self.resampler, self.seed, self.table = resampler, seed, table
        self.released: Rows = np.zeros(0, np.int64)
        """Particles that may take their next step, in the order in which they do."""
        self.held: Rows = self.released
        """Particles that wait for others of their puzzle."""
        self.touched: Rows = self.released
        """Puzzles of particles that have ended or come to the barrier in this step."""

    def open(self, opened: OpenShard) -> None:
        """Starts the populations of a shard."""
        self.grow(len(self.table.id))
        self.reference[opened.rows], self.is_waiting[opened.rows] = np.nan, False
        self.running[opened.firsts], self.waiting[opened.firsts] = opened.shard.trajectories, 0

    def end(self, rows: Rows) -> None:
        """Removes particles that have ended from their populations."""
        firsts = self.table.first[rows]
        np.subtract.at(self.running, firsts, 1)
        self.touched = np.concatenate([self.touched, firsts])

    def wait(self, rows: Rows, slots: Rows, steps: Rows, halt: Scores, lprm: Scores) -> None:
        """Holds particles at their puzzles' barriers, then lets every puzzle go on that has all of them there: its
        particles are resampled and released."""
        self.slot[rows], self.step[rows], self.halt[rows], self.lprm[rows] = slots, steps, halt, lprm
        self.is_waiting[rows] = True
        firsts = self.table.first[rows]
        np.add.at(self.waiting, firsts, 1)
        touched = np.unique(np.concatenate([self.touched, firsts]))
        self.touched = touched[:0]
        is_complete = (self.waiting[touched] == self.running[touched]) & (self.running[touched] > 0)
        complete = touched[is_complete]
        complete = complete[np.lexsort((complete, self.table.shard[complete]))]
        self.held = np.concatenate([self.held, rows])
        here = self.held[np.isin(self.table.first[self.held], complete)]
        place = np.empty(len(self.table.id), np.int64)
        place[complete] = np.arange(len(complete))
        here = here[np.lexsort((here, place[self.table.first[here]]))]
        self._resample(here, complete)
        self.is_waiting[here], self.waiting[complete] = False, 0
        self.held = self.held[self.is_waiting[self.held]]
        self.released = np.concatenate([self.released, here])

    def move(self, slots: int) -> Move:
        """The next step's particles, at most so many, and behind them all others that have a state."""
        running, later = self.released[:slots], self.released[slots:]
        rows = np.concatenate([running, later, self.held])
        self.released = later
        return Move(rows, self.slot[rows], len(running))

    def _resample(self, rows: Rows, firsts: Rows) -> None:
        """Resamples the particles of complete puzzles, which stand one puzzle behind the other."""
        counts = self.running[firsts]
        starts = np.cumsum(counts) - counts
        uniforms = self._uniforms(firsts, rows[starts])
        for count in np.unique(counts).tolist():  # sums are rounded as they are over one puzzle alone
            chosen = np.flatnonzero(counts == count)
            particles = rows[starts[chosen, None] + np.arange(count)]
            scores = self.resampler.log_scores(self.halt[particles], self.lprm[particles])
            reference = self.reference[particles]
            reference = np.where(np.isnan(reference), scores, reference)
            self.reference[particles] = reference
            ancestors, is_resampled = self.resampler.ancestors(scores, reference, uniforms[chosen])
            new, drawn = particles[is_resampled], ancestors[is_resampled]
            old = np.take_along_axis(new, drawn, axis=1)
            self.slot[new], self.table.lineage[new] = self.slot[old], self.table.lineage[old]
            self.reference[new] = np.take_along_axis(scores[is_resampled], drawn, axis=1)

    def _uniforms(self, firsts: Rows, rows: Rows) -> Floats:
        """The random numbers of puzzles' resampling after their steps, in (0, 1); `rows` are a particle of each."""
        word = counter_word1(torch.from_numpy(self.step[rows]), Site.RESAMPLING)
        puzzles = torch.from_numpy(self.table.hashes[self.table.puzzle[firsts]])
        bits = random_bits(4, self.seed, word, torch.zeros_like(puzzles), puzzles)
        return (bits[:, 0].numpy().astype(np.float64) + 0.5) / 2**23
