"""Folders of ARC tasks under many views, as TRM's and HRM's builders and `gram data arc` write them, read here.

    identifiers.json     name of each identity, `<blank>` first (`gram/tasks/arc_grids.py` reads names)
    test_puzzles.json    the tasks to be solved, as ARC's JSON has them; HRM writes none
    train/, test/        dataset.json and
      all__inputs.npy, all__labels.npy   examples, `[E, 900]` tokens; they are mapped, not read
      all__puzzle_identifiers.npy        identity of each puzzle, which is a task under one view, `[Q]`
      all__puzzle_indices.npy            first example of each puzzle, `[Q + 1]`
      all__group_indices.npy             first puzzle of each task, `[G + 1]`

A test may have no output: there its label is padding, and in `test_puzzles.json` `is_labelled` is false beside the
`[[0]]` that TRM's evaluator wants there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.tasks.arc_files import SIDE, Grid, checked_grid
from gram.tasks.arc_grids import View, decode, parse_name
from gram.tasks.puzzle_sets import PuzzleError, Tokens

NAMES_FILE, TESTS_FILE, METADATA_FILE = "identifiers.json", "test_puzzles.json", "dataset.json"
BLANK = "<blank>"
SET = "all"
TOKENS = SIDE * SIDE
VOCABULARY = 12
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ArcTest:
    """One test of a task."""

    input: Grid
    output: Grid | None
    """None where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcSplit:
    """Examples of many puzzles, each a task under one view."""

    inputs: Tokens
    """`[E, 900]`, mapped."""
    labels: Tokens
    """`[E, 900]`, mapped."""
    identities: Numbers
    """Of each puzzle, `[Q]`."""
    examples: Numbers
    """First example of each puzzle, `[Q + 1]`."""
    groups: Numbers
    """First puzzle of each task, `[G + 1]`."""

    def puzzles_of(self, examples: Numbers) -> Numbers:
        """The puzzle that each of `examples [k]` belongs to."""
        return np.searchsorted(self.examples, examples, side="right") - 1

    def draw(self, rng: np.random.Generator, count: int) -> Numbers:
        """Examples `[count]`: a task, a view of it and an example of that, each drawn uniformly."""
        groups = rng.integers(0, len(self.groups) - 1, count)
        puzzles = rng.integers(self.groups[groups], self.groups[groups + 1])
        return rng.integers(self.examples[puzzles], self.examples[puzzles + 1])


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcFolder:
    """One data set."""

    path: Path
    names: list[str]
    """Name of each identity."""
    tests: dict[str, list[ArcTest]]
    """Tests of the tasks to be solved."""

    def view(self, identity: int) -> tuple[str, View]:
        """The task and the view of an identity. Raises `PuzzleError` where its name does not parse."""
        try:
            return parse_name(self.names[identity])
        except PuzzleError as error:
            raise PuzzleError(f"{self.path / NAMES_FILE}: {error}") from None

    def split(self, name: str) -> ArcSplit:
        """The examples of `train` or `test`, inputs and labels mapped. Raises `PuzzleError`, `FileNotFoundError`."""
        where = self.path / name
        metadata = _object(where / METADATA_FILE)
        for key, wanted in (("seq_len", TOKENS), ("vocab_size", VOCABULARY)):
            if metadata.get(key) != wanted:
                raise PuzzleError(f"{where / METADATA_FILE}: {key} must be {wanted}, got {str(metadata.get(key))[:40]}")
        inputs, labels = (_array(where, f"{kind}s", mapped=True) for kind in ("input", "label"))
        identities, examples, groups = (
            _array(where, kind).astype(np.int64) for kind in ("puzzle_identifiers", "puzzle_indices", "group_indices")
        )
        for kind, array in (("inputs", inputs), ("labels", labels)):
            if array.shape != (len(inputs), TOKENS):
                raise PuzzleError(f"{_file(where, kind)}: must be [{len(inputs)}, {TOKENS}], got {list(array.shape)}")
        _check_starts(_file(where, "puzzle_indices"), examples, len(identities), len(inputs))
        _check_starts(_file(where, "group_indices"), groups, len(groups) - 1, len(identities))
        if len(identities) and not 0 <= int(identities.min()) <= int(identities.max()) < len(self.names):
            raise PuzzleError(
                f"{_file(where, 'puzzle_identifiers')}: must be below the {len(self.names):,} names of {NAMES_FILE}, "
                f"got {int(identities.min())} to {int(identities.max()):,}"
            )
        return ArcSplit(inputs=inputs, labels=labels, identities=identities, examples=examples, groups=groups)


