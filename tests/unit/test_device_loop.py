"""Halting and refill on the device, and how often the host speaks with it, on a CPU that passes for a device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.config import SamplerConfig
from gram.sampler import device_loop
from gram.sampler.engine import Engine, SlotStates
from gram.sampler.run import resolve, shards_of
from gram.sampler.scheduler import Shard
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split(name).puzzles for name in ("train", "validation", "test")])


def halting_model(**overrides):
    model = tiny_model(depth=5, **overrides)
    model.halt.weight.mul_(20)
    return model


class Remote(SlotStates):
    """Slots whose states count as being on a device. What is sent and fetched is counted."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.is_remote, self.copies = True, 0
        self.device_names = torch.zeros_like(self.device_names)

    def send(self, *arrays):
        self.copies += 1
        return super().send(*arrays)

    def fetch(self, *tensors):
        self.copies += 1
        return super().fetch(*tensors)


def results(model, config, *, count=5, shards=None, kind=None, is_on_device=False, is_traced=False):
    engine = Engine(model, TASK, PUZZLES[:count], config, kind_of_slots=kind, is_traced=is_traced)
    assert not is_on_device or device_loop.can_run(config, engine.slots)
    engine.is_on_device = is_on_device
    made = {shard: result.arrays() for shard, result in engine.run(shards or shards_of(count, config))}
    return engine, made


def assert_same(one, other):
    assert one.keys() == other.keys()
    for shard, arrays in one.items():
        assert arrays.keys() == other[shard].keys()
        for name, array in arrays.items():
            assert array.tobytes() == other[shard][name].tobytes(), name
            assert array.dtype == other[shard][name].dtype, name


@settings(max_examples=12, deadline=None)
@given(
    slots=st.integers(1, 40),
    halts=st.sampled_from([{}, {"halting": "fixed"}, {"halting": "residual", "halt_threshold": 0.3}]),
    overrides=st.sampled_from([{}, {"guidance": "none", "initial_std": 1.0, "path_keep": 0.05, "path_noise": 0.1}]),
    width=st.integers(1, 9),
)
def test_the_device_gives_the_engines_trajectories(slots, halts, overrides, width):
    model = halting_model(**overrides)
    config = resolve(SamplerConfig(width=width, launch=8, slots=slots, **halts), model)
    mine, host = results(model, config)
    other, device = results(model, config, is_on_device=True)
    assert_same(host, device)
    assert other.steps_run == mine.steps_run == sum(int(each["steps"].sum()) for each in host.values())


def test_results_move_where_the_table_grows_and_blocks_serve_again(monkeypatch):
    monkeypatch.setattr(device_loop, "STEPS_A_READBACK", 2)
    model = halting_model()
    config = resolve(SamplerConfig(width=12, launch=4, slots=4), model)
    shards = [Shard(index, index % 4, 1, 3 * (index // 4), 3) for index in range(16)]
    assert_same(results(model, config, shards=shards)[1], results(model, config, shards=shards, is_on_device=True)[1])


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"halting": "unchanged", "halt_threshold": 1.0},
        {"width_policy": "decided", "width_threshold": 0.8},
        {"width_policy": "verified"},
        {"resampler": "lprm", "resample_threshold": 1.0},
    ],
)
def test_the_host_speaks_with_a_device_twice_a_step(settings_, is_traced):
    """One copy shows what the step did; one starts trajectories, or moves them."""
    model = halting_model()
    config = resolve(SamplerConfig(width=9, launch=8, slots=24, **settings_), model)
    there, device = results(model, config, kind=Remote, is_traced=is_traced)
    _, host = results(model, config, is_traced=is_traced)
    assert_same(host, device)
    steps = 0

    class Counted(Remote):
        def advance(self, occupied):
            nonlocal steps
            steps += 1
            super().advance(occupied)

    there, _ = results(model, config, kind=Counted, is_traced=is_traced)
    assert there.slots.copies <= 2 * steps + 1


def test_the_device_is_asked_once_in_several_steps():
    model = halting_model()
    config = resolve(SamplerConfig(width=40, launch=8, slots=8), model)
    engine, _ = results(model, config, kind=Remote, is_on_device=True)
    shards = len(shards_of(5, config))
    assert engine.slots.copies - shards < 2 * engine.steps_run / 8 / device_loop.STEPS_A_READBACK + 4


def test_what_needs_the_host_is_not_left_to_the_device():
    model = halting_model()
    for settings_ in (
        {"width_policy": "staged"},
        {"resampler": "halt"},
        {"halting": "unchanged"},
        {"views": "random"},
        {"is_padded": False},
    ):
        config = resolve(SamplerConfig(launch=8, **settings_), model)
        slots = SlotStates(model, config, task=TASK, is_unconditional=False)
        assert not device_loop.can_run(config, slots), settings_
