"""Kills at random, nodes that go with and without room elsewhere, commands that spread: the result of a local run.

`GRAM_KILLS` says how many random kills there are of workers, and of the driver.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gram.cli.main import main
from gram.config import SamplerConfig
from gram.sampler.engine import Progress
from gram.sampler.record import payload_of
from gram.sampler.store import Store
from tests import ill_workers
from tests.frontier_parts import stable
from tests.integration.test_cli import tiny
from tests.integration.test_ray import (
    CONFIG,
    HERE,
    PUZZLES,
    ROOT,
    SHARDS,
    assert_same,
    command,
    ill,
    local,
    nodes,
    records,
    sampler,
)

__all__ = ["ill", "local", "nodes", "records", "sampler"]
pytestmark = [pytest.mark.slow, pytest.mark.alone]
KILLS = int(os.environ.get("GRAM_KILLS", "3"))
QUIET = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL}


def payloads(folder: Path) -> dict[int, bytes]:
    """The bytes of every shard's result."""
    with Store.read_only(folder) as store:
        assert not store.missing()
        return {index: payload_of(store.read(index)) for index in range(store.shard_count)}


def gram(*arguments: str) -> dict[str, Any]:
    """A command's JSON, of a process of its own."""
    line = [sys.executable, "-m", "gram", *arguments, "--json", "--quiet"]
    return dict(json.loads(subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout))


