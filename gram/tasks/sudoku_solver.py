"""An exact Sudoku solver on bit masks: finds, counts and enumerates, and rates difficulty by its own guesses.

Cells are numbered row by row; a board is a list of digits with 0 for blank. Search takes naked singles, then hidden
singles, then guesses in the cell with the fewest candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by the board's side."""


class Solver:
    """The search for one board size; holds no puzzle between calls."""

    def __init__(self, size: int) -> None:
        self.size = size
        height, width = BOXES[size]
        self.row = [cell // size for cell in range(size * size)]
        self.column = [cell % size for cell in range(size * size)]
        self.box = [(cell // size) // height * (size // width) + (cell % size) // width for cell in range(size * size)]
        self.places = [
            (row, size + column, 2 * size + box)
            for row, column, box in zip(self.row, self.column, self.box, strict=True)
        ]
        self.units = [[cell for cell, own in enumerate(self.places) if unit in own] for unit in range(3 * size)]
        self.full = (1 << size) - 1

    def search(
        self,
        board: Sequence[int],
        on_solution: Callable[[list[int]], bool],
        *,
        order: Callable[[int], Sequence[int]] | None = None,
        banned: tuple[int, int] | None = None,
    ) -> int:
        """Calls `on_solution` with each solution until it returns True; returns the number of guesses tried.

        `order(mask)` lists the digits of a candidate mask in the order to try (default: rising); `banned` is a (cell,
        digit) that no solution may have.
        """
        used = [0] * (3 * self.size)
        cells = list(board)
        for cell, digit in enumerate(cells):
            if digit:
                bit = 1 << (digit - 1)
                for unit in self.places[cell]:
                    if used[unit] & bit:
                        return 0
                    used[unit] |= bit
        blanks = [cell for cell, digit in enumerate(cells) if not digit]
        ban_cell, ban_mask = (banned[0], ~(1 << (banned[1] - 1))) if banned else (-1, 0)
        places, full, size = self.places, self.full, self.size
        guesses = 0

        def candidates_of(cell: int) -> int:
            a, b, c = places[cell]
            mask = full & ~(used[a] | used[b] | used[c])
            return mask & ban_mask if cell == ban_cell else mask

        def go() -> bool:
            nonlocal guesses
            best, best_mask, best_count = -1, 0, 99
            masks = {}
            for cell in blanks:
                if cells[cell]:
                    continue
                mask = candidates_of(cell)
                if not mask:
                    return False
                count = mask.bit_count()
                if count < best_count:
                    best, best_mask, best_count = cell, mask, count
                    if count == 1:
                        break
                masks[cell] = mask
            if best < 0:
                return on_solution(cells.copy())
            if best_count > 1:
                for unit in range(3 * size):
                    once = twice = 0
                    for cell in self.units[unit]:
                        mask = masks.get(cell, 0)
                        twice |= once & mask
                        once |= mask
                    if once | used[unit] != full:
                        return False
                    single = once & ~twice
                    if single:
                        bit = single & -single
                        best = next(cell for cell in self.units[unit] if masks.get(cell, 0) & bit)
                        best_mask, best_count = bit, 1
                        break
            digits = _digits(best_mask) if order is None or best_count == 1 else order(best_mask)
            a, b, c = places[best]
            for digit in digits:
                guesses += best_count > 1
                bit = 1 << (digit - 1)
                cells[best] = digit
                used[a] |= bit
                used[b] |= bit
                used[c] |= bit
                if go():
                    return True
                cells[best] = 0
                used[a] ^= bit
                used[b] ^= bit
                used[c] ^= bit
            return False

        go()
        return guesses

    def solutions(self, board: Sequence[int], limit: int) -> list[list[int]]:
        """Up to `limit` solutions."""
        found: list[list[int]] = []

        def keep(solution: list[int]) -> bool:
            found.append(solution)
            return len(found) >= limit

        self.search(board, keep)
        return found

    def count(self, board: Sequence[int], limit: int) -> int:
        """Number of solutions, at most `limit`."""
        found = 0

        def tally(_: list[int]) -> bool:
            nonlocal found
            found += 1
            return found >= limit

        self.search(board, tally)
        return found

    def has_other(self, board: Sequence[int], cell: int, digit: int) -> bool:
        """Whether some solution has another digit than `digit` in a blank cell: the test when digging."""
        found = False

        def stop(_: list[int]) -> bool:
            nonlocal found
            found = True
            return True

        self.search(board, stop, banned=(cell, digit))
        return found

    def rating(self, board: Sequence[int]) -> int:
        """Difficulty: guesses tried until the whole search is done (0: singles suffice)."""
        return self.search(board, lambda _: False)


@cache
def _digits(mask: int) -> tuple[int, ...]:
    return tuple(digit + 1 for digit in range(mask.bit_length()) if mask >> digit & 1)


@cache
def solver(size: int) -> Solver:
    """The solver for boards of side 4, 6 or 9."""
    return Solver(size)
