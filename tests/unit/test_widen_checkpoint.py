"""A lattice made twice as wide says the same, and learns on from there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gram import checkpoint
from gram.kernels.reference import core, read_head
from gram.model import Model, embed_sets, read_values
from gram.tasks.registry import get_task
from scripts.widen_checkpoint import widened
from tests.models import tiny_model
from tests.unit.test_lattice import lattice_model

ROOT = Path(__file__).resolve().parent.parent.parent


def opinions(model: Model) -> tuple[torch.Tensor, ...]:
    """What a model says of three puzzles after three loops."""
    task = get_task("sudoku4")
    puzzles = task.split("test", limit=3).puzzles
    sets = torch.from_numpy(task.candidates(puzzles))[..., list(model.config.values)]
    weights = model.weights()
    shown = embed_sets(weights, model.config, torch.from_numpy(puzzles).long(), sets)
    h = model.initial_state(3)[0]
    for _ in range(3):
        h = core(weights, "low", h + shown, model.spec)
    return *read_values(weights, model.config, h), read_head(weights, "halt", h, model.spec)


@pytest.mark.parametrize("changes", [{}, {"head_readout": "max"}, {"are_values_alike": False}, {"blocks": 3}])
def test_twice_as_wide_says_the_same(changes):
    narrow = lattice_model(**changes)
    wide = widened(narrow, seed=3).requires_grad_(False)
    assert (wide.config.dim, wide.config.hidden, wide.config.mixer_hidden) == (32, 32, 40)
    for ours, theirs in zip(opinions(narrow), opinions(wide), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_two_of_a_channel_do_not_learn_alike():
    wide = widened(lattice_model(), seed=3)
    sum(part.square().sum() for part in opinions(wide)).backward()
    gradient = wide.low[0].channel.down.grad
    first, second = gradient.chunk(2, 0)
    assert not torch.allclose(first, second, rtol=1e-2)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="checkpoint must be a lattice with relations, got continuous with"):
        widened(tiny_model(), seed=0)
    with pytest.raises(ValueError, match="positions none and heads with hidden units, got none and 0"):
        widened(lattice_model(head_hidden=0), seed=0)


def test_the_command_writes_a_checkpoint_and_refuses_a_folder_in_use(tmp_path: Path):
    checkpoint.save(lattice_model(), tmp_path / "narrow")

    def run() -> subprocess.CompletedProcess[str]:
        script = ROOT / "scripts/widen_checkpoint.py"
        command = [sys.executable, str(script), str(tmp_path / "narrow"), str(tmp_path / "wide")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "wide").config.dim == 32
    again = run()
    assert again.returncode == 2
    assert "new or empty folder" in again.stderr