def gram_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """A command's JSON, of this process and without a cluster."""
    assert main([*arguments, "--json", "--quiet"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def until(claim: Any, seconds: float = 90.0) -> None:
    """Waits until a claim holds."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_killed_at_random(nodes, sampler, local, ill):
    """A thread kills whichever worker it likes; each is replaced and no shard is lost or counted twice."""
    from gram.distributed.pool import Pool

    class_ = ill(ill_workers.dawdles(0.1 + KILLS / 20))
    pool = Pool(workers=2, worker_class=class_, attempts=KILLS + 1)
    source, told, killed, is_over = random.Random(KILLS), [], [], threading.Event()

    def kill() -> None:
        while len(killed) < KILLS and not is_over.wait(source.uniform(0.0, 1.0)):
            living = [metadata.process for name, metadata in pool.members().items() if metadata.process not in killed]
            if living:
                killed.append(source.choice(living))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = sampler.sample(PUZZLES, CONFIG, backend=pool, observer=Progress(told.append))
    is_over.set()
    killer.join()
    assert_same(result, local)
    assert sum(told) == local.trajectories
    assert len(killed) == KILLS, "the run was over before the last kill"


def test_a_node_is_lost_with_room_elsewhere(nodes, sampler, local, ill, tmp_path):
    from gram.distributed.pool import Pool

    spare = nodes.add_node(num_cpus=1, **HERE)
    until(lambda: room_for(3))
    pool = Pool(workers=3, worker_class=ill(ill_workers.waits(tmp_path, last_of=2)))
    ended: list[int] = []

    def remove() -> None:
        until(lambda: pool.account()["nodes"] == 2)
        nodes.remove_node(spare, allow_graceful=False)
        for mark in ("first", "last"):
            (tmp_path / mark).touch()

    removing = threading.Thread(target=remove)
    removing.start()
    assert_same(sampler.sample(PUZZLES, CONFIG, backend=pool, observer=Progress(ended.append)), local)
    removing.join()
    assert sum(ended) == local.trajectories


def room_for(workers: int) -> bool:
    """Whether the cluster has room for exactly so many workers."""
    from gram.distributed.pool import room

    return room(0.0) == workers


@pytest.mark.parametrize("is_replaced", [True, False])
def test_the_only_node_is_lost(nodes, sampler, local, ill, tmp_path, is_replaced):
    """The run waits: it goes on when a node comes, and ends with an account of what is left when none does."""
    from gram.distributed.pool import ClusterError, Pool

    only = next(node for node in nodes.worker_nodes if node.all_processes)
    told: list[str] = []

    def heard(line: str) -> None:
        told.append(line)
        if is_replaced and "no worker is left" in line:
            nodes.add_node(num_cpus=2, **HERE)

    pool = Pool(
        workers=2,
        worker_class=ill(ill_workers.dawdles(0.2)),
        patience_s=60.0 if is_replaced else 3.0,
        report=heard,
    )
    ended: list[int] = []

    def remove(count: int) -> None:
        if not ended:
            nodes.remove_node(only, allow_graceful=False)
        ended.append(count)

    if is_replaced:
        result = sampler.sample(PUZZLES, CONFIG, backend=pool, observer=Progress(remove), out=tmp_path)
        assert any("no worker is left" in line for line in told)
    else:
        with pytest.raises(ClusterError, match=r"a worker must come within 3 s of the loss .* \d+ of \d+ shards are"):
            sampler.sample(PUZZLES, CONFIG, backend=pool, observer=Progress(remove), out=tmp_path)
        with Store.read_only(tmp_path) as store:
            assert 0 < len(store.done()) < SHARDS, "what was finished is kept"
        nodes.add_node(num_cpus=2, **HERE)
        until(lambda: room_for(2))
        result = sampler.sample(PUZZLES, CONFIG, out=tmp_path)
    assert_same(result, local)


def test_any_number_of_nodes_and_workers_gives_the_same_bytes(nodes, sampler, tmp_path):
    from gram.distributed.pool import Pool

    sampler.sample(PUZZLES, CONFIG, out=tmp_path / "here")
    wanted = payloads(tmp_path / "here")
    added: list[Any] = []
    for count, workers in ((1, 1), (2, 3), (3, 4)):
        until(lambda room=count + 1: room_for(room))
        pool = Pool(workers=workers)
        sampler.sample(PUZZLES, CONFIG, out=tmp_path / str(count), backend=pool)
        assert payloads(tmp_path / str(count)) == wanted
        assert pool.account()["nodes"] <= count
        if count < 3:
            added.append(nodes.add_node(num_cpus=1, **HERE))
    for node in added:
        nodes.remove_node(node)
    until(lambda: room_for(2))


def test_a_pool_serves_one_run_after_another(nodes, sampler, local, ill):
    """As the cells of a study; late answers of one are none of the next one's."""
    from gram.distributed.pool import Pool

    pool = Pool(workers=2, worker_class=ill(ill_workers.dawdles(0.0)))
    for _ in range(2):
        assert_same(sampler.sample(PUZZLES, CONFIG, backend=pool), local)


@pytest.mark.timeout(1800)
def test_the_driver_killed_at_random(nodes, tmp_path):
    """Again and again on the same folder; a finished one is begun anew."""
    checkpoint, source, kills = tiny(tmp_path / "checkpoint"), random.Random(KILLS), 0
    here, folders = tmp_path / "here", [tmp_path / "out0"]
    assert main([*command(here, checkpoint, "off")[3:-3], "--quiet"]) == 0
    wanted = payloads(here)
    while kills < KILLS:
        out = folders[-1]
        log, before = out / "shards.bin", 0
        if log.is_file():
            before = log.stat().st_size
        driver = subprocess.Popen(command(out, checkpoint, nodes.address), cwd=ROOT, stdout=subprocess.DEVNULL)
        until(lambda log=log, size=before: log.is_file() and log.stat().st_size > size, 120)
        time.sleep(source.uniform(0.0, 0.3))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        with Store.read_only(out) as store:
            if store.missing():
                kills += 1  # in mid-run
            else:
                folders.append(tmp_path / f"out{len(folders)}")
    if not (folders[-1] / "shards.bin").exists():
        folders.pop()
    subprocess.run(command(folders[-1], checkpoint, nodes.address), **QUIET)
    for folder in folders:
        assert payloads(folder) == wanted


def test_a_frontier_spreads_its_traces(nodes, tmp_path, capsys):
    checkpoint = tiny(tmp_path / "checkpoint")
    grid = ["--widths", "1,2", "--depths", "2,3", "--limit", "6", "--seeds", "2", "--rounds", "1", "--launch", "8"]
    line = ["frontier", "nqueens4", "--checkpoint", checkpoint, *grid, "--out"]
    made = {
        "here": gram_here(capsys, *line, str(tmp_path / "here")),
        "there": gram(*line, str(tmp_path / "there"), "--ray", nodes.address, "--workers", "1"),
    }
    account = {name: made["there"].pop(name) for name in ("workers", "nodes", "retries")}
    assert account == {"workers": 2, "nodes": 1, "retries": 0}, "one for each seed's run"
    assert json.dumps(stable(made["here"])) == json.dumps(stable(made["there"]))
    for seed in ("seed-0", "seed-1"):
        assert payloads(tmp_path / "here" / "traces" / seed) == payloads(tmp_path / "there" / "traces" / seed)


def test_a_study_spreads_its_cells(nodes, tmp_path, capsys):
    study = tmp_path / "study.toml"
    study.write_text(
        f'task = "nqueens4"\nlimit = 6\n[base]\ncheckpoint = "{tiny(tmp_path / "checkpoint")}"\nlaunch = 8\n'
        '[[grid]]\nwidth = [1, 4]\nselector = ["vote", "halt"]\n'
    )
    made = [
        gram_here(capsys, "ablate", str(study), "--out", str(tmp_path / "here")),
        gram("ablate", str(study), "--out", str(tmp_path / "there"), "--ray", nodes.address, "--workers", "1"),
    ]
    assert made[1]["workers"] >= 1
    assert (made[1]["nodes"], made[1]["retries"]) == (1, 0)
    kept = "label", "folder", "accuracy", "coverage", "trajectories_sha256"
    cells = [[[cell[name] for name in kept] for cell in each["cells"]] for each in made]
    assert cells[0] == cells[1]


def test_width_that_stops_early_does_not_depend_on_timing(nodes, sampler, tmp_path):
    """The deciding trajectory is the first by number, whichever worker is slow and whatever ran ahead."""
    from gram.distributed.pool import Pool

    config = SamplerConfig(width=24, launch=8, width_policy="decided", temperature=0.2)
    wanted = sampler.sample(PUZZLES, config)
    assert len(np.unique(wanted.widths)) > 1, "some puzzles stop before others"
    for workers, slots in ((1, 8), (2, 32)):
        result = sampler.sample(PUZZLES, config, slots=slots, backend=Pool(workers=workers))
        assert_same(result, wanted)
        assert np.array_equal(result.widths, wanted.widths)


def test_cells_side_by_side_are_refused_with_a_cluster(tmp_path, capsys):
    assert main(["ablate", "temperature", "--out", str(tmp_path), "--jobs", "2", "--ray", "new"]) == 2
    assert capsys.readouterr().err == "gram: --jobs must be 1 with --ray, which spreads each cell, got 2\n"
