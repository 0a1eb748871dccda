"""Pictures by matplotlib: busy workers and trainings. Those of frontiers: `figures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

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
