"""An exact Sudoku solver on bit masks: finds, counts and enumerates, and rates difficulty by its own guesses.

Not the task (`gram/tasks/sudoku.py`). Cells are numbered row by row; a board is a list of digits with 0 for blank, a
mask has bit `d - 1` for candidate `d`. Search places naked singles, then hidden singles, then guesses in the cell with
the fewest candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by the board's side."""


class Solver:
    """The search for one board size; holds no puzzle between calls."""

    def __init__(self, size: int) -> None:
        self.size = size
        height, width = BOXES[size]
        cells = range(size * size)
        row, column = [cell // size for cell in cells], [cell % size for cell in cells]
        box = [row[cell] // height * (size // width) + column[cell] // width for cell in cells]
        self.places = [(row[cell], size + column[cell], 2 * size + box[cell]) for cell in cells]
        """Units of each cell: its row, column and box."""
        self.units = [[cell for cell in cells if unit in self.places[cell]] for unit in range(3 * size)]
        """Cells of each unit: rows, then columns, then boxes."""
        own = [{other for unit in self.places[cell] for other in self.units[unit]} for cell in cells]
        self.peers = [tuple(sorted(own[cell] - {cell})) for cell in cells]
        """Cells that share a unit with each cell."""
        self.full = (1 << size) - 1

    def _propagate(self, masks: list[int], done: list[int], queue: list[int]) -> bool:
        """Places every single, starting from the decided cells in `queue`; False where a contradiction shows.

        `masks` are the candidates of each cell, `done` the digits placed in each unit; both are changed in place.
        """
        peers, places, full = self.peers, self.places, self.full
        while queue:
            while queue:
                cell = queue.pop()
                bit = masks[cell]
                for unit in places[cell]:
                    done[unit] |= bit
                for peer in peers[cell]:
                    mask = masks[peer]
                    if mask & bit:
                        mask ^= bit
                        if not mask:
                            return False
                        masks[peer] = mask
                        if not mask & (mask - 1):
                            queue.append(peer)
            for unit, cells in enumerate(self.units):
                placed = done[unit]
                if placed == full:
                    continue
                once = twice = 0
                for cell in cells:
                    mask = masks[cell]
                    twice |= once & mask
                    once |= mask
                if once != full:
                    return False
                hidden = once & ~(twice | placed)
                if hidden:
                    for cell in cells:
                        single = masks[cell] & hidden
                        if single:
                            if single & (single - 1):
                                return False
                            masks[cell] = single
                            queue.append(cell)
        return True

    def search(
        self,
        board: Sequence[int],
        limit: float,
        *,
        order: Callable[[int], Sequence[int]] | None = None,
        banned: tuple[int, int] | None = None,
    ) -> tuple[list[list[int]], int]:
        """Up to `limit` solutions, and the number of guesses.

        A guess among `c` candidates counts `c - 1`, the wrong turns it offers: so counts Sudoku-Extreme.

        `order(mask)` lists the digits of a candidate mask in the order to try (default: rising); `banned` is a (blank
        cell, digit) that no solution may have.
        """
        masks = [1 << (digit - 1) if digit else self.full for digit in board]
        if banned:
            masks[banned[0]] &= ~(1 << (banned[1] - 1))
        done = [0] * (3 * self.size)
        if not self._propagate(masks, done, [cell for cell, digit in enumerate(board) if digit]):
            return [], 0
        guesses = 0
        found: list[list[int]] = []

        def go(masks: list[int], done: list[int]) -> bool:
            nonlocal guesses
            best, fewest = -1, 99
            for cell, mask in enumerate(masks):
                if mask & (mask - 1):
                    count = mask.bit_count()
                    if count < fewest:
                        best, fewest = cell, count
                        if count == 2:
                            break
            if best < 0:
                found.append([mask.bit_length() for mask in masks])
                return len(found) >= limit
            guesses += fewest - 1
            for digit in _digits(masks[best]) if order is None else order(masks[best]):
                guess, placed = masks.copy(), done.copy()
                guess[best] = 1 << (digit - 1)
                if self._propagate(guess, placed, [best]) and go(guess, placed):
                    return True
            return False

        go(masks, done)
        return found, guesses

    def solutions(self, board: Sequence[int], limit: int) -> list[list[int]]:
        """Up to `limit` solutions."""
        return self.search(board, limit)[0]

    def has_other(self, board: Sequence[int], cell: int, digit: int) -> bool:
        """Whether some solution has another digit than `digit` in the blank `cell`: the test when digging."""
        taken = 0
        for peer in self.peers[cell]:
            if board[peer]:
                taken |= 1 << (board[peer] - 1)
        if taken | 1 << (digit - 1) == self.full:
            return False
        return bool(self.search(board, 1, banned=(cell, digit))[0])

    def nearest(self, wanted: Sequence[int], order: Sequence[int]) -> list[int]:
        """A solved board that keeps many of `wanted`'s digits: cells are decided in `order`, each as wanted where that
        leaves a solution. Not always the nearest of all."""

        def go(masks: list[int], done: list[int], place: int) -> list[int] | None:
            while place < len(order) and not masks[order[place]] & (masks[order[place]] - 1):
                place += 1
            if place == len(order):
                return [mask.bit_length() for mask in masks]
            cell = order[place]
            for digit in sorted(_digits(masks[cell]), key=lambda digit: digit != wanted[cell]):
                guess, placed = masks.copy(), done.copy()
                guess[cell] = 1 << (digit - 1)
                if self._propagate(guess, placed, [cell]):
                    found = go(guess, placed, place)
                    if found:
                        return found
            return None

        found = go([self.full] * (self.size * self.size), [0] * (3 * self.size), 0)
        assert found is not None
        return found

    def rating(self, board: Sequence[int]) -> int:
        """Difficulty: guesses until the whole search is done (0: singles suffice), the `guesses` of Sudoku-Extreme."""
        return self.search(board, math.inf)[1]


@cache
def _digits(mask: int) -> tuple[int, ...]:
    return tuple(digit + 1 for digit in range(mask.bit_length()) if mask >> digit & 1)


@cache
def solver(size: int) -> Solver:
    """The solver for boards of side 4, 6 or 9."""
    return Solver(size)
