"""Launches without padding: the rows that run and no more, the same trajectories but for rounding."""

import numpy as np
import pytest

from gram.config import SamplerConfig
from gram.kernels import reference
from gram.sampler.run import sample
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = TASK.split("train").puzzles


def varied_model():
    """A model whose trajectories halt at different steps."""
    model = tiny_model()
    model.halt.weight.mul_(20)
    settings = SamplerConfig(width=6, depth=2, halting="fixed", launch=8)
    model.halt.bias.fill_(-float(np.median(sample(model, TASK, PUZZLES, settings).halt)))
    return model


@pytest.fixture
def launched(monkeypatch):
    """Rows of every launch of a supervision step."""
    rows, real = [], reference.supervision_step

    def counted(weights, spec, h, *arguments, **others):
        rows.append(len(h))
        return real(weights, spec, h, *arguments, **others)

    monkeypatch.setattr(reference, "supervision_step", counted)
    return rows


def settings_of(**overrides):
    return SamplerConfig(**{"width": 6, "depth": 6, "halting": "head", "halt_threshold": 0.5, "launch": 8, **overrides})


def test_a_step_launches_the_rows_still_running(launched):
    model = varied_model()
    launched.clear()
    result = sample(model, TASK, PUZZLES[:1], settings_of(is_padded=False))
    running = [int((result.steps[0] > step).sum()) for step in range(int(result.steps.max()))]
    assert launched == running
    assert min(running) < max(running)
    launched.clear()
    sample(model, TASK, PUZZLES[:1], settings_of())
    assert set(launched) == {8}


@pytest.mark.parametrize(("launch", "rows"), [(1, [1] * 6), (4, [4, 2]), (8, [6]), (6, [6])])
def test_more_rows_than_a_launch_are_cut_only_at_the_end(launched, launch, rows):
    model = tiny_model()
    sample(
        model,
        TASK,
        PUZZLES[:1],
        settings_of(depth=1, launch=launch, slots=6, halting="fixed", halt_threshold=None, is_padded=False),
    )
    assert launched == rows


@pytest.mark.parametrize("halting", ["head", "unchanged", "residual"])
@pytest.mark.parametrize("launch", [1, 3, 8])
def test_trajectories_are_those_of_padded_launches_but_for_rounding(halting, launch):
    model = varied_model()
    rule = {"halting": halting, "halt_threshold": {"head": 0.5, "unchanged": 2, "residual": 0.05}[halting]}
    padded = sample(model, TASK, PUZZLES[:4], settings_of(**rule))
    cut = sample(model, TASK, PUZZLES[:4], settings_of(**rule, launch=launch, is_padded=False, slots=24))
    assert np.array_equal(cut.steps, padded.steps)
    assert np.array_equal(cut.candidates, padded.candidates)
    assert cut.halt == pytest.approx(padded.halt, abs=1e-4)


def test_a_padded_launch_of_one_row_is_an_unpadded_one():
    model = varied_model()
    one, other = (sample(model, TASK, PUZZLES[:3], settings_of(launch=1, is_padded=flag)) for flag in (True, False))
    assert one.trajectories_sha256 == other.trajectories_sha256


def test_runs_that_are_kept_or_spread_are_padded(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="is_padded must be on for a run in the folder"):
        sample(model, TASK, PUZZLES[:1], settings_of(is_padded=False), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="is_padded must be on for a run in a cluster"):
        sample(model, TASK, PUZZLES[:1], settings_of(is_padded=False), backend=object())
