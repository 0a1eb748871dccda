"""What commands print: boards, figures, JSON and progress. The one place that knows how a terminal looks.

Figures go to stdout, progress to stderr. Where there are no colours, a mark before a cell says what it is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from gram.cli.errors import raise_if_stopped
from gram.formatting import number as number
from gram.formatting import percent as percent
from gram.formatting import plain
from gram.formatting import plural as plural
from gram.formatting import rate as rate
from gram.tasks.protocol import Board, CellKind

if TYPE_CHECKING:
    from gram.distributed.pool import ClusterStatus, Pool

STYLES: dict[CellKind, str] = {
    "given": "bold",
    "filled": "cyan",
    "blank": "dim",
    "conflict": "bold reverse red",
    "label": "dim",
}
RULE = "\u2500"
CROSSED = (RULE, "\u253c")
"""Labels that draw a horizontal line, which runs on over the columns between cells."""
NEW_STYLE = "bold yellow"
"""Of a cell that has just been filled in."""
MARKS: dict[CellKind, str] = {"filled": "+", "conflict": "!"}
"""Stands before a cell where there are no colours."""
LABEL_WIDTH = 16
"""Columns that a label which breaks gets at least, where it is that long."""
PLAIN_PROGRESS_EVERY_S = 10.0
RATE_OVER_S, CLUSTER_RATE_OVER_S = 30.0, 600.0
"""The rate shown is that of the last so many seconds: a shard of a cluster can take minutes."""


def output() -> Console:
    """The console for figures. Width and colours are the terminal's; a pipe gets plain text."""
    return Console(highlight=False, markup=False, emoji=False)


def is_plain(console: Console) -> bool:
    """Whether colours are missing, so that marks must distinguish cells."""
    return console.color_system is None or console.no_color


def print_json(value: Any) -> None:
    """One JSON object on stdout; what is undefined (NaN) is null."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def board_text(board: Board, *, marks: bool, before: Board | None = None) -> Text:
    """A board as lines of text, every cell preceded by one column (its mark, or a space).

    With `before`, an earlier state of the same board, cells filled in since then stand out.
    """
    columns = max((len(row) for row in board), default=0)
    widths = [max(len(row[column].text) for row in board if column < len(row)) for column in range(columns)]
    lines = []
    for row_index, row in enumerate(board):
        line = Text(no_wrap=True)
        for column, cell in enumerate(row):
            is_new = before is not None and cell.kind == "filled" and cell.text != before[row_index][column].text
            mark = MARKS.get(cell.kind, " ") if marks else " "
            line.append(*((RULE, STYLES["label"]) if cell.kind == "label" and cell.text in CROSSED else (mark, None)))
            line.append(cell.text, style=NEW_STYLE if is_new else STYLES[cell.kind])
            line.append(" " * (widths[column] - len(cell.text)))
        lines.append(line)
    return Text("\n", no_wrap=True).join(lines)


def board_size(board: Board) -> tuple[int, int]:
    """Columns and lines that `board_text` takes."""
    text = board_text(board, marks=False)
    lines = text.plain.splitlines()
    return max((len(line) for line in lines), default=0), len(lines)


def framed(board: Board, title: str, *, marks: bool, style: str = "dim") -> Panel:
    """A board with a frame and a title, as wide as its content."""
    width = max(board_size(board)[0] + 1, len(title) + 4) + 2
    body = Padding(board_text(board, marks=marks), (0, 1, 0, 0))
    return Panel(body, title=Text(title, "not dim"), title_align="left", border_style=style, padding=0, width=width)


def side_by_side(panels: Sequence[RenderableType], *, across: int | None = None, gap: int = 1) -> Table:
    """Renderables next to each other, `across` in a line (None: all), blank columns between."""
    across = across or len(panels)
    grid = Table.grid(padding=(0, gap, 0, 0))
    for first in range(0, len(panels), across):
        grid.add_row(*panels[first : first + across])
    return grid


def legend(*, marks: bool, has_new: bool = False) -> Text:
    """One line that explains the cells' styles."""
    kinds: dict[CellKind, str] = {"given": "given", "filled": "filled in", "conflict": "conflict"}
    words = [Text((MARKS.get(kind, "") if marks else "") + name, STYLES[kind]) for kind, name in kinds.items()]
    if has_new:
        words.insert(2, Text("just now", NEW_STYLE))
    return Text("  ").join(words)


def trajectories(width: int, policy: str, of: str = "") -> str:
    """How many trajectories a puzzle gets: `20 trajectories`, or `at most 20 trajectories (decided)`; `of` follows the
    noun."""
    text = plural(width, "trajectory", "trajectories") + of
    return text if policy == "fixed" else f"at most {text} ({policy})"


def table(*headers: str, left: int = 1, wraps: int | None = None) -> Table:
    """A table without a frame; the first `left` columns are text, the others numbers.

    Column `wraps` (None: the first) may break. Where the others do not fit even then, each row is printed in lines of
    its own, so that no figure is ever cut.
    """
    made = _Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, header in enumerate(headers):
        is_label = index == (0 if wraps is None else wraps)
        made.add_column(header, justify="left" if index < left else "right", no_wrap=not is_label, overflow="fold")
    return made


