"""Pictures of the report's page as inline SVG: text, lines and marks whose colours are the page's CSS variables.

`str()` of a picture is its HTML for a page; `pictures.py` makes files of pictures. A mark that carries figures has them
as `data-tip`, which the page shows on hover, tap and focus. Coordinates are those of the view box.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
HEAT_LOW, HEAT_HIGH = (238, 243, 250), (18, 67, 140)
"""Colours of the least and of the greatest cell, as `--heat-low` and `--heat-high` of the light page."""


def log_ticks(low: float, high: float) -> list[float]:
    """Round values 1, 2, 5 x 10^n within a range, at most seven."""
    steps: Sequence[int] = (1, 2, 5)
    while True:
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in exponents for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 7 or len(steps) == 1:
            return ticks or [low]
        steps = (1,) if len(ticks) > 12 else (1, 3)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within a range."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(kw_only=True)
class Picture:
    """Shapes in a view box, with a legend above."""

    title: str
    """What a screen reader says."""
    width: float = 640
    height: float = 340
    key: list[tuple[str, str]] = field(default_factory=list)
    """Class and words of each entry of the legend."""
    is_block_key: bool = False
    """Whether the legend shows blocks, as bars have, in place of lines."""
    parts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        mark = ' class="block"' if self.is_block_key else ""
        entries = "".join(f'<li class="{kind}"><i{mark}></i>{html.escape(words)}</li>' for kind, words in self.key)
        box = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{html.escape(self.title)}"'
        return (f'<ul class="key">{entries}</ul>' if entries else "") + f"<svg {box}>{''.join(self.parts)}</svg>"

    def text(self, x: float, y: float, words: str, kind: str) -> None:
        """Words at a place."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(words)}</text>')

    def upright(self, y: float, words: str) -> None:
        """The label of the upright axis."""
        place = f"translate(14 {y:.0f}) rotate(-90)"
        self.parts.append(f'<text class="label middle upright" transform="{place}">{html.escape(words)}</text>')

    def mark(self, tip: str, shapes: str) -> None:
        """Shapes that show figures on hover, tap and focus."""
        self.parts.append(f'<g class="mark" tabindex="0" data-tip="{html.escape(tip)}">{shapes}</g>')


