"""Pictures of a frontier, and of training, as files by matplotlib; the page draws its own (`figures.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gram.evals.figures import best_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Frontier = Mapping[str, Any]
COLOURS = {"depth": "#2568c8", "width": "#c9540f", "mixed": "#12805c", "neutral": "#77736a"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e3db",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "gram",
    "svg.fonttype": "none",
}


def draw(frontier: Frontier, folder: Path) -> list[Path]:
    """Writes each figure that has numbers as `<name>.png` and `<name>.svg`; returns the files."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, painter in FIGURES.items():
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
            try:
                if painter(frontier, axes):
                    for kind in ("png", "svg"):
                        path = folder / f"{name}.{kind}"
                        metadata = {"Date": None} if kind == "svg" else {}
                        figure.savefig(path, dpi=160, metadata=metadata)
                        written.append(path)
            finally:
                plt.close(figure)
    return written


def training_curves(tasks: Mapping[str, Sequence[tuple[str, Sequence[tuple[float, float]]]]], path: Path) -> None:
    """Held-out accuracy of one trajectory against minutes of training: one field a task, one line a run.

    `tasks`: by task, the method of each run and its (minutes, share) points; runs of a method share a colour.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        size = (6.4 * len(tasks), 4.2)
        figure, fields = plt.subplots(1, len(tasks), figsize=size, layout="constrained", squeeze=False)
        try:
            for axes, (task, runs) in zip(fields[0], tasks.items(), strict=True):
                methods = list(dict.fromkeys(method for method, _ in runs))
                colours = dict(zip(methods, mpl.colormaps["tab20"](range(20)), strict=False))
                for place, (method, points) in enumerate(runs):
                    is_named = method in (name for name, _ in runs[:place])
                    minutes, shares = zip(*points, strict=True) if points else ((), ())
                    percent = [100 * share for share in shares]
                    label = None if is_named else method
                    axes.plot(minutes, percent, marker=".", color=colours.get(method), label=label)
                axes.set(
                    title=task, xlabel="minutes of training", ylabel="accuracy of one trajectory, %", ylim=(0, 101)
                )
                axes.legend(fontsize=7)
            figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else {})
        finally:
            plt.close(figure)


def _cells(frontier: Frontier) -> dict[tuple[int, int], dict[str, Any]]:
    return best_cells(frontier, frontier["verdict"]["measure"], frontier["verdict"]["halting"])


def heat_map(frontier: Frontier, axes: Axes) -> bool:
    """Width by depth with contours of latency."""
    grid, cells = frontier["grid"], _cells(frontier)
    if not cells:
        return False
    places = [[(width, depth) for width in grid["widths"]] for depth in grid["depths"]]
    values = [[100 * cells[place]["value"] if place in cells else math.nan for place in row] for row in places]
    image = axes.imshow(values, origin="lower", cmap="Blues", aspect="auto")
    low, high = image.get_clim()
    for m, row in enumerate(values):
        for n, value in enumerate(row):
            ink = "white" if value > low + 0.6 * (high - low) else "#1c1b19"
            axes.text(n, m, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8)
    latency = [[(cells[place]["latency_ms_p50"] if place in cells else None) for place in row] for row in places]
    if min(len(latency), len(latency[0])) > 1 and all(value for row in latency for value in row):
        logs = [[math.log2(value) for value in row if value] for row in latency]
        lines = axes.contour(logs, colors="#1c1b19", linewidths=0.8, linestyles="dashed", levels=5)
        axes.clabel(lines, fmt=lambda power: f"{2**power:.3g} ms", fontsize=7)
    axes.set_xticks(range(len(grid["widths"])), [str(width) for width in grid["widths"]])
    axes.set_yticks(range(len(grid["depths"])), [str(depth) for depth in grid["depths"]])
    axes.grid(visible=False)
    axes.set(xlabel="width (trajectories)", ylabel="depth (supervision steps)")
    axes.set_title(f"{frontier['verdict']['measure']}, per cent; dashed: equal latency", loc="left", fontsize=9)
    return True


def curves(frontier: Frontier, axes: Axes) -> bool:
    """The measure against latency: depth, width and mixed, with bands."""
    cells = {place: cell for place, cell in _cells(frontier).items() if cell["latency_ms_p50"]}
    if not cells:
        return False
    trained = frontier["grid"]["trained_depth"]
    members: dict[str, list[dict[str, Any]]] = {"depth": [], "width": [], "mixed": []}
    for (width, depth), cell in cells.items():
        if width == 1:
            members["depth"].append(cell)
        if depth == trained:
            members["width"].append(cell)
        if width > 1 and depth != trained:
            members["mixed"].append(cell)
    for family, some in members.items():
        line: list[dict[str, Any]] = []
        for cell in sorted(some, key=lambda each: float(each["latency_ms_p50"])):
            if family != "mixed" or not line or cell["value"] > line[-1]["value"]:
                line.append(cell)
        prices = [cell["latency_ms_p50"] for cell in line]
        axes.plot(prices, [cell["value"] for cell in line], "o-", ms=3.5, color=COLOURS[family], label=family)
        if all(cell["value_low"] is not None for cell in line):
            low, high = ([cell[name] for cell in line] for name in ("value_low", "value_high"))
            axes.fill_between(prices, low, high, color=COLOURS[family], alpha=0.15, lw=0)
    axes.set(xscale="log", xlabel="latency of a puzzle, ms", ylabel=frontier["verdict"]["measure"])
    axes.legend()
    return True


def pareto(frontier: Frontier, axes: Axes) -> bool:
    """All cells and the line of those that no cheaper one reaches."""
    cells = sorted(
        (cell for cell in _cells(frontier).values() if cell["latency_ms_p50"]), key=lambda cell: cell["latency_ms_p50"]
    )
    if not cells:
        return False
    axes.plot([c["latency_ms_p50"] for c in cells], [c["value"] for c in cells], "o", ms=3, color=COLOURS["neutral"])
    best: list[dict[str, Any]] = []
    for cell in cells:
        if not best or cell["value"] > best[-1]["value"]:
            best.append(cell)
            label = f"{cell['width']} x {cell['depth']}"
            place = cell["latency_ms_p50"], cell["value"]
            axes.annotate(label, place, fontsize=6.5, xytext=(3, -9), textcoords="offset points")
    line = [(cell["latency_ms_p50"], cell["value"]) for cell in best]
    axes.step(*zip(*line, strict=True), where="post", color="#1c1b19", lw=1)
    axes.set(xscale="log", xlabel="latency of a puzzle, ms", ylabel=frontier["verdict"]["measure"])
    return True


def selector_gap(frontier: Frontier, axes: Axes) -> bool:
    """pass@N and each selector's accuracy by width."""
    grid, halting = frontier["grid"], frontier["verdict"]["halting"]
    found = [
        cell
        for cell in frontier["cells"]
        if cell["halting"] == halting and cell["depth"] == grid["trained_depth"] and cell["accuracy"] is not None
    ]
    if not found:
        return False
    for selector in grid["selectors"]:
        some = [cell for cell in found if cell["selector"] == selector]
        axes.plot([c["width"] for c in some], [c["accuracy"] for c in some], "o-", ms=3.5, label=selector)
    some = [cell for cell in found if cell["selector"] == grid["selectors"][0]]
    axes.plot([c["width"] for c in some], [c["pass_at_width"] for c in some], "k--", lw=1, label="pass@N")
    axes.set_xscale("log", base=2)
    axes.set_xticks(grid["widths"], [str(width) for width in grid["widths"]])
    axes.set(xlabel="width (trajectories)", ylabel=f"accuracy at {grid['trained_depth']} steps")
    axes.legend()
    return True


