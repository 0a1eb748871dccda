"""Energy: counters read from a made-up system, power times time, budgets of joules; none where none is counted."""

import json
import math

import numpy as np
import pytest

from gram.evals import energy
from gram.evals.cells import Grid
from gram.evals.frontier import stable
from gram.evals.latency import grid_keys, measure
from gram.evals.report import render
from tests.test_frontier import fake_timings, made

GRID = Grid(widths=(1, 2, 4), depths=(1, 2, 4), trained_depth=2)
KEYS = grid_keys(("interactive", "throughput"), ("head",), (1, 4), (1, 2))


def package(root, name, *, microjoules, limit=1_000_000, label="package-0"):
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", limit)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_packages_are_summed_and_start_again_at_their_limit(tmp_path):
    first = package(tmp_path, "intel-rapl:0", microjoules=900_000)
    second = package(tmp_path, "intel-rapl:1", microjoules=5, label="package-1")
    package(tmp_path, "intel-rapl:0:0", microjoules=7, label="core")  # part of the first
    package(tmp_path, "intel-rapl:2", microjoules=7, label="psys")  # the whole board, packages included
    read = energy.counter(powercap=tmp_path)
    before = read()
    first.write_text("100000")
    second.write_text("300005")
    assert read() - before == pytest.approx(0.2 + 0.3)
    assert read() - before == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [None, "energy_uj", "max_energy_range_uj"])
def test_without_a_readable_counter_there_is_none(tmp_path, broken):
    if broken:
        (package(tmp_path, "intel-rapl:0", microjoules=1).parent / broken).write_text("not told")
    assert energy.counter(powercap=tmp_path) is None


def test_a_gpu_without_nvml_has_none(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(energy.ctypes, "CDLL", missing)
    assert energy.counter("GPU-00000000") is None


class Meter:
    """Ten joules a reading."""

    def __init__(self):
        self.joules = 0.0

    def __call__(self):
        self.joules += 10.0
        return self.joules


def test_joules_are_mean_power_times_the_median(monkeypatch, tmp_path):
    clock = {"now": 0.0}
    monkeypatch.setattr("gram.evals.latency.time.perf_counter", lambda: clock["now"])

    def run(course, index):
        clock["now"] += 0.5  # 10 J in half a second: 20 W
        return [100.0 * depth for depth in course.depths]

    file = tmp_path / "latency.jsonl"
    found = measure(KEYS, run, puzzles=5, batch=4, rounds=3, file=file, energy=Meter())
    for each in found["latencies"]:
        assert each["joules"] == pytest.approx(20.0 * each["p50_ms"] / 1e3)
    assert found["energy_j"] == pytest.approx(10.0 * 3 * 3)  # two widths one at a time, and one full launch
    again = measure(KEYS, run, puzzles=5, batch=4, rounds=3, file=file)
    assert again == found


def test_without_a_counter_nothing_is_guessed():
    found = measure(KEYS, lambda course, index: [1.0] * len(course.depths), puzzles=5, batch=4, rounds=2)
    assert {each["joules"] for each in found["latencies"]} == {None}
    assert found["energy_j"] is None


def with_joules(factor=1.0):
    timings = fake_timings(GRID)
    for each in timings["latencies"]:
        each["joules"] = factor * each["depth"] * each["width"]
    return timings


def test_budgets_are_matched_by_energy_where_it_is_counted():
    found = made(timings=with_joules())
    rows = [row for row in found["budgets"] if row["matched_by"] == "energy"]
    assert {row["measure"] for row in rows} == {"coverage", "accuracy"}
    some = [row for row in rows if row["halting"] == "head" and row["measure"] == "coverage"]
    assert [row["budget"] for row in some] == [2.0, 4.0, 8.0, 16.0]
    for row in some:
        for family in ("depth", "width", "mixed"):
            assert row[family] is None or row[family]["price"] <= row["budget"] * 1.05
    assert all(cell["energy_j"] == cell["depth"] * cell["width"] for cell in found["cells"])
    assert any("J a puzzle" in each["sentence"] for each in found["verdicts_beside"])
    html = render(found)
    assert "Matched energy" in html
    assert "8 J" in html


def test_energy_is_measured_anew_and_so_not_stable():
    first, second = made(timings=with_joules()), made(timings=with_joules(1.7))
    assert first != second
    assert json.dumps(stable(first)) == json.dumps(stable(second))


def test_a_device_without_energy_has_no_such_budgets():
    found = made(timings=fake_timings(GRID))
    assert "energy" not in {row["matched_by"] for row in found["budgets"]}
    assert all(cell["energy_j"] is None for cell in found["cells"])
    assert "Matched energy" not in render(found)
    assert not any(math.isnan(row["budget"]) for row in found["budgets"])
    assert np.isfinite([row["budget"] for row in found["budgets"]]).all()
