"""Who runs which shard: the driver's queue. Plain Python: no Ray, no clock, no randomness; the same events in the same
order give the same assignments.

Workers pull: a shard goes only to a worker that has said it is ready, one to each first, a second one behind it while
there is plenty. What a lost worker held is queued again; the shard that it was running counts an attempt, those behind
it do not. A shard that has used up its attempts is poison: the run ends without it and names it. When nothing waits,
idle workers get copies of the oldest running shards, so that one slow worker delays nothing; the first result counts
and the other copies are cancelled (`unneeded`), so that their workers are free for what is left.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

ATTEMPTS = 3
"""Failures of one shard until it is poison."""
DEPTH = 2
"""Shards that a worker holds: the running one, and one behind it so that it never waits for the driver."""
COPIES = 3
"""Workers that may run the same shard at once, at the tail."""


class Attempt(NamedTuple):
    """One failure of a shard."""

    worker: str
    reason: str


class Assignment(NamedTuple):
    """A shard for a worker to run behind what it already holds."""

    worker: str
    shard: int


@dataclass(slots=True)
class _State:
    """What is known of one shard."""

    holders: list[str] = field(default_factory=list)
    """Workers that run it or will; lost ones are not among them."""
    attempts: list[Attempt] = field(default_factory=list)
    is_waiting: bool = True
    is_finished: bool = False
    issued: int = -1
    """Number of its first assignment."""


class PullQueue:
    """The state of a run. Tell it what happens (`join`, `leave`, `finish`, `fail`, `release`), then carry out `assign`
    and `unneeded`."""

    def __init__(self, shards: Iterable[int], *, attempts: int = ATTEMPTS, depth: int = DEPTH) -> None:
        """`shards` are served in the given order. Raises `ValueError` for a limit below 1."""
        for name, value in (("attempts", attempts), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.attempts, self.depth = attempts, depth
        self._states = {shard: _State() for shard in shards}
        self._fresh, self._again = deque(self._states), deque[int]()
        self.waiting = len(self._states)
        """Shards that no worker holds."""
        self.unfinished = len(self._states)
        """Shards without a result, poison ones included."""
        self._poison: dict[int, None] = {}
        self._held: dict[str, list[int]] = {}
        """Of each worker, the running shard first."""
        self._by_load: list[dict[str, None]] = [{} for _ in range(depth)]
        """Workers that hold so many shards, who has waited longest first; full ones are in none."""
        self._running: list[tuple[int, int, int]] = []
        """Heap of (copies, number of the first assignment, shard) with entries that may be out of date."""
        self._issues = 0
        self._unneeded: list[Assignment] = []
        self.retries = 0
        """Shards queued again after their worker failed or was lost."""
        self.reissues = 0
        """Copies handed out at the tail."""
        self.duplicates = 0
        """Results of shards that had one already."""
        self.failures = 0
        """Attempts that counted: errors, and deaths of the worker that ran the shard."""
        self.cancelled = 0
        """Copies that were named as unneeded."""

    @property
    def is_over(self) -> bool:
        """Whether every shard is finished or poison."""
        return self.unfinished == len(self._poison)

    @property
    def finished(self) -> int:
        """Shards with a result."""
        return len(self._states) - self.unfinished

    @property
    def poisoned(self) -> int:
        """Shards that are poison."""
        return len(self._poison)

    @property
    def workers(self) -> int:
        """Workers that are there."""
        return len(self._held)

    @property
    def poison(self) -> dict[int, tuple[Attempt, ...]]:
        """Shards that have used up their attempts, with the reason of each."""
        return {shard: tuple(self._states[shard].attempts) for shard in sorted(self._poison)}

    def names(self) -> tuple[str, ...]:
        """Workers that are there, in the order in which they came."""
        return tuple(self._held)

    def holds(self, worker: str) -> tuple[int, ...]:
        """Shards of a worker, the running one first; empty for one that is not there."""
        return tuple(self._held.get(worker, ()))

    def join(self, worker: str) -> None:
        """A new worker is ready. Raises `ValueError` for a name that is there already."""
        if worker in self._held:
            raise ValueError(f"worker must be a new one, got {worker!r} again")
        self._held[worker] = []
        self._by_load[0][worker] = None

    def leave(self, worker: str, reason: str, *, is_blamed: bool = True) -> None:
        """A worker is gone, with whatever it held. `is_blamed` counts an attempt for the shard that it was running:
        false where it was taken away, as with its node. Leaving twice is no error."""
        held = self._held.get(worker)
        if held is None:
            return
        self._move(worker, None)
        for place, shard in enumerate(held):
            state = self._states[shard]
            state.holders.remove(worker)
            if place == 0 and is_blamed:
                self._blame(worker, shard, reason)
            self._settle(shard)

    def finish(self, worker: str, shard: int) -> bool:
        """A result has come, perhaps late, of a worker that is gone, or twice; true where it is the shard's first."""
        state = self._states[shard]
        self._drop(worker, shard)
        if state.is_finished:
            self.duplicates += 1
            return False
        state.is_finished = True
        self.unfinished -= 1
        self._unneeded += [Assignment(holder, shard) for holder in state.holders]
        self._poison.pop(shard, None)
        if state.is_waiting:
            state.is_waiting = False
            self.waiting -= 1
        return True

    def fail(self, worker: str, shard: int, reason: str) -> None:
        """A shard raised an error on a worker that lives on. What it does not hold is passed over."""
        if not self._drop(worker, shard):
            return
        self._blame(worker, shard, reason)
        self._settle(shard)

    def release(self, worker: str, shard: int) -> None:
        """A worker has ended a shard without a result because it was cancelled: no failure. What it does not hold is
        passed over."""
        if self._drop(worker, shard):
            self._settle(shard)

    def unneeded(self) -> list[Assignment]:
        """What is to be cancelled now: copies of shards that have got their result from another worker, each named
        once. A worker holds its copy until it answers, with `release` or with a late result."""
        named = [each for each in self._unneeded if each.shard in self._held.get(each.worker, ())]
        self._unneeded.clear()
        self.cancelled += len(named)
        return named

    def assign(self) -> list[Assignment]:
        """What is to be sent now: to each worker with room the next shard; copies where nothing waits."""
        made: list[Assignment] = []
        for load, workers in enumerate(self._by_load):
            if not self._has_work(load):
                break
            for worker in list(workers):
                if not self._has_work(load):
                    break
                shard = self._next(worker)
                if shard is None and not load:  # nothing waits, or only what has failed on this worker
                    shard = self._copy(worker)
                if shard is not None:
                    self._issue(worker, shard)
                    made.append(Assignment(worker, shard))
        return made

    def _has_work(self, load: int) -> bool:
        """Whether a worker with `load` shards may get one. Where few wait, whoever is idle first takes them."""
        if load:
            return self.waiting > len(self._held)
        return bool(self.waiting) or bool(self._running and self._running[0][0] < COPIES)

    def _issue(self, worker: str, shard: int) -> None:
        state = self._states[shard]
        if state.is_waiting:
            state.is_waiting = False
            self.waiting -= 1
        else:
            self.reissues += 1
        if state.issued < 0:
            state.issued = self._issues
            self._issues += 1
        state.holders.append(worker)
        self._held[worker].append(shard)
        self._move(worker, len(self._held[worker]))
        heapq.heappush(self._running, (len(state.holders), state.issued, shard))

    def _next(self, worker: str) -> int | None:
        """The first waiting shard that has not failed on this worker, or that has failed on all there are."""
        for _ in range(len(self._again)):
            shard = self._again.popleft()
            state = self._states[shard]
            if not state.is_waiting:
                continue
            failed_on = {attempt.worker for attempt in state.attempts}
            if worker not in failed_on or failed_on.issuperset(self._held):
                return shard
            self._again.append(shard)
        while self._fresh:
            shard = self._fresh.popleft()
            if self._states[shard].is_waiting:
                return shard
        return None

    def _copy(self, worker: str) -> int | None:
        """The oldest running shard of those with the fewest copies that this worker may run."""
        passed_over, found = [], None
        while self._running and self._running[0][0] < COPIES:
            entry = heapq.heappop(self._running)
            copies, _, shard = entry
            state = self._states[shard]
            if state.is_finished or copies != len(state.holders):
                continue
            if worker not in state.holders and all(attempt.worker != worker for attempt in state.attempts):
                found = shard
                break
            passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self._running, entry)
        return found

    def _drop(self, worker: str, shard: int) -> bool:
        """Takes a shard off a worker; false where it did not hold it."""
        held = self._held.get(worker, [])
        if shard not in held:
            return False
        held.remove(shard)
        self._states[shard].holders.remove(worker)
        self._move(worker, len(held))
        return True

    def _blame(self, worker: str, shard: int, reason: str) -> None:
        """Counts an attempt, unless the shard has its result."""
        state = self._states[shard]
        if not state.is_finished:
            state.attempts.append(Attempt(worker, reason))
            self.failures += 1

    def _settle(self, shard: int) -> None:
        """After a holder is lost: leaves the shard to its other holders, queues it again, or calls it poison."""
        state = self._states[shard]
        if state.is_finished or state.is_waiting:
            return
        if state.holders:
            heapq.heappush(self._running, (len(state.holders), state.issued, shard))
        elif len(state.attempts) >= self.attempts:
            self._poison[shard] = None
        else:
            state.is_waiting = True
            self.waiting += 1
            self._again.append(shard)
            self.retries += 1

    def _move(self, worker: str, load: int | None) -> None:
        """Notes that a worker holds `load` shards now; None takes it out."""
        for workers in self._by_load:
            workers.pop(worker, None)
        if load is None:
            del self._held[worker]
        elif load < self.depth:
            self._by_load[load][worker] = None
