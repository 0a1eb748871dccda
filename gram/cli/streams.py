"""What an output cannot show is shown in ASCII, one character for one, so that boards and tables keep their columns.

Which characters that are is the output's encoding alone: the locale, `PYTHONIOENCODING` or a pipe of another program
decide it. Bytes of a file name that are no text go out as they came in.
"""

from __future__ import annotations

import codecs
import sys

NAME = "gram.ascii"
"""Of the handler, as an argument `errors`."""
DEFAULTS = ("strict", "surrogateescape", "backslashreplace", NAME)
"""Handlers that Python sets by itself; any other was asked for."""
PLAIN = str.maketrans(
    "\u00b7\u2022\u2500\u2501\u2574\u2576\u2578\u257a\u2013\u2014\u2212\u2502\u2503\u2588\u2713\u2714\u2717\u2026\u00d7\u2018\u2019\u201c\u201d",
    "..---------||#vvx.x''\"\"",
)
BOX = range(0x2500, 0x2580)
"""Lines of frames: what is no plain line is a corner or a crossing."""
UNKNOWN = "?"


def show_what_fits() -> None:
    """Makes stdout and stderr show in ASCII what they cannot show otherwise, where nobody asked for something else."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in DEFAULTS and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=NAME)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    rest = error.object[error.start : error.end]
    if 0xDC80 <= ord(rest[0]) <= 0xDCFF and not error.encoding.startswith(("utf-16", "utf-32")):
        return bytes([ord(rest[0]) - 0xDC00]), error.start + 1
    return _plain(rest[0]), error.start + 1


def _plain(character: str) -> str:
    found = character.translate(PLAIN)
    if found.isascii():
        return found
    return "+" if ord(character) in BOX else UNKNOWN


codecs.register_error(NAME, _in_ascii)
