"""How ARC is answered: many augmented views of a test, their predictions turned back, a vote, two attempts.

Views are a symmetry of the square and a renaming of the colours 1 .. 9 (black stays), as in HRM's and TRM's data set.
Plain functions on grids (`gram/tasks/arc_files.py`); running a model on the views is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gram.tasks.arc_files import COLOURS, Grid

SYMMETRIES = 8
ATTEMPTS = 2
"""Answers that ARC allows for a test."""
INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
"""Number of the symmetry that undoes each."""


def turn(grid: Grid, symmetry: int) -> Grid:
    """A symmetry of the square: 0 none, 1 to 3 quarter turns to the left, 4 columns reversed, 5 rows reversed, 6 the
    transpose, 7 the other diagonal. Raises `ValueError`."""
    if symmetry not in range(SYMMETRIES):
        raise ValueError(f"symmetry must be within 0 and 7, got {symmetry}")
    if symmetry < 4:
        return np.rot90(grid, symmetry)
    if symmetry == 7:
        return np.rot90(grid)[:, ::-1]
    return (grid[:, ::-1], grid[::-1], grid.T)[symmetry - 4]


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation; without arguments, the grid as it is."""

    symmetry: int = 0
    colours: tuple[int, ...] = tuple(range(COLOURS))
    """New colour of each; a permutation of 0 .. 9 that keeps 0."""

    def __post_init__(self) -> None:
        if self.symmetry not in range(SYMMETRIES):
            raise ValueError(f"symmetry must be within 0 and 7, got {self.symmetry}")
        if sorted(self.colours) != list(range(COLOURS)) or self.colours[0]:
            raise ValueError(f"colours must be a permutation of 0 to 9 that keeps 0, got {self.colours}")

    def apply(self, grid: Grid) -> Grid:
        """A grid as this view shows it."""
        return turn(np.array(self.colours, dtype=np.uint8)[grid], self.symmetry)

    def undo(self, grid: Grid) -> Grid:
        """A grid of this view as it was."""
        return np.argsort(self.colours).astype(np.uint8)[turn(grid, INVERSE[self.symmetry])]


def views(rng: np.random.Generator, count: int) -> list[View]:
    """`count` different views, the plain one first. Raises `ValueError` below 1 or above 1,000,000."""
    if not 1 <= count <= 1_000_000:
        raise ValueError(f"views must be within 1 and 1,000,000, got {count}")
    found = {View(): None}
    while len(found) < count:
        found[random_view(rng)] = None
    return list(found)


def random_view(rng: np.random.Generator) -> View:
    """Any view."""
    colours = (0, *(rng.permutation(COLOURS - 1) + 1).tolist())
    return View(int(rng.integers(SYMMETRIES)), colours)


def vote(predictions: Iterable[tuple[Grid, float]]) -> list[Grid]:
    """Different grids of (grid, halt probability), those with most votes first; ties by the mean probability."""
    found: dict[tuple[tuple[int, ...], bytes], tuple[Grid, list[float]]] = {}
    for grid, weight in predictions:
        key = (grid.shape, np.ascontiguousarray(grid).tobytes())
        found.setdefault(key, (grid, []))[1].append(weight)
    ranked = sorted(found.values(), key=lambda entry: (-len(entry[1]), -sum(entry[1]) / len(entry[1])))
    return [grid for grid, _ in ranked]


def is_solved(ranked: Sequence[Grid], output: Grid, *, attempts: int = ATTEMPTS) -> bool:
    """Whether one of the first `attempts` grids equals the test output."""
    return any(np.array_equal(grid, output) for grid in ranked[:attempts])
