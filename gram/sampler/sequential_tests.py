"""Sequential tests of an adaptive width: what the first trajectories of each puzzle have answered, in arrays.

A test sees a puzzle's trajectories in the order of their ids, however they end. Its policy (`gram/sampler/width.py`)
decides whether they are enough, and how many are needed before it looks again. Nothing is done for a puzzle before all
of these have ended; then the policy is asked at every width reached at once.

Shapes: `R` rows of the table of trajectories, `n` trajectories that every puzzle may have, `k` puzzles, `W` widths
`1 .. W`, `m` trajectories, `A` answer tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gram.sampler.scheduler import RowArrays
from gram.sampler.trace import row_hashes, row_words
from gram.sampler.width import NOTHING, Bools, Floats, Rows, Standing, WidthPolicy

if TYPE_CHECKING:
    from gram.sampler.scheduler import Final, OpenShard, Trajectories

NEVER = 2**62
"""Width of a next look that will not come: of a puzzle that is decided, and where no puzzle is."""
BLOCK = 2**20
"""Comparisons of two answers made at once, about."""


class SequentialTests(RowArrays):
    """The sequential tests of all puzzles of the open shards. Rows are those of `Trajectories`: what belongs to a
    puzzle is kept in the row of its first trajectory. Every puzzle may have as many trajectories as any other."""

    width: Rows
    """Trajectories of the puzzle at its last look."""
    limit: Rows
    """How many are needed so far: the width of its next look."""
    named: Rows
    """How many have been named to the scheduler."""
    counted: Rows
    """How many have their votes counted."""
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

    def __init__(self, policy: WidthPolicy, *, answer_tokens: int, trusts_halt_head: bool) -> None:
        """`trusts_halt_head` takes the halt head's probability for the predicted accuracy, where the LPRM has none."""
        whole = ("width", "limit", "named", "counted", "decided", "votes", "answer")
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

    def open(self, opened: OpenShard, rows: int) -> Rows:
        """Starts the tests of a shard in a table of so many rows; returns the trajectories that are needed at once."""
        before = len(self.limit)
        self.grow(rows)
        self.limit[before:] = NEVER
        if self.columns not in (0, opened.shard.trajectories):
            raise ValueError(f"shards must have {self.columns} trajectories, got {opened.shard.trajectories}")
        self.columns = opened.shard.trajectories
        firsts = opened.firsts
        for kept in (self.width, self.named, self.counted, self.decided):
            kept[firsts] = 0
        self.limit[firsts] = np.minimum(self.policy.next_look(NOTHING), self.columns)
        return self._name(firsts)

    def next_speculative(self, count: int, table: Trajectories) -> Rows:
        """Up to `count` trajectories that may come to be needed, shard after shard, of the puzzles first that have the
        fewest."""
        columns = self.columns
        firsts = (self.named[: table.used : columns] < columns).nonzero()[0] * columns
        if len(firsts):
            order = np.lexsort((self.named[firsts], table.shard[firsts]))
            firsts = firsts[order[:count]]
        named = self.named[firsts]
        self.named[firsts] = named + 1
        return np.asarray(firsts + named)

    def end(self, rows: Rows, final: Final, table: Trajectories) -> tuple[Rows, Rows]:
        """Looks at trajectories that have ended. Returns the puzzles that this decides, by the rows of their first
        trajectories, and the trajectories that have come to be needed."""
        self._keep(rows, final, table)
        count = self.columns
        has_ended = table.has_ended[: table.used].reshape(-1, count)
        seen = has_ended.argmin(1)
        seen[(seen == 0) & has_ended[:, 0]] = count
        puzzles = (seen >= self.limit[: table.used : count]).nonzero()[0]
        if not len(puzzles):
            return puzzles, puzzles
        firsts, seen = puzzles * count, seen[puzzles]
        now = self.standing(puzzles, seen, table)
        decides, look = self.policy.decides(now), np.minimum(self.policy.next_look(now), count)
        # From look to look: where the policy decides or needs more than have ended, there the puzzle stays.
        begin = np.arange(-1, decides.size - 1, decides.shape[1])
        target = begin[:, None] + look
        place = begin[:, None] + now.width
        leads_to = np.where(decides | (look > seen[:, None]), place, target)
        at = begin + self.limit[firsts]
        while ((then := leads_to.take(at)) != at).any():
            at = then
        width = at - begin
        is_over = decides.take(at) | (width == count)
        self.width[firsts] = width
        decided, open_ = firsts[is_over], ~is_over
        self.decided[decided], self.limit[decided], self.named[decided] = width[is_over], NEVER, count
        more = firsts[open_]
        self.limit[more] = (target.take(at) - begin)[open_]
        return decided, self._name(more)

    def standing(self, puzzles: Rows, seen: Rows, table: Trajectories) -> Standing:
        """How the tests of some puzzles, by their place in the table `[k]`, stand at every width up to the most that
        are `seen [k]` of one: `[k, W]`, the widths themselves `[1, W]`. Behind what is seen of its puzzle it means
        nothing, nor does what the policy does not read."""
        policy, widest = self.policy, int(seen.max())
        width = np.arange(1, widest + 1)[None]
        first = second = width
        leader_trust = most_trust = np.zeros((1, 1))
        is_any_valid = most_trust > 0

        def of(array: NDArray[Any]) -> NDArray[Any]:
            return self._by_puzzle(array).take(puzzles, 0)[:, :widest]

        if policy.reads_votes:
            self._count(puzzles * self.columns, seen, widest, table)
            votes = of(self.votes)
            first = np.maximum.accumulate(votes, axis=1)
            is_behind = np.zeros(votes.shape, bool)
            np.less_equal(votes[:, 1:], first[:, :-1], out=is_behind[:, 1:])
            second = np.maximum.accumulate(votes * is_behind, axis=1)
            if policy.reads_trust:
                # Of answers with equal votes the first to appear leads; it stands as where it had its last vote.
                key = votes * self.columns + (self.columns - 1 - of(self.answer))
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

    def _count(self, firsts: Rows, seen: Rows, widest: int, table: Trajectories) -> None:
        """Counts the votes of puzzles' trajectories up to those `seen`, of `widest` at most."""
        counted = self.counted[firsts]
        self.counted[firsts] = seen
        rows = ranges(firsts + counted, seen - counted)
        block = max(1, BLOCK // self.columns)
        for first in range(0, len(rows), block):
            self._count_rows(rows[first : first + block], widest, table)

    def _count_rows(self, rows: Rows, widest: int, table: Trajectories) -> None:
        words = row_words(table.task.canonical(table.answers.take(rows, 0)))
        hashes = row_hashes(words)
        self.words[rows] = words
        puzzles = rows // self.columns
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
