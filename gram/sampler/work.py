"""What waits for a slot, and in which order: all puzzles' first trajectories first, shard after shard."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from gram.sampler.plan import Shard
from gram.sampler.tracker import Tracker
from gram.tasks.protocol import Tokens


@dataclass(frozen=True, slots=True)
class Work:
    """One trajectory that waits for a slot or sits in one."""

    tracker: Tracker
    puzzle: int
    """Place in the shard."""
    column: int
    """Place in the shard."""
    lineage: int
    """Trajectory id that its state descends from."""
    step: int = 0
    """Supervision steps taken."""
    state: Tensor | None = None
    """Where it goes on from, `[2, L, D]`; None starts anew."""
    memory: tuple[Tokens, int] | None = None
    """Last answer and for how many steps it has not changed, of one that goes on."""

    @property
    def trajectory(self) -> int:
        """Its id, which keys its noise."""
        return self.tracker.shard.first_trajectory + self.column


class Queue:
    """Hands out trajectories; opens a shard only when the open ones want nothing more."""

    def __init__(self, track: Callable[[Shard], Tracker], *, is_by_puzzle: bool) -> None:
        """`is_by_puzzle` serves one puzzle after another, as resampling needs, whose particles wait for each other."""
        self.track, self.is_by_puzzle = track, is_by_puzzle
        self.shards: Iterator[Shard] = iter(())
        self.heap: list[tuple[int, int, int]] = []
        """(shard, column, puzzle) of every puzzle that wants a trajectory, each once; puzzle first under
        `is_by_puzzle`."""
        self.trackers: dict[int, Tracker] = {}
        self.back: deque[Work] = deque()

    def feed(self, shards: Iterable[Shard]) -> None:
        """Shards still to be opened, in order."""
        self.shards = iter(shards)

    def put_back(self, works: Iterable[Work]) -> None:
        """Trajectories that go on; they are served before new ones."""
        self.back.extend(works)

    def take(self, count: int) -> list[Work]:
        """Up to `count` trajectories that are certainly needed."""
        works: list[Work] = []
        while len(works) < count:
            if self.back:
                works.append(self.back.popleft())
            elif self.heap:
                works += self._pop()
            elif (shard := next(self.shards, None)) is not None:
                self._open(shard)
            else:
                break
        return works

    def take_spare(self, count: int) -> list[Work]:
        """Up to `count` trajectories that may come to be needed."""
        works: list[Work] = []
        for tracker in self.trackers.values():
            for puzzle in tracker.spare() if len(works) < count else ():
                works.append(self._hand_out(tracker, puzzle))
                if len(works) >= count:
                    break
        return works

    def close(self, tracker: Tracker) -> None:
        """Forgets a finished shard."""
        del self.trackers[tracker.shard.index]
        self.heap = [entry for entry in self.heap if entry[0] != tracker.shard.index]
        heapq.heapify(self.heap)

    def reopen(self, tracker: Tracker, puzzle: int) -> None:
        """A puzzle that has come to want more trajectories queues again."""
        if tracker.wanted(puzzle):
            self._push(tracker, puzzle)

    def _open(self, shard: Shard) -> None:
        tracker = self.trackers[shard.index] = self.track(shard)
        for puzzle in range(shard.puzzles):
            self._push(tracker, puzzle)

    def _push(self, tracker: Tracker, puzzle: int) -> None:
        if tracker.is_queued[puzzle]:
            return
        tracker.is_queued[puzzle] = True
        rank = (puzzle, int(tracker.next[puzzle])) if self.is_by_puzzle else (int(tracker.next[puzzle]), puzzle)
        heapq.heappush(self.heap, (tracker.shard.index, *rank))

    def _pop(self) -> list[Work]:
        index, *rank = heapq.heappop(self.heap)
        tracker, puzzle = self.trackers[index], rank[0] if self.is_by_puzzle else rank[1]
        tracker.is_queued[puzzle] = False
        if not tracker.wanted(puzzle):
            return []  # decided since, or run ahead
        work = self._hand_out(tracker, puzzle)
        if tracker.wanted(puzzle):
            self._push(tracker, puzzle)
        return [work]

    def _hand_out(self, tracker: Tracker, puzzle: int) -> Work:
        column = int(tracker.next[puzzle])
        tracker.next[puzzle] += 1
        return Work(tracker, puzzle, column, lineage=tracker.shard.first_trajectory + column)
