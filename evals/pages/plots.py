"""Pictures as files by matplotlib: frontiers (a page draws its own, `figures.py`), busy workers, trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gram.checkpoint import write_atomically
from gram.evals.pages.figures import best_cells, one_after_another, rising

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Frontier = Mapping[str, Any]
COLOURS = {"depth": "#2568c8", "width": "#c9540f", "mixed": "#12805c", "restarts": "#8a4fc0", "neutral": "#77736a"}
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
    return _draw({name: partial(painter, frontier) for name, painter in FIGURES.items()}, folder)


def draw_joint(frontiers: Mapping[str, Frontier], folder: Path) -> list[Path]:
    """The same of several checkpoints, by name: one figure for each task, named after it."""
    painters: dict[str, Callable[[Any], bool]] = {}
    for task in dict.fromkeys(str(each["about"].get("task")) for each in frontiers.values()):
        some = {label: each for label, each in frontiers.items() if str(each["about"].get("task")) == task}
        painters[f"{task}_checkpoints"] = partial(checkpoints, some)
    return _draw(painters, folder)


def _draw(painters: Mapping[str, Callable[[Any], bool]], folder: Path) -> list[Path]:
    """Each figure that has numbers, moved into place once complete."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, painter in painters.items():
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
            try:
                if painter(axes):
                    for kind in ("png", "svg"):
                        path = folder / f"{name}.{kind}"
                        content = BytesIO()
                        figure.savefig(content, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {})
                        write_atomically(path, content.getvalue())
                        written.append(path)
            finally:
                plt.close(figure)
    return written


def training_curves(tasks: Mapping[str, Sequence[tuple[str, Sequence[tuple[float, float]]]]], path: Path) -> None:
    """Held-out accuracy of one trajectory against minutes of training: one field a task, one line a run.

    `tasks`: by task, the method of each run and its (minutes, share) points; a method has one colour in all fields.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(method for runs in tasks.values() for method, _ in runs))
    colours = dict(zip(methods, mpl.colormaps["tab20"](range(20)), strict=False))
    with plt.rc_context(STYLE):
        size = (6.4 * len(tasks) + 1.4, 4.2)
        figure, fields = plt.subplots(1, len(tasks), figsize=size, layout="constrained", squeeze=False)
        lines: dict[str, Line2D] = {}
        try:
            for axes, (task, runs) in zip(fields[0], tasks.items(), strict=True):
                for method, points in runs:
                    minutes, shares = zip(*points, strict=True) if points else ((), ())
                    percent = [100 * share for share in shares]
                    (lines[method],) = axes.plot(minutes, percent, marker=".", color=colours.get(method))
                axes.set(
                    title=task, xlabel="minutes of training", ylabel="accuracy of one trajectory, %", ylim=(-2, 102)
                )
            # Outside, since no corner of every field is free of lines.
            figure.legend([lines[method] for method in methods], methods, loc="outside right upper", fontsize=8)
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
    latency = [[(cells[place]["latency_ms"] if place in cells else None) for place in row] for row in places]
    if min(len(latency), len(latency[0])) > 1 and all(value for row in latency for value in row):
        logs = [[math.log2(value) for value in row if value] for row in latency]
        from matplotlib.patheffects import AbstractPathEffect, withStroke

        # Light and dark cells alike lie under a line.
        halo: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="white")]
        lines = axes.contour(logs, colors="#1c1b19", linewidths=0.8, linestyles="dashed", levels=5)
        lines.set_path_effects(halo)
        for label in axes.clabel(lines, fmt=lambda power: f"{2**power:.3g} ms", fontsize=7):
            label.set_path_effects(halo)
    axes.set_xticks(range(len(grid["widths"])), [str(width) for width in grid["widths"]])
    axes.set_yticks(range(len(grid["depths"])), [str(depth) for depth in grid["depths"]])
    axes.grid(visible=False)
    axes.set(xlabel="width (trajectories)", ylabel="depth (supervision steps)")
    axes.set_title(f"{frontier['verdict']['measure']}, per cent; dashed: equal latency", loc="left", fontsize=9)
    return True


def _against_latency(axes: Axes, measure: str) -> None:
    """Axes of the measure against latency on a logarithm, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set(xscale="log", xlabel="latency of a puzzle, ms", ylabel=measure)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def curves(frontier: Frontier, axes: Axes) -> bool:
    """The measure against latency: depth, width, mixed and restarts, with bands."""
    cells = {place: cell for place, cell in _cells(frontier).items() if cell["latency_ms"]}
    if not cells:
        return False
    trained = frontier["grid"]["trained_depth"]
    members: dict[str, list[dict[str, Any]]] = {"depth": [], "width": [], "mixed": [], "restarts": []}
    for (width, depth), cell in cells.items():
        if width == 1:
            members["depth"].append(cell)
        if width > 1:
            members["width" if depth == trained else "mixed"].append(cell)
    dearest = max(cell["latency_ms"] for cell in cells.values())
    members["restarts"] = [c for c in one_after_another(cells, "latency_ms") if c["latency_ms"] <= dearest]
    for family, some in members.items():
        line = sorted(some, key=lambda each: (each["width"], each["depth"]))
        if family in ("mixed", "restarts"):
            line = rising(some, "latency_ms")
        prices = [cell["latency_ms"] for cell in line]
        axes.plot(prices, [cell["value"] for cell in line], "o-", ms=3.5, color=COLOURS[family], label=family)
        if all(cell["value_low"] is not None for cell in line):
            low, high = ([cell[name] for cell in line] for name in ("value_low", "value_high"))
            axes.fill_between(prices, low, high, color=COLOURS[family], alpha=0.15, lw=0)
    _against_latency(axes, frontier["verdict"]["measure"])
    axes.legend()
    return True


