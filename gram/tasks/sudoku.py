"""Sudoku 4x4, 6x6 (boxes 2 rows by 3 columns) and 9x9: generated puzzles with one solution, or with several.

Shapes: `n` side, `L = A = n * n` tokens, `P` puzzles. Tokens: 1 blank, 2 .. n+1 the digits 1 .. n. Puzzles are dug from
random full grids in random order, with no filter of difficulty. A grid belongs to the test or the validation split
by its hash, so no training pair, augmented ones included, has such a grid (9x9: such a base grid).

The splits `train-several`, `validation-several` and `test-several` (9x9 alone) hold boards with 2 to 64 solutions. A
board belongs to the split of the first of them in the solver's order, so to one alone; the others may be any grids.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.tasks.canonical_sudoku import canonical, invariants
from gram.tasks.protocol import BLANK, Board, BoardCell, CellKind, PuzzleError, PuzzleSet, Task, Tokens
from gram.tasks.puzzle_sets import PARTS, PuzzlePool, split_by_hash
from gram.tasks.sudoku_solver import BOXES, solver
from gram.tasks.views import Views, permutations, same_values

FIRST_DIGIT = 2
GIVENS = {4: (4, 8), 6: (12, 18), 9: (24, 38)}
SIZES = {
    "train": {4: 500, 6: 10_000, 9: 20_000},
    "validation": {4: 100, 6: 300, 9: 300},
    "test": {4: 300, 6: 1000, 9: 1000},
    "train-several": {9: 20_000},
    "validation-several": {9: 300},
    "test-several": {9: 1000},
}
"""Puzzles of each split; training shows its own under random symmetries."""
SEVERAL = "-several"
"""End of the names of splits whose boards have several solutions."""
MOST_OF_SEVERAL = 64
"""Solutions of such a board."""
STREAMS = {"train": 0, "test": 1, "validation": 3, "train-several": 4, "test-several": 5, "validation-several": 6}
"""Random numbers of each split; 2 is those of hard puzzles."""
GOLDEN = 0x9E3779B97F4A7C15
"""Odd multiplier of the grids' hash."""
SEED = 0
MOST_SOLUTIONS = 20_000
KNOWN = 4096
"""Puzzles whose solutions are kept."""
ALIASES = str.maketrans("0_", "..")
"""Other symbols of a blank."""


