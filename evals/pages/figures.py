"""The report's figures: from `frontier.json` to pictures (`charts.py`), for the page and for files (`pictures.py`).

One function draws one figure; it returns None where its numbers are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gram.evals.pages.charts import Chart, HeatMap, contour_segments, linear_ticks, log_ticks
from gram.formatting import count, milliseconds, percent, plural, span

Frontier = Mapping[str, Any]
Cell = dict[str, Any]
MANY = 64
"""Supervision steps beyond which a figure shows some of them, or several in one bar."""
FEWEST = 20
"""A calibration bin of fewer trajectories is left out: its share of right ones is chance."""
FAMILY_WORDS = {
    "depth": "depth only (one trajectory)",
    "width": "width only (at once, trained depth)",
    "mixed": "mixed",
    "restarts": "restarts (one after another)",
}


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


def timed_cells(frontier: Frontier, measure: str, halting: str) -> dict[tuple[int, int], Cell]:
    """The same, of cells with a latency."""
    found = best_cells(frontier, measure, halting)
    return {place: cell for place, cell in found.items() if cell["latency_ms"]}


def tip(cell: Cell, measure: str) -> str:
    """What hovering over a cell shows."""
    lines = [f"{plural(cell['width'], 'trajectory', 'trajectories')} x {plural(cell['depth'], 'step')}"]
    lines.append(f"{measure} {percent(cell['value'])} ({span(cell['value_low'], cell['value_high']) or '-'})")
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


def value_range(values: Sequence[float | None]) -> tuple[float, float]:
    """A range of the shares that are known with some air, within 0 and 1."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    air = max(0.08 * (high - low), 0.01)
    return max(0.0, low - air), min(1.0, high + air)


def shares(chart: Chart, x_ticks: Sequence[float], **labels: Any) -> None:
    """Axes of a chart whose upright axis is a share, in per cent."""
    ticks = linear_ticks(*chart.y_range)
    digits = 0 if all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in ticks) else 1
    chart.left += 14 * digits  # longer figures beside the upright label
    chart.axes(x_ticks, ticks, y_format=lambda value: percent(value, digits), **labels)


def whole(value: float) -> str:
    """The words of a tick that is a whole number."""
    return f"{value:.0f}"


def latency_chart(cells: Sequence[Cell], values: Sequence[float | None], measure: str, title: str) -> Chart:
    """A chart of the measure, with room for `values`, against the expected latency of a puzzle on a logarithm."""
    prices = [cell["latency_ms"] for cell in cells]
    x_range = min(prices) * 0.9, max(prices) * 1.15
    chart = Chart(x_range=x_range, y_range=value_range(values), title=title, is_log_x=True)
    ticks = log_ticks(*x_range)
    shares(chart, ticks, x_label="latency of a puzzle (expected)", y_label=measure, x_format=milliseconds)
    return chart


def band(chart: Chart, path: Sequence[Cell], colour: str) -> None:
    """The 95 % intervals along a path, where all are known."""
    if all(cell["value_low"] is not None for cell in path):
        low, high = ([(cell["latency_ms"], cell[name]) for cell in path] for name in ("value_low", "value_high"))
        chart.band(low, high, colour)


def family_curves(frontier: Frontier, measure: str, halting: str) -> Chart | None:
    """The measure against latency: depth, width, mixed and restarts, with bands of 95 %; coverage with the ceiling of
    one answer."""
    cells = timed_cells(frontier, measure, halting)
    if not cells:
        return None
    trained = frontier["grid"]["trained_depth"]
    families = {
        "mixed": [cell for (n, m), cell in cells.items() if n > 1 and m != trained],
        "restarts": one_after_another(cells),
        "width": [cell for (n, m), cell in cells.items() if n > 1 and m == trained],
        "depth": [cell for (n, _), cell in cells.items() if n == 1],
    }
    ceiling = (frontier["coverage"] or {}).get("one_answer_ceiling") if measure == "coverage" else None
    bounds = [cell[name] for cell in cells.values() for name in ("value_low", "value_high")]
    chart = latency_chart(list(cells.values()), [*bounds, ceiling], measure, f"{measure} against latency")
    if ceiling is not None:
        chart.line([(chart.x_range[0], ceiling), (chart.x_range[1], ceiling)], "neutral dashed")
    for name, members in families.items():
        # A family of one parameter is a path along it; by price, noise would make it a zigzag.
        ordered = sorted(members, key=lambda cell: (cell["width"], cell["depth"]))
        path = rising(members) if name in ("mixed", "restarts") else ordered
        path = [cell for cell in path if cell["latency_ms"] <= chart.x_range[1]]
        band(chart, path, name)
        chart.line([(cell["latency_ms"], cell["value"]) for cell in path], name)
        for cell in path:
            chart.dot(cell["latency_ms"], cell["value"], name, tip(cell, measure))
    chart.key = [(name, FAMILY_WORDS[name]) for name in FAMILY_WORDS if families[name]]
    chart.key += [] if ceiling is None else [("neutral", "at most, with one answer")]
    return chart


