"""The frontier's figures and sentences by hand, and its JSON complete and strict."""

import copy
import csv
import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gram.evals import cost
from gram.evals.frontier import verdict
from gram.evals.frontier.analysis import analyse, cells_csv
from gram.evals.frontier.beside import verdicts_of
from gram.evals.frontier.choice import Judge
from gram.evals.frontier.grid import Grid
from gram.tasks.protocol import PuzzleSet
from tests.frontier_parts import matched, stable
from tests.models import tiny_config
from tests.traces import random_traces
from tests.unit.test_choice import PRICE, built

GRID = Grid(widths=(1, 2, 4), depths=(1, 2, 4), trained_depth=2)


def fake_task(is_multi_solution=True):
    return SimpleNamespace(
        is_multi_solution=is_multi_solution,
        conflicts=lambda puzzles, answers: answers[:, 0].astype(np.int64),
        count_solutions=lambda puzzle: 2,
    )


def fake_timings(grid, *, modes=("interactive", "throughput"), factor=1.0, watts=None):
    """A step of some rows takes the root of their number."""
    rows = np.arange(1, grid.widths[-1] + 1)
    steps = {"interactive": rows, "throughput": rows[-1:]}
    clock = [
        {"mode": mode, "reads_every_step": False, "rows": steps[mode].tolist()}
        | {"step_ms": [(factor * steps[mode] ** 0.5).tolist()] * 20}
        | {name: [[0.0] * len(steps[mode])] * 20 for name in ("ending_ms", "overhead_ms")}
        | {"watts": None if watts is None else [watts] * len(steps[mode])}
        for mode in modes
    ]
    return {"clock": clock, "rounds": 20, "is_noisy": False, "control_spread": 0.05, "load": [0.1, 0.9]}


def made(*, is_multi_solution=True, puzzles=40, seeds=2, grid=GRID, ratings=True, timings=None):
    traces = [random_traces(seed, puzzles=puzzles, width=8, depth=4) for seed in range(seeds)]
    known = PuzzleSet(
        puzzles=traces[0].puzzles,
        groups=np.arange(puzzles) // 2,
        ratings=np.arange(puzzles, dtype=float) if ratings else None,
    )
    about = {"task": "synthetic", "checkpoint": "none", "command": "gram frontier synthetic"}
    timings = fake_timings(grid) if timings is None else timings
    return analyse(fake_task(is_multi_solution), known, traces, grid, tiny_config(), timings=timings, about=about)


