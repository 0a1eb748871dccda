"""Sequential tests of an adaptive width: what the first trajectories of each puzzle have answered, in arrays.

A test sees a puzzle's trajectories in the order of their ids, however they end. Its policy (`gram/sampler/width.py`)
decides whether they are enough, and how many are needed before it looks again.

Shapes: `R` rows of the table of trajectories, `k` puzzles, `A` answer tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gram.sampler.scheduler import RowArrays
from gram.sampler.trace import row_hashes
from gram.sampler.width import Bools, Floats, Rows, Standing, WidthPolicy
from gram.tasks.protocol import Tokens

if TYPE_CHECKING:
    from gram.sampler.scheduler import Final, OpenShard, Trajectories


class SequentialTests(RowArrays):
    """The sequential tests of all puzzles of the open shards. Rows are those of `Trajectories`: what belongs to a
    puzzle is kept in the row of its first trajectory, what belongs to one of its answers where that first appeared."""

    width: Rows
    first: Rows
    second: Rows
    leader: Rows
    """Row in which the leading answer first appeared."""
    most_trust: Floats
    is_any_valid: Bools
    columns: Rows
    """Trajectories that the puzzle may have."""
    limit: Rows
    """Of these, how many are needed so far."""
    named: Rows
    """Of these, how many have been named to the scheduler."""
    decided: Rows
    """The width at which the puzzle is decided, 0 while it is not."""
    votes: Rows
    """Trajectories that gave the answer."""
    trust: Floats
    """Highest trust in a trajectory that gave the answer (`Standing`); before its turn, that in the trajectory."""
    is_valid: Bools
    forms: Tokens
    """Canonical answers, `[R, A]`."""
    hashes: NDArray[np.uint64]
    """Of the canonical answers: rows are compared in full only where these are equal."""

    def __init__(self, policy: WidthPolicy, *, answer_tokens: int, trusts_halt_head: bool) -> None:
        """`trusts_halt_head` takes the halt head's probability for the predicted accuracy, where the LPRM has none."""
        of_puzzles = ("width", "first", "second", "leader", "columns", "limit", "named", "decided", "votes")
        super().__init__(
            **dict.fromkeys(of_puzzles, (np.int64,)),
            **dict.fromkeys(("trust", "most_trust"), (np.float64,)),
            **dict.fromkeys(("is_valid", "is_any_valid"), (bool,)),
            forms=(np.uint8, answer_tokens),
            hashes=(np.uint64,),
        )
        self.policy, self.trusts_halt_head = policy, trusts_halt_head

    def open(self, opened: OpenShard, rows: int) -> Rows:
        """Starts the tests of a shard in a table of so many rows; returns the trajectories that are needed at once."""
        self.grow(rows)
        for name in ("width", "first", "second", "decided", "votes", "named", "is_any_valid"):
            getattr(self, name)[opened.rows] = 0
        self.most_trust[opened.rows] = -np.inf
        firsts = opened.firsts
        self.leader[firsts], self.columns[firsts] = firsts, opened.shard.trajectories
        self._look_on(firsts)
        return self._name(firsts)

    def may_need_more(self, opened: OpenShard) -> Rows:
        """The puzzles of a shard, by the rows of their first trajectories, that may come to need another one, those
        with the fewest first."""
        firsts = opened.firsts
        firsts = firsts[(self.decided[firsts] == 0) & (self.named[firsts] < self.columns[firsts])]
        return np.asarray(firsts[np.argsort(self.named[firsts], kind="stable")])

    def take_next(self, firsts: Rows) -> Rows:
        """The next trajectory of each of these puzzles."""
        rows = firsts + self.named[firsts]
        self.named[firsts] += 1
        return np.asarray(rows)

    def end(self, rows: Rows, final: Final, table: Trajectories) -> tuple[Rows, Rows]:
        """Looks at trajectories that have ended. Returns the puzzles that this decides, by the rows of their first
        trajectories, and the trajectories that have come to be needed."""
        canonical = table.task.canonical(final.answers)
        self.forms[rows], self.hashes[rows] = canonical, row_hashes(canonical)
        halt, lprm = final.halt.astype(np.float64), final.lprm.astype(np.float64)
        self.trust[rows] = 1 / (1 + np.exp(-halt)) if self.trusts_halt_head else lprm
        if self.policy.reads_sparsity:
            assert final.sparsity is not None
            self.trust[rows] = -final.sparsity
        if self.policy.needs_verifier:
            self.is_valid[rows] = table.task.verify(table.puzzles[table.puzzle[rows]], final.answers)
        firsts, decided, more = np.unique(table.first[rows]), [rows[:0]], [rows[:0]]
        while len(firsts := self._with_next(firsts, table.has_ended)):
            self._add(firsts)
            width, columns, limit = self.width[firsts], self.columns[firsts], self.limit[firsts]
            is_over = width == columns
            looks = np.flatnonzero((width == limit) & ~is_over)
            if len(looks):
                is_over[looks] = self.policy.decides(self.standing(firsts[looks]))
                looks = looks[~is_over[looks]]
                self._look_on(firsts[looks])
                more.append(self._name(firsts[looks]))
            decided.append(firsts[is_over])
            self.decided[firsts[is_over]] = width[is_over]
            firsts = firsts[~is_over]
        over, named = np.concatenate(decided), np.concatenate(more)
        if len(over) and len(named):
            named = named[self.decided[table.first[named]] == 0]
        return over, named

    def standing(self, firsts: Rows) -> Standing:
        """How the tests of some puzzles stand."""
        return Standing(
            self.width[firsts],
            self.first[firsts],
            self.second[firsts],
            self.trust[self.leader[firsts]],
            self.most_trust[firsts],
            self.is_any_valid[firsts],
        )

    def _with_next(self, firsts: Rows, has_ended: Bools) -> Rows:
        """Those of undecided puzzles whose next trajectory, in the order of their ids, has ended."""
        return np.asarray(firsts[has_ended[firsts + self.width[firsts]]])

    def _add(self, firsts: Rows) -> None:
        """Adds the next trajectory of each of these puzzles to its test."""
        width = self.width[firsts]
        rows = firsts + width
        before = firsts[:, None] + np.arange(int(width.max()) + 1)
        before = np.minimum(before, rows[:, None])
        answer = firsts + (self.hashes[before] == self.hashes[rows, None]).argmax(1)
        if not np.array_equal(self.forms[answer], self.forms[rows]):  # two answers of one hash
            answer = firsts + (self.forms[before] == self.forms[rows, None]).all(2).argmax(1)
        self.votes[answer] += 1
        trust, is_first = self.trust[rows], answer == rows
        self.trust[answer] = np.where(is_first, trust, np.maximum(self.trust[answer], trust))
        self.most_trust[firsts] = np.maximum(self.most_trust[firsts], trust)
        self.is_any_valid[firsts] |= self.is_valid[rows]
        votes, first = self.votes[answer], self.first[firsts]
        is_ahead = votes > first
        self.second[firsts] = np.where(is_ahead, self.second[firsts], np.maximum(self.second[firsts], votes))
        leader = self.leader[firsts]
        self.leader[firsts] = np.where(is_ahead, answer, np.where(votes == first, np.minimum(leader, answer), leader))
        self.first[firsts] = np.maximum(first, votes)
        self.width[firsts] = width + 1

    def _look_on(self, firsts: Rows) -> None:
        self.limit[firsts] = np.minimum(self.policy.next_look(self.standing(firsts)), self.columns[firsts])

    def _name(self, firsts: Rows) -> Rows:
        """The trajectories of these puzzles that are needed and not named yet."""
        named = self.named[firsts]
        counts = np.maximum(self.limit[firsts] - named, 0)
        self.named[firsts] = named + counts
        starts = np.cumsum(counts) - counts
        return np.asarray(np.repeat(firsts + named - starts, counts) + np.arange(int(counts.sum())))
