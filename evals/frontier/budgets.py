"""Matched budgets: the best depth-only, width-only, mixed and restarted cell that a budget pays for, chosen on one half
of the puzzles, scored on the other, and compared puzzle by puzzle. Both halves do both (cross-fitting): each puzzle is
scored with the cell that the other half chose (`choice.py`). No measuring here, and no sentence (`verdict.py`).

Prices that were measured are drawn anew: draw `r` of the timings chooses its own cells, and a difference is tested over
all draws, so its interval holds the noise of the choice too. The same two cells under several budgets are one
comparison: tested once, counted once.

Shapes: `P` puzzles, `M` depths, `N` widths, `R` draws of the timings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals import statistics
from gram.evals.frontier.choice import FAMILIES, TOLERANCE, Choice, Floats, Judge, Pick, Price
from gram.evals.frontier.grid import Grid
from gram.evals.paired import paired_differences

CONTRASTS = (("width", "depth"), ("mixed", "depth"), ("mixed", "width"), ("width", "restarts"))
"""Families compared at each budget, the first minus the second."""
HEADLINE = 4.0
"""The verdict speaks of this many times the price of one trajectory at the trained depth: fixed beforehand, so that no
budget is picked for its result."""
ALPHA = 0.05
UNDECIDED = "not told apart"
"""What `frontier.json` says of a difference that is not significant."""


class Question(NamedTuple):
    """What to match: a judge's cells by a price, under one selector."""

    judge: Judge
    price: Price
    budgets: list[float]
    selector: int = 0
    is_relative: bool = True
    """Whether the budgets are multiples of one trajectory's price, and so move with its draws."""

    @property
    def scale(self) -> Floats | None:
        """What each draw of the timings multiplies a budget by, `[R]`."""
        if self.price.draws is None or not self.is_relative:
            return None
        trained = self.judge.grid.depths.index(self.judge.grid.trained_depth)
        return np.asarray(self.price.draws[:, trained, 0] / self.price.mean[trained, 0])


Scored = tuple[Judge, Choice]
Column = tuple[Judge, Pick, Judge, Pick]
"""Two picks whose difference is taken by puzzle."""


def score(scored: Sequence[Scored]) -> list[dict[str, float]]:
    """Mean of each choice's scores with its 95 % interval. All judges are of the same puzzles."""
    new = list(dict.fromkeys((judge, choice.pick) for judge, choice in scored))
    if not new:
        return []
    columns = np.stack([judge.scores(pick) for judge, pick in new], axis=1)
    intervals = statistics.clustered_intervals(columns, new[0][0].part.clusters)
    found = {}
    for place, (each, (low, high)) in enumerate(zip(new, intervals.tolist(), strict=True)):
        mean = float(columns[:, place].mean(dtype=np.float64)) if len(columns) else math.nan
        found[each] = {"value": mean, "low": low, "high": high}
    return [found[judge, choice.pick] for judge, choice in scored]


def contrast(pairs: Sequence[tuple[Scored, Scored]]) -> list[dict[str, Any]]:
    """For each pair of choices, the first minus the second: difference, interval, p-value, and who alone is right.

    All judges are of the same puzzles: equal pairs are compared once, and all share their draws. `comparison` is the
    same number for pairs of the same cells.
    """
    new = list(dict.fromkeys(pairs))
    if not new:
        return []
    columns: dict[Column, int] = {}
    of = [columns.setdefault((one, a.pick, two, b.pick), len(columns)) for (one, a), (two, b) in new]
    drawn = [_drawn(pair, columns) for pair in new]
    judge = new[0][0][0]
    first = np.stack([one.scores(pick) for one, pick, _, _ in columns], axis=1)
    second = np.stack([two.scores(pick) for _, _, two, pick in columns], axis=1)
    found = paired_differences(first, second, judge.part.clusters, wanted=of, drawn=drawn)
    compared = {}
    for place, pair in enumerate(new):
        (one, a), (two, b) = pair
        made: dict[str, Any] = {
            "difference": float(found.estimate[place]),
            "low": float(found.low[place]),
            "high": float(found.high[place]),
            "p_value": float(found.p_value[place]),
            "bases": len(np.unique(judge.part.clusters)),
            "is_same_cell": one is two and a.pick == b.pick,
            "comparison": of[place],
            "choice_changes": float((drawn[place] != of[place]).mean()) if drawn[place].size else 0.0,
        }
        if one.part.direct is not None and two.part.direct is not None:
            is_right, others = one.scores(a.pick, one.part.direct), two.scores(b.pick, two.part.direct)
            made["only_first"], made["only_second"] = int((is_right & ~others).sum()), int((others & ~is_right).sum())
        compared[pair] = made
    return [dict(compared[pair]) for pair in pairs]


