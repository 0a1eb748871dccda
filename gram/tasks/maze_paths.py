"""Shortest paths on grids: distances, how many there are, and which. Plain numpy; no tokens, no task.

Shapes: `P` grids, `L = n * n` cells row by row. The level of a cell is its distance from the start where it lies on a
shortest path, else -1; a shortest path takes one cell of each level, each beside the one before.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]


def neighbours(cell: int, n: int) -> list[int]:
    """The cells above, left, right and below."""
    y, x = divmod(cell, n)
    found = []
    if y:
        found.append(cell - n)
    if x:
        found.append(cell - 1)
    if x < n - 1:
        found.append(cell + 1)
    if y < n - 1:
        found.append(cell + n)
    return found


def distances(is_open: NDArray[np.bool_], start: int, n: int) -> Cells:
    """Steps from `start` to every cell of one grid `[L]`; -1 where no way leads."""
    width = n + 2
    framed = np.zeros((width, width), dtype=bool)
    framed[1:-1, 1:-1] = is_open.reshape(n, n)
    free = framed.reshape(-1).tolist()
    found = [-1] * len(free)
    front = [(start // n + 1) * width + start % n + 1]
    found[front[0]] = step = 0
    while front:
        step += 1
        reached = []
        for cell in front:
            for near in (cell - width, cell - 1, cell + 1, cell + width):
                if free[near] and found[near] < 0:
                    found[near] = step
                    reached.append(near)
        front = reached
    return np.array(found, dtype=np.int64).reshape(width, width)[1:-1, 1:-1].reshape(-1)


def levels_of(mazes: NDArray[np.uint8], n: int, wall: int, start: int, goal: int) -> tuple[Cells, NDArray[np.int64]]:
    """Levels `[P, L]` of mazes `[P, L]` and the steps of their shortest paths `[P]`.

    -1 steps (and no levels) where no way leads from start to goal, or the grid has not one of each.
    """
    levels = np.full(mazes.shape, -1, dtype=np.int64)
    steps = np.full(len(mazes), -1, dtype=np.int64)
    for index, maze in enumerate(mazes):
        starts, goals = np.flatnonzero(maze == start), np.flatnonzero(maze == goal)
        if len(starts) != 1 or len(goals) != 1:
            continue
        is_open = (maze != wall) & (maze != 0)
        forth = distances(is_open, int(starts[0]), n)
        if forth[goals[0]] >= 0:
            steps[index] = forth[goals[0]]
            back = distances(is_open, int(goals[0]), n)
            on_way = (forth >= 0) & (forth + back == steps[index])
            levels[index, on_way] = forth[on_way]
    return levels, steps


def first_path(reached: Cells, goal: int, n: int) -> list[int]:
    """One shortest path, start and goal included, from the distances of its start."""
    path = [goal]
    while reached[path[-1]]:
        path.append(next(near for near in neighbours(path[-1], n) if reached[near] == reached[path[-1]] - 1))
    return path[::-1]


def count_paths(levels: Cells, steps: int, n: int) -> int:
    """Number of shortest paths, exact (Python's whole numbers do not overflow); 0 where there is none."""
    if steps < 0:
        return 0
    order = np.argsort(levels, kind="stable")
    ways: dict[int, int] = {}
    for cell in order[levels[order] >= 0].tolist():
        level = int(levels[cell])
        ways[cell] = 1 if level == 0 else sum(ways[near] for near in neighbours(cell, n) if levels[near] == level - 1)
    return next(ways[cell] for cell in ways if levels[cell] == steps)


def list_paths(levels: Cells, steps: int, n: int) -> list[list[int]]:
    """All shortest paths, cells from start to goal."""
    if steps < 0:
        return []
    paths = [[int(np.flatnonzero(levels == 0)[0])]]
    for level in range(1, steps + 1):
        paths = [[*path, near] for path in paths for near in neighbours(path[-1], n) if levels[near] == level]
    return paths


def on_paths(
    levels: Cells, steps: NDArray[np.int64], may: NDArray[np.bool_], must: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Cells on some shortest path that takes cells that `may` be taken alone, and all that `must` be: bool `[P, L]`.

    `levels` and `steps` are those of `levels_of`; `may` and `must` are `[P, L]`. No cell where there is no such path.
    """
    count, n = len(levels), math.isqrt(levels.shape[1])
    level, allowed, needed = (each.reshape(count, n, n) for each in (levels, may, must))
    last = int(steps.max(initial=-1))
    at, is_missed = [], steps < 0
    for step in range(last + 1):
        is_here = level == step
        bound = (is_here & needed).sum((1, 2), keepdims=True)
        at.append(is_here & allowed & (needed | (bound == 0)))
        is_missed |= bound[:, 0, 0] > 1  # no path takes two cells of a level
    forth = at[:1]
    for cells in at[1:]:
        forth.append(cells & _beside(forth[-1]))
    is_last = steps[:, None, None]
    found = np.zeros(level.shape, bool)
    back = np.zeros(level.shape, bool)
    for step in range(last, -1, -1):
        back = forth[step] & (_beside(back) | (is_last == step))
        found |= back
    found[is_missed | (needed & ~found).any((1, 2))] = False
    taken: NDArray[np.bool_] = found.reshape(levels.shape)
    return taken


def _beside(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells next to one of these, `[P, n, n]`."""
    near = np.zeros_like(cells)
    near[:, 1:] |= cells[:, :-1]
    near[:, :-1] |= cells[:, 1:]
    near[:, :, 1:] |= cells[:, :, :-1]
    near[:, :, :-1] |= cells[:, :, 1:]
    return near
