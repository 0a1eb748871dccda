"""Canonical forms of Sudoku puzzles: two puzzles have one form exactly where one is the other's twin.

Twins become one another when digits are renamed, lines permuted in their bands and stacks, these permuted, and (with
square boxes) the board transposed: 9! x 2 x 6^8 ways at 9x9.

Shapes: `P` puzzles, `n` side, `L = n * n` cells row by row, `S` states of the search. Puzzles are digits, 0 for blank;
no digit stands twice in a line or box. Lines are rows and columns, `[S, 2, n]`; a chute is a band or a stack.

As for graphs (`gram/tasks/canonical_graphs.py`), colours of cells, lines, boxes and digits refine one another. Lines
that still share a colour are marked, one after the other in a state of its own each, until all rows differ and all
columns do; their colours then order the board, and digits are named as they come. Of the boards at the end the least is
the form. Colours are hashes, but a form is a twin of its puzzle by its making: colours that clash cost time alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.tasks.canonical_graphs import Words, mixed
from gram.tasks.sudoku_solver import BOXES

REFINEMENTS = 8
"""Rounds that refine colours."""
BLOCK = 512
"""States refined at once: their colours stay in a cache."""
LAST = np.uint64(2**64 - 1)

Digits = NDArray[np.uint8]


class _Colours(NamedTuple):
    cells: Words
    """`[S, n, n]`."""
    lines: Words
    """Rows, then columns, `[S, 2, n]`."""


def invariants(digits: Digits, n: int) -> Words:
    """A number `[P]` for each puzzle `[P, L]` that its twins share; hardly any others do. Cheap: no search."""
    blocks = [digits[first : first + BLOCK] for first in range(0, len(digits), BLOCK)]
    found = [_refined(block, np.zeros((len(block), 2, n), np.uint64)).cells.sum((1, 2), np.uint64) for block in blocks]
    return mixed(np.concatenate([np.zeros(0, np.uint64), *found]))


def canonical(digits: Digits, n: int) -> Digits:
    """The canonical form `[P, L]` of each puzzle `[P, L]`: a twin of it, the same for all of them."""
    found = [_search(digits[first : first + BLOCK], n) for first in range(0, len(digits), BLOCK)]
    return np.concatenate([np.zeros((0, n * n), np.uint8), *found])


def _refined(digits: Digits, marks: Words) -> _Colours:
    """Colours that twins share, of puzzles `[S, L]` whose lines have `marks` `[S, 2, n]` (0: none)."""
    count, _, n = marks.shape
    height, width = BOXES[n]
    given = (digits[:, :, None] == np.arange(1, n + 1)).astype(np.uint64)
    # Rows and columns may change places only where boxes are square.
    kinds = np.array([1, 1 if height == width else 2], dtype=np.uint64)
    lines = marks + kinds[:, None]
    boxes = np.full((count, n // height, n // width), 3, dtype=np.uint64)
    names = np.full((count, n), 4, dtype=np.uint64)
    of_digit = np.zeros((count, n + 1), dtype=np.uint64)
    cells = np.where(digits > 0, np.uint64(5), np.uint64(6)).reshape(count, n, n)
    for _ in range(REFINEMENTS):
        rows, columns = mixed(lines + np.uint64(2)).swapaxes(0, 1)
        around = mixed(boxes + np.uint64(1)).repeat(height, 1).repeat(width, 2)
        around += rows[:, :, None] + columns[:, None, :]
        of_digit[:, 1:] = mixed(names + np.uint64(3))
        named = np.take_along_axis(mixed(of_digit + np.uint64(4)), digits.astype(np.intp), 1)
        cells = mixed(cells * np.uint64(3) + around + named.reshape(count, n, n))
        lines = mixed(lines * np.uint64(3) + np.stack([cells.sum(2), cells.sum(1)], 1))
        boxes = mixed(boxes * np.uint64(3) + cells.reshape(count, n // height, height, n // width, width).sum((2, 4)))
        names = mixed(names * np.uint64(3) + (cells.reshape(count, 1, n * n) @ given)[:, 0])
    return _Colours(cells, lines)


def _search(digits: Digits, n: int) -> Digits:
    """The forms `[P, L]` of a block of puzzles; all states of all puzzles advance together."""
    owner, marks = np.arange(len(digits)), np.zeros((len(digits), 2, n), dtype=np.uint64)
    is_empty = _are_empty(digits, n)
    ends: list[tuple[NDArray[np.int64], Digits]] = []
    depth = 0
    while len(owner):
        blocks = range(0, len(owner), BLOCK)
        lines = np.concatenate([_refined(digits[owner[b : b + BLOCK]], marks[b : b + BLOCK]).lines for b in blocks])
        blank = is_empty[owner]
        same = (lines[..., None] == lines[..., None, :]) & ~blank[..., None]
        same &= ~np.eye(n, dtype=bool)
        # Lines without givens need no order: any gives one board.
        tied = (same & ~blank[..., None, :]).any(3)
        is_done = ~tied.any((1, 2))
        done = np.flatnonzero(is_done)
        ends += _boards(owner[done], digits[owner[done]], lines[done], blank[done], n)
        open_ = np.flatnonzero(~is_done)
        depth += 1
        state, which, line = _chosen(lines[open_], tied[open_], blank[open_])
        owner, marks = owner[open_][state], marks[open_][state]
        marks[np.arange(len(state)), which, line] = np.uint64(depth << 32)
    return _least(ends, len(digits))


def _are_empty(digits: Digits, n: int) -> NDArray[np.bool_]:
    """Whether each line of puzzles `[P, L]` holds no given, `[P, 2, n]`."""
    boards = digits.reshape(-1, n, n)
    return np.stack([~boards.any(2), ~boards.any(1)], 1)


def _chosen(lines: Words, tied: NDArray[np.bool_], blank: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """The lines of which one is marked next, as state, kind (row or column) and place: all of the smallest class."""
    n = lines.shape[2]
    flat = lines.reshape(-1, 2 * n)
    usable = ~blank.reshape(flat.shape)
    sizes = ((flat[:, :, None] == flat[:, None, :]) & usable[:, None, :]).sum(2)
    sizes = np.where(tied.reshape(flat.shape), sizes, 2 * n + 1)
    is_smallest = sizes == sizes.min(1)[:, None]
    colour = np.where(is_smallest, flat, LAST).min(1)
    state, place = np.nonzero((flat == colour[:, None]) & usable)
    return state, *np.divmod(place, n)


def _boards(
    owner: NDArray[np.int64], digits: Digits, lines: Words, blank: NDArray[np.bool_], n: int
) -> list[tuple[NDArray[np.int64], Digits]]:
    """The ordered boards of states whose lines differ, with their owners; both ways round where boxes are square."""
    height, width = BOXES[n]
    orders = []
    for kind, size in ((0, height), (1, width)):
        colours, is_empty = lines[:, kind], blank[:, kind]
        # The order of chutes is that of their first line with givens, which no two of them share.
        least = np.where(is_empty, LAST, colours).reshape(-1, n // size, size).min(2).repeat(size, 1)
        bare = is_empty.reshape(-1, n // size, size).all(2).repeat(size, 1)
        orders.append(np.lexsort((colours, is_empty, least, bare), axis=-1))
    rows, columns = orders
    cells = rows[:, :, None] * n + columns[:, None, :]
    ways = [cells, cells.swapaxes(1, 2)] if height == width else [cells]
    return [(owner, _renamed(np.take_along_axis(digits, way.reshape(-1, n * n), 1), n)) for way in ways]


def _renamed(boards: Digits, n: int) -> Digits:
    """Boards `[S, L]` with digits named in the order in which they first stand there."""
    stands = boards[:, :, None] == np.arange(1, n + 1)
    first = np.where(stands.any(1), stands.argmax(1), n * n)
    names = np.zeros((len(boards), n + 1), dtype=np.uint8)
    names[:, 1:] = first.argsort(1).argsort(1) + 1
    return np.take_along_axis(names, boards.astype(np.intp), 1)


def _least(ends: list[tuple[NDArray[np.int64], Digits]], count: int) -> Digits:
    """The least board of each of `count` owners."""
    owner = np.concatenate([one for one, _ in ends])
    boards = np.ascontiguousarray(np.concatenate([board for _, board in ends]))
    text = boards.view(f"S{boards.shape[1]}")[:, 0]
    order = np.lexsort((text, owner))
    _, first = np.unique(owner[order], return_index=True)
    assert len(first) == count
    least: Digits = boards[order[first]]
    return least
