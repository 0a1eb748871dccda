"""Files of published puzzles: train, validation and test, no two of which share a puzzle or a twin of one.

A class is all twins of a puzzle under its task's symmetries; a seeded hash of its canonical form decides its split, so
no class is in two. Tables of millions of rows are read twice, block by block: once for the class of each row (8 bytes),
once to copy the rows, as they are, into the files. What was written is then read again and checked.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram import __version__
from gram.atomic_files import making, naming, sync
from gram.hub_files import local_file
from gram.tasks.canonical_graphs import Words, mixed
from gram.tasks.maze import Maze
from gram.tasks.parsing import read_rows, read_text
from gram.tasks.protocol import PuzzleError
from gram.tasks.puzzle_sets import PARTS, TEST, TRAIN, VALIDATION, Tokens
from gram.tasks.puzzle_streams import BLOCK, count_lines, read_blocks
from gram.tasks.registry import get_task
from gram.tasks.sudoku import Sudoku

PUBLISHED = {
    "sudoku-extreme": ("sudoku9", "hf://sapientinc/sudoku-extreme"),
    "maze-hard": ("maze30", "hf://sapientinc/maze-30x30-hard-1k"),
}
"""Task of each set, and its place on the hub, which has `train.csv` and `test.csv`."""
VALIDATION_PUZZLES, MOST_VALIDATION = 500, 0.1
"""Validation puzzles, and the share of the rows that they are at most, where nothing else is asked for."""
NOTHING = "none"
"""In place of the test file: there is none."""
KEPT, EXCLUDED, IN_TEST = 0, 1, 2
"""What becomes of a row."""

ShowProgress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Total and unit of some work: a context that gives a function to call with how much more is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PuzzleFile:
    """A file of puzzles that was read, a written one included."""

    file: str
    """As it was named; a written one by its name in the folder."""
    sha256: str
    """Of the file as it is stored."""
    rows: int
    """Puzzles that were read of it."""
    classes: int
    """Classes of these: fewer where some are twins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFiles:
    """What `gram data` has made; `data.json` holds the same."""

    name: str
    """Name of the set."""
    task: str
    """Task that reads the files."""
    gram: str
    """Version that wrote them."""
    seed: int
    """Of the hash that chooses validation puzzles."""
    limit: int | None
    """Rows read of source and test file at most."""
    validation: float | None
    """Number or share of validation puzzles that was asked for."""
    source: PuzzleFile
    """Rows of train and validation."""
    test_source: PuzzleFile | None
    """Rows of the test."""
    excluded: list[PuzzleFile]
    """Files whose puzzles and their twins are left out."""
    splits: dict[str, PuzzleFile]
    """Files by split."""
    excluded_rows: int
    """Rows of the source left out as twins of excluded puzzles."""
    excluded_test_rows: int | None
    """The same of the test file."""
    test_twins: int
    """Rows of the source left out as twins of test puzzles."""
    excluded_twins_written: int
    """Twins of excluded puzzles in the written files, counted there."""
    classes_in_two_splits: int
    """Classes that two written files share, counted there."""


