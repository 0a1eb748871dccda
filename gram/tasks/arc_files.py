"""Files of ARC tasks: a JSON file of one task or of many, a folder of them, Kaggle's challenges with solutions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.tasks.parsing import read_text
from gram.tasks.puzzle_sets import PuzzleError

SIDE, COLOURS = 30, 10
CHALLENGES, SOLUTIONS = "_challenges", "_solutions"
Grid = NDArray[np.uint8]
"""Colours 0 .. 9, `[rows, columns]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One example of a task."""

    input: Grid
    output: Grid | None
    """None where the file keeps it secret."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcTask:
    """One ARC task: demonstrations and tests."""

    name: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]


def read_tasks(path: Path | str) -> list[ArcTask]:
    """The tasks of a JSON file (one task, or task id -> task; `.gz` too) or of all JSON files of a folder.

    A file `*_challenges.json` takes its outputs from `*_solutions.json` where that lies beside. Raises
    `PuzzleError` in one line, `FileNotFoundError`.
    """
    path = Path(path)
    if not path.is_dir():
        return list(_tasks_of_file(path))
    files = sorted(file for file in path.rglob("*.json*") if _is_of_tasks(file, path))
    if not files:
        raise PuzzleError(f"{path}: must hold JSON files of ARC tasks, got none")
    return [task for file in files for task in _tasks_of_file(file)]


def _is_of_tasks(file: Path, folder: Path) -> bool:
    """Whether a folder's file is read: hidden ones (`._x.json`) and solutions beside their challenges are not."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    is_read_beside = any(other.is_file() for other in _partners(file, SOLUTIONS, CHALLENGES))
    return file.name.endswith((".json", ".json.gz")) and not is_read_beside


def _partners(path: Path, mark: str, other: str) -> list[Path]:
    """Names of the file that belongs to this one: its last `mark` is `other` there, packed or not; none without."""
    before, found, after = path.name.rpartition(mark)
    if not found:
        return []
    name = f"{before}{other}{after}".removesuffix(".gz")
    return [path.with_name(name), path.with_name(f"{name}.gz")]


def _solutions_of(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file of solutions beside one of challenges (task id -> outputs); None where there is none."""
    beside = next((file for file in _partners(path, CHALLENGES, SOLUTIONS) if file.is_file()), None)
    return None if beside is None else (beside, _read_object(beside))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise PuzzleError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise PuzzleError(f"{path}: not JSON (number too long or nested too deep)") from None
    if not isinstance(values, dict) or not values:
        raise PuzzleError(f"{path}: must be a JSON object of ARC tasks, got {str(values)[:40]!r}")
    return values


def _solved(tests: list[Any], name: str, solutions: tuple[Path, dict[str, Any]]) -> list[Any]:
    """A task's tests with their outputs from the file of solutions."""
    path, values = solutions
    where, outputs = f"{path}: task {name[:40]!r}", values.get(name)
    if not isinstance(outputs, list) or len(outputs) != len(tests):
        count = len(outputs) if isinstance(outputs, list) else "none"
        raise PuzzleError(f"{where} must have an output for each of {len(tests)} tests, got {count}")
    made = []
    for index, (test, output) in enumerate(zip(tests, outputs, strict=True)):
        grid = checked_grid(output, f"{where} output {index}").tolist()
        if isinstance(test, dict):
            if test.get("output") not in (None, grid):
                raise PuzzleError(f"{where} output {index} must be that of the challenges where they have one")
            test = {**test, "output": grid}
        made.append(test)
    return made


def _tasks_of_file(path: Path) -> Iterator[ArcTask]:
    values, solutions = _read_object(path), _solutions_of(path)
    if "test" in values and isinstance(values["test"], list):
        values = {path.name.split(".")[0]: values}
    for name, task in values.items():
        where = f"{path}: task {name[:40]!r}"
        if isinstance(task, list) and SOLUTIONS in path.name:
            raise PuzzleError(f"{path}: must be ARC tasks, got solutions alone: name the file of their challenges")
        if not isinstance(task, dict) or not isinstance(task.get("test"), list):
            raise PuzzleError(f"{where} must be an object with 'train' and 'test', got {str(task)[:40]!r}")
        tests = task["test"] if solutions is None else _solved(task["test"], name, solutions)
        train = task.get("train") or []
        if not isinstance(train, list):
            raise PuzzleError(f"{where} must have a list 'train', got {str(train)[:40]!r}")
        yield ArcTask(
            name=str(name),
            train=tuple(_pair(example, f"{where} train {index}") for index, example in enumerate(train)),
            test=tuple(_pair(example, f"{where} test {index}") for index, example in enumerate(tests)),
        )


def _pair(example: Any, where: str) -> Pair:
    if not isinstance(example, dict) or "input" not in example:
        raise PuzzleError(f"{where} must be an object with 'input', got {str(example)[:40]!r}")
    output = example.get("output")
    return Pair(
        input=checked_grid(example["input"], f"{where} input"),
        output=None if output is None else checked_grid(output, f"{where} output"),
    )


def checked_grid(rows: Any, where: str) -> Grid:
    """A grid of 1x1 to 30x30 colours. Raises `PuzzleError`."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise PuzzleError(f"{where} must be rows of colours, got {str(rows)[:40]!r}")
    if len({len(row) for row in rows}) != 1:
        raise PuzzleError(f"{where} must have rows of one length, got {sorted({len(row) for row in rows})}")
    if max(len(rows), len(rows[0])) > SIDE:
        raise PuzzleError(f"{where} must be at most {SIDE}x{SIDE}, got {len(rows)}x{len(rows[0])}")
    for row in rows:
        for colour in row:
            if not isinstance(colour, int) or isinstance(colour, bool) or not 0 <= colour < COLOURS:
                raise PuzzleError(f"{where} must be of colours 0 to 9, got {str(colour)[:40]!r}")
    return np.array(rows, dtype=np.uint8)
