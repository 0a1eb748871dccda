"""Which selector a checkpoint should have by default: all of them on the same trajectories, and a fixed rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gram.config import SELECTORS
from gram.evals import statistics
from gram.evals.paired import paired_difference
from gram.sampler.result import SampleResult
from gram.sampler.run import SELECTOR
from gram.sampler.selectors import select
from gram.tasks.protocol import PuzzleSet, Task

ORDER = (SELECTOR, *(each for each in SELECTORS if each != SELECTOR))
"""Of selectors, for ties: `vote`, which needs no head, then `lprm`, which was trained to predict a right answer, then
the rest as the settings list them."""


def compare_selectors(
    task: Task, puzzles: PuzzleSet, result: SampleResult, selectors: Sequence[str]
) -> list[dict[str, Any]]:
    """For each selector its `accuracy` with `low` and `high`, `less_vote` (points of a share) with its interval, and
    the corrected p-value `p_holm`; as JSON values.

    Selectors that pick the same answer for every puzzle are one comparison, and one that picks as `vote` does is none:
    Holm's correction counts the others. `alike` names the selectors that pick as this one does. The order is that of
    `ORDER`.
    """
    scores, lines = result.scores(result.votes), np.arange(len(puzzles))
    picked = {each: result.candidates[lines, select(each, scores)] for each in ORDER if each in (SELECTOR, *selectors)}
    alike = {
        each: [other for other in picked if other != each and np.array_equal(picked[other], answers)]
        for each, answers in picked.items()
    }
    right = {each: task.verify(puzzles.puzzles, answers).astype(float) for each, answers in picked.items()}
    found = {each: paired_difference(values, right[SELECTOR], puzzles.groups) for each, values in right.items()}
    first = {each: next(other for other in picked if other == each or other in alike[each]) for each in picked}
    others = [each for each in picked if first[each] == each and each != first[SELECTOR]]
    corrected = dict(zip(others, statistics.holm([found[each].p_value for each in others]), strict=True))
    rows = []
    for each, values in right.items():
        low, high = statistics.clustered_interval(values, puzzles.groups)
        minus = found[each]
        rows.append(
            {
                "selector": each,
                "accuracy": float(values.mean()),
                "low": low,
                "high": high,
                "less_vote": minus.estimate,
                "less_low": minus.low,
                "less_high": minus.high,
                "p_holm": float(corrected.get(first[each], 1.0)),
                "alike": alike[each],
            }
        )
    return rows


def chosen(rows: Sequence[dict[str, Any]]) -> str:
    """The most accurate selector that is significantly ahead of `vote`; `vote` where there is none. Of equally
    accurate ones the first of `ORDER`."""
    ahead = [row for row in rows if row["less_low"] > 0 and row["p_holm"] < statistics.ALPHA]
    best = max(ahead, key=lambda row: (float(row["accuracy"]), -ORDER.index(row["selector"])), default=None)
    return SELECTOR if best is None else str(best["selector"])
