"""A Ray cluster with nodes on this machine: same trajectories whatever goes wrong. One cluster for all tests."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gram import __version__
from gram.api import Sampler
from gram.cli.main import main
from gram.config import SamplerConfig
from gram.distributed import access, cluster, sources
from gram.sampler.engine import Progress
from gram.sampler.record import Serialized
from gram.sampler.result import SampleResult
from gram.sampler.run import Job, shards_of
from gram.sampler.store import Store, StoreError
from gram.tasks.registry import get_task
from tests import ill_workers
from tests.integration.test_cli import tiny
from tests.models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.alone]
ROOT = Path(__file__).parents[2]
TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split("train").puzzles, TASK.split("test").puzzles])
CONFIG = SamplerConfig(width=48, launch=8)
HERE = {"node_ip_address": access.LOOPBACK}
SHARDS = len(shards_of(len(PUZZLES), CONFIG))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster with a head that has no room for workers and one node that has room for two; this process is connected.

    A start can fail on a starved machine, which says nothing of ours.
    """
    cluster.prepare_new()
    from ray.cluster_utils import Cluster

    made = Cluster()
    for attempt in range(3):
        try:
            made.add_node(num_cpus=0, include_dashboard=False, **HERE)
            made.add_node(num_cpus=2, **HERE)
            break
        except Exception:
            if attempt == 2:
                raise
            made.shutdown()
            made = Cluster()
    with cluster.connected(made.address):
        yield made
    made.shutdown()


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(tiny_model(), TASK, name="tiny")


@pytest.fixture(scope="module")
def local(sampler: Sampler) -> SampleResult:
    return sampler.sample(PUZZLES, CONFIG)


