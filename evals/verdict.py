"""What a report says first: the verdict with its interval, and the figures that explain it. From tables, not traces.

Points are hundredths of the measure. Undefined figures are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.cells import Grid

Floats = NDArray[np.float64]
HEADLINE = 4.0
"""The verdict speaks of this many times the latency of one trajectory at the trained depth: fixed beforehand, so that
no budget is picked for its result."""


def verdict(rows: Sequence[dict[str, Any]], *, measure: str, unit: str) -> dict[str, Any]:
    """The verdict on matched budgets (`budgets.matched`): `sentence`, `winner`, and the row it speaks of.

    `unit` is `ms` (latency), `J` or `MACs`. The row is that of `HEADLINE` times the first budget, or
    the last one below.
    """
    if not rows:
        return {
            "sentence": "No verdict: no budget could be matched.",
            "winner": None,
            "budget": None,
            "counts": {},
            "break_even": math.nan,
        }
    row = [each for each in rows if each["budget"] <= HEADLINE * rows[0]["budget"] * 1.01][-1]
    found = row["contrasts"]["width-depth"]
    counts = {"width": 0, "depth": 0, "not told apart": 0, "same cell": 0, "nothing to compare": 0}
    for each in rows:
        counts[each["contrasts"]["width-depth"]["verdict"]] += 1
    return {
        "sentence": f"{_claim(row, found, rows, measure, unit)} {_tally(counts, len(rows))}",
        "winner": found["verdict"] if found["verdict"] in ("width", "depth") else None,
        "budget": row["budget"],
        "counts": counts,
        "difference": found.get("difference", math.nan),
        "low": found.get("low", math.nan),
        "high": found.get("high", math.nan),
        "width": row["width"],
        "depth": row["depth"],
        "mixed": row["mixed"],
        "break_even": break_even(rows),
    }


def break_even(rows: Sequence[dict[str, Any]], first: str = "width", second: str = "depth") -> float:
    """The smallest budget from which on `first` is ahead of `second` at every larger one; NaN where there is none."""
    from_here = math.nan
    for row in reversed(rows):
        if row["contrasts"][f"{first}-{second}"]["verdict"] != first:
            break
        from_here = row["budget"]
    return from_here


def exchange_rates(grid: Grid, means: Floats) -> list[dict[str, Any]]:
    """How many doublings of depth buy what one doubling of width buys, starting from each depth with one trajectory.

    `means [M, N]`: the measure of the best selector. Interpolated on the logarithm of depth. `doublings` is infinite
    where no depth of the grid reaches it, 0 where width buys nothing, NaN where width 2 is not in the grid.
    """
    if 2 not in grid.widths:
        return []
    wide, logs = means[:, grid.widths.index(2)], np.log2(np.array(grid.depths, dtype=np.float64))
    rates = []
    for m, depth in enumerate(grid.depths[:-1]):
        start, goal = float(means[m, 0]), float(wide[m])
        rates.append(
            {
                "depth": depth,
                "start": start,
                "gain_of_width": goal - start,
                "gain_of_depth": float(np.interp(logs[m] + 1, logs, means[:, 0])) - start,
                "doublings": _reach(logs[m:] - logs[m], means[m:, 0], goal),
            }
        )
    return rates


def _reach(doublings: Floats, curve: Floats, goal: float) -> float:
    """Where the curve first reaches the goal."""
    if not math.isfinite(goal):
        return math.nan
    if curve[0] >= goal - 1e-9:
        return 0.0
    for place in range(1, len(curve)):
        if curve[place] >= goal:
            rise = curve[place] - curve[place - 1]
            share = (goal - curve[place - 1]) / rise if rise > 0 else 1.0
            return float(doublings[place - 1] + share * (doublings[place] - doublings[place - 1]))
    return math.inf


def saturation_width(widths: Sequence[int], latency: Floats, factor: float = 2.0) -> float:
    """Width at which latency `[N]` reaches `factor` times that of one trajectory, interpolated on logarithms.

    Infinite where the grid's largest width stays below it; NaN where latency is unknown.
    """
    if not np.isfinite(latency).all():
        return math.nan
    goal = factor * latency[0]
    for place in range(1, len(widths)):
        if latency[place] >= goal:
            low, high = math.log(max(latency[place - 1], 1e-12)), math.log(latency[place])
            share = (math.log(goal) - low) / (high - low) if high > low else 1.0
            near, far = math.log2(widths[place - 1]), math.log2(widths[place])
            return float(2 ** (near + min(max(share, 0.0), 1.0) * (far - near)))
    return math.inf


def _claim(row: dict[str, Any], found: dict[str, Any], rows: Sequence[dict[str, Any]], measure: str, unit: str) -> str:
    """The sentence's first part."""
    times = row["budget"] / rows[0]["budget"]
    start = f"At {amount(row['budget'], unit)}"
    start += " (one trajectory at the trained depth)" if times < 1.01 else f" ({times:.0f} times one trajectory)"
    if found["verdict"] == "nothing to compare":
        return f"{start}, nothing can be compared."
    width, depth = row["width"], row["depth"]
    if found["verdict"] == "same cell":
        return f"{start}, the best width-only and depth-only cells are the same: {cell_words(width)}."
    points = f"{100 * abs(found['difference']):.1f} points"
    low, high = 100 * found["low"], 100 * found["high"]
    if found["verdict"] == "not told apart":
        cells = f"{reached(width, 'give')}, {cell_words(depth)} {100 * depth['value']:.1f} %"
        return (
            f"{start}, width and depth are not told apart in {measure}: {cells}, a difference of "
            f"{100 * found['difference']:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}){_doubt(found)}."
        )
    winner, loser = (width, depth) if found["verdict"] == "width" else (depth, width)
    if found["verdict"] == "depth":
        low, high = -high, -low
    return (
        f"{start}, {found['verdict']} gives {points} more {measure} (95 % interval {low:.1f} to {high:.1f}): "
        f"{reached(winner, 'reach')}, {cell_words(loser)} {100 * loser['value']:.1f} %."
    )


