"""The frontier: width against depth from traces and latencies, as one JSON object. Nothing is sampled or timed here.

`analyse` makes what `frontier.json` holds; `docs/frontier-json.md` documents it. The verdict is of the accuracy of the
selected answer, under the checkpoint's own selector; coverage stands second where puzzles have several solutions.

Shapes: `P` puzzles, `H` halting rules, `M` depths, `N` widths, `S` selectors, `R` draws of the timings.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.config import ModelConfig
from gram.evals import cost
from gram.evals.evaluate import clusters_of, count_solutions
from gram.evals.frontier.budgets import Question, budgets_of, matched_together
from gram.evals.frontier.calibration import CalibrationTally
from gram.evals.frontier.choice import FAMILIES, Judge, Price
from gram.evals.frontier.grid import Grid, tabulate
from gram.evals.frontier.grid_rows import cell_rows, difficulty_rows, selector_gaps
from gram.evals.frontier.latency import MODES
from gram.evals.frontier.measures import OutcomeTable, column_means
from gram.evals.frontier.prices import Prices, prices_of_clock
from gram.evals.frontier.verdict import exchange_rates, saturation_width, verdict, warnings
from gram.formatting import plain
from gram.sampler.trace import Traces
from gram.tasks.protocol import PuzzleSet, Task

VERSION = 2
"""Of the schema; raised when a field changes its meaning or goes."""
Floats = NDArray[np.float64]
UNITS = {"latency interactive": "ms", "latency throughput": "ms", "energy": "J", "macs": "MACs"}
"""Ways of matching budgets, and what they are counted in."""
SERIAL = ("latency interactive", "energy")
"""Those by which trajectories one after another cost anything else than at once."""
MAIN = "latency interactive"
SHORT = (
    *("sentence", "restarts_sentence", "winner", "budget", "counts", "difference", "low", "high", "p_holm"),
    *("restarts_difference", "by_construction", "choice_changes", "break_even"),
)
"""Of a verdict that stands beside; its cells come with it."""


def analyse(
    task: Task,
    puzzle_set: PuzzleSet,
    traces: Sequence[Traces],
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
    heads = CalibrationTally(grid.depths[-1], grid)
    outcomes = tabulate(traces, grid, conflicts=task.conflicts, on_block=heads.add)
    if not np.array_equal(outcomes.puzzles, puzzle_set.puzzles):
        raise ValueError(f"traces must be of the {len(puzzle_set)} puzzles given, got {len(outcomes.puzzles)} others")
    real = np.flatnonzero(outcomes.is_real)
    known = puzzle_set.take(real)
    clusters = clusters_of(known)
    solutions = np.array(count_solutions(task, known.puzzles), dtype=np.float64) if task.is_multi_solution else None
    table = OutcomeTable(outcomes, real, grid, clusters, solutions)
    if on_outcomes is not None:
        on_outcomes({"puzzles": known.puzzles, **table.outcomes})
    steps = column_means(table.steps)[..., None] * cost.step_macs(model)["total"] + cost.decode_macs(model)
    macs = np.array(grid.widths, dtype=np.float64) * steps
    prices = {**prices_of_clock(traces, grid, timings), "macs": Prices(macs, macs)}
    rows, verdicts = _matched(table, prices, budgets)
    first = ("accuracy", grid.haltings[0], MAIN, grid.selectors[0])
    main = verdicts.pop(first)
    trained = grid.depths.index(grid.trained_depth)
    main |= {
        **dict(zip(("measure", "halting", "matched_by", "selector"), first, strict=True)),
        "exchange_rates": exchange_rates(grid, table.means("accuracy")),
        "saturation_width": saturation_width(grid.widths, prices[MAIN].mean[0, trained]),
        "gaps": selector_gaps(table),
    }
    main["warnings"] = warnings(timings, main, grid)
    covered = verdicts.pop(("coverage", grid.haltings[0], MAIN, None), None)
    if covered is not None:
        covered |= {"one_answer_ceiling": table.one_answer_ceiling}
    also = [
        {"measure": measure, "halting": halting, "matched_by": by, "selector": selector}
        | {name: found.get(name) for name in (*SHORT, *FAMILIES)}
        for (measure, halting, by, selector), found in verdicts.items()
        if found["budget"] is not None
    ]
    made: dict[str, Any] = plain(
        {
            "version": VERSION,
            "about": {**about, "puzzles": len(real), "bases": len(np.unique(clusters)), "seeds": len(traces)},
            "grid": asdict(grid) | {"measures": list(table.measures), "threshold": grid.threshold("head")},
            "verdict": main,
            "coverage": covered,
            "verdicts_beside": also,
            "cells": cell_rows(table, _fields(prices)),
            "budgets": rows,
            "heads": heads.summary(),
            "difficulty": difficulty_rows(table, known, main),
            "latency": {key: value for key, value in timings.items() if key != "clock"},
            "cost": {"step": cost.step_macs(model), "decode": cost.decode_macs(model)},
        }
    )
    return made


def _fields(prices: Mapping[str, Prices]) -> dict[str, Floats]:
    """Prices by the name of their field in a cell."""
    one, full = (prices[f"latency {mode}"] for mode in MODES)
    times = {
        "latency_ms": one.mean,
        "latency_ms_p95": one.p95,
        "throughput_ms": full.mean,
        "throughput_ms_p95": full.p95,
    }
    return {**times, "energy_j": prices["energy"].mean, "macs": prices["macs"].mean}


def cells_csv(frontier: Mapping[str, Any]) -> str:
    """The cells as CSV, one line each; undefined figures are empty."""
    stream = io.StringIO()
    rows = frontier["cells"]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _matched(
    table: OutcomeTable, prices: Mapping[str, Prices], wanted: list[float] | None
) -> tuple[list[dict[str, Any]], dict[tuple[str, str, str, str | None], dict[str, Any]]]:
    """Matched budgets of every measure, halting rule and price under the first selector, and the verdicts on these and
    on all other selectors, by (measure, halting, way of matching, selector)."""
    grid = table.grid
    asked: list[tuple[str, str, str, str | None]] = []
    questions = []
    for measure in table.measures:
        for h, halting in enumerate(grid.haltings):
            judge = Judge(grid, table.slice(measure, h))
            for by, each in prices.items():
                draws = None if each.draws is None else each.draws[:, h]
                price = Price(each.mean[h], draws, by in SERIAL)
                given = sorted(wanted) if wanted and by == MAIN else None
                budgets = budgets_of(grid, price.mean) if given is None else given
                for s, selector in enumerate(judge.part.selectors):
                    asked.append((measure, halting, by, selector))
                    questions.append(Question(judge, price, budgets, s, given is None))
    rows, verdicts = [], {}
    for key, found in zip(asked, matched_together(questions), strict=True):
        measure, halting, by, selector = key
        _add_precision(table, grid.haltings.index(halting), found)
        ceiling = table.one_answer_ceiling if measure == "coverage" else None
        verdicts[key] = verdict(found, measure=measure, unit=UNITS[by], ceiling=ceiling)
        if selector in (None, grid.selectors[0]):
            rows += [{"matched_by": by, "measure": measure, "selector": selector, **row} for row in found]
    return rows, verdicts


def _add_precision(table: OutcomeTable, halting: int, rows: Sequence[dict[str, Any]]) -> None:
    """Puts the single accuracy of its trajectories beside every chosen cell."""
    for row in rows:
        for family in FAMILIES:
            if row[family] is not None:
                depth = table.grid.depths.index(row[family]["depth"])
                row[family]["single_accuracy"] = table.single_accuracy[halting, depth]
