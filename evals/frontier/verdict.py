"""What a report says first: the verdict with its interval, and the figures that explain it. From tables, not traces.

Points are hundredths of the measure. Undefined figures are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier.budgets import HEADLINE, UNDECIDED
from gram.evals.frontier.choice import FAMILIES
from gram.evals.frontier.grid import Grid
from gram.formatting import amount, percent, plural, signed, span

Floats = NDArray[np.float64]
IDLE = 0.5
"""Share of its budget below which it is told how little an arm spends."""
NOISY_CHOICE = 0.2
"""Share of draws of the timings that choose other cells, from which on it is told beside the verdict."""


def verdict(rows: Sequence[dict[str, Any]], *, measure: str, unit: str, ceiling: float | None = None) -> dict[str, Any]:
    """The verdict on matched budgets (`budgets.matched_together`): `sentence`, `winner`, and the row it speaks of.

    `unit` is `ms` (latency), `J` or `MACs`. The row is that of `HEADLINE` times the first budget, or the last one
    below. `ceiling`: the measure that a system of one answer cannot exceed (coverage: the mean of 1 / solutions); what
    lies above it exists by construction, and the sentence says so.
    """
    names = ("difference", "low", "high", "p_holm")
    if not rows:
        return {
            "sentence": "No verdict: no budget could be matched.",
            **dict.fromkeys(("restarts_sentence", "winner", "budget", *FAMILIES)),
            "counts": {},
            **dict.fromkeys((*names, "choice_changes", "by_construction", "break_even"), math.nan),
            "restarts_difference": {**dict.fromkeys(names, math.nan), "winner": None},
        }
    row = headline(rows)
    found, serial = row["contrasts"]["width-depth"], row["contrasts"]["width-restarts"]
    counts = count_comparisons(rows)
    built = by_construction(row, ceiling)
    parts = [_claim(row, found, rows, measure, unit), _spending(row, unit), _built(built, row, ceiling, measure)]
    parts += [_precision(row) if measure == "coverage" else "", _tally(counts, len(rows))]
    return {
        "sentence": " ".join(filter(None, parts)),
        "restarts_sentence": _restarts(row, measure),
        "winner": found["verdict"] if found["verdict"] in ("width", "depth") else None,
        "budget": row["budget"],
        "counts": counts,
        **{name: found.get(name, math.nan) for name in names},
        **{family: row[family] for family in FAMILIES},
        "restarts_difference": {name: serial.get(name, math.nan) for name in names}
        | {"winner": serial["verdict"] if serial["verdict"] in ("width", "restarts") else None},
        "choice_changes": found.get("choice_changes", math.nan),
        "by_construction": built,
        "break_even": break_even(rows),
    }


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row that a sentence speaks of: fixed beforehand, so that no budget is picked for its result."""
    return [row for row in rows if row["budget"] <= HEADLINE * rows[0]["budget"] * 1.01][-1]


def count_comparisons(rows: Sequence[dict[str, Any]], name: str = "width-depth") -> dict[str, int]:
    """How the different comparisons of a contrast end: the same two cells under several budgets count once."""
    counts = {**dict.fromkeys(name.split("-"), 0), UNDECIDED: 0, "same cell": 0, "nothing to compare": 0}
    ends = {each["contrasts"][name].get("comparison"): each["contrasts"][name]["verdict"] for each in rows}
    for end in ends.values():
        counts[end] += 1
    return counts


def by_construction(row: dict[str, Any], ceiling: float | None) -> float:
    """How much of the difference of width and one trajectory any system of one answer would leave; NaN where none is
    known."""
    if ceiling is None or row["width"] is None or row["depth"] is None:
        return math.nan
    gained = row["width"]["value"] - row["depth"]["value"]
    return float(max(0.0, min(gained, row["width"]["value"] - ceiling)))


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
    start = f"At {amount(row['budget'], unit)} a puzzle"
    start += " (one trajectory at the trained depth)" if times < 1.01 else f" ({times:.2g} times one trajectory)"
    if found["verdict"] == "nothing to compare":
        return f"{start}, nothing can be compared."
    width, depth = row["width"], row["depth"]
    if found["verdict"] == UNDECIDED:
        cells = f"{reached(width, 'give')}, {cell_words(depth)} {percent(depth['value'])}"
        return f"{start}, width and depth do not differ significantly in {measure}: {cells}, {undecided(found)}."
    winner, loser = (width, depth) if found["verdict"] == "width" else (depth, width)
    lead, interval = ahead_by(found, measure, is_first=found["verdict"] == "width")
    cells = f"{reached(winner, 'reach')}, {cell_words(loser)} {percent(loser['value'])}"
    return f"{start}, {found['verdict']} gives {lead} ({interval}): {cells}."


def ahead_by(found: Mapping[str, Any], measure: str, *, is_first: bool) -> tuple[str, str]:
    """How far the first or the second of a contrast is ahead, and the interval from its side."""
    low, high = (found["low"], found["high"]) if is_first else (-found["high"], -found["low"])
    return f"{100 * abs(found['difference']):.1f} points more {measure}", f"95 % interval {span(low, high)}"


