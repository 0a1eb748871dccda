"""Pictures of the report's page as inline SVG: text, lines and marks whose colours are the page's CSS variables.

Not the PNG and SVG files (`plots.py`). Every mark that carries figures has them as `data-tip`, which the page shows on
hover, tap and focus. Coordinates are those of the view box; a phone enlarges the text by CSS.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]


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


@dataclass
class Chart:
    """A plane with two axes; `svg()` is the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    title: str
    """What a screen reader says."""
    is_log_x: bool = False
    width: int = 640
    height: int = 340
    left: int = 62
    right: int = 16
    top: int = 14
    bottom: int = 52
    parts: list[str] = field(default_factory=list)

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
        middle = (self.top + floor) / 2
        self.parts.append(
            f'<text class="label middle" transform="translate(14 {middle:.0f}) rotate(-90)">{html.escape(y_label)}</text>'
        )

    def text(self, x: float, y: float, words: str, kind: str) -> None:
        """Words at a place."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(words)}</text>')

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
        a, b = self.x(x), self.y(y)
        self.parts.append(
            f'<g class="mark" tabindex="0" data-tip="{html.escape(tip)}"><circle class="hit" cx="{a:.1f}" cy="{b:.1f}" r="13"/>'
            f'<circle class="dot {colour}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/></g>'
        )

    def whisker(self, x: float, low: float, high: float, colour: str) -> None:
        """An interval, upright."""
        self.parts.append(
            f'<line class="whisker {colour}" x1="{self.x(x):.1f}" x2="{self.x(x):.1f}" y1="{self.y(low):.1f}" y2="{self.y(high):.1f}"/>'
        )

    def bar(self, x: float, low: float, high: float, width: float, colour: str, tip: str) -> None:
        """An upright bar of a width in view-box units."""
        a, top, bottom = self.x(x) - width / 2, self.y(high), self.y(low)
        if bottom - top > 0.05:
            self.parts.append(
                f'<rect class="mark bar {colour}" tabindex="0" data-tip="{html.escape(tip)}" x="{a:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{max(bottom - top - 1, 0.6):.1f}" rx="1.5"/>'
            )

    def svg(self) -> str:
        """The picture."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html.escape(self.title)}">'
            + "".join(self.parts)
            + "</svg>"
        )


def heat_map(
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    tips: Sequence[Sequence[str]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    contours: Sequence[tuple[str, Sequence[tuple[Point, Point]]]] = (),
) -> str:
    """Cells `values[row][column]` in [0, 1], first row at the bottom; contours in cell units, (0, 0) the first cell's
    middle. The colour scale runs from the smallest to the largest value."""
    known = [value for row in values for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    left, top, cell_w, cell_h = 62, 10, min(96, 520 / len(columns)), min(54, 330 / len(rows))
    width, height = left + cell_w * len(columns) + 58, top + cell_h * len(rows) + 52
    parts = []
    for r, row in enumerate(values):
        y = top + (len(rows) - 1 - r) * cell_h
        parts.append(
            f'<text class="tick end" x="{left - 8}" y="{y + cell_h / 2 + 4:.1f}">{html.escape(rows[r])}</text>'
        )
        for c, value in enumerate(row):
            x = left + c * cell_w
            if value is None:
                continue
            share = (value - low) / (high - low) if high > low else 0.5
            ink = "ink-high" if share > 0.55 else "ink-low"
            parts.append(
                f'<g class="mark" tabindex="0" data-tip="{html.escape(tips[r][c])}"><rect class="heat" style="--v:{100 * share:.0f}%" '
                f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell_w - 2:.1f}" height="{cell_h - 2:.1f}" rx="2"/>'
                f'<text class="cell middle {ink}" x="{x + cell_w / 2:.1f}" y="{y + cell_h / 2 + 4.5:.1f}">{100 * value:.1f}</text></g>'
            )
    for c, name in enumerate(columns):
        parts.append(
            f'<text class="tick middle" x="{left + (c + 0.5) * cell_w:.1f}" y="{height - 34:.1f}">{html.escape(name)}</text>'
        )

    def place(point: Point) -> tuple[float, float]:
        return left + (point[0] + 0.5) * cell_w, top + (len(rows) - 0.5 - point[1]) * cell_h

    for name, segments in contours:
        for start, end in segments:
            (a, b), (c_, d) = place(start), place(end)
            parts.append(f'<line class="contour" x1="{a:.1f}" y1="{b:.1f}" x2="{c_:.1f}" y2="{d:.1f}"/>')
        if segments:
            a, b = place(
                max((point for segment in segments for point in segment), key=lambda point: (point[0], point[1]))
            )
            parts.append(f'<text class="contour-label" x="{a + 5:.1f}" y="{b + 4:.1f}">{html.escape(name)}</text>')
    middle = left + cell_w * len(columns) / 2
    parts.append(f'<text class="label middle" x="{middle:.1f}" y="{height - 8:.1f}">{html.escape(x_label)}</text>')
    upright = top + cell_h * len(rows) / 2
    parts.append(
        f'<text class="label middle" transform="translate(14 {upright:.0f}) rotate(-90)">{html.escape(y_label)}</text>'
    )
    size = f"0 0 {width:.0f} {height:.0f}"
    return f'<svg viewBox="{size}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def contour_segments(values: Sequence[Sequence[float | None]], level: float) -> list[tuple[Point, Point]]:
    """Segments along which the logarithm of `values[row][column]`, linear between cells' middles, is that of `level`."""
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
