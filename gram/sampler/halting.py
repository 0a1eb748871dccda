"""Halting rules: when a trajectory stops before its depth is used up. A new rule is added in this file alone.

The sampler halts by these functions, and so does a frontier that reads traces (`gram/evals/frontier/grid.py`). The
command line's choices and the checks of settings follow from `RULES`.

Shapes: `n` trajectories that have just taken a supervision step, or any other shape, such as `[p, n, M]` of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    # Settings import this module, and numpy would slow every `--help` down.
    import numpy as np
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Stops = Callable[["Readings", float], Bools]

Halting = Literal["head", "fixed", "residual", "unchanged"]


class Readings(NamedTuple):
    """What is known of trajectories after a supervision step, `[n]` each."""

    step: NDArray[np.int64]
    """Supervision steps taken, this one included."""
    halt: NDArray[np.float32]
    """Halt logit."""
    residual: NDArray[np.float32]
    """Relative movement of `h` in this step; NaN unless a rule needs it."""
    unchanged: NDArray[np.integer]
    """Steps for which the decoded answer, in its canonical form, has stayed the same; 0 unless a rule needs it."""


class Rule(NamedTuple):
    """A way of halting."""

    stops: Stops
    """Which trajectories stop now, at a threshold."""
    threshold: float | None
    """Where nobody names one; None for a rule without. A checkpoint has its own for `head`."""
    meaning: str
    """What the threshold is."""
    expected: str
    """What a threshold must be, as an error says it: a number between `above` and `below`, perhaps a whole one."""
    above: float = 0.0
    below: float = math.inf
    is_whole: bool = False
    needs_residual: bool = False
    needs_answers: bool = False


RULES: dict[str, Rule] = {}
"""Every rule by name; the first is the default."""


def rule(name: str, **fields: Any) -> Callable[[Stops], Stops]:
    """Registers a function as a halting rule; `fields` are those of `Rule`."""

    def register(stops: Stops) -> Stops:
        RULES[name] = Rule(stops, **fields)
        return stops

    return register


@rule("head", threshold=0.95, meaning="probability", expected="between 0 and 1", below=1)
def head(now: Readings, probability: float) -> Bools:
    """Stops where the halt head's probability is above the threshold (ACT; 2506.21734, 2605.19376)."""
    stopping: Bools = now.halt > math.log(probability / (1 - probability))
    return stopping


@rule("fixed", threshold=None, meaning="none", expected="left out for fixed", below=0)
def fixed(now: Readings, _: float) -> Bools:
    """No trajectory stops early."""
    stopping: Bools = now.step < 0
    return stopping


@rule(
    "residual",
    threshold=0.01,
    meaning="share of the state's length",
    expected="above 0 for residual",
    needs_residual=True,
)
def residual(now: Readings, share: float) -> Bools:
    """Stops where the high-level state has come to rest: it moved by less than a share of its length."""
    stopping: Bools = now.residual < share
    return stopping


@rule(
    "unchanged",
    threshold=2.0,
    meaning="steps",
    expected="a whole number of steps for unchanged",
    is_whole=True,
    needs_answers=True,
)
def unchanged(now: Readings, steps: float) -> Bools:
    """Stops where the decoded answer has stayed the same for some steps."""
    stopping: Bools = now.unchanged >= steps
    return stopping


def stops(name: str, threshold: float | None, first: int, now: Readings) -> Bools:
    """Which trajectories a rule stops: those that have taken `first` supervision steps and whose readings say so.

    `threshold` is None for a rule without.
    """
    stopping: Bools = RULES[name].stops(now, math.nan if threshold is None else threshold) & (now.step >= first)
    return stopping


def count_unchanged(is_same: Bools, before: NDArray[np.integer]) -> NDArray[np.integer]:
    """Steps for which answers have stayed the same: given whether this step kept them, and the count `before` it."""
    return (before + 1) * is_same