def undecided(found: Mapping[str, Any]) -> str:
    """A difference that is not significant, with its interval, and why it is not where the interval leaves out zero."""
    why = ""
    if not found["low"] <= 0 <= found["high"] and found.get("p_holm") is not None:
        clusters = f" on {found['bases']} clusters" if found.get("bases") else ""
        why = f", p-value{clusters} {found['p_holm']:.2g} after Holm's correction"
    interval = span(found["low"], found["high"], is_signed=True)
    return f"a difference of {signed(found['difference'])} points (95 % interval {interval}{why})"


def _spending(row: dict[str, Any], unit: str) -> str:
    """What the arms spend, where one leaves more than half of the budget."""
    spent = {family: row[family]["spent"] for family in ("depth", "width") if row[family] is not None}
    if not any(each < IDLE * row["budget"] for each in spent.values()):
        return ""
    parts = [
        f"{family} spends {amount(each, unit)} ({100 * each / row['budget']:.0f} %)" for family, each in spent.items()
    ]
    return f"Of this budget {', '.join(parts)}."


def _built(built: float, row: dict[str, Any], ceiling: float | None, measure: str) -> str:
    """How much of width's lead no system of one answer could take from it, and how many trajectories are right."""
    if ceiling is None:
        return ""
    limit = f"no system of one answer exceeds a {measure} of {percent(ceiling)}."
    is_ahead = row["contrasts"]["width-depth"]["verdict"] == "width"
    told = f"{100 * built:.1f} of these points exist by construction: {limit}" if built > 0 and is_ahead else ""
    return told or limit[0].upper() + limit[1:]


def _precision(row: dict[str, Any]) -> str:
    """Single accuracy of both arms' trajectories."""
    shares = [
        f"{percent(row[family]['single_accuracy'])} ({family})"
        for family in ("width", "depth")
        if row[family] is not None and "single_accuracy" in row[family]
    ]
    return f"Single accuracy: {', '.join(shares)}." if shares else ""


def _restarts(row: dict[str, Any], measure: str) -> str | None:
    """Width against as many trajectories one after another as the budget pays for."""
    found, width, restarts = row["contrasts"]["width-restarts"], row["width"], row["restarts"]
    if width is None or found["verdict"] == "nothing to compare":
        return None
    one_by_one = f"{cell_words(restarts)} one after another"
    if found["verdict"] == "same cell":
        return f"The same budget pays for the same cell one after another: {cell_words(width)}."
    share = percent(restarts["value"])
    if found["verdict"] == UNDECIDED:
        return f"Width and {one_by_one} ({share}) do not differ significantly in {measure}: {undecided(found)}."
    lead, interval = ahead_by(found, measure, is_first=found["verdict"] == "width")
    if found["verdict"] == "width":
        return f"Width gives {lead} than {one_by_one} ({share}), {interval}."
    return f"{one_by_one[0].upper()}{one_by_one[1:]} ({share}) give {lead} than width, {interval}."


def _tally(counts: dict[str, int], rows: int) -> str:
    """The sentence's last part: all comparisons."""
    different = sum(count for end, count in counts.items() if end != "nothing to compare")
    parts = [f"width is ahead in {counts['width']}", f"depth in {counts['depth']}"]
    if counts[UNDECIDED]:
        parts.append(f"neither significantly in {counts[UNDECIDED]}")
    return f"Of {plural(different, 'different comparison')} at {plural(rows, 'budget')}: {', '.join(parts)}."


def warnings(latency: Mapping[str, Any], main: Mapping[str, Any], grid: Grid) -> list[str]:
    """What stands wherever the verdict stands: a noisy machine, a choice that noise decides, depths that stop short."""
    found = []
    if latency.get("is_noisy"):
        found.append(
            "The machine was too noisy to tell cells of similar latency apart: a control timed every round spread by "
            f"{100 * latency['control_spread']:.0f} % (p95 minus p5, over the median). Run it again on an idle machine."
        )
    if main.get("choice_changes", math.nan) >= NOISY_CHOICE:
        found.append(
            f"The noise of the timings decides which cells are compared: {100 * main['choice_changes']:.0f} % of its "
            "draws choose others. The interval includes this."
        )
    if (short := short_depths(grid)) is not None:
        found.append(short)
    return found


def short_depths(grid: Grid) -> str | None:
    """Whether one trajectory of the grid's largest depth cannot spend the headline's budget."""
    needed = math.ceil(HEADLINE * grid.trained_depth)
    if grid.depths[-1] >= needed:
        return None
    return (
        f"The depths end at {grid.depths[-1]}, short of {needed}: {HEADLINE:g} times the trained depth, which the "
        "headline's budget pays for."
    )


def reached(cell: dict[str, Any], verb: str) -> str:
    """A chosen cell and its value, with a verb that agrees with it."""
    is_one = (cell.get("other_half") or cell)["width"] == 1
    ending = "" if not is_one else "es" if verb.endswith("ch") else "s"
    return f"{cell_words(cell)} {verb}{ending} {percent(cell['value'])}"


def cell_words(cell: dict[str, Any]) -> str:
    """A chosen cell in words."""
    other = cell.get("other_half")
    if other is not None:
        return f"{cell_words({**cell, 'other_half': None})} or, on the other half, {cell_words(other)},"
    steps = plural(cell["depth"], "step")
    if cell["width"] == 1:
        return f"one trajectory of {steps}"
    chosen = f" ({cell['selector']})" if cell["selector"] else ""
    return f"{cell['width']} trajectories of {steps}{chosen}"
