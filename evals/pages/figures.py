"""The report's figures: from `frontier.json` to pictures of the page (`charts.py`). One function a figure.

Each returns HTML, or an empty string where its numbers are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gram.evals.pages.charts import Chart, HeatMap, contour_segments, linear_ticks, log_ticks

Frontier = Mapping[str, Any]
Cell = dict[str, Any]
FEWEST = 20
"""Trajectories of a calibration bin below which its share of right ones is chance."""
FAMILY_WORDS = {
    "depth": "depth only (one trajectory)",
    "width": "width only (at once, trained depth)",
    "mixed": "mixed",
    "restarts": "restarts (one after another)",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent; a dash where undefined."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def signed(share: float) -> str:
    """A difference of shares in points, with its sign; never `-0.0`."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def milliseconds(value: float | None) -> str:
    """A time; a dash where undefined."""
    if value is None:
        return "-"
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def count(value: float | None) -> str:
    """A count of operations in short; a dash where undefined."""
    if value is None:
        return "-"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def amount(value: float | None, by: str) -> str:
    """A budget in short, by what it is matched by."""
    if by == "macs":
        return count(value)
    return milliseconds(value) if by.startswith("latency") or value is None else f"{value:.3g} J"


def best_cells(frontier: Frontier, measure: str, halting: str) -> dict[tuple[int, int], Cell]:
    """The cell of the verdict's selector for each width and depth, with `value`, `value_low`, `value_high`."""
    names = ("coverage", "coverage_low", "coverage_high") if measure == "coverage" else ("accuracy", "low", "high")
    best: dict[tuple[int, int], Cell] = {}
    for cell in frontier["cells"]:
        is_wanted = (cell["halting"], cell["selector"]) == (halting, frontier["verdict"]["selector"])
        if is_wanted and cell[names[0]] is not None:
            shown = dict(zip(("value", "value_low", "value_high"), (cell[name] for name in names), strict=True))
            best[cell["width"], cell["depth"]] = {**cell, **shown}
    return best


def tip(cell: Cell, measure: str) -> str:
    """What hovering over a cell shows."""
    lines = [f"{cell['width']} trajector{'y' if cell['width'] == 1 else 'ies'} x {cell['depth']} steps"]
    lines.append(f"{measure} {percent(cell['value'])} ({percent(cell['value_low'])} to {percent(cell['value_high'])})")
    if measure == "coverage":
        lines.append(f"accuracy {percent(cell['accuracy'])} ({cell['selector']})")
        lines.append(f"single accuracy {percent(cell['single_accuracy'])}")
    else:
        lines.append(f"selector {cell['selector']}" if cell["width"] > 1 else "no selection")
    lines.append(f"pass@{cell['width']} {percent(cell['pass_at_width'])}")
    if cell["latency_ms"] is not None:
        lines.append(f"latency {milliseconds(cell['latency_ms'])} (p95 {milliseconds(cell['latency_ms_p95'])})")
    lines.append(f"{count(cell['macs'])}MACs, {cell['steps']:.1f} steps a trajectory")
    return "\n".join(lines)


