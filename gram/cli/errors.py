"""How a command ends and what its outputs can show: a line and an exit code where it fails, ASCII where need be.

Bad input exits 2, Ctrl-C 130, SIGTERM 143. What nobody expected keeps its traceback and exits 1; `GRAM_TRACEBACK=1`
shows the traceback of bad input too.

What an output cannot show is replaced by ASCII, one character for one, so that boards and tables keep their columns. An
output's encoding alone decides that: the locale, `PYTHONIOENCODING` or a pipe of another program sets it. Bytes of a
file name that are no text go out as they came in.
"""

from __future__ import annotations

import codecs
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
ASCII_HANDLER = "gram.ascii"
"""Of the handler, as an argument `errors`."""
DEFAULTS = ("strict", "surrogateescape", "backslashreplace", ASCII_HANDLER)
"""Handlers that Python sets by itself; any other was asked for."""
ASCII = str.maketrans(
    "\u00b7\u2022\u2500\u2501\u2574\u2576\u2578\u257a\u2013\u2014\u2212\u2502\u2503\u2588\u2713\u2714\u2717\u2026\u00d7\u2018\u2019\u201c\u201d",
    "..---------||#vvx.x''\"\"",
)
BOX = range(0x2500, 0x2580)
"""Lines of frames: what is no plain line is a corner or a crossing."""
UNKNOWN = "?"


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


def show_what_fits() -> None:
    """Makes stdout and stderr show in ASCII what they cannot show otherwise, where nobody asked for something else."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in DEFAULTS and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ASCII_HANDLER)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    rest = error.object[error.start : error.end]
    if 0xDC80 <= ord(rest[0]) <= 0xDCFF and not error.encoding.startswith(("utf-16", "utf-32")):
        return bytes([ord(rest[0]) - 0xDC00]), error.start + 1
    return _plain(rest[0]), error.start + 1


def _plain(character: str) -> str:
    found = character.translate(ASCII)
    if found.isascii():
        return found
    return "+" if ord(character) in BOX else UNKNOWN


codecs.register_error(ASCII_HANDLER, _in_ascii)