class Sudoku(Task):
    """The task `sudokuN`."""

    family = "sudoku"
    is_multi_solution = False
    relations = ("row", "column", "box", "all")
    are_values_alike = True

    def __init__(self, n: int) -> None:
        if n not in BOXES:
            raise ValueError(f"Sudoku side must be one of {', '.join(map(str, BOXES))}, got {n}")
        self.n = n
        self.name = f"sudoku{n}"
        self.tokens = self.output_tokens = n * n
        self.symbols = "?." + "123456789"[:n]
        self.answer_values = tuple(range(FIRST_DIGIT, FIRST_DIGIT + n))
        self.solver = solver(n)
        height, width = BOXES[n]
        self._key_shapes = (n // height, (n // height, height)), (n // width, (n // width, width))
        self._are_boxes_square = height == width
        # Bands, rows, stacks, columns and digits, each to be put in order; and whether to transpose.
        self.symmetry_words = n // height + n // width + 3 * n + self._are_boxes_square
        # Small boards have so few classes that a symmetry would lead from one split to another.
        self.splits = tuple(f"{part}{end}" for end in ("", SEVERAL) for part in PARTS if n in SIZES[f"{part}{end}"])
        low, high = GIVENS[n]
        self.summary = f"{n}x{n} Sudoku, {low} to {high} givens, exactly one solution, no difficulty filter"
        self._units = np.array(self.solver.units)
        self._bits = np.zeros(256, dtype=np.uint16)
        self._bits[FIRST_DIGIT : FIRST_DIGIT + n] = 1 << np.arange(n)
        self._hash_weights = np.array([pow(GOLDEN, cell + 1, 2**64) for cell in range(self.tokens)], dtype=np.uint64)
        self._pools = {
            name: PuzzlePool(partial(self._make_several if name.endswith(SEVERAL) else self._make, name), self.tokens)
            for name in self.splits
        }
        self._known: dict[bytes, Tokens] = {}
        """Solutions of puzzles that training has asked for last."""

    def full_grid(self, rng: np.random.Generator) -> list[int]:
        """A random solved grid: digits are tried in random order, the first row is a random permutation."""
        board = [*(rng.permutation(self.n) + 1).tolist(), *([0] * (self.tokens - self.n))]

        def shuffled(mask: int) -> list[int]:
            digits = [digit + 1 for digit in range(self.n) if mask >> digit & 1]
            return [digits[index] for index in rng.permutation(len(digits))]

        return self.solver.search(board, 1, order=shuffled)[0][0]

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

    def _make(self, split: str, index: int) -> tuple[Tokens, Tokens, int]:
        """Puzzle number `index` of a split, its answer and rating: a function of these two alone."""
        rng = np.random.default_rng([SEED, self.n, STREAMS[split], index])
        low, high = GIVENS[self.n]
        givens = int(rng.integers(low, high + 1))
        board = None
        while board is None:
            grid = self.full_grid(rng)
            answer = np.array(grid, dtype=np.uint8) + np.uint8(FIRST_DIGIT - 1)
            if self.split_of(answer[None])[0] == split:
                board = self._dig(grid, rng, givens)
        puzzle = np.array([digit + FIRST_DIGIT - 1 if digit else BLANK for digit in board], dtype=np.uint8)
        return puzzle, answer, self.solver.rating(board)

    def _make_several(self, split: str, index: int) -> tuple[Tokens, Tokens, int]:
        """Board number `index` of a split whose boards have several solutions, the first of them and its rating: a
        function of these two alone.

        Cells of a grid are revealed, some boxes rather than others, until at most a random number of solutions is left.
        """
        rng = np.random.default_rng([SEED, self.n, STREAMS[split], index])
        boxes = np.array([box - 2 * self.n for _, _, box in self.solver.places])
        while True:
            grid = self.full_grid(rng)
            order = np.argsort(rng.random(self.tokens) + 2 * rng.random() * rng.random(self.n)[boxes]).tolist()
            most = int(rng.integers(2, MOST_OF_SEVERAL + 1))

            def shown(clues: int, grid: list[int] = grid, order: list[int] = order) -> list[int]:
                known = set(order[:clues])
                return [digit if cell in known else 0 for cell, digit in enumerate(grid)]

            def is_few(clues: int, shown: Any = shown, most: int = most) -> bool:
                return len(self.solver.solutions(shown(clues), most + 1)) <= most

            board = shown(bisect_left(range(self.tokens), True, key=is_few))
            found, guesses = self.solver.search(board, MOST_OF_SEVERAL + 1)
            answers = self._tokens(found)
            if len(found) > 1 and self.split_of(answers[:1])[0] == split.removesuffix(SEVERAL):
                return self._tokens([board])[0], answers[0], guesses

    def is_test_grid(self, answers: Tokens) -> NDArray[np.bool_]:
        """Whether each solved grid `[P, A]` belongs to the test split."""
        return np.asarray(self.split_of(answers) == "test")

    def split_of(self, answers: Tokens) -> NDArray[np.str_]:
        """Split that each solved grid `[P, A]` belongs to, by a hash of its digits, `[P]`."""
        mixed = (answers.astype(np.uint64) * self._hash_weights).sum(1, dtype=np.uint64)
        for shift in (31, 29):
            mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(GOLDEN)
        mixed ^= mixed >> np.uint64(32)
        return split_by_hash(mixed)

    def split_size(self, name: str = "test") -> int | None:
        self.check_split(name)
        return None if name.startswith("train") else SIZES[name][self.n]

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """`test`, `validation`: puzzles of held-out grids; `train`: base puzzles of training, before augmentation."""
        self.check_split(name)
        puzzles, answers, ratings = self._pools[name].take(range(SIZES[name][self.n])[:limit])
        # Puzzles of one grid stand and fall together: 4x4 has only some 40 test grids.
        _, grids = np.unique(answers, axis=0, return_inverse=True)
        groups = grids.reshape(-1).astype(np.int64)
        return PuzzleSet(puzzles=puzzles, answers=answers, ratings=ratings, groups=groups)

    def forms(self, puzzles: Tokens) -> Tokens:
        """The canonical form `[P, L]` of each puzzle `[P, L]`: the same puzzle for all its twins, and for no others."""
        return canonical(np.maximum(puzzles, BLANK) - np.uint8(BLANK), self.n) + np.uint8(BLANK)

    def classes(self, puzzles: Tokens) -> NDArray[np.int64]:
        """Class of each puzzle `[P, L]` under the symmetries of `augment`, numbered from 0 among these, `[P]`."""
        numbers = invariants(np.maximum(puzzles, BLANK) - np.uint8(BLANK), self.n)
        _, found, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        is_shared = counts[found] > 1
        different, copy_of = np.unique(puzzles[is_shared], axis=0, return_inverse=True)
        _, form_of = np.unique(self.forms(different), axis=0, return_inverse=True)
        exact = found.astype(np.int64) * (len(puzzles) + 1)
        exact[is_shared] += form_of.reshape(-1)[copy_of.reshape(-1)]
        return np.unique(exact, return_inverse=True)[1].astype(np.int64)

    def puzzle(self, split: str, index: int) -> PuzzleSet:
        """Puzzle number `index` of a split alone; only that one is made."""
        self.check_split(split)
        puzzles, answers, ratings = self._pools[split].take([index])
        return PuzzleSet(puzzles=puzzles, answers=answers, ratings=ratings)

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        self.check_split(split, tuple(name for name in self.splits if name.startswith("train")))
        chosen = rng.integers(0, SIZES[split][self.n], count)
        puzzles, answers, _ = self._pools[split].take(chosen.tolist())
        turned_puzzles, turned_answers = self.augment(rng, puzzles, answers)
        if self.n < 9:
            # Small boards have so few classes that a symmetry can lead to a held-out grid: such pairs stay as they are.
            kept = (self.split_of(turned_answers) == "train")[:, None]
            return np.where(kept, turned_puzzles, puzzles), np.where(kept, turned_answers, answers)
        return turned_puzzles, turned_answers

    def symmetry(self, puzzles: Tokens, words: NDArray[np.uint32]) -> Views:
        """Bands, rows, stacks, columns and digits in the order of their words, then one word that transposes where
        boxes are square: `n` and the numbers of bands and stacks make 34 words at 9x9, 23 at 6x6, 17 at 4x4."""
        (bands, rows), (stacks, columns) = self._key_shapes
        ends = np.cumsum([bands, self.n, stacks, self.n, self.n])
        band, row, stack, column, digit, transposing = np.split(words, ends, axis=1)
        return self._views(
            _permuted_lines(band, row.reshape(-1, *rows)),
            _permuted_lines(stack, column.reshape(-1, *columns)),
            (transposing >= 2**31)[:, :1] if self._are_boxes_square else np.zeros((len(words), 1), bool),
            digit,
        )

    def augment(self, rng: np.random.Generator, puzzles: Tokens, answers: Tokens) -> tuple[Tokens, Tokens]:
        """Random symmetries, one per pair `[P, L]`: digits renamed, rows, bands, columns and stacks permuted, and
        square boxes transposed."""
        count = len(puzzles)
        rows, columns = (
            _permuted_lines(rng.random((count, groups)), rng.random((count, *lines)))
            for groups, lines in self._key_shapes
        )
        transposing = rng.random((count, 1)) >= 0.5 if self._are_boxes_square else np.zeros((count, 1), bool)
        views = self._views(rows, columns, transposing, rng.random((count, self.n)))
        return views.apply(puzzles), views.apply_to_answers(answers)

    def _views(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], transposing: NDArray[np.bool_], digits: NDArray[Any]
    ) -> Views:
        """The views of orders of rows and columns `[P, n]`, transposed or not `[P, 1]`, with digits renamed in the
        order of random numbers `[P, n]`."""
        cells = rows[:, :, None] * self.n + columns[:, None, :]
        cells = np.where(transposing[:, :, None], cells.transpose(0, 2, 1), cells)
        values = same_values(len(rows), self.vocabulary)
        values[:, FIRST_DIGIT:] = FIRST_DIGIT + permutations(digits)
        return Views(cells.reshape(len(rows), -1), values)

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Digits missing from rows, columns and boxes, plus clues changed."""
        held = np.bitwise_or.reduce(self._bits[answers][:, self._units], axis=2)
        missing = (self.n - np.bitwise_count(held).astype(np.int64)).sum(1)
        changed = ((puzzles >= FIRST_DIGIT) & (puzzles != answers)).sum(1)
        return np.asarray(missing + changed, dtype=np.int64)

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        return np.asarray((puzzles >= BLANK) & (puzzles < FIRST_DIGIT + self.n))

    def nearest_boards(self, answers: Tokens) -> Tokens:
        """Solved boards that keep most of the digits that do not clash; all 0 where that is a board that is held
        out."""
        found = np.zeros_like(answers)
        for row, answer in enumerate(answers):
            digits = self._digits(answer)
            is_open = (self._peers & (answer[:, None] == answer[None, :])).any(1) | (answer < FIRST_DIGIT)
            if is_open.any():
                digits = self.solver.nearest(digits, np.argsort(is_open, kind="stable").tolist())
            found[row] = [digit + FIRST_DIGIT - 1 for digit in digits]
        return np.where((self.split_of(found) == "train")[:, None], found, np.uint8(0))

    def _digits(self, puzzle: Tokens) -> list[int]:
        return [max(0, int(token) - FIRST_DIGIT + 1) for token in puzzle]

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All solutions `[S, A]`. Raises `PuzzleError` above 20,000."""
        found = self.solver.solutions(self._digits(puzzle), MOST_SOLUTIONS + 1)
        if len(found) > MOST_SOLUTIONS:
            raise PuzzleError(f"{self.name} puzzle must have at most {MOST_SOLUTIONS:,} solutions to count, got more")
        return self._tokens(found)

    def _tokens(self, boards: list[list[int]]) -> Tokens:
        """Boards of digits, 0 for blank, as tokens `[S, A]`."""
        return (np.array(boards, dtype=np.uint8) + np.uint8(FIRST_DIGIT - 1)).reshape(-1, self.tokens)

    def known_solutions(self, puzzle: Tokens, answer: Tokens) -> Tokens:
        """All solutions `[S, A]`: a puzzle of a file or of a split may have several. Raises `PuzzleError` above
        20,000."""
        key = puzzle.tobytes()
        if key not in self._known:
            if len(self._known) >= KNOWN:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self.solutions(puzzle)
        return self._known[key]

    def has_several(self, split: str) -> bool:
        return split.endswith(SEVERAL)

    def _read(self, text: str, what: str, count: int) -> Tokens:
        return super()._read(text.translate(ALIASES), what, count)

    def parse_solved(self, text: str) -> Tokens:
        tokens = self._read(text, "puzzle", self.tokens)
        digits = np.arange(FIRST_DIGIT, FIRST_DIGIT + self.n)
        twice = (tokens[self._units][:, :, None] == digits).sum(1) > 1
        if twice.any():
            unit, digit = (int(place) for place in np.argwhere(twice)[0])
            where = f"{('row', 'column', 'box')[unit // self.n]} {unit % self.n + 1}"
            raise PuzzleError(f"{self.name} puzzle must not contradict itself, got two {digit + 1}s in {where}")
        return tokens

    def parse(self, text: str) -> Tokens:
        """`n * n` symbols: digits, and `.`, `0` or `_` for a blank; white space is ignored."""
        tokens = self.parse_solved(text)
        if not self.solver.solutions(self._digits(tokens), 1):
            raise PuzzleError(f"{self.name} puzzle must have a solution, got {self.format(tokens)} with none")
        return tokens

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        return "".join(str(digit) if digit else "." for digit in self._digits(puzzle if answer is None else answer))

    @cached_property
    def _peers(self) -> NDArray[np.bool_]:
        """Which cells share a unit, `[L, L]`."""
        peers = np.zeros((self.tokens, self.tokens), dtype=bool)
        for cell, others in enumerate(self.solver.peers):
            peers[cell, others] = True
        return peers

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        shown = puzzle if answer is None else answer
        clash = (self._peers & (shown[:, None] == shown[None, :])).any(1)
        height, width = BOXES[self.n]
        rows: Board = []
        for row in range(self.n):
            if row and row % height == 0:
                rows.append([BoardCell("┼" if column < 0 else "─", "label") for column in _with_rules(self.n, width)])
            first = row * self.n
            rows.append(
                [
                    BoardCell("│", "label") if column < 0 else self._cell(puzzle, shown, clash, first + column)
                    for column in _with_rules(self.n, width)
                ]
            )
        return rows

    def _cell(self, puzzle: Tokens, shown: Tokens, clash: NDArray[np.bool_], place: int) -> BoardCell:
        digit = int(shown[place]) - FIRST_DIGIT + 1
        is_given = puzzle[place] >= FIRST_DIGIT
        if digit < 1:
            return BoardCell("·", "conflict" if is_given else "blank")
        kind: CellKind = "given" if is_given else "filled"
        is_wrong = bool(clash[place]) or (is_given and puzzle[place] != shown[place])
        return BoardCell(str(digit), "conflict" if is_wrong else kind)


def _with_rules(size: int, width: int) -> list[int]:
    """Columns of a row, -1 where a rule between boxes stands."""
    places: list[int] = []
    for column in range(size):
        if column and column % width == 0:
            places.append(-1)
        places.append(column)
    return places


def _permuted_lines(bands: NDArray[Any], lines: NDArray[Any]) -> NDArray[np.int64]:
    """Orders of rows or columns that keep bands together, `[P, n]`, from random numbers of bands `[P, b]` and of the
    lines in each `[P, b, n / b]`."""
    first = permutations(bands)[:, :, None] * lines.shape[2]
    return np.asarray((first + permutations(lines)).reshape(len(bands), -1), dtype=np.int64)
