"""The hidden rules of `recolour`: families of functions from a small grid to a grid, each with parameters.

Shapes: a grid is `[rows, columns]` of colours 0 .. 7, 0 the background.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache, lru_cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.tasks.puzzle_sets import PARTS, dealt
from gram.tasks.views import SYMMETRIES, turn

COLOURS = 8
SIDES = (4, 6, 8)
"""Rows or columns that a drawn grid may have: even, so that a grid stands in the middle of an 8 x 8 canvas and each
symmetry of the square moves the canvas's cells alike whatever the grid's size."""
DRAWS = 40
"""Inputs drawn at most for one that its rule changes."""
TEST_SHARE, VALIDATION_SHARE = 0.15, 0.05
"""Shares of a family's parameters that only test or validate."""
SEED = 19
Grid = NDArray[np.uint8]
Parameters = tuple[int, ...]
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))
DIAGONALS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


class HiddenRule(NamedTuple):
    """A family's name and parameters."""

    family: str
    parameters: Parameters

    def apply(self, grid: Grid) -> Grid:
        """What the rule makes of a grid."""
        return FAMILIES[self.family].apply(grid, *self.parameters)

    def draw_input(self, rng: np.random.Generator, palette: NDArray[np.int64]) -> Grid:
        """A random input that the rule changes; `palette` are the task's colours in an order of its own."""
        family = FAMILIES[self.family]
        for _ in range(DRAWS):
            rows, columns = (SIDES[side] for side in rng.integers(0, len(SIDES), 2).tolist())
            grid = family.draw(rng, rows, columns, palette, *self.parameters)
            if not np.array_equal(self.apply(grid), grid):
                break
        return grid


class Family(ABC):
    """Rules that differ in their parameters alone."""

    @abstractmethod
    def parameters(self) -> list[Parameters]:
        """All parameters, in a fixed order."""

    @abstractmethod
    def apply(self, grid: Grid, *parameters: int) -> Grid:
        """What the rule makes of a grid."""

    @abstractmethod
    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        """A random input."""

    def fitting(self, pairs: list[tuple[Grid, Grid]]) -> list[Parameters]:
        """Parameters by which each input gives its output."""
        left = self.parameters()
        for given, wanted in pairs:
            left = [each for each in left if np.array_equal(self.apply(given, *each), wanted)]
        return left


def noise(rng: np.random.Generator, rows: int, columns: int, colours: NDArray[np.int64], share: float) -> Grid:
    """Cells of random colours on the background."""
    drawn = colours[rng.integers(0, len(colours), (rows, columns))]
    return np.where(rng.random((rows, columns)) < share, drawn, 0).astype(np.uint8)


def moved(cells: NDArray, down: int, right: int, fill: int = 0) -> NDArray:  # type: ignore[type-arg]
    """Cells `[rows, columns]` moved; what is left behind is `fill`."""
    rows, columns = cells.shape
    made = np.full(cells.shape, fill, dtype=cells.dtype)
    made[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)] = cells[
        max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)
    ]
    return made