def _doubt(found: dict[str, Any]) -> str:
    """Why a difference does not count whose interval leaves out zero."""
    if found["low"] <= 0 <= found["high"]:
        return ""
    bases = f" on {found['bases']} bases" if found.get("bases") else ""
    return f", whose p-value{bases} is {found['p_holm']:.2g} after Holm's correction"


def _tally(counts: dict[str, int], rows: int) -> str:
    """The sentence's second part: all budgets."""
    parts = [f"width is ahead at {counts['width']}", f"depth at {counts['depth']}"]
    for verdict, words in (("not told apart", "not told apart at"), ("same cell", "the same cell at")):
        if counts[verdict]:
            parts.append(f"{words} {counts[verdict]}")
    return f"Of {rows} budget{'s' if rows != 1 else ''}: {', '.join(parts)}."


def reached(cell: dict[str, Any], verb: str) -> str:
    """A chosen cell and its value, with a verb that agrees with it."""
    is_one = (cell.get("other_half") or cell)["width"] == 1
    ending = "" if not is_one else "es" if verb.endswith("ch") else "s"
    return f"{cell_words(cell)} {verb}{ending} {100 * cell['value']:.1f} %"


def cell_words(cell: dict[str, Any]) -> str:
    """A chosen cell in words."""
    other = cell.get("other_half")
    if other is not None:
        return f"{cell_words({**cell, 'other_half': None})} or, on the other half, {cell_words(other)},"
    steps = f"{cell['depth']} step{'s' if cell['depth'] != 1 else ''}"
    if cell["width"] == 1:
        return f"one trajectory of {steps}"
    chosen = f" ({cell['selector']})" if cell["selector"] else ""
    return f"{cell['width']} trajectories of {steps}{chosen}"


def amount(value: float, unit: str) -> str:
    """A budget in words."""
    if unit == "J":
        return f"{value:.3g} J a puzzle"
    if unit == "ms":
        return f"{value:.3g} ms a puzzle" if value < 1000 else f"{value / 1000:.3g} s a puzzle"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}MACs a puzzle"
    return f"{value:.3g} MACs a puzzle"
