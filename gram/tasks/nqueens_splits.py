"""Which N-Queens puzzles train, which choose and which test, so that no test puzzle is a training board turned round.

Shapes: `n` board side, `L = n * n` cells, `P` boards, `S` solutions of the empty board, `O` orbits.

From 8x8 on, orbits of solutions under the eight symmetries of the board are dealt to four folds. Each fold is the test
of one rotation, so that every orbit is tested once. A puzzle belongs to a part (training, validation, test) where all
its solutions lie in orbits of that part; a puzzle whose solutions lie in several parts is dropped. Up to 7x7 there are
at most six orbits: there the unit is the canonical input, in one fold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gram.tasks.puzzle_sets import PARTS, TEST, VALIDATION, dealt
from gram.tasks.views import square_cells

FOLDS = 4
FEWEST_ORBITS = 12
"""Of 8x8; smaller boards have at most 6."""
SEED = 347
"""Of 0 to 399, the seed whose poorest 8x8 fold has the most test puzzles with several solutions."""
VALIDATION_ORBITS = 1 / 12
"""Share of the orbits that validates a fold."""
TEST_INPUTS, VALIDATION_INPUTS = 0.15, 0.1
"""Shares of the canonical inputs, on boards with too few orbits."""


def symmetry_weights(n: int) -> NDArray[np.int64]:
    """Place values `[8, L]` of each cell under each symmetry of the board: their sum over the queens of a board that
    has at most one in a line is a number of its own for every board."""
    row, column = np.divmod(square_cells(n), n)
    return np.asarray((column + 1) * (n + 1) ** row, dtype=np.int64)


def canonical_keys(queens: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    """A number for each board `[P, L]` that exactly its rotations and reflections share, `[P]`."""
    return np.asarray((queens.astype(np.int64) @ symmetry_weights(n).T).min(axis=1))


def classes(queens: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    """Class of each board `[P, L]` under the symmetries, numbered from 0 among these boards, `[P]`."""
    return np.unique(canonical_keys(queens, n), return_inverse=True)[1].reshape(-1).astype(np.int64)


def has_folds(orbits: int) -> bool:
    """Whether there are enough orbits of solutions to split by."""
    return orbits >= FEWEST_ORBITS


def split_names(orbits: int) -> tuple[str, ...]:
    """Names of the parts of all folds; fold 0 has no suffix."""
    return tuple(
        part if fold == 0 else f"{part}-fold{fold}"
        for fold in range(FOLDS if has_folds(orbits) else 1)
        for part in PARTS
    )


def part_of_each(count: int, name: str) -> NDArray[np.int64]:
    """Index in `PARTS` of each of `count` orbits in the fold that split `name` is of, `[O]`."""
    fold = int(name.partition("-fold")[2] or 0)
    blocks = np.array_split(np.random.default_rng(SEED).permutation(count), FOLDS)
    parts = np.zeros(count, dtype=np.int64)
    parts[blocks[fold]] = PARTS.index(TEST)
    # From the block that is tested next: training keeps what the fold's own test leaves it but these.
    chosen = blocks[(fold + 1) % FOLDS][: max(1, round(VALIDATION_ORBITS * count))]
    parts[chosen] = PARTS.index(VALIDATION)
    return parts


def part_of_inputs(input_classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index in `PARTS` of each input, from its class `[P]`: for boards with too few orbits."""
    return dealt(int(input_classes.max()) + 1, SEED, TEST_INPUTS, VALIDATION_INPUTS)[input_classes]


def pure_members(
    name: str, parts: NDArray[np.int64], inputs: NDArray[np.int64], completions: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which inputs belong to split `name`, `[P]`: those whose completions all lie in its part.

    `parts` is the part of each (solution, removed rows) pair, `inputs` the input that it leaves, `completions` how many
    pairs leave each input.
    """
    wanted = parts == PARTS.index(name.partition("-fold")[0])
    return np.asarray(np.bincount(inputs, weights=wanted, minlength=len(completions)) == completions)
