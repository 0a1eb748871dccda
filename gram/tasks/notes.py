"""Notes: what a lattice may write down beside the tokens of an answer.

Some answers follow from facts that are no part of them: which cells of a maze are on a shortest path follows from how
far each is from the start. Where a task has notes, a lattice's values are symbols of an answer's token together with
such a fact, and it is taught to find both. The answer is what is left when the notes are dropped. Intermediate results
as targets are the hints of neural algorithmic reasoning (CLRS, 2205.15659).

Shapes: `P` puzzles, `L` puzzle tokens, `A` answer tokens, `S` symbols, the task's vocabulary first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.uint8]
NEVER = np.iinfo(np.int32).max
"""Step at which the solution's symbols are ruled out."""


class Notes(ABC):
    """The notes of one task. A puzzle has one solution with notes, which `write` gives."""

    plain: Symbols
    """The answer token that each symbol stands for, `[S]`."""
    values: tuple[int, ...]
    """Symbols that an answer token may have where the puzzle leaves it open."""

    @abstractmethod
    def write(self, puzzles: NDArray[np.uint8]) -> Symbols:
        """The solution of each puzzle `[P, L]` with notes, `[P, A]`."""

    @abstractmethod
    def candidates(self, puzzles: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """As `Task.candidates`, of symbols: `[P, A, S]`."""

    @abstractmethod
    def deductions(self, puzzles: NDArray[np.uint8], noted: Symbols, rng: np.random.Generator) -> NDArray[np.int32]:
        """The step at which each symbol of each token is ruled out, `[P, A, S]`, where every step deduces what follows
        from the neighbours' symbols of the step before; `NEVER` of the solution, 0 of what the puzzle rules out. Where
        a guess is needed, `rng` makes it, and the step that it is made in is left out of every token's steps."""

    def astray(
        self, puzzle: NDArray[np.uint8], noted: Symbols, rng: np.random.Generator
    ) -> tuple[Symbols, NDArray[np.int64]] | None:
        """A whole answer with notes `[A]` that is wrong, though nearly every token agrees with its neighbours, and the
        tokens that do not: how a model goes wrong that overlooks one thing. None where the puzzle `[L]` has none."""
        return None
