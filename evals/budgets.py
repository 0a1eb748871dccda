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
from typing import Any, NamedTuple

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
    """Chooses cells of a slice on each half of the puzzles; `matched_together` scores and compares them."""

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

    def cells(self, pick: Pick, price: Floats) -> dict[str, Any]:
        """The cell that the first half chose and, where it is another, that of the second, as JSON."""
        first, second = (self._cell(cell, price) for cell in pick)
        return {**first, "other_half": second if second != first else None}

    def _cell(self, cell: Place, price: Floats) -> dict[str, Any]:
        m, n, s = cell
        return {
            "width": self.grid.widths[n],
            "depth": self.grid.depths[m],
            "selector": None if self.grid.widths[n] == 1 else self.part.selectors[s],
            "price": float(price[m, n]),
        }


class Question(NamedTuple):
    """What to match: a judge's cells by a price."""

    judge: Judge
    price: Floats
    """`[M, N]`; NaN is not for sale."""
    budgets: list[float]


Scored = tuple[Judge, Pick]


def score(scored: Sequence[Scored]) -> list[dict[str, float]]:
    """Mean of each pick's scores with its 95 % interval. All judges are of the same puzzles: they share their draws."""
    new = list(dict.fromkeys(scored))
    if not new:
        return []
    columns = np.stack([judge.scores(pick) for judge, pick in new], axis=1)
    intervals = clustered_intervals(columns, new[0][0].part.groups, seed=new[0][0].seed)
    found = {}
    for place, (each, (low, high)) in enumerate(zip(new, intervals.tolist(), strict=True)):
        mean = float(columns[:, place].mean(dtype=np.float64)) if len(columns) else math.nan
        found[each] = {"value": mean, "low": low, "high": high}
    return [found[each] for each in scored]


def contrast(pairs: Sequence[tuple[Scored, Scored]]) -> list[dict[str, Any]]:
    """For each pair of picks, the first less the second: difference with its interval, p-value, McNemar's test.

    All judges are of the same puzzles: equal pairs are compared once, and all share their draws.
    """
    new = list(dict.fromkeys(pairs))
    if not new:
        return []
    judge = new[0][0][0]
    groups = judge.part.groups
    first, second = (np.stack([pair[side][0].scores(pair[side][1]) for pair in new], axis=1) for side in (0, 1))
    found = paired_differences(first, second, groups, seed=judge.seed, resamples=judge.resamples)
    compared = {}
    for place, ((one, a), (two, b)) in enumerate(new):
        made: dict[str, Any] = {
            "difference": float(found.estimate[place]),
            "low": float(found.low[place]),
            "high": float(found.high[place]),
            "p_value": float(found.p_value[place]),
            "bases": len(np.unique(groups)),
            "is_same_cell": one is two and a == b,
        }
        if one.part.direct is not None and two.part.direct is not None:
            test = statistics.mcnemar(one.scores(a, one.part.direct), two.scores(b, two.part.direct))
            made["mcnemar"] = {"p_value": test.p_value, "only_first": test.only_a, "only_second": test.only_b}
        compared[new[place]] = made
    return [dict(compared[pair]) for pair in pairs]


