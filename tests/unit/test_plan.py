"""A run as shards: every trajectory in exactly one, the same shards for the same run, and a key that knows its run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram.config import SamplerConfig
from gram.sampler.engine import Observer
from gram.sampler.run import Job, make_plan, resolve, sample, shards_of
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = TASK.split("train").puzzles


@given(
    puzzles=st.integers(0, 3000),
    width=st.integers(1, 40),
    policy=st.sampled_from(["fixed", "staged", "trusted", "decided", "verified", "first-halt"]),
    resampler=st.sampled_from(["none", "lprm"]),
)
def test_every_trajectory_is_in_exactly_one_shard(puzzles, width, policy, resampler):
    config = SamplerConfig(width=width, width_policy=policy if resampler == "none" else "fixed", resampler=resampler)
    shards = shards_of(puzzles, config)
    covered = np.zeros((puzzles, width), int)
    for shard in shards:
        covered[
            shard.first_puzzle : shard.first_puzzle + shard.puzzles,
            shard.first_trajectory : shard.first_trajectory + shard.trajectories,
        ] += 1
    assert (covered == 1).all()
    assert [shard.index for shard in shards] == list(range(len(shards)))
    if config.width_policy != "fixed" or resampler != "none":
        assert all(shard.trajectories == width for shard in shards)
    firsts = [shard.first_trajectory for shard in shards]
    assert firsts == sorted(firsts)  # all puzzles' first trajectories first


def key(config=None, model=None, puzzles=PUZZLES, kernel="eager", **facts):
    model = model or tiny_model()
    settings = replace(resolve(config or SamplerConfig(), model), kernel=kernel)
    facts = {"is_unconditional": False, "is_traced": False, **facts}
    return make_plan(model, TASK, puzzles, settings, **facts).key


def test_the_key_knows_what_decides_a_result_and_nothing_else():
    others = [
        key(SamplerConfig(seed=1)),
        key(SamplerConfig(width=21)),
        key(SamplerConfig(temperature=0.5)),
        key(SamplerConfig(halting="fixed")),
        key(SamplerConfig(launch=8)),
        key(model=tiny_model(seed=1)),
        key(puzzles=PUZZLES[::-1].copy()),
        key(kernel="fused"),
        key(is_traced=True),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key(SamplerConfig(slots=3)) == key(SamplerConfig(selector="first")) == key()
    other = tiny_model()
    other.config = replace(other.config, selector="halt")
    assert key(model=other) == key()


def test_the_key_of_a_gpu_knows_the_versions_of_its_compilers_and_no_builds(monkeypatch):
    found = {"torch": "2.13.0+cu130", "triton": "3.7.1"}
    monkeypatch.setattr("gram.versions.installed", lambda name: found.get(name))
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    known = {key(), key(device=gpu)}
    assert len(known) == 2
    found["torch"] = "2.13.0+cpu"
    assert {key(device=cpu), key(device=gpu)} == known
    for name, version in (("torch", "2.14.1+cu130"), ("triton", "3.9.0"), ("triton", None)):
        with monkeypatch.context() as other:
            other.setitem(found, name, version)
            assert key(device=gpu) not in known
            assert key() in known


@pytest.mark.parametrize("settings", [{}, {"width_policy": "decided", "temperature": 0.1}, {"resampler": "halt"}])
def test_shards_run_alone_give_what_they_give_together(settings):
    model = tiny_model()
    config = resolve(SamplerConfig(width=6, launch=8, **settings), model)
    whole = sample(model, TASK, PUZZLES[:5], config)
    for shard in shards_of(5, config):
        for slots in (3, 64):
            settings_ = replace(config, slots=slots)
            job = Job(model=model, task=TASK, puzzles=PUZZLES[:5], config=settings_, device=model.device)
            alone = job.run_shard(shard)
            rows = slice(shard.first_puzzle, shard.first_puzzle + shard.puzzles)
            columns = slice(shard.first_trajectory, shard.first_trajectory + shard.trajectories)
            for name in ("candidates", "steps", "halt", "lineage"):
                counted = whole.is_counted[rows, columns]
                assert np.array_equal(getattr(alone, name)[counted], getattr(whole, name)[rows, columns][counted])


def test_a_shard_ends_between_two_steps_where_its_watcher_says_so():
    model, steps = tiny_model(), []
    config = resolve(SamplerConfig(width=4, launch=8, halting="fixed"), model)

    class Stop(Observer):
        def on_step(self, view):
            steps.append(int(view.step.max()))
            if len(steps) == 2:
                raise KeyboardInterrupt

    job = Job(model=model, task=TASK, puzzles=PUZZLES[:2], config=config, device=model.device)
    with pytest.raises(KeyboardInterrupt):
        job.run_shard(shards_of(2, config)[0], Stop())
    assert steps == [1, 2]
