"""The driver's real queue at sizes that no test machine has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.cli.main import main
from gram.distributed.simulation import DRIVER_S, part_of, simulate
from tests.integration.test_cli import TASK, tiny


def test_a_thousand_workers_of_one_second_shards_are_busy():
    """With the driver's time as measured."""
    run = simulate(workers=1000, shards=50_000, shard_s=1.0, driver_s=DRIVER_S)
    assert run.busy >= 0.95


def test_the_driver_is_what_saturates():
    """More workers than shard time over driver time cannot all be busy, and the share says how many are."""
    few = simulate(workers=100, shards=5000, driver_s=0.0015)
    many = simulate(workers=2000, shards=20_000, driver_s=0.0015)
    assert few.busy > 0.95
    assert few.driver_busy < 0.2
    assert many.driver_busy > 0.95
    assert many.busy == pytest.approx(1 / (2000 * 0.0015), rel=0.15)


def test_several_drivers_share_what_saturates_one():
    one, four = (simulate(workers=200, shards=4000, driver_s=0.02, drivers=count) for count in (1, 4))
    assert (one.drivers, four.drivers) == (1, 4)
    assert (four.workers, four.shards) == (200, 4000)
    assert one.busy < 0.3, "fifty shards a second for two hundred workers"
    assert four.busy == pytest.approx(4 * one.busy, rel=0.05)
    assert four.driver_busy > 0.95
    rough = simulate(workers=20, shards=400, drivers=3, deaths=4, slow_workers=2)
    assert rough.retries >= 4
    assert rough.elapsed_s > simulate(workers=20, shards=400, drivers=3).elapsed_s


@given(st.integers(0, 1000), st.integers(1, 50))
def test_parts_are_even_and_lose_nothing(count, parts):
    sizes = [part_of(count, parts, number) for number in range(parts)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


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
    with pytest.raises(ValueError, match="drivers must have a worker and a shard each, at most 2, got 3"):
        simulate(workers=2, shards=9, drivers=3)
    with pytest.raises(ValueError, match="spread must be within 0 and 1, got 1"):
        simulate(workers=1, shards=1, spread=1.0)


SIZE = ["--nodes", "64", "--gpus", "8", "--puzzles", "100000", "--width", "20"]
PLAN = ["plan", "nqueens8", *SIZE, "--driver-ms", "1.5"]


def test_plan_predicts_a_run_and_names_its_limit(capsys):
    assert main([*PLAN, "--rate", "200", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["workers"] == 512
    assert made["trajectories"] == 2_000_000
    assert made["elapsed_s"] >= 2_000_000 / 200 / 512
    assert made["elapsed_s"] == pytest.approx(2_000_000 / 200 / 512 / made["busy"], rel=0.01)
    assert made["largest_useful_workers"] == 1955
    assert made["limit"].startswith("the end of the run: 3.8 shards a worker")
    assert made["shards_in_flight"] == min(2 * 512, made["shards"])
    assert made["driver_memory_bytes"] == made["shards_in_flight"] * made["result_bytes"]
    assert made["start_bytes"] == 64 * (made["object_store_bytes"] - 2 * 8 * made["result_bytes"])
    assert made["network_bytes_per_s"] == pytest.approx(made["shards"] * made["result_bytes"] / made["elapsed_s"])
    assert main([*PLAN, "--rate", "1000000"]) == 0
    assert "limit: the driver: longer shards, or" in capsys.readouterr().out


def test_plan_with_several_drivers_or_a_slow_network(capsys):
    def made(*options: str) -> dict[str, Any]:
        assert main([*PLAN, "--rate", "3000", *options, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    one, four, thin = made(), made("--drivers", "4"), made("--network-gbit", "0.05")
    assert one["limit"].startswith("the driver: longer shards, or 3 drivers")
    assert one["driver_busy"] > 0.9
    assert (one["drivers"], four["drivers"]) == (1, 4)
    assert four["elapsed_s"] < 0.7 * one["elapsed_s"]
    assert four["saturating_workers"] == pytest.approx(4 * one["saturating_workers"], abs=4)
    assert not four["limit"].startswith("the driver")
    assert thin["limit"].startswith("the network, 0.05 Gbit/s into a driver: longer shards, or")
    assert thin["network_bytes_per_s"] <= 0.05e9 / 8


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
        (["--rate", "1", "--drivers", "0"], "drivers must be at least 1, got 0"),
        (["--rate", "1", "--network-gbit", "0"], "network gbit must be more than 0, got 0"),
        (["--rate", "1", "--gpus-per-worker", "9"], "gpus per worker must be more than 0 and at most 8, got 9"),
    ],
)
def test_plan_refuses_in_one_line(options, line, capsys):
    assert main([*PLAN, *options]) == 2
    assert capsys.readouterr().err == f"gram: {line}\n"
