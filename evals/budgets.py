"""Matched budgets: the best depth-only, width-only and mixed cell that a budget pays for, chosen on one half of the
puzzles, scored on the other, and compared puzzle by puzzle. Both halves do both (cross-fitting): each puzzle is scored
with the cell that the other half chose. No measuring here, and no sentence (`verdict.py`).

A price is whatever budgets are matched by: measured latency or counted arithmetic. `depth`: one trajectory, any depth.
`width`: any width at the depth the checkpoint was trained for. `mixed`: several trajectories at any other depth.

Shapes: `P` puzzles, `M` depths, `N` widths, `S` selectors of one halting rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals import statistics
from gram.evals.cells import Grid
from gram.evals.columns import clustered_intervals, paired_differences

FAMILIES = ("depth", "width", "mixed")
CONTRASTS = (("width", "depth"), ("mixed", "depth"), ("mixed", "width"))
"""Families compared at each budget, the first less the second."""
TOLERANCE = 1.05
"""A cell fits a budget that is this much smaller than its price: medians of latency are no surer than that."""
ALPHA = 0.05
Floats = NDArray[np.float64]
Place = tuple[int, int, int]
"""Indices of depth, width and selector."""
Pick = tuple[Place, Place]
"""Cells chosen on the first and on the second half; each scores the half that did not choose it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What is compared: one halting rule's cells by puzzle."""

    values: NDArray[np.float32]
    """The measure, `[P, M, N, S]`; `S` is 1 where no selector takes part (coverage)."""
    direct: NDArray[np.bool_] | None
    """Verdicts of a direct run in the same shape, for McNemar's test; None where the measure is no verdict."""
    groups: NDArray[np.int64]
    """Base of each puzzle `[P]`."""
    selectors: tuple[str | None, ...]
    halting: str


