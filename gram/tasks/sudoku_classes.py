"""Which Sudoku puzzles are twins: one becomes the other when digits are renamed, lines and bands permuted or, with
square boxes, the board transposed.

Told by a number that twins share, of the same kind as that of graphs (`gram/tasks/canonical_graphs.py`): colours of
cells, lines, boxes and digits refine one another. Others very rarely share it; where they do, they count as twins.

Shapes: `n` side, `L = n * n` cells, `P` puzzles, as digits with 0 for blank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gram.tasks.canonical_graphs import Words, mixed
from gram.tasks.sudoku_solver import BOXES

ROUNDS = 8


def twin_numbers(digits: NDArray[np.uint8], n: int) -> Words:
    """A number `[P]` for each puzzle `[P, L]` that its twins share."""
    height, width = BOXES[n]
    row, column = np.divmod(np.arange(n * n), n)
    box = row // height * (n // width) + column // width
    count = len(digits)
    places = [np.eye(n, dtype=np.uint64)[unit] for unit in (row, column, box)]
    given = (digits[:, :, None] == np.arange(1, n + 1)).astype(np.uint64)
    # Rows and columns may change places only where boxes are square.
    kinds = np.array([1, 1 if height == width else 2, 3], dtype=np.uint64)
    units = [np.full((count, n), kind, dtype=np.uint64) for kind in kinds]
    names = np.full((count, n), 4, dtype=np.uint64)
    cells = np.where(digits > 0, np.uint64(5), np.uint64(6))
    for _ in range(ROUNDS):
        around = mixed(units[2] + np.uint64(1)) @ places[2].T
        for unit, place in zip(units[:2], places, strict=False):
            around = around + mixed(unit + np.uint64(2)) @ place.T
        named = (given @ mixed(names + np.uint64(3))[:, :, None])[:, :, 0]
        cells = mixed(cells * np.uint64(3) + around + mixed(named + np.uint64(4)))
        units = [mixed(unit * np.uint64(3) + cells @ place) for unit, place in zip(units, places, strict=True)]
        names = mixed(names * np.uint64(3) + (cells[:, None, :] @ given)[:, 0])
    return mixed(cells.sum(1, dtype=np.uint64))
