"""Tables of puzzles and answers read block by block, for files that do not fit into memory: CSV or TSV, also as `.gz`.

Not the reader of users' files (`gram/tasks/parsing.py`), which takes all forms and reads a file as a whole; both read a
row alike. Tasks are those whose answers stand on the puzzle's own grid.

Shapes: `P` puzzles of a block, `L` tokens.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import numpy as np

from gram.tasks.parsing import PuzzleRow, is_comment, is_packed, readable, table_rows
from gram.tasks.puzzle_sets import PuzzleError, Tokens

if TYPE_CHECKING:
    from gram.tasks.protocol import Task

BLOCK = 4096
"""Rows of a block."""
SYMBOLS = [chr(code) for code in range(32, 127)]


class PuzzleBlock(NamedTuple):
    """Some rows of a table, one after the other."""

    names: list[str]
    """Its columns."""
    rows: list[list[str]]
    """Fields of each row, as they stand in the file."""
    puzzles: Tokens
    """`[P, L]`."""
    answers: Tokens
    """`[P, L]`; each solves its puzzle."""


def read_blocks(task: Task, path: Path, limit: int | None = None) -> Iterator[PuzzleBlock]:
    """The first `limit` puzzles of a table with answers, block by block; every answer is checked.

    Raises `PuzzleError` naming the row at fault, `FileNotFoundError`.
    """
    bulk = _Symbols(task)
    rows = islice(_stream(path, has_comments=task.has_comments), limit)
    while block := list(islice(rows, BLOCK)):
        yield _parsed(task, bulk, block)


def count_lines(path: Path) -> int:
    """Lines of a table, also of a packed one. Raises `PuzzleError` for what cannot be unpacked."""
    with readable(path), _opened(path) as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def _opened(path: Path) -> IO[bytes]:
    if not path.is_file() and path.exists():
        raise PuzzleError(f"{path}: must be a file that can be read twice, got a folder, a pipe or a device")
    with path.open("rb") as file:
        start = file.read(2)
    return cast(IO[bytes], gzip.open(path, "rb")) if is_packed(path, start) else path.open("rb")


def _stream(path: Path, *, has_comments: bool) -> Iterator[tuple[PuzzleRow, list[str], list[str]]]:
    with readable(path), _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        first: list[str] = []
        for line in lines:
            first.append(line)
            if line.strip() and not is_comment(line):
                break
        header = first[-1].strip("\r\n") if first else ""
        found = None
        for found in table_rows(path, chain(first, lines), header, has_comments=has_comments):
            if found[0].answer is None:
                is_column = any(name.strip().lower() == "answer" for name in found[1])
                shown = "none" if is_column else f"the columns {', '.join(found[1])}"
                raise PuzzleError(f"{found[0].place}: row must have an answer, got {shown[:200]}")
            yield found
        if found is None:
            raise PuzzleError(f"{path}: must hold at least one puzzle, got none")


class _Symbols:
    """What single symbols of a task's texts mean, found by its own reader."""

    def __init__(self, task: Task) -> None:
        self.tokens = task.tokens
        self.known = np.zeros(128, dtype=np.uint8)
        for symbol in SYMBOLS:
            try:
                self.known[ord(symbol)] = task.parse_answer(symbol * task.output_tokens)[0]
            except PuzzleError:
                continue

    def read(self, texts: list[str]) -> Tokens | None:
        """Tokens of texts that hold such symbols alone `[P, L]`; None where one does not."""
        joined = "".join(texts)
        if not joined.isascii() or any(len(text) != self.tokens for text in texts):
            return None
        found = self.known[np.frombuffer(joined.encode(), dtype=np.uint8)].reshape(-1, self.tokens)
        return found if found.all() else None


def _parsed(task: Task, bulk: _Symbols, block: list[tuple[PuzzleRow, list[str], list[str]]]) -> PuzzleBlock:
    rows = [row for row, _, _ in block]
    questions, given = [row.question for row in rows], [row.answer or "" for row in rows]
    puzzles, answers = bulk.read(questions), bulk.read(given)
    if puzzles is None:
        puzzles = _one_by_one(rows, questions, task.parse_solved)
    if answers is None:
        answers = _one_by_one(rows, given, task.parse_answer)
    wrong = np.flatnonzero(~(task.verify(puzzles, answers) & task.is_input(puzzles).all(1)))
    if len(wrong):
        row = rows[wrong[0]]
        _one_by_one([row], [row.question], task.parse_solved)  # a puzzle at fault says so itself
        raise PuzzleError(f"{row.place}: answer must solve its question, got one that does not")
    return PuzzleBlock(block[0][1], [fields for _, _, fields in block], puzzles, answers)


def _one_by_one(rows: list[PuzzleRow], texts: list[str], parse: Callable[[str], Tokens]) -> Tokens:
    found = []
    for row, text in zip(rows, texts, strict=True):
        try:
            found.append(parse(text))
        except PuzzleError as error:
            raise PuzzleError(f"{row.place}: {error}") from None
    return np.stack(found)
