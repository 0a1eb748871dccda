"""Notes of a maze: of each cell, its distance from the start modulo 3, and whether it is on one path that notes name.

Two neighbours' distances differ by one, so modulo 3 tells which of them is nearer to the start. From the goal the path
goes to a nearer neighbour, always the first of up, left, right, down; any such path is a shortest one. So every fact
follows from the facts of neighbours, however large the maze is: distances spread from the start, the path from the
goal, and cells that lead nowhere are off it.

Symbols after the six tokens: a reached cell off the path with distance 0, 1, 2 (modulo 3), one on it, the goal. An
open cell that no way from the start leads to keeps the symbol of an open cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gram.tasks.maze_paths import Cells, distances, first_path, neighbours
from gram.tasks.notes import NEVER, Notes, Symbols

REMAINDERS = 3


class MazeNotes(Notes):
    """Notes of mazes of one side; `tokens` are those of wall, open cell, start, goal and path."""

    def __init__(self, n: int, tokens: tuple[int, int, int, int, int]) -> None:
        self.n = n
        self.wall, self.open, self.start, self.goal, self.path = tokens
        self.off = max(tokens) + 1
        self.on, self.reached_goal = self.off + REMAINDERS, self.off + 2 * REMAINDERS
        kinds = (self.open, self.path, self.goal)
        self.plain = np.array([*range(self.off), *np.repeat(kinds, REMAINDERS)], dtype=np.uint8)
        self.values = (self.open, *range(self.off, len(self.plain)))

    def write(self, puzzles: NDArray[np.uint8]) -> Symbols:
        return np.stack([self._write(puzzle) for puzzle in puzzles]) if len(puzzles) else puzzles.copy()

    def _write(self, puzzle: NDArray[np.uint8]) -> Symbols:
        reached = distances(puzzle != self.wall, int((puzzle == self.start).argmax()), self.n)
        is_reached = (reached >= 0) & (puzzle == self.open)
        noted = np.where(is_reached, self.off + reached % REMAINDERS, puzzle).astype(np.uint8)
        cell = int((puzzle == self.goal).argmax())
        noted[cell] = self.reached_goal + reached[cell] % REMAINDERS
        for on_path in first_path(reached, cell, self.n)[1:-1]:
            noted[on_path] = self.on + reached[on_path] % REMAINDERS
        return noted

    def deductions(self, puzzles: NDArray[np.uint8], noted: Symbols, rng: np.random.Generator) -> NDArray[np.int32]:
        steps = self.candidates(puzzles).astype(np.int32)
        every = np.arange(len(self.plain))
        for row, (puzzle, symbols) in enumerate(zip(puzzles, noted, strict=True)):
            far, known = self._ranks(puzzle, symbols, rng)
            same = (every >= self.off) & (
                (every - self.off) % REMAINDERS == (symbols[:, None].astype(int) - self.off) % REMAINDERS
            )
            at = np.where(same & (symbols >= self.off)[:, None], known[:, None], far[:, None])
            steps[row] = np.where(every == symbols[:, None], NEVER, np.where(steps[row] > 0, at, 0))
        return steps

    def _ranks(self, puzzle: NDArray[np.uint8], symbols: Symbols, rng: np.random.Generator) -> tuple[Cells, Cells]:
        """The steps after which each cell's distance, and all of its symbol, follow from those of its neighbours."""
        is_open = puzzle != self.wall
        far = distances(is_open, int((puzzle == self.start).argmax()), self.n)
        known = np.zeros(len(puzzle), dtype=np.int64)
        for cell in sorted(np.flatnonzero(far > 0).tolist(), key=lambda cell: -far[cell]):
            near = [other for other in neighbours(cell, self.n) if is_open[other]]
            later = [known[other] for other in near if far[other] > far[cell]]
            known[cell] = far[cell] if puzzle[cell] == self.goal else 1 + max([far[cell], *later])
        # That no way leads somewhere shows when all else is known. One cell of each pocket is then guessed.
        last = int(known.max())
        for cell in np.flatnonzero((far < 0) & is_open).tolist():
            if known[cell] == 0:
                pocket = np.flatnonzero(distances(is_open, int(cell), self.n) >= 0)
                guessed = distances(is_open, int(rng.choice(pocket)), self.n)
                known[pocket] = 1 if len(pocket) == 1 else last + 2 + guessed[pocket]
        return np.where(far < 0, known, far), known

    def astray(
        self, puzzle: NDArray[np.uint8], noted: Symbols, rng: np.random.Generator
    ) -> tuple[Symbols, NDArray[np.int64]] | None:
        """The path forks or breaks off, either as likely."""
        reached = distances(puzzle != self.wall, int((puzzle == self.start).argmax()), self.n)
        forked = self._forked(reached, noted, rng)
        broken = self._broken(reached, noted, rng)
        return forked if broken is None or (forked is not None and rng.random() < 0.5) else broken

    def _broken(
        self, reached: Cells, noted: Symbols, rng: np.random.Generator
    ) -> tuple[Symbols, NDArray[np.int64]] | None:
        """A cell on the path has no nearer neighbour on it: all cells of the path that are nearer are off it."""
        on = np.flatnonzero((noted >= self.on) & (noted < self.reached_goal))
        if not len(on):
            return None
        last = rng.choice(on)
        symbols = noted.copy()
        nearer = on[reached[on] <= reached[last]]
        symbols[nearer] = self.off + reached[nearer] % REMAINDERS
        return symbols, np.array([last])

    def _forked(
        self, reached: Cells, noted: Symbols, rng: np.random.Generator
    ) -> tuple[Symbols, NDArray[np.int64]] | None:
        """A cell on the path has two nearer neighbours on paths of their own, until these meet."""
        is_on = noted >= self.on
        behind_forks = [
            near
            for cell in np.flatnonzero(is_on).tolist()
            for near in neighbours(cell, self.n)
            if reached[near] == reached[cell] - 1 and reached[near] and not is_on[near]
        ]
        if not behind_forks:
            return None
        first = behind_forks[rng.integers(len(behind_forks))]
        symbols = noted.copy()
        for cell in first_path(reached, first, self.n)[:0:-1]:
            if is_on[cell]:
                break
            symbols[cell] = self.on + reached[cell] % REMAINDERS
        return symbols, np.array([first])

    def candidates(self, puzzles: NDArray[np.uint8]) -> NDArray[np.bool_]:
        possible: NDArray[np.bool_] = puzzles[:, :, None] == np.arange(len(self.plain))
        possible[puzzles == self.open, self.off : self.reached_goal] = True
        is_goal = puzzles == self.goal
        possible[is_goal] = np.arange(len(self.plain)) >= self.reached_goal
        return possible
