"""Sequential tests of an adaptive width: what the first trajectories of each puzzle have answered, in arrays.

A test sees a puzzle's trajectories in the order of their ids, however they end. Its policy (`gram/sampler/width.py`)
decides whether they are enough, and how many are needed before it looks again. Nothing is done for a puzzle before all
of these have ended; then the policy is asked at every width reached at once. `native_tests.py` does the same in native
code where there is a compiler.

Shapes: `R` rows of the table of trajectories, `n` trajectories that every puzzle may have, `k` puzzles, `W` widths
`1 .. W`, `m` trajectories, `A` answer tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gram.sampler import native_tests
from gram.sampler.scheduler import RowArrays
from gram.sampler.trace import row_hashes, row_words
from gram.sampler.width import NOTHING, Bools, Floats, Rows, Standing, WidthPolicy

if TYPE_CHECKING:
    from gram.sampler.scheduler import Final, OpenShard, Trajectories

NEVER = 2**62
"""Width of a next look that will not come: of a puzzle that is decided, and where no puzzle is."""
BLOCK = 2**20
"""Comparisons of two answers made at once, about."""
_NONE, _NEITHER = np.zeros((1, 1)), np.zeros((1, 1), bool)
"""What stands where a policy reads nothing."""


class SequentialTests(RowArrays):
    """The sequential tests of all puzzles of the open shards. Rows are those of `Trajectories`: what belongs to a
    puzzle is kept in the row of its first trajectory. Every puzzle may have as many trajectories as any other."""

    width: Rows
    """Trajectories of the puzzle that had ended when it was last looked at: of these the votes are counted."""
    limit: Rows
    """How many are needed so far: the width of its next look."""
    named: Rows
    """How many have been named to the scheduler."""
    decided: Rows
    """The width at which the puzzle is decided, 0 while it is not."""
    votes: Rows
    """Trajectories up to this one that gave its answer."""
    answer: Rows
    """Place among the puzzle's trajectories of the first that gave its answer."""
    trust: Floats
    """How far the trajectory is trusted (`Standing`)."""
    best_trust: Floats
    """Highest trust in a trajectory up to this one that gave its answer."""
    is_valid: Bools
    words: NDArray[np.uint64]
    """Canonical answers, eight tokens a word."""
    hashes: NDArray[np.uint64]
    """Of the canonical answers: answers of one puzzle whose votes are counted are equal where these are."""

    def __init__(
        self, policy: WidthPolicy, *, answer_tokens: int, trusts_halt_head: bool, is_native: bool | None = None
    ) -> None:
        """`trusts_halt_head` takes the halt head's probability for the predicted accuracy, where the LPRM has none.
        `is_native` takes native code or numpy (None: native where it can be built)."""
        whole = ("width", "limit", "named", "decided", "votes", "answer")
        super().__init__(
            **dict.fromkeys(whole, (np.int64,)),
            **dict.fromkeys(("trust", "best_trust"), (np.float64,)),
            is_valid=(bool,),
            words=(np.uint64, -(-answer_tokens // 8)),
            hashes=(np.uint64,),
        )
        self.policy, self.trusts_halt_head = policy, trusts_halt_head
        self.columns = 0
        """Trajectories that a puzzle may have."""
        is_native = native_tests.obstacle() is None if is_native is None else is_native
        self.native = native_tests.NativeTests(self) if is_native else None

    def open(self, opened: OpenShard, table: Trajectories) -> Rows:
        """Starts the tests of a shard of the table; returns the trajectories that are needed at once, in the order in
        which they wait."""
        before = len(self.limit)
        self.grow(len(table.id))
        self.limit[before:] = NEVER
        if self.columns not in (0, opened.shard.trajectories):
            raise ValueError(f"shards must have {self.columns} trajectories, got {opened.shard.trajectories}")
        self.columns = opened.shard.trajectories
        if self.native is not None and len(self.limit) > before:
            self.native.connect(table)
        firsts = opened.firsts
        for kept in (self.width, self.named, self.decided):
            kept[firsts] = 0
        self.limit[firsts] = np.minimum(self.policy.next_look(NOTHING), self.columns)
        return self.in_turn(self._name(firsts), table)

    def in_turn(self, rows: Rows, table: Trajectories) -> Rows:
        """Trajectories in the order in which they wait: by shard, and by their ids there, or where they run side by
        side by the first id of each one's stage."""
        firsts = table.first[rows]
        turn = self.width[firsts] if self.policy.stops_at_halt else rows - firsts
        return np.asarray(rows[np.lexsort((rows, turn, table.shard[rows]))])

    def next_speculative(self, count: int, table: Trajectories) -> Rows:
        """Up to `count` trajectories that may come to be needed, of the puzzles first that have the fewest, and of
        these shard after shard."""
        if self.native is not None:
            return self.native.next_speculative(count, table)
        columns = self.columns
        firsts = (self.named[: table.used : columns] < columns).nonzero()[0] * columns
        chosen = []
        while count > 0 and len(firsts):
            named = self.named[firsts]
            order = np.lexsort((named, table.shard[firsts]))[:count]
            firsts, named = firsts[order], named[order]
            self.named[firsts] = named + 1
            chosen.append(firsts + named)
            count -= len(firsts)
            firsts = firsts[named + 1 < columns]
        return np.concatenate(chosen) if chosen else firsts

    def end(self, rows: Rows, final: Final, table: Trajectories) -> tuple[Rows, Rows]:
        """Looks at trajectories that have ended. Returns the puzzles that this decides, by the rows of their first
        trajectories, and the trajectories that have come to be needed, in the order in which they wait."""
        self._keep(rows, final, table)
        if self.native is not None:
            return self.native.end(table)
        count = self.columns
        has_ended = table.has_ended[: table.used].reshape(-1, count)
        seen = has_ended.argmin(1)
        seen[(seen == 0) & has_ended[:, 0]] = count
        puzzles = (seen >= self.limit[: table.used : count]).nonzero()[0]
        if not len(puzzles):
            return puzzles, puzzles
        firsts, seen = puzzles * count, seen[puzzles]
        now = self.standing(puzzles, seen, table)
        # Where the policy does not look it cannot decide, so the first width at which it would is that of its look.
        ends = (self.policy.decides(now) & self.policy.looks(now.width)) | (now.width == count)
        ends &= now.width <= seen[:, None]
        is_over, width = ends.any(1), ends.argmax(1) + 1
        self.width[firsts] = seen
        decided, open_ = firsts[is_over], (~is_over).nonzero()[0]
        self.decided[decided], self.limit[decided], self.named[decided] = width[is_over], NEVER, count
        look = np.minimum(self.policy.next_look(now), count)
        more, seen = firsts[open_], seen[open_]
        self.limit[more] = look[open_ if len(look) > 1 else 0, seen - 1]
        return decided, self.in_turn(self._name(more), table)

    def standing(self, puzzles: Rows, seen: Rows, table: Trajectories) -> Standing:
        """How the tests of some puzzles, by their place in the table `[k]`, stand at every width up to the most that
        are `seen [k]` of one: `[k, W]`, the widths themselves `[1, W]`. Behind what is seen of its puzzle it means
        nothing, nor does what the policy does not read."""
        policy, widest = self.policy, int(seen.max())
        width = np.arange(1, widest + 1)[None]
        first = second = width
        leader_trust = most_trust = _NONE
        is_any_valid = _NEITHER

        def of(array: NDArray[Any]) -> NDArray[Any]:
            return self._by_puzzle(array).take(puzzles, 0)[:, :widest]

        if policy.reads_votes:
            self._count(puzzles, seen, widest, table)
            votes = of(self.votes)
            first = np.maximum.accumulate(votes, axis=1)
            votes[:, 1:] *= votes[:, 1:] <= first[:, :-1]  # what is no new lead
            votes[:, 0] = 0
            second = np.maximum.accumulate(votes, axis=1)
            if policy.reads_trust:
                # Of answers with equal votes the first to appear leads; it stands as where it had its last vote.
                key = of(self.votes) * self.columns + (self.columns - 1 - of(self.answer))
                last = np.where(key == np.maximum.accumulate(key, axis=1), width - 1, 0)
                last = np.maximum.accumulate(last, axis=1)
                leader_trust = np.take_along_axis(of(self.best_trust), last, axis=1)
        if policy.reads_trust:
            most_trust = np.maximum.accumulate(of(self.trust), axis=1)
        if policy.needs_verifier:
            is_any_valid = np.logical_or.accumulate(of(self.is_valid), axis=1)
        return Standing(width, first, second, leader_trust, most_trust, is_any_valid)

    def _keep(self, rows: Rows, final: Final, table: Trajectories) -> None:
        """Keeps of trajectories that have ended what the policy reads."""
        policy = self.policy
        if policy.reads_sparsity:
            assert final.sparsity is not None
            self.trust[rows] = -final.sparsity
        elif policy.stops_at_halt:
            self.trust[rows] = final.is_halted
        elif policy.reads_trust:
            halt, lprm = final.halt.astype(np.float64), final.lprm.astype(np.float64)
            self.trust[rows] = 1 / (1 + np.exp(-halt)) if self.trusts_halt_head else lprm
        if policy.needs_verifier:
            self.is_valid[rows] = table.task.verify(table.puzzles[table.puzzle[rows]], final.answers)

    def _count(self, puzzles: Rows, seen: Rows, widest: int, table: Trajectories) -> None:
        """Counts the votes of puzzles' trajectories up to those `seen`, of `widest` at most."""
        firsts = puzzles * self.columns
        counted = self.width[firsts]
        new = seen - counted
        puzzles, rows = puzzles.repeat(new), ranges(firsts + counted, new)
        block = max(1, BLOCK // self.columns)
        for first in range(0, len(rows), block):
            part = slice(first, first + block)
            self._count_rows(rows[part], puzzles[part], widest, table)

    def _count_rows(self, rows: Rows, puzzles: Rows, widest: int, table: Trajectories) -> None:
        words = row_words(table.task.canonical(table.answers.take(rows, 0)))
        hashes = row_hashes(words)
        self.words[rows] = words
        firsts = puzzles * self.columns
        while True:
            self.hashes[rows] = hashes
            is_same = self._by_puzzle(self.hashes).take(puzzles, 0)[:, :widest] == hashes[:, None]
            answer = is_same.argmax(1)
            is_other = self.words.take(firsts + answer, 0) != words
            if not is_other.any():
                break
            is_other = is_other.any(1)  # of one hash with another answer
            hashes[is_other] = hashes[is_other] * np.uint64(6364136223846793005) + np.uint64(1)
        is_same &= np.arange(widest) <= (rows - firsts)[:, None]
        self.votes[rows], self.answer[rows] = is_same.sum(1), answer
        if self.policy.reads_trust:
            trust = self._by_puzzle(self.trust).take(puzzles, 0)[:, :widest]
            self.best_trust[rows] = np.where(is_same, trust, -np.inf).max(1)

    def _by_puzzle(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of rows, one puzzle each, `[R / n, n]`."""
        return array[: len(array) // self.columns * self.columns].reshape(-1, self.columns)

    def _name(self, firsts: Rows) -> Rows:
        """The trajectories of these puzzles that are needed and not named yet."""
        named = self.named[firsts]
        more = np.maximum(self.limit[firsts] - named, 0)
        self.named[firsts] = named + more
        return ranges(firsts + named, more)


def ranges(starts: Rows, counts: Rows) -> Rows:
    """`start, start + 1, ...` of each of `starts [k]`, as many as `counts [k]` says, one behind the other."""
    ends = counts.cumsum()
    rows: Rows = (starts - ends + counts).repeat(counts)
    rows += np.arange(len(rows))
    return rows
