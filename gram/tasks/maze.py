"""Mazes on an n x n grid: mark a shortest path from S to G. `maze30` is the published 30x30-hard data set's task.

Shapes: `n` side, `L = A = n * n` tokens, `P` puzzles, `S` solutions. Tokens, in the order of HRM's and TRM's data set:
0 padding, then `#` wall, space, `S`, `G`, `o` path as 1 .. 5. The answer is the grid with the cells between S and G
marked `o`. Published mazes have many shortest paths (up to 10^12), so any of them is right, not only the stored one.
Generated mazes are walls at random with a shortest path as long as the published ones' (110 steps at n = 30); a maze
belongs to a split by a hash that its eight symmetries share. They start where some cell is farthest from; in the splits
`train-anywhere`, `validation-anywhere` and `test-anywhere` they start anywhere, and half as long a path is enough.
"""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gram.tasks.maze_notes import MazeNotes
from gram.tasks.maze_paths import Cells, count_paths, distances, first_path, levels_of, list_paths, on_paths
from gram.tasks.protocol import Board, BoardCell, CellKind, PuzzleError, PuzzleSet, Task, Tokens
from gram.tasks.puzzle_sets import PARTS, PuzzlePool, split_by_hash
from gram.tasks.views import SYMMETRIES, Views, chosen, square_cells, square_views

WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5
SYMBOLS = "?# SGo"
BLANK = "."
"""Stands for a space in our own text, where an outer blank would be lost too easily. `parse` takes both."""
SIZES = range(4, 31)
ANYWHERE = "-anywhere"
"""End of the names of splits whose mazes start anywhere."""
COUNTS = {"train": 2000, "test": 500, "validation": 200}
COUNTS |= {f"{part}{ANYWHERE}": count for part, count in COUNTS.items()}
"""Mazes of each split, in the order of their random numbers; training shows its own under random symmetries."""
WALL_SHARES = (0.35, 0.4)
SEED = 0
MOST_SOLUTIONS = 20_000
MOST_COUNTED = 2**63 - 1
KEPT = 4096
"""Mazes whose levels are kept."""
BLOCK = 512
"""Puzzles whose distances are found at once."""
TURNS = (0, 1, 2, 3, 6, 5, 7, 4)
"""The symmetries in the order in which training draws them."""


