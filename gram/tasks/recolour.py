"""`recolour`: a hidden rule, shown by demonstrations, applied to one more grid. Small grids in ARC's manner.

A puzzle is `D` demonstrations (an input and its output) and then a test input; the answer is what the rule makes of it.
Rules and how parameters are held out stand in `recolour_rules.py`. `recolour` has 4 demonstrations, `recolourD` has
`D`: the puzzles of their held-out splits are the same, with more or fewer demonstrations.

The verifier looks for all rules that explain every demonstration, and takes what one of them makes of the test input.
Few demonstrations may leave several, so that an answer can be right though another rule was drawn.

Shapes: `P` puzzles, `A = 64` cells of a canvas, `D` demonstrations, `L = (2 D + 1) A`. Tokens: 0 padding (never in a
puzzle), 1 outside the grid, 2 .. 9 the colours. A grid stands in the middle of its canvas.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gram.tasks.protocol import Board, BoardCell, CellKind, PuzzleError, PuzzleSet, Task, Tokens
from gram.tasks.recolour_rules import COLOURS, Grid, HiddenRule, draw_rule, explaining

SIDE = 8
CELLS = SIDE * SIDE
OUTSIDE, FIRST_COLOUR = 1, 2
DEMONSTRATIONS = 4
"""Of `recolour`."""
SIZES = range(1, 17)
MOST = max(SIZES)
PUZZLES = {"validation": 400, "test": 1000, "test-families": 400}
"""Puzzles of the held-out splits."""
ABREAST = 4
"""Demonstrations drawn side by side."""


def encode(grid: Grid) -> Tokens:
    """A grid's canvas `[64]`. Raises `PuzzleError` where it does not fit."""
    rows, columns = grid.shape
    if not (0 < rows <= SIDE and 0 < columns <= SIDE):
        raise PuzzleError(f"recolour grid must have 1 to {SIDE} rows and columns, got {rows} x {columns}")
    canvas = np.full((SIDE, SIDE), OUTSIDE, dtype=np.uint8)
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    canvas[top : top + rows, left : left + columns] = grid + FIRST_COLOUR
    return canvas.reshape(-1)


