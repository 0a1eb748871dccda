"""ARC grids as tokens, and views of them: a symmetry of the square and a renaming of the colours.

Tokens are those of HRM's and TRM's data set: 0 padding, 1 end, 2 .. 11 the colours 0 .. 9, on a canvas of 30x30 row by
row. A view has a name, which a data set's identities carry: `TASK` is the task as it is, `TASK|||t3|||0213456789` (TRM)
or `TASK_t3_0213456789` (HRM) has its colours renamed (each to the digit at its place) and is then turned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram.tasks.arc_files import COLOURS, SIDE, Grid
from gram.tasks.puzzle_sets import PuzzleError, Tokens
from gram.tasks.views import INVERSE, SYMMETRIES, turn

PAD, END, FIRST_COLOUR = 0, 1, 2
SEPARATOR = "|||"
"""Parts the name of a task from that of a view."""
OF_TRM = re.compile(r"t([0-7])\|\|\|(0[1-9]{9})")
OF_HRM = re.compile(r"(.+)_t([0-9])_([0-9]{10})")


def encode(grid: Grid, *, row: int = 0, column: int = 0) -> Tokens:
    """A grid's tokens `[900]`, its corner at (`row`, `column`); an empty grid is padding alone."""
    height, width = grid.shape
    canvas = np.full((SIDE, SIDE), PAD, dtype=np.uint8)
    canvas[row : row + height, column : column + width] = grid + FIRST_COLOUR
    if grid.size and row + height < SIDE:
        canvas[row + height, column : column + width] = END
    if grid.size and column + width < SIDE:
        canvas[row : row + height, column + width] = END
    return canvas.reshape(-1)


def grid_sizes(answers: Tokens) -> NDArray[np.int64]:
    """Rows and columns `[P, 2]` of the largest rectangle of colours at the top left of each answer `[P, 900]`."""
    is_colour = (answers >= FIRST_COLOUR) & (answers < FIRST_COLOUR + COLOURS)
    # Leading colours of every row, then the narrowest row so far.
    lengths = np.logical_and.accumulate(is_colour.reshape(-1, SIDE, SIDE), axis=2).sum(2)
    widths = np.minimum.accumulate(lengths, axis=1)
    rows = (widths * np.arange(1, SIDE + 1)).argmax(1)
    columns = widths[np.arange(len(widths)), rows]
    return np.stack([np.where(columns > 0, rows + 1, 0), columns], axis=1).astype(np.int64)


def decode(answer: Tokens) -> Grid:
    """The grid of one answer `[900]`, `[rows, columns]`, both 0 where there is none."""
    rows, columns = grid_sizes(answer[None])[0].tolist()
    return np.asarray(answer.reshape(SIDE, SIDE)[:rows, :columns] - FIRST_COLOUR, dtype=np.uint8)


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
        found: Grid = turn(np.array(self.colours, dtype=np.uint8)[grid], self.symmetry)
        return found

    def undo(self, grid: Grid) -> Grid:
        """A grid of this view as it was."""
        found: Grid = np.argsort(self.colours).astype(np.uint8)[turn(grid, INVERSE[self.symmetry])]
        return found

    def name(self, task: str) -> str:
        """The name of a task under this view."""
        if self == View():
            return task
        return SEPARATOR.join((task, f"t{self.symmetry}", "".join(map(str, self.colours))))


def parse_name(name: str) -> tuple[str, View]:
    """The task and the view of a name, of either project's form. Raises `PuzzleError`."""
    task, separator, view = name.partition(SEPARATOR)
    found = OF_TRM.fullmatch(view)
    if not separator:
        found = OF_HRM.fullmatch(name)
        if found is None:
            return name, View()
        task = found[1]
    if found is not None and task:
        symmetry, colours = found.groups()[-2:]
        if sorted(colours) == [str(colour) for colour in range(COLOURS)] and int(symmetry) < SYMMETRIES:
            return task, View(int(symmetry), tuple(map(int, colours)))
    raise PuzzleError(
        f"name of a view must be TASK, TASK{SEPARATOR}t0..7{SEPARATOR}COLOURS (digits 0 to 9 from 0 on) or "
        f"TASK_t0..7_COLOURS, got {name[:60]!r}"
    )


def random_view(rng: np.random.Generator) -> View:
    """Any view."""
    colours = (0, *(rng.permutation(COLOURS - 1) + 1).tolist())
    return View(int(rng.integers(SYMMETRIES)), colours)
