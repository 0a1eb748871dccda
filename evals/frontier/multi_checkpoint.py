"""Several frontiers side by side: each one's verdict, and who of two is ahead at matched cost, paired by puzzle.

Two checkpoints are compared on the puzzles that both were asked, at budgets that both can afford: the best cell of each
that a budget pays for, chosen on one half of the puzzles and scored on the other, both ways (`budgets.py`). Nothing is
sampled or timed here, and no page made (`multi_checkpoint_page.py`).

Shapes: `P` puzzles, `M` depths, `N` widths, `S` selectors.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier.analysis import UNITS
from gram.evals.frontier.beside import beside_sentences
from gram.evals.frontier.budgets import UNDECIDED, Scored, ahead, contrast, corrected, score, shared_budgets
from gram.evals.frontier.choice import Judge, Price
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.measures import slice_of
from gram.evals.frontier.outcomes import Arrays
from gram.evals.frontier.verdict import ahead_by, cell_words, headline, reached, undecided
from gram.formatting import amount, percent, plural

VERSION = 2
PRICES = {
    "latency interactive": "latency_ms",
    "latency throughput": "throughput_ms",
    "energy": "energy_j",
    "macs": "macs",
}
"""Ways of matching, and the field of a cell that is its price."""
Frontier = Mapping[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint's frontier."""

    label: str
    """Its folder's name."""
    frontier: Frontier
    outcomes: Arrays | None
    """Outcomes by puzzle (`outcomes.py`); without them it is in no comparison."""

    @property
    def machine(self) -> tuple[Any, ...]:
        """What must be the same for latencies to be comparable."""
        about = self.frontier["about"]
        return about.get("device"), about.get("processor"), self.frontier["latency"].get("processors")


def join(members: Sequence[Member]) -> dict[str, Any]:
    """What `joint.json` holds: every verdict, and all pairs of checkpoints of one task, by each measure of both."""
    asked = [
        (a, b, measure)
        for a, b in itertools.combinations(members, 2)
        if _task(a) == _task(b)
        for measure in a.frontier["grid"]["measures"]
        if measure in b.frontier["grid"]["measures"]
    ]
    compared = [_compare(a, b, measure) for a, b, measure in asked]
    for number, pair in enumerate(compared):
        for row in pair["budgets"]:
            row["contrast"]["comparison"] = number, row["matched_by"], row["contrast"]["comparison"]
    for by in PRICES:
        rows = [row for pair in compared for row in pair["budgets"] if row["matched_by"] == by]
        found = corrected([row["contrast"] for row in rows])
        for row, each in zip(rows, found, strict=True):
            row["contrast"] = each and {**each, "verdict": ahead(each, "a", "b")}
    for pair, (a, b, measure) in zip(compared, asked, strict=True):
        pair["sentences"] = {
            by: _sentence(a.label, b.label, measure, rows, UNITS[by])
            for by in PRICES
            if (rows := [row for row in pair["budgets"] if row["matched_by"] == by])
        }
    return {"version": VERSION, "frontiers": [_short(each) for each in members], "pairs": compared}


def _task(member: Member) -> Any:
    return member.frontier["about"].get("task")


def _short(member: Member) -> dict[str, Any]:
    """A frontier in short."""
    about, verdict, latency = (member.frontier[name] for name in ("about", "verdict", "latency"))
    facts = {name: about.get(name) for name in ("task", "checkpoint", "puzzles", "bases", "seeds", "command")}
    names = ("budget", "difference", "low", "high", "counts", "break_even", "width", "depth", "mixed", "restarts")
    return {
        "label": member.label,
        **facts,
        **{name: verdict[name] for name in ("measure", "halting", "selector", "sentence", "winner", "warnings")},
        "beside": beside_sentences(member.frontier),
        "verdict": {name: verdict.get(name) for name in names},
        "control_spread": latency.get("control_spread"),
        "is_noisy": bool(latency.get("is_noisy")),
    }


def _compare(a: Member, b: Member, measure: str) -> dict[str, Any]:
    """Both at each budget that both can afford; `budgets` is empty where nothing can be compared, and `why` says it."""
    made: dict[str, Any] = {"a": a.label, "b": b.label, "task": _task(a), "puzzles": 0, "bases": 0}
    made |= {"measure": measure, "budgets": [], "why": None}
    if a.outcomes is None or b.outcomes is None:
        without = " and ".join(each.label for each in (a, b) if each.outcomes is None)
        return made | {"why": f"outcomes by puzzle are not kept for {without}; the same gram frontier writes them"}
    first, second = shared(a.outcomes["puzzles"], b.outcomes["puzzles"])
    made |= {"puzzles": len(first), "bases": len(np.unique(a.outcomes["groups"][first]))}
    if not len(first):
        return made | {"why": "they were not asked the same puzzles"}
    clusters = a.outcomes["groups"][first]
    judges = _judge(a, measure, first, clusters), _judge(b, measure, second, clusters)
    if a.machine != b.machine:
        made["why"] = "they were timed on different machines, so only arithmetic is matched"
    for by in ("macs",) if a.machine != b.machine else PRICES:
        made["budgets"] += _rows(by, (a, b), judges)
    if not made["budgets"]:
        some = "all puzzles are of one cluster" if made["bases"] == 1 else "no budget pays for a cell of each"
        made["why"] = f"{some}, so none can be chosen on some puzzles and scored on others"
    return made


