"""Rows `host ...` of `gram bench host` and `sampler`: what they run, not how long it takes."""

import json

import pytest

from gram.cli.main import main
from gram.evals.benchmarks import host_benchmark
from gram.evals.benchmarks.host_benchmark import Load

SMALL = Load(6, 4, 24)


def test_every_row_runs_and_tells_its_steps():
    rows = list(host_benchmark.rows(1, loads=(SMALL,)))
    names = [row.name for row in rows]
    assert len(names) == len(set(names)) == 16
    for launch in (64, SMALL.slots):
        for what in ("", ", full", ", traced", ", decided", ", verified", ", resampling"):
            assert f"host 6 x 4 at 24 slots, launch {launch}{what}: us a trajectory-step" in names
    for what in ("", ", traced", ", decided", ", verified"):
        assert f"host 6 x 4 at 24 slots, launch 24{what}, loop: us a trajectory-step" in names
    for row in rows:
        # Every trajectory takes a step at least, and none more than its depth.
        assert 0 < row.facts["steps_run"] <= 6 * 4 * host_benchmark.MODEL["depth"]
        assert row.facts["us"] > [0.0]


@pytest.mark.parametrize("is_full", [False, True])
def test_the_same_heads_halt_the_same_trajectories(is_full):
    """Two rounds run the same trajectories: the made-up heads start anew with each."""
    first = host_benchmark.microseconds(SMALL, 24, rounds=1, is_full=is_full)[1]["steps_run"]
    second = host_benchmark.microseconds(SMALL, 24, rounds=2, is_full=is_full)[1]["steps_run"]
    assert first == second
    assert 6 * 4 < first < 6 * 4 * host_benchmark.MODEL["depth"]


def test_the_command_prints_the_rows_alone(capsys, monkeypatch):
    rows = host_benchmark.rows
    monkeypatch.setattr(host_benchmark, "rows", lambda rounds: rows(rounds, loads=(SMALL,)))
    assert main(["bench", "host", "--rounds", "1", "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)["rows"]
    assert len(printed) == 16
    assert all(row["name"].startswith("host 6 x 4 at 24 slots") for row in printed)
