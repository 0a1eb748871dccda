"""The heads, step by step, from traces: how well they rank, how well the halt head is calibrated, when it would stop.

Filled block by block. AUROC over all trajectories comes from a histogram of scores (`BINS` of them, scores of one bin
counting as ties); that inside puzzles is exact. Calibration is at the decile bins of probability 0 to 1.

Shapes: `p` puzzles of a block, `n` trajectories, `M` steps, `B` bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals import metrics
from gram.evals.frontier.grid import Grid, stop_steps
from gram.sampler.trace import TraceBlock

BINS = 2_000
"""Bins of the halt head's probability, a whole multiple of the calibration's ten."""


class CalibrationTally:
    """What the heads said at each supervision step, and what the verifier."""

    def __init__(self, depth: int, grid: Grid) -> None:
        self.grid, self.depth = grid, depth
        self.halt = np.zeros((depth, 2, BINS), np.int64)
        """Trajectories by verdict and bin of the halt head's probability, for each step."""
        self.stops = np.zeros((2, depth + 1), np.int64)
        """Trajectories by verdict at the end and step at which the halt head stops them; last: never."""
        self.within: dict[tuple[str, int], tuple[float, float]] = {}
        """For each head and depth: right and wrong pairs won, and pairs."""

    def add(self, block: TraceBlock) -> None:
        """Counts a block; puzzles that are padding alone are left out."""
        real = block.puzzles.any(axis=1)
        rows: Any = slice(None) if real.all() else real
        right, grid = block.is_right[rows], self.grid
        with np.errstate(over="ignore"):
            share = 1 / (1 + np.exp(-block.halt[rows][:, :, : self.depth]))
        index = np.minimum((share * BINS).astype(np.int64), BINS - 1) + BINS * right[:, :, : self.depth]
        index += 2 * BINS * np.arange(self.depth)
        self.halt += np.bincount(index.ravel(), minlength=self.halt.size).reshape(self.halt.shape)
        for depth in grid.depths:
            for name in ("halt", "lprm"):
                found = metrics.within_puzzle_auroc(getattr(block, name)[rows][:, :, depth - 1], right[:, :, depth - 1])
                if found.puzzles:
                    good = right[:, :, depth - 1].sum(axis=1, dtype=np.int64)
                    pairs = float((good * (right.shape[1] - good)).sum())
                    won, all_ = self.within.get((name, depth), (0.0, 0.0))
                    self.within[name, depth] = won + found.pooled * pairs, all_ + pairs
        stop = stop_steps(block, "head", grid.threshold("head"), grid.first_halt, slice(None))[rows]
        last = np.take_along_axis(right, (np.minimum(stop, self.depth) - 1)[..., None], axis=2)[..., 0]
        for place in (0, 1):
            self.stops[place] += np.bincount(stop[last == place] - 1, minlength=self.depth + 1)

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values; undefined figures are NaN."""
        steps = []
        for step in range(self.depth):
            wrong, right = self.halt[step].astype(np.float64)
            steps.append(
                {
                    "step": step + 1,
                    "accuracy": _ratio(right.sum(), (right + wrong).sum()),
                    "halt_auroc": _auroc(right, wrong),
                    **{
                        f"{name}_auroc_within": _ratio(*self.within.get((name, step + 1), (0.0, 0.0)))
                        for name in ("halt", "lprm")
                    },
                    **_calibration(right, wrong),
                }
            )
        return {
            "threshold": self.grid.threshold("head"),
            "steps": steps,
            "stops": {
                "step": [*range(1, self.depth + 1), None],
                "wrong": self.stops[0].tolist(),
                "right": self.stops[1].tolist(),
            },
        }


def _auroc(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    """Probability that a right one's bin is above a wrong one's, the same bin counting half."""
    below = np.cumsum(wrong) - wrong
    return _ratio(float((right * (below + wrong / 2)).sum()), float(right.sum() * wrong.sum()))


def _calibration(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> dict[str, Any]:
    """Ten bins of predicted probability with the share that is right, expected calibration error and Brier score."""
    middle = (np.arange(BINS) + 0.5) / BINS
    all_ = right + wrong
    brier = float((right * (1 - middle) ** 2 + wrong * middle**2).sum())
    bins = []
    for part in np.split(np.arange(BINS), 10):
        count = float(all_[part].sum())
        bins.append(
            {
                "count": int(count),
                "predicted": _ratio(float((all_ * middle)[part].sum()), count),
                "right": _ratio(float(right[part].sum()), count),
            }
        )
    gaps = [abs(item["predicted"] - item["right"]) * item["count"] for item in bins if item["count"]]
    return {"ece": _ratio(sum(gaps), all_.sum()), "brier": _ratio(brier, all_.sum()), "bins": bins}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