def shared(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two sets of puzzles `[P, L]` that are the same puzzle, in the first set's order.

    A puzzle that one set holds twice has one outcome (noise is keyed by the puzzle), so any of its rows serves.
    """
    place = {row.tobytes(): number for number, row in reversed(list(enumerate(second)))}
    found = [(number, place[key]) for number, row in enumerate(first) if (key := row.tobytes()) in place]
    both = np.array(found, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _judge(member: Member, measure: str, rows: NDArray[np.int64], clusters: NDArray[np.int64]) -> Judge:
    """Chooses among a member's cells, of the halting rule of its verdict."""
    grid, arrays = _grid(member.frontier), member.outcomes
    assert arrays is not None
    halting = grid.haltings.index(member.frontier["verdict"]["halting"])
    some = {name: values[rows] for name, values in arrays.items()}
    return Judge(grid, slice_of(some | {"groups": clusters}, grid, measure, halting))


def _grid(frontier: Frontier) -> Grid:
    made = frontier["grid"]
    lists: dict[str, Any] = {name: tuple(made[name]) for name in ("widths", "depths", "selectors", "haltings")}
    return Grid(**lists, trained_depth=made["trained_depth"])


def price_of(frontier: Frontier, by: str) -> Floats:
    """Price `[M, N]` of the cells of the verdict's halting rule; NaN where it is unknown."""
    grid, halting = frontier["grid"], frontier["verdict"]["halting"]
    price = np.full((len(grid["depths"]), len(grid["widths"])), np.nan)
    for cell in frontier["cells"]:
        if cell["halting"] == halting and cell.get(PRICES[by]) is not None:
            price[grid["depths"].index(cell["depth"]), grid["widths"].index(cell["width"])] = cell[PRICES[by]]
    return price


def _rows(by: str, members: tuple[Member, Member], judges: tuple[Judge, Judge]) -> list[dict[str, Any]]:
    """One row per budget: the best cell of each, scored, and the first minus the second."""
    prices = [Price(price_of(each.frontier, by)) for each in members]
    starts = [
        float(price.mean[judge.grid.depths.index(judge.grid.trained_depth), 0])
        for price, judge in zip(prices, judges, strict=True)
    ]
    chosen: list[tuple[float, list[Scored]]] = []
    for budget in shared_budgets([price.mean for price in prices], starts):
        choices = [judge.choose("any", price, budget) for judge, price in zip(judges, prices, strict=True)]
        scored = [(judge, choice) for judge, choice in zip(judges, choices, strict=True) if choice is not None]
        if len(scored) == len(judges):
            chosen.append((budget, scored))
    scores = iter(score([each for _, scored in chosen for each in scored]))
    contrasts = contrast([(scored[0], scored[1]) for _, scored in chosen])
    rows = []
    for (budget, scored), found in zip(chosen, contrasts, strict=True):
        row: dict[str, Any] = {"matched_by": by, "budget": budget}
        for name, (judge, choice), price in zip("ab", scored, prices, strict=True):
            row[name] = {**judge.cells(choice, price), **next(scores)}
        rows.append(row | {"contrast": found})
    return rows


def _sentence(a: str, b: str, measure: str, rows: Sequence[dict[str, Any]], unit: str) -> str:
    """Who is ahead, by how much, and at how many budgets."""
    row = headline(rows)
    found = row["contrast"]
    start = f"At {amount(row['budget'], unit)} a puzzle"
    if found["verdict"] == UNDECIDED:
        values = f"{percent(row['a']['value'])} and {percent(row['b']['value'])}"
        claim = f"{start}, {a} and {b} do not differ significantly in {measure}: {values}, {undecided(found)}."
    else:
        is_first = found["verdict"] == "a"
        (winner, best), (loser, other) = ((a, row["a"]), (b, row["b"]))[:: 1 if is_first else -1]
        lead, interval = ahead_by(found, measure, is_first=is_first)
        cells = f"{reached(best, 'reach')}, {cell_words(other)} {percent(other['value'])}"
        claim = f"{start}, {winner} gives {lead} than {loser} ({interval}): {cells}."
    ends = {each["contrast"]["comparison"]: each["contrast"]["verdict"] for each in rows}
    wins = {who: list(ends.values()).count(who) for who in ("a", "b", UNDECIDED)}
    different = f"{plural(len(ends), 'different comparison')} at {plural(len(rows), 'budget')}"
    neither = f", neither significantly in {wins[UNDECIDED]}" if wins[UNDECIDED] else ""
    return f"{claim} Of {different}: {a} is ahead in {wins['a']}, {b} in {wins['b']}{neither}."