def test_few_clusters_and_many_budgets_are_named_as_the_reason():
    found = {"difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.125, "bases": 6}
    said = verdict.undecided(found)
    assert all(figure in said for figure in ("+20.0", "+10.0 to +30.0", "6 clusters", "0.12"))
    assert "clusters" not in verdict.undecided({**found, "low": -0.1})


@pytest.mark.parametrize(
    ("width", "depth", "winner", "words"),
    [
        (0.9, 0.5, "width", "width gives"),
        (0.4, 0.8, "depth", "depth gives"),
        (0.7, 0.7, "not told apart", "do not differ significantly"),
    ],
)
def test_a_verdict_falls_whichever_way_it_is(width, depth, winner, words):
    rows = matched(Judge(GRID, built(width, depth)), PRICE)
    last = rows[-1]["contrasts"]["width-depth"]
    assert last["verdict"] == winner
    assert last["only_first"] + last["only_second"] > 0
    found = verdict.verdict(rows, measure="accuracy", unit="ms")
    assert words in found["sentence"]
    assert found["sentence"].endswith(".")
    assert found["budget"] == 8.0
    if winner != "not told apart":
        assert found["winner"] == winner
        assert 100 * abs(found["difference"]) == pytest.approx(100 * abs(width - depth), abs=12)
        low, high = (found["low"], found["high"]) if winner == "width" else (-found["high"], -found["low"])
        assert f"({'95 % interval'} {100 * low:.1f} to {100 * high:.1f})" in found["sentence"]


def test_no_budget_no_verdict():
    assert verdict.verdict([], measure="accuracy", unit="ms")["sentence"].startswith("No verdict")


def row(budget, who):
    return {"budget": budget, "contrasts": {"width-depth": {"verdict": who}}}


def test_break_even_needs_every_larger_budget():
    rows = [row(1, "width"), row(2, "depth"), row(4, "width"), row(8, "width")]
    assert verdict.break_even(rows) == 4
    assert math.isnan(verdict.break_even([*rows, row(16, "not told apart")]))


def test_exchange_rate_by_hand():
    grid = Grid(widths=(1, 2), depths=(1, 2, 4, 8), trained_depth=8)
    means = np.array([[0.1, 0.3], [0.2, 0.9], [0.4, 0.4], [0.6, 0.6]])
    rates = verdict.exchange_rates(grid, means)
    assert [rate["doublings"] for rate in rates] == [pytest.approx(1.5), math.inf, 0.0]
    assert rates[0]["gain_of_width"] == pytest.approx(0.2)
    assert rates[0]["gain_of_depth"] == pytest.approx(0.1)


def test_saturation_width_by_hand():
    assert verdict.saturation_width((1, 2, 4), np.array([1.0, 1.0, 4.0])) == pytest.approx(2 * 2**0.5)
    assert verdict.saturation_width((1, 2, 4), np.array([1.0, 1.1, 1.9])) == math.inf
    assert math.isnan(verdict.saturation_width((1, 2), np.array([1.0, np.nan])))


def test_frontier_is_complete_and_strict_json():
    found = made()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert len(found["cells"]) == 2 * 3 * 3 * 3
    wanted = {"width", "depth", "selector", "accuracy", "low", "high", "pass_at_width", "coverage", "macs"}
    wanted |= {"single_accuracy", "latency_ms", "latency_ms_p95", "throughput_ms", "throughput_ms_p95"}
    for cell in found["cells"]:
        assert wanted <= cell.keys()
        assert cell["low"] <= cell["accuracy"] <= cell["high"]
        share = cell["latency_ms"] / (cell["depth"] * cell["width"] ** 0.5)
        assert share == pytest.approx(1) if cell["halting"] == "fixed" else 0 < share <= 1 + 1e-9
        assert cell["accuracy"] <= cell["pass_at_width"] + 0.35
    assert (found["version"], found["verdict"]["measure"], found["verdict"]["selector"]) == (2, "accuracy", "vote")
    assert found["grid"]["measures"] == ["accuracy", "coverage"]
    assert {row["selector"] for row in found["budgets"] if row["measure"] == "accuracy"} == {"vote"}
    assert {row["matched_by"] for row in found["budgets"]} == {"latency interactive", "latency throughput", "macs"}
    assert {row["measure"] for row in found["budgets"]} == {"coverage", "accuracy"}
    assert found["difficulty"]["by"] == "rating"
    rows = list(csv.DictReader(io.StringIO(cells_csv(found))))
    assert len(rows) == len(found["cells"])
    assert float(rows[0]["accuracy"]) == found["cells"][0]["accuracy"]


def test_macs_of_a_cell_are_steps_times_the_steps_cost():
    found = made()
    config = tiny_config()
    for cell in found["cells"]:
        steps = cell["depth"] if cell["halting"] == "fixed" else cell["steps"]
        expected = cell["width"] * (steps * cost.step_macs(config)["total"] + cost.decode_macs(config))
        assert cell["macs"] == pytest.approx(expected, rel=1e-5)


def test_without_latencies_arithmetic_still_matches_budgets():
    found = made(timings={})
    assert found["verdict"]["sentence"].startswith("No verdict")
    assert {row["matched_by"] for row in found["budgets"]} == {"macs"}
    assert all(cell["latency_ms"] is None for cell in found["cells"])


def test_one_solution_tasks_have_no_coverage():
    found = made(is_multi_solution=False, ratings=False)
    assert found["verdict"]["measure"] == "accuracy"
    assert found["coverage"] is None
    assert all(cell["coverage"] is None for cell in found["cells"])
    assert found["difficulty"] is None


@pytest.mark.parametrize(("solutions", "is_told"), [(4_000, True), (10**12, False)])
def test_coverage_that_nothing_could_reach_is_not_told(solutions, is_told, monkeypatch):
    of_many = fake_task(True)
    of_many.count_solutions = lambda puzzle: solutions
    monkeypatch.setattr(sys.modules[__name__], "fake_task", lambda is_multi_solution: of_many)
    found = made(ratings=False)
    assert (found["coverage"] is not None) == is_told
    assert ("coverage" in found["grid"]["measures"]) == is_told
    assert found["difficulty"]["by"] == "solutions"


def test_stable_part_ignores_latency():
    slow = fake_timings(GRID, factor=1.7)
    first, second = made(), made(timings=slow)
    assert first != second
    assert json.dumps(stable(first)) == json.dumps(stable(second))
    broken = copy.deepcopy(second)
    broken["cells"][3]["accuracy"] += 0.01
    assert stable(first) != stable(broken)


def test_an_empty_set_has_no_figures():
    traces = random_traces(0, puzzles=3, width=4, depth=4)
    traces.puzzles[:] = 0
    known = PuzzleSet(puzzles=traces.puzzles)
    found = analyse(fake_task(False), known, [traces], GRID, tiny_config(), timings={}, about={})
    assert all(cell["accuracy"] is None for cell in found["cells"])
    assert found["verdict"]["winner"] is None


def test_other_puzzles_are_refused():
    traces = random_traces(0, puzzles=3, width=4, depth=4)
    with pytest.raises(ValueError, match="traces must be of the 2 puzzles given"):
        analyse(fake_task(), PuzzleSet(puzzles=traces.puzzles[:2]), [traces], GRID, tiny_config(), timings={}, about={})


def test_every_verdict_is_there_for_every_selector():
    found = made()
    ways = {(each["measure"], each["halting"], each["matched_by"], each["selector"]) for each in verdicts_of(found)}
    prices = ("latency interactive", "latency throughput", "macs")
    wanted = {
        (measure, halting, by, selector)
        for halting in GRID.haltings
        for by in prices
        for measure, selectors in (("accuracy", GRID.selectors), ("coverage", (None,)))
        for selector in selectors
    }
    assert ways == wanted
    for each in verdicts_of(found):
        for family in ("depth", "width", "mixed", "restarts"):
            assert each[family] is None or each[family]["selector"] in (None, each["selector"])


def test_coverage_stands_beside_its_ceiling_and_single_accuracy():
    """Two solutions each: half of them is what one answer reaches, and what lies above exists by construction."""
    found = made()
    covered = found["coverage"]
    assert covered["one_answer_ceiling"] == 0.5
    assert "no system of one answer exceeds a coverage of 50.0 %" in covered["sentence"].lower()
    gained = covered["width"]["value"] - covered["depth"]["value"]
    assert covered["by_construction"] == pytest.approx(max(0, min(gained, covered["width"]["value"] - 0.5)))
    for cell in found["cells"]:
        single = next(
            other["accuracy"]
            for other in found["cells"]
            if (other["halting"], other["depth"], other["width"]) == (cell["halting"], cell["depth"], 1)
        )
        assert cell["single_accuracy"] == pytest.approx(single, abs=1e-6)
        assert cell["coverage"] <= 1
    row = next(row for row in found["budgets"] if row["measure"] == "coverage" and row["width"])
    assert row["width"]["single_accuracy"] is not None


@pytest.mark.parametrize(("wide", "built_in"), [(0.9, 0.1), (0.8, 0.0), (0.7, 0.0)])
def test_what_exists_by_construction(wide, built_in):
    row = {"width": {"value": wide}, "depth": {"value": 0.75}}
    assert verdict.by_construction(row, 0.8) == pytest.approx(built_in)
    assert math.isnan(verdict.by_construction(row, None))
    assert verdict.by_construction(row, 0.1) == pytest.approx(max(wide - 0.75, 0))  # never more than the lead


def test_an_arm_that_leaves_more_than_half_of_its_budget_is_told():
    found = {"verdict": "not told apart", "difference": 0.0, "low": -0.1, "high": 0.1, "p_holm": 1.0}
    cell = {"width": 1, "depth": 4, "selector": None, "value": 0.5, "other_half": None, "single_accuracy": 0.5}
    contrasts = {"width-depth": found, "width-restarts": {"verdict": "nothing to compare"}}
    row = {"budget": 8.0, "contrasts": contrasts, "mixed": None, "restarts": None}

    def told(depth, width):
        cells = {"depth": {**cell, "spent": depth}, "width": {**cell, "width": 4, "spent": width}}
        return verdict.verdict([{**row, **cells}], measure="accuracy", unit="ms")["sentence"]

    assert "depth spends 2 ms (25 %), width spends 7 ms (88 %)" in told(2.0, 7.0)
    assert "width spends 3 ms (38 %)" in told(6.0, 3.0)
    assert "spends" not in told(4.0, 8.0)


def test_warnings_stand_with_the_verdict():
    noisy = {**fake_timings(GRID), "is_noisy": True, "control_spread": 0.5}
    found = made(timings=noisy)
    assert [line for line in found["verdict"]["warnings"] if "spread by 50 %" in line]
    assert [line for line in found["verdict"]["warnings"] if "short of 8" in line]  # 4 times the trained depth of 2
    deep = Grid(widths=(1, 2, 4), depths=(1, 4), trained_depth=1)
    assert made(grid=deep)["verdict"]["warnings"] == []