def key(entries: Iterable[tuple[str, str]], *, is_block: bool = False) -> str:
    """A legend: class and words of each entry."""
    mark = ' class="block"' if is_block else ""
    return '<ul class="key">' + "".join(f'<li class="{c}"><i{mark}></i>{escape(w)}</li>' for c, w in entries) + "</ul>"


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """A range of shares with some air, within 0 and 1."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = max(0.08 * (high - low), 0.01)
    return max(0.0, low - air), min(1.0, high + air)


def shares(chart: Chart, x_ticks: Sequence[float], **labels: Any) -> None:
    """Axes of a chart whose upright axis is a share, in per cent."""
    ticks = linear_ticks(*chart.y_range)
    digits = 0 if all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in ticks) else 1
    chart.left += 14 * digits  # longer figures beside the upright label
    chart.axes(x_ticks, ticks, y_format=lambda value: f"{100 * value:.{digits}f} %", **labels)


def family_curves(frontier: Frontier, measure: str, halting: str, price: str = "latency_ms") -> str:
    """The measure against latency: depth, width, mixed and restarts, with bands of 95 %; coverage with the ceiling of
    one answer."""
    cells = {place: cell for place, cell in best_cells(frontier, measure, halting).items() if cell[price]}
    if not cells:
        return ""
    trained = frontier["grid"]["trained_depth"]
    families = {
        "mixed": [cell for (n, m), cell in cells.items() if n > 1 and m != trained],
        "restarts": one_after_another(cells, price),
        "width": [cell for (n, m), cell in cells.items() if n > 1 and m == trained],
        "depth": [cell for (n, _), cell in cells.items() if n == 1],
    }
    prices = [cell[price] for cell in cells.values()]
    shown = [cell[name] for cell in cells.values() for name in ("value_low", "value_high") if cell[name] is not None]
    ceiling = (frontier["coverage"] or {}).get("one_answer_ceiling") if measure == "coverage" else None
    shown += [] if ceiling is None else [ceiling]
    is_time = price != "macs"
    chart = Chart(
        (min(prices) * 0.9, max(prices) * 1.15), value_range(shown), f"{measure} against {price}", is_log_x=True
    )
    form = milliseconds if is_time else count
    shares(
        chart,
        log_ticks(*chart.x_range),
        x_label="latency of a puzzle (expected)" if is_time else "multiply-accumulates of a puzzle",
        y_label=measure,
        x_format=form,
    )
    if ceiling is not None:
        chart.line([(chart.x_range[0], ceiling), (chart.x_range[1], ceiling)], "neutral dashed")
    for name, members in families.items():
        # A family of one parameter is a path along it; by price, noise would make it a zigzag.
        ordered = sorted(members, key=lambda cell: (cell["width"], cell["depth"]))
        path = rising(members, price) if name in ("mixed", "restarts") else ordered
        path = [cell for cell in path if cell[price] <= chart.x_range[1]]
        points = [(cell[price], cell["value"]) for cell in path]
        if all(cell["value_low"] is not None for cell in path):
            chart.band(
                [(cell[price], cell["value_low"]) for cell in path],
                [(cell[price], cell["value_high"]) for cell in path],
                name,
            )
        chart.line(points, name)
        for cell in path:
            chart.dot(cell[price], cell["value"], name, tip(cell, measure))
    names = [(name, FAMILY_WORDS[name]) for name in FAMILY_WORDS if families[name]]
    names += [] if ceiling is None else [("neutral", "at most, with one answer")]
    return key(names) + chart.svg()


def one_after_another(cells: Mapping[tuple[int, int], Cell], price: str) -> list[Cell]:
    """Cells of several trajectories at the price of one after another."""
    return [
        {**cell, price: n * cells[1, m][price], "latency_ms_p95": None}
        for (n, m), cell in cells.items()
        if n > 1 and (1, m) in cells
    ]


def rising(cells: Sequence[Cell], price: str) -> list[Cell]:
    """The cells that no cheaper one reaches."""
    kept: list[Cell] = []
    for cell in sorted(cells, key=lambda each: (each[price], -each["value"])):
        if not kept or cell["value"] > kept[-1]["value"]:
            kept.append(cell)
    return kept


def heat(frontier: Frontier, measure: str, halting: str) -> str:
    """Width by depth, with contours of latency at the budgets."""
    grid, cells = frontier["grid"], best_cells(frontier, measure, halting)
    if not cells:
        return ""
    places = [[(width, depth) for width in grid["widths"]] for depth in grid["depths"]]
    values = [[cells[place]["value"] if place in cells else None for place in row] for row in places]
    tips = [[tip(cells[place], measure) if place in cells else "" for place in row] for row in places]
    latency = [[cells[place]["latency_ms"] if place in cells else None for place in row] for row in places]
    budgets = [
        row["budget"]
        for row in frontier["budgets"]
        if (row["matched_by"], row["halting"], row["measure"]) == ("latency interactive", halting, measure)
    ]
    contours = [(milliseconds(level), contour_segments(latency, level)) for level in budgets]
    notes = [[milliseconds(value) if value else "" for value in row] for row in latency]
    columns, rows = ([str(number) for number in grid[name]] for name in ("widths", "depths"))
    drawn = HeatMap(columns, rows, values, notes, tips, f"{measure} by width and depth")
    return drawn.svg(x_label="width (trajectories)", y_label="depth (supervision steps)", contours=contours)


def latency_chart(prices: Sequence[float], bounds: Sequence[float], measure: str, title: str) -> Chart:
    """A chart of the measure, with room for `bounds`, against the expected latency of a puzzle, ms on a logarithm."""
    chart = Chart((min(prices) * 0.9, max(prices) * 1.15), value_range(bounds), title, is_log_x=True)
    shares(
        chart,
        log_ticks(*chart.x_range),
        x_label="latency of a puzzle (expected)",
        y_label=measure,
        x_format=milliseconds,
    )
    return chart


def pareto(frontier: Frontier, measure: str, halting: str) -> str:
    """All cells, and the line of those that no cheaper one reaches."""
    cells = [cell for cell in best_cells(frontier, measure, halting).values() if cell["latency_ms"]]
    if not cells:
        return ""
    trained = frontier["grid"]["trained_depth"]
    prices, values = [cell["latency_ms"] for cell in cells], [cell["value"] for cell in cells]
    chart = latency_chart(prices, values, measure, "Pareto frontier")
    best = rising(cells, "latency_ms")
    last = {**best[-1], "latency_ms": max(prices)}
    chart.line([(cell["latency_ms"], cell["value"]) for cell in [*best, last]], "pass", is_stepped=True)
    for cell in sorted(cells, key=lambda each: each in best):
        family = "depth" if cell["width"] == 1 else "width" if cell["depth"] == trained else "mixed"
        radius = 5.5 if cell in best else 3.2
        chart.dot(cell["latency_ms"], cell["value"], family, tip(cell, measure), radius=radius)
    names = [("pass", "no cheaper cell reaches more"), *((name, FAMILY_WORDS[name]) for name in FAMILY_WORDS)]
    return key(names) + chart.svg()


def selector_gap(frontier: Frontier, halting: str) -> str:
    """pass@N and each selector's accuracy by width, at the trained depth."""
    grid = frontier["grid"]
    cells = [
        cell
        for cell in frontier["cells"]
        if cell["halting"] == halting and cell["depth"] == grid["trained_depth"] and cell["accuracy"] is not None
    ]
    if not cells or len(grid["widths"]) < 2:
        return ""
    lines: dict[str, list[tuple[float, float]]] = {f"pass@{'N'}": []}
    for cell in cells:
        lines.setdefault(cell["selector"], []).append((cell["width"], cell["accuracy"]))
        if cell["selector"] == grid["selectors"][0]:
            lines["pass@N"].append((cell["width"], cell["pass_at_width"]))
    shown = [value for points in lines.values() for _, value in points]
    chart = Chart((0.92, grid["widths"][-1] * 1.09), value_range(shown), "Selectors against pass@N", is_log_x=True)
    shares(chart, grid["widths"], x_label="width (trajectories)", y_label="accuracy", x_format=lambda x: f"{x:.0f}")
    names = []
    for place, (name, points) in enumerate(lines.items()):
        colour = "pass" if place == 0 else f"s{(place - 1) % 7 + 1}"
        names.append((colour, name))
        chart.line(points, colour)
        for width, value in points:
            chart.dot(width, value, colour, f"{name}\nwidth {width}: {percent(value)}", radius=3.8)
    return key(names) + chart.svg()


