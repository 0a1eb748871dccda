"""Energy: counters read from a made-up system, power times time, budgets of joules; none where none is counted."""

import json
import math

import numpy as np
import pytest

from gram.evals.frontier import energy
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.latency import courses_of, measure
from gram.evals.frontier.prefix_timing import PrefixTiming
from gram.evals.pages.report import render
from tests.frontier_parts import stable
from tests.unit.test_frontier import fake_timings, made

GRID = Grid(widths=(1, 2, 4), depths=(1, 2, 4), trained_depth=2)
COURSES = courses_of(("interactive", "throughput"), (False,), 4, 8)


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


def test_watts_are_joules_over_seconds(monkeypatch, tmp_path):
    clock = {"now": 0.0}
    monkeypatch.setattr("gram.evals.frontier.latency.time.perf_counter", lambda: clock["now"])

    def run(course, index):
        clock["now"] += 0.5  # 10 J in half a second: 20 W
        return PrefixTiming(100.0, 0.0, 0.0)

    file = tmp_path / "latency.jsonl"
    found = measure(COURSES, run, puzzles=5, rounds=3, file=file, energy=Meter())
    assert {watts for entry in found["clock"] for watts in entry["watts"]} == {20.0}
    assert found["energy_j"] == pytest.approx(10.0 * 3 * len(COURSES))
    assert measure(COURSES, run, puzzles=5, rounds=3, file=file) == found


def test_without_a_counter_nothing_is_guessed():
    found = measure(COURSES, lambda course, index: PrefixTiming(1.0, 0.0, 0.0), puzzles=5, rounds=2)
    assert {entry["watts"] for entry in found["clock"]} == {None}
    assert found["energy_j"] is None


def with_joules(factor=1.0):
    return fake_timings(GRID, watts=1000.0 * factor)


def test_budgets_are_matched_by_energy_where_it_is_counted():
    found = made(timings=with_joules())
    rows = [row for row in found["budgets"] if row["matched_by"] == "energy"]
    assert {row["measure"] for row in rows} == {"coverage", "accuracy"}
    some = [row for row in rows if row["halting"] == "head" and row["measure"] == "coverage"]
    assert [row["budget"] / some[0]["budget"] for row in some] == pytest.approx([2.0**n for n in range(len(some))])
    for row in some:
        for family in ("depth", "width", "mixed"):
            assert row[family] is None or row[family]["price"] <= row["budget"] * 1.05
    assert all(cell["energy_j"] == pytest.approx(cell["latency_ms"]) for cell in found["cells"])
    assert any("J a puzzle" in each["sentence"] for each in found["verdicts_beside"])
    html = render(found)
    assert "Matched energy" in html
    assert " J" in html


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