def one_after_another(cells: Mapping[tuple[int, int], Cell]) -> list[Cell]:
    """Cells of several trajectories at the latency of one after another."""
    return [
        {**cell, "latency_ms": n * cells[1, m]["latency_ms"], "latency_ms_p95": None}
        for (n, m), cell in cells.items()
        if n > 1 and (1, m) in cells
    ]


def rising(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that no faster one reaches."""
    kept: list[Cell] = []
    for cell in sorted(cells, key=lambda each: (each["latency_ms"], -each["value"])):
        if not kept or cell["value"] > kept[-1]["value"]:
            kept.append(cell)
    return kept


def heat(frontier: Frontier, measure: str, halting: str) -> HeatMap | None:
    """Width by depth, with contours of latency at the budgets."""
    grid, cells = frontier["grid"], best_cells(frontier, measure, halting)
    if not cells:
        return None
    places = [[cells.get((width, depth)) for width in grid["widths"]] for depth in grid["depths"]]
    latency = [[cell["latency_ms"] if cell else None for cell in row] for row in places]
    budgets = [
        row["budget"]
        for row in frontier["budgets"]
        if (row["matched_by"], row["halting"], row["measure"]) == ("latency interactive", halting, measure)
    ]
    return HeatMap(
        columns=[str(number) for number in grid["widths"]],
        rows=[str(number) for number in grid["depths"]],
        values=[[cell["value"] if cell else None for cell in row] for row in places],
        notes=[[milliseconds(value) if value else "" for value in row] for row in latency],
        tips=[[tip(cell, measure) if cell else "" for cell in row] for row in places],
        title=f"{measure} by width and depth",
        x_label="width (trajectories)",
        y_label="depth (supervision steps)",
        contours=[(milliseconds(level), contour_segments(latency, level)) for level in budgets],
    )


def pareto(frontier: Frontier, measure: str, halting: str) -> Chart | None:
    """All cells, and the line of those that no faster one reaches."""
    cells = list(timed_cells(frontier, measure, halting).values())
    if not cells:
        return None
    trained = frontier["grid"]["trained_depth"]
    chart = latency_chart(cells, [cell["value"] for cell in cells], measure, "Pareto frontier")
    best = rising(cells)
    last = {**best[-1], "latency_ms": max(cell["latency_ms"] for cell in cells)}
    chart.line([(cell["latency_ms"], cell["value"]) for cell in [*best, last]], "pass", is_stepped=True)
    for cell in sorted(cells, key=lambda each: each in best):
        family = "depth" if cell["width"] == 1 else "width" if cell["depth"] == trained else "mixed"
        radius = 5.5 if cell in best else 3.2
        chart.dot(cell["latency_ms"], cell["value"], family, tip(cell, measure), radius=radius)
    families = ("depth", "width", "mixed")
    chart.key = [("pass", "no faster cell reaches more"), *((name, FAMILY_WORDS[name]) for name in families)]
    return chart


def selector_gap(frontier: Frontier, halting: str) -> Chart | None:
    """pass@N and each selector's accuracy by width, at the trained depth."""
    grid = frontier["grid"]
    cells = [
        cell
        for cell in frontier["cells"]
        if cell["halting"] == halting and cell["depth"] == grid["trained_depth"] and cell["accuracy"] is not None
    ]
    if not cells or len(grid["widths"]) < 2:
        return None
    lines: dict[str, list[tuple[float, float]]] = {"pass@N": []}
    for cell in cells:
        lines.setdefault(cell["selector"], []).append((cell["width"], cell["accuracy"]))
        if cell["selector"] == grid["selectors"][0]:
            lines["pass@N"].append((cell["width"], cell["pass_at_width"]))
    chart = Chart(
        x_range=(0.92, grid["widths"][-1] * 1.09),
        y_range=value_range([value for points in lines.values() for _, value in points]),
        title="Selectors against pass@N",
        is_log_x=True,
    )
    shares(chart, grid["widths"], x_label="width (trajectories)", y_label="accuracy", x_format=whole)
    for place, (name, points) in enumerate(lines.items()):
        colour = "pass" if place == 0 else f"s{(place - 1) % 7 + 1}"
        chart.key.append((colour, name))
        chart.line(points, colour)
        for width, value in points:
            chart.dot(width, value, colour, f"{name}\nwidth {width}: {percent(value)}", radius=3.8)
    return chart


def stop_histogram(frontier: Frontier) -> Chart | None:
    """Steps at which the halt head stops, by the verdict on the answer; several in one bar where they are many."""
    stops = frontier["heads"]["stops"]
    total = sum(stops["right"]) + sum(stops["wrong"])
    if not total:
        return None
    steps = len(stops["step"]) - 1
    each = math.ceil(steps / MANY)
    bins = [slice(first, min(first + each, steps)) for first in range(0, steps, each)] + [slice(steps, None)]
    columns = [(stops["step"][part], sum(stops["right"][part]), sum(stops["wrong"][part])) for part in bins]
    tallest = max(right + wrong for _, right, wrong in columns) / total
    chart = Chart(x_range=(0.3, len(columns) + 0.7), y_range=(0, tallest * 1.06), title="Steps to halt")
    wide = min(34.0, 0.8 * (chart.width - chart.left - chart.right) / len(columns))
    every = max(1, math.ceil(len(columns) / (16 if each == 1 else 8)))
    ticks = [place for place in range(1, len(columns)) if (place - 1) % every == 0 and place < len(columns) - every / 2]

    def name(place: float) -> str:
        return "never" if place == len(columns) else span_words(columns[int(place) - 1][0])

    shares(chart, [*ticks, len(columns)], x_label="supervision step of the halt", y_label="trajectories", x_format=name)
    for place, (some, right, wrong) in enumerate(columns, start=1):
        start = "never halts" if some[0] is None else f"halts after step {span_words(some)}"
        words = f"{start}\n{percent((right + wrong) / total)} of trajectories\n{right:,} right, {wrong:,} wrong"
        chart.bar(place, 0, right / total, wide, "right", words)
        chart.bar(place, right / total, (right + wrong) / total, wide, "wrong", words)
    chart.key, chart.is_block_key = [("right", "answer right"), ("wrong", "answer wrong")], True
    return chart


def span_words(steps: Sequence[int]) -> str:
    """The first and the last of some steps."""
    return f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def shown_steps(frontier: Frontier) -> list[dict[str, Any]]:
    """What the heads said after each step, or where these are many after the grid's depths alone."""
    steps = [step for step in frontier["heads"]["steps"] if step["accuracy"] is not None]
    return steps if len(steps) <= MANY else [step for step in steps if step["step"] in frontier["grid"]["depths"]]


def calibration(frontier: Frontier) -> Chart | None:
    """The share of right answers against the probability that the halt head predicts, after a few steps."""
    steps = [step for step in frontier["heads"]["steps"] if step["accuracy"] is not None]
    if not steps:
        return None
    title = "Calibration of the halt head"
    chart = Chart(x_range=(0, 1), y_range=(0, 1), title=title, width=360, height=330, left=58)
    # The upright axis' 0 stands in the corner for both.
    shares(chart, [0.25, 0.5, 0.75, 1], x_label="predicted", y_label="right", x_format=lambda value: percent(value, 0))
    chart.line([(0, 0), (1, 1)], "neutral")
    for place, step in enumerate([step for step in steps if step["step"] in frontier["grid"]["depths"]][:7]):
        colour, name = f"s{place + 1}", f"step {step['step']}"
        bins = [each for each in step["bins"] if each["count"] >= FEWEST]
        chart.line([(each["predicted"], each["right"]) for each in bins], colour)
        for each in bins:
            words = f"{name}\npredicted {percent(each['predicted'])}\nright {percent(each['right'])}"
            tip_words = f"{words}\n{each['count']:,} trajectories"
            chart.dot(each["predicted"], each["right"], colour, tip_words, radius=3.2)
        chart.key.append((colour, name))
    return chart


def calibration_by_step(frontier: Frontier) -> Chart | None:
    """The halt head's AUROC and expected calibration error after every step."""
    steps = [step for step in frontier["heads"]["steps"] if step["accuracy"] is not None]
    if not steps:
        return None
    x_range, title = (0.5, steps[-1]["step"] + 0.5), "AUROC and calibration error by step"
    chart = Chart(x_range=x_range, y_range=(0, 1), title=title, width=360, height=330, left=58)
    ticks = [step["step"] for step in steps if (step["step"] - 1) % max(1, math.ceil(len(steps) / 6)) == 0]
    shares(chart, ticks, x_label="supervision step", y_label="", x_format=whole)
    chart.key = [("s1", "AUROC of the halt logit"), ("s2", "expected calibration error")]
    for name, label, colour in (("halt_auroc", "AUROC", "s1"), ("ece", "calibration error", "s2")):
        some = [step for step in steps if step[name] is not None]
        chart.line([(step["step"], step[name]) for step in some], colour)
        for step in (each for each in shown_steps(frontier) if each[name] is not None):
            chart.dot(step["step"], step[name], colour, f"step {step['step']}\n{label} {step[name]:.3f}", radius=3.2)
    return chart


def difficulty(frontier: Frontier) -> Chart | None:
    """The measure by quarter of difficulty, for one trajectory and the verdict's cells."""
    found = frontier["difficulty"]
    rows = [] if found is None else [row for row in found["rows"] if row["value"] is not None]
    if not rows:
        return None
    ranges = sorted({(row["from"], row["to"]) for row in rows})
    labels = list(dict.fromkeys(row["cells"] for row in rows))
    bounds = value_range([row[name] for row in rows for name in ("low", "high", "value")])
    chart = Chart(x_range=(0.5, len(ranges) + 0.5), y_range=bounds, title="By difficulty")

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
        words = f"{row['cells']}: {row['width']} x {row['depth']}"
        words += f"\n{percent(row['value'])} ({span(row['low'], row['high']) or '-'})"
        chart.dot(place, row["value"], colour, f"{words}\n{row['puzzles']:,} puzzles")
    chart.key = [(label if label in FAMILY_WORDS else "neutral", FAMILY_WORDS.get(label, label)) for label in labels]
    return chart


def checkpoint_curves(frontiers: Mapping[str, Frontier], measure: str) -> Chart | None:
    """The measure against latency: the best cells of each checkpoint, and those of one trajectory, dashed."""
    cells = {
        label: list(timed_cells(each, measure, each["verdict"]["halting"]).values())
        for label, each in frontiers.items()
    }
    known = [cell for some in cells.values() for cell in some]
    if not known:
        return None
    bounds = [cell[name] for cell in known for name in ("value_low", "value", "value_high")]
    chart = latency_chart(known, bounds, measure, f"{measure} by latency")
    for place, (label, some) in enumerate(cells.items()):
        colour = f"s{place % 7 + 1}"
        chart.key.append((colour, label))
        best, alone = rising(some), sorted((c for c in some if c["width"] == 1), key=lambda c: int(c["depth"]))
        band(chart, best, colour)
        chart.line([(cell["latency_ms"], cell["value"]) for cell in alone], f"{colour} dashed")
        chart.line([(cell["latency_ms"], cell["value"]) for cell in best], colour)
        for cell in [*alone, *(cell for cell in best if cell not in alone)]:
            radius = 4.5 if cell in best else 3.2
            chart.dot(cell["latency_ms"], cell["value"], colour, f"{label}\n{tip(cell, measure)}", radius=radius)
    return chart


FIGURES: dict[str, Callable[[Frontier, str, str], Chart | HeatMap | None]] = {
    "heat_map": heat,
    "curves": family_curves,
    "pareto": pareto,
    "selector_gap": lambda frontier, _, halting: selector_gap(frontier, halting),
    "steps_to_halt": lambda frontier, *_: stop_histogram(frontier),
    "calibration": lambda frontier, *_: calibration(frontier),
    "calibration_by_step": lambda frontier, *_: calibration_by_step(frontier),
    "difficulty": lambda frontier, *_: difficulty(frontier),
}
"""What draws each file of `pictures.py`, from the frontier, its measure and its halting rule."""
