"""`gram plan` against runs: nodes of Ray on this machine, workers that sleep instead of computing.

Sleeping needs no processor, so a machine of two cores can stand for many; what is checked is everything else: queue,
driver, Ray, store. Times are seconds. Importing this imports Ray, which reads its variables then: call
`cluster.prepare_new` before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram.api import Sampler
from gram.distributed import access, cluster
from gram.distributed.access import STARTS
from gram.distributed.driver_benchmark import Clock, TimedPool, answering, job_of, made_up, plan_of
from gram.distributed.pool import ClusterError, _Event, room
from gram.distributed.prediction import Prediction, predict
from gram.distributed.worker import expected_metadata
from gram.sampler.run import run_elsewhere
from gram.sampler.store import Store

SPREAD = 0.1
"""Sleeps are within so much of their mean, as the simulation's shards are."""
LOOKS = 300
"""Times a tenth of a second that a node may take to be seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionCheck:
    """A predicted run and what it was."""

    nodes: int
    predicted: Prediction
    elapsed_s: float
    driver_s: float
    """The driver's time for a shard."""
    most_in_flight: int
    """Shards that workers held at once, at most."""
    result_bytes: int
    """Of a shard, as stored."""

    @property
    def error(self) -> float:
        """Measured time over predicted time, less 1."""
        return self.elapsed_s / self.predicted.elapsed_s - 1


def check(
    sampler: Sampler,
    *,
    nodes: Sequence[int],
    workers_per_node: int,
    shards_per_worker: int,
    shard_s: float,
    driver_s: float,
    weights_bytes: int,
) -> Iterator[PredictionCheck]:
    """Predicts and runs a plan on each number of nodes, ascending. Raises `ClusterError`, `ValueError`."""
    if list(nodes) != sorted(set(nodes)) or not nodes or nodes[0] < 1:
        raise ValueError(f"nodes must be ascending and at least 1, got {', '.join(map(str, nodes)) or 'none'}")
    job, answer = job_of(sampler), made_up(sampler).to_bytes()
    with _growing_cluster(workers_per_node) as grow:
        for count in nodes:
            grow(count)
            workers = count * workers_per_node
            plan = plan_of(workers * shards_per_worker)
            trajectories = plan.shards[0].puzzles * plan.shards[0].trajectories
            predicted = predict(
                plan.shards,
                workers=workers,
                nodes=count,
                trajectories_per_s=trajectories / shard_s,
                answer_tokens=sampler.model.config.output_tokens,
                puzzle_tokens=sampler.task.tokens,
                weights_bytes=weights_bytes,
                driver_s=driver_s,
            )
            sleeps = (1 - SPREAD) * shard_s, (1 + SPREAD) * shard_s
            pool = _Counting(workers=workers, worker_class=answering(expected_metadata(job), answer, sleeps))
            with (
                tempfile.TemporaryDirectory(prefix="gram-") as folder,
                Store.open(Path(folder), plan.key, len(plan.shards), {}) as store,
            ):
                run_elsewhere(store, pool, job, plan.shards)
                elapsed_s = Clock.now().wall_s - pool.clock.wall_s - pool.stopping_s
                result_bytes = sum(array.nbytes for array in store.read(0).values())
            yield PredictionCheck(
                nodes=count,
                predicted=predicted,
                elapsed_s=elapsed_s,
                driver_s=(elapsed_s - pool.answers.waited_s) / len(plan.shards),
                most_in_flight=pool.most_in_flight,
                result_bytes=result_bytes,
            )


class _Counting(TimedPool):
    most_in_flight = 0

    def _wait(self) -> _Event | None:
        self.most_in_flight = max(self.most_in_flight, sum(len(self._queue.holds(name)) for name in self._members))
        return super()._wait()


@contextmanager
def _growing_cluster(workers_per_node: int) -> Iterator[Any]:
    """A cluster whose head has no room for workers, and what brings it to so many nodes; this process is connected."""
    cluster.prepare_new()
    from ray.cluster_utils import Cluster

    here = {"node_ip_address": access.LOOPBACK, "object_store_memory": access.OBJECT_STORE_BYTES}
    with ExitStack() as stack:
        made = _started(Cluster, num_cpus=0, include_dashboard=False, **here)
        stack.callback(made.shutdown)
        stack.enter_context(cluster.connected(made.address))

        def grow(count: int) -> None:
            while len(made.worker_nodes) < count:
                made.add_node(num_cpus=workers_per_node, **here)
            for _ in range(LOOKS):
                if room(0.0) >= count * workers_per_node:
                    return
                time.sleep(0.1)
            raise ClusterError(f"{count} nodes must come, got room for {room(0.0)} workers")

        yield grow


def _started(kind: Any, **head: Any) -> Any:
    """A cluster with its head, with the last of some tries: a start can fail on a starved machine."""
    for attempt in range(1, STARTS + 1):
        made = kind()
        try:
            made.add_node(**head)
            return made
        except Exception:
            made.shutdown()
            if attempt == STARTS:
                raise
    raise AssertionError("the last try returns or raises")
