"""ARC-AGI test inputs as tokens (`gram/tasks/arc_grids.py`): a grid at the top left of a 30x30 canvas.

Shapes: `L = A = 900` tokens row by row, `P` puzzles.

What this is not: ARC has no rules to check, so there is no verifier. `verify` is a checker: equality with the outputs
of the set that this task has loaded last; it refuses puzzles of any other origin. There are no puzzles of its own, no
generator. A model sees one grid, not the demonstrations. One with a table of identities knows the task by its name.

ARC is answered by many views of a test, their predictions turned back, a vote and two attempts. A view is a symmetry of
the square and a renaming of the colours 1 .. 9 (black stays). Either the sampler draws them (`--views random`), or a
data set has them, each under a name that a model may know (`gram eval arc --data DIR`, `gram/tasks/arc_folder.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gram.tasks.arc_files import COLOURS, SIDE, Grid, Pair, checked_grid, read_tasks
from gram.tasks.arc_folder import is_arc_folder
from gram.tasks.arc_grids import FIRST_COLOUR, View, decode, encode, grid_sizes, random_view
from gram.tasks.protocol import Board, BoardCell, CellKind, PuzzleError, PuzzleSet, Task, Tokens
from gram.tasks.views import SYMMETRIES, TRANSPOSING, Views, chosen, permutations, same_values, turn

log = logging.getLogger(__name__)


class Arc(Task):
    """The task `arc`."""

    name = "arc"
    summary = "ARC-AGI outputs from your files (JSON); checked against the stored output, never by rules"
    vocabulary = FIRST_COLOUR + COLOURS
    tokens = output_tokens = SIDE * SIDE
    is_multi_solution = False
    has_givens = False  # a puzzle's tokens are its input's, not part of the output
    symmetry_words = COLOURS
    relations = ("up", "down", "left", "right", "row", "column", "all")

    def __init__(self) -> None:
        self._known: dict[bytes, set[bytes]] = {}
        """Outputs of each input of the set loaded last."""

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """Raises `ValueError`: there are no puzzles but those of `load`."""
        self.check_split(name)
        raise ValueError("arc puzzles must come from your files (ARC JSON, --puzzles), got none")

    def split_size(self, name: str = "test") -> int | None:
        self.check_split(name)
        return 0

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        """Raises `ValueError`, as `split`."""
        self.split(split)
        raise AssertionError

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        return np.asarray(puzzles < self.vocabulary)

    def _outputs(self, puzzle: Tokens) -> set[bytes]:
        found = self._known.get(puzzle.tobytes())
        if not found:
            raise PuzzleError(
                "arc puzzle must be of the file loaded last and have its output there to be checked, got "
                f"{self.format(puzzle)[:40]!r}"
            )
        return found

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Cells that differ from the stored output, the nearest where equal inputs have several. Raises `PuzzleError`
        where none is known."""
        plain = self.canonical(answers)
        found = np.zeros(len(puzzles), dtype=np.int64)
        for row, puzzle in enumerate(puzzles):
            outputs = (np.frombuffer(output, dtype=np.uint8) for output in self._outputs(puzzle))
            found[row] = min(int((output != plain[row]).sum()) for output in outputs)
        return found

    def canonical(self, answers: Tokens) -> Tokens:
        """Each answer's grid alone, written anew: what lies outside its rectangle means nothing."""
        flat = answers.reshape(-1, self.tokens)
        plain: Tokens = np.array([encode(decode(answer)) for answer in flat], dtype=np.uint8).reshape(answers.shape)
        return plain

    def solutions(self, puzzle: Tokens) -> Tokens:
        """The stored outputs. Raises `PuzzleError` where none is known."""
        return np.stack([np.frombuffer(output, dtype=np.uint8) for output in sorted(self._outputs(puzzle))])

    def count_solutions(self, puzzle: Tokens) -> int:
        """Number of stored outputs. Raises `PuzzleError` where none is known."""
        return len(self._outputs(puzzle))

    def parse(self, text: str) -> Tokens:
        """Rows of digits, parted by `/` or line breaks: `012/345`."""
        rows = [row.strip() for row in text.strip().replace("\n", "/").split("/")]
        if not text.strip() or any(not (row.isascii() and row.isdigit()) for row in rows):
            raise PuzzleError(f"arc puzzle must be rows of digits parted by '/', got {text[:40]!r}")
        return encode(checked_grid([[int(digit) for digit in row] for row in rows], "arc puzzle"))

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        grid = decode(puzzle if answer is None else answer)
        return "/".join("".join(map(str, row)) for row in grid.tolist())

    def load(self, path: Path | str) -> PuzzleSet:
        """The test inputs of a file or folder that `read_tasks` reads, and their outputs where all are known.

        Outputs are remembered for `verify` in place of those of an earlier set. Groups are tasks: tests of one stand
        and fall together. Raises `PuzzleError`, also for a data set of views, whose tests are not these.
        """
        if is_arc_folder(Path(path)):
            raise PuzzleError(
                f"puzzles must be ARC's JSON files, got the data set of views {path} (gram eval arc --data)"
            )
        pairs = [(index, pair) for index, task in enumerate(read_tasks(path)) for pair in task.test]
        return self._remember(pairs, path, "test input")

    def load_training(self, path: Path | str) -> PuzzleSet:
        """The demonstrations of such a file or folder, grouped by task; its tests stay out of training."""
        pairs = [(index, pair) for index, task in enumerate(read_tasks(path)) for pair in task.train]
        return self._remember(pairs, path, "demonstration")

    def remember(self, puzzles: Tokens, answers: Tokens) -> None:
        """Takes pairs `[P, 900]` as what `verify` knows, in place of those of an earlier set."""
        self._known = {}
        for puzzle, answer in zip(puzzles, self.canonical(answers), strict=True):
            self._known.setdefault(puzzle.tobytes(), set()).add(answer.tobytes())

    def _remember(self, pairs: list[tuple[int, Pair]], path: Path | str, what: str) -> PuzzleSet:
        """Pairs of (task number, example) as tokens; outputs are remembered. Raises `PuzzleError` for none."""
        if not pairs:
            raise PuzzleError(f"{path}: must hold at least one {what}, got none")
        puzzles = np.stack([encode(pair.input) for _, pair in pairs])
        outputs = [encode(pair.output) for _, pair in pairs if pair.output is not None]
        if 0 < len(outputs) < len(pairs):
            log.warning("%s: %d of %d puzzles have no output", path, len(pairs) - len(outputs), len(pairs))
        self._known = {}
        for puzzle, (_, pair) in zip(puzzles, pairs, strict=True):
            if pair.output is not None:
                self._known.setdefault(puzzle.tobytes(), set()).add(encode(pair.output).tobytes())
        return PuzzleSet(
            puzzles=puzzles,
            answers=np.stack(outputs) if len(outputs) == len(pairs) else None,
            groups=_joined_groups([index for index, _ in pairs], puzzles),
        )

    def symmetry(self, puzzles: Tokens, words: NDArray[np.uint32]) -> Views:
        """Ten words: one of the eight symmetries of the square, then the colours 1 .. 9 in the order of their words.

        Where a puzzle is no grid at the top left, its view is the puzzle as it is: its answer could not be turned back.
        """
        sizes = grid_sizes(puzzles)
        is_grid = np.array([np.array_equal(encode(decode(puzzle)), puzzle) for puzzle in puzzles], dtype=bool)
        words = np.where(is_grid[:, None], words, np.uint32(0))
        numbers = chosen(words[:, 0], SYMMETRIES)
        values = same_values(len(puzzles), self.vocabulary)
        values[:, FIRST_COLOUR + 1 :] = FIRST_COLOUR + 1 + permutations(words[:, 1:])
        positions = np.empty((len(puzzles), self.tokens), dtype=np.int64)
        for row, ((height, width), number) in enumerate(zip(sizes.tolist(), numbers.tolist(), strict=True)):
            positions[row] = _turned_cells(height, width, number)
        return ArcViews(positions, values, symmetry=numbers)

    def augment(self, rng: np.random.Generator, puzzles: Tokens, answers: Tokens) -> tuple[Tokens, Tokens]:
        """Each pair `[P, 900]` turned by a random symmetry of the square, its colours but black renamed."""
        turned = np.stack([puzzles, answers])
        for pair in turned.swapaxes(0, 1):
            view = random_view(rng)
            pair[:] = [encode(view.apply(decode(tokens))) for tokens in pair]
        return turned[0], turned[1]

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        shown = puzzle if answer is None else answer
        kind: CellKind = "given" if answer is None else "filled"
        grid = decode(shown)
        if not grid.size:
            return [[BoardCell("no grid", "conflict")]]
        return [[BoardCell(str(colour), kind) for colour in row] for row in grid.tolist()]


