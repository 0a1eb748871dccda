"""`gram bench training`: what its rows say of a tiny recipe, and how it refuses. No speed is judged here."""

import pytest

from gram.evals.benchmarks import gpu_training_benchmark, training_benchmark, training_probe
from gram.evals.benchmarks.timing import ROOT
from gram.model import Model
from gram.training.cost import cost_of
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


class InProcess:
    """Stands in for a probe's process, which takes seconds to start; one that is not compiled fails."""

    def __init__(self, folder, recipe, puzzles, version):
        self.trainer = None if version == "eager" else training_probe.opened(recipe, puzzles, folder, version)

    def ask(self, steps):
        if self.trainer is None:
            raise ValueError("out of memory")
        return training_probe.timed(self.trainer, steps)

    def close(self):
        pass


def test_every_way_to_launch_a_step_is_timed_and_one_that_fails_hides_no_other(recipe, monkeypatch):
    """On a CPU there is no graph; the ways are other code all the same."""
    monkeypatch.setattr(gpu_training_benchmark, "Probe", InProcess)
    found = list(gpu_training_benchmark.rows(recipe, rounds=2, warm_steps=1))
    times, failed, rates, ratios = found[:3], found[3], found[4:7], found[7:]
    assert failed.error == "ValueError: out of memory"
    assert all(len(row.facts["seconds"]) == 2 for row in times)
    flops = cost_of(load_recipe(recipe)).step_flops
    for time, rate in zip(times, rates, strict=True):
        assert rate.low * 1e12 * time.high / 1e3 == pytest.approx(flops)
    assert [row.name.split(", ")[-1] for row in ratios] == ["no graph", "waiting at every step"]
    first, *others = (row.facts["seconds"] for row in times)
    for row, seconds in zip(ratios, others, strict=True):
        assert [row.low, row.high] == sorted(a / b for a, b in zip(seconds, first, strict=True))


@pytest.mark.parametrize(
    ("version", "kind"),
    [("captured", "Timed"), ("launched", "Timed"), ("host", "Trainer"), ("eager", "Trainer"), ("", "Trainer")],
)
def test_a_probe_takes_the_trainer_of_its_version(recipe, tmp_path, version, kind):
    trainer = training_probe.opened(recipe, "-", tmp_path, version)
    assert type(trainer).__name__ == kind
    assert getattr(trainer, "is_captured", None) == {"captured": True, "launched": False}.get(version)
    made = training_probe.timed(trainer, 3)
    assert len(made["seconds"]) == len(made["cpu_seconds"]) == 3
    assert len(made["losses"]) == (1 if kind == "Timed" else 3)


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
