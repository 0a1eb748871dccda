"""Files of puzzles that all tasks read alike: CSV, JSON lines, one puzzle a line; each also as `.gz`.

CSV and JSON lines carry `question`, and where known `answer` and `rating` (or `guesses`, as Sudoku-Extreme names it);
other columns are passed over. A fault is one line naming the file and its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram.tasks.protocol import PuzzleError, PuzzleSet, Task, Tokens

Parse = Callable[[str], Tokens]
RATINGS = ("rating", "guesses")


class Row(NamedTuple):
    """One puzzle of a file, unparsed."""

    line: int
    question: str
    answer: str | None
    rating: float | None


def read_text(path: Path) -> str:
    """A file's text, decompressed where its name ends in `.gz`. Raises `PuzzleError`, `FileNotFoundError`."""
    if path.is_dir():
        raise PuzzleError(f"{path}: must be a file of puzzles, got a folder")
    content = path.read_bytes()
    try:
        return (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PuzzleError(f"{path}: not a gzip file ({error})") from None
    except UnicodeDecodeError:
        raise PuzzleError(f"{path}: must be UTF-8 text, got other bytes") from None


def file_format(path: Path) -> str:
    """The name's last suffix in lower case, `.gz` passed over: `.csv`, `.jsonl`, `.col` ..."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_rows(path: Path) -> Iterator[Row]:
    """The puzzles of a file in one of the common formats."""
    text = read_text(path)
    kind = file_format(path)
    if kind == ".csv":
        yield from _csv_rows(path, text)
    elif kind in (".jsonl", ".json", ".ndjson"):
        for number, line in _lines(text):
            yield _row(path, number, _json_object(path, number, line))
    else:
        for number, line in _lines(text):
            yield Row(number, line, None, None)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines: it also breaks at characters that a JSON string may hold, and lines would be misnumbered.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if line.strip():
            yield number, line.strip()


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "question" not in (reader.fieldnames or ()):
            found = ",".join(reader.fieldnames or ())[:80]
            raise PuzzleError(f"{path}:1: header must have a column 'question', got {found!r}")
        for values in reader:
            yield _row(path, reader.line_num, values)
    except csv.Error as error:
        raise PuzzleError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from None


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise PuzzleError(f"{path}:{number}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise PuzzleError(f"{path}:{number}: not JSON (number too long or nested too deep)") from None
    if not isinstance(values, dict):
        raise PuzzleError(f"{path}:{number}: must be a JSON object, got {line[:40]!r}")
    return values


def _row(path: Path, number: int, values: dict[str, Any]) -> Row:
    question = values.get("question")
    if question is None and "edges" in values:
        question = json.dumps({"n": values.get("n"), "edges": values["edges"]})
    if not isinstance(question, str) or not question.strip():
        raise PuzzleError(f"{path}:{number}: question must be a puzzle, got {str(question)[:40]!r}")
    answer = values.get("answer") or None
    if not isinstance(answer, str | None):
        raise PuzzleError(f"{path}:{number}: answer must be text, got {str(answer)[:40]!r}")
    rating = next((values[name] for name in RATINGS if values.get(name) not in (None, "")), None)
    try:
        value = None if rating is None else float(rating)
        if value is not None and not math.isfinite(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise PuzzleError(f"{path}:{number}: rating must be a number, got {str(rating)[:40]!r}") from None
    return Row(number, question, answer, value)


def load_puzzles(
    task: Task, path: Path | str, *, parse: Parse, parse_answer: Parse, parse_solved: Parse | None = None
) -> PuzzleSet:
    """The puzzles of a file; a stored answer must solve its puzzle. Raises `PuzzleError` with file and line.

    `parse_solved` reads puzzles whose stored answer shows that they have a solution (default: `parse`).
    """
    path = Path(path)
    rows = list(read_rows(path))
    if not rows:
        raise PuzzleError(f"{path}: must hold at least one puzzle, got none")
    is_solved = all(row.answer is not None for row in rows)
    read = parse_solved if is_solved and parse_solved is not None else parse
    puzzles = np.stack([_parsed(path, row.line, row.question, read) for row in rows])
    answers = None
    if is_solved:
        answers = np.stack([_parsed(path, row.line, row.answer or "", parse_answer) for row in rows])
        wrong = np.flatnonzero(~task.verify(puzzles, answers))
        if len(wrong):
            raise PuzzleError(f"{path}:{rows[wrong[0]].line}: answer must solve its question, got one that does not")
    ratings = None
    if all(row.rating is not None for row in rows):
        ratings = np.array([row.rating for row in rows], dtype=np.float64)
    return PuzzleSet(puzzles=puzzles, answers=answers, ratings=ratings, groups=np.arange(len(rows)))


def _parsed(path: Path, line: int, text: str, parse: Parse) -> Tokens:
    try:
        return parse(text)
    except PuzzleError as error:
        raise PuzzleError(f"{path}:{line}: {error}") from None
