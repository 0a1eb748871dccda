"""Halting and refill on the device, and how often the host speaks with it, on a CPU that passes for a device."""

from contextlib import contextmanager

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
from gram.sampler.stretches import AHEAD, Reports
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split(name).puzzles for name in ("train", "validation", "test")])


def halting_model(**overrides):
    model = tiny_model(**{"depth": 5} | overrides)
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


def results(model, config, *, count=5, shards=None, kind=None, is_on_device=False, is_traced=False, observer=None):
    engine = Engine(
        model, TASK, PUZZLES[:count], config, kind_of_slots=kind, is_traced=is_traced, observer=observer
    )  # fmt: skip
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


class LateReports(Reports):
    """Of a device that is as late as can be: it runs what it was handed when the report is read, and by then all that
    was copied to it has come."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.waiting, self.captures = [], 0

    def run(self, stretch):
        self.waiting.append(stretch)
        assert len(self.waiting) <= AHEAD

    def send(self):
        self.sent += 1

    def take(self):
        self.waiting.pop(0)()
        self.copies[self.read % AHEAD].copy_(self.whole)
        return super().take()


@contextmanager
def loops(*, steps=8, places=None, is_late=False):
    """The loops that are made meanwhile, of so many steps a stretch and places in the queue, on a late device or one
    that does at once what it is handed."""
    made = []

    class Watched(device_loop.DeviceLoop):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            self.launches = 0
            self.size = min(self.size, places or self.size)
            self.queue, self.mirror = self.queue[: self.size], self.mirror[: self.size]
            if is_late:
                self.stretches = self.reports
            made.append(self)

        def launch(self):
            self.launches += 1
            super().launch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_loop, "STEPS_A_READBACK", steps)
        patch.setattr(Engine, "kind_of_loop", Watched)
        if is_late:
            patch.setattr(device_loop, "Reports", LateReports)
        yield made


HALTS = [{}, {"halting": "fixed"}, {"halting": "residual", "halt_threshold": 0.3}]
POLICIES = [
    {},
    {},
    {"width_policy": "staged", "width_threshold": 0.7},
    {"width_policy": "trusted", "width_threshold": 0.6},
    {"width_policy": "decided", "width_threshold": 0.8},
    {"width_policy": "verified"},
]
MODELS = [
    {},
    {"guidance": "none", "initial_std": 1.0, "path_keep": 0.05, "path_noise": 0.1},
    {"depth": 11},
    {"depth": 1},
]


@settings(max_examples=30, deadline=None)
@given(
    overrides=st.sampled_from(MODELS),
    halts=st.sampled_from(HALTS),
    policy=st.sampled_from(POLICIES),
    width=st.integers(1, 9),
    count=st.integers(1, 5),
    launch=st.sampled_from([3, 8]),
    slots=st.integers(1, 20),
    steps=st.sampled_from([2, 4, 8]),
    places=st.sampled_from([None, None, 2, 7]),
    is_late=st.booleans(),
    is_traced=st.booleans(),
)
def test_the_device_gives_the_engines_trajectories(
    overrides, halts, policy, width, count, launch, slots, steps, places, is_late, is_traced
):
    """Whatever its settings, slots, launches, stretches and queue, and however late it is."""
    model = halting_model(**overrides)
    config = resolve(SamplerConfig(width=width, launch=launch, slots=slots, **policy, **halts), model)
    mine, host = results(model, config, count=count, is_traced=is_traced)
    with loops(steps=steps, places=places, is_late=is_late) as made:
        other, device = results(model, config, count=count, is_on_device=True, is_traced=is_traced)
    assert_same(host, device)
    assert made[0].alive == made[0].is_out.sum() == 0
    if not policy:
        assert other.steps_run == mine.steps_run == sum(int(each["steps"].sum()) for each in host.values())


@pytest.mark.parametrize("is_late", [False, True])
def test_rows_of_the_table_serve_several_shards(is_late):
    model = halting_model()
    config = resolve(SamplerConfig(width=12, launch=4, slots=4), model)
    shards = [Shard(index, index % 4, 1, 3 * (index // 4), 3) for index in range(16)]
    _, host = results(model, config, shards=shards)
    with loops(steps=2, is_late=is_late) as made:
        assert_same(host, results(model, config, shards=shards, is_on_device=True)[1])
    assert made[0].scheduler.table.used < 48


def test_trajectories_of_a_decided_puzzle_leave(monkeypatch):
    """They run in slots that would stand empty, and no longer than the decision takes to come."""
    model = halting_model(depth=64)
    model.lprm.weight.zero_()  # so that the halt head's probability is trusted: trajectory 0 decides
    trusting = {"width_policy": "trusted", "width_threshold": 1e-9, "halt_threshold": 0.9999999}
    config = resolve(SamplerConfig(width=16, launch=8, slots=24, **trusting), model)
    one, early = results(model, config, is_on_device=True)
    dismiss = device_loop.DeviceLoop._dismiss

    def unheard(loop):
        dismiss(loop)
        loop.is_decided.zero_()

    monkeypatch.setattr(device_loop.DeviceLoop, "_dismiss", unheard)
    with loops() as made:
        other, late = results(model, config, is_on_device=True)
    assert made[0].alive == 0
    assert_same(early, late)
    assert one.steps_run < other.steps_run


@pytest.mark.parametrize("depth", [1, 5, 8])
def test_no_slot_stands_empty_while_trajectories_wait(depth):
    """And no stretch is launched that is certainly of no use."""
    model = halting_model(depth=depth)
    config = resolve(SamplerConfig(width=36, launch=4, slots=12, halting="fixed"), model)
    for is_late in (False, True):
        with loops(is_late=is_late) as made:
            results(model, config, count=5, is_on_device=True)
        assert made[0].launches == -(-15 * depth // 8)


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


def test_what_needs_the_host_is_not_left_to_the_device():
    model = halting_model()
    for settings_ in (
        {"width_policy": "first-halt"},
        {"width_policy": "sparse"},
        {"resampler": "halt"},
        {"halting": "unchanged"},
        {"views": "random"},
        {"is_padded": False},
    ):
        config = resolve(SamplerConfig(launch=8, **settings_), model)
        slots = SlotStates(model, config, task=TASK, is_unconditional=False)
        assert not device_loop.can_run(config, slots), settings_