@pytest.fixture(scope="module")
def records(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every shard's result, as a worker sends it."""
    folder = tmp_path_factory.mktemp("records")
    settings = sampler.settings(CONFIG)
    job = Job(model=sampler.model, task=TASK, puzzles=PUZZLES, config=settings, device=sampler.model.device)
    for shard in shards_of(len(PUZZLES), settings):
        arrays = job.run_shard(shard).arrays()
        (folder / str(shard.index)).write_bytes(Serialized.of(arrays).to_bytes())
    return folder


@pytest.fixture
def ill(sampler: Sampler, records: Path) -> Callable[[ill_workers.Fault], type]:
    """Workers with a fault."""
    metadata = (__version__, sources.digest(), "cpu", "eager", sampler.model.digest(), "")
    return lambda fault: ill_workers.recorded(records, metadata, fault)


def spread(sampler: Sampler, pool: dict[str, Any], **arguments: Any) -> tuple[SampleResult, Any]:
    """A run on the cluster and its pool."""
    from gram.cli.errors import report
    from gram.distributed.pool import Pool

    made = Pool(**{"workers": 2, "report": report, **pool})
    return sampler.sample(PUZZLES, CONFIG, backend=made, **arguments), made


def assert_same(result: SampleResult, local: SampleResult) -> None:
    """Every trajectory and score, bit for bit."""
    assert result.trajectories_sha256 == local.trajectories_sha256
    for name in ("halt", "lprm", "residual", "margin", "votes", "selected"):
        assert np.array_equal(getattr(result, name), getattr(local, name), equal_nan=True)


def test_same_result_as_a_local_run(nodes, sampler, local):
    """Real workers; the traced run below has one, this has two."""
    from gram.distributed.pool import START_TIMEOUT_S, Pool

    class WithBoth(Pool):
        """Begins when both are ready: where starts are slow, the first would have done all by then."""

        def start(self, job: Job, shards: int) -> None:
            super().start(job, shards)
            until = time.monotonic() + START_TIMEOUT_S
            while len(self._queue.names()) < 2 and time.monotonic() < until:
                self._take(self._wait())

    pool = WithBoth(workers=2)
    result = sampler.sample(PUZZLES, CONFIG, backend=pool)
    assert_same(result, local)
    assert pool.account() == {"workers": 2, "nodes": 1, "retries": 0}


def test_traces_and_adaptive_width_are_the_same_too(nodes, sampler, tmp_path):
    from gram.distributed.pool import Pool

    config = SamplerConfig(width=12, launch=8, width_policy="decided", temperature=0.1)
    folders = tmp_path / "here", tmp_path / "there"
    for folder, backend in zip(folders, (None, Pool(workers=1)), strict=True):
        sampler.sample(PUZZLES, config, out=folder, is_traced=True, backend=backend)
    with Store.read_only(folders[0]) as here, Store.read_only(folders[1]) as there:
        assert here.plan_key == there.plan_key
        for index in range(here.shard_count):
            mine, theirs = here.read(index), there.read(index)
            assert set(mine) == set(theirs)
            assert any(name.startswith("trace_") for name in mine)
            for name in mine:
                assert np.array_equal(mine[name], theirs[name], equal_nan=mine[name].dtype.kind == "f")


def test_workers_that_are_killed_are_replaced(nodes, sampler, local, ill, tmp_path):
    result, pool = spread(sampler, {"worker_class": ill(ill_workers.dies_once(tmp_path, {3, SHARDS - 1}))})
    assert_same(result, local)
    assert pool.account()["retries"] >= 2
    assert pool.account()["workers"] >= 3


def test_poison_shards_are_named_and_the_others_kept(nodes, sampler, local, ill, tmp_path):
    from gram.distributed.pool import PoisonError

    told: list[str] = []
    class_ = ill(ill_workers.cannot(raises={5}, dies={2}))
    with pytest.raises(PoisonError, match=r"shard 2 \(puzzles 0 to .*its process died.*so did 1 more: 5; every other"):
        spread(sampler, {"worker_class": class_, "report": told.append}, out=tmp_path)
    assert any("shard 5 failed: ValueError: shard 5 is ill" in line for line in told)
    with Store.read_only(tmp_path) as store:
        assert store.missing() == [2, 5]
    result, pool = spread(sampler, {"worker_class": ill(ill_workers.dawdles(0.0))}, out=tmp_path)
    assert_same(result, local)
    assert pool.account()["retries"] == 0


def test_results_that_come_twice_count_once(nodes, sampler, local, ill):
    from gram.distributed.pool import Pool

    class Twice(Pool):
        def _listen(self, answer: Any, worker: str, shard: int | None) -> None:
            super()._listen(answer, worker, shard)
            if shard is not None:
                super()._listen(answer, worker, shard)

    pool = Twice(workers=1, worker_class=ill(ill_workers.dawdles(0.0)))
    told: list[int] = []
    assert_same(sampler.sample(PUZZLES, CONFIG, backend=pool, observer=Progress(told.append)), local)
    assert sum(told) == local.trajectories


def test_two_different_results_of_a_shard_are_an_error(nodes, sampler, ill, records, tmp_path):
    from gram.distributed.pool import Pool

    class Again(Pool):
        def _send(self, worker: str, index: int) -> None:
            super()._send(worker, index)
            super()._send(worker, index)

    pool = Again(workers=1, worker_class=ill(ill_workers.lies(tmp_path, (records / "1").read_bytes())))
    with pytest.raises(StoreError, match="shard 0 is stored already with another result"):
        sampler.sample(PUZZLES, CONFIG, backend=pool)


@pytest.mark.parametrize("slow_seconds", [1.0, 3600.0], ids=["ten times slower", "stuck"])
def test_a_slow_worker_does_not_hold_up_the_others(nodes, sampler, local, ill, tmp_path, slow_seconds):
    """What it holds is run by others too; waiting for the stuck one would take longer than a test may."""
    slow = ill(ill_workers.dawdles(0.1, tmp_path / "claimed", slow_seconds=slow_seconds))
    result, pool = spread(sampler, {"worker_class": slow})
    assert_same(result, local)
    assert (tmp_path / "claimed").exists(), "no worker was slow"
    assert pool.account()["retries"] == 0


def test_a_slow_copy_is_cancelled_and_its_worker_takes_other_work(nodes, sampler, local, ill, tmp_path):
    """A shard that the fast worker cannot run waits for the slow one, which comes free by the cancellation alone."""
    told: list[str] = []
    stuck = ill(ill_workers.stuck(tmp_path, shard=0, refused=1))
    result, pool = spread(sampler, {"worker_class": stuck, "report": told.append})
    assert_same(result, local)
    assert (tmp_path / "cancelled").exists()
    assert pool.account()["workers"] == 2, "it was not killed for it"
    assert not any("shard 0" in line for line in told), "and it counts as no failure"
    status = pool.status()
    assert (status.finished, status.shards, status.poison) == (SHARDS, SHARDS, 0)
    assert status.copies >= 1


def test_a_worker_is_free_within_a_step_of_its_cancellation(nodes, sampler, tmp_path):
    """Two shards of 65,536 supervision steps, minutes of work, one running and one behind it: it answers again."""
    import ray
    from ray.exceptions import TaskCancelledError

    from gram.distributed.worker import Worker, pack

    class Marked(Worker):
        def run(self, shard: tuple[int, ...]) -> tuple[bytes, str, float]:
            (tmp_path / str(shard[0])).touch()
            return super().run(shard)

    settings = sampler.settings(SamplerConfig(width=8, launch=8, halting="fixed", depth=65_536))
    job = Job(
        model=sampler.model,
        task=TASK,
        puzzles=PUZZLES,
        config=settings,
        device=sampler.model.device,
    )
    actor = ray.remote(num_cpus=1)(Marked).remote(pack(job, task_module=None))
    shards = [astuple(shard) for shard in shards_of(len(PUZZLES), settings)]
    running, behind = (actor.run.remote(shard) for shard in shards[:2])
    until = time.monotonic() + 60
    while not (tmp_path / "0").exists() and time.monotonic() < until:
        time.sleep(0.02)
    for answer in (behind, running):
        ray.cancel(answer, recursive=False)
    for answer in (running, behind):
        with pytest.raises(TaskCancelledError):
            ray.get(answer, timeout=60)
    assert ray.get(actor.ready.remote(), timeout=60)[4] == sampler.model.digest()
    ray.kill(actor)


def test_a_full_disk_ends_the_run_with_one_line(nodes, sampler, ill, tmp_path, monkeypatch):
    write = Store._write

    def full(store: Store, record: bytes) -> None:
        if len(store.done()) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(store, record)

    monkeypatch.setattr(Store, "_write", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        spread(sampler, {"worker_class": ill(ill_workers.dawdles(0.0))}, out=tmp_path)
    with Store.read_only(tmp_path) as store:
        assert len(store.done()) == 3


def test_workers_that_differ_are_turned_away_by_name(nodes, sampler, records):
    metadata = (__version__, sources.digest(), "cpu", "eager", sampler.model.digest(), "")
    for place, name in ((1, "sources"), (3, "kernel"), (4, "weights")):
        theirs = (*metadata[:place], "others", *metadata[place + 1 :])
        other = ill_workers.recorded(records, theirs, ill_workers.dawdles(0.0))
        with pytest.raises(ValueError, match=rf"no worker could start: {name} must be \w+ on every node, got others"):
            spread(sampler, {"worker_class": other})


def test_a_second_connection_is_refused_and_the_first_one_kept(nodes):
    import ray

    with pytest.raises(ValueError, match="ray must not be connected yet"), cluster.connected("new"):
        pass
    assert ray.is_initialized()


def test_nodes_come_and_go(nodes, sampler, local, ill, tmp_path):
    """A node is removed in mid-run, then one is added: workers follow. Shards wait for them."""
    from gram.distributed.pool import Pool

    second, told = nodes.add_node(num_cpus=1, **HERE), []
    pool = Pool(worker_class=ill(ill_workers.waits(tmp_path, last_of=4)), report=told.append)
    ended: list[int] = []

    def change(count: int) -> None:
        if not ended:
            nodes.remove_node(second, allow_graceful=False)
            nodes.add_node(num_cpus=1, **HERE)
        ended.append(count)

    def watch() -> None:
        until = time.monotonic() + 90
        for wanted, mark, lost in ((2, "first", 0), (3, "last", 1)):
            while (pool.account()["nodes"] < wanted or len(told) < lost) and time.monotonic() < until:
                time.sleep(0.1)
            (tmp_path / mark).touch()

    watching = threading.Thread(target=watch)
    watching.start()
    result = sampler.sample(PUZZLES, CONFIG, backend=pool, observer=Progress(change))
    watching.join()
    assert_same(result, local)
    assert pool.account()["nodes"] == 3, "the first node, the removed one and the added one"
    assert told, "the driver tells of the lost worker"


def command(folder: Path, checkpoint: str, where: str) -> list[str]:
    arguments = ["sample", "nqueens4", "--checkpoint", checkpoint, "--width", "400", "--out", str(folder), "--json"]
    return [sys.executable, "-m", "gram", *arguments, "--ray", where, "--workers", "1", "--quiet"]


def test_a_killed_driver_goes_on_where_it_was(nodes, tmp_path):
    """SIGKILL to the driver; the same command resumes, and its shards are those of a local run."""
    checkpoint, out = tiny(tmp_path / "checkpoint"), tmp_path / "out"
    driver = subprocess.Popen(command(out, checkpoint, nodes.address), cwd=ROOT, stdout=subprocess.DEVNULL)
    log = out / "shards.bin"
    until = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    with Store.read_only(out) as store:
        kept = store.done()
        assert kept
        assert store.missing()
    subprocess.run(command(out, checkpoint, nodes.address), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    here = tmp_path / "here"
    off = command(here, checkpoint, "off")[3:]
    assert main([part for part in off if part not in ("--workers", "1")]) == 0
    with Store.read_only(out) as there, Store.read_only(here) as mine:
        assert there.plan_key == mine.plan_key
        assert not there.missing()
        for index in range(mine.shard_count):
            assert np.array_equal(there.read(index)["candidates"], mine.read(index)["candidates"])
