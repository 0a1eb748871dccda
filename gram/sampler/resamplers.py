"""Resamplers: a puzzle's running trajectories are particles, drawn anew where their weights have become unequal.

All running particles of a puzzle wait for each other after every supervision step. Their weights come from a score;
when the effective number of particles falls under a share, systematic resampling copies the good states over the bad
ones. A copy keeps the lineage of the trajectory it came from, and votes count lineages, so that copies never inflate
one. Halted trajectories keep their answers and take no part.

Shapes: `n` running particles of one puzzle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gram.config import SamplerConfig

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


def resampler_of(config: SamplerConfig) -> Resampler | None:
    """The resampler of resolved settings."""
    if config.resampler == "none":
        return None
    score, _, increment = config.resampler.partition("-")
    return Resampler(score, is_increment=bool(increment), threshold=config.resample_threshold)
