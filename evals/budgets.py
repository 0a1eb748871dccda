"""Matched budgets: the best depth-only, width-only and mixed cell that a budget pays for, chosen on one half of the
puzzles, scored on the other, and compared puzzle by puzzle. No measuring here, and no sentence (`verdict.py`).

A price is whatever budgets are matched by: measured latency or counted arithmetic. `depth`: one trajectory, any depth.
`width`: any width at the depth the checkpoint was trained for. `mixed`: several trajectories at any other depth.

Shapes: `P` puzzles, `M` depths, `N` widths, `S` selectors of one halting rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals import statistics
from gram.evals.cells import Grid

FAMILIES = ("depth", "width", "mixed")
CONTRASTS = (("width", "depth"), ("mixed", "depth"), ("mixed", "width"))
"""Families compared at each budget, the first less the second."""
TOLERANCE = 1.05
"""A cell fits a budget that is this much smaller than its price: medians of latency are no surer than that."""
ALPHA = 0.05
Floats = NDArray[np.float64]


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
        self.chooses = halves(part.groups, seed)
        """Puzzles `[P]` on which cells are chosen; the others score them."""
        chosen = part.values[self.chooses]
        self.means: Floats = (
            chosen.mean(axis=0, dtype=np.float64) if len(chosen) else np.full(part.values.shape[1:], np.nan)
        )
        self._compared: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[str, Any]] = {}
        self._scored: dict[tuple[int, ...], dict[str, Any]] = {}

    def choose(self, family: str, price: Floats, budget: float) -> tuple[int, int, int] | None:
        """The cell `(m, n, s)` of a family with the best mean on the choosing half that the budget pays for.

        `price [M, N]`; NaN is not for sale. Ties go to the cheaper, then the narrower cell. None where nothing fits.
        """
        is_offered = family_mask(self.grid, family) & (price <= budget * TOLERANCE) & np.isfinite(self.means).all(-1)
        offers = [
            (-round(float(self.means[m, n, s]), 9), float(price[m, n]), int(n), int(m), s)
            for m, n in np.argwhere(is_offered)
            for s in range(1 if self.grid.widths[n] == 1 else self.means.shape[2])
        ]
        if not offers:
            return None
        _, _, n, m, s = min(offers)
        return m, n, s

    def describe(self, cell: tuple[int, int, int], price: Floats) -> dict[str, Any]:
        """A chosen cell with its score on the other half, as JSON values."""
        m, n, s = cell
        if cell not in self._scored:
            values, groups = self.part.values[~self.chooses, m, n, s], self.part.groups[~self.chooses]
            low, high = statistics.clustered_interval(values, groups, seed=self.seed, resamples=self.resamples)
            mean = float(values.mean(dtype=np.float64)) if len(values) else math.nan
            self._scored[cell] = {"value": mean, "low": low, "high": high}
        return {
            "width": self.grid.widths[n],
            "depth": self.grid.depths[m],
            "selector": None if self.grid.widths[n] == 1 else self.part.selectors[s],
            "price": float(price[m, n]),
            **self._scored[cell],
        }

    def compare(self, a: tuple[int, int, int], b: tuple[int, int, int]) -> dict[str, Any]:
        """`a` less `b` on the scoring half: difference with its interval, p-value, McNemar's test."""
        if (a, b) not in self._compared:
            scores = ~self.chooses
            first, second = self.part.values[scores][:, *a], self.part.values[scores][:, *b]
            groups, settings = self.part.groups[scores], {"seed": self.seed}
            difference = statistics.paired_difference(first, second, groups, resamples=self.resamples, **settings)
            found: dict[str, Any] = {
                "difference": difference.estimate,
                "low": difference.low,
                "high": difference.high,
                "p_value": statistics.sign_flip_p_value(first, second, groups, **settings),
                "is_same_cell": a == b,
            }
            if self.part.direct is not None:
                verdicts = self.part.direct[scores]
                test = statistics.mcnemar(verdicts[:, *a], verdicts[:, *b])
                found["mcnemar"] = {"p_value": test.p_value, "only_first": test.only_a, "only_second": test.only_b}
            self._compared[a, b] = found
        return dict(self._compared[a, b])


def halves(groups: NDArray[np.int64], seed: int = 0) -> NDArray[np.bool_]:
    """Whether each puzzle `[P]` is of the choosing half. A base is never split; the halves differ by one base at most
    in number of bases."""
    bases, of_base = np.unique(groups, return_inverse=True)
    is_first = np.zeros(bases.size, dtype=bool)
    is_first[np.random.default_rng(seed).permutation(bases.size)[: bases.size // 2]] = True
    chooses: NDArray[np.bool_] = is_first[of_base.reshape(-1)]
    return chooses


def family_mask(grid: Grid, family: str) -> NDArray[np.bool_]:
    """Cells `[M, N]` of a family. Raises `ValueError` for an unknown one."""
    depth, width = np.array(grid.depths)[:, None], np.array(grid.widths)[None]
    every = np.ones((len(grid.depths), len(grid.widths)), dtype=bool)
    if family == "depth":
        return every & (width == 1)
    if family == "width":
        return every & (depth == grid.trained_depth)
    if family == "mixed":
        return (width > 1) & (depth != grid.trained_depth)
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
    for budget in budgets if budgets is not None else budgets_of(judge.grid, price):
        cells = {family: judge.choose(family, price, budget) for family in FAMILIES}
        row: dict[str, Any] = {"budget": budget, "halting": judge.part.halting}
        for family, cell in cells.items():
            row[family] = None if cell is None else judge.describe(cell, price)
        row["contrasts"] = {}
        for first, second in CONTRASTS:
            a, b = cells[first], cells[second]
            row["contrasts"][f"{first}-{second}"] = None if a is None or b is None else judge.compare(a, b)
        rows.append(row)
    for first, second in CONTRASTS:
        found = [row["contrasts"][f"{first}-{second}"] for row in rows]
        p_values = [math.nan if each is None or each["is_same_cell"] else each["p_value"] for each in found]
        for row, each, corrected in zip(rows, found, statistics.holm(p_values), strict=True):
            if each is None:
                row["contrasts"][f"{first}-{second}"] = {"verdict": "nothing to compare"}
            else:
                each["p_holm"] = float(corrected)
                each["verdict"] = _ahead(each, first, second)
    return rows


def _ahead(found: dict[str, Any], first: str, second: str) -> str:
    if found["is_same_cell"]:
        return "same cell"
    if found["p_holm"] < ALPHA and found["low"] > 0:
        return first
    if found["p_holm"] < ALPHA and found["high"] < 0:
        return second
    return "not told apart"
