"""Figures of runs other than frontiers: trainings side by side, and how busy the workers of a cluster are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gram.evals.pages.charts import Chart, linear_ticks, log_ticks
from gram.evals.pages.figures import shares

COLOURS = [f"s{number}{dash}" for dash in ("", " dashed", " dotted") for number in range(1, 8)]


def training_curves(tasks: Mapping[str, Sequence[tuple[str, Sequence[tuple[float, float]]]]]) -> list[Chart]:
    """Held-out accuracy of one trajectory against minutes of training: one chart a task, one line a run.

    `tasks`: by task, the method of each run and its (minutes, share) points. A method has one colour in all charts.
    """
    methods = dict.fromkeys(method for runs in tasks.values() for method, _ in runs)
    colours = {method: COLOURS[place % len(COLOURS)] for place, method in enumerate(methods)}
    charts = []
    for task, runs in tasks.items():
        longest = max((minutes for _, points in runs for minutes, _ in points), default=1.0)
        chart = Chart(x_range=(0, longest * 1.04), y_range=(0, 1), title=task, width=480)
        ticks, label = linear_ticks(*chart.x_range), "accuracy of one trajectory"
        shares(chart, ticks, x_label=f"{task}: minutes of training", y_label=label, x_format=lambda value: f"{value:g}")
        for method, points in runs:
            chart.line(points, colours[method])
            for minutes, share in points:
                chart.dot(minutes, share, colours[method], method, radius=2)
            chart.key.append((colours[method], method))
        charts.append(chart)
    return charts


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


def busy_workers(lines: Sequence[BusyLine], title: str) -> Chart:
    """Busy shares against workers; a large dot marks where each line's drivers saturate."""
    most = max(count for line in lines for count in line.workers)
    least = min(count for line in lines for count in line.workers)
    chart = Chart(x_range=(least * 0.9, most * 1.15), y_range=(0, 1.03), title=title, is_log_x=True, width=720)
    ticks = log_ticks(*chart.x_range)
    shares(chart, ticks, x_label="workers", y_label="workers busy", x_format=lambda value: f"{value:,.0f}")
    chart.line([(chart.x_range[0], 0.95), (chart.x_range[1], 0.95)], "neutral dashed")
    for place, line in enumerate(lines):
        colour = COLOURS[place % 7] + " dotted" * line.is_dashed + " thick" * line.is_thick
        chart.line(list(zip(line.workers, line.busy, strict=True)), colour)
        if line.saturating_workers <= most:
            chart.dot(line.saturating_workers, 1, colour, line.label, radius=6)
        chart.key.append((colour, line.label))
    return chart