def _turned_cells(height: int, width: int, symmetry: int) -> NDArray[np.int64]:
    """Cell that stands at each place of the canvas where its grid of that size is turned, `[900]`. End tokens, all
    equal, keep beside the grid."""
    cells = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    turned = turn(cells[:height, :width], symmetry)
    canvas = (cells.T if symmetry in TRANSPOSING else cells).copy()
    canvas[: turned.shape[0], : turned.shape[1]] = turned
    return np.asarray(canvas.reshape(-1), dtype=np.int64)


def _joined_groups(tasks: list[int], puzzles: Tokens) -> NDArray[np.int64]:
    """Cluster of each puzzle `[P, L]`: those of one task, and all tasks that share an equal puzzle, have one number."""
    joined = {task: task for task in tasks}

    def first_of(task: int) -> int:
        while joined[task] != task:
            task = joined[task]
        return task

    seen: dict[bytes, int] = {}
    for task, puzzle in zip(tasks, puzzles, strict=True):
        joined[first_of(task)] = first_of(seen.setdefault(puzzle.tobytes(), task))
    return np.array([first_of(task) for task in tasks], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ArcViews(Views):
    """Views of canvases. An answer's grid may have any size, so it is turned back by its own: `positions` are those of
    the puzzle alone."""

    symmetry: NDArray[np.int64] = field(kw_only=True)
    """Number of each puzzle's symmetry of the square, `[P]`."""

    def apply_to_answers(self, answers: Tokens) -> Tokens:
        """Each answer's grid turned, written anew."""
        return self._turned(answers, View.apply)

    def undo(self, answers: Tokens) -> Tokens:
        """Each answer's grid turned back, written anew: what lies outside its rectangle means nothing (`canonical`).
        Answers to puzzles as they are stay as they are."""
        return self._turned(answers, View.undo)

    def _turned(self, answers: Tokens, turned: Callable[[View, Grid], Grid]) -> Tokens:
        found = answers.copy()
        for row, answer in enumerate(answers):
            view = View(int(self.symmetry[row]), tuple((self.values[row, FIRST_COLOUR:] - FIRST_COLOUR).tolist()))
            if view != View():
                found[row] = encode(turned(view, decode(answer)))
        return found
