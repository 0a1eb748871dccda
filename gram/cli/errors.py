"""How a command ends when it does not succeed: one line on stderr and an exit code.

Bad input exits 2, Ctrl-C 130, SIGTERM 143. What nobody expected keeps its traceback and exits 1; `GRAM_TRACEBACK=1`
shows the traceback of bad input too.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

BAD_INPUT = 2
BROKEN = 1
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What a system says of a full disk and its like; it names no file then."""
TRACEBACK_VARIABLE = "GRAM_TRACEBACK"


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; not an `Exception`, so that nothing on the way mistakes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.kept = "nothing was left half-written"

    @property
    def exit_code(self) -> int:
        """What shells report for a process that the signal ended."""
        return 128 + self.signum

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"stopped by {name}: {self.kept}"


@contextmanager
def keeping(folder: Path | None) -> Iterator[None]:
    """Lets an interrupted run say that its folder (where it has one) holds what was finished."""
    try:
        yield
    except BaseException as error:
        stop = stopped_by(error, received())
        if stop is None:
            raise
        if folder is not None:
            stop.kept = f"{folder} holds what was finished, the same command goes on from there"
        raise stop from None


_received: list[int] = []
"""Signals so far."""


def raise_on_signals() -> None:
    """Turns SIGINT and SIGTERM into `Interrupted` in the main thread, so that temporary files are removed."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        _received.append(signum)
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)


def received() -> int | None:
    """The first signal, where one has come."""
    return _received[0] if _received else None


def raise_if_stopped() -> None:
    """For long loops: raises again what a bare `except` of an imported library may have swallowed."""
    if _received:
        raise Interrupted(_received[0])


def is_bad_input(error: Exception) -> bool:
    """Whether the user can mend it: our one-line `ValueError`s, and files that cannot be read or written."""
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        return False
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in UNWRITABLE
    return isinstance(error, ValueError)


def stopped_by(error: BaseException | None, signum: int | None) -> Interrupted | None:
    """The interruption that an error is, or that it follows from where the signal `signum` came before it; or None.

    Ctrl-C, and SIGTERM from a job's scheduler, reach all processes of a command. A compiler that PyTorch waits for
    ends by it too, and PyTorch's report of that failure holds all that was to be compiled.
    """
    if isinstance(error, Interrupted):
        return error
    is_shown = os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")
    if signum is None or is_shown or not isinstance(error, Exception) or is_bad_input(error):
        return None
    return Interrupted(signum)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks; a file's name comes first."""
    if isinstance(error, typer.BadParameter) and error.param is not None and error.message:
        return f"{error.param.opts[0]} {error.message}"
    if isinstance(error, typer.TyperException):
        return " ".join(error.format_message().rstrip(".").split())
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename}: no such file"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"cannot write: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class Notices(logging.Handler):
    """Shows what the library logs as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        report(record.getMessage())


NOTICES = Notices()


def flush_output(last: str = "") -> None:
    """Writes out what stdout still holds, and `last`: on a full disk it may fail only now.

    Raises `OSError` naming it, once: what cannot be written is given up, so that the interpreter does not try again at
    its end. Where the reader of a pipe has gone, the command ends with 1 and says nothing.
    """
    try:
        sys.stdout.write(last)
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BROKEN) from None
        raise OSError(error.errno, error.strerror, "standard output") from None


def report(message: str) -> None:
    """One line on stderr."""
    print(f"gram: {message}", file=sys.stderr)
