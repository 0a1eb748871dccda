"""Files of puzzles that all tasks read alike: CSV, JSON lines or an array, one puzzle a line; each also as `.gz`.

CSV (parted by commas, tabs, semicolons or bars) and JSON carry `question`, and where known `answer` and `rating` (or
`guesses`, as Sudoku-Extreme names it); other columns are passed over, case and outer blanks of names do not matter. A
name that says no format, such as a pipe's, is judged by its content. Lines that start with `#` are comments, except in
tasks whose puzzles may start so. A fault is one line naming the file and its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gram.tasks.puzzle_sets import PuzzleError, PuzzleSet, Tokens

if TYPE_CHECKING:
    from gram.tasks.protocol import Task

Parse = Callable[[str], Tokens]
RATINGS = ("rating", "guesses")
COLUMNS = ("question", "answer", *RATINGS)
DELIMITERS = ",\t;|"
JSON_NAMES = (".jsonl", ".json", ".ndjson")
TABLE_NAMES = (".csv", ".tsv")
log = logging.getLogger(__name__)
"""Warnings about files: what is not an error, but changes what is read."""


class PuzzleRow(NamedTuple):
    """One puzzle of a file, unparsed."""

    place: str
    """File and line, for messages."""
    question: str
    answer: str | None
    rating: float | None
    passed_over: tuple[str, ...] = ()
    """Names of its columns that are not read."""
    is_unmarked: bool = False
    """Whether it begins a file that says no format."""


def read_text(path: Path) -> str:
    """A file's text, decompressed where name or first bytes say gzip. Raises `PuzzleError`, `FileNotFoundError`."""
    if path.is_dir():
        raise PuzzleError(f"{path}: must be a file of puzzles, got a folder")
    content = path.read_bytes()
    with readable(path):
        return (gzip.decompress(content) if is_packed(path, content) else content).decode("utf-8-sig")


def is_packed(path: Path, start: bytes) -> bool:
    """Whether a file that starts so is gzip's."""
    return path.suffix.lower() == ".gz" or start.startswith(b"\x1f\x8b")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises `PuzzleError` in place of what gzip and UTF-8 raise while `path` is read."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PuzzleError(f"{path}: not a gzip file ({error})") from None
    except UnicodeDecodeError:
        raise PuzzleError(f"{path}: must be UTF-8 text, got other bytes") from None


def file_format(path: Path) -> str:
    """The name's last suffix in lower case, `.gz` passed over: `.csv`, `.jsonl`, `.col` ..."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_rows(path: Path, text: str, *, has_comments: bool = True) -> Iterator[PuzzleRow]:
    """The puzzles of a file's text in one of the common formats."""
    kind = file_format(path)
    first = next((line for _, line in _lines(text) if not is_comment(line)), "")
    if kind in JSON_NAMES or (kind not in TABLE_NAMES and first.lstrip()[:1] in ("{", "[")):
        yield from _json_rows(path, text)
    elif (kind in TABLE_NAMES and first) or _delimiter(first) is not None:
        lines = io.StringIO(text, newline="")
        yield from (row for row, _, _ in table_rows(path, lines, first, has_comments=has_comments))
    else:
        is_first = True
        for number, line in _lines(text):
            if not (has_comments and is_comment(line)):
                yield PuzzleRow(f"{path}:{number}", line, None, None, is_unmarked=is_first)
                is_first = False


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their ends alone: a maze may begin with a blank."""
    # Not splitlines: it also breaks at characters that a JSON string may hold, and lines would be misnumbered.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if line.strip():
            yield number, line


def is_comment(line: str) -> bool:
    """Whether a line of a file of puzzles is a comment, where its task has some."""
    return line.lstrip().startswith("#")


def _delimiter(header: str) -> str | None:
    """What parts a header with the column `question`; None where it has none."""
    for mark in DELIMITERS:
        if "question" in map(_folded, next(csv.reader([header[:4096]], delimiter=mark), [])):
            return mark
    return None


def _folded(name: str) -> str:
    return name.strip().lower()


def table_rows(
    path: Path, lines: Iterable[str], header: str, *, has_comments: bool
) -> Iterator[tuple[PuzzleRow, list[str], list[str]]]:
    """The puzzles of a table's lines (ends included), each with the names of its columns and its fields as they are;
    `header` is the first line that is no comment. Raises `PuzzleError`."""
    try:
        delimiter = _delimiter(header)
        if delimiter is None:
            raise PuzzleError(f"{path}:1: header must have a column 'question', got {header[:80]!r}")
        # `question, answer`: whoever writes so writes the rows so, and a quote behind a blank is none otherwise.
        has_blanks = f"{delimiter} " in header
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=has_blanks)
        names: list[str] = []
        for fields in reader:
            is_skipped = not any(map(str.strip, fields)) or (
                (has_comments or not names) and fields[0].lstrip().startswith("#")
            )
            if is_skipped:
                continue
            if not names:
                names = fields
                continue
            place = f"{path}:{reader.line_num}"
            if len(fields) > len(names) and any(map(str.strip, fields[len(names) :])):
                raise PuzzleError(
                    f"{place}: row must have the {len(names)} fields of its header, got {len(fields)} "
                    f"(a puzzle with {delimiter!r} inside needs quotes)"
                )
            yield _row(place, list(zip(names, fields, strict=False))), names, fields
    except csv.Error as error:
        raise PuzzleError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _json_rows(path: Path, text: str) -> Iterator[PuzzleRow]:
    """One array of puzzles, one object, or an object a line."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        for number, entry in enumerate(whole, 1):
            place = f"{path}: item {number}"
            if isinstance(entry, str):
                yield PuzzleRow(place, entry, None, None)
                continue
            if not isinstance(entry, dict):
                raise PuzzleError(f"{place}: must be a JSON object, got {str(entry)[:40]!r}")
            yield _row(place, entry.items())
    elif isinstance(whole, dict):
        yield _row(f"{path}:{next(_lines(text))[0]}", whole.items())
    else:
        for number, line in _lines(text):
            if not is_comment(line):
                yield _row(f"{path}:{number}", _json_object(f"{path}:{number}", line.strip()).items())


