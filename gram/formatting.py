"""Figures as text, where an undefined one (None, NaN, infinity) is a dash, and values as strict JSON has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

UNITS = {"ms": "ms", "J": "J", "MACs": "MACs", "energy": "J", "macs": "MACs"}
"""Units, and the unit of each way to match budgets other than latency, which is in milliseconds."""


def is_defined(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite figure."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return f"{value:,.{digits}f}" if is_defined(value) else "-"


def rate(value: float | None) -> str:
    """Of something a second: a whole number from ten on, below it two digits, so that a slow run is not 0."""
    return f"{value:.2g}" if is_defined(value) and value < 9.5 else number(value, 0)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * value:.{digits}f} %" if is_defined(value) else "-"


def signed(share: float) -> str:
    """A difference of shares in points, with its sign; never `-0.0`."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def span(low: float | None, high: float | None, *, is_signed: bool = False) -> str:
    """An interval of shares, in per cent or points without the unit; empty where it is undefined."""
    if not (is_defined(low) and is_defined(high)):
        return ""
    return f"{signed(low)} to {signed(high)}" if is_signed else f"{100 * low:.1f} to {100 * high:.1f}"


def difference(found: Mapping[str, Any]) -> str:
    """A difference in points with its interval."""
    return f"{signed(found['difference'])} ({span(found['low'], found['high'], is_signed=True)})"


def milliseconds(value: float | None) -> str:
    """A time given in milliseconds."""
    if not is_defined(value):
        return "-"
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def count(value: float | None) -> str:
    """A count of operations in short, with the prefix of its unit: `1.5 G`."""
    if not is_defined(value):
        return "-"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g} "


def amount(value: float | None, by: str) -> str:
    """A budget with its unit; `by` names the unit or the way to match budgets."""
    unit = UNITS.get(by, "ms")
    if unit == "ms" or not is_defined(value):
        return milliseconds(value)
    return f"{count(value)}{unit}" if unit == "MACs" else f"{value:.3g} {unit}"


def plural(number_of: int, one: str, many: str | None = None) -> str:
    """`1 puzzle`, `2 puzzles`."""
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as lines whose columns stand below each other, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(heads: Sequence[str], rows: Iterable[Iterable[str]], *, rule: str = "---") -> str:
    """Rows of text as a Markdown table; `rule` stands below each head."""
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|" + f"{rule}|" * len(heads), *lines[1:]])


def plain(value: Any) -> Any:
    """`value` with numpy's scalars and arrays as Python's numbers and lists, and NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
