"""Tables of the reports' pages as HTML. Each is an empty string where its numbers are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gram.evals.frontier.beside import by_way, verdicts_of
from gram.evals.frontier.budgets import UNDECIDED
from gram.evals.pages.figures import FAMILY_WORDS, shown_steps
from gram.formatting import amount, count, milliseconds, number, percent, signed, span

Frontier = Mapping[str, Any]
Entry = tuple[str, Any, str]
"""A cell of a table: its HTML, the value to sort by (None: its text) and a class."""
NOTHING: Entry = ("-", "", "")


def table(heads: Sequence[str], rows: Sequence[Sequence[Entry]], *, is_tall: bool = False) -> str:
    """A sortable table, empty without rows; a tall one scrolls in its own frame on a screen."""
    if not rows:
        return ""
    is_text = [any("text" in style.split() for _, _, style in column) for column in zip(*rows, strict=True)]
    head = "".join(
        f'<th scope="col" class="{"text" if kind else ""}"><button type="button">{escape(name)}</button></th>'
        for name, kind in zip(heads, is_text, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{style}"' + ("" if value is None else f' data-value="{escape(str(value))}"') + f">{text}</td>"
            for text, value, style in row
        )
        + "</tr>"
        for row in rows
    )
    tall = " tall" if is_tall else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll{tall}" tabindex="0"><table class="sortable">{inner}</table></div>'


def words(text: Any) -> Entry:
    """Text."""
    return escape(str(text)), None, "text"


def share(value: float | None, low: float | None = None, high: float | None = None, style: str = "") -> Entry:
    """A share in per cent, its interval below where there is one."""
    if value is None:
        return NOTHING
    interval = span(low, high)
    return percent(value) + (f"<br><small>{interval}</small>" if interval else ""), value, style


def time(value: float | None, p95: float | None = None) -> Entry:
    """A time, its 95th percentile below where there is one."""
    if value is None:
        return NOTHING
    under = "" if p95 is None else f"<br><small>p95 {milliseconds(p95)}</small>"
    return milliseconds(value) + under, value, ""


def points(found: Mapping[str, Any], style: str = "") -> Entry:
    """A difference in points, its interval below."""
    if found.get("difference") is None or found.get("is_same_cell"):
        return NOTHING
    interval = span(found["low"], found["high"], is_signed=True)
    return f"{signed(found['difference'])}<br><small>{interval}</small>", found["difference"], style


def p_value(value: float | None) -> Entry:
    """A corrected p-value."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= 0.001 else "&lt; .001", value, ""


def chosen(cell: Mapping[str, Any] | None, by: str, style: str = "", *, has_precision: bool = False) -> Entry:
    """The score of a chosen cell; below it its size (two where the halves chose differently), what it spends and,
    beside coverage, the single accuracy of its trajectories."""
    if cell is None:
        return NOTHING
    lines = [sizes(cell), amount(cell["spent"], by)]
    lines += [f"single {percent(cell['single_accuracy'])}"] if has_precision else []
    return f"{percent(cell['value'])}<br><small>{'<br>'.join(lines)}</small>", cell["value"], style


def sizes(cell: Mapping[str, Any]) -> str:
    """Width x depth of a chosen cell; both where each half chose its own."""
    both = [f"{each['width']} x {each['depth']}" for each in (cell, cell.get("other_half")) if each is not None]
    return " / ".join(dict.fromkeys(both))


def budget_table(frontier: Frontier, measure: str, by: str) -> str:
    """Best cells of each family at each budget, and width minus depth and minus restarts: every halting rule has
    its rows."""
    made = []
    for halting in frontier["grid"]["haltings"]:
        for row in frontier["budgets"]:
            if (row["matched_by"], row["measure"], row["halting"]) != (by, measure, halting):
                continue
            found, serial = row["contrasts"]["width-depth"], row["contrasts"]["width-restarts"]
            line: list[Entry] = [words(halting), (amount(row["budget"], by), row["budget"], "")]
            line += [chosen(row[family], by, family, has_precision=measure == "coverage") for family in FAMILY_WORDS]
            p = None if found.get("is_same_cell", True) else found["p_holm"]
            line += [points(found), p_value(p), winner(found["verdict"])]
            made.append([*line, points(serial, serial["verdict"] if serial["verdict"] in FAMILY_WORDS else "")])
    heads = ["halting", "budget", "depth only", "width only", "mixed", "restarts", "width minus depth, points"]
    heads += ["p (Holm)", "ahead", "width minus restarts"]
    is_serial = any(row[5] != NOTHING for row in made)
    kept = [place for place in range(len(heads)) if is_serial or place not in (5, 9)]
    return table([heads[place] for place in kept], [[row[place] for place in kept] for row in made])


def winner(verdict: str) -> Entry:
    """Who is ahead."""
    if verdict == "nothing to compare":
        return NOTHING
    words_there = {UNDECIDED: "not significant"}.get(verdict, verdict)
    return escape(words_there), verdict, f"text {verdict} win" if verdict in FAMILY_WORDS else "text"


