"""Counted arithmetic against what PyTorch counts, and the estimate before a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gram.evals import cost
from gram.evals.frontier.grid import Grid
from gram.evals.statistics import puzzles_for_power
from gram.kernels import reference
from gram.kernels.philox import NoiseKey
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
        step = reference.supervision_step(model.weights(), model.spec, h, l, e_x, NoiseKey(0, ids, ids, ids + 5))
    assert counter.get_total_flops() == 2 * rows * cost.step_macs(model.config)["total"]
    with FlopCounterMode(display=False) as counter:
        reference.decode(model.weights(), model.spec, step.h)
    assert counter.get_total_flops() == 2 * rows * cost.decode_macs(model.config)


def test_steps_may_have_other_turns():
    config = tiny_config()
    more = cost.step_macs(replace(config, transitions=3, low_level_updates=5))
    assert more["core"] == cost.step_macs(config)["core"] * 3 * 6 / (config.transitions * 3)


def test_preflight_by_hand():
    grid = Grid(widths=(1, 2, 4), depths=(1, 2), trained_depth=2, selectors=("vote",), haltings=("fixed",))
    found = cost.preflight(tiny_config(), grid, puzzles=10, seeds=2, timed_rows=21, timed_steps=2, steps_per_s=100.0)
    assert found["steps_of_trace"] == 10 * 2 * 4 * 2
    assert found["steps_cell_by_cell"] == 10 * 2 * 7 * 3
    assert found["steps_of_latency"] == 3 * 7 * 2
    assert found["saving"] == pytest.approx(21 / 8)
    options = {"puzzles": 10, "seeds": 2, "timed_rows": 21, "timed_steps": 2}
    checked = cost.preflight(tiny_config(), grid, **options, checked_steps=5, traced_per_s=50.0, steps_per_s=100.0)
    assert checked["steps_of_latency"] == 3 * 7 * 2 + 5
    assert (checked["trace_s"], checked["latency_s"]) == pytest.approx((3.2, 0.47))
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
        options = {"seeds": 1, "timed_rows": 0, "timed_steps": 6, "resident_bytes": resident}
        return cost.preflight(tiny_config(), grid, puzzles=puzzles, **options)["memory_bytes"]

    assert memory(10, 5 << 30) - memory(10, 0) == 5 << 30
    assert memory(20, 0) > memory(10, 0)


def test_the_saving_of_the_full_grid():
    grid = Grid(widths=tuple(2**n for n in range(7)), depths=tuple(2**m for m in range(6)), trained_depth=8)
    found = cost.preflight(tiny_config(), grid, puzzles=1, seeds=1, timed_rows=0, timed_steps=6)
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
