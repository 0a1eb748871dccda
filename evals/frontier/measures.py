"""What a frontier measures, by puzzle: accuracy of the selected answer first, and coverage second where puzzles have
several solutions. Made of a trace's outcomes (`grid.py`); no figure of them is chosen or compared here.

Shapes: `P` puzzles, `H` halting rules, `M` depths, `N` widths, `S` selectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier.choice import Slice
from gram.evals.frontier.grid import Grid, Outcomes

Floats = NDArray[np.float64]
LEAST_COVERABLE = 1e-3
"""Coverage that the widest cell could reach at most, in the mean, below which coverage says nothing: mazes have up to
10^12 solutions."""


class OutcomeTable:
    """Outcomes of the puzzles that count, and the measures made of them."""

    def __init__(
        self,
        outcomes: Outcomes,
        real: NDArray[np.int64],
        grid: Grid,
        clusters: NDArray[np.int64],
        solutions: Floats | None,
    ) -> None:
        self.grid, self.clusters, self.solutions = grid, clusters, solutions
        self.conflicts = outcomes.conflicts
        rows: slice | NDArray[np.int64] = slice(None) if len(real) == len(outcomes.puzzles) else real
        self.accuracy, self.direct = outcomes.accuracy[rows], outcomes.is_right_directly[rows]
        self.passes, self.distinct = outcomes.passes[rows], outcomes.distinct[rows]
        self.steps = outcomes.steps[rows]
        self.coverage: NDArray[np.float32] | None = None
        if solutions is not None and _could_cover(solutions, grid.widths[-1]):
            share = np.where(solutions > 0, solutions, np.nan)[:, None, None, None]
            self.coverage = np.clip(self.distinct / share, 0, 1).astype(np.float32)
        self.measures: tuple[str, ...] = ("accuracy",) if self.coverage is None else ("accuracy", "coverage")

    def slice(self, measure: str, halting: int) -> Slice:
        """One halting rule's cells by puzzle."""
        return slice_of(self.outcomes, self.grid, measure, halting)

    @property
    def outcomes(self) -> dict[str, NDArray[Any]]:
        """What `outcomes.npz` holds beside the puzzles."""
        found: dict[str, NDArray[Any]] = {"groups": self.clusters}
        found |= {"accuracy": self.accuracy, "direct": self.direct}
        return found if self.coverage is None else found | {"coverage": self.coverage}

    def means(self, measure: str, halting: int = 0) -> Floats:
        """Mean measure `[M, N]` over all puzzles, under the first selector where one takes part."""
        means: Floats = column_means(self.slice(measure, halting).values)[..., 0]
        return means

    @property
    def single_accuracy(self) -> Floats:
        """Share of right trajectories, `[H, M]`: what stands beside every coverage as its precision."""
        single: Floats = column_means(self.passes)[..., 0]
        return single

    @property
    def one_answer_ceiling(self) -> float:
        """Coverage that no system of one answer exceeds: the mean of 1 / solutions over puzzles; NaN where unknown."""
        if self.solutions is None or not (self.solutions > 0).any():
            return math.nan
        return float((1 / self.solutions[self.solutions > 0]).mean())


def _could_cover(solutions: Floats, width: int) -> bool:
    """Whether `width` answers could be a share of the solutions `[P]` that is worth telling."""
    counted = solutions[solutions > 0]
    return not counted.size or float(np.minimum(1, width / counted).mean()) >= LEAST_COVERABLE


def slice_of(outcomes: Mapping[str, NDArray[Any]], grid: Grid, measure: str, halting: int) -> Slice:
    """What is compared of the outcomes by puzzle (`outcomes.py`)."""
    name, clusters = grid.haltings[halting], outcomes["groups"]
    if measure == "coverage":
        return Slice(outcomes["coverage"][:, halting, ..., None], None, clusters, (None,), name)
    values, direct = (outcomes[key][:, halting] for key in ("accuracy", "direct"))
    return Slice(values, direct, clusters, grid.selectors, name)


def columns_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """One column for each cell, `[P, C]`."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def column_means(values: NDArray[np.float32]) -> Floats:
    """Mean over puzzles of each cell; NaN without puzzles."""
    means: Floats = values.mean(axis=0, dtype=np.float64) if len(values) else np.full(values.shape[1:], np.nan)
    return means