def decode(canvas: Tokens) -> Grid:
    """The grid of a canvas `[64]`: the smallest rectangle that holds every colour. Other cells in it are background."""
    cells = canvas.reshape(SIDE, SIDE)
    rows, columns = (np.flatnonzero((cells >= FIRST_COLOUR).any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((0, 0), dtype=np.uint8)
    box = cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(np.maximum(box, FIRST_COLOUR) - FIRST_COLOUR, dtype=np.uint8)


class Recolour(Task):
    """Apply the rule that demonstrations show to one more grid, up to 8 x 8."""

    vocabulary = FIRST_COLOUR + COLOURS
    output_tokens = CELLS
    is_multi_solution = False
    family = "recolour"
    splits = ("train", *PUZZLES)
    relations = (
        *("up", "down", "left", "right", "above", "below", "before", "after", "all"),
        *("mirror", "flip", "half-turn", "transpose", "antitranspose", "quarter-turn", "three-quarter-turn"),
    )

    def __init__(self, demonstrations: int = DEMONSTRATIONS) -> None:
        if demonstrations not in SIZES:
            raise ValueError(f"recolour must have 1 to {MOST} demonstrations, got {demonstrations}")
        self.demonstrations = demonstrations
        self.name = "recolour" if demonstrations == DEMONSTRATIONS else f"recolour{demonstrations}"
        self.output_start = 2 * demonstrations * CELLS
        self.tokens = self.output_start + CELLS
        self._answers = lru_cache(maxsize=4096)(self._find_answers)

    # Sets of puzzles.

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """Held-out puzzles: `test` of rules whose parameters no training shows, `test-families` of two families that
        none shows. Groups are rules."""
        self.check_split(name)
        if name == "train":
            puzzles, answers = self.training_batch(np.random.default_rng(0), limit or PUZZLES["test"])
            return PuzzleSet(puzzles=puzzles, answers=answers)
        part = "families" if name == "test-families" else name
        count = min(PUZZLES[name], PUZZLES[name] if limit is None else limit)
        seeds = [(self.splits.index(name), index) for index in range(count)]
        # Each puzzle's own generator, and as many demonstrations as any size has: all sizes have the same puzzles.
        drawn = [self._draw(np.random.default_rng(seed), part, MOST) for seed in seeds]
        numbers: dict[HiddenRule, int] = {}
        groups = [numbers.setdefault(rule, len(numbers)) for rule, _, _ in drawn]
        return PuzzleSet(
            puzzles=np.stack([self._cut(puzzle) for _, puzzle, _ in drawn]),
            answers=np.stack([answer for _, _, answer in drawn]),
            groups=np.array(groups, dtype=np.int64),
        )

    def families(self, name: str) -> list[str]:
        """The family of each puzzle of a held-out split, in its order."""
        part = "families" if name == "test-families" else name
        seeds = [(self.splits.index(name), index) for index in range(PUZZLES[name])]
        return [draw_rule(np.random.default_rng(seed), part).family for seed in seeds]

    def split_size(self, name: str = "test") -> int | None:
        self.check_split(name)
        return PUZZLES.get(name)

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        self.check_split(split, ("train",))
        drawn = [self._draw(rng, split, self.demonstrations) for _ in range(count)]
        return np.stack([puzzle for _, puzzle, _ in drawn]), np.stack([answer for _, _, answer in drawn])

    def _draw(self, rng: np.random.Generator, part: str, demonstrations: int) -> tuple[HiddenRule, Tokens, Tokens]:
        """A rule, a puzzle of it with the test input behind its demonstrations, and the answer."""
        rule = draw_rule(rng, part)
        palette = rng.permutation(np.arange(1, COLOURS))
        test, *inputs = (rule.draw_input(rng, palette) for _ in range(1 + demonstrations))
        shown = [encode(grid) for each in inputs for grid in (each, rule.apply(each))]
        return rule, np.concatenate([*shown, encode(test)]), encode(rule.apply(test))

    def _cut(self, puzzle: Tokens) -> Tokens:
        """The puzzle with its first demonstrations alone."""
        return np.concatenate([puzzle[: self.output_start], puzzle[-CELLS:]])

    # Rules.

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        return np.asarray((puzzles >= OUTSIDE) & (puzzles < self.vocabulary))

    def grids(self, puzzle: Tokens) -> tuple[list[tuple[Grid, Grid]], Grid]:
        """A puzzle's demonstrations, input and output each, and its test input."""
        *shown, test = (decode(canvas) for canvas in puzzle.reshape(-1, CELLS))
        return list(zip(shown[::2], shown[1::2], strict=True)), test

    def _find_answers(self, content: bytes) -> tuple[bytes, ...]:
        """The answers to a puzzle by all rules that explain its demonstrations."""
        pairs, test = self.grids(np.frombuffer(content, dtype=np.uint8))
        return tuple(sorted({encode(rule.apply(test)).tobytes() for rule in explaining(pairs)}))

    def solutions(self, puzzle: Tokens) -> Tokens:
        found = self._answers(np.ascontiguousarray(puzzle, dtype=np.uint8).tobytes())
        return np.array([np.frombuffer(each, dtype=np.uint8) for each in found], dtype=np.uint8).reshape(-1, CELLS)

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Cells that differ from the nearest answer that a rule gives; all where no rule explains the
        demonstrations."""
        found = np.full(len(puzzles), CELLS, dtype=np.int64)
        for row, puzzle in enumerate(puzzles):
            right = self.solutions(puzzle)
            if len(right):
                found[row] = (right != answers[row]).sum(1).min()
        return found

    # Text and drawing.

    def parse(self, text: str) -> Tokens:
        """Demonstrations `input>output`, then the test input, parted by blanks; a grid is rows of digits 0 to 7 parted
        by `/`. Raises `PuzzleError`, also where no rule explains the demonstrations."""
        puzzle = self._parsed(text)
        if not len(self.solutions(puzzle)):
            raise PuzzleError(f"{self.name} demonstrations must follow a rule of the task, got {text.strip()[:40]!r}")
        return puzzle

    def _parsed(self, text: str) -> Tokens:
        *shown, test = text.split() or [""]
        if len(shown) != self.demonstrations or any(each.count(">") != 1 for each in shown) or ">" in test:
            raise PuzzleError(
                f"{self.name} puzzle must be {self.demonstrations} demonstrations input>output and a test input, "
                f"parted by blanks, got {text.strip()[:40]!r}"
            )
        grids = [part for each in shown for part in each.split(">")]
        return np.concatenate([encode(_read_grid(part)) for part in (*grids, test)])

    def parse_answer(self, text: str) -> Tokens:
        return encode(_read_grid(text.strip()))

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        if answer is not None:
            return _write_grid(decode(answer))
        pairs, test = self.grids(puzzle)
        return " ".join([*(">".join(map(_write_grid, pair)) for pair in pairs), _write_grid(test)])

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        """An answer's grid; or the puzzle: demonstrations side by side, inputs above their outputs, then the test
        input."""
        if answer is not None:
            return _cells(decode(answer), "filled") or [[BoardCell("no grid", "conflict")]]
        pairs, test = self.grids(puzzle)
        board: Board = []
        for first in range(0, len(pairs), ABREAST):
            band = pairs[first : first + ABREAST]
            board += _abreast([_cells(given, "given") for given, _ in band])
            board.append([BoardCell("v", "label") for _ in board[-1]])
            board += _abreast([_cells(made, "filled") for _, made in band])
            board.append([BoardCell(" ", "label") for _ in board[-1]])
        return board + _abreast([_cells(test, "given")])


def _read_grid(text: str) -> Grid:
    rows = text.split("/")
    is_grid = all(row and set(row) <= set("01234567") for row in rows) and len({len(row) for row in rows}) == 1
    if not is_grid:
        raise PuzzleError(
            f"recolour grid must be rows of digits 0 to 7, equally long, parted by '/', got {text[:40]!r}"
        )
    return np.array([[int(colour) for colour in row] for row in rows], dtype=np.uint8)


def _write_grid(grid: Grid) -> str:
    return "/".join("".join(map(str, row)) for row in grid.tolist())


def _cells(grid: Grid, kind: CellKind) -> Board:
    return [[BoardCell(str(colour) if colour else ".", kind if colour else "blank") for colour in row] for row in grid]


def _abreast(boards: list[Board]) -> Board:
    """Boards side by side, each in the middle of its canvas's rows."""
    gap = BoardCell(" ", "label")
    height, rows = max(map(len, boards)), []
    for row in range(height):
        cells: list[BoardCell] = []
        for board in boards:
            above = (height - len(board)) // 2
            inside = 0 <= row - above < len(board)
            cells += (board[row - above] if inside else [gap] * len(board[0])) + [gap]
        rows.append(cells[:-1])
    return rows
