"""Rows `host ...` of `gram bench host` and `sampler`: what they run, not how long it takes."""

import json

import pytest

from gram.cli.main import main
from gram.evals.benchmarks import host_benchmark, host_pairs
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


def test_two_checkouts_are_measured_by_turns(monkeypatch, tmp_path):
    """A package whose rows are made up: `here` has one more than the other, which takes twice as long."""
    made = "yield SimpleNamespace(name=f'row {number}: us a trajectory-step', ratio=FACTOR * (number + 1.0))"
    for name, factor, last in (("here", 1, 3), ("other", 2, 2)):
        package = tmp_path / name / "gram" / "evals" / "benchmarks"
        package.mkdir(parents=True)
        (tmp_path / name / "gram" / "__init__.py").touch()
        (package / "host_benchmark.py").write_text(
            "from types import SimpleNamespace\n"
            "def rows(rounds):\n"
            f"    for number in range({last}):\n"
            "        " + made.replace("FACTOR", str(factor)) + "\n"
        )
    monkeypatch.setattr(host_pairs, "ROOT", tmp_path / "here")
    measured = list(host_pairs.rows(tmp_path / "other", 3))
    assert [row.name for row in measured] == [f"row {number}: time in other over that here" for number in (0, 1)]
    assert [(row.ratio, row.low, row.high) for row in measured] == [(2.0, 2.0, 2.0)] * 2
    assert measured[1].facts["us"] == {"here": [2.0] * 3, "other": [4.0] * 3}


def test_a_folder_without_the_package_is_refused(tmp_path, capsys):
    assert main(["bench", "host", "--against", str(tmp_path)]) == 2
    assert "against must be a worktree of this repository, with a folder gram in it, got" in capsys.readouterr().err


def test_a_package_that_cannot_measure_says_why(tmp_path, capsys):
    (tmp_path / "gram").mkdir()
    (tmp_path / "gram" / "__init__.py").touch()
    assert main(["bench", "host", "--against", str(tmp_path), "--quiet"]) == 2
    assert "must measure its host's work, got: " in capsys.readouterr().err
