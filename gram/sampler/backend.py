"""Running a plan's shards into a store: here, or by a backend somewhere else. Not the plan (`gram/sampler/run.py`).

Shapes: `P` puzzles, `L` puzzle tokens.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch

from gram.config import ResolvedConfig
from gram.model import Model
from gram.sampler.engine import Engine, Observer
from gram.sampler.record import Serialized
from gram.sampler.result import ShardResult
from gram.sampler.scheduler import Shard
from gram.sampler.store import Store
from gram.tasks.protocol import Task, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that the shards of a plan need to run, here or elsewhere."""

    model: Model
    task: Task
    puzzles: Tokens
    """`[P, L]`."""
    config: ResolvedConfig
    device: torch.device
    """Where the plan counts on running."""
    is_unconditional: bool = False
    is_traced: bool = False

    def engine(self, observer: Observer | None = None) -> Engine:
        """An engine for some of its shards."""
        return Engine(
            self.model,
            self.task,
            self.puzzles,
            self.config,
            is_unconditional=self.is_unconditional,
            is_traced=self.is_traced,
            observer=observer,
        )

    def run_shard(self, shard: Shard, observer: Observer | None = None) -> ShardResult:
        """One shard of a plan: what a worker runs. Same job, same arrays, whatever the number of slots.

        An exception of `observer` ends it between two supervision steps.
        """
        ((_, result),) = self.engine(observer).run([shard])
        return result


class Backend(Protocol):
    """Runs shards somewhere else than here."""

    @property
    def device(self) -> torch.device | None:
        """Where its workers compute; None: as the model here."""

    def start(self, job: Job, shards: int) -> None:
        """Waits until there is somebody to run `shards` shards. Raises `ValueError`."""

    def run(self, shards: Iterable[Shard]) -> Generator[tuple[Shard, Serialized], None, None]:
        """Runs each of `shards` and yields its result; a shard may come twice. Raises `ValueError` at the end where
        shards are left that cannot be run. Closing it stops everything."""


def run_into(store: Store, engine: Engine, shards: Sequence[Shard], observer: Observer, started: float) -> None:
    """Runs the shards that the store lacks, and keeps each as soon as it is finished.

    `started` is when the first one began, by `time.perf_counter`.
    """
    for shard, result in engine.run(_missing(store, shards, observer)):
        now = time.perf_counter()
        store.append(shard.index, result.arrays(), now - started)
        started = now


def run_elsewhere(
    store: Store, backend: Backend, job: Job, shards: Sequence[Shard], observer: Observer | None = None
) -> None:
    """Has a backend run the shards that the store lacks, and keeps each as it comes.

    The time until the backend is ready is not counted. `observer` sees when trajectories have ended and nothing else.
    """
    observer = observer or Observer()
    missing = _missing(store, shards, observer)
    if not missing:
        return
    backend.start(job, len(missing))
    before = time.perf_counter()
    with closing(backend.run(missing)) as results:
        for shard, serialized in results:
            now = time.perf_counter()
            if store.append_serialized(shard.index, serialized, now - before):
                before = now
                observer.on_ended(shard.puzzles * shard.trajectories)


def _missing(store: Store, shards: Sequence[Shard], observer: Observer) -> list[Shard]:
    """The shards that the store lacks; the observer hears at once of the trajectories of the others."""
    done = store.done()
    if done:
        observer.on_ended(sum(shard.puzzles * shard.trajectories for shard in shards if shard.index in done))
    return [shard for shard in shards if shard.index not in done]
