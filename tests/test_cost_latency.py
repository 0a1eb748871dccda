"""Counted arithmetic against what PyTorch counts; timings that are interleaved, kept and taken up again."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gram.api import Sampler
from gram.evals import cost, laps
from gram.evals.cells import Grid
from gram.evals.latency import Key, grid_keys, measure, price_table
from gram.evals.statistics import puzzles_for_power
from gram.kernels import reference
from gram.sampler.slots import Slots
from gram.tasks.registry import get_task
from tests.models import tiny_config, tiny_model

SHAPES = [
    {},
    {"mixer": "attention", "positions": "both"},
    {"guidance": "none", "head_hidden": 4},
    {"transitions": 2, "low_level_updates": 3, "registers": 2, "is_core_shared": False, "blocks": 1},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_macs_are_half_of_pytorchs_flops(shape):
    model = tiny_model(**shape)
    rows = 5
    h, l = model.initial_state(rows)
    ids = torch.arange(rows)
    e_x = model.embed(torch.ones(rows, model.config.tokens, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        step = reference.supervision_step(
            model.weights(), model.spec, h, l, e_x, seed=0, puzzle_hash_B=ids, trajectory_B=ids, step_B=ids + 5
        )
    assert counter.get_total_flops() == 2 * rows * cost.step_macs(model.config)["total"]
    with FlopCounterMode(display=False) as counter:
        reference.decode(model.weights(), model.spec, step.h)
    assert counter.get_total_flops() == 2 * rows * cost.decode_macs(model.config)


def test_steps_may_have_other_turns():
    config = tiny_config()
    more = cost.step_macs(config, transitions=3, low_level_updates=5)
    assert more["core"] == cost.step_macs(config)["core"] * 3 * 6 / (config.transitions * 3)


def test_preflight_by_hand():
    grid = Grid(widths=(1, 2, 4), depths=(1, 2), trained_depth=2, selectors=("vote",), haltings=("fixed",))
    found = cost.preflight(
        tiny_config(), grid, puzzles=10, seeds=2, rounds={"interactive": 3}, batch=8, steps_per_s=100.0
    )
    assert found["steps_of_trace"] == 10 * 2 * 4 * 2
    assert found["steps_cell_by_cell"] == 10 * 2 * 7 * 3
    assert found["steps_of_latency"] == 3 * 7 * 2
    assert found["saving"] == pytest.approx(21 / 8)
    assert found["trace_s"] == pytest.approx(1.6)
    assert found["macs"] == (160 + 42) * cost.step_macs(tiny_config())["total"]
    assert found["bases"] == 10
    needed = {each["difference"]: each["puzzles"] for each in found["puzzles_needed"]}
    assert needed[0.05] == puzzles_for_power(
        0.05, 0.1
    )  # every puzzle is scored, half of them by the other half's choice


def test_memory_of_the_preflight_grows_with_puzzles_and_starts_from_the_process():
    grid = Grid(widths=(1, 2), depths=(1, 2), trained_depth=2)

    def memory(puzzles, resident):
        options = {"seeds": 1, "rounds": {}, "batch": 8, "resident_bytes": resident}
        return cost.preflight(tiny_config(), grid, puzzles=puzzles, **options)["memory_bytes"]

    assert memory(10, 5 << 30) - memory(10, 0) == 5 << 30
    assert memory(20, 0) > memory(10, 0)


def test_the_saving_of_the_full_grid():
    grid = Grid(widths=tuple(2**n for n in range(7)), depths=tuple(2**m for m in range(6)), trained_depth=8)
    found = cost.preflight(tiny_config(), grid, puzzles=1, seeds=1, rounds={}, batch=8)
    assert found["saving"] >= 3.5
    assert found["trace_s"] is None


def test_power_is_what_a_simulation_finds():
    needed = puzzles_for_power(0.05, 0.1)
    rng = np.random.default_rng(0)
    won, lost = rng.multinomial(int(needed), [0.075, 0.025, 0.9], size=4_000)[:, :2].T
    z = (won - lost) / np.sqrt(won + lost)
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.03)
    assert puzzles_for_power(0.0, 0.1) == math.inf
    with pytest.raises(ValueError, match="discordant must be within"):
        puzzles_for_power(0.2, 0.1)


class Runs:
    """A stand-in for the sampler: every run takes as long as it is told."""

    def __init__(self, cost_of):
        self.done, self.cost_of = [], cost_of

    def __call__(self, course, index):
        self.done.append((course, tuple(index.tolist())))
        return [self.cost_of(course, depth, len(index)) for depth in course.depths]


KEYS = grid_keys(("interactive", "throughput"), ("head", "fixed"), (1, 4), (1, 2))
COURSES = 2 * 2 + 2
"""Two widths and two halting rules one puzzle at a time, and a full launch of each rule."""


def test_every_cell_is_timed_in_every_round():
    runs, told = Runs(lambda course, depth, puzzles: depth * puzzles * course.width), []
    found = measure(KEYS, runs, puzzles=10, batch=8, rounds=6, on_timed=told.append)
    assert sum(told) == 6 * len(KEYS)
    assert len(found["latencies"]) == len(KEYS) == 16
    for each in found["latencies"]:
        assert each["rounds"] == 6
        assert (each["p5_ms"], each["p95_ms"]) == pytest.approx((each["depth"] * each["width"],) * 2)
    assert not found["is_noisy"]
    timed = runs.done[COURSES + 1 :]
    rounds = [timed[n * (COURSES + 1) : (n + 1) * (COURSES + 1)] for n in range(6)]
    assert all(control == rounds[0][0] for control, *_ in rounds)
    orders = {tuple(course for course, _ in each[1:]) for each in rounds}
    assert len(orders) == 6
    for number, each in enumerate(rounds):
        assert {key for course, _ in each[1:] for key in course.cells()} == set(KEYS)
        interactive = {index for course, index in each[1:] if course.mode == "interactive"}
        assert interactive == {(number % 10,)}
        (batch,) = {index for course, index in each[1:] if course.mode == "throughput"}
        assert len(set(batch)) == 8


def test_a_launch_is_filled_from_few_puzzles():
    runs = Runs(lambda course, depth, puzzles: 24.0)
    found = measure(KEYS, runs, puzzles=3, batch=8, rounds=1)
    (filled,) = {(course.width, len(index)) for course, index in runs.done if course.mode == "throughput"}
    assert filled == (3, 2)
    by_width = {each["width"]: each["p50_ms"] for each in found["latencies"] if each["mode"] == "throughput"}
    assert by_width == pytest.approx({1: 4.0, 4: 16.0})


def test_timings_are_kept_and_taken_up(tmp_path):
    file = tmp_path / "latency.jsonl"
    runs = Runs(lambda course, depth, puzzles: float(puzzles))
    measure(KEYS, runs, puzzles=5, batch=8, rounds=2, file=file)
    with file.open("a") as stream:
        stream.write('{"cell": "interactive head 1x1", "ms"')  # torn by a kill
    before = len(runs.done)
    told = []
    found = measure(KEYS, runs, puzzles=5, batch=8, rounds=3, file=file, on_timed=told.append)
    assert len(runs.done) - before == 2 * (COURSES + 1)
    assert sum(told) == 3 * len(KEYS)
    assert all(each["rounds"] == 3 for each in found["latencies"])
    again = len(runs.done)
    assert measure(KEYS, runs, puzzles=5, batch=8, rounds=3, file=file) == found
    assert len(runs.done) == again
    json.dumps(found)


class Ticks:
    """A clock that moves only when the model works."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(laps.time, "perf_counter", lambda: self.now)
        for method, seconds in (("advance", 1.0), ("read", 0.125)):
            self.slow(monkeypatch, method, seconds)

    def slow(self, monkeypatch, method, seconds):
        real = getattr(Slots, method)

        def slowed(slots, argument):
            self.now += seconds
            return real(slots, argument)

        monkeypatch.setattr(Slots, method, slowed)


