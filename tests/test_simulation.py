"""The driver's real queue at sizes that no test machine has."""

from __future__ import annotations

import json

import pytest

from gram.cli.main import main
from gram.distributed.simulation import DRIVER_S, simulate
from tests.test_cli import TASK, tiny


@pytest.mark.slow
def test_a_thousand_workers_of_one_second_shards_are_busy_where_the_driver_keeps_up():
    run = simulate(workers=1000, shards=50_000, driver_s=0.0005)
    assert run.busy >= 0.95


def test_the_driver_is_what_saturates():
    """More workers than shard time over driver time cannot all be busy, and the share says how many are."""
    few = simulate(workers=100, shards=5000)
    many = simulate(workers=2000, shards=20_000)
    assert few.busy > 0.95
    assert few.driver_busy < 0.2
    assert many.driver_busy > 0.95
    assert many.busy == pytest.approx(1 / (2000 * DRIVER_S), rel=0.15)


def test_deaths_and_slow_workers_cost_little():
    calm = simulate(workers=50, shards=2500)
    rough = simulate(workers=50, shards=2500, deaths=10, slow_workers=2)
    assert rough.retries >= 10
    assert rough.reissues >= 2
    assert rough.elapsed_s < 1.25 * calm.elapsed_s


def test_same_seed_same_run():
    assert simulate(workers=9, shards=99, deaths=3) == simulate(workers=9, shards=99, deaths=3)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        simulate(workers=0, shards=1)
    with pytest.raises(ValueError, match="spread must be within 0 and 1, got 1"):
        simulate(workers=1, shards=1, spread=1.0)


PLAN = ["plan", "nqueens8", "--nodes", "64", "--gpus", "8", "--puzzles", "100000", "--width", "20"]


def test_plan_predicts_a_run_and_names_its_limit(capsys):
    assert main([*PLAN, "--rate", "200", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["workers"] == 512
    assert made["trajectories"] == 2_000_000
    assert made["elapsed_s"] >= 2_000_000 / 200 / 512
    assert made["elapsed_s"] == pytest.approx(2_000_000 / 200 / 512 / made["busy"], rel=0.01)
    assert made["largest_useful_workers"] == 1955
    assert made["limit"].startswith("the end of the run: 3.8 shards a worker")
    assert main([*PLAN, "--rate", "1000000"]) == 0
    assert "limit: the driver: longer shards, or" in capsys.readouterr().out


def test_plan_takes_the_rate_of_a_run(capsys, tmp_path):
    run = [
        "sample",
        TASK,
        "--checkpoint",
        tiny(tmp_path / "c"),
        "--width",
        "4",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    assert main([*run, "--json"]) == 0
    rate = json.loads(capsys.readouterr().out)["trajectories_per_s"]
    assert main([*PLAN, "--run", str(tmp_path / "run"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["trajectories"] / made["shards"] / made["shard_s"] == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "rate must come from --rate or --run, got neither"),
        (["--rate", "0"], "trajectories per second must be more than 0, got 0"),
        (["--rate", "1", "--nodes", "0"], "nodes must be at least 1, got 0"),
        (["--rate", "1", "--gpus-per-worker", "9"], "gpus per worker must be more than 0 and at most 8, got 9"),
    ],
)
def test_plan_refuses_in_one_line(options, line, capsys):
    assert main([*PLAN, *options]) == 2
    assert capsys.readouterr().err == f"gram: {line}\n"
