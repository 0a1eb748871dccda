"""The verdicts of a frontier on a terminal: the sentences, what warns of them, and one line for each selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show(label: str, made: Mapping[str, Any]) -> None:
    """Prints the verdicts of what `frontier.json` holds."""
    from gram.cli import terminal
    from gram.evals.report import beside_sentences

    verdict, covered = made["verdict"], made["coverage"]
    console = terminal.output()
    lines = [f"\n{label}: {verdict['sentence']}", *beside_sentences(made)]
    for line in filter(None, lines):
        console.print(line, soft_wrap=True)
    for warning in verdict["warnings"]:
        console.print(f"Warning: {warning}", soft_wrap=True)
    rows = selector_lines(made)
    if not rows:
        return
    rules = made["grid"]["haltings"][1:]
    table = terminal.table("selector", "depth", "width", "width less depth", *rules, "MACs", "restarts")
    for row in rows:
        table.add_row(*row)
    if covered is not None:
        table.add_row(*coverage_line(made))
    console.print(table)
    console.print("points, at the headline's budget; *: told apart", style="dim")


def selector_lines(made: Mapping[str, Any]) -> list[list[str]]:
    """One line for each selector: both arms' shares in per cent, and the differences in points."""
    verdict, found = made["verdict"], _by_way(made, "accuracy")
    first = verdict["halting"], verdict["matched_by"]
    return [
        [selector, *_figures(made, found, selector, each)]
        for selector in made["grid"]["selectors"]
        if (each := found.get((selector, *first))) is not None
    ]


def coverage_line(made: Mapping[str, Any]) -> list[str]:
    """The same of coverage, which no selector takes part in."""
    each, found = made["coverage"], _by_way(made, "coverage")
    return ["(coverage)", *_figures(made, found, None, each)]


def _by_way(made: Mapping[str, Any], measure: str) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Verdicts of a measure by selector, halting rule and way of matching."""
    from gram.evals.tables import verdicts_of

    return {
        (each["selector"], each["halting"], each["matched_by"]): each
        for each in verdicts_of(made)
        if each["measure"] == measure and each["budget"] is not None
    }


def _figures(
    made: Mapping[str, Any], found: Mapping[tuple[Any, ...], Mapping[str, Any]], selector: str | None, each: Any
) -> list[str]:
    halting, by = made["verdict"]["halting"], made["verdict"]["matched_by"]
    others = [(rule, by) for rule in made["grid"]["haltings"][1:]]
    return [
        *(_arm(each[family]) for family in ("depth", "width")),
        _points(each, has_interval=True),
        *(_points(found.get((selector, *way))) for way in [*others, (halting, "macs")]),
        _points(each["restarts_difference"]),
    ]


def _arm(cell: Mapping[str, Any] | None) -> str:
    from gram.cli.terminal import percent

    return percent(None if cell is None else cell["value"])


def _points(found: Mapping[str, Any] | None, *, has_interval: bool = False) -> str:
    """A difference, with its interval; a star where it counts."""
    if found is None or found.get("difference") is None:
        return "-"
    interval = f" ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})" if has_interval else ""
    return f"{100 * found['difference']:+.1f}{'*' if found['winner'] is not None else ''}{interval}"