class Judge:
    """Compares cells of a slice; equal comparisons are made once."""

    def __init__(self, grid: Grid, part: Slice, *, seed: int = 0, resamples: int = 10_000) -> None:
        self.grid, self.part, self.seed, self.resamples = grid, part, seed, resamples
        self.is_first = halves(part.groups, seed)
        """Whether each puzzle `[P]` is of the first half."""
        self.means: list[Floats] = []
        """Mean of every cell on each half, `[M, N, S]`."""
        for half in (self.is_first, ~self.is_first):
            values = part.values[half]
            self.means.append(
                values.mean(axis=0, dtype=np.float64) if len(values) else np.full(part.values.shape[1:], np.nan)
            )
        self._compared: dict[tuple[Pick, Pick], dict[str, Any]] = {}
        self._described: dict[Pick, tuple[float, float, float]] = {}

    def choose(self, family: str, price: Floats, budget: float) -> Pick | None:
        """The cells `(m, n, s)` of a family with the best mean on the first and on the second half that the budget
        pays for.

        `price [M, N]`; NaN is not for sale. Ties go to the cheaper, then the narrower cell. None where nothing fits.
        """
        first, second = (self._best(means, family, price, budget) for means in self.means)
        return None if first is None or second is None else (first, second)

    def _best(self, means: Floats, family: str, price: Floats, budget: float) -> Place | None:
        is_offered = family_mask(self.grid, family) & (price <= budget * TOLERANCE) & np.isfinite(means).all(-1)
        offers = [
            (-round(float(means[m, n, s]), 9), float(price[m, n]), int(n), int(m), s)
            for m, n in np.argwhere(is_offered)
            for s in range(1 if self.grid.widths[n] == 1 else means.shape[2])
        ]
        if not offers:
            return None
        _, _, n, m, s = min(offers)
        return m, n, s

    def scores(self, pick: Pick, table: NDArray[Any] | None = None) -> NDArray[Any]:
        """The measure `[P]` (or another `table [P, M, N, S]`) of each puzzle in the cell that the other half chose."""
        values = self.part.values if table is None else table
        return np.where(self.is_first, values[:, *pick[1]], values[:, *pick[0]])

    def describe(self, pick: Pick, price: Floats) -> dict[str, Any]:
        """The cell that the first half chose, that of the second where it is another, and their score, as JSON."""
        if pick not in self._described:
            scores = self.scores(pick)
            low, high = clustered_intervals(scores[:, None], self.part.groups, seed=self.seed)[0].tolist()
            self._described[pick] = (float(scores.mean(dtype=np.float64)) if len(scores) else math.nan, low, high)
        value, low, high = self._described[pick]
        first, second = (self._cell(cell, price) for cell in pick)
        return {**first, "other_half": second if second != first else None, "value": value, "low": low, "high": high}

    def _cell(self, cell: Place, price: Floats) -> dict[str, Any]:
        m, n, s = cell
        return {
            "width": self.grid.widths[n],
            "depth": self.grid.depths[m],
            "selector": None if self.grid.widths[n] == 1 else self.part.selectors[s],
            "price": float(price[m, n]),
        }

    def compare(self, pairs: Sequence[tuple[Pick, Pick]]) -> list[dict[str, Any]]:
        """For each pair of picks, the first less the second: difference with its interval, p-value, McNemar's test."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._compared]
        groups = self.part.groups
        first, second = (
            np.stack([self.scores(pair[side]) for pair in new], axis=1) if new else np.zeros((len(groups), 0))
            for side in (0, 1)
        )
        found = paired_differences(first, second, groups, seed=self.seed, resamples=self.resamples)
        for place, (a, b) in enumerate(new):
            one: dict[str, Any] = {
                "difference": float(found.estimate[place]),
                "low": float(found.low[place]),
                "high": float(found.high[place]),
                "p_value": float(found.p_value[place]),
                "bases": len(np.unique(groups)),
                "is_same_cell": a == b,
            }
            if self.part.direct is not None:
                test = statistics.mcnemar(self.scores(a, self.part.direct), self.scores(b, self.part.direct))
                one["mcnemar"] = {"p_value": test.p_value, "only_first": test.only_a, "only_second": test.only_b}
            self._compared[a, b] = one
        return [dict(self._compared[pair]) for pair in pairs]


def halves(groups: NDArray[np.int64], seed: int = 0) -> NDArray[np.bool_]:
    """Whether each puzzle `[P]` is of the first half. A base is never split; the halves differ by one base at most
    in number of bases."""
    bases, of_base = np.unique(groups, return_inverse=True)
    is_first = np.zeros(bases.size, dtype=bool)
    is_first[np.random.default_rng(seed).permutation(bases.size)[: bases.size // 2]] = True
    halved: NDArray[np.bool_] = is_first[of_base.reshape(-1)]
    return halved


def family_mask(grid: Grid, family: str) -> NDArray[np.bool_]:
    """Cells `[M, N]` of a family. Raises `ValueError` for an unknown one."""
    depth, width = np.array(grid.depths)[:, None], np.array(grid.widths)[None]
    masks: dict[str, NDArray[np.bool_]] = {
        "depth": (width == 1) & (depth > 0),
        "width": (depth == grid.trained_depth) & (width > 0),
        "mixed": (width > 1) & (depth != grid.trained_depth),
    }
    if family in masks:
        return masks[family]
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")


def budgets_of(grid: Grid, price: Floats) -> list[float]:
    """Budgets to match: the price of one trajectory at the trained depth, doubled until the dearest cell fits."""
    start = float(price[grid.depths.index(grid.trained_depth), 0])
    dearest = float(np.nanmax(price)) if np.isfinite(price).any() else math.nan
    if not (start > 0 and math.isfinite(dearest)):
        return []
    budgets = [start]
    while budgets[-1] * TOLERANCE < dearest:
        budgets.append(budgets[-1] * 2)
    return budgets


def matched(judge: Judge, price: Floats, budgets: list[float] | None = None) -> list[dict[str, Any]]:
    """One row per budget: the best cell of each family, scored, and the contrasts with Holm's correction over budgets.

    `price [M, N]` of the judge's halting rule. A contrast's `verdict` names the family that is ahead, or says
    `not told apart` (the interval holds zero, or the corrected p-value is no smaller than .05), `same cell`, or
    `nothing to compare` where one family has no cell that fits.
    """
    rows: list[dict[str, Any]] = []
    chosen: list[dict[str, Pick | None]] = []
    for budget in budgets if budgets is not None else budgets_of(judge.grid, price):
        cells = {family: judge.choose(family, price, budget) for family in FAMILIES}
        chosen.append(cells)
        described = {family: None if cell is None else judge.describe(cell, price) for family, cell in cells.items()}
        nothing = {f"{a}-{b}": {"verdict": "nothing to compare"} for a, b in CONTRASTS}
        rows.append({"budget": budget, "halting": judge.part.halting, **described, "contrasts": nothing})
    pairs = {
        (place, a, b): (first, second)
        for place, cells in enumerate(chosen)
        for a, b in CONTRASTS
        if (first := cells[a]) is not None and (second := cells[b]) is not None
    }
    compared = dict(zip(pairs, judge.compare(list(pairs.values())), strict=True))
    for a, b in CONTRASTS:
        found = [compared.get((place, a, b)) for place in range(len(rows))]
        p_values = [math.nan if each is None or each["is_same_cell"] else each["p_value"] for each in found]
        for row, each, corrected in zip(rows, found, statistics.holm(p_values), strict=True):
            if each is not None:
                each["p_holm"] = float(corrected)
                row["contrasts"][f"{a}-{b}"] = each | {"verdict": _ahead(each, a, b)}
    return rows


def _ahead(found: dict[str, Any], first: str, second: str) -> str:
    if found["is_same_cell"]:
        return "same cell"
    if found["p_holm"] < ALPHA and found["low"] > 0:
        return first
    if found["p_holm"] < ALPHA and found["high"] < 0:
        return second
    return "not told apart"
