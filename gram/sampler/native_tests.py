"""Sequential tests in native code: `sequential_tests.cpp` on the arrays of `SequentialTests`.

That does the same in numpy, where a look at a few puzzles is some hundred operations on a handful of numbers each.
Shapes are those of `sequential_tests.py`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.kernels.compiled import cache as compile_cache
from gram.kernels.native.build import library
from gram.sampler.trace import row_words
from gram.sampler.width import CRITERIA, NOTHING, Rows, WidthPolicy

if TYPE_CHECKING:
    from gram.sampler.scheduler import Trajectories
    from gram.sampler.sequential_tests import SequentialTests

SOURCE = Path(__file__).with_name("sequential_tests.cpp")
OF_TESTS = ("width", "limit", "named", "decided", "votes", "answer", "trust", "best_trust", "words", "hashes")
"""Arrays of `SequentialTests` that the code reads and writes, in its order."""


class PolicyTables(NamedTuple):
    """A policy as the code reads it: what it compares, and tables by width or votes, `0 .. n`."""

    threshold: NDArray[np.float64]
    enough: Rows
    """Votes with which an answer is decided, by those of the second."""
    next_look: Rows
    """The next width at which it looks; of `Decided` this follows from the votes."""
    looks: NDArray[np.bool_]

    @classmethod
    def of(cls, policy: WidthPolicy, columns: int) -> PolicyTables:
        """That of a policy for so many trajectories of a puzzle."""
        widths = np.arange(columns + 1)[None]
        now = NOTHING._replace(width=widths, first=widths, second=widths)
        return cls(
            np.array([policy.threshold]),
            policy.enough(widths[0]),
            policy.next_look(now)[0],
            np.broadcast_to(policy.looks(widths), widths.shape)[0].copy(),
        )


@cache
def obstacle() -> str | None:
    """Why the tests run in numpy here, in a few words, or None."""
    if (found := compile_cache.obstacle()) is not None:
        return found  # compiling anew in every process would cost more than it saves
    try:
        library(SOURCE, ())
    except RuntimeError as error:
        return str(error)
    return None


class NativeTests:
    """Calls the code on the arrays of some tests. `connect` comes first, and whenever they have grown."""

    def __init__(self, tests: SequentialTests) -> None:
        self.tests, self.reads_votes = tests, tests.policy.reads_votes
        self.found = np.zeros(2, np.int64)
        """How many puzzles and rows a call has found."""
        code, address, size = library(SOURCE, ()), ctypes.c_void_p, ctypes.c_int64
        self.ready = ctypes.CFUNCTYPE(None, address, size, address)(("ready", code))
        self.look = ctypes.CFUNCTYPE(None, address, size, size, address)(("look", code))
        self.speculate = ctypes.CFUNCTYPE(None, address, size, size, address)(("speculate", code))

    def connect(self, table: Trajectories) -> None:
        """Takes the arrays where they are now."""
        tests, columns = self.tests, self.tests.columns
        of_policy = PolicyTables.of(tests.policy, columns)
        self.puzzles, self.rows = np.zeros((2, len(tests.limit)), np.int64)
        of_tests = (getattr(tests, name) for name in OF_TESTS)
        arrays = (*of_policy, table.has_ended, tests.is_valid, *of_tests, table.shard, self.puzzles, self.rows)
        policy = tests.policy
        sizes = columns, tests.words.shape[1], CRITERIA.index(policy.criterion), policy.stops_at_halt
        self.fields = np.array([*sizes, *(each.ctypes.data for each in arrays)], np.int64)
        """What the code calls `Tests`."""
        self.arrays = arrays
        """Kept while it has their addresses."""
        self._where = self.fields.ctypes.data, self.found.ctypes.data

    def end(self, table: Trajectories) -> tuple[Rows, Rows]:
        """As `SequentialTests.end`, once what the policy reads beside votes is kept."""
        fields, found = self._where
        self.ready(fields, table.used, found)
        puzzles, rows = self.found.tolist()
        if not puzzles:
            return self.puzzles[:0], self.rows[:0]
        if self.reads_votes:
            new = self.rows[:rows]
            self.tests.words[new] = row_words(table.task.canonical(table.answers.take(new, 0)))
        self.look(fields, puzzles, rows, found)
        decided, rows = self.found.tolist()
        return self.puzzles[:decided].copy(), self.rows[:rows].copy()

    def next_speculative(self, count: int, table: Trajectories) -> Rows:
        """As `SequentialTests.next_speculative`."""
        fields, found = self._where
        self.speculate(fields, table.used, count, found)
        return self.rows[: int(self.found[0])].copy()
