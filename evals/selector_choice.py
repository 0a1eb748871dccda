"""Which selector a checkpoint should have by default: all of them on the same trajectories, and a fixed rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gram.evals import statistics
from gram.evals.paired import paired_difference
from gram.sampler.result import SampleResult, scores_of
from gram.sampler.selectors import select
from gram.sampler.settings import SELECTOR
from gram.tasks.protocol import PuzzleSet, Task


def compare_selectors(
    task: Task, puzzles: PuzzleSet, result: SampleResult, selectors: Sequence[str]
) -> list[dict[str, Any]]:
    """For each selector its `accuracy` with `low` and `high`, and `less_vote` (points of a share) with its interval and
    the p-value corrected over all selectors but `vote`; as JSON values."""
    scores, lines = scores_of(result, result.votes), np.arange(len(puzzles))
    right = {
        each: task.verify(puzzles.puzzles, result.candidates[lines, select(each, scores)]).astype(float)
        for each in (SELECTOR, *(each for each in selectors if each != SELECTOR))
    }
    found = {each: paired_difference(values, right[SELECTOR], puzzles.groups) for each, values in right.items()}
    others = [each for each in right if each != SELECTOR]
    corrected = dict(zip(others, statistics.holm([found[each].p_value for each in others]), strict=True))
    rows = []
    for each, values in right.items():
        low, high = statistics.clustered_interval(values, puzzles.groups)
        less = found[each]
        rows.append(
            {
                "selector": each,
                "accuracy": float(values.mean()),
                "low": low,
                "high": high,
                "less_vote": less.estimate,
                "less_low": less.low,
                "less_high": less.high,
                "p_holm": float(corrected.get(each, 1.0)),
            }
        )
    return rows


def chosen(rows: Sequence[dict[str, Any]]) -> str:
    """The most accurate selector that is told apart from `vote` and ahead of it; `vote` where there is none. Ties go to
    the earlier row."""
    ahead = [row for row in rows if row["less_low"] > 0 and row["p_holm"] < statistics.ALPHA]
    best = max(ahead, key=lambda row: float(row["accuracy"]), default=None)
    return SELECTOR if best is None else str(best["selector"])
