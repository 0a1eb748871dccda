"""What Ray is told of a run: by its public classes and, where its metrics agent is there, as that exports it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from gram.distributed import local_cluster
from gram.distributed.pull_queue import PullQueue

metrics = pytest.importorskip("gram.distributed.metrics")  # needs ray
ROOT = Path(__file__).parents[2]


class Recorder:
    """In place of Ray's classes: every value with its metric, method and tags."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.tasks: set[str] = set()
        self.kinds: dict[str, str] = {}

    def made(self, kind: str, method: str) -> Any:
        """A class that records what `method` is given."""

        def make(name: str, meaning: str, boundaries: Any = None, tag_keys: tuple[str, ...] = ()) -> Any:
            assert meaning.endswith(".")
            assert tag_keys == ("task",)
            assert (boundaries is not None) == (kind == "histogram")
            assert boundaries is None or sorted(boundaries) == boundaries
            self.kinds[name] = kind

            def record(value: float, tags: dict[str, str]) -> None:
                self.values[name].append(value)
                self.tasks.add(tags["task"])

            return type(kind, (), {method: staticmethod(record)})

        return make


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    for kind, method in (("Counter", "inc"), ("Gauge", "set"), ("Histogram", "observe")):
        monkeypatch.setattr(metrics, kind, made.made(kind.lower(), method))
    return made


def test_a_run_is_told_once_and_whole(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure, a lost worker, a copy that is cancelled and a result that comes twice; the clock is the test's."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    told, queue = metrics.RunMetrics(), PullQueue(range(3))
    told.begin("nqueens4")

    def turn(seconds: float, *events: Any) -> None:
        told.works()
        for event in events:
            event()
        queue.assign()
        queue.unneeded()
        now[0] += seconds
        told.waits(queue)
        now[0] += 100  # waiting is nobody's work

    turn(0.5, lambda: queue.join("a"), lambda: queue.join("b"))
    assert "gram_driver_seconds" not in recorder.values, "no shard has come yet to which the time belongs"
    turn(0.25, lambda: queue.finish("a", 0))
    turn(0.0, lambda: queue.fail("b", 1, "ill"))
    turn(0.0, lambda: queue.leave("b", "killed"))
    turn(0.5, lambda: queue.finish("a", 2), lambda: queue.join("c"))
    turn(0.0, lambda: queue.finish("c", 2))
    while not queue.is_over:
        turn(0.0, lambda: queue.finish("c", 1))
    told.took(1.5)
    told.end(queue)
    values = {name: sum(each) for name, each in recorder.values.items() if recorder.kinds[name] == "counter"}
    assert values["gram_shards_finished"] == 3
    for attribute, (name, _) in metrics.COUNTERS.items():
        assert values.get(name, 0) == getattr(queue, attribute), "the queue's own count, told once"
    assert values["gram_shard_failures"] >= 1
    assert values["gram_shard_retries"] >= 1
    assert values["gram_shard_duplicates"] == 1
    assert recorder.values["gram_driver_seconds"][:2] == [0.75, 0.5]
    assert len(recorder.values["gram_driver_seconds"]) == 3
    assert recorder.values["gram_shard_seconds"] == [1.5]
    assert recorder.values["gram_workers_alive"] == [2, 1, 2, 0]
    assert recorder.tasks == {"nqueens4"}


def test_a_second_run_counts_from_its_own_begin(recorder: Recorder) -> None:
    told = metrics.RunMetrics()
    for _ in range(2):
        queue = PullQueue(range(2))
        told.begin("nqueens4")
        queue.join("a")
        queue.assign()
        for shard in range(2):
            queue.finish("a", shard)
            told.waits(queue)
        told.end(queue)
    assert sum(recorder.values["gram_shards_finished"]) == 4


def test_names_are_what_prometheus_takes_and_the_page_lists_them_all(recorder: Recorder) -> None:
    metrics.RunMetrics()
    page = (ROOT / "docs" / "clusters.md").read_text()
    for name, kind in recorder.kinds.items():
        assert re.fullmatch(r"gram_[a-z_]+[a-z]", name)
        assert not name.endswith(("_total", "_count", "_sum", "_bucket")), "suffixes that the exporter adds"
        row = f"| `ray_{name}{'_total' if kind == 'counter' else ''}` |"
        assert row in page


EXPORTED = """
import json, re, sys, time, urllib.request
import numpy as np
import ray
from gram.api import Sampler
from gram.distributed import access, cluster
from gram.distributed.pool import Pool
from gram.tasks.registry import get_task
from tests.models import tiny_model

task = get_task("nqueens4")
puzzles = np.concatenate([task.split("train").puzzles, task.split("test").puzzles])
with cluster.connected("new", cpus=1):
    port = ray.nodes()[0]["MetricsExportPort"]
    result = Sampler(tiny_model(), task, name="tiny").sample(puzzles, width=12, launch=8, backend=Pool(workers=1))
    until = time.monotonic() + 90
    found = {}

    def value(name):
        return sum(value for _, value in found.get(name, []))

    # What is told comes in several parts; the gauge falls to 0 with the last.
    while (value("ray_gram_shards_finished_total"), value("ray_gram_workers_alive")) != (3, 0):
        assert time.monotonic() < until, found
        time.sleep(0.5)
        text = urllib.request.urlopen(f"http://{access.LOOPBACK}:{port}/metrics", timeout=10).read().decode()
        found = {}
        for name, tags, number in re.findall(r"^(ray_gram_\\w+){(.*)} (\\S+)$", text, re.MULTILINE):
            found.setdefault(name, []).append((dict(re.findall(r'(\\w+)="([^"]*)"', tags)), float(number)))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_what_the_agent_exports(tmp_path: Path) -> None:
    """A cluster of its own, read as Prometheus would read it."""
    try:
        local_cluster.require_dashboard()
    except ValueError as error:
        pytest.skip(f"Ray exports nothing without its metrics agent: {error}")
    environment = {**os.environ, "RAY_metrics_report_interval_ms": "500"}
    line = [sys.executable, "-c", EXPORTED]
    ran = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])

    def value(name: str) -> float:
        return float(sum(value for tags, value in found[name] if tags["task"] == "nqueens4"))

    assert value("ray_gram_shards_finished_total") == 3
    assert value("ray_gram_shard_seconds_count") == value("ray_gram_driver_seconds_count") == 3
    assert value("ray_gram_shard_seconds_sum") > 0
    assert value("ray_gram_workers_alive") == 0
    assert "ray_gram_shard_retries_total" not in found, "nothing was to be told"
