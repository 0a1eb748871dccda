"""What the driver costs for a shard: the real pool, queue and store, with results that are there already.

In process the answers come at once, so that nothing but the driver's own code is timed; over Ray they come from workers
that do nothing but answer, so that its part is in. What workers compute and starting them is in neither. `P` puzzles,
`N` width, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import os
import queue
import tempfile
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from gram.api import Sampler
from gram.config import SamplerConfig
from gram.distributed.pool import START_TIMEOUT_S, ClusterError, Pool, _Event, _Member
from gram.distributed.worker import expected_metadata
from gram.sampler.record import Serialized
from gram.sampler.run import Job, Plan, run_elsewhere, shards_of
from gram.sampler.scheduler import Shard, ShardResult
from gram.sampler.store import Store

SHARDS = 320
WORKERS = 2
PUZZLES_PER_SHARD, TRAJECTORIES_PER_PUZZLE = 256, 4
"""As the plan's shards are: 1,024 trajectories, in 118 kB with 64 tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverCost:
    """One run of a plan whose shards cost nothing but the driver's time."""

    shards: int
    result_bytes: int
    """Of a shard."""
    wall_ms: float
    """From the first shard sent to the last one on the disk, a shard."""
    driver_ms: float
    """Of that, without the waiting for answers: the driver's thread, a shard."""
    thread_cpu_ms: float
    """Processor time of the driver's thread, a shard."""
    process_cpu_ms: float
    """Processor time of the driver's process, Ray's threads included, a shard."""
    sync_ms: float
    """Of the driver's time, the waiting for the disk, a shard."""


def in_process(sampler: Sampler, *, shards: int = SHARDS) -> DriverCost:
    """The driver's own code alone: no Ray, answers come at once."""
    return _cost(_AtOnce(made_up(sampler).to_bytes()), job_of(sampler), shards)


def over_ray(sampler: Sampler, *, shards: int = SHARDS, workers: int = WORKERS) -> DriverCost:
    """The same on the Ray cluster that this process is connected to. Raises `ClusterError` where it has no room."""
    job = job_of(sampler)
    worker_class = answering(expected_metadata(job), made_up(sampler).to_bytes())
    return _cost(TimedPool(workers=workers, worker_class=worker_class), job, shards)


def job_of(sampler: Sampler) -> Job:
    """What workers are started with."""
    return Job(
        model=sampler.model,
        task=sampler.task,
        puzzles=sampler.task.split("test", limit=1).puzzles,
        config=sampler.settings(SamplerConfig()),
        device=sampler.model.device,
    )


class Clock(NamedTuple):
    """A moment, in seconds of three clocks."""

    wall_s: float = 0.0
    thread_s: float = 0.0
    """Processor time of this thread."""
    process_s: float = 0.0
    """Processor time of all threads."""

    @classmethod
    def now(cls) -> Clock:
        return cls(time.perf_counter(), time.thread_time(), time.process_time())


def answering(metadata: tuple[str, ...], answer: bytes, seconds: tuple[float, float] = (0.0, 0.0)) -> type:
    """A worker that gives `answer` for every shard after a time within `seconds`, by the shard's number alone.

    A class made in a function goes to the nodes by value: they import nothing of ours, so no torch.
    """
    low, high = seconds

    class Answering:
        def __init__(self, parcel: Any) -> None:
            self.parcel = parcel

        def ready(self) -> tuple[Any, ...]:
            import ray

            return (*metadata, ray.get_runtime_context().get_node_id(), os.getpid())

        def run(self, shard: tuple[int, ...]) -> tuple[bytes, str, float]:
            if high:
                # The golden ratio's multiples fill an interval evenly, in no order.
                time.sleep(low + (high - low) * (shard[0] * 0.6180339887498949 % 1))
            return answer, "", 0.0

    return Answering


class _TimedQueue(queue.SimpleQueue[_Event]):
    """Answers, and how long somebody waited for them."""

    waited_s = 0.0

    def get(self, block: bool = True, timeout: float | None = None) -> _Event:
        began = time.perf_counter()
        try:
            return super().get(block, timeout)
        finally:
            self.waited_s += time.perf_counter() - began