def is_arc_folder(path: Path) -> bool:
    """Whether a folder is a data set of many views, and not ARC's own JSON files."""
    return (path / NAMES_FILE).is_file()


def open_arc_folder(path: Path | str) -> ArcFolder:
    """The data set of a folder. Raises `PuzzleError` in one line where it is none."""
    path = Path(path)
    if not is_arc_folder(path):
        raise PuzzleError(f"data must be a folder with {NAMES_FILE}, {TESTS_FILE}, train and test, got {path}")
    names = read_names(path / NAMES_FILE)
    if (path / TESTS_FILE).is_file():
        tests = {name: _tests(task, f"{path / TESTS_FILE}: task {name[:40]!r}") for name, task in _tasks(path)}
        return ArcFolder(path=path, names=names, tests=tests)
    bare = ArcFolder(path=path, names=names, tests={})
    return ArcFolder(path=path, names=names, tests=_tests_of_plain_views(bare))


def read_names(path: Path) -> list[str]:
    """The names of identities, in their order. Raises `PuzzleError`, `FileNotFoundError`."""
    names = _json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PuzzleError(f"{path}: must be a JSON list of names, got {str(names)[:40]!r}")
    return names


def _tasks(path: Path) -> list[tuple[str, Any]]:
    return list(_object(path / TESTS_FILE).items())


def _tests(task: Any, where: str) -> list[ArcTest]:
    """The tests of one task of `test_puzzles.json`."""
    tests = task.get("test") if isinstance(task, dict) else None
    if not isinstance(tests, list) or not tests:
        raise PuzzleError(f"{where} must be an object with 'test', got {str(task)[:40]!r}")
    found = []
    for index, test in enumerate(tests):
        if not isinstance(test, dict) or "input" not in test:
            raise PuzzleError(f"{where} test {index} must be an object with 'input', got {str(test)[:40]!r}")
        output = test.get("output") if test.get("is_labelled", True) else None
        found.append(
            ArcTest(
                checked_grid(test["input"], f"{where} test {index} input"),
                None if output is None else checked_grid(output, f"{where} test {index} output"),
            )
        )
    return found


def _tests_of_plain_views(folder: ArcFolder) -> dict[str, list[ArcTest]]:
    """The tests of a folder without `test_puzzles.json`: the examples of every task as it is."""
    split, found = folder.split("test"), {}
    for puzzle, identity in enumerate(split.identities.tolist()):
        task, view = folder.view(identity)
        if view == View() and task not in found:
            rows = range(int(split.examples[puzzle]), int(split.examples[puzzle + 1]))
            labels = [decode(split.labels[row]) for row in rows]
            found[task] = [
                ArcTest(decode(split.inputs[row]), label if label.size else None)
                for row, label in zip(rows, labels, strict=True)
            ]
    if not found:
        raise PuzzleError(f"{folder.path}: must have {TESTS_FILE} or the tests of tasks as they are, got neither")
    return found


def _check_starts(file: Path, starts: Numbers, parts: int, whole: int) -> None:
    """Raises `PuzzleError` where the firsts of some parts are not in order, or do not end with the whole."""
    if (
        starts.shape != (parts + 1,)
        or parts < 1
        or starts[0] != 0
        or starts[-1] != whole
        or (np.diff(starts) < 1).any()
    ):
        raise PuzzleError(f"{file}: must be rising numbers from 0 to {whole:,}, got {len(starts):,} others")


def _file(where: Path, kind: str) -> Path:
    return where / f"{SET}__{kind}.npy"


def _array(where: Path, kind: str, *, mapped: bool = False) -> NDArray[Any]:
    path = _file(where, kind)
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PuzzleError(f"{path}: must be an array of numpy, got {' '.join(str(error).split())[:80]}") from None
    if found.dtype.kind not in "iu" or (mapped and (found.dtype.itemsize != 1 or found.ndim != 2)):
        raise PuzzleError(f"{path}: must be whole numbers, got {found.dtype} {list(found.shape)}")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PuzzleError(f"{path}: not JSON ({' '.join(str(error).split())[:80]})") from None


def _object(path: Path) -> dict[str, Any]:
    found = _json(path)
    if not isinstance(found, dict):
        raise PuzzleError(f"{path}: must be a JSON object, got {str(found)[:40]!r}")
    return found