def stop_histogram(frontier: Frontier) -> str:
    """Steps at which the halt head stops, by the verdict on the answer."""
    stops = frontier["heads"]["stops"]
    total = sum(stops["right"]) + sum(stops["wrong"])
    if not total:
        return ""
    columns = list(zip(stops["step"], stops["right"], stops["wrong"], strict=True))
    tallest = max(right + wrong for _, right, wrong in columns) / total
    chart = Chart((0.3, len(columns) + 0.7), (0, tallest * 1.06), "Steps to halt")
    wide = min(34.0, 0.8 * (chart.width - chart.left - chart.right) / len(columns))
    every = max(1, math.ceil(len(columns) / 16))
    ticks = [place for place in range(1, len(columns)) if (place - 1) % every == 0 and place < len(columns) - every / 2]

    def name(place: float) -> str:
        return "never" if place == len(columns) else f"{place:.0f}"

    shares(chart, [*ticks, len(columns)], x_label="supervision step of the halt", y_label="trajectories", x_format=name)
    for place, (step, right, wrong) in enumerate(columns, start=1):
        start = "never halts" if step is None else f"halts after step {step}"
        words = f"{start}\n{percent((right + wrong) / total)} of trajectories\n{right:,} right, {wrong:,} wrong"
        chart.bar(place, 0, right / total, wide, "right", words)
        chart.bar(place, right / total, (right + wrong) / total, wide, "wrong", words)
    return key([("right", "answer right"), ("wrong", "answer wrong")], is_block=True) + chart.svg()