def _drawn(pair: tuple[Scored, Scored], columns: dict[Column, int]) -> NDArray[np.int64]:
    """The column that each draw of the timings compares, `[R]`; new ones are added."""
    (one, a), (two, b) = pair
    draws = max(len(a.drawn), len(b.drawn))
    places = [np.array(each.drawn or [0] * draws, dtype=np.int64) for each in (a, b)]
    codes, inverse = np.unique(places[0] * len(b.picks) + places[1], return_inverse=True)
    made = [
        columns.setdefault((one, a.picks[code // len(b.picks)], two, b.picks[code % len(b.picks)]), len(columns))
        for code in codes.tolist()
    ]
    found: NDArray[np.int64] = np.array(made, dtype=np.int64)[inverse.reshape(-1)]
    return found


def budgets_of(grid: Grid, price: Floats) -> list[float]:
    """Budgets to match: the price of one trajectory at the trained depth, doubled until the dearest cell fits."""
    return shared_budgets([price], [float(price[grid.depths.index(grid.trained_depth), 0])])


def shared_budgets(prices: Sequence[Floats], starts: Sequence[float]) -> list[float]:
    """Budgets that every checkpoint can afford: the dearest of their `starts` (one trajectory at the trained depth),
    doubled up to the headline's at least, and until every cell fits."""
    dearest = max(float(np.nanmax(price)) if np.isfinite(price).any() else math.nan for price in prices)
    start = max(starts)
    if not all(each > 0 for each in starts) or not math.isfinite(dearest):
        return []
    budgets = [start]
    while budgets[-1] * TOLERANCE < max(dearest, HEADLINE * start):
        budgets.append(budgets[-1] * 2)
    return budgets


def matched_together(questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
    """For each question one row per budget: the best cell of each family, scored, and the contrasts with Holm's
    correction over the question's comparisons.

    All judges must be of the same puzzles, clusters and seed: their cells then share one set of random draws, which is
    what scoring and comparing take the time for. A contrast's `verdict` names the family that is ahead, or says
    `not told apart` (the interval holds zero, or the corrected p-value is no smaller than .05), `same cell`, or
    `nothing to compare` where one family has no cell that fits.
    """
    chosen: dict[tuple[int, int, str], Scored] = {}
    for number, question in enumerate(questions):
        judge, price, budgets, selector, _ = question
        choices = {
            family: judge.choices(family, price, budgets, selector=selector, scale=question.scale)
            for family in FAMILIES
        }
        for place in range(len(budgets)):
            for family in FAMILIES:
                choice = choices[family][place]
                if choice is not None:
                    chosen[number, place, family] = judge, choice
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
    for number, (judge, price, budgets, _, _) in enumerate(questions):
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
    """Contrasts with `p_holm`: corrected over the comparisons among them, a cell's with itself left out.

    Contrasts of the same cells are one comparison: they get the widest interval of theirs and the largest p-value
    (their draws of the timings may differ), and a number of their own, from 0.
    """
    clusters: dict[int, list[dict[str, Any]]] = {}
    for each in found:
        if each is not None:
            clusters.setdefault(each["comparison"], []).append(each)
    p_values = [
        math.nan if some[0]["is_same_cell"] else max(each["p_value"] for each in some) for some in clusters.values()
    ]
    adjusted = statistics.holm(p_values)
    shared = {
        comparison: {
            "low": min(each["low"] for each in some),
            "high": max(each["high"] for each in some),
            "p_value": max(each["p_value"] for each in some),
            "p_holm": float(p),
            "comparison": number,
        }
        for number, ((comparison, some), p) in enumerate(zip(clusters.items(), adjusted, strict=True))
    }
    return [None if each is None else each | shared[each["comparison"]] for each in found]


def ahead(found: dict[str, Any], first: str, second: str) -> str:
    """Which of two is ahead by a contrast with `p_holm`, or why neither."""
    if found["is_same_cell"]:
        return "same cell"
    if found["p_holm"] < ALPHA and found["low"] > 0:
        return first
    if found["p_holm"] < ALPHA and found["high"] < 0:
        return second
    return UNDECIDED
