"""`gram data arc`: a folder of ARC tasks under many views, to train on and to evaluate (`gram/tasks/arc_folder.py`).

A task's views are drawn from the seed and its name alone, so that they depend on no other task, and two views of one
task never show the same grids. Training examples but one of every view are moved over the canvas, input and output
alike. Arrays are written task by task into their places in mapped files: memory does not grow with the views. A build
that was killed goes on where it stopped, in the hidden folder beside `out` that becomes `out` when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from gram import __version__
from gram.atomic_files import lock, naming
from gram.checkpoint import write_json
from gram.tasks.arc_files import SIDE, ArcTask, Grid, Pair, read_tasks
from gram.tasks.arc_folder import BLANK, METADATA_FILE, NAMES_FILE, SET, TESTS_FILE, TOKENS, VOCABULARY
from gram.tasks.arc_grids import SEPARATOR, View, encode, parse_name, random_view
from gram.tasks.puzzle_sets import TEST, TRAIN, PuzzleError
from gram.tasks.views import SYMMETRIES, turn
from gram.training.published import ShowProgress

MOST_VIEWS = 1_000_000
TRIES = 5
"""Draws of each view that is wanted; a task of few colours and much symmetry has fewer different ones."""
STATE_FILE, LOCK_FILE, REPORT_FILE = "state.json", "build.lock", "data.json"
KEPT_EVERY = 16
"""Tasks after which the state is kept."""
Arrays = tuple["np.memmap[Any, Any]", "np.memmap[Any, Any]"]
"""Inputs and labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcFiles:
    """What was built; `data.json` holds the same."""

    name: str
    task: str
    gram: str
    """Version that wrote it."""
    seed: int
    views: int
    """Views of each task beside the task as it is, where it has so many."""
    sources: list[dict[str, Any]]
    """File, SHA-256 of its tasks, number of tasks, and whether their tests are to be solved."""
    identities: int
    """Names, `<blank>` included."""
    tasks: int
    tasks_with_fewer_views: int
    tests: int
    tests_without_output: int
    examples: dict[str, int]
    """Of each split."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """One task: which of its pairs stand where, and its views, the plain one first."""

    task: ArcTask
    is_tested: bool
    views: list[View]

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """The pairs of a split: tests of a task that is to be solved are in `test` alone, those of others train."""
        if self.is_tested:
            return self.task.train if split == TRAIN else self.task.test
        known = tuple(pair for pair in self.task.test if pair.output is not None)
        return self.task.train + known if split == TRAIN else ()


def build(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    tests: Path | str | None = None,
    views: int = 1000,
    seed: int = 0,
    show: ShowProgress = lambda total, unit: nullcontext(lambda count: None),
) -> ArcFiles:
    """Builds the folder `out` from ARC's JSON files. The tests of all tasks are to be solved, or with `tests` those of
    that file's alone.

    Raises `PuzzleError` and `ValueError` in one line; nothing is written before all files are read.
    """
    out = Path(out).resolve()
    if not 0 <= views <= MOST_VIEWS:
        raise ValueError(f"views must be within 0 and {MOST_VIEWS:,}, got {views}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be 0 to 2^64 - 1, got {seed}")
    if not sources and tests is None:
        raise ValueError("files of ARC tasks must be named, got none")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out must be a new or empty folder, got {out}")
    read = [(Path(source), tests is None) for source in sources]
    read += [] if tests is None else [(Path(tests), True)]
    tasks, told = _read(read)
    with show(len(tasks), "tasks planned") as advance:
        planned = []
        for task, is_tested in tasks:
            planned.append(_Planned(task, is_tested, _views_of(task, views, seed)))
            advance(1)
    report = ArcFiles(
        name="arc",
        task="arc",
        gram=__version__,
        seed=seed,
        views=views,
        sources=told,
        identities=1 + sum(len(each.views) for each in planned),
        tasks=len(planned),
        tasks_with_fewer_views=sum(len(each.views) < views + 1 for each in planned),
        tests=sum(len(each.task.test) for each in planned if each.is_tested),
        tests_without_output=sum(pair.output is None for each in planned if each.is_tested for pair in each.task.test),
        examples={split: sum(len(each.views) * len(each.pairs(split)) for each in planned) for split in (TRAIN, TEST)},
    )
    if not report.tests:
        raise PuzzleError(f"{read[-1][0]}: must hold at least one test to be solved, got none")
    work = building_folder(out)
    with _locked(work):
        try:
            _write(planned, report, work, show)
        except BaseException:
            if not (work / STATE_FILE).is_file():
                shutil.rmtree(work, ignore_errors=True)  # nothing is finished
            raise
        os.replace(work, out)
    return report


def building_folder(out: Path) -> Path:
    """Where a build lies before it is whole."""
    return out.resolve().parent / f".{out.resolve().name}.building"


def _read(files: Iterable[tuple[Path, bool]]) -> tuple[list[tuple[ArcTask, bool]], list[dict[str, Any]]]:
    """The tasks of all files, each with whether its tests are to be solved, and what the report says of the files."""
    found: dict[str, tuple[ArcTask, bool]] = {}
    told = []
    for file, is_tested in files:
        tasks, digest = read_tasks(file), hashlib.sha256()
        for task in tasks:
            if task.name in found:
                raise PuzzleError(f"{file}: task {task.name[:40]!r} must be there once in all files, got it twice")
            if SEPARATOR in task.name or task.name == BLANK or parse_name(task.name) != (task.name, View()):
                raise PuzzleError(f"{file}: task must have a name that is no view's, got {task.name[:40]!r}")
            if not task.train and not task.test:
                raise PuzzleError(f"{file}: task {task.name[:40]!r} must have examples, got none")
            if any(pair.output is None for pair in task.train):
                raise PuzzleError(f"{file}: task {task.name[:40]!r} must have an output of every demonstration")
            found[task.name] = task, is_tested and bool(task.test)
            digest.update(_content(task))
        told.append(
            {"file": str(file), "sha256": digest.hexdigest(), "tasks": len(tasks), "are_tested": is_tested}
        )  # fmt: skip
    return list(found.values()), told


def _content(task: ArcTask) -> bytes:
    """Everything of a task, as bytes."""
    pairs = [[_rows(pair.input), None if pair.output is None else _rows(pair.output)] for pair in task.train]
    tests = [[_rows(pair.input), None if pair.output is None else _rows(pair.output)] for pair in task.test]
    return json.dumps([task.name, pairs, tests]).encode()


def _rows(grid: Grid) -> list[list[int]]:
    rows: list[list[int]] = grid.tolist()
    return rows


def _generator(seed: int, task: str, use: int) -> np.random.Generator:
    """Random numbers of one task; `use` parts its views from its moves."""
    words = np.frombuffer(hashlib.blake2b(task.encode(), digest_size=16).digest(), dtype=np.uint32)
    return np.random.default_rng([seed, use, *words.tolist()])


def _views_of(task: ArcTask, count: int, seed: int) -> list[View]:
    """The plain view and up to `count` others, no two of which show the same grids."""
    grids = [grid for pair in (*task.train, *task.test) for grid in (pair.input, pair.output) if grid is not None]
    turned = []
    for symmetry in range(SYMMETRIES):
        shown = [turn(grid, symmetry) for grid in grids]
        shapes = repr([grid.shape for grid in shown]).encode()
        turned.append((shapes, np.concatenate([grid.reshape(-1) for grid in shown])))

    def key(view: View) -> bytes:
        shapes, cells = turned[view.symmetry]
        shown = np.array(view.colours, dtype=np.uint8)[cells]
        return hashlib.blake2b(shapes + shown.tobytes(), digest_size=16).digest()

    rng, found, seen = _generator(seed, task.name, 0), [View()], {key(View())}
    for _ in range(TRIES * count):
        if len(found) > count:
            break
        view = random_view(rng)
        if (digest := key(view)) not in seen:
            seen.add(digest)
            found.append(view)
    return found


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """The folder of a build, for this process alone. Raises `ValueError` where another one builds into it."""
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        lock(handle, work / LOCK_FILE, ValueError, f"{work} is being built into by another process")
        yield
    finally:
        os.close(handle)


def _done(work: Path, wanted: dict[str, Any]) -> int:
    """Tasks that an earlier build of the same has written; what another one left is removed."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((work / STATE_FILE).read_text())
        if kept["report"] == wanted:
            return int(kept["done"])
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK_FILE:
            entry.unlink()
    return 0


