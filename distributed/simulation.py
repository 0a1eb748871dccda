"""A cluster of any size in a few seconds: the driver's real queue with simulated workers, on a simulated clock.

Only the queue's code is real. Workers take a time for a shard drawn from a seeded source; the driver takes a fixed time
for each answer and each assignment, one after the other, as the real one does: that is what saturates first. Several
drivers have a queue, a part of the shards and a part of the workers each. Times are seconds.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass

from gram.distributed.pull_queue import PullQueue

DRIVER_S = 0.0008
"""The driver's time for one shard (answer, store, next assignment): a run's whole time over its shards where workers
answer at once, on two cores that these share with the driver (`gram bench ray`, `wall_ms`; docs/scaling.md)."""
NETWORK_S = 0.001
"""From the driver to a worker or back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """What a simulated run came to."""

    workers: int
    shards: int
    drivers: int
    elapsed_s: float
    """From the first worker's being ready to the last result that was wanted, of whichever driver."""
    busy: float
    """Share of the workers' time spent on results that counted, within 0 and 1."""
    driver_busy: float
    """Share of the drivers' time spent on their work, within 0 and 1."""
    retries: int
    reissues: int
    duplicates: int


def simulate(
    *,
    workers: int,
    shards: int,
    shard_s: float = 1.0,
    spread: float = 0.1,
    driver_s: float = DRIVER_S,
    network_s: float = NETWORK_S,
    slow_workers: int = 0,
    deaths: int = 0,
    restart_s: float = 10.0,
    drivers: int = 1,
    seed: int = 0,
) -> Simulated:
    """Runs `shards` shards on `workers` workers.

    A shard takes `shard_s` seconds, times a factor within 1 - `spread` and 1 + `spread`; the first `slow_workers` are
    ten times as slow. `deaths` workers die at random times and are replaced after `restart_s`. Workers are dealt out
    evenly to `drivers` drivers, shards by their workers; they know nothing of each other. Raises `ValueError` for
    values out of range.
    """
    for name, count in (("workers", workers), ("shards", shards), ("drivers", drivers)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if drivers > min(workers, shards):
        raise ValueError(f"drivers must have a worker and a shard each, at most {min(workers, shards)}, got {drivers}")
    if not 0 <= spread < 1:
        raise ValueError(f"spread must be within 0 and 1, got {spread:g}")
    if drivers > 1:
        sizes = [part_of(workers, drivers, number) for number in range(drivers)]
        starts = [shards * sum(sizes[:number]) // workers for number in range(drivers + 1)]
        parts = [
            simulate(
                workers=sizes[number],
                shards=starts[number + 1] - starts[number],
                shard_s=shard_s,
                spread=spread,
                driver_s=driver_s,
                network_s=network_s,
                slow_workers=part_of(slow_workers, drivers, number),
                deaths=part_of(deaths, drivers, number),
                restart_s=restart_s,
                seed=seed + number,
            )
            for number in range(drivers)
        ]
        return _together(parts, shard_s)
    source = random.Random(seed)
    queue = PullQueue(range(shards))
    cluster = _Cluster(queue, source, shard_s, spread, network_s)
    for number in range(workers):
        cluster.join(0.0, 10.0 if number < slow_workers else 1.0)
    expected_s = shards * shard_s / workers
    for _ in range(deaths):
        cluster.at(source.uniform(0.0, expected_s), "die", "", 0)
    free_s = worked_s = 0.0
    while not queue.is_over:
        now, _, kind, worker, shard = heapq.heappop(cluster.events)
        if kind == "die":
            if (victim := cluster.kill(now)) is not None:
                queue.leave(victim, "simulated death")
                cluster.at(now + restart_s, "join", "", 0)
        elif kind == "join":
            cluster.join(now, 1.0)
        elif kind == "end":
            cluster.ended(now, worker, shard)
            continue
        # The driver is one thread: it turns to what has come when it is done with what came before.
        begin = max(now, free_s)
        free_s = begin + (driver_s / 2 if kind == "answer" else 0.0)
        if kind == "answer" and worker in cluster.speeds:
            queue.finish(worker, shard)
        for assignment in queue.assign():
            free_s += driver_s / 2
            cluster.send(free_s, *assignment)
        worked_s += free_s - begin
    useful_s = shards * shard_s
    return Simulated(
        workers=workers,
        shards=shards,
        drivers=1,
        elapsed_s=free_s,
        busy=min(1.0, useful_s / (free_s * workers)),
        driver_busy=worked_s / free_s if free_s else 0.0,
        retries=queue.retries,
        reissues=queue.reissues,
        duplicates=queue.duplicates,
    )


def part_of(count: int, parts: int, number: int) -> int:
    """How many of `count` things the part `number`, from 0, gets when they are dealt out evenly."""
    return count // parts + (number < count % parts)


def _together(parts: list[Simulated], shard_s: float) -> Simulated:
    """Several drivers' runs as one, which ends with the last of them."""
    elapsed_s = max(part.elapsed_s for part in parts)
    workers, shards = sum(part.workers for part in parts), sum(part.shards for part in parts)
    return Simulated(
        workers=workers,
        shards=shards,
        drivers=len(parts),
        elapsed_s=elapsed_s,
        busy=min(1.0, shards * shard_s / (elapsed_s * workers)),
        driver_busy=sum(part.driver_busy * part.elapsed_s for part in parts) / (elapsed_s * len(parts)),
        retries=sum(part.retries for part in parts),
        reissues=sum(part.reissues for part in parts),
        duplicates=sum(part.duplicates for part in parts),
    )


class _Cluster:
    """Simulated workers and the events to come."""

    def __init__(
        self, queue: PullQueue, source: random.Random, shard_s: float, spread: float, network_s: float
    ) -> None:
        self.queue, self.random, self.shard_s, self.spread, self.network_s = queue, source, shard_s, spread, network_s
        self.events: list[tuple[float, int, str, str, int]] = []
        """Heap of (time, number, kind, worker, shard)."""
        self.speeds: dict[str, float] = {}
        """Of each living worker, the factor on a shard's time."""
        self.inboxes: dict[str, deque[int]] = {}
        self.number = 0

    def at(self, when: float, kind: str, worker: str, shard: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, kind, worker, shard))

    def join(self, now: float, speed: float) -> None:
        name = f"worker {len(self.inboxes) + 1}"
        self.speeds[name], self.inboxes[name] = speed, deque()
        self.queue.join(name)
        self.at(now, "ready", name, 0)

    def kill(self, now: float) -> str | None:
        if not self.speeds:
            return None
        name = self.random.choice(list(self.speeds))
        del self.speeds[name]
        return name

    def send(self, now: float, worker: str, shard: int) -> None:
        """A shard reaches a worker's inbox; the worker begins where it was idle."""
        inbox = self.inboxes[worker]
        inbox.append(shard)
        if len(inbox) == 1:
            self._begin(now + self.network_s, worker)

    def ended(self, now: float, worker: str, shard: int) -> None:
        """A worker is done with a shard: the answer is on its way, the next one begins."""
        if worker not in self.speeds:
            return
        inbox = self.inboxes[worker]
        inbox.popleft()
        self.at(now + self.network_s, "answer", worker, shard)
        if inbox:
            self._begin(now, worker)

    def _begin(self, now: float, worker: str) -> None:
        factor = self.random.uniform(1 - self.spread, 1 + self.spread) * self.speeds[worker]
        self.at(now + self.shard_s * factor, "end", worker, self.inboxes[worker][0])
