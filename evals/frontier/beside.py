"""Verdicts beside the first one, from `frontier.json`: every one in a list, those that stand wherever the first stands
as sentences, and one line for each selector. For terminal, page and documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gram.evals.frontier.verdict import ahead_by, undecided
from gram.formatting import percent, signed, span

Frontier = Mapping[str, Any]


def verdicts_of(frontier: Frontier) -> list[dict[str, Any]]:
    """Every verdict: the page's first, that of coverage, and those beside."""
    main, covered = frontier["verdict"], frontier["coverage"]
    also = [] if covered is None else [{**main, **covered, "measure": "coverage", "selector": None}]
    return [main, *also, *frontier["verdicts_beside"]]


def beside_sentences(frontier: Frontier) -> list[str]:
    """What is said after the first sentence, wherever that stands: against restarts, the other halting rules, matched
    arithmetic, coverage."""
    covered = frontier["coverage"] or {}
    ways = "; ".join(f"{_way(each)}, {_ending(each)}" for each in beside(frontier))
    told = [frontier["verdict"]["restarts_sentence"], f"{ways[:1].upper()}{ways[1:]}." if ways else None]
    told += [covered.get("sentence"), covered.get("restarts_sentence")]
    return [sentence for sentence in told if sentence]


def beside(frontier: Frontier) -> list[Mapping[str, Any]]:
    """Verdicts that stand wherever the first stands: of the other halting rules, and at matched arithmetic."""
    verdict = frontier["verdict"]
    return [
        each
        for each in frontier["verdicts_beside"]
        if (each["measure"], each["selector"]) == (verdict["measure"], verdict["selector"])
        and (each["halting"] == verdict["halting"]) == (each["matched_by"] == "macs")
        and each["matched_by"] in (verdict["matched_by"], "macs")
    ]


def _way(each: Mapping[str, Any]) -> str:
    return "at matched arithmetic" if each["matched_by"] == "macs" else f"with halting {each['halting']}"


def _ending(each: Mapping[str, Any]) -> str:
    """How a verdict ends, in short."""
    if each["difference"] is None:
        return "nothing can be compared"
    if each["winner"] is None:
        return f"width and depth do not differ significantly: {undecided(each)}"
    lead, interval = ahead_by(each, each["measure"], is_first=each["winner"] == "width")
    return f"{each['winner']} gives {lead} ({interval})"


def selector_heads(frontier: Frontier) -> list[str]:
    """Headings of `selector_lines`."""
    rules = frontier["grid"]["haltings"][1:]
    return ["selector", "depth", "width", "width minus depth", *rules, "MACs", "restarts"]


def selector_lines(frontier: Frontier) -> list[list[str]]:
    """One line for each selector: both arms' shares in per cent, and the differences in points."""
    verdict, found = frontier["verdict"], by_way(frontier, "accuracy")
    first = verdict["halting"], verdict["matched_by"]
    return [
        [selector, *_figures(frontier, found, selector, each)]
        for selector in frontier["grid"]["selectors"]
        if (each := found.get((selector, *first))) is not None
    ]


def coverage_line(frontier: Frontier) -> list[str]:
    """The same of coverage, which no selector takes part in."""
    each, found = frontier["coverage"], by_way(frontier, "coverage")
    return ["(coverage)", *_figures(frontier, found, None, each)]


def by_way(frontier: Frontier, measure: str) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Verdicts of a measure by selector, halting rule and way of matching."""
    return {
        (each["selector"], each["halting"], each["matched_by"]): each
        for each in verdicts_of(frontier)
        if each["measure"] == measure and each["budget"] is not None
    }


def _figures(
    frontier: Frontier, found: Mapping[tuple[Any, ...], Mapping[str, Any]], selector: str | None, each: Any
) -> list[str]:
    halting, by = frontier["verdict"]["halting"], frontier["verdict"]["matched_by"]
    others = [(rule, by) for rule in frontier["grid"]["haltings"][1:]]
    return [
        *(percent((each[family] or {}).get("value")) for family in ("depth", "width")),
        _points(each, has_interval=True),
        *(_points(found.get((selector, *way))) for way in [*others, (halting, "macs")]),
        _points(each["restarts_difference"]),
    ]


def _points(found: Mapping[str, Any] | None, *, has_interval: bool = False) -> str:
    """A difference, with its interval; a star where it counts."""
    if found is None or found.get("difference") is None:
        return "-"
    interval = f" ({span(found['low'], found['high'], is_signed=True)})" if has_interval else ""
    return f"{signed(found['difference'])}{'*' if found['winner'] is not None else ''}{interval}"