def _write(planned: list[_Planned], report: ArcFiles, work: Path, show: ShowProgress) -> None:
    """Writes everything into `work`, from where an earlier build of the same stopped."""
    wanted = json.loads(json.dumps(asdict(report)))
    done = _done(work, wanted)
    arrays = {split: _arrays(work / split, count, is_new=not done) for split, count in report.examples.items() if count}
    first = dict.fromkeys(arrays, 0)
    with show(len(planned), "tasks written") as advance:
        for index, each in enumerate(planned):
            for split, places in first.items():
                rows = len(each.views) * len(each.pairs(split))
                if index >= done and rows:
                    _fill(each, split, arrays[split], places, report.seed)
                first[split] += rows
            if index >= done and (index + 1) % KEPT_EVERY == 0:
                _flush(arrays)
                write_json(work / STATE_FILE, {"report": wanted, "done": index + 1})
            advance(1)
    _flush(arrays)
    _write_rest(planned, report, work)
    for name in (STATE_FILE, LOCK_FILE):
        (work / name).unlink(missing_ok=True)


def _flush(arrays: dict[str, Arrays]) -> None:
    """Waits until what was written is on the disk."""
    for inputs, labels in arrays.values():
        inputs.flush()
        labels.flush()


def _arrays(folder: Path, examples: int, *, is_new: bool) -> Arrays:
    """Inputs and labels of a split `[E, 900]`, mapped."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{SET}__{kind}.npy" for kind in ("inputs", "labels")]
    for file in files if is_new else ():
        with naming(file):
            open_memmap(file, "w+", np.uint8, (examples, TOKENS))
            # Where the disk is too small it is told here: a write into a mapped file would end the process.
            with file.open("r+b") as whole:
                os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
    inputs, labels = (open_memmap(file, "r+") for file in files)
    return inputs, labels


def _fill(each: _Planned, split: str, arrays: Arrays, first: int, seed: int) -> None:
    """Writes the examples of one task under all of its views, from row `first` on."""
    pairs, rng = each.pairs(split), _generator(seed, each.task.name, 1)
    inputs = np.empty((len(each.views) * len(pairs), TOKENS), dtype=np.uint8)
    labels = np.zeros_like(inputs)
    row = 0
    for view in each.views:
        at_corner = int(rng.integers(len(pairs)))
        for index, pair in enumerate(pairs):
            grids = [pair.input] if pair.output is None else [pair.input, pair.output]
            shown = [view.apply(grid) for grid in grids]
            room = [SIDE + 1 - max(grid.shape[axis] for grid in shown) for axis in (0, 1)]
            down, right = rng.integers(0, room).tolist() if split == TRAIN and index != at_corner else (0, 0)
            inputs[row] = encode(shown[0], row=down, column=right)
            if pair.output is not None:
                labels[row] = encode(shown[1], row=down, column=right)
            row += 1
    arrays[0][first : first + row], arrays[1][first : first + row] = inputs, labels


def _write_rest(planned: list[_Planned], report: ArcFiles, work: Path) -> None:
    """Names, tests, indices and metadata."""
    names, first_identity = [BLANK], []
    for each in planned:
        first_identity.append(len(names))
        names += [view.name(each.task.name) for view in each.views]
    (work / NAMES_FILE).write_text(json.dumps(names))
    tested = {each.task.name: _task_json(each.task) for each in planned if each.is_tested}
    (work / TESTS_FILE).write_text(json.dumps(tested))
    for split, examples in ((split, count) for split, count in report.examples.items() if count):
        identities: list[NDArray[np.int32]] = []
        counts: list[NDArray[np.int32]] = []
        sizes = [0]
        for each, first in zip(planned, first_identity, strict=True):
            if pairs := len(each.pairs(split)):
                identities.append(np.arange(first, first + len(each.views), dtype=np.int32))
                counts.append(np.full(len(each.views), pairs, dtype=np.int32))
                sizes.append(len(each.views))
        starts = np.concatenate([np.zeros(1, np.int32), *counts]).cumsum()
        indices = {
            "puzzle_identifiers": np.concatenate(identities),
            "puzzle_indices": starts,
            "group_indices": np.cumsum(sizes),
        }
        for kind, array in indices.items():
            np.save(work / split / f"{SET}__{kind}.npy", array.astype(np.int32))
        puzzles = len(indices["puzzle_identifiers"])
        metadata = {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": VOCABULARY,
            "seq_len": TOKENS,
            "num_puzzle_identifiers": len(names),
            "total_groups": len(sizes) - 1,
            "mean_puzzle_examples": examples / puzzles,
            "total_puzzles": puzzles,
            "sets": [SET],
        }
        (work / split / METADATA_FILE).write_text(json.dumps(metadata))
    (work / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n")


def _task_json(task: ArcTask) -> dict[str, Any]:
    """A task as ARC's JSON has it; a test without output has the `[[0]]` that TRM's evaluator wants, and says so."""

    def pair_json(pair: Pair) -> dict[str, Any]:
        if pair.output is None:
            return {"input": _rows(pair.input), "output": [[0]], "is_labelled": False}
        return {"input": _rows(pair.input), "output": _rows(pair.output)}

    return {"train": [pair_json(pair) for pair in task.train], "test": [pair_json(pair) for pair in task.test]}
