"""Halting rules: when a trajectory stops before its depth is used up. One small class each.

Shapes: `n` trajectories that have just taken a supervision step.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gram.config import SamplerConfig

Bools = NDArray[np.bool_]


class Readings(NamedTuple):
    """What is known of trajectories after a supervision step, `[n]` each."""

    step: NDArray[np.int64]
    """Supervision steps taken, this one included."""
    halt: NDArray[np.float32]
    """Halt logit."""
    residual: NDArray[np.float32]
    """Relative movement of `h` in this step; NaN unless a rule needs it."""
    unchanged: NDArray[np.int64]
    """Steps since the decoded answer last changed, 0 where it just did or no rule needs it."""


class Halting(Protocol):
    """A halting rule."""

    needs_residual: bool
    needs_answers: bool

    def stops(self, now: Readings) -> Bools:
        """Which trajectories stop now, `[n]`."""
        ...


class FixedDepth:
    """None stops early."""

    needs_residual = needs_answers = False

    def stops(self, now: Readings) -> Bools:
        return np.zeros(now.step.shape, dtype=bool)


class HaltHead:
    """Stops where the halt head's probability is above a threshold (ACT; 2506.21734, 2605.19376)."""

    needs_residual = needs_answers = False

    def __init__(self, probability: float) -> None:
        self.gate = math.log(probability / (1 - probability))

    def stops(self, now: Readings) -> Bools:
        stopping: Bools = now.halt > self.gate
        return stopping


class Residual:
    """Stops where the high-level state has come to rest: it moved by less than a share of its length."""

    needs_residual, needs_answers = True, False

    def __init__(self, share: float) -> None:
        self.share = share

    def stops(self, now: Readings) -> Bools:
        stopping: Bools = now.residual < self.share
        return stopping


class Unchanged:
    """Stops where the decoded answer has stayed the same for some steps."""

    needs_residual, needs_answers = False, True

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stops(self, now: Readings) -> Bools:
        stopping: Bools = now.unchanged >= self.steps
        return stopping


def halting_of(config: SamplerConfig) -> Halting:
    """The rule of resolved settings."""
    if config.halting == "fixed":
        return FixedDepth()
    assert config.halt_threshold is not None
    if config.halting == "head":
        return HaltHead(config.halt_threshold)
    if config.halting == "residual":
        return Residual(config.halt_threshold)
    return Unchanged(int(config.halt_threshold))