@dataclass(kw_only=True)
class Chart(Picture):
    """A plane with two axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    is_log_x: bool = False
    left: int = 62
    right: int = 16
    top: int = 14
    bottom: int = 52

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        share = math.log(value / low) / math.log(high / low) if self.is_log_x else (value - low) / (high - low)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        low, high = self.y_range
        return self.top + (1 - (value - low) / (high - low)) * (self.height - self.top - self.bottom)

    def axes(
        self,
        x_ticks: Iterable[float],
        y_ticks: Iterable[float],
        *,
        x_label: str,
        y_label: str,
        x_format: Callable[[float], str],
        y_format: Callable[[float], str],
    ) -> None:
        """Grid lines, ticks and labels."""
        floor = self.height - self.bottom
        for value in y_ticks:
            y = self.y(value)
            self.parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            self.text(self.left - 8, y + 4, y_format(value), "tick end")
        for value in x_ticks:
            x = self.x(value)
            self.parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>')
            self.text(x, floor + 20, x_format(value), "tick middle")
        self.parts.append(
            f'<line class="axis" x1="{self.left}" x2="{self.width - self.right}" y1="{floor}" y2="{floor}"/>'
        )
        self.text((self.left + self.width - self.right) / 2, self.height - 8, x_label, "label middle")
        self.upright((self.top + floor) / 2, y_label)

    def band(self, lows: Sequence[Point], highs: Sequence[Point], colour: str) -> None:
        """The area between two lines."""
        there = [*lows, *reversed(highs)]
        if len(lows) > 1:
            points = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in there)
            self.parts.append(f'<polygon class="band {colour}" points="{points}"/>')

    def line(self, points: Sequence[Point], colour: str, *, is_stepped: bool = False) -> None:
        """A line through points; stepped: it keeps its height until the next point."""
        there = [(self.x(a), self.y(b)) for a, b in points]
        if is_stepped:
            there = [
                each for (a, b), (c, _) in zip(there, [*there[1:], there[-1]], strict=True) for each in ((a, b), (c, b))
            ]
        if len(there) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in there)
            self.parts.append(f'<polyline class="line {colour}" points="{path}"/>')

    def dot(self, x: float, y: float, colour: str, tip: str, *, radius: float = 4.5) -> None:
        """A mark with a larger place to hit."""
        centre = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}"'
        circles = f'<circle class="hit" {centre} r="13"/><circle class="dot {colour}" {centre} r="{radius}"/>'
        self.mark(tip, circles)

    def whisker(self, x: float, low: float, high: float, colour: str) -> None:
        """An interval, upright."""
        a, top, bottom = self.x(x), self.y(high), self.y(low)
        ends = f'x1="{a:.1f}" x2="{a:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"'
        self.parts.append(f'<line class="whisker {colour}" {ends}/>')

    def bar(self, x: float, low: float, high: float, width: float, colour: str, tip: str) -> None:
        """An upright bar of a width in view-box units."""
        a, top, bottom = self.x(x) - width / 2, self.y(high), self.y(low)
        if bottom - top > 0.05:
            size = f'x="{a:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top - 1, 0.6):.1f}"'
            self.mark(tip, f'<rect class="bar {colour}" {size} rx="1.5"/>')


@dataclass(kw_only=True)
class HeatMap(Picture):
    """Cells `values[row][column]` in [0, 1], the first row at the bottom, coloured from the smallest to the largest."""

    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    notes: Sequence[Sequence[str]]
    """Small print under each value."""
    tips: Sequence[Sequence[str]]
    x_label: str
    y_label: str
    contours: Sequence[tuple[str, Sequence[tuple[Point, Point]]]] = ()
    """Names and segments, in units of cells."""
    left: int = 62
    top: int = 26

    def __post_init__(self) -> None:
        self.cell_w, self.cell_h = min(110.0, 510 / len(self.columns)), min(56.0, 340 / len(self.rows))
        self.right, self.floor = self.left + self.cell_w * len(self.columns), self.top + self.cell_h * len(self.rows)
        self.width, self.height = self.right + 68, self.floor + 52
        for c, name in enumerate(self.columns):
            self.text(self.place((c, 0))[0], self.floor + 20, name, "tick middle")
        for r, name in enumerate(self.rows):
            self.text(self.left - 8, self.place((0, r))[1] + 4, name, "tick end")
        known = [value for row in self.values for value in row if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        cells = [
            (c, r, value, (value - low) / (high - low) if high > low else 0.5)
            for r, row in enumerate(self.values)
            for c, value in enumerate(row)
            if value is not None
        ]
        for c, r, _, share in cells:
            self._cell(c, r, share)
        for name, segments in self.contours:
            self._contour(name, segments)
        for c, r, value, share in cells:  # above the contours, which would strike them out
            x, y = self.place((c, r))
            ink = "ink-high" if share > 0.55 else "ink-low"
            self.text(x, y - 1, f"{100 * value:.1f}", f"cell middle {ink}")
            self.text(x, y + 14, self.notes[r][c], f"note middle {ink}")
        self.text((self.left + self.right) / 2, self.floor + 44, self.x_label, "label middle")
        self.upright((self.top + self.floor) / 2, self.y_label)

    def place(self, point: Point) -> Point:
        """Where a point in units of cells is; (0, 0) is the middle of the first cell."""
        return self.left + (point[0] + 0.5) * self.cell_w, self.floor - (point[1] + 0.5) * self.cell_h

    def _cell(self, c: int, r: int, share: float) -> None:
        x, y = self.place((c, r))
        size = f'width="{self.cell_w - 2:.1f}" height="{self.cell_h - 2:.1f}" rx="2"'
        corner = f'x="{x - self.cell_w / 2 + 1:.1f}" y="{y - self.cell_h / 2 + 1:.1f}"'
        # The page's style takes `--v`; a file, whose reader may know no variables, the plain colour.
        plain = "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(HEAT_LOW, HEAT_HIGH, strict=True))
        style = f'style="--v:{100 * share:.0f}%" fill="{plain}"'
        self.mark(self.tips[r][c], f'<rect class="heat" {style} {corner} {size}/>')

    def _contour(self, name: str, segments: Sequence[tuple[Point, Point]]) -> None:
        """Dashes, and the name where they leave the map: at its right edge, else above it."""
        for start, end in segments:
            (a, b), (c, d) = self.place(start), self.place(end)
            self.parts.append(f'<line class="contour" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>')
        if not segments:
            return
        points = [point for segment in segments for point in segment]
        if max(points)[0] >= len(self.columns) - 1:
            x, y = self.place(max(points))
            self.parts.append(f'<line class="contour" x1="{x:.1f}" y1="{y:.1f}" x2="{self.right:.1f}" y2="{y:.1f}"/>')
            self.text(self.right + 5, y + 4, name, "contour-label")
        else:
            x, y = self.place(max(points, key=lambda point: point[1]))
            self.parts.append(f'<line class="contour" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{self.top - 4:.1f}"/>')
            self.text(x, self.top - 9, name, "contour-label middle")


def contour_segments(values: Sequence[Sequence[float | None]], level: float) -> list[tuple[Point, Point]]:
    """Segments along which the logarithm of `values[row][column]`, linear between middles, is that of `level`."""
    segments = []
    for r in range(len(values) - 1):
        for c in range(len(values[0]) - 1):
            corners = [(c, r), (c + 1, r), (c + 1, r + 1), (c, r + 1)]
            heights = [values[y][x] for x, y in corners]
            if any(height is None or height <= 0 for height in heights):
                continue
            logs = [math.log(height / level) for height in heights if height is not None]
            crossed: list[Point] = []
            for one in range(4):
                two = (one + 1) % 4
                if (logs[one] < 0) != (logs[two] < 0):
                    share = logs[one] / (logs[one] - logs[two])
                    (a, b), (d, e) = corners[one], corners[two]
                    crossed.append((a + share * (d - a), b + share * (e - b)))
            segments += [(crossed[n], crossed[n + 1]) for n in range(0, len(crossed) - 1, 2)]
    return segments
