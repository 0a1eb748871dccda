"""`gram bench training`: what its rows say of a tiny recipe, and how it refuses. No speed is judged here."""

import pytest

from gram.evals.benchmarks import training_benchmark
from gram.evals.benchmarks.timing import ROOT
from gram.model import Model
from gram.training.recipe import load_recipe

TINY = """task = "nqueens4"
description = "tiny"
[model]
dim = 8
hidden = 8
mixer_hidden = 4
guidance_hidden = 4
head_hidden = 4
depth = 2
low_level_updates = 1
[training]
steps = 100
batch = 4
rollout_slots = 2
evaluate_puzzles = 2
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    # Compiling takes a minute, and is no part of what the rows say.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return str(file)


def test_rows_are_of_one_recipe_and_of_two_trainers(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training_benchmark, "COMPARED_STEPS", 8)
    other = tmp_path / "other"
    other.mkdir()
    (other / "gram").symlink_to(ROOT / "gram")
    seconds, rate, products, share, ratio, processor, losses = training_benchmark.rows(
        recipe, against=other, rounds=2, steps=1
    )
    assert set(seconds.facts["seconds"]) == {"here", "other", "products"}
    assert all(len(each) == 2 for each in seconds.facts["seconds"].values())
    assert rate.ratio * 1e9 * seconds.ratio == pytest.approx(seconds.facts["step_flops"], rel=0.5)
    assert share.low <= share.ratio <= share.high
    assert products.ratio > 0
    assert ratio.low <= ratio.ratio <= ratio.high
    assert 0 < processor.low <= processor.high
    # The same code of the same seed, and three steps more than were timed.
    assert losses.ratio == 0
    assert len(losses.facts["losses"]["here"]) == 8


def test_products_are_counted_forward_and_for_both_gradients(recipe):
    import torch

    loaded = load_recipe(recipe)
    run, flops = training_benchmark.products_of(loaded, torch.device("cpu"), torch.float32)
    run()
    tokens, blocks = loaded.model.length, loaded.model.blocks
    macs = blocks * (8 * 3 * 4 * tokens + tokens * 3 * 8 * 8)
    assert flops == 4 * 6 * macs


def test_what_cannot_be_timed_is_told_in_a_line(recipe, tmp_path):
    with pytest.raises(ValueError, match="against must be a worktree of this repository, with a folder gram in it"):
        next(training_benchmark.rows(recipe, against=tmp_path))
    with pytest.raises(ValueError, match="recipe paper-arc1 must be given --puzzles FILE"):
        next(training_benchmark.rows("paper-arc1"))
    broken = tmp_path / "broken"
    (broken / "gram").mkdir(parents=True)
    (broken / "gram" / "__init__.py").write_text("")
    with pytest.raises(ValueError, match=r"the trainer in .*broken must run the recipe, got: cannot import name"):
        next(training_benchmark.rows(recipe, against=broken))


def test_the_products_of_a_large_recipe_fit_in_memory():
    import torch

    _, flops = training_benchmark.products_of(load_recipe("paper-maze-hard"), torch.device("meta"), torch.bfloat16)
    config = load_recipe("paper-maze-hard").model
    most = (
        3
        * 2
        * training_benchmark.MOST_ROWS
        * sum(weight.numel() for name, weight in Model(config).weights().items() if name.startswith("low."))
    )
    assert 0 < flops <= most