def pareto(frontier: Frontier, axes: Axes) -> bool:
    """All cells and the line of those that no cheaper one reaches."""
    cells = sorted(
        (cell for cell in _cells(frontier).values() if cell["latency_ms"]), key=lambda cell: cell["latency_ms"]
    )
    if not cells:
        return False
    axes.plot([c["latency_ms"] for c in cells], [c["value"] for c in cells], "o", ms=3, color=COLOURS["neutral"])
    best = rising(cells, "latency_ms")
    for cell in best:
        place = cell["latency_ms"], cell["value"]
        label = f"{cell['width']} x {cell['depth']}"
        axes.annotate(label, place, fontsize=6.5, xytext=(3, -9), textcoords="offset points")
    line = [(cell["latency_ms"], cell["value"]) for cell in best]
    axes.step(*zip(*line, strict=True), where="post", color="#1c1b19", lw=1)
    _against_latency(axes, frontier["verdict"]["measure"])
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


def calibration(frontier: Frontier, axes: Axes) -> bool:
    """The halt head step by step: how well it ranks, and how far its probability is from the share that is right."""
    steps = [step for step in frontier["heads"]["steps"] if step["accuracy"] is not None]
    if not steps:
        return False
    for name, label, colour in (
        ("halt_auroc", "AUROC of the halt logit", "depth"),
        ("ece", "expected calibration error", "width"),
    ):
        some = [step for step in steps if step[name] is not None]
        numbers = [step["step"] for step in some]
        axes.plot(numbers, [step[name] for step in some], "o-", ms=3.5, color=COLOURS[colour], label=label)
    axes.set(xlabel="supervision step", ylim=(-0.02, 1.02))
    axes.legend()
    return True


def checkpoints(frontiers: Mapping[str, Frontier], axes: Axes) -> bool:
    """The measure against latency of each checkpoint: its best cells, and dashed those of one trajectory."""
    price, drawn = "latency_ms", False
    for label, frontier in frontiers.items():
        cells = [cell for cell in _cells(frontier).values() if cell[price]]
        if not cells:
            continue
        best, alone = rising(cells, price), sorted((c for c in cells if c["width"] == 1), key=lambda c: int(c["depth"]))
        (line,) = axes.plot([c[price] for c in best], [c["value"] for c in best], "o-", ms=3.5, label=label)
        axes.plot([c[price] for c in alone], [c["value"] for c in alone], "--", lw=1, color=line.get_color())
        if all(cell["value_low"] is not None for cell in best):
            low, high = ([cell[name] for cell in best] for name in ("value_low", "value_high"))
            axes.fill_between([c[price] for c in best], low, high, color=line.get_color(), alpha=0.15, lw=0)
        _against_latency(axes, frontier["verdict"]["measure"])
        drawn = True
    if drawn:
        axes.set_title("dashed: one trajectory", loc="left", fontsize=9)
        axes.legend()
    return drawn


FIGURES: dict[str, Callable[[Frontier, Any], bool]] = {
    "heat_map": heat_map,
    "curves": curves,
    "pareto": pareto,
    "selector_gap": selector_gap,
    "steps_to_halt": steps_to_halt,
    "calibration": calibration,
    "difficulty": difficulty,
}
"""Name of each file and what draws it; a painter says whether it had numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BusyLine:
    """How busy workers are, by their number."""

    label: str
    workers: Sequence[int]
    busy: Sequence[float]
    """Shares, within 0 and 1."""
    saturating_workers: float
    """From where on workers wait."""
    is_dashed: bool = False
    is_thick: bool = False


def draw_busy(lines: Sequence[BusyLine], title: str, path: Path) -> None:
    """Writes one picture of busy shares against workers; a diamond marks where each line's drivers saturate."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        try:
            ramp = mpl.colormaps["viridis"]
            solid = [line for line in lines if not line.is_dashed]
            most = max(count for line in lines for count in line.workers)
            for line in lines:
                shade = COLOURS["width"] if line.is_dashed else ramp(0.85 * solid.index(line) / max(len(solid) - 1, 1))
                shares = [100 * share for share in line.busy]
                style = "--" if line.is_dashed else "-"
                axes.plot(
                    line.workers,
                    shares,
                    style,
                    marker="o",
                    ms=3,
                    lw=2.8 if line.is_thick else 1.5,
                    color=shade,
                    label=line.label,
                )
                if line.saturating_workers <= most:
                    axes.plot([line.saturating_workers], [100], "D", ms=6, color=shade, clip_on=False, zorder=5)
            axes.axhline(95, color=COLOURS["neutral"], lw=0.8, ls=":")
            axes.set_xscale("log")
            ticks = sorted({count for line in lines for count in line.workers})
            ticks = [count for count in ticks if str(count).rstrip("0") in ("1", "3")]
            axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
            axes.minorticks_off()
            axes.set(xlabel="workers", ylabel="workers busy, per cent", ylim=(0, 103))
            axes.set_title(title, loc="left", fontsize=9)
            axes.legend(title="driver's time for a shard", loc="lower left")
            figure.savefig(path, dpi=160)
        finally:
            plt.close(figure)