def steps_to_halt(frontier: Frontier, axes: Axes) -> bool:
    """Steps at which the halt head stops, by verdict."""
    stops = frontier["heads"]["stops"]
    total = sum(stops["right"]) + sum(stops["wrong"])
    if not total:
        return False
    names = ["never" if step is None else str(step) for step in stops["step"]]
    right, wrong = ([count / total for count in stops[name]] for name in ("right", "wrong"))
    axes.bar(names, right, color=COLOURS["depth"], label="answer right")
    axes.bar(names, wrong, bottom=right, color="#c9c4b8", label="answer wrong")
    axes.set(xlabel="supervision step of the halt", ylabel="share of trajectories")
    axes.legend()
    return True


def difficulty(frontier: Frontier, axes: Axes) -> bool:
    """The measure by quarter of difficulty."""
    found = frontier["difficulty"]
    rows = [] if found is None else [row for row in found["rows"] if row["value"] is not None]
    if not rows:
        return False
    ranges = sorted({(row["from"], row["to"]) for row in rows})
    labels = list(dict.fromkeys(row["cells"] for row in rows))
    for number, label in enumerate(labels):
        some = [row for row in rows if row["cells"] == label]
        shift = 0.12 * (number - (len(labels) - 1) / 2)
        places = [ranges.index((row["from"], row["to"])) + shift for row in some]
        values = [row["value"] for row in some]
        below = [max(row["value"] - (row["low"] if row["low"] is not None else row["value"]), 0) for row in some]
        above = [max((row["high"] if row["high"] is not None else row["value"]) - row["value"], 0) for row in some]
        colour = COLOURS.get(label, COLOURS["neutral"])
        axes.errorbar(places, values, yerr=[below, above], fmt="o", ms=4, color=colour, label=label, lw=1)
    axes.set_xticks(range(len(ranges)), [f"{a:g}" if a == b else f"{a:g} to {b:g}" for a, b in ranges])
    axes.set(xlabel=found["by"], ylabel=frontier["verdict"]["measure"])
    axes.legend()
    return True


FIGURES: dict[str, Callable[[Frontier, Any], bool]] = {
    "heat_map": heat_map,
    "curves": curves,
    "pareto": pareto,
    "selector_gap": selector_gap,
    "steps_to_halt": steps_to_halt,
    "difficulty": difficulty,
}
"""Name of each file and what draws it; a painter says whether it had numbers."""
