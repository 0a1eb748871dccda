"""The frontier: width against depth from traces and latencies, as one JSON object. Nothing is sampled or timed here.

`analyse` makes what `frontier.json` holds; `evals/SCHEMA.md` documents it. The measure is coverage on tasks of several
solutions and selected accuracy elsewhere; both are in it. `stable` leaves out what a second run measures anew.

Shapes: `P` puzzles, `H` halting rules, `M` depths, `N` widths, `S` selectors.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.config import ModelConfig
from gram.evals import cost, metrics, statistics
from gram.evals.budgets import Judge, Question, Slice, budgets_of, matched_together
from gram.evals.cells import Block, Grid, Outcomes, Trace, tabulate
from gram.evals.columns import clustered_intervals
from gram.evals.evaluate import count_solutions
from gram.evals.heads import HeadTally
from gram.evals.latency import MODES, price_table
from gram.evals.verdict import exchange_rates, saturation_width, verdict
from gram.tasks.protocol import PuzzleSet, Task

VERSION = 1
"""Of the schema; raised when a field changes its meaning or goes."""
Floats = NDArray[np.float64]
LATENCY_FIELDS = ("p5", "p50", "p95")
UNITS = {"latency interactive": "ms", "latency throughput": "ms", "energy": "J", "macs": "MACs"}
"""Ways of matching budgets, and what they are counted in."""
MEASURED = ("latency interactive", "latency throughput", "energy")
"""Those that a second run measures anew."""


def analyse(
    task: Task,
    puzzle_set: PuzzleSet,
    traces: Sequence[Trace],
    grid: Grid,
    model: ModelConfig,
    *,
    timings: Mapping[str, Any],
    about: Mapping[str, Any],
    budgets: list[float] | None = None,
    on_outcomes: Callable[[dict[str, NDArray[Any]]], None] | None = None,
) -> dict[str, Any]:
    """Everything a report needs. `traces`: one per seed, of the puzzles of `puzzle_set`; `timings`: what
    `latency.measure` returned, or an empty mapping; `about`: provenance, copied;
    `budgets`: latencies in ms to match instead of doublings of one trajectory's; `on_outcomes` is given the outcomes by
    puzzle (`outcomes.py`).

    Raises `ValueError` where traces and puzzles do not fit.
    """
    heads = HeadTally(grid.depths[-1], grid)

    def tell(seed: int, count: int, block: Block) -> None:
        heads.add(block)

    outcomes = tabulate(traces, grid, conflicts=task.conflicts, on_block=tell)
    if not np.array_equal(outcomes.puzzles, puzzle_set.puzzles):
        raise ValueError(f"traces must be of the {len(puzzle_set)} puzzles given, got {len(outcomes.puzzles)} others")
    real = np.flatnonzero(outcomes.is_real)
    known = puzzle_set.take(real)
    groups = bases(known)
    solutions = np.array(count_solutions(task, known.puzzles), dtype=np.float64) if task.is_multi_solution else None
    table = Table(outcomes, real, grid, groups, solutions)
    if on_outcomes is not None:
        on_outcomes(table.arrays(known.puzzles))
    latencies = list(timings.get("latencies", []))
    macs = price_in_macs(table, model)
    rows = _budgets(table, macs, latencies, budgets)
    measure = table.measures[0]
    primary = {"halting": grid.haltings[0], "measure": measure}
    by_latency = _rows(rows, matched_by="latency interactive", **primary)
    main = verdict(by_latency, measure=measure, unit="ms")
    price = price_table(latencies, "interactive", grid.haltings[0], grid.widths, grid.depths)
    trained = grid.depths.index(grid.trained_depth)
    main |= {
        "measure": measure,
        "halting": grid.haltings[0],
        "exchange_rates": exchange_rates(grid, table.best(measure)),
        "saturation_width": saturation_width(grid.widths, price[trained]),
        "gaps": _gaps(table),
    }
    also = [
        {"measure": name, "halting": halting, "matched_by": by, **_short(rows, name, halting, by)}
        for name in table.measures
        for halting in grid.haltings
        for by in UNITS
        if (name, halting, by) != (measure, grid.haltings[0], "latency interactive")
        and _rows(rows, measure=name, halting=halting, matched_by=by)
    ]
    made: dict[str, Any] = defined(
        {
            "version": VERSION,
            "about": {**about, "puzzles": len(real), "bases": len(np.unique(groups)), "seeds": len(traces)},
            "grid": asdict(grid) | {"measures": list(table.measures), "threshold": grid.threshold("head")},
            "verdict": main,
            "verdicts_beside": also,
            "cells": _cells(table, macs, latencies),
            "budgets": rows,
            "heads": heads.summary(),
            "difficulty": _difficulty(table, known, main),
            "latency": {key: value for key, value in timings.items() if key != "latencies"},
            "cost": {"step": cost.step_macs(model), "decode": cost.decode_macs(model)},
        }
    )
    return made


class Table:
    """Outcomes of the puzzles that count, and the measures made of them."""

    def __init__(
        self,
        outcomes: Outcomes,
        real: NDArray[np.int64],
        grid: Grid,
        groups: NDArray[np.int64],
        solutions: Floats | None,
    ) -> None:
        self.grid, self.groups, self.solutions = grid, groups, solutions
        self.conflicts = outcomes.conflicts
        rows: slice | NDArray[np.int64] = slice(None) if len(real) == len(outcomes.puzzles) else real
        self.accuracy, self.direct = outcomes.accuracy[rows], outcomes.is_right_directly[rows]
        self.passes, self.distinct = outcomes.passes[rows], outcomes.distinct[rows]
        self.steps = outcomes.steps[rows]
        self.coverage: NDArray[np.float32] | None = None
        if solutions is not None:
            share = np.where(solutions > 0, solutions, np.nan)[:, None, None, None]
            self.coverage = np.clip(self.distinct / share, 0, 1).astype(np.float32)
        self.measures: tuple[str, ...] = ("coverage", "accuracy") if solutions is not None else ("accuracy",)

    def slice(self, measure: str, halting: int) -> Slice:
        """One halting rule's cells by puzzle."""
        name = self.grid.haltings[halting]
        if measure == "coverage":
            assert self.coverage is not None
            return Slice(self.coverage[:, halting, ..., None], None, self.groups, (None,), name)
        return Slice(self.accuracy[:, halting], self.direct[:, halting], self.groups, self.grid.selectors, name)

    def arrays(self, puzzles: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """What `outcomes.npz` holds."""
        found: dict[str, NDArray[Any]] = {"puzzles": puzzles, "groups": self.groups}
        found |= {"accuracy": self.accuracy, "direct": self.direct}
        return found if self.coverage is None else found | {"coverage": self.coverage}

    def best(self, measure: str, halting: int = 0) -> Floats:
        """Mean measure `[M, N]` of the best selector, over all puzzles."""
        values = self.slice(measure, halting).values
        best: Floats = _column_means(values).max(axis=-1)
        return best


def bases(known: PuzzleSet) -> NDArray[np.int64]:
    """Base of each puzzle `[P]`; equal puzzles share one (they share their noise and so their trajectories)."""
    if known.groups is not None:
        return known.groups
    return np.unique(known.puzzles, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def price_in_macs(table: Table, model: ModelConfig) -> Floats:
    """MACs of one puzzle in each cell, `[H, M, N]`."""
    per_step = cost.step_macs(model)["total"]
    steps = table.steps.mean(axis=0, dtype=np.float64) if len(table.steps) else np.full(table.steps.shape[1:], np.nan)
    widths = np.array(table.grid.widths, dtype=np.float64)
    price: Floats = widths * (steps[..., None] * per_step + cost.decode_macs(model))
    return price


def stable(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """`frontier` without what a second run of the same command measures anew: latencies and what follows from them."""
    kept = {key: value for key, value in frontier.items() if key not in ("verdict", "difficulty", "latency", "about")}
    kept["cells"] = [
        {name: value for name, value in cell.items() if "_ms_" not in name and name != "energy_j"}
        for cell in frontier["cells"]
    ]
    for name in ("budgets", "verdicts_beside"):
        kept[name] = [row for row in frontier[name] if row["matched_by"] not in MEASURED]
    measured = ("started", "elapsed_s", "command", "times")
    kept["about"] = {name: value for name, value in frontier["about"].items() if name not in measured}
    return kept


def cells_csv(frontier: Mapping[str, Any]) -> str:
    """The cells as CSV, one line each; undefined figures are empty."""
    stream = io.StringIO()
    rows = frontier["cells"]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def defined(value: Any) -> Any:
    """`value` as strict JSON values: numpy's as Python's, NaN and infinities as None, tuples as lists."""
    if isinstance(value, dict):
        return {key: defined(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [defined(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _budgets(
    table: Table, macs: Floats, latencies: list[dict[str, Any]], wanted: list[float] | None
) -> list[dict[str, Any]]:
    """Matched budgets of every measure, halting rule and price."""
    grid = table.grid
    asked: list[tuple[str, str]] = []
    questions = []
    for measure in table.measures:
        for h, halting in enumerate(grid.haltings):
            judge = Judge(grid, table.slice(measure, h))
            prices = {
                f"latency {mode}": price_table(latencies, mode, halting, grid.widths, grid.depths) for mode in MODES
            }
            joules = price_table(latencies, "interactive", halting, grid.widths, grid.depths, "joules")
            for by, price in {**prices, "energy": joules, "macs": macs[h]}.items():
                given = sorted(wanted) if wanted and by == "latency interactive" else None
                asked.append((by, measure))
                questions.append(Question(judge, price, budgets_of(grid, price) if given is None else given))
    return [
        {"matched_by": by, "measure": measure, **row}
        for (by, measure), rows in zip(asked, matched_together(questions), strict=True)
        for row in rows
    ]


def _rows(budgets: Sequence[dict[str, Any]], **wanted: str) -> list[dict[str, Any]]:
    return [row for row in budgets if all(row[name] == value for name, value in wanted.items())]


def _short(budgets: Sequence[dict[str, Any]], measure: str, halting: str, by: str) -> dict[str, Any]:
    """Verdict of other rows, without their cells."""
    rows = _rows(budgets, measure=measure, halting=halting, matched_by=by)
    found = verdict(rows, measure=measure, unit=UNITS[by])
    return {name: found[name] for name in ("sentence", "winner", "budget", "difference", "low", "high", "break_even")}


def _cells(table: Table, macs: Floats, latencies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object per halting rule, width, depth and selector."""
    grid, shape = table.grid, table.accuracy.shape[1:]
    means = _column_means(table.accuracy)
    intervals = clustered_intervals(_columns(table.accuracy), table.groups).reshape(*shape, 2)
    passes, distinct = _column_means(table.passes), _column_means(table.distinct)
    steps = _column_means(table.steps)
    coverage = np.full((*shape[:3], 4), np.nan)
    if table.coverage is not None and table.solutions is not None:
        coverage[..., 0] = _column_means(table.coverage)
        coverage[..., 1:3] = clustered_intervals(_columns(table.coverage), table.groups).reshape(*shape[:3], 2)
        coverage[..., 3] = table.distinct.sum(axis=0, dtype=np.float64) / max(float(np.nansum(table.solutions)), 1.0)
    timed = {(each["mode"], each["halting"], each["width"], each["depth"]): each for each in latencies}
    rows = []
    for h, m, w, s in np.ndindex(*shape):
        place, cell = (h, m, w), (grid.haltings[h], grid.widths[w], grid.depths[m])
        row = {
            "halting": cell[0],
            "width": cell[1],
            "depth": cell[2],
            "selector": grid.selectors[s],
            "accuracy": means[h, m, w, s],
            "low": intervals[h, m, w, s, 0],
            "high": intervals[h, m, w, s, 1],
            "pass_at_width": passes[place],
            "coverage": coverage[(*place, 0)],
            "coverage_low": coverage[(*place, 1)],
            "coverage_high": coverage[(*place, 2)],
            "coverage_pooled": coverage[(*place, 3)],
            "unique_solutions": distinct[place],
            "conflicts": table.conflicts[h, m, w, s],
            "steps": steps[h, m],
        }
        for mode, name in zip(MODES, ("latency", "throughput"), strict=True):
            found = timed.get((mode, *cell), {})
            row |= {f"{name}_ms_{part}": found.get(f"{part}_ms", math.nan) for part in LATENCY_FIELDS}
        spent = timed.get(("interactive", *cell), {}).get("joules", math.nan)
        rows.append(row | {"energy_j": spent, "macs": macs[h, m, w]})
    return rows


def _gaps(table: Table) -> list[dict[str, Any]]:
    """pass@N less selected accuracy at the trained depth: what a better selector could win."""
    grid, found = table.grid, []
    m = grid.depths.index(grid.trained_depth)
    passes, accuracy = _column_means(table.passes[:, 0, m]), _column_means(table.accuracy[:, 0, m])
    for w, width in enumerate(grid.widths):
        for s, selector in enumerate(grid.selectors):
            gap = float(passes[w] - accuracy[w, s])
            found.append({"width": width, "selector": selector, "pass_at_width": passes[w], "gap": gap})
    return found


def _difficulty(table: Table, known: PuzzleSet, main: Mapping[str, Any]) -> dict[str, Any] | None:
    """The measure by quarter of difficulty for one trajectory and the verdict's cells; None where nothing is known.

    Difficulty is the puzzles' rating, else the number of their solutions.
    """
    rating = known.ratings if known.ratings is not None and np.isfinite(known.ratings).any() else table.solutions
    if rating is None or not len(rating):
        return None
    is_known = np.isfinite(rating)
    quarter = np.searchsorted(np.unique(np.quantile(rating[is_known], (0.25, 0.5, 0.75))), rating, side="left")
    grid, part = table.grid, table.slice(table.measures[0], 0)
    cells: dict[str, dict[str, Any] | None] = {"one trajectory": {"width": 1, "depth": grid.trained_depth}}
    cells |= {family: main.get(family) for family in ("depth", "width", "mixed")}
    rows = []
    for label, cell in cells.items():
        if cell is None:
            continue
        chosen_by = cell.get("selector")
        s = part.selectors.index(chosen_by) if chosen_by in part.selectors else 0
        values = part.values[:, grid.depths.index(cell["depth"]), grid.widths.index(cell["width"]), s]
        for number in np.unique(quarter[is_known]):
            chosen = is_known & (quarter == number)
            low, high = statistics.clustered_interval(values[chosen], table.groups[chosen], resamples=2_000)
            rows.append(
                {
                    "cells": label,
                    "width": cell["width"],
                    "depth": cell["depth"],
                    "from": float(rating[chosen].min()),
                    "to": float(rating[chosen].max()),
                    "puzzles": int(chosen.sum()),
                    "value": metrics.mean_defined(values[chosen]),
                    "low": low,
                    "high": high,
                }
            )
    return {"by": "solutions" if rating is table.solutions else "rating", "rows": rows}


def _columns(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _column_means(values: NDArray[np.float32]) -> Floats:
    means: Floats = values.mean(axis=0, dtype=np.float64) if len(values) else np.full(values.shape[1:], np.nan)
    return means
