"""Rows of `frontier.json` that describe cells: all of them, the selectors' gaps, and the verdict's by difficulty.

Shapes: `P` puzzles, `H` halting rules, `M` depths, `N` widths, `S` selectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals import metrics, statistics
from gram.evals.frontier.measures import OutcomeTable, column_means, columns_of
from gram.tasks.protocol import PuzzleSet

Floats = NDArray[np.float64]


def cell_rows(table: OutcomeTable, prices: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """One object per halting rule, width, depth and selector. `prices`: `[H, M, N]` by name of their field."""
    grid, shape = table.grid, table.accuracy.shape[1:]
    means = column_means(table.accuracy)
    intervals = statistics.clustered_intervals(columns_of(table.accuracy), table.clusters).reshape(*shape, 2)
    passes, distinct = column_means(table.passes), column_means(table.distinct)
    steps, single = column_means(table.steps), table.single_accuracy
    coverage = np.full((*shape[:3], 4), np.nan)
    if table.coverage is not None and table.solutions is not None:
        coverage[..., 0] = column_means(table.coverage)
        coverage[..., 1:3] = statistics.clustered_intervals(columns_of(table.coverage), table.clusters).reshape(
            *shape[:3], 2
        )
        coverage[..., 3] = table.distinct.sum(axis=0, dtype=np.float64) / max(float(np.nansum(table.solutions)), 1.0)
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
            "single_accuracy": single[h, m],
            "pass_at_width": passes[place],
            "coverage": coverage[(*place, 0)],
            "coverage_low": coverage[(*place, 1)],
            "coverage_high": coverage[(*place, 2)],
            "coverage_pooled": coverage[(*place, 3)],
            "unique_solutions": distinct[place],
            "conflicts": table.conflicts[h, m, w, s],
            "steps": steps[h, m],
        }
        rows.append(row | {name: price[place] for name, price in prices.items()})
    return rows


def selector_gaps(table: OutcomeTable) -> list[dict[str, Any]]:
    """pass@N minus selected accuracy at the trained depth: what a better selector could win."""
    grid, found = table.grid, []
    m = grid.depths.index(grid.trained_depth)
    passes, accuracy = column_means(table.passes[:, 0, m]), column_means(table.accuracy[:, 0, m])
    for w, width in enumerate(grid.widths):
        for s, selector in enumerate(grid.selectors):
            gap = float(passes[w] - accuracy[w, s])
            found.append({"width": width, "selector": selector, "pass_at_width": passes[w], "gap": gap})
    return found


def difficulty_rows(table: OutcomeTable, known: PuzzleSet, main: Mapping[str, Any]) -> dict[str, Any] | None:
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
            low, high = statistics.clustered_interval(values[chosen], table.clusters[chosen])
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
