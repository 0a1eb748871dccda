"""Recipes of the paper's size: their hyper-parameters, what they cost, and a few steps at full size on real rows."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gram.training import published
from gram.training.arc_builder import build
from gram.training.arc_puzzles import open_training_puzzles, with_identities
from gram.training.cost import cost_of
from gram.training.published import PUBLISHED
from gram.training.recipe import load_recipe, recipe_names
from gram.training.trainer import Trainer

PAPER = tuple(name for name in recipe_names() if name.startswith("paper-"))
BETA = {
    "paper-sudoku-extreme": 0.1,
    "paper-maze-hard": 0.1,
    "paper-arc1": 0.04,
    "paper-arc2": 0.1,
    "paper-nqueens8": 0.07,
    "paper-nqueens10": 0.045,
    "paper-colouring8": 0.5,
    "paper-colouring10": 0.45,
    "paper-sudoku-unconditional": 0.05,
}
FILES = {
    "paper-sudoku-extreme": "sudoku_extreme_1k/public_800.csv.gz",
    "paper-maze-hard": "maze_hard_30x30/public_train1000.csv.gz",
    "paper-arc1": "arc_agi/public_arc1_training400.json.gz",
    "paper-arc2": "arc_agi/public_arc2_training_clean624.json.gz",
}
"""Rows of the published sets in the folder of `GRAM_DATA`."""


@pytest.mark.parametrize("name", PAPER)
def test_hyper_parameters_are_the_papers(name):
    loaded = load_recipe(name)
    model, training = loaded.model, loaded.training
    assert (model.dim, model.heads, model.hidden, model.registers) == (512, 8, 512, 16)
    assert (model.transitions, model.depth, model.noise_order, model.noise_free_steps) == (3, 16, "after", 0)
    assert (model.low_level_updates, model.mixer) == ((6, "token") if "sudoku" in name else (4, "attention"))
    assert (training.batch, training.learning_rate, training.weight_decay, training.clip) == (768, 1e-4, 1.0, 1.0)
    assert (training.ema, training.kl_balance, training.kl_beta) == (0.9999, 0.8, ((0.0, BETA[name]),))
    assert model.is_conditional == ("unconditional" not in name)
    assert bool(loaded.needs_puzzles) == (name in FILES)


@pytest.mark.parametrize("name", PAPER)
def test_the_cost_is_known_before_the_run(name):
    cost = cost_of(load_recipe(name))
    assert 6e6 < cost.parameters < 12e6
    assert cost.gpu_hours is not None
    assert 0.1 < cost.gpu_hours < 1000
    assert "hours on one NVIDIA H100" in cost.sentence()
    assert "not measured" in cost.sentence()


def few_steps(name: str, out: Path, file: Path | None) -> None:
    """Two optimiser steps at full size, on one puzzle."""
    loaded = load_recipe(name, steps=2)
    if loaded.model.identity_dim:
        assert file is not None
        build([file], out / "data", views=1)
        file = out / "data"
    loaded = with_identities(loaded, file)
    loaded = replace(loaded, training=replace(loaded.training, batch=1, rollout_slots=1, evaluate_puzzles=1))
    source = open_training_puzzles(loaded, file)
    made = Trainer(
        loaded, out, device=torch.device("cpu"), dtype=torch.float32, is_compiled=False, puzzles=source
    )  # fmt: skip
    before = made.flat.master.detach().clone()
    table = made.model.identities
    assert (table is not None) == ("arc" in name)
    learned: set[int] = set()
    for _ in range(2):
        figures = made.advance()
        learned.update(made.slots.identities.tolist())
        assert math.isfinite(figures["cross_entropy"])
        assert 0 < figures["gradient_norm"] < math.inf
    assert not torch.equal(before, made.flat.master)
    if table is not None:
        # They were zero; the rows of the steps' puzzles alone have learned.
        assert set(table.rows.any(1).nonzero().flatten().tolist()) == learned


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PAPER) - set(FILES)))
def test_a_few_steps_on_generated_puzzles(tmp_path, name):
    few_steps(name, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_few_steps_on_real_rows(tmp_path, gram_data, name):
    few_steps(name, tmp_path, gram_data / FILES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_few_steps_on_files_of_gram_data(tmp_path, gram_data, name):
    recipe = f"paper-{name}"
    published.data(name, tmp_path / "data", source=str(gram_data / FILES[recipe]), limit=60)
    few_steps(recipe, tmp_path / "run", tmp_path / "data" / "train.csv.gz")