def _json_object(place: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise PuzzleError(f"{place}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise PuzzleError(f"{place}: not JSON (number too long or nested too deep)") from None
    if not isinstance(values, dict):
        raise PuzzleError(f"{place}: must be a JSON object, got {line[:40]!r}")
    return values


def _row(place: str, pairs: Iterable[tuple[str, Any]]) -> PuzzleRow:
    values: dict[str, Any] = {}
    for key, value in pairs:
        name = _folded(key)
        if name in values and name in COLUMNS:
            raise PuzzleError(f"{place}: {name!r} must stand once, got it twice")
        values[name] = value
    question = values.get("question")
    if question is None and "edges" in values:
        question = json.dumps({"n": values.get("n"), "edges": values["edges"]})
    if not isinstance(question, str) or not question.strip():
        raise PuzzleError(f"{place}: question must be a puzzle, got {str(question)[:40]!r}")
    answer = values.get("answer")
    if not isinstance(answer, str | None):
        raise PuzzleError(f"{place}: answer must be text, got {str(answer)[:40]!r}")
    if answer is not None and not answer.strip():
        answer = None
    rating = next((values[name] for name in RATINGS if values.get(name) not in (None, "")), None)
    try:
        value = None if rating is None else float(rating)
        if value is not None and not math.isfinite(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise PuzzleError(f"{place}: rating must be a number, got {str(rating)[:40]!r}") from None
    others = tuple(name[:40] for name in values if name not in (*COLUMNS, "n", "edges"))
    return PuzzleRow(place, question, answer, value, passed_over=others)


def load_puzzles(task: Task, path: Path, text: str | None = None) -> PuzzleSet:
    """The puzzles of a file; every stored answer must solve its puzzle. Raises `PuzzleError` with file and line.

    Where some puzzles have no answer (or no rating), a warning says how many, and the set has none. `text` is the
    file's content where it has been read already.
    """
    rows = list(read_rows(path, read_text(path) if text is None else text, has_comments=task.has_comments))
    if not rows:
        raise PuzzleError(f"{path}: must hold at least one puzzle, got none")
    puzzles = np.stack(
        [_parsed(row, row.question, task.parse if row.answer is None else task.parse_solved) for row in rows]
    )
    solved = [index for index, row in enumerate(rows) if row.answer is not None]
    answers = None
    if solved:
        answers = np.stack([_parsed(rows[index], rows[index].answer or "", task.parse_answer) for index in solved])
        wrong = np.flatnonzero(~task.verify(puzzles[solved], answers))
        if len(wrong):
            place = rows[solved[wrong[0]]].place
            raise PuzzleError(f"{place}: answer must solve its question, got one that does not")
    if not solved and rows[0].passed_over:
        log.warning("%s: no puzzle has an answer (columns passed over: %s)", path, ", ".join(rows[0].passed_over))
    ratings = [row.rating for row in rows if row.rating is not None]
    for name, count in (("answer", len(solved)), ("rating", len(ratings))):
        if 0 < count < len(rows):
            log.warning("%s: %d of %d puzzles have no %s: none is used", path, len(rows) - count, len(rows), name)
    return PuzzleSet(
        puzzles=puzzles,
        answers=answers if len(solved) == len(rows) else None,
        ratings=np.array(ratings, dtype=np.float64) if len(ratings) == len(rows) else None,
        groups=task.classes(puzzles),
    )


def _parsed(row: PuzzleRow, text: str, parse: Parse) -> Tokens:
    try:
        return parse(text)
    except PuzzleError as error:
        form = " (a line is one puzzle, or the first one a header with a column 'question')" if row.is_unmarked else ""
        raise PuzzleError(f"{row.place}: {error}{form}") from None