def calibration(frontier: Frontier) -> str:
    """Predicted against actual at a few steps, and AUROC by step."""
    steps = [step for step in frontier["heads"]["steps"] if step["accuracy"] is not None]
    if not steps:
        return ""
    left = Chart((0, 1), (0, 1), "Calibration of the halt head", width=360, height=330, left=58)
    tens = [0, 0.25, 0.5, 0.75, 1]
    # The upright axis' 0 stands in the corner for both.
    shares(left, tens[1:], x_label="predicted", y_label="right", x_format=lambda value: f"{100 * value:.0f} %")
    left.line([(0, 0), (1, 1)], "neutral")
    chosen = [step for step in steps if step["step"] in frontier["grid"]["depths"]][:7]
    names = []
    for place, step in enumerate(chosen):
        colour = f"s{place + 1}"
        bins = [each for each in step["bins"] if each["count"] >= FEWEST]
        left.line([(each["predicted"], each["right"]) for each in bins], colour)
        for each in bins:
            words = f"step {step['step']}\npredicted {percent(each['predicted'])}\nright {percent(each['right'])}"
            left.dot(each["predicted"], each["right"], colour, f"{words}\n{each['count']:,} trajectories", radius=3.2)
        names.append((colour, f"step {step['step']}"))
    known = [step for step in steps if step["halt_auroc"] is not None]
    right = Chart((0.5, steps[-1]["step"] + 0.5), (0, 1), "AUROC and calibration error by step", width=360, height=330)
    right.left = 58
    ticks = [step["step"] for step in steps if (step["step"] - 1) % max(1, math.ceil(len(steps) / 6)) == 0]
    shares(right, ticks, x_label="supervision step", y_label="", x_format=lambda value: f"{value:.0f}")
    for name, label, colour, some in (
        ("halt_auroc", "AUROC", "s1", known),
        ("ece", "calibration error", "s2", steps),
    ):
        right.line([(step["step"], step[name]) for step in some], colour)
        for step in some:
            right.dot(step["step"], step[name], colour, f"step {step['step']}\n{label} {step[name]:.3f}", radius=3.2)
    both = key([("s1", "AUROC of the halt logit"), ("s2", "expected calibration error")]) + right.svg()
    return f'<div class="pair"><div>{key(names)}{left.svg()}</div><div>{both}</div></div>'


def difficulty(frontier: Frontier) -> str:
    """The measure by quarter of difficulty, for one trajectory and the verdict's cells."""
    found = frontier["difficulty"]
    rows = [] if found is None else [row for row in found["rows"] if row["value"] is not None]
    if not rows or found is None:
        return ""
    ranges = sorted({(row["from"], row["to"]) for row in rows})
    labels = list(dict.fromkeys(row["cells"] for row in rows))
    shown = [row[name] for row in rows for name in ("low", "high", "value") if row[name] is not None]
    chart = Chart((0.5, len(ranges) + 0.5), value_range(shown), "By difficulty")

    def name(place: float) -> str:
        low, high = ranges[int(place) - 1]
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"

    unit = "solutions of the puzzle" if found["by"] == "solutions" else "rating of the puzzle"
    ticks = [float(place) for place in range(1, len(ranges) + 1)]
    shares(chart, ticks, x_label=unit, y_label=frontier["verdict"]["measure"], x_format=name)
    for row in rows:
        colour = row["cells"] if row["cells"] in FAMILY_WORDS else "neutral"
        place = ranges.index((row["from"], row["to"])) + 1 + 0.14 * (labels.index(row["cells"]) - (len(labels) - 1) / 2)
        if row["low"] is not None:
            chart.whisker(place, row["low"], row["high"], colour)
        interval = f"{percent(row['low'])} to {percent(row['high'])}"
        words = f"{row['cells']}: {row['width']} x {row['depth']}\n{percent(row['value'])} ({interval})"
        chart.dot(place, row["value"], colour, f"{words}\n{row['puzzles']:,} puzzles")
    names = [(label if label in FAMILY_WORDS else "neutral", FAMILY_WORDS.get(label, label)) for label in labels]
    return key(names) + chart.svg()
