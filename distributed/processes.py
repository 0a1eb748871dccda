"""Processes of this machine that bear a mark in their environment, which children inherit. Linux: read from `/proc`.

So what one command started is found whole, and nothing else, whatever became of its parents.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

PROC = Path("/proc")
TERMINATE_S = 8.0
"""From SIGTERM to SIGKILL."""
GIVE_UP_S = 30.0
LOOK_EVERY_S = 0.1
STATE_FIELD, START_FIELD = 0, 19
"""Of `/proc/PID/stat`, counted behind the name: state, and ticks from boot to the start."""


class Process(NamedTuple):
    """A process. With its start, a number that the system gives to another one later is told apart."""

    pid: int
    started: int
    """Clock ticks after the machine's start."""
    name: str

    @property
    def is_alive(self) -> bool:
        return find(self.pid) == self

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


def find(pid: int) -> Process | None:
    """The process with that number; None where there is none, or one that has ended and waits for its parent."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()
    return None if fields[STATE_FIELD] in "ZX" else Process(pid, int(fields[START_FIELD]), name)


def marked(mark: str, value: str) -> list[Process]:
    """Processes of this user whose environment had `mark=value` when they started; not this one."""
    wanted = f"{mark}={value}".encode()
    found = []
    for folder in PROC.iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and (process := find(int(folder.name))) is not None:
            found.append(process)
    return found


def end(mark: str, value: str, known: Iterable[Process] = ()) -> int:
    """Ends what bears the mark and those of `known` that are still the same; how many there were.

    SIGTERM first, SIGKILL after some seconds. Raises `ValueError` where something stays.
    """
    recorded, seen = list(known), set()
    began = time.monotonic()
    while True:
        left = {process for process in recorded if process.is_alive} | set(marked(mark, value))
        elapsed_s = time.monotonic() - began
        if not left:
            return len(seen)
        if elapsed_s > GIVE_UP_S:
            names = ", ".join(f"{process.name} ({process.pid})" for process in sorted(left))
            raise ValueError(f"every process of the cluster must end, got {names} still running")
        for process in left:
            if process not in seen or elapsed_s > TERMINATE_S:
                _send(process, signal.SIGKILL if elapsed_s > TERMINATE_S else signal.SIGTERM)
        seen |= left
        time.sleep(LOOK_EVERY_S)


def _send(process: Process, signum: signal.Signals) -> None:
    try:
        os.kill(process.pid, signum)
    except ProcessLookupError:
        return  # it has ended by itself