def verdict_table(frontier: Frontier) -> str:
    """The verdict for each measure, halting rule and way of matching: the page's first sentence is one of the rows."""
    rows = []
    for each in verdicts_of(frontier):
        if each["budget"] is None or each["selector"] not in (None, frontier["verdict"]["selector"]):
            continue
        by, even = each["matched_by"], each["break_even"]
        row = [words(each["measure"]), words(each["halting"]), words(matching(by))]
        row += [(amount(each["budget"], by), each["budget"], "")]
        row += [chosen(each[family], by, family) for family in ("depth", "width")]
        row += [points(each), winner(each["winner"] or "neither")]
        rows.append([*row, ("none" if even is None else amount(even, by), even or "", "")])
    heads = ["measure", "halting", "matched by", "budget", "depth only", "width only", "width minus depth, points"]
    return table([*heads, "ahead", "width ahead from"], rows)


def selector_table(frontier: Frontier) -> str:
    """One verdict for each selector, the same on both arms: by latency, without halting, by arithmetic, and against
    restarts."""
    main, grid = frontier["verdict"], frontier["grid"]
    found, first = by_way(frontier, "accuracy"), (main["halting"], main["matched_by"])
    ways = [first, *((rule, first[1]) for rule in grid["haltings"][1:]), (first[0], "macs")]
    rows = []
    for selector in grid["selectors"]:
        each = found.get((selector, *first))
        if each is None:
            continue
        row = [words(selector), *(chosen(each[family], first[1], family) for family in ("depth", "width", "restarts"))]
        some = [*(found.get((selector, *way), {}) for way in ways), each["restarts_difference"]]
        rows.append([*row, *(points(one, one.get("winner") or "") for one in some)])
    heads = ["selector", "depth only", "width only", "restarts", "width minus depth"]
    heads += ["MACs" if by == "macs" else f"halting {rule}" for rule, by in ways[1:]]
    return table([*heads, "width minus restarts"], rows)


def matching(by: str) -> str:
    """A way of matching in words."""
    known = {"latency interactive": "latency, one puzzle", "latency throughput": "latency, full batch", "macs": "MACs"}
    return known.get(by, by)


def latency_table(frontier: Frontier) -> str:
    """What every width and depth costs, halting on and off, one puzzle at a time and in full batches."""
    seen: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for cell in frontier["cells"]:
        seen.setdefault((cell["halting"], cell["width"], cell["depth"]), cell)
    rows = []
    for (halting, width, depth), cell in seen.items():
        both = [[cell[f"{mode}_ms{part}"] for part in ("", "_p95")] for mode in ("latency", "throughput")]
        if all(each[0] is None for each in both):
            continue
        rate = 1e3 / both[1][0] if both[1][0] else None
        row: list[Entry] = [words(halting), (str(width), None, ""), (str(depth), None, "")]
        row += [time(*each) for each in both]
        row.append(figure(rate, 0) if rate is None or rate >= 100 else (f"{rate:.3g}", rate, ""))
        rows.append(row)
    heads = ["halting", "width", "depth", "one puzzle at a time", "full batch, a puzzle", "puzzles a second"]
    return table(heads, rows, is_tall=True)


def calibration_table(frontier: Frontier) -> str:
    """The heads at every supervision step, or at the grid's depths where there are many."""
    steps = shown_steps(frontier)
    names = ("ece", "brier", "halt_auroc", "halt_auroc_within", "lprm_auroc_within")
    rows = []
    for step in steps:
        row: list[Entry] = [(str(step["step"]), None, "text"), share(step["accuracy"])]
        row += [figure(step[name], 3) for name in names]
        rows.append(row)
    heads = ["step", "right", "calibration error", "Brier score", "AUROC", "AUROC in a puzzle"]
    return table([*heads, "LPRM's AUROC in a puzzle"], rows)


def cell_table(frontier: Frontier) -> str:
    """Every cell of the grid."""
    is_multi = "coverage" in frontier["grid"]["measures"]
    heads = ["width", "depth", "halting", "selector", "accuracy", "single accuracy", "pass@N"]
    heads += ["coverage", "solutions found"] if is_multi else []
    heads += ["conflicts", "latency", "batch", "MACs", "steps"]
    rows = []
    for cell in frontier["cells"]:
        if cell["width"] == 1 and cell["selector"] != frontier["grid"]["selectors"][0]:
            continue
        row: list[Entry] = [(str(cell["width"]), None, ""), (str(cell["depth"]), None, ""), words(cell["halting"])]
        row += [words("-" if cell["width"] == 1 else cell["selector"])]
        row += [share(cell["accuracy"], cell["low"], cell["high"]), share(cell["single_accuracy"])]
        row += [share(cell["pass_at_width"])]
        if is_multi:
            row += [share(cell["coverage"], cell["coverage_low"], cell["coverage_high"])]
            row += [figure(cell["unique_solutions"], 2)]
        row += [figure(cell["conflicts"], 3), time(cell["latency_ms"]), time(cell["throughput_ms"])]
        macs = NOTHING if cell["macs"] is None else (count(cell["macs"]), cell["macs"], "")
        row += [macs, figure(cell["steps"], 1)]
        rows.append(row)
    return table(heads, rows, is_tall=True)


def figure(value: float | None, digits: int, style: str = "") -> Entry:
    """A number."""
    return NOTHING if value is None else (number(value, digits), value, style)