class _Table(Table):
    """A table that prints its rows in lines where the columns do not fit side by side."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.printed: list[tuple[RenderableType, ...]] = []

    def add_row(self, *cells: Any, **options: Any) -> None:
        self.printed.append(cells)
        super().add_row(*cells, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = sum(_needed(console, options, column) for column in self.columns) + 2 * (len(self.columns) - 1)
        if needed <= options.max_width:
            for column in self.columns:
                # Known only now: a short label takes no more than it is long.
                column.min_width = None if column.no_wrap else _needed(console, options, column)
            yield from super().__rich_console__(console, options)
            return
        for cells in self.printed:
            for place, (column, cell) in enumerate(zip(self.columns, cells, strict=False)):
                value = cell if isinstance(cell, Text) else Text(str(cell))
                if value.plain:
                    name = Text(f"  {column.header}: " if place and column.header else "  " if place else "", "dim")
                    yield Text.assemble(name, value, overflow="fold")


def _needed(console: Console, options: ConsoleOptions, column: Column) -> int:
    """Columns of the terminal that a column of the table cannot do without."""
    widths = [Measurement.get(console, options, cell).maximum for cell in (column.header, *column.cells)]
    return max(widths, default=0) if column.no_wrap else min(LABEL_WIDTH, max(widths, default=0))


def log(line: str) -> None:
    """One line of news on stderr, for work that has no total; ends a run that was asked to stop."""
    raise_if_stopped()
    print(line, file=sys.stderr)


class _Rate(ProgressColumn):
    """Units done per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="dim")


class _TimeLeft(TimeRemainingColumn):
    """Time left, once there is a rate."""

    def render(self, task: Task) -> Text:
        if task.time_remaining is None:
            return Text("")
        return super().render(task).append(" left", "dim")


class _Bars(Progress):
    """The bar and, where a cluster works, a line on that."""

    def __init__(self, *columns: ProgressColumn, status: Callable[[], ClusterStatus] | None, console: Console) -> None:
        self.status = status
        period_s = RATE_OVER_S if status is None else CLUSTER_RATE_OVER_S
        super().__init__(*columns, console=console, transient=True, speed_estimate_period=period_s)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, several times a second, by a thread of rich's."""
        yield self.make_tasks_table(self.tasks)
        if self.status is not None:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(no_wrap=True)
            # Padded here: versions of rich differ in whether a column's least width counts what stands between columns.
            width = max((len(task.description) for task in self.tasks), default=0)
            grid.add_row("cluster".ljust(width), cluster_line(self.status()))
            yield grid


def cluster_line(status: ClusterStatus) -> Text:
    """How a run on a cluster stands, for under the bar; what is amiss stands out."""
    if not status.shards:
        sound = ["nothing to run yet"]
    else:
        sound = [f"{status.finished:,} of {plural(status.shards, 'shard')}"]
        if status.workers:
            sound.append(f"{plural(status.workers, 'worker')} on {plural(status.nodes, 'node')}")
        if status.starting:
            sound.append(f"{status.starting:,} starting")
        if status.copies:
            sound.append(plural(status.copies, "extra copy", "extra copies"))
    amiss = [] if status.workers or status.starting or not status.shards else ["no worker"]
    if status.retries:
        amiss.append(plural(status.retries, "retry", "retries"))
    if status.poison:
        amiss.append(plural(status.poison, "shard failed for good", "shards failed for good"))
    return Text(", ").join([Text(", ".join(sound)), *(Text(part, "bold yellow") for part in amiss)])


@contextmanager
def progress(
    total: int, unit: str, *, is_quiet: bool = False, cluster: Pool | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with how many more units are done; shows rate and time left on stderr, and how the
    `cluster` stands that does them.

    A bar on a terminal, elsewhere a plain line at most every ten seconds. Calling it ends a run that was asked to stop.
    """
    console = Console(stderr=True, highlight=False)
    status = None if cluster is None else cluster.status
    with ExitStack() as stack:
        advance: Callable[[int], None] = _PlainProgress(total, unit, status)
        if console.is_terminal and not is_quiet:
            bar = stack.enter_context(bars(console, status))
            advance = partial(bar.advance, bar.add_task(unit, total=total))

        def report(count: int) -> None:
            raise_if_stopped()
            if not is_quiet:
                advance(count)

        yield report


def bars(console: Console, status: Callable[[], ClusterStatus] | None) -> Progress:
    """The terminal's view of a run, to be entered."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), _TimeLeft()
    return _Bars(*columns, status=status, console=console)


class _PlainProgress:
    """Progress for a log: one line at most every ten seconds."""

    def __init__(self, total: int, unit: str, status: Callable[[], ClusterStatus] | None = None) -> None:
        self.total, self.unit, self.status, self.done = total, unit, status, 0
        self.logged_s = time.perf_counter()
        self.first: tuple[float, int] | None = None
        """When the first units were done, and how many: those kept of an earlier run say nothing of speed."""

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if self.first is None:
            self.first = now, self.done
        if now - self.logged_s < PLAIN_PROGRESS_EVERY_S:
            return
        self.logged_s = now
        print(self.line(now), file=sys.stderr)

    def line(self, now: float) -> str:
        """The line at a time of the same clock."""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        if self.first is not None and self.done > self.first[1] and now > self.first[0]:
            rate = (self.done - self.first[1]) / (now - self.first[0])
            digits = 0 if rate >= 10 else 2
            parts += [f"{rate:,.{digits}f}/s", f"{(self.total - self.done) / rate:,.0f} s left"]
        if self.status is not None:
            parts.append(cluster_line(self.status()).plain)
        return ", ".join(parts)
