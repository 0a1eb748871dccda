"""What tests of frontiers share: the part of a frontier that a second run repeats, and budgets of one judge matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gram.evals.frontier.budgets import Question, budgets_of, matched_together
from gram.evals.frontier.choice import Judge, Price

MEASURED = ("latency interactive", "latency throughput", "energy")
"""Ways of matching that a second run measures anew."""


def matched(judge: Judge, price: Price, budgets: list[float] | None = None) -> list[dict[str, Any]]:
    """`matched_together` of one judge and price; `budgets` left out: those of `budgets_of`."""
    wanted = budgets if budgets is not None else budgets_of(judge.grid, price.mean)
    return matched_together([Question(judge, price, wanted)])[0]


def stable(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """`frontier` without what a second run of the same command measures anew: latencies and what follows from them."""
    kept = {
        key: value
        for key, value in frontier.items()
        if key not in ("verdict", "coverage", "difficulty", "latency", "about")
    }
    kept["cells"] = [
        {name: value for name, value in cell.items() if "_ms" not in name and name != "energy_j"}
        for cell in frontier["cells"]
    ]
    for name in ("budgets", "verdicts_beside"):
        kept[name] = [row for row in frontier[name] if row["matched_by"] not in MEASURED]
    measured = ("started", "elapsed_s", "command", "times")
    kept["about"] = {name: value for name, value in frontier["about"].items() if name not in measured}
    return kept
