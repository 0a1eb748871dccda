"""The benchmark of the driver, the check of `gram plan`, the scaling page: on tiny plans. No speed is judged here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import gram
from gram.cli.main import main
from gram.distributed.access import INLINE_BYTES
from gram.distributed.prediction import predict
from gram.evals.benchmarks import ray_benchmark
from gram.evals.benchmarks.ray_benchmark import driver_row
from gram.sampler.store import Store

driver_benchmark = pytest.importorskip("gram.distributed.driver_benchmark")  # needs ray
check = pytest.importorskip("gram.distributed.plan_check").check
in_process, made_up, plan_of = driver_benchmark.in_process, driver_benchmark.made_up, driver_benchmark.plan_of
FIGURES = {"shards", "result_bytes", "wall_ms", "driver_ms", "thread_cpu_ms", "process_cpu_ms", "sync_ms"}


@pytest.fixture(scope="module")
def sampler():
    return gram.load("nqueens8")


def test_the_driver_alone_stores_every_shard(sampler, monkeypatch):
    stores: list[Store] = []
    opened = driver_benchmark._TimedStore.open.__func__

    def watched(*arguments: object) -> Store:
        stores.append(opened(driver_benchmark._TimedStore, *arguments))
        return stores[-1]

    monkeypatch.setattr(driver_benchmark._TimedStore, "open", watched)
    cost = in_process(sampler, shards=6)
    assert stores[0].done() == frozenset(range(6))
    assert set(asdict(cost)) == FIGURES
    assert cost.shards == 6
    assert min(cost.thread_cpu_ms, cost.process_cpu_ms) > 0
    assert 0 < cost.sync_ms < cost.driver_ms <= cost.wall_ms


def test_results_have_the_size_that_is_predicted(sampler):
    """1,024 trajectories of 64 tokens in 118 kB."""
    plan = plan_of(3)
    assert [(shard.puzzles, shard.trajectories) for shard in plan.shards] == [(256, 4)] * 3
    made = predict(
        plan.shards,
        workers=1,
        nodes=1,
        trajectories_per_s=1024,
        answer_tokens=64,
        puzzle_tokens=64,
        weights_bytes=1,
    )
    assert 100 * 1024 < len(made_up(sampler).to_bytes()) < INLINE_BYTES, "Ray's own limit would be too low"
    assert in_process(sampler, shards=1).result_bytes == made.result_bytes == 117_760


def test_a_row_is_the_median_of_the_rounds_after_one_to_warm_up():
    costs = iter([99.0, 1.0, 3.0, 1.5])
    row = driver_row("x", lambda: {"driver_ms": next(costs), "shards": 320}, rounds=3)
    assert (row.ratio, row.low, row.high, row.floor, row.is_met) == (1.5, 1.0, 3.0, 2.0, True)
    assert row.facts == {"driver_ms": 1.5, "shards": 320}


@pytest.mark.slow
@pytest.mark.alone
def test_bench_ray_prints_the_drivers_rows(capsys, tmp_path, monkeypatch):
    """Over real Ray, on a plan of eight shards; whole commands are timed by a test of their own."""
    start = ray_benchmark.Measurement(name="start", ratio=1.0, low=1.0, high=1.0, floor=None)
    monkeypatch.setattr(ray_benchmark, "start_row", lambda rounds: start)
    file = tmp_path / "bench.json"
    assert main(["bench", "ray", "--rounds", "1", "--shards", "8", "--json", "--quiet", "--out", str(file)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == made
    alone, spread, _ = made["rows"]
    assert alone["name"] == "driver overhead per shard, ms: in process"
    assert spread["name"] == "driver overhead per shard, ms: over Ray"
    for row in (alone, spread):
        assert (row["floor"], row["is_ceiling"]) == (2.0, True)
        assert set(row["facts"]) == FIGURES
        assert row["facts"]["shards"] == 8
        assert 0 < row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.slow
@pytest.mark.alone
def test_a_plan_is_checked_on_nodes_of_this_machine(sampler):
    (row,) = check(
        sampler,
        nodes=[1],
        workers_per_node=1,
        shards_per_worker=4,
        shard_s=0.2,
        driver_s=0.001,
        weights_bytes=1,
    )
    assert row.predicted.shards == 4
    assert row.elapsed_s >= 4 * 0.18, "the worker slept"
    assert 1 <= row.most_in_flight <= row.predicted.shards_in_flight == 2
    assert row.result_bytes == row.predicted.result_bytes
    assert row.error == row.elapsed_s / row.predicted.elapsed_s - 1


def test_a_check_refuses_nodes_that_do_not_ascend(sampler):
    for nodes in ([], [2, 1], [0, 1]):
        with pytest.raises(ValueError, match="nodes must be ascending and at least 1, got"):
            next(check(sampler, nodes=nodes, **dict.fromkeys(("workers_per_node", "shards_per_worker"), 1), **REST))


REST = {"shard_s": 0.1, "driver_s": 0.001, "weights_bytes": 1}


def test_the_scaling_page_is_made_again(tmp_path, monkeypatch):
    """Tables between their marks and a picture; the rest of the page stays."""
    from scripts import scaling

    monkeypatch.setattr(scaling, "WORKERS", (2, 4, 8))
    monkeypatch.setattr(scaling, "MANY", 2)
    monkeypatch.setattr(scaling, "GPUS", ((1, 4), (2, 8)))
    monkeypatch.setattr("sys.argv", ["scaling.py", "--driver-ms", "200", "--out", str(tmp_path)])
    (tmp_path / scaling.PAGE).write_text("a\n<!-- busy -->\nold\n<!-- end -->\nb\n<!-- plans -->\n<!-- end -->\nc\n")
    scaling.main()
    text = (tmp_path / scaling.PAGE).read_text()
    assert text.startswith(
        "a\n<!-- busy -->\n| workers | 0.5 ms | 1 ms | 2 ms | 200 ms (measured) | 200 ms, 2 drivers |\n"
    )
    assert "old" not in text
    assert "\n<!-- end -->\nb\n<!-- plans -->\n| GPUs |" in text
    assert text.endswith("<!-- end -->\nc\n")
    last = [float(part.strip(" %")) for part in text.split("| 8 |")[1].split("\n")[0].split("|")[:4]]
    assert last[3] < 65 < last[0], "five shards a second for eight workers"
    assert (tmp_path / scaling.PICTURE).read_text().startswith("<svg")


def test_the_committed_page_has_the_marks_and_the_picture():
    from scripts import scaling

    text = (scaling.FOLDER / scaling.PAGE).read_text()
    assert [found[2] for found in scaling.TABLE.finditer(text)] == ["busy", "plans"]
    assert f"]({scaling.PICTURE})" in text
    assert Path(scaling.FOLDER / scaling.PICTURE).is_file()
