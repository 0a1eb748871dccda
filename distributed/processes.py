"""Processes of this machine that bear a mark in their environment, which children inherit. Linux: read from `/proc`.

So what one command started is found whole, and nothing else, whatever became of its parents. Some of Ray's processes
write their title over their environment: the session that they share with a marked one tells them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TERMINATE_S = 8.0
"""From SIGTERM to SIGKILL."""
GIVE_UP_S = 30.0
LOOK_EVERY_S = 0.1
STATE_FIELD, SESSION_FIELD, START_FIELD = 0, 3, 19
"""Of `/proc/PID/stat`, counted behind the name: state, session, and ticks from boot to the start."""


class Process(NamedTuple):
    """A process. With its start, a number that the system gives to another one later is told apart."""

    pid: int
    started: int
    """Clock ticks after the machine's start."""
    name: str
    session: int

    @property
    def is_alive(self) -> bool:
        """Whether it runs; its name may have changed since."""
        now = find(self.pid)
        return now is not None and now.started == self.started


def find(pid: int) -> Process | None:
    """The process with that number; None where there is none, or one that has ended and waits for its parent."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()
    if fields[STATE_FIELD] in "ZX":
        return None
    return Process(pid, int(fields[START_FIELD]), name, int(fields[SESSION_FIELD]))


def named(name: str) -> list[Process]:
    """Processes of that name that this user can see."""
    return [process for process in _all() if process.name == name]


def marked(mark: str, value: str) -> list[Process]:
    """Processes of this user whose environment had `mark=value` when they started, and those of their sessions.

    This process and its session are left out.
    """
    theirs = sessions(mark, value)
    return [process for process in _all() if process.session in theirs]


def sessions(mark: str, value: str) -> set[int]:
    """Sessions with a process that bears the mark."""
    wanted = f"{mark}={value}".encode()
    found = {process.session for process in _all() if wanted in _environment(process.pid)}
    return found - {os.getsid(0)}


def end(mark: str, value: str, known: Iterable[Process] = ()) -> int:
    """Ends what bears the mark and those of `known` that are still the same; how many there were.

    SIGTERM first, SIGKILL after some seconds. Raises `ValueError` where something stays.
    """
    recorded, theirs = list(known), set[int]()
    seen: set[tuple[int, int]] = set()
    began = time.monotonic()
    while True:
        theirs |= sessions(mark, value)
        left = [process for process in recorded if process.is_alive]
        left += [process for process in _all() if process.session in theirs]
        elapsed_s = time.monotonic() - began
        if not left:
            return len(seen)
        if elapsed_s > GIVE_UP_S:
            names = ", ".join(sorted({f"{process.name} ({process.pid})" for process in left}))
            raise ValueError(f"every process of the cluster must end, got {names} still running")
        for process in left:
            if (process.pid, process.started) not in seen or elapsed_s > TERMINATE_S:
                _send(process, signal.SIGKILL if elapsed_s > TERMINATE_S else signal.SIGTERM)
        seen |= {(process.pid, process.started) for process in left}
        time.sleep(LOOK_EVERY_S)


def kill_session(session: int) -> None:
    """Kills every process of a session, which must not be this process's."""
    if session == os.getsid(0):
        raise ValueError(f"session must be another than this process's, got {session}")
    for process in _all():
        if process.session == session:
            _send(process, signal.SIGKILL)


def _all() -> list[Process]:
    found = (find(int(folder.name)) for folder in PROC.iterdir() if folder.name.isdigit())
    return [process for process in found if process is not None]


def _environment(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []  # another user's, or gone


def _send(process: Process, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(process.pid, signum)
