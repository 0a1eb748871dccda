"""`gram solve --watch`: the boards of one puzzle's trajectories, redrawn after every supervision step.

A live grid on a terminal; elsewhere one line a step. It only looks: it is an observer of the sampler.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gram.cli.errors import raise_if_stopped
from gram.cli.terminal import board_size, board_text, is_plain, legend, plural, side_by_side
from gram.config import ResolvedConfig
from gram.sampler.engine import Observer, StepView
from gram.tasks.protocol import Board, Task, Tokens

MOST_BOARDS = 12
GAP = 2
"""Columns between boards."""
CAPTION = 18
"""Columns of a board's caption."""
KEY = "id, LPRM, \u2713 valid, halt step   "
HEADER_LINES = 4
LAST_FRAME_PAUSES = 4
"""The last frame of a puzzle stays for so many pauses."""


@contextmanager
def watching(
    console: Console, task: Task, puzzle: Tokens, settings: ResolvedConfig, *, title: str, pause_s: float
) -> Iterator[Observer]:
    """Yields the observer that draws one puzzle `[L]`; all of a launch's trajectories must be of that puzzle."""
    watcher = Watcher(console, task, puzzle, settings, title=title)
    if not console.is_terminal:
        yield watcher
        return
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        watcher.live, watcher.pause_s = live, pause_s
        yield watcher
        time.sleep(LAST_FRAME_PAUSES * pause_s)


class Seen(NamedTuple):
    """One trajectory's last step."""

    answer: Tokens
    lprm: float
    step: int


class Watcher(Observer):
    """Turns what the sampler shows into frames, or into lines where nothing is live."""

    def __init__(self, console: Console, task: Task, puzzle: Tokens, settings: ResolvedConfig, *, title: str) -> None:
        self.console, self.task, self.puzzle, self.settings, self.title = console, task, puzzle, settings, title
        self.live: Live | None = None
        self.pause_s = 0.0
        self.before: dict[int, Board] = {}
        """Each trajectory's board of the step before."""
        self.halted_at: dict[int, int] = {}
        """Step at which a trajectory halted."""
        self.last: dict[int, Seen] = {}
        """What each trajectory showed last: those that have ended stay."""

    def on_step(self, view: StepView) -> None:
        raise_if_stopped()
        self.take(view)
        if self.live is None:
            self.console.print(self.line())
        else:
            self.live.update(self.frame(), refresh=True)
            time.sleep(self.pause_s)

    def take(self, view: StepView) -> None:
        """Notes a step of some of the trajectories."""
        for row, trajectory in enumerate(view.trajectory.tolist()):
            self.last[trajectory] = Seen(view.answers[row], float(view.lprm[row]), int(view.step[row]))
            if view.is_halted[row]:
                self.halted_at[trajectory] = int(view.step[row])

    @property
    def trajectories(self) -> list[int]:
        """Ids of those seen so far."""
        return sorted(self.last)

    @property
    def answers(self) -> Tokens:
        """Their last answers, in that order."""
        return np.stack([self.last[trajectory].answer for trajectory in self.trajectories])

    def counters(self) -> str:
        """Halted, distinct answers and distinct valid ones now."""
        distinct = np.unique(self.task.canonical(self.answers), axis=0)
        valid = int(self._verify(distinct).sum())
        halted = f"{len(self.halted_at):>2} of {len(self.last)} halted"
        return f"{halted}   {plural(len(distinct), 'distinct answer')}, {valid} valid"

    def line(self) -> str:
        """A frame for a log."""
        part = "" if len(self.last) == self.settings.width else f"   trajectories 0 to {max(self.last)}"
        return f"{self.title}   {self._step()}   {self.counters()}{part}"

    def frame(self) -> Group:
        """A frame for a terminal: counters, then as many boards as fit."""
        columns, lines = board_size(self.task.board(self.puzzle))
        width = max(columns, CAPTION)
        across = max((self.console.width + GAP) // (width + GAP), 1)
        down = max((self.console.height - HEADER_LINES + 1) // (lines + 2), 1)
        count = min(across * down, MOST_BOARDS, len(self.last))
        is_valid = self._verify(self.answers[:count])
        shown = self.trajectories[:count]
        boards = [self._board(each, width, bool(valid)) for each, valid in zip(shown, is_valid, strict=True)]
        title = Text.assemble((f"{self.task.name}  {self.title}", "bold"), f"   {self._step()}")
        part = f"   showing trajectories {shown[0]} to {shown[-1]}"
        counters = Text.assemble(self.counters(), ("" if count == len(self.last) else part, "dim"))
        # A head that was never trained, as a lattice's, says 0 of everything.
        told = KEY if any(seen.lprm for seen in self.last.values()) else KEY.replace(" LPRM,", "")
        key = Text.assemble((told, "dim"), legend(marks=is_plain(self.console), has_new=True))
        return Group(title, counters, key, Text(), side_by_side(boards, across=across, gap=GAP))

    def _step(self) -> str:
        return f"step {max(seen.step for seen in self.last.values()):>2} of {self.settings.depth}"

    def _verify(self, answers: Tokens) -> np.ndarray:
        return self.task.verify(np.repeat(self.puzzle[None], len(answers), axis=0), answers)

    def _board(self, trajectory: int, width: int, is_valid: bool) -> Group:
        """One trajectory: caption and board, `width` columns and a blank line below."""
        seen, halted_at = self.last[trajectory], self.halted_at.get(trajectory)
        board = self.task.board(self.puzzle, seen.answer)
        before, self.before[trajectory] = self.before.get(trajectory), board
        state = "" if halted_at is None else f" halt {halted_at}"
        mark = ("\u2713", "bold green") if is_valid else (" ", "")
        lprm = f"{seen.lprm:>6.2f} " if seen.lprm else " "
        caption = Text.assemble((f"{trajectory:>3}", "bold"), lprm, mark, (state, "dim"), no_wrap=True)
        caption.truncate(width, pad=True)
        return Group(caption, board_text(board, marks=is_plain(self.console), before=before), Text())
