"""The driver: starts workers, sends them what the queue says, replaces those that die, yields results as they come.

It is the one that decides everything: Ray neither restarts an actor nor repeats a call. Results of workers that have
been given up still count when they arrive (a removed node's actors answer for a while).
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import TaskCancelledError

from gram.distributed import sources
from gram.distributed.deaths import is_nodes_fault, reason_of
from gram.distributed.metrics import RunMetrics
from gram.distributed.pull_queue import ATTEMPTS, Attempt, PullQueue
from gram.distributed.worker import ShardOutcome, WorkerMetadata, expected_metadata, pack
from gram.sampler.record import Serialized
from gram.sampler.run import Job
from gram.sampler.scheduler import Shard

LOOK_EVERY_S = 2.0
"""How often the driver looks for nodes that have come or gone."""
START_TIMEOUT_S = 180.0
"""Until the first worker must be ready."""
FAILED_STARTS = 3
"""Workers in a row that die before they are ready, until the run gives up (or, with others running, waits a while)."""
PAUSE_S = 10.0
PATIENCE_S = 300.0
"""How long a run without any worker waits for a node to come before it ends; what it has finished is kept."""
CPUS_PER_WORKER = 1


class ClusterError(ValueError):
    """A cluster that cannot do the work; the message is one line."""


class PoisonError(ClusterError):
    """Shards that failed on every try."""


class ClusterStatus(NamedTuple):
    """How a run on a cluster stands, or how the last one ended: what a person who watches it is shown."""

    shards: int
    """That this run has to run; those that its folder held before are not among them."""
    finished: int
    poison: int
    """Shards that have failed too often; the run will end with an error that names them."""
    workers: int
    """Ready now."""
    starting: int
    """Workers on their way."""
    nodes: int
    """That ready workers are on."""
    retries: int
    """Shards queued again after a failure or a loss."""
    copies: int
    """Shards handed to a second worker because the first was slow."""


class _Event(NamedTuple):
    """An answer that has come: to `ready` (no shard) or to `run`."""

    worker: str
    shard: int | None
    answer: Future[Any]


@dataclass(slots=True)
class _Member:
    """A worker as the driver knows it."""

    actor: Any
    is_ready: bool = False
    sent: dict[int, Any] = field(default_factory=dict)
    """Of each shard that it has not answered for, the reference by which Ray cancels it."""


class Pool:
    """Runs a job's shards on the Ray cluster that this process is connected to; a `gram.sampler.run.Backend`."""

    def __init__(
        self,
        *,
        workers: int | None = None,
        gpus_per_worker: float = 0.0,
        attempts: int = ATTEMPTS,
        task_module: Path | None = None,
        report: Callable[[str], None] | None = None,
        worker_class: type | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`workers` None takes what the cluster has room for, nodes that join later included. `report` receives a line
        when something goes wrong that the run survives. A run that has lost all its workers waits `patience_s` for
        another. `worker_class` None is `Worker` of the driver's own package. Raises `ValueError` for values out of
        range."""
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if gpus_per_worker < 0 or (gpus_per_worker > 1 and gpus_per_worker != int(gpus_per_worker)):
            raise ValueError(f"gpus per worker must be within 0 and 1 or a whole number, got {gpus_per_worker:g}")
        self.wanted, self.gpus, self.attempts = workers, gpus_per_worker, attempts
        self.task_module, self.report, self.patience_s = task_module, report or (lambda line: None), patience_s
        self._class: Any = ray.remote(
            num_cpus=CPUS_PER_WORKER, num_gpus=gpus_per_worker, max_restarts=0, max_task_retries=0
        )(worker_class or sources.at_driver(sources.import_path(), os.getcwd()))
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._members: dict[str, _Member] = {}
        self._ever: dict[str, WorkerMetadata] = {}
        """Every worker that was ever ready."""
        self._parcel: Any = None
        self._task = ""
        self._metadata: tuple[str, ...] = ()
        self._queue, self._metrics = PullQueue([]), RunMetrics()
        self._shards: dict[int, Shard] = {}
        self._started = self._failed_starts = self._unfinished = self._target = self._retries = 0
        self._looked_at = self._paused_until = 0.0
        self._alone_since: float | None = None
        self._last_failure = ""

    @property
    def device(self) -> torch.device | None:
        """A GPU where workers are given one, else as the driver's model."""
        return torch.device("cuda") if self.gpus else None

    def account(self) -> dict[str, int]:
        """Workers that were ready, nodes they were on, shards queued again."""
        nodes = {metadata.node for metadata in self._ever.values()}
        return {"workers": len(self._ever), "nodes": len(nodes), "retries": self._retries + self._queue.retries}

    def members(self) -> dict[str, WorkerMetadata]:
        """Workers that are ready now, by name."""
        return {name: self._ever[name] for name in list(self._queue.names()) if name in self._members}

    def status(self) -> ClusterStatus:
        """How the run stands. Any thread may ask."""
        queue = self._queue
        ready = [self._ever[name].node for name in queue.names()]
        return ClusterStatus(
            shards=len(self._shards) or self._unfinished,
            finished=queue.finished,
            poison=queue.poisoned,
            workers=len(ready),
            starting=max(0, len(self._members) - len(ready)),
            nodes=len(set(ready)),
            retries=queue.retries,
            copies=queue.reissues,
        )

    def start(self, job: Job, shards: int) -> None:
        """Starts workers for `shards` shards and waits for the first. Raises `ClusterError`."""
        if not self.gpus and job.device.type != "cpu":
            raise ClusterError(f"gpus per worker must be more than 0 for device {job.device.type}, got 0")
        self._parcel = ray.put(pack(job, task_module=self.task_module))
        self._metadata, self._unfinished = expected_metadata(job), shards
        # Another run may have gone before: what still comes of it is none of this one's.
        self._retries += self._queue.retries
        self._queue, self._events, self._shards = PullQueue([]), queue.SimpleQueue(), {}
        self._task = job.task.name
        self._metrics.begin(self._task)
        self._failed_starts, self._looked_at, self._paused_until = 0, 0.0, 0.0
        self._alone_since = None
        until = time.monotonic() + START_TIMEOUT_S
        try:
            while not self._queue.workers:
                self._recruit()
                self._take(self._wait())
                if time.monotonic() > until:
                    raise ClusterError(
                        f"a worker must be ready within {START_TIMEOUT_S:.0f} s, got none"
                        f" ({self._last_failure or _room_text()})"
                    )
        except BaseException:
            self.stop()
            raise

    def run(self, shards: Iterable[Shard]) -> Generator[tuple[Shard, Serialized], None, None]:
        """Yields every shard's result as they come; a shard may come twice. Raises `PoisonError` at the end."""
        self._shards = {shard.index: shard for shard in shards}
        old, self._queue = self._queue, PullQueue(self._shards, attempts=self.attempts)
        for worker in old.names():
            self._queue.join(worker)
        self._metrics.begin(self._task)
        try:
            while not self._queue.is_over:
                self._unfinished = self._queue.unfinished - len(self._queue.poison)
                self._recruit()
                for worker, index in self._queue.assign():
                    self._send(worker, index)
                for worker, index in self._queue.unneeded():
                    ray.cancel(self._members[worker].sent[index], recursive=False)
                if (found := self._take(self._wait())) is not None:
                    yield found
                self._check_patience()
        finally:
            self.stop()
        if self._queue.poison:
            raise PoisonError(poison_text(self._queue.poison, self._shards))

    def _check_patience(self) -> None:
        """Ends a run that nobody works for. Raises `ClusterError`."""
        now = time.monotonic()
        if self._queue.workers or self._queue.is_over:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
            self.report(f"no worker is left: waiting up to {self.patience_s:.0f} s for one")
        elif now - self._alone_since > self.patience_s:
            raise ClusterError(
                f"a worker must come within {self.patience_s:.0f} s of the loss of the last one, got none"
                f" ({_room_text()}): {self._queue.unfinished} of {len(self._shards)} shards are left"
            )

    def stop(self) -> None:
        """Ends every worker at once: what they were doing counts for nothing."""
        self._metrics.end(self._queue)
        for member in self._members.values():
            ray.kill(member.actor)
        self._members.clear()

    def _recruit(self) -> None:
        """Keeps as many workers as are wanted and useful."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._target = self.wanted or max(1, room(self.gpus))
        if now < self._paused_until:
            return
        while len(self._members) < min(self._target, self._unfinished):
            self._started += 1
            name = f"worker {self._started}"
            actor = self._class.remote(self._parcel)
            self._members[name] = _Member(actor)
            self._listen(actor.ready.remote(), name, None)

    def _send(self, worker: str, index: int) -> None:
        member = self._members[worker]
        member.sent[index] = answer = member.actor.run.remote(astuple(self._shards[index]))
        self._listen(answer, worker, index)

    def _listen(self, answer: Any, worker: str, shard: int | None) -> None:
        events = self._events
        answer.future().add_done_callback(lambda done: events.put(_Event(worker, shard, done)))

    def _wait(self) -> _Event | None:
        """The next answer, or None where none comes soon."""
        self._metrics.waits(self._queue)
        try:
            return self._events.get(timeout=LOOK_EVERY_S / 4)
        except queue.Empty:
            return None
        finally:
            self._metrics.works()

    def _take(self, event: _Event | None) -> tuple[Shard, Serialized] | None:
        """Tells the queue what has happened; a shard's result where that is what has come."""
        if event is None:
            return None
        worker, index, answer = event
        if index is not None and (member := self._members.get(worker)) is not None:
            member.sent.pop(index, None)
        if isinstance(error := answer.exception(), TaskCancelledError) and index is not None:
            self._queue.release(worker, index)
        elif error is not None:
            self._lose(worker, error)
        elif index is None:
            self._welcome(worker, WorkerMetadata(*answer.result()))
        else:
            outcome = ShardOutcome(*answer.result())
            if not outcome.error:
                self._metrics.took(outcome.elapsed_s)
                self._queue.finish(worker, index)
                return self._shards[index], Serialized.from_bytes(outcome.serialized)
            self.report(f"{worker}: shard {index} failed: {outcome.error}")
            self._queue.fail(worker, index, outcome.error)
        return None

    def _welcome(self, worker: str, metadata: WorkerMetadata) -> None:
        """Lets a worker in whose results will belong to the plan."""
        if worker not in self._members:
            return
        wanted = len(self._metadata)
        for name, mine, theirs in zip(WorkerMetadata._fields[:wanted], self._metadata, metadata[:wanted], strict=True):
            if mine != theirs:
                self._lose(worker, ClusterError(f"{name} must be {mine} on every node, got {theirs}"))
                return
        self._members[worker].is_ready = True
        self._ever[worker] = metadata
        self._failed_starts = 0
        self._queue.join(worker)

    def _lose(self, worker: str, error: BaseException) -> None:
        """Gives a worker up; another takes its place with the next `_recruit`."""
        member = self._members.pop(worker, None)
        if member is None:
            return
        reason = reason_of(error)
        ray.kill(member.actor)
        self.report(f"{worker}: {reason}")
        if member.is_ready:
            self._queue.leave(worker, reason, is_blamed=not is_nodes_fault(error))
            return
        self._last_failure = reason
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            if not self._queue.workers:
                raise ClusterError(f"no worker could start: {reason}")
            self._paused_until = time.monotonic() + PAUSE_S


def room(gpus_per_worker: float) -> int:
    """Workers that the cluster's living nodes have room for."""
    total, nodes = 0, ray.nodes()  # type: ignore[no-untyped-call]
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            places = int(has.get("CPU", 0) // CPUS_PER_WORKER)
            total += min(places, int(has.get("GPU", 0) / gpus_per_worker)) if gpus_per_worker else places
    return total


def _room_text() -> str:
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"


def poison_text(poison: Mapping[int, tuple[Attempt, ...]], shards: Mapping[int, Shard]) -> str:
    """One line that names the first poison shard, what it holds and each attempt."""
    index = min(poison)
    shard, attempts = shards[index], poison[index]
    what = f"puzzles {shard.first_puzzle} to {shard.first_puzzle + shard.puzzles - 1}"
    what += f", trajectories {shard.first_trajectory} to {shard.first_trajectory + shard.trajectories - 1}"
    why = "; ".join(f"{worker}: {reason}" for worker, reason in attempts)
    others = ", ".join(map(str, sorted(poison)[1:9])) + (" ..." if len(poison) > 9 else "")
    more = f"; so did {len(poison) - 1} more: {others}" if len(poison) > 1 else ""
    return f"shard {index} ({what}) failed {len(attempts)} times: {why}{more}; every other shard was run"
