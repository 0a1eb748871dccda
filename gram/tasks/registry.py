"""Finding a task by name: the built-in families, or a user's own file.

A user's file defines `task` (of a class derived from `gram.tasks.protocol.Task`) or, without it, `get_task(name)`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Container
from functools import cache
from pathlib import Path
from typing import Any

from gram.tasks import colouring, maze, nqueens, recolour, sudoku
from gram.tasks.arc import Arc
from gram.tasks.protocol import Task
from gram.tasks.sudoku_solver import BOXES

STANDARD = (
    "nqueens8",
    "nqueens10",
    "sudoku4",
    "sudoku6",
    "sudoku9",
    "colouring8",
    "colouring10",
    "maze30",
    "recolour",
    "arc",
)
FAMILIES = (
    "nqueensN (N of 4 to 12), sudoku4, sudoku6, sudoku9, colouringN (N of 3 to 14), mazeN (N of 4 to 30), recolour, "
    "recolourN (N of 1 to 16), arc"
)
SIZED: dict[str, tuple[Callable[[int], Task], Container[int]]] = {
    "nqueens": (nqueens.NQueens, nqueens.SIZES),
    "sudoku": (sudoku.Sudoku, BOXES),
    "colouring": (colouring.Colouring, colouring.SIZES),
    "maze": (maze.Maze, maze.SIZES),
    "recolour": (recolour.Recolour, recolour.SIZES),
}
"""Families by name: the class and the sizes it takes."""


def task_names() -> tuple[str, ...]:
    """The tasks that listings and documents speak of; other sizes of a family work too."""
    return STANDARD


def get_task(name: str, module: Path | str | None = None) -> Task:
    """The task called `name`; `module` is a user's file to take it from. Raises `ValueError` in one line."""
    if module is not None:
        return _from_file(name, Path(module))
    if name == "arc":
        # Each caller's own: it remembers the outputs of the set that it has loaded.
        return Arc()
    return _builtin(name)


@cache
def _builtin(name: str) -> Task:
    if name == "recolour":
        return recolour.Recolour()
    match = re.fullmatch(r"([a-z]+)(\d{1,2})", name)
    make, sizes = SIZED[match[1]] if match and match[1] in SIZED else (None, ())
    if match is None or make is None or (size := int(match[2])) not in sizes:
        raise ValueError(f"task must be one of {FAMILIES}, or your own with task_module, got {name!r}")
    return make(size)


def load_task_module(path: Path) -> list[Task]:
    """The task that a user's file defines as `task`; none where it has `get_task(name)` alone. Raises `ValueError`."""
    found = getattr(_import_file(path), "task", None)
    return [] if found is None else [_checked(found, path)]


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"gram_task_module_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"task module must be a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"task module {path} must import, got {_one_line(error)}") from error
    return module


def _from_file(name: str, path: Path) -> Task:
    module = _import_file(path)
    found: Any = getattr(module, "task", None)
    if found is None and (make := getattr(module, "get_task", None)) is not None:
        try:
            found = make(name)
        except Exception as error:
            raise ValueError(f"task module {path} must make task {name!r}, got {_one_line(error)}") from error
    if found is None:
        raise ValueError(f"task module {path} must define task or get_task(name), got neither")
    task = _checked(found, path)
    if task.name != name:
        raise ValueError(f"task of {path} must be called {name!r}, got {task.name!r}")
    return task


def _checked(found: Any, path: Path) -> Task:
    if not isinstance(found, Task):
        raise ValueError(f"task of {path} must derive from gram.tasks.protocol.Task, got {type(found).__name__}")
    if missing := found.unwritten():
        raise ValueError(f"task of {path} must write {', '.join(missing)}, got {type(found).__name__} without")
    return found


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
