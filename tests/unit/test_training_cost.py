"""What a training run is said to cost before it starts."""

import json
from dataclasses import replace

import pytest

from gram.cli.main import main
from gram.model import Model
from gram.training.cost import GPU_FLOPS, UTILISATION, cost_of
from gram.training.recipe import RecipeError, load_recipe
from tests.unit.test_recipes import tiny


def test_cost_counts_what_a_step_does():
    """By hand: sums along relations, without noise, one block, K = T = 1."""
    loaded = tiny("nqueens8", "trm")
    model = replace(loaded.model, blocks=1, low_level_updates=1, head_hidden=0)
    made = replace(loaded, model=model, training=replace(loaded.training, steps=10))
    block = 2 * 64 * (3 * 10 * 16 + 64 * 10 + 3 * 16 * 16)
    decoding = 2 * 64 * 3 * 16
    cost = cost_of(made)
    assert cost.step_flops == (8 * 3 + 2) * (2 * block + decoding)
    assert cost.gpu_hours == pytest.approx(cost.step_flops * 10 / (GPU_FLOPS * UTILISATION * 3600))
    assert "10 steps" in cost.sentence()
    assert "NVIDIA H100" in cost.sentence()


@pytest.mark.parametrize("arguments", [(), ("--puzzles", "nowhere.csv")])
def test_a_dry_run_tells_the_cost_and_trains_nothing(tmp_path, capsys, arguments):
    out = tmp_path / "out"
    assert main(("train", "paper-sudoku-extreme", "--out", str(out), "--dry-run", "--json", *arguments)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 65104
    assert told["flops"] == told["step_flops"] * told["steps"]
    assert told["gpu_hours"] > 0
    assert main(("train", "nqueens8-trm", "--out", str(out), "--dry-run")) == 0
    count = sum(value.numel() for value in Model(load_recipe("nqueens8-trm").model).parameters())
    assert capsys.readouterr().out.startswith(f"cost: {count:,} parameters")
    assert not out.exists()


def test_the_cost_is_told_before_the_first_step(tmp_path, capsys, monkeypatch):
    """Also without --dry-run, as the first line, before anything is trained."""
    told: list[str] = []

    def stop(*_: object, **__: object) -> None:
        told.append(capsys.readouterr().err)
        raise RecipeError("nothing is trained here")

    monkeypatch.setattr("gram.training.run.train", stop)
    assert main(("train", "paper-nqueens8", "--out", str(tmp_path / "run"))) == 2
    cost = told[0].splitlines()[0]
    assert cost.startswith("cost: ")
    assert "hours on one NVIDIA H100" in cost


def test_best_of_many_costs_its_trajectories():
    plain, many = cost_of(tiny("nqueens8", "mean-only")), cost_of(tiny("nqueens8", "best-of-many"))
    assert many.step_flops > plain.step_flops
    assert cost_of(load_recipe("nqueens8-trm", minutes=1.0)).flops is None
