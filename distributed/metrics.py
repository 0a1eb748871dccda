"""A run's figures as Ray's own metrics, for whoever watches the cluster with Prometheus or Grafana.

README.md lists them. The driver alone records them. They leave it through the metrics agent of its node, which
`ray[default]` brings; without one Ray drops them. Names get the prefix `ray_` there, counters the suffix `_total`.
"""

from __future__ import annotations

import time

from ray.util.metrics import Counter, Gauge, Histogram

from gram.distributed.pull_queue import PullQueue

TASK = "task"
"""The one tag of ours; Ray adds its own, the job's number among them."""
COUNTERS = {
    "finished": ("gram_shards_finished", "Shards with a result."),
    "retries": ("gram_shard_retries", "Shards queued again after their worker failed or was lost."),
    "reissues": ("gram_shard_reissues", "Copies of running shards handed to idle workers at the end of a run."),
    "cancelled": ("gram_shard_cancellations", "Copies cancelled because another worker was first."),
    "duplicates": ("gram_shard_duplicates", "Results of shards that had one already."),
    "failures": ("gram_shard_failures", "Attempts that counted: errors, and deaths of the worker that ran the shard."),
}
"""Name and meaning, by the attribute of `PullQueue` that is counted."""
BUCKETS_S = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
DRIVER_BUCKETS_S = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
"""Upper ends of the buckets."""


class RunMetrics:
    """Tells Ray what has changed since it was told last; one for each pool, `begin` for each run."""

    def __init__(self) -> None:
        tags = (TASK,)
        self._counters = {name: Counter(*about, tag_keys=tags) for name, about in COUNTERS.items()}
        self._workers = Gauge("gram_workers_alive", "Workers that are ready.", tag_keys=tags)
        self._shard_seconds = Histogram("gram_shard_seconds", "A worker's time for a shard.", BUCKETS_S, tags)
        self._driver_seconds = Histogram(
            "gram_driver_seconds", "The driver's time for a shard, with its storing.", DRIVER_BUCKETS_S, tags
        )
        self.begin("")

    def begin(self, task: str) -> None:
        """Work for `task` begins, with a new queue."""
        self._tags, self._told, self._alive = {TASK: task}, dict.fromkeys(COUNTERS, 0), -1
        self._worked_s = 0.0
        self._since: float | None = None

    def works(self) -> None:
        """The driver turns to what has come."""
        self._since = time.perf_counter()

    def waits(self, queue: PullQueue) -> None:
        """The driver has nothing to do but wait: records what has changed. The time since `works` belongs to the shards
        that have finished."""
        if self._since is not None:
            self._worked_s += time.perf_counter() - self._since
            self._since = None
        finished = queue.finished - self._told["finished"]
        for _ in range(finished):
            self._driver_seconds.observe(self._worked_s / finished, self._tags)
        if finished:
            self._worked_s = 0.0
        for name, counter in self._counters.items():
            value = getattr(queue, name)
            if (more := value - self._told[name]) > 0:
                counter.inc(more, self._tags)
                self._told[name] = value
        if queue.workers != self._alive:
            self._alive = queue.workers
            self._workers.set(self._alive, self._tags)

    def took(self, seconds: float) -> None:
        """A worker has spent so long on a shard that it has answered for with a result."""
        self._shard_seconds.observe(seconds, self._tags)

    def end(self, queue: PullQueue) -> None:
        """The run is over: its workers are gone."""
        self.waits(queue)
        self._workers.set(0, self._tags)