def halves(groups: NDArray[np.int64], seed: int = 0) -> NDArray[np.bool_]:
    """Whether each puzzle `[P]` is of the first half. A base is never split; the halves differ by one base at most
    in number of bases."""
    bases, of_base = np.unique(groups, return_inverse=True)
    is_first = np.zeros(bases.size, dtype=bool)
    is_first[np.random.default_rng(seed).permutation(bases.size)[: bases.size // 2]] = True
    halved: NDArray[np.bool_] = is_first[of_base.reshape(-1)]
    return halved


def family_mask(grid: Grid, family: str) -> NDArray[np.bool_]:
    """Cells `[M, N]` of a family, or of `any`. Raises `ValueError` for an unknown one."""
    depth, width = np.array(grid.depths)[:, None], np.array(grid.widths)[None]
    masks: dict[str, NDArray[np.bool_]] = {
        "depth": (width == 1) & (depth > 0),
        "width": (depth == grid.trained_depth) & (width > 0),
        "mixed": (width > 1) & (depth != grid.trained_depth),
        "any": (width > 0) & (depth > 0),
    }
    if family in masks:
        return masks[family]
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")


def budgets_of(grid: Grid, price: Floats) -> list[float]:
    """Budgets to match: the price of one trajectory at the trained depth, doubled until the dearest cell fits."""
    return shared_budgets([price], [float(price[grid.depths.index(grid.trained_depth), 0])])


def shared_budgets(prices: Sequence[Floats], starts: Sequence[float]) -> list[float]:
    """Budgets that every checkpoint can afford: the dearest of their `starts` (one trajectory at the trained depth),
    doubled until every cell fits."""
    dearest = max(float(np.nanmax(price)) if np.isfinite(price).any() else math.nan for price in prices)
    start = max(starts)
    if not all(each > 0 for each in starts) or not math.isfinite(dearest):
        return []
    budgets = [start]
    while budgets[-1] * TOLERANCE < dearest:
        budgets.append(budgets[-1] * 2)
    return budgets


def matched(judge: Judge, price: Floats, budgets: list[float] | None = None) -> list[dict[str, Any]]:
    """`matched_together` of one judge and price; `budgets` left out: those of `budgets_of`."""
    wanted = budgets if budgets is not None else budgets_of(judge.grid, price)
    return matched_together([Question(judge, price, wanted)])[0]


def matched_together(questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
    """For each question one row per budget: the best cell of each family, scored, and the contrasts with Holm's
    correction over the question's budgets.

    All judges must be of the same puzzles, groups and seed: their cells then share one set of random draws, which is
    what scoring and comparing take the time for. A contrast's `verdict` names the family that is ahead, or says
    `not told apart` (the interval holds zero, or the corrected p-value is no smaller than .05), `same cell`, or
    `nothing to compare` where one family has no cell that fits.
    """
    chosen: dict[tuple[int, int, str], Scored] = {}
    for number, (judge, price, budgets) in enumerate(questions):
        for place, budget in enumerate(budgets):
            for family in FAMILIES:
                if (pick := judge.choose(family, price, budget)) is not None:
                    chosen[number, place, family] = judge, pick
    scores = dict(zip(chosen, score(list(chosen.values())), strict=True))
    pairs = {
        (number, place, a, b): (chosen[number, place, a], chosen[number, place, b])
        for number, question in enumerate(questions)
        for place in range(len(question.budgets))
        for a, b in CONTRASTS
        if (number, place, a) in chosen and (number, place, b) in chosen
    }
    compared = dict(zip(pairs, contrast(list(pairs.values())), strict=True))
    answers = []
    for number, (judge, price, budgets) in enumerate(questions):
        rows: list[dict[str, Any]] = []
        for place, budget in enumerate(budgets):
            described = {
                family: {**judge.cells(chosen[key][1], price), **scores[key]}
                if (key := (number, place, family)) in chosen
                else None
                for family in FAMILIES
            }
            nothing = {f"{a}-{b}": {"verdict": "nothing to compare"} for a, b in CONTRASTS}
            rows.append({"budget": budget, "halting": judge.part.halting, **described, "contrasts": nothing})
        for a, b in CONTRASTS:
            found = [compared.get((number, place, a, b)) for place in range(len(rows))]
            for row, each in zip(rows, corrected(found), strict=True):
                if each is not None:
                    row["contrasts"][f"{a}-{b}"] = each | {"verdict": ahead(each, a, b)}
        answers.append(rows)
    return answers


def corrected(found: Sequence[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """Contrasts with `p_holm`: corrected over all of them, a cell's with itself left out."""
    p_values = [math.nan if each is None or each["is_same_cell"] else each["p_value"] for each in found]
    adjusted = statistics.holm(p_values)
    return [None if each is None else {**each, "p_holm": float(p)} for each, p in zip(found, adjusted, strict=True)]


def ahead(found: dict[str, Any], first: str, second: str) -> str:
    """Which of two is ahead by a contrast with `p_holm`, or why neither."""
    if found["is_same_cell"]:
        return "same cell"
    if found["p_holm"] < ALPHA and found["low"] > 0:
        return first
    if found["p_holm"] < ALPHA and found["high"] < 0:
        return second
    return "not told apart"