class TimedPool(Pool):
    """A pool that begins when all its workers are ready and notes what its time goes to."""

    answers = _TimedQueue()
    clock = Clock()
    """When the first shard could be sent."""
    stopping_s = 0.0
    """For ending workers, which is none of the shards'."""

    def start(self, job: Job, shards: int) -> None:
        super().start(job, shards)
        until = time.monotonic() + START_TIMEOUT_S
        while self._queue.workers < min(self._target, shards):
            self._recruit()
            self._take(self._wait())
            if time.monotonic() > until:
                self.stop()
                raise ClusterError(f"{self._target} workers must be ready, got {self._queue.workers}")

    def run(self, shards: Iterable[Shard]) -> Generator[tuple[Shard, Serialized], None, None]:
        self.stopping_s = 0.0
        self._events = self.answers = _TimedQueue()
        self.clock = Clock.now()
        yield from super().run(shards)

    def stop(self) -> None:
        began = time.perf_counter()
        super().stop()
        self.stopping_s += time.perf_counter() - began


class _AtOnce(TimedPool):
    """A pool without Ray: every shard is answered when it is sent, by the one worker that there is."""

    def __init__(self, serialized: bytes) -> None:
        super().__init__(workers=1)
        self._answer = serialized, "", 0.0

    def start(self, job: Job, shards: int) -> None:
        self._members["worker 1"] = _Member(None, is_ready=True)
        self._queue.join("worker 1")

    def stop(self) -> None:
        self._members.clear()

    def _recruit(self) -> None:
        return

    def _send(self, worker: str, index: int) -> None:
        answer: Future[Any] = Future()
        self._listen(SimpleNamespace(future=lambda: answer), worker, index)  # as Ray's reference to an answer
        answer.set_result(self._answer)


class _TimedStore(Store):
    """A store that notes how long it waited for the disk."""

    synced_s = 0.0

    def sync(self) -> None:
        began = time.perf_counter()
        super().sync()
        self.synced_s += time.perf_counter() - began


def plan_of(shards: int) -> Plan:
    """A plan of shards of the usual size."""
    config = SamplerConfig(width=TRAJECTORIES_PER_PUZZLE)
    return Plan("driver benchmark", shards_of(PUZZLES_PER_SHARD * shards, config))


def _cost(pool: TimedPool, job: Job, shards: int) -> DriverCost:
    plan = plan_of(shards)
    with tempfile.TemporaryDirectory(prefix="gram-") as folder:
        store = _TimedStore.open(Path(folder), plan.key, len(plan.shards), {})
        with store:
            run_elsewhere(store, pool, job, plan.shards)
            store.sync()
            ended = Clock.now()
            result_bytes = sum(array.nbytes for array in store.read(0).values())
    began = pool.clock
    wall_s = ended.wall_s - began.wall_s - pool.stopping_s
    return DriverCost(
        shards=shards,
        result_bytes=result_bytes,
        wall_ms=1e3 * wall_s / shards,
        driver_ms=1e3 * (wall_s - pool.answers.waited_s) / shards,
        thread_cpu_ms=1e3 * (ended.thread_s - began.thread_s) / shards,
        process_cpu_ms=1e3 * (ended.process_s - began.process_s) / shards,
        sync_ms=1e3 * store.synced_s / shards,
    )


def made_up(sampler: Sampler) -> Serialized:
    """A shard's result of the usual size."""
    model, task, rng = sampler.model, sampler.task, np.random.default_rng(0)
    p, n = PUZZLES_PER_SHARD, TRAJECTORIES_PER_PUZZLE
    scores = rng.standard_normal((4, p, n)).astype(np.float32)
    answers = rng.integers(1, model.config.vocabulary, (p, n, model.config.output_tokens))
    return Serialized.of(
        ShardResult(
            puzzles=rng.integers(1, model.config.vocabulary, (p, task.tokens)).astype(np.uint8),
            candidates=answers.astype(np.uint8),
            steps=rng.integers(1, 9, (p, n)),
            halt=scores[0],
            lprm=scores[1],
            residual=scores[2],
            margin=scores[3],
            is_halted=rng.random((p, n)) < 0.9,
            lineage=np.broadcast_to(np.arange(n), (p, n)),
            widths=np.full(p, n),
        ).arrays()
    )