def beside(cells: NDArray[np.bool_], steps: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
    """Cells one of these steps away from one of `cells`."""
    return np.asarray(np.logical_or.reduce([moved(cells, *step) for step in steps]), dtype=np.bool_)


def swapped(grid: Grid, one: int, other: int) -> Grid:
    """The grid with two colours exchanged."""
    return np.where(grid == one, other, np.where(grid == other, one, grid)).astype(np.uint8)


@lru_cache(maxsize=64)
def enclosed(content: bytes, rows: int, columns: int) -> NDArray[np.bool_]:
    """Of a grid by its bytes: background cells from which no path of background cells, up, down, left or right, leads
    to the grid's edge."""
    grid = np.frombuffer(content, dtype=np.uint8).reshape(rows, columns)
    free = np.pad(grid == 0, 1, constant_values=True)
    outside = _connected(1, _bits(free), free.shape[1])
    return np.asarray(free & ~_cells_of(outside, *free.shape))[1:-1, 1:-1]


@lru_cache(maxsize=64)
def largest(content: bytes, rows: int, columns: int) -> NDArray[np.bool_]:
    """Of a grid by its bytes: cells of the largest object (connected cells of one colour), of all where several are."""
    grid = np.frombuffer(content, dtype=np.uint8).reshape(rows, columns)
    found, size = 0, 0
    for colour in set(grid.ravel().tolist()) - {0}:
        left = _bits(np.pad(grid == colour, ((0, 0), (0, 1))))
        while left:
            one = _connected(left & -left, left, columns + 1)
            left &= ~one
            if one.bit_count() > size:
                found, size = 0, one.bit_count()
            found |= one if one.bit_count() == size else 0
    return _cells_of(found, rows, columns + 1)[:, :columns]


def _bits(cells: NDArray[np.bool_]) -> int:
    """Cells as bits of one number, row by row: Python's whole numbers flood a small grid faster than arrays."""
    return int.from_bytes(np.packbits(cells, bitorder="little").tobytes(), "little")


def _cells_of(bits: int, rows: int, columns: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(bits.to_bytes((rows * columns + 7) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=rows * columns, bitorder="little").reshape(rows, columns).astype(bool)


def _connected(start: int, free: int, columns: int) -> int:
    """Bits of `free` that paths from `start` reach; each row's last bit is never inside a shape that must not wrap."""
    reached = start
    while True:
        wider = (reached | reached << 1 | reached >> 1 | reached << columns | reached >> columns) & free
        if wider == reached:
            return reached
        reached = wider


def pairs_of_colours(first: int = 1, second: int = 1) -> list[Parameters]:
    """Two different colours, from `first` and `second` on."""
    return [pair for pair in product(range(first, COLOURS), range(second, COLOURS)) if pair[0] != pair[1]]


def rectangle(rng: np.random.Generator, rows: int, columns: int, least: int, most: int) -> tuple[slice, slice]:
    """A random place for a rectangle of `least` to `most` rows and columns."""
    height, width = (int(rng.integers(least, min(most, side) + 1)) for side in (rows, columns))
    top, left = int(rng.integers(0, rows - height + 1)), int(rng.integers(0, columns - width + 1))
    return slice(top, top + height), slice(left, left + width)


class Permute(Family):
    """Every colour but the background's becomes another's: the parameters are the new colours of 1 .. 7."""

    def parameters(self) -> list[Parameters]:
        return [each for each in permutations(range(1, COLOURS)) if each != tuple(range(1, COLOURS))]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        return np.array((0, *parameters), dtype=np.uint8)[grid]

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        shown = rng.permutation(palette[:5])[:4]
        return noise(rng, rows, columns, shown, 0.6)

    def fitting(self, pairs: list[tuple[Grid, Grid]]) -> list[Parameters]:
        new = np.zeros(COLOURS, dtype=np.int64)
        for given, wanted in pairs:
            if given.shape != wanted.shape:
                return []
            new[given] = wanted
        if new[0] or any(not np.array_equal(new[given], wanted) for given, wanted in pairs):
            return []
        unseen = [colour for colour in range(1, COLOURS) if not new[colour]]
        unused = sorted(set(range(1, COLOURS)) - set(new.tolist()))
        if len(unseen) != len(unused):
            return []
        found = []
        for images in permutations(unused):
            new[unseen] = images
            found.append(tuple(new[1:].tolist()))
        return [each for each in found if each != tuple(range(1, COLOURS))]


class Turn(Family):
    """The grid turned by a symmetry of the square, and two colours exchanged."""

    def parameters(self) -> list[Parameters]:
        swaps = [(one, other) for one, other in pairs_of_colours() if one < other]
        return [(symmetry, *swap) for symmetry in range(1, SYMMETRIES) for swap in swaps]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        symmetry, one, other = parameters
        turned: Grid = turn(swapped(grid, one, other), symmetry)
        return turned

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        return noise(rng, rows, columns, np.array([*parameters[1:], *palette[:3]]), 0.55)


class Shift(Family):
    """Every cell moves by one row or column; what is left behind has the parameters' colour."""

    def parameters(self) -> list[Parameters]:
        return [(*step, colour) for step in NEIGHBOURS for colour in range(COLOURS)]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        down, right, colour = parameters
        return np.asarray(moved(grid, down, right, colour), dtype=np.uint8)

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        return noise(rng, rows, columns, palette[:4], 0.5)


class Fill(Family):
    """Enclosed background gets a colour, and another colour is replaced."""

    def parameters(self) -> list[Parameters]:
        return [(inside, *pair) for inside in range(1, COLOURS) for pair in pairs_of_colours()]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        inside, old, new = parameters
        return np.where(enclosed(grid.tobytes(), *grid.shape), inside, np.where(grid == old, new, grid)).astype(
            np.uint8
        )

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        colours = np.array([parameters[1], *palette[:3]])
        grid = noise(rng, rows, columns, colours, 0.08)
        for _ in range(1 + (rows * columns > 30)):
            place = rectangle(rng, rows, columns, 3, 5)
            wall = grid[place]
            wall[:] = colours[rng.integers(len(colours))]
            wall[1:-1, 1:-1] = 0
            if rng.random() < 0.25:
                wall[1, 0] = 0
        return grid


class Largest(Family):
    """The largest object is kept, other objects get one colour and the background another."""

    def parameters(self) -> list[Parameters]:
        return pairs_of_colours(0, 0)

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        others, ground = parameters
        return np.where(largest(grid.tobytes(), *grid.shape), grid, np.where(grid > 0, others, ground)).astype(np.uint8)

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        while True:
            grid, areas = np.zeros((rows, columns), dtype=np.uint8), []
            for _ in range(int(rng.integers(2, 5))):
                place = rectangle(rng, rows, columns, 1, 4)
                around = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in place)
                if not grid[around].any():
                    grid[place] = palette[rng.integers(4)]
                    areas.append(grid[place].size)
            areas.sort()
            if len(areas) > 1 and areas[-1] > areas[-2] + 1:
                return grid


class Sparse(Family):
    """A family whose rules start from the cells of one colour: inputs have few cells, some of them of this colour."""

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        grid = noise(rng, rows, columns, np.array([parameters[0], *palette[:3]]), 0.2)
        grid[rng.integers(rows), rng.integers(columns)] = parameters[0]
        return grid


class Outline(Sparse):
    """Background above, below or beside a cell of one colour gets another."""

    steps = NEIGHBOURS

    def parameters(self) -> list[Parameters]:
        return pairs_of_colours()

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        core, around = parameters
        return np.where((grid == 0) & beside(grid == core, self.steps), around, grid).astype(np.uint8)


class Corners(Outline):
    """Background diagonally next to a cell of one colour gets another."""

    steps = DIAGONALS


class Ray(Sparse):
    """From each cell of one colour a ray of another runs to the grid's edge over the background, in one direction."""

    def parameters(self) -> list[Parameters]:
        return [(*pair, direction) for pair in pairs_of_colours() for direction in range(len(NEIGHBOURS))]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        source, ray, direction = parameters
        axis, is_back = (0, 0, 1, 1)[direction], direction in (0, 2)
        cells = np.flip(grid == source, axis) if is_back else grid == source
        behind = np.logical_or.accumulate(cells, axis)
        hit = np.flip(behind, axis) if is_back else behind
        return np.where((grid == 0) & hit, ray, grid).astype(np.uint8)


class Line(Sparse):
    """The background of each row (or column) that holds a cell of one colour gets another."""

    def parameters(self) -> list[Parameters]:
        return [(*pair, axis) for pair in pairs_of_colours() for axis in range(2)]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        source, line, axis = parameters
        hit = (grid == source).any(axis=1 - axis, keepdims=True)
        return np.where((grid == 0) & hit, line, grid).astype(np.uint8)


class Complete(Family):
    """Background gets the colour of the cell that mirrors it (left and right, or above and below), and two colours are
    exchanged."""

    def parameters(self) -> list[Parameters]:
        swaps = [(one, other) for one, other in pairs_of_colours() if one < other]
        return [(axis, *swap) for axis in range(2) for swap in swaps]

    def apply(self, grid: Grid, *parameters: int) -> Grid:
        axis, one, other = parameters
        new = swapped(grid, one, other)
        return np.where(new == 0, np.flip(new, axis), new).astype(np.uint8)

    def draw(
        self, rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.int64], *parameters: int
    ) -> Grid:
        return noise(rng, rows, columns, np.array([*parameters[1:], *palette[:3]]), 0.4)


FAMILIES: dict[str, Family] = {
    "permute": Permute(),
    "turn": Turn(),
    "shift": Shift(),
    "fill": Fill(),
    "largest": Largest(),
    "outline": Outline(),
    "ray": Ray(),
    "line": Line(),
    "complete": Complete(),
    "corners": Corners(),
}
HELD_OUT = ("complete", "corners")
"""Families that no training shows."""


@cache
def rules(part: str) -> dict[str, list[Parameters]]:
    """Parameters by family that belong to `train`, `validation` or `test`; of the held-out families to `families`."""
    found: dict[str, list[Parameters]] = {}
    for number, (name, family) in enumerate(FAMILIES.items()):
        every = family.parameters()
        if name in HELD_OUT or part == "families":
            if name in HELD_OUT and part == "families":
                found[name] = every
            continue
        parts = dealt(len(every), SEED + number, TEST_SHARE, VALIDATION_SHARE)
        found[name] = [each for each, place in zip(every, parts, strict=True) if PARTS[place] == part]
    return found


def draw_rule(rng: np.random.Generator, part: str) -> HiddenRule:
    """A family of a part, then one of its parameters there."""
    every = rules(part)
    name = list(every)[rng.integers(len(every))]
    return HiddenRule(name, every[name][rng.integers(len(every[name]))])


def explaining(pairs: list[tuple[Grid, Grid]]) -> list[HiddenRule]:
    """All rules of all families that turn each input into its output."""
    return [HiddenRule(name, each) for name, family in FAMILIES.items() for each in family.fitting(pairs)]
