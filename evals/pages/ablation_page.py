"""The page of an ablation: one self-contained file, like a frontier's (`report.py`), with a sortable table first."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gram.evals.pages.charts import Chart
from gram.evals.pages.figures import shares, value_range, whole
from gram.evals.pages.report import page, provenance, section
from gram.evals.pages.tables import Entry, figure, share, table
from gram.formatting import difference, percent


def render(made: Mapping[str, Any]) -> str:
    """The page of `ablation.json`. Raises `ValueError` for another version."""
    if made.get("version") != 1:
        raise ValueError(f"ablation must be of version 1, got {made.get('version')!r}")
    about, cells = made["about"], made["cells"]
    command = about.get("command", "")
    fired = [cell for cell in cells[1:] if not cell.get("never_fired")]
    significant = [cell for cell in fired if cell["less_baseline"]["is_told_apart"]]
    words = f"{len(significant)} of {len(fired)} cells differ significantly from the baseline ({cells[0]['label']})."
    if significant:
        best = max(significant, key=lambda cell: cell["less_baseline"]["difference"])
        words += f" The largest difference is {difference(best['less_baseline'])} points: {best['label']}."
    head = (
        f'<header><p class="kicker">Ablation</p><h1>{escape(made["name"])}</h1>'
        f'<p class="meta">{escape(str(about.get("task")))} · {about.get("puzzles"):,} puzzles · {len(cells)} cells</p>'
        f'<div class="verdict"><p>{escape(words)}</p></div></header>'
    )
    body = (
        section("Cells", _table(cells), "Sort by a heading. Differences are paired by puzzle.", command)
        + section("Accuracy", _dots(cells), "Selected accuracy with 95 % intervals, in the study's order.", command)
        + provenance(about, {})
    )
    return page(f"{made['name']}: ablation", head + f"<main>{body}</main>")


def _table(cells: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for cell in cells for name in cell["varied"]))
    heads = [name.replace("_", " ") for name in names]
    heads += ["accuracy", "minus baseline, points", "won", "lost", "one trajectory", "pass@N", "coverage", "steps"]
    rows = []
    for cell in cells:
        values = [cell["varied"].get(name, "") for name in names]
        row: list[Entry] = [(escape(str(value)), value, "text") for value in values]
        row.append(_share(cell, "accuracy"))
        found, empty = cell.get("less_baseline"), ("", "", "")
        if cell.get("never_fired"):
            row += [("resampling never fired", "", ""), empty, empty]
        elif found is None:
            row += [("baseline", 0, ""), empty, empty]
        else:
            row.append((difference(found), found["difference"], "win" if found["is_told_apart"] else ""))
            row += [(str(found["only_a"]), None, ""), (str(found["only_b"]), None, "")]
        row += [_share(cell, name) for name in ("single_accuracy", "pass_at_width", "coverage")]
        row += [figure(cell[name], 1) for name in ("mean_steps", "elapsed_s")]
        rows.append(row)
    return table([*heads, "seconds"], rows)


def _share(cell: Mapping[str, Any], name: str) -> Entry:
    return share(cell[name], cell.get(f"{name}_low"), cell.get(f"{name}_high"))


def _dots(cells: list[dict[str, Any]]) -> Chart | None:
    known = [cell for cell in cells if cell["accuracy"] is not None]
    if not known:
        return None
    bounds = [cell[name] for cell in known for name in ("accuracy", "accuracy_low", "accuracy_high")]
    title = "Accuracy of every cell"
    chart = Chart(x_range=(0.5, len(cells) + 0.5), y_range=value_range(bounds), title=title)
    ticks = [float(place) for place in range(1, len(cells) + 1, max(1, len(cells) // 16))]
    shares(chart, ticks, x_label="cell", y_label="accuracy", x_format=whole)
    for place, cell in enumerate(cells, start=1):
        if cell["accuracy"] is None:
            continue
        if cell["accuracy_low"] is not None:
            chart.whisker(place, cell["accuracy_low"], cell["accuracy_high"], "depth")
        chart.dot(place, cell["accuracy"], "depth", f"{cell['label']}\naccuracy {percent(cell['accuracy'])}")
    return chart
