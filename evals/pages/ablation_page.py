"""The page of an ablation: one self-contained file, like a frontier's (`report.py`), with a sortable table first."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gram.evals.pages.charts import Chart
from gram.evals.pages.figures import percent, shares, value_range
from gram.evals.pages.report import page, provenance, section
from gram.evals.pages.tables import table


def render(made: Mapping[str, Any]) -> str:
    """The page of `ablation.json`. Raises `ValueError` for another version."""
    if made.get("version") != 1:
        raise ValueError(f"ablation must be of version 1, got {made.get('version')!r}")
    about, cells = made["about"], made["cells"]
    command = about.get("command", "")
    fired = [cell for cell in cells[1:] if not cell.get("never_fired")]
    apart = [cell for cell in fired if cell["less_baseline"]["is_told_apart"]]
    words = f"{len(apart)} of {len(fired)} cells are told apart from the baseline ({cells[0]['label']})."
    if apart:
        best = max(apart, key=lambda cell: cell["less_baseline"]["difference"])
        words += f" The largest difference is {_points(best['less_baseline'])} points: {best['label']}."
    head = (
        f'<header><p class="kicker">Ablation</p><h1>{escape(made["name"])}</h1>'
        f'<p class="meta">{escape(str(about.get("task")))} · {about.get("puzzles"):,} puzzles · {len(cells)} cells</p>'
        f'<div class="verdict"><p>{escape(words)}</p></div></header>'
    )
    body = (
        section("Cells", "", _table(cells), "Sort by a heading. Differences are paired by puzzle.", command)
        + section("Accuracy", "", _dots(cells), "Selected accuracy with 95 % intervals, in the study's order.", command)
        + provenance(about, {})
    )
    return page(f"{made['name']}: ablation", head + f"<main>{body}</main>")


def _points(found: Mapping[str, Any]) -> str:
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _table(cells: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for cell in cells for name in cell["varied"]))
    columns = [(name.replace("_", " "), "text") for name in names] + [("accuracy", ""), ("95 % interval", "")]
    columns += [("less baseline, points", ""), ("won", ""), ("lost", ""), ("one trajectory", ""), ("pass@N", "")]
    columns += [("coverage", ""), ("steps", ""), ("seconds", "")]
    rows = []
    for cell in cells:
        row: list[tuple[str, Any, str]] = [
            (escape(str(cell["varied"].get(name, ""))), cell["varied"].get(name, ""), "text") for name in names
        ]
        low, high = cell["accuracy_low"], cell["accuracy_high"]
        row.append((percent(cell["accuracy"]), _key(cell["accuracy"]), ""))
        row.append(("-" if low is None else f"{100 * low:.1f} to {100 * high:.1f}", _key(low), ""))
        found = cell.get("less_baseline")
        if cell.get("never_fired"):
            row += [("resampling never fired", "", ""), ("", "", ""), ("", "", "")]
        elif found is None:
            row += [("baseline", 0, ""), ("", "", ""), ("", "", "")]
        else:
            row.append((_points(found), found["difference"], "win" if found["is_told_apart"] else ""))
            row += [(str(found["only_a"]), None, ""), (str(found["only_b"]), None, "")]
        for name in ("single_accuracy", "pass_at_width", "coverage"):
            row.append((percent(cell[name]) + _ends(cell, name), _key(cell[name]), ""))
        for name in ("mean_steps", "elapsed_s"):
            row.append(("-" if cell[name] is None else f"{cell[name]:.1f}", _key(cell[name]), ""))
        rows.append(row)
    return table(columns, rows)


def _ends(cell: Mapping[str, Any], name: str) -> str:
    low, high = cell.get(f"{name}_low"), cell.get(f"{name}_high")
    return "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"


def _dots(cells: list[dict[str, Any]]) -> str:
    known = [cell for cell in cells if cell["accuracy"] is not None]
    if not known:
        return ""
    names = ("accuracy", "accuracy_low", "accuracy_high")
    bounds = [cell[name] for cell in known for name in names if cell[name] is not None]
    chart = Chart((0.5, len(cells) + 0.5), value_range(bounds), "Accuracy of every cell")
    every = max(1, len(cells) // 16)
    ticks = [float(place) for place in range(1, len(cells) + 1, every)]
    shares(chart, ticks, x_label="cell", y_label="accuracy", x_format=lambda place: f"{place:.0f}")
    for place, cell in enumerate(cells, start=1):
        if cell["accuracy"] is None:
            continue
        if cell["accuracy_low"] is not None:
            chart.whisker(place, cell["accuracy_low"], cell["accuracy_high"], "depth")
        chart.dot(place, cell["accuracy"], "depth", f"{cell['label']}\naccuracy {percent(cell['accuracy'])}")
    return chart.svg()


def _key(value: Any) -> Any:
    return "" if value is None else value