class Maze(Task):
    """The task `mazeN`."""

    family = "maze"
    vocabulary = 6
    has_comments = False
    symmetry_words = 1
    answer_values = (OPEN, PATH)
    relations = ("up", "down", "left", "right", "row", "column", "all")
    splits = tuple(f"{part}{end}" for end in ("", ANYWHERE) for part in PARTS)

    def __init__(self, n: int) -> None:
        if n not in SIZES:
            raise ValueError(f"maze side must be {SIZES.start} to {SIZES.stop - 1}, got {n}")
        self.n = n
        self.name = f"maze{n}"
        self.tokens = self.output_tokens = n * n
        self.least_steps = max(3, 110 * n * n // 900)
        self.summary = f"{n}x{n} maze, a shortest path of at least {self.least_steps} steps; any shortest one is right"
        self.notes = MazeNotes(n, (WALL, OPEN, START, GOAL, PATH))
        self._known: dict[bytes, tuple[Cells, int]] = {}
        """Levels and steps of mazes, by their tokens."""
        self._symmetries = square_cells(n, TURNS)
        self._pools = {name: PuzzlePool(partial(self._make, name), self.tokens) for name in self.splits}

    def _make(self, split: str, index: int) -> tuple[Tokens, Tokens, int]:
        """Maze number `index` of a split, an answer and its steps: a function of these two alone."""
        rng = np.random.default_rng([SEED, self.n, list(COUNTS).index(split), index])
        n, is_anywhere = self.n, split.endswith(ANYWHERE)
        least_steps = self.least_steps // 2 if is_anywhere else self.least_steps
        while True:
            puzzle = np.where(rng.random(n * n) < rng.uniform(*WALL_SHARES), WALL, OPEN).astype(np.uint8)
            is_open = puzzle == OPEN
            if not is_open.any():
                continue
            start = int(rng.choice(np.flatnonzero(is_open)))
            if not is_anywhere:
                start = int(distances(is_open, start, n).argmax())
            reached = distances(is_open, start, n)
            far = np.flatnonzero(reached >= least_steps)
            if not len(far):
                continue
            goal = int(rng.choice(far))
            puzzle[start], puzzle[goal] = START, GOAL
            if self.split_of(puzzle) == split.removesuffix(ANYWHERE):
                answer = puzzle.copy()
                answer[first_path(reached, goal, n)[1:-1]] = PATH
                return puzzle, answer, int(reached[goal])

    def split_of(self, puzzle: Tokens) -> str:
        """Split that a maze `[L]` belongs to, by a hash that its symmetries share."""
        least = self.forms(puzzle[None])[0].tobytes()
        number = int.from_bytes(hashlib.blake2b(least, digest_size=4).digest(), "little")
        return str(split_by_hash(np.array([number], dtype=np.uint64))[0])

    def split_size(self, name: str = "test") -> int | None:
        self.check_split(name)
        return None if name.startswith("train") else COUNTS[name]

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """`test`, `validation` and those anywhere: held-out mazes; `train`: the pool of training before its symmetries.
        Ratings are steps."""
        self.check_split(name)
        puzzles, answers, ratings = self._pools[name].take(range(COUNTS[name])[:limit])
        return PuzzleSet(puzzles=puzzles, answers=answers, ratings=ratings, groups=np.arange(len(puzzles)))

    def forms(self, puzzles: Tokens) -> Tokens:
        """The canonical form `[P, L]` of each maze `[P, L]`: the least of the eight that symmetries turn it into."""
        least = b"".join(min(puzzle[cells].tobytes() for cells in self._symmetries) for puzzle in puzzles)
        return np.frombuffer(least, dtype=np.uint8).reshape(-1, self.tokens)

    def classes(self, puzzles: Tokens) -> NDArray[np.int64]:
        """Class of each maze `[P, L]` under the eight symmetries of the square, numbered from 0 among these, `[P]`."""
        numbers: dict[bytes, int] = {}
        return np.array([numbers.setdefault(form.tobytes(), len(numbers)) for form in self.forms(puzzles)], np.int64)

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        self.check_split(split, tuple(name for name in self.splits if name.startswith("train")))
        puzzles, answers, _ = self._pools[split].take(rng.integers(0, COUNTS[split], count).tolist())
        return self.augment(rng, puzzles, answers)

    def symmetry(self, puzzles: Tokens, words: NDArray[np.uint32]) -> Views:
        """One word: one of the eight symmetries of the square."""
        return square_views(self._symmetries, chosen(words[:, 0], SYMMETRIES), self.vocabulary)

    def augment(self, rng: np.random.Generator, puzzles: Tokens, answers: Tokens) -> tuple[Tokens, Tokens]:
        """Each pair `[P, L]` turned by a random symmetry of the square."""
        views = square_views(self._symmetries, rng.integers(0, SYMMETRIES, len(puzzles)), self.vocabulary)
        return views.apply(puzzles), views.apply_to_answers(answers)

    def candidates(self, puzzles: Tokens) -> NDArray[np.bool_]:
        possible: NDArray[np.bool_] = np.equal(puzzles[:, :, None], np.arange(self.vocabulary))
        possible[puzzles == OPEN, PATH] = True
        return possible

    def survivors(self, puzzles: Tokens, answers: Tokens, sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """From all shortest paths, of which there may be 10^12: level by level, without listing one."""
        levels, steps = self._kept_levels(puzzles)
        is_open = puzzles == OPEN
        may, must = ~is_open | sets[:, :, PATH], is_open & ~sets[:, :, OPEN]
        taken = on_paths(levels, steps, may, must)
        found = sets & self.candidates(puzzles)
        found[:, :, PATH] &= taken & is_open
        # An open cell may stay open where a path of the same level goes elsewhere.
        lone = np.zeros(puzzles.shape, dtype=bool)
        for row, level in enumerate(levels):
            on = np.bincount(level[taken[row]], minlength=1)
            lone[row, taken[row]] = on[level[taken[row]]] == 1
        found[:, :, OPEN] &= ~lone
        found[~taken.any(1)] = False
        return found

    def _kept_levels(self, puzzles: Tokens) -> tuple[Cells, NDArray[np.int64]]:
        """`levels_of`, kept for puzzles seen lately: a lattice in training asks for them at every round."""
        for puzzle in puzzles:
            key = puzzle.tobytes()
            if key not in self._known:
                if len(self._known) >= KEPT:
                    self._known.clear()
                levels, steps = levels_of(puzzle[None], self.n, WALL, START, GOAL)
                self._known[key] = (levels[0], int(steps[0]))
        found = [self._known[puzzle.tobytes()] for puzzle in puzzles]
        return np.stack([levels for levels, _ in found]), np.array([steps for _, steps in found], dtype=np.int64)

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Cells changed other than from open to path, path cells on no shortest path, steps with no path cell or with
        several, and steps that do not touch."""
        found = np.zeros(len(puzzles), dtype=np.int64)
        if not len(puzzles):
            return found
        mazes, maze_of = np.unique(np.ascontiguousarray(puzzles), axis=0, return_inverse=True)
        maze_of = maze_of.reshape(-1)
        for first in range(0, len(mazes), BLOCK):
            rows = np.flatnonzero((maze_of >= first) & (maze_of < first + BLOCK))
            levels, steps = levels_of(mazes[first : first + BLOCK], self.n, WALL, START, GOAL)
            mine = maze_of[rows] - first
            found[rows] = self._path_faults(puzzles[rows], answers[rows], levels[mine], steps[mine])
        return found

    def _path_faults(
        self, puzzles: Tokens, answers: Tokens, levels: NDArray[np.int64], steps: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """`conflicts` of answers whose mazes' levels `[P, L]` (-1: on no shortest path) and steps `[P]` are known."""
        marked = (answers == PATH) & (puzzles == OPEN)
        changed = ((answers != puzzles) & ~marked).sum(1)
        astray = (marked & (levels < 0)).sum(1)
        on_way = (marked | (puzzles == START) | (puzzles == GOAL)) & (levels >= 0)
        row, cell = np.nonzero(on_way)
        width = int(steps.max(initial=0)) + 1
        slot = row * width + levels[row, cell]
        shape = (len(puzzles), width)
        count = np.bincount(slot, minlength=shape[0] * width).reshape(shape)
        y = np.bincount(slot, weights=cell // self.n, minlength=shape[0] * width).reshape(shape)
        x = np.bincount(slot, weights=cell % self.n, minlength=shape[0] * width).reshape(shape)
        is_step = np.arange(width) <= steps[:, None]
        wrong = (np.abs(count - 1) * is_step).sum(1)
        is_pair = (count[:, 1:] == 1) & (count[:, :-1] == 1) & is_step[:, 1:]
        apart = (is_pair & (np.abs(np.diff(y)) + np.abs(np.diff(x)) != 1)).sum(1)
        return np.asarray(changed + astray + wrong + apart + (steps < 0), dtype=np.int64)

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        return np.isin(puzzles, (WALL, OPEN, START, GOAL))

    def _levels(self, puzzle: Tokens) -> tuple[NDArray[np.int64], int]:
        levels, steps = levels_of(puzzle[None], self.n, WALL, START, GOAL)
        return levels[0], int(steps[0])

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All shortest paths `[S, A]`. Raises `PuzzleError` above 20,000."""
        if (count := self.count_solutions(puzzle)) > MOST_SOLUTIONS:
            raise PuzzleError(f"{self.name} puzzle must have at most {MOST_SOLUTIONS:,} shortest paths, got {count:,}")
        paths = list_paths(*self._levels(puzzle), self.n)
        found = np.repeat(puzzle[None], len(paths), axis=0)
        for answer, path in zip(found, paths, strict=True):
            answer[path[1:-1]] = PATH
        return found

    def count_solutions(self, puzzle: Tokens) -> int:
        """Exact number of shortest paths. Raises `PuzzleError` above 2^63 - 1."""
        count = count_paths(*self._levels(puzzle), self.n)
        if count > MOST_COUNTED:
            raise PuzzleError(f"{self.name} puzzle must have at most 2^63 - 1 shortest paths to count, got {count}")
        return count

    def _read(self, text: str, what: str, count: int) -> Tokens:
        symbols = "# SG" if what == "puzzle" else "# SGo"
        grid = text.translate({ord(mark): None for mark in "\r\n\t"}).replace(BLANK, " ")
        if len(grid) != count:
            raise PuzzleError(f"{self.name} {what} must have {count} symbols, got {len(grid)}")
        for place, symbol in enumerate(grid):
            if symbol not in symbols:
                shown = " ".join(symbols.replace(" ", BLANK))
                raise PuzzleError(f"{self.name} {what} must be of {shown}, got {symbol!r} at symbol {place + 1}")
        return np.array([SYMBOLS.index(symbol) for symbol in grid], dtype=np.uint8)

    def parse_solved(self, text: str) -> Tokens:
        puzzle = self._read(text, "puzzle", self.tokens)
        for token in (START, GOAL):
            if (count := int((puzzle == token).sum())) != 1:
                raise PuzzleError(f"{self.name} puzzle must have one {SYMBOLS[token]}, got {count}")
        return puzzle

    def parse(self, text: str) -> Tokens:
        """`n * n` symbols row by row: `#`, space or `.`, `S`, `G`; line breaks are ignored."""
        puzzle = self.parse_solved(text)
        if self._levels(puzzle)[1] < 0:
            raise PuzzleError(f"{self.name} puzzle must have a path from S to G, got one without")
        return puzzle

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        shown = puzzle if answer is None else answer
        return "".join(SYMBOLS[token] if token < len(SYMBOLS) else "?" for token in shown.tolist()).replace(" ", BLANK)

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        shown = puzzle if answer is None else answer
        levels, _ = self._levels(puzzle)
        cells = [self._cell(int(puzzle[at]), int(shown[at]), bool(levels[at] >= 0)) for at in range(self.tokens)]
        return [cells[first : first + self.n] for first in range(0, self.tokens, self.n)]

    def _cell(self, given: int, shown: int, is_on_way: bool) -> BoardCell:
        text = {WALL: "█", OPEN: "·", PATH: "o", START: "S", GOAL: "G"}.get(shown, "?")
        is_mark = given == OPEN and shown == PATH
        if (given != shown and not is_mark) or (is_mark and not is_on_way):
            return BoardCell(text, "conflict")
        kind: CellKind = "filled" if is_mark else "blank" if shown in (WALL, OPEN) else "given"
        return BoardCell(text, kind)
