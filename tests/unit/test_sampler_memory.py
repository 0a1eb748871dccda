"""Absurd sizes are refused in one line with the number, before anything is sampled."""

import numpy as np
import pytest
import torch

from gram.api import Sampler
from gram.config import MOST, SamplerConfig
from gram.kernels.dispatch import slot_count
from gram.sampler import engine, run
from gram.sampler.engine import SlotStates
from gram.tasks.registry import get_task
from tests.integration.test_cli import Command, tiny
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = np.repeat(TASK.split("test").puzzles[:1], 1000, axis=0)
SAMPLER = Sampler(tiny_model(), TASK, name="tiny")
MEGABYTE = 10**6


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_settings_have_a_most(name, most):
    assert getattr(SamplerConfig(**{name: most}), name) == most
    for value in (most + 1, 10**9 + 7, 99999999999999999999):
        with pytest.raises(ValueError, match=f"^{name} must be at most {most:,}, got {value}$"):
            SamplerConfig(**{name: value})


def test_supervision_steps_fit_their_noise_counter():
    assert MOST["depth"] * MOST["transitions"] <= 2**24


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 2**20}, "1,000 puzzles at width 1,048,576: at least 7"),
        ({"width": 20_000}, "1,000 puzzles at width 20,000: at least 1.5 GB"),
        ({"width": 2**17, "width_policy": "verified"}, "1,000 puzzles at width 131,072: at least 9.6 GB"),
        ({"slots": 2**20}, "1,048,576 slots in launches of 64: at least 4.3 GB"),
        ({"slots": 8, "launch": 2**16, "width": 17_000}, "of memory of cpu, got 1,000 puzzles at width 17,000"),
    ],
)
def test_what_cannot_fit_is_refused_before_sampling(monkeypatch, settings, words):
    monkeypatch.setattr(run, "machine_bytes", lambda: 1000 * MEGABYTE)
    monkeypatch.setattr(engine.Engine, "__init__", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"run must fit in 1\.0 GB of memory of cpu") as error:
        SAMPLER.sample(PUZZLES, **settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_more_puzzles_and_traces_need_more(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "machine_bytes", lambda: 2 * MEGABYTE)
    SAMPLER.sample(PUZZLES[:20], width=2, launch=8, slots=8)
    with pytest.raises(ValueError, match=r"got 1,000 puzzles at width 50: at least 3\.7 MB"):
        SAMPLER.sample(PUZZLES, width=50, launch=8, slots=8)
    with pytest.raises(ValueError, match="got 20 puzzles at width 2"):
        SAMPLER.sample(PUZZLES[:20], width=2, depth=2000, launch=8, slots=8, out=tmp_path, is_traced=True)
    assert not any(tmp_path.iterdir())


def test_the_estimate_is_below_what_is_taken():
    result = SAMPLER.sample(PUZZLES[:50], width=40, launch=8)
    arrays = (result.candidates, result.steps, result.halt, result.lprm, result.residual, result.margin)
    taken = sum(array.nbytes for array in (*arrays, result.is_halted, result.lineage, result.votes))
    taken += TASK.canonical(result.candidates.copy()).nbytes
    assert run.result_bytes(result.config, 50, TASK.output_tokens) == taken
    slots = SlotStates(SAMPLER.model, result.config, task=SAMPLER.task, is_unconditional=False)
    taken = sum(state.nbytes for state in (slots.h, slots.h_before, slots.l, slots.e_x))
    assert run.slot_bytes(result.config, SAMPLER.model.spec, 4) == taken


@pytest.mark.parametrize(("content", "limit"), [("max\n", None), ("1000000\n", 10**6), ("", None), ("x", None)])
def test_a_container_may_have_less(monkeypatch, tmp_path, content, limit):
    monkeypatch.setattr(run, "LIMIT_FILES", (tmp_path / "memory.max", tmp_path / "none"))
    (tmp_path / "memory.max").write_text(content)
    whole = run.machine_bytes()
    assert whole == limit if limit else whole > 10**8
    assert run.device_bytes(torch.device("cpu")) == whole
    assert slot_count(torch.device("cpu"), 64) == 64


@pytest.mark.parametrize(
    ("command", "flag", "words"),
    [
        ("eval", "--width", "width must be at most 1,048,576"),
        ("eval", "--depth", "depth must be at most 65,536"),
        ("eval", "--slots", "slots must be at most 1,048,576"),
        ("eval", "--launch", "launch must be at most 65,536"),
        ("eval", "--limit", "limit must be at most 10,000,000"),
        ("solve", "--limit", "limit must be at most 10,000,000"),
        ("solve", "--transitions", "transitions must be at most 256"),
        ("generate", "--count", "count must be at most 10,000,000"),
        ("plan", "--width", "width must be at most 1,048,576"),
        ("plan", "--puzzles", "puzzles must be at most 10,000,000"),
    ],
)
@pytest.mark.parametrize("value", ["99999999999999999999", "10000001"])
def test_absurd_flags_are_one_line(capsys, tmp_path, monkeypatch, command, flag, words, value):
    monkeypatch.setattr(engine.Engine, "__init__", lambda *_, **__: pytest.fail("sampled"))
    gram = Command(capsys, tiny(tmp_path))
    more = ("--rate", "1") if command == "plan" else ()
    code, out, err = gram(command, "nqueens4", "--checkpoint", gram.directory, flag, value, *more)
    assert (code, out) == (2, "")
    assert err == f"gram: {words}, got {value}\n"
