"""Sudoku 4x4, 6x6 (boxes 2 rows by 3 columns) and 9x9: generated puzzles with exactly one solution.

Shapes: `n` side, `L = A = n * n` tokens, `P` puzzles. Tokens: 1 blank, 2 .. n+1 the digits 1 .. n. Puzzles are dug from
random full grids in random order, with no filter of difficulty. A grid belongs to the test split by its hash, so no
training pair, augmented ones included, has a test grid (9x9: a test base grid).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gram.tasks import parsing
from gram.tasks.protocol import Board, Cell, CellKind, PuzzleError, PuzzleSet, Tokens
from gram.tasks.sudoku_solver import BOXES, solver

BLANK, FIRST_DIGIT = 1, 2
GIVENS = {4: (4, 8), 6: (12, 18), 9: (24, 38)}
TEST_PUZZLES = {4: 40, 6: 1000, 9: 1000}
POOL = {4: 400, 6: 5000, 9: 10000}
"""Base puzzles of training; each is shown under random symmetries."""
TEST_PER_CENT = 15
SEED = 0
MOST_SOLUTIONS = 20_000


class Sudoku:
    """The task `sudokuN`; see `gram.tasks.protocol.Task` for what each member means."""

    output_start = 0
    is_multi_solution = False
    splits: tuple[str, ...] = ("train", "test")

    def __init__(self, n: int) -> None:
        if n not in BOXES:
            raise ValueError(f"Sudoku side must be one of {', '.join(map(str, BOXES))}, got {n}")
        self.n = n
        self.name = f"sudoku{n}"
        self.tokens = self.output_tokens = n * n
        self.vocabulary = n + 2
        self.solver = solver(n)
        low, high = GIVENS[n]
        self.summary = f"{n}x{n} Sudoku, {low} to {high} givens, exactly one solution, no difficulty filter"
        self._pool: dict[tuple[str, int], tuple[Tokens, Tokens, int]] = {}
        self._units = np.array(self.solver.units)

    # Generation

    def _full_grid(self, rng: np.random.Generator) -> list[int]:
        """A random solved grid: digits are tried in random order, the first row is a random permutation."""
        board = [*(rng.permutation(self.n) + 1).tolist(), *([0] * (self.tokens - self.n))]
        found: list[list[int]] = []

        def keep(solution: list[int]) -> bool:
            found.append(solution)
            return True

        def shuffled(mask: int) -> list[int]:
            digits = [digit + 1 for digit in range(self.n) if mask >> digit & 1]
            return [digits[index] for index in rng.permutation(len(digits))]

        self.solver.search(board, keep, order=shuffled)
        return found[0]

    def _dig(self, grid: list[int], rng: np.random.Generator, givens: int) -> list[int] | None:
        """Clears cells in random order while the solution stays the only one; None where `givens` is not reached."""
        board = list(grid)
        left = self.tokens
        for cell in rng.permutation(self.tokens).tolist():
            if left == givens:
                break
            board[cell] = 0
            if self.solver.has_other(board, cell, grid[cell]):
                board[cell] = grid[cell]
            else:
                left -= 1
        return board if left == givens else None

    def _base(self, split: str, index: int) -> tuple[Tokens, Tokens, int]:
        """Puzzle, answer and rating number `index` of a split: a function of these two alone."""
        if (split, index) not in self._pool:
            rng = np.random.default_rng([SEED, self.n, self.splits.index(split), index])
            low, high = GIVENS[self.n]
            givens = int(rng.integers(low, high + 1))
            board = None
            while board is None:
                grid = self._full_grid(rng)
                answer = (np.array(grid) + FIRST_DIGIT - 1).astype(np.uint8)
                if bool(self.is_test_grid(answer[None])[0]) == (split == "test"):
                    board = self._dig(grid, rng, givens)
            puzzle = np.array([digit + FIRST_DIGIT - 1 if digit else BLANK for digit in board], dtype=np.uint8)
            self._pool[split, index] = puzzle, answer, self.solver.rating(board)
        return self._pool[split, index]

    def is_test_grid(self, answers: Tokens) -> NDArray[np.bool_]:
        """Whether each solved grid `[P, A]` belongs to the test split, by a hash of its digits."""
        mixed = np.zeros(len(answers), dtype=np.uint64)
        for column in answers.T:
            mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return np.asarray(mixed % np.uint64(100) < TEST_PER_CENT)

    # Data

    def split_size(self, name: str = "test") -> int | None:
        self._check_split(name)
        return TEST_PUZZLES[self.n] if name == "test" else None

    def _check_split(self, name: str) -> None:
        if name not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}, got {name!r}")

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """`test`: puzzles of held-out grids; `train`: base puzzles of training, before augmentation."""
        self._check_split(name)
        most = TEST_PUZZLES[self.n] if name == "test" else POOL[self.n]
        rows = [self._base(name, index) for index in range(most if limit is None else min(limit, most))]
        puzzles, answers, ratings = zip(*rows, strict=True) if rows else ((), (), ())
        shape = (len(rows), self.tokens)
        return PuzzleSet(
            puzzles=np.array(puzzles, dtype=np.uint8).reshape(shape),
            answers=np.array(answers, dtype=np.uint8).reshape(shape),
            ratings=np.array(ratings, dtype=np.float64),
            groups=np.arange(len(rows), dtype=np.int64),
        )

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        if split != "train":
            raise ValueError(f"training split must be train, got {split!r}")
        rows = [self._base("train", int(index)) for index in rng.integers(0, POOL[self.n], count)]
        puzzles, answers = np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
        turned_puzzles, turned_answers = self.augment(rng, puzzles, answers)
        if self.n < 9:
            # Small boards have so few classes that a symmetry can lead to a test grid: such pairs stay as they were.
            kept = ~self.is_test_grid(turned_answers)[:, None]
            return np.where(kept, turned_puzzles, puzzles), np.where(kept, turned_answers, answers)
        return turned_puzzles, turned_answers

    def augment(self, rng: np.random.Generator, puzzles: Tokens, answers: Tokens) -> tuple[Tokens, Tokens]:
        """Random symmetries, one per pair `[P, L]`: digits renamed, rows, bands, columns and stacks permuted, and
        square boxes transposed."""
        count, (height, width) = len(puzzles), BOXES[self.n]
        rows = _permuted_lines(rng, count, self.n // height, height)
        columns = _permuted_lines(rng, count, self.n // width, width)
        cells = rows[:, :, None] * self.n + columns[:, None, :]
        if height == width:
            cells = np.where(rng.random((count, 1, 1)) < 0.5, cells, cells.transpose(0, 2, 1))
        cells = cells.reshape(count, -1)
        names = np.tile(np.arange(self.vocabulary, dtype=np.uint8), (count, 1))
        names[:, FIRST_DIGIT:] = FIRST_DIGIT + rng.random((count, self.n)).argsort(1)
        row = np.arange(count)[:, None]
        return names[row, puzzles[row, cells]], names[row, answers[row, cells]]

    # Rules

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Digits missing from rows, columns and boxes, plus clues changed."""
        digits = np.arange(FIRST_DIGIT, FIRST_DIGIT + self.n, dtype=np.uint8)
        units = answers[:, self._units]
        missing = (~(units[..., None] == digits).any(2)).sum((1, 2))
        changed = ((puzzles >= FIRST_DIGIT) & (puzzles != answers)).sum(1)
        return np.asarray(missing + changed, dtype=np.int64)

    def verify(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.bool_]:
        return np.asarray(self.conflicts(puzzles, answers) == 0)

    def canonical(self, answers: Tokens) -> Tokens:
        return answers

    def _digits(self, puzzle: Tokens) -> list[int]:
        return [max(0, int(token) - FIRST_DIGIT + 1) for token in puzzle]

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All solutions `[S, A]`. Raises `PuzzleError` above 20,000."""
        found = self.solver.solutions(self._digits(puzzle), MOST_SOLUTIONS + 1)
        self._check_count(len(found))
        return (np.array(found, dtype=np.uint8) + FIRST_DIGIT - 1).reshape(-1, self.tokens).astype(np.uint8)

    def count_solutions(self, puzzle: Tokens) -> int:
        """Exact number of solutions. Raises `PuzzleError` above 20,000."""
        count = self.solver.count(self._digits(puzzle), MOST_SOLUTIONS + 1)
        self._check_count(count)
        return count

    def _check_count(self, count: int) -> None:
        if count > MOST_SOLUTIONS:
            raise PuzzleError(f"{self.name} puzzle must have at most {MOST_SOLUTIONS:,} solutions to count, got more")

    # Text

    def _tokens(self, text: str) -> Tokens:
        symbols = [symbol for symbol in text if not symbol.isspace()]
        if len(symbols) != self.tokens:
            raise PuzzleError(f"{self.name} puzzle must have {self.tokens} symbols, got {len(symbols)}")
        tokens = np.empty(self.tokens, dtype=np.uint8)
        for place, symbol in enumerate(symbols):
            if symbol in ".0_":
                tokens[place] = BLANK
            elif symbol in "123456789"[: self.n]:
                tokens[place] = FIRST_DIGIT + int(symbol) - 1
            else:
                raise PuzzleError(
                    f"{self.name} puzzle must be of . and 1 to {self.n}, got {symbol!r} at symbol {place + 1}"
                )
        self._check_clues(tokens)
        return tokens

    def _check_clues(self, tokens: Tokens) -> None:
        kinds = ("row", "column", "box")
        for unit, cells in enumerate(self.solver.units):
            given = [int(token) for token in tokens[cells] if token >= FIRST_DIGIT]
            twice = {token for token in given if given.count(token) > 1}
            if twice:
                where = f"{kinds[unit // self.n]} {unit % self.n + 1}"
                raise PuzzleError(
                    f"{self.name} puzzle must not contradict itself, got two {min(twice) - FIRST_DIGIT + 1}s in {where}"
                )

    def parse(self, text: str) -> Tokens:
        """`n * n` symbols: digits, and `.`, `0` or `_` for a blank; white space is ignored."""
        tokens = self._tokens(text)
        if not self.solver.count(self._digits(tokens), 1):
            raise PuzzleError(f"{self.name} puzzle must have a solution, got {self.format(tokens)} with none")
        return tokens

    def load(self, path: Path) -> PuzzleSet:
        """Large files are not solved: symbols, clues and stored answers are checked."""
        return parsing.load_puzzles(self, path, parse=self._tokens, parse_answer=self._tokens)

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        return "".join(str(digit) if digit else "." for digit in self._digits(puzzle if answer is None else answer))

    @cached_property
    def _peers(self) -> NDArray[np.bool_]:
        """Which cells share a unit, `[L, L]`."""
        peers = np.zeros((self.tokens, self.tokens), dtype=bool)
        for cells in self.solver.units:
            peers[np.ix_(cells, cells)] = True
        np.fill_diagonal(peers, False)
        return peers

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        shown = puzzle if answer is None else answer
        clash = (self._peers & (shown[:, None] == shown[None, :])).any(1)
        height, width = BOXES[self.n]
        rows: Board = []
        for row in range(self.n):
            if row and row % height == 0:
                rows.append([Cell("┼" if column < 0 else "─", "label") for column in _with_rules(self.n, width)])
            first = row * self.n
            rows.append(
                [
                    Cell("│", "label") if column < 0 else self._cell(puzzle, shown, clash, first + column)
                    for column in _with_rules(self.n, width)
                ]
            )
        return rows

    def _cell(self, puzzle: Tokens, shown: Tokens, clash: NDArray[np.bool_], place: int) -> Cell:
        digit = int(shown[place]) - FIRST_DIGIT + 1
        is_given = puzzle[place] >= FIRST_DIGIT
        if digit < 1:
            return Cell("·", "conflict" if is_given else "blank")
        kind: CellKind = "given" if is_given else "filled"
        is_wrong = bool(clash[place]) or (is_given and puzzle[place] != shown[place])
        return Cell(str(digit), "conflict" if is_wrong else kind)


def _with_rules(size: int, width: int) -> list[int]:
    """Columns of a row, -1 where a rule between boxes stands."""
    places: list[int] = []
    for column in range(size):
        if column and column % width == 0:
            places.append(-1)
        places.append(column)
    return places


def _permuted_lines(rng: np.random.Generator, count: int, bands: int, lines: int) -> NDArray[np.int64]:
    """Random orders of `bands * lines` rows or columns that keep bands together, `[count, bands * lines]`."""
    band = rng.random((count, bands)).argsort(1)
    line = rng.random((count, bands, lines)).argsort(2)
    return np.asarray((band[:, :, None] * lines + line).reshape(count, -1), dtype=np.int64)