@contextmanager
def _silent(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def data(
    name: str,
    out: Path | str,
    *,
    source: str | None = None,
    test: str | None = None,
    exclude: Iterable[str] = (),
    validation: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    show: ShowProgress = _silent,
) -> PublishedFiles:
    """Writes `train.csv.gz`, `validation.csv.gz`, with a test file `test.csv.gz`, and `data.json` into a new folder.

    `name` is `sudoku-extreme` or `maze-hard`. `source` and `test` are tables with `question` and `answer`, here or
    `hf://owner/dataset/path/file`; by default the published ones on the hub, and with a `source` of one's own no test.
    `test` `none` leaves it out. `exclude` names files of any form whose puzzles, and all twins of them, are left out
    of every file; twins of test puzzles are left out of the others. `validation` is a number of puzzles or, below 1, a
    share; whole classes are taken until it is reached. `limit` takes the first rows alone.

    Raises `ValueError` for bad settings, `PuzzleError` naming the row at fault, `HubError`, `FileNotFoundError`;
    nothing is written then.
    """
    if name not in PUBLISHED:
        raise ValueError(f"data must be one of {', '.join(PUBLISHED)}, got {name!r}")
    _check(validation, limit, seed)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out must be a new or empty folder, got {folder}")
    task_name, hub = PUBLISHED[name]
    if test is None:
        test = f"{hub}/test.csv" if source is None else NOTHING
    train_file = _Source.named(f"{hub}/train.csv" if source is None else source)
    test_file = None if test == NOTHING else _Source.named(test)
    excluded_files = [_Source.named(file) for file in exclude]
    task = get_task(task_name)
    assert isinstance(task, Sudoku | Maze)
    work = _Work(task, show)
    excluded = [work.exclude(file) for file in excluded_files]
    tested = None if test_file is None else work.read(test_file, "test rows", limit)
    trained = work.read(train_file, "source rows", limit)
    if tested is not None:
        if not tested.count(KEPT):
            raise ValueError(f"{tested.source.name}: must hold a puzzle that is not excluded, got none")
        trained = trained.apart_from(tested)
    is_validation = _chosen(trained, validation, seed)
    with making(folder) as new:
        work.copy(trained, {new / "train.csv.gz": ~is_validation, new / "validation.csv.gz": is_validation}, limit)
        if tested is not None:
            work.copy(tested, {new / "test.csv.gz": np.ones(len(tested.fate), dtype=bool)}, limit)
        splits = (TRAIN, VALIDATION) if tested is None else PARTS
        found = {split: work.read(_Source.named(str(new / f"{split}.csv.gz")), f"{split} rows") for split in splits}
        report = PublishedFiles(
            name=name,
            task=task_name,
            gram=__version__,
            seed=seed,
            limit=limit,
            validation=validation,
            source=trained.file(),
            test_source=None if tested is None else tested.file(),
            excluded=excluded,
            splits={split: replace(one.file(), file=f"{split}.csv.gz") for split, one in found.items()},
            excluded_rows=trained.count(EXCLUDED),
            excluded_test_rows=None if tested is None else tested.count(EXCLUDED),
            test_twins=trained.count(IN_TEST),
            excluded_twins_written=sum(one.count(EXCLUDED) for one in found.values()),
            classes_in_two_splits=_shared([one.classes for one in found.values()]),
        )
        _check_written(report)
        (new / "data.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        for file in new.iterdir():
            sync(file)
    return report


def _check(validation: float | None, limit: int | None, seed: int) -> None:
    if validation is not None and not (0 < validation < 1 or (validation >= 1 and validation % 1 == 0)):
        raise ValueError(f"validation must be a number of puzzles or a share below 1, got {validation:g}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be 0 to 2^64 - 1, got {seed}")


class _Source(NamedTuple):
    """A file by the name that it was given and where it lies on this machine."""

    name: str
    path: Path

    @classmethod
    def named(cls, name: str) -> _Source:
        """Fetches it where it is on the hub. Raises `HubError`."""
        return cls(name, local_file(name))

    def sha256(self) -> str:
        """Of the file as it is stored."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class _ReadTable:
    """A table's rows as their classes alone."""

    source: _Source
    classes: Words
    """Hash of each row's class `[P]`."""
    fate: NDArray[np.uint8]
    """`KEPT`, `EXCLUDED` or `IN_TEST`, `[P]`."""

    def count(self, fate: int) -> int:
        """Rows of one fate."""
        return int((self.fate == fate).sum())

    def file(self) -> PuzzleFile:
        """What the report says of it."""
        classes = len(np.unique(self.classes))
        return PuzzleFile(file=self.source.name, sha256=self.source.sha256(), rows=len(self.classes), classes=classes)

    def apart_from(self, tested: _ReadTable) -> _ReadTable:
        """The same with the twins of test puzzles marked."""
        is_twin = np.isin(self.classes, tested.classes[tested.fate == KEPT])
        return replace(self, fate=np.where((self.fate == KEPT) & is_twin, np.uint8(IN_TEST), self.fate))


class _Work:
    """Reads tables of one task, copies rows of them, and knows what is excluded."""

    def __init__(self, task: Sudoku | Maze, show: ShowProgress) -> None:
        self.task, self.show = task, show
        self.excluded: set[bytes] = set()
        """Digests of forms."""

    def exclude(self, source: _Source) -> PuzzleFile:
        """Takes the classes of a file's puzzles as excluded; they need no answers. Raises `PuzzleError`."""
        rows = list(read_rows(source.path, read_text(source.path), has_comments=self.task.has_comments))
        if not rows:
            raise PuzzleError(f"{source.path}: must hold at least one puzzle, got none")
        mine: set[bytes] = set()
        with self.show(len(rows), "excluded rows") as advance:
            for first in range(0, len(rows), BLOCK):
                puzzles = [self._parsed(row.place, row.question) for row in rows[first : first + BLOCK]]
                mine.update(self._digests(np.stack(puzzles)))
                advance(len(puzzles))
        self.excluded |= mine
        return PuzzleFile(file=source.name, sha256=source.sha256(), rows=len(rows), classes=len(mine))

    def _parsed(self, place: str, question: str) -> Tokens:
        try:
            return self.task.parse_solved(question)
        except PuzzleError as error:
            raise PuzzleError(f"{place}: {error}") from None

    def _digests(self, puzzles: Tokens) -> list[bytes]:
        """What tells the class of each puzzle `[P, L]`."""
        return [hashlib.blake2b(form.tobytes(), digest_size=16).digest() for form in self.task.forms(puzzles)]

    def read(self, source: _Source, unit: str, limit: int | None = None) -> _ReadTable:
        """The classes of a table's first rows, and which of them are excluded. Raises `PuzzleError`."""
        classes, fates = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint8)]
        lines = max(1, count_lines(source.path) - 1)
        with self.show(lines if limit is None else min(lines, limit), f"{unit} read") as advance:
            for block in read_blocks(self.task, source.path, limit):
                found = self._digests(block.puzzles)
                classes.append(np.frombuffer(b"".join(digest[:8] for digest in found), dtype=np.uint64))
                is_excluded = np.array([digest in self.excluded for digest in found])
                fates.append(np.where(is_excluded, EXCLUDED, KEPT).astype(np.uint8))
                advance(len(found))
        return _ReadTable(source=source, classes=np.concatenate(classes), fate=np.concatenate(fates))

    def copy(self, table: _ReadTable, files: dict[Path, NDArray[np.bool_]], limit: int | None) -> None:
        """Copies the kept rows of a table into new files, each of which takes some `[P]`, in their order."""
        first = 0
        with ExitStack() as stack, self.show(len(table.fate), "rows written") as advance:
            writers = [(stack.enter_context(_writing(path)), is_taken) for path, is_taken in files.items()]
            for block in read_blocks(self.task, table.source.path, limit):
                for writer, is_taken in writers:
                    if not first:
                        writer.writerow(block.names)
                    rows = slice(first, first + len(block.rows))
                    chosen = np.flatnonzero(is_taken[rows] & (table.fate[rows] == KEPT))
                    writer.writerows(block.rows[row] for row in chosen)
                first += len(block.rows)
                advance(len(block.rows))


@contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """A writer of CSV, packed; its bytes depend on the rows alone."""
    with (
        naming(path),
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        yield csv.writer(text, lineterminator="\n")


def _chosen(table: _ReadTable, validation: float | None, seed: int) -> NDArray[np.bool_]:
    """Rows `[P]` of the classes whose seeded hashes are least, as many as hold the wanted number of kept rows."""
    is_kept = table.fate == KEPT
    kept = int(is_kept.sum())
    if validation is None:
        validation = max(1, min(VALIDATION_PUZZLES, int(kept * MOST_VALIDATION)))
    count = int(validation) if validation >= 1 else max(1, round(validation * kept))
    key = mixed(np.array([seed], dtype=np.uint64))
    hashes = mixed(table.classes ^ key)
    different, counts = np.unique(hashes[is_kept], return_counts=True)
    taken = int(np.searchsorted(counts.cumsum(), count)) + 1
    if taken >= len(different):
        raise ValueError(
            f"{table.source.name}: must hold more puzzles than the {count} of validation, got {kept} to choose from"
        )
    return np.asarray(is_kept & (hashes <= different[taken - 1]))


def _shared(classes: Sequence[Words]) -> int:
    """Classes that stand in more than one of several lists."""
    _, counts = np.unique(np.concatenate([np.unique(one) for one in classes]), return_counts=True)
    return int((counts > 1).sum())


def _check_written(report: PublishedFiles) -> None:
    """Holds what was written to what was to be. Raises `ValueError`."""
    rows = {split: file.rows for split, file in report.splits.items()}
    wanted = report.source.rows - report.excluded_rows - report.test_twins
    is_whole = rows[TRAIN] + rows[VALIDATION] == wanted
    if report.test_source is not None:
        is_whole &= rows[TEST] == report.test_source.rows - (report.excluded_test_rows or 0)
    if not is_whole or report.excluded_twins_written or report.classes_in_two_splits:
        raise ValueError(
            f"{report.source.file}: what was written must be what was read, got {rows} rows, "
            f"{report.excluded_twins_written} twins of excluded puzzles and {report.classes_in_two_splits} classes in "
            "two splits (did a file change meanwhile?)"
        )