@pytest.mark.parametrize("halting", ["fixed", "unchanged"])
def test_a_depth_on_the_way_is_timed_as_its_own_run(monkeypatch, halting):
    sampler = Sampler(tiny_model(), get_task("nqueens4"), name="tiny")
    puzzles = sampler.task.split("train", limit=3).puzzles
    config = sampler.settings(width=4, halting=halting, slots=16, launch=8)
    ticks = Ticks(monkeypatch)
    depths = (1, 2, 4, 6)
    found = laps.time_depths(sampler, puzzles, config, depths)
    own = [laps.time_depths(sampler, puzzles, config, (depth,))[0] for depth in depths]
    assert found == pytest.approx(own)
    if halting == "fixed":
        assert found == pytest.approx([1125 * 1, 2125, 4125, 6125])
    with pytest.raises(ValueError, match="slots must hold all 12"):
        laps.time_depths(sampler, puzzles, sampler.settings(config, slots=8), depths)
    assert ticks.now > 0


def test_a_noisy_machine_is_told():
    rng = np.random.default_rng(0)
    runs = Runs(lambda course, depth, puzzles: puzzles * rng.uniform(1, 3))
    found = measure(KEYS[:2], runs, puzzles=5, batch=8, rounds=20)
    assert found["is_noisy"]
    assert found["control_spread"] > 0.3


def test_prices_by_depth_and_width():
    latencies = [{"mode": "interactive", "halting": "head", "width": 4, "depth": 2, "p50_ms": 3.0}]
    price = price_table(latencies, "interactive", "head", (1, 4), (1, 2))
    assert price[1, 1] == 3.0
    assert np.isnan(price).sum() == 3
    assert np.isnan(price_table(latencies, "throughput", "head", (1, 4), (1, 2))).all()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of"):
        grid_keys(("quick",), ("head",), (1,), (1,))
    assert Key("interactive", "head", 1, 2) in KEYS
