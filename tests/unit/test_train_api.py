"""`gram.train`: a recipe by name, file or object, typed overrides, TensorBoard's scalars."""

import json
import sys
import typing
from dataclasses import replace

import pytest

import gram
from gram.cli.main import main
from gram.training.config import TrainConfig, TrainOverrides
from gram.training.progress import TrainProgress
from gram.training.recipe import RecipeError, load_recipe

RECIPE = """
task = "nqueens4"
description = "tiny"
[model]
dim = 16
heads = 2
hidden = 16
mixer_hidden = 8
guidance_hidden = 8
depth = 2
[training]
minutes = 5
batch = 8
rollout_slots = 4
evaluate_puzzles = 2
evaluate_width = 2
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path / "tiny.toml"


def test_overrides_are_the_fields_of_the_settings():
    assert typing.get_type_hints(TrainOverrides) == typing.get_type_hints(TrainConfig)


def test_a_run_is_the_same_by_file_and_by_object(recipe, tmp_path):
    fast = {"device": "cpu", "dtype": "float32", "is_compiled": False}
    seen: list[TrainProgress] = []
    card = gram.train(recipe, tmp_path / "a", **fast, on_progress=seen.append, steps=3, seed=1, learning_rate=1e-2)
    assert card["optimiser_steps"] == 3
    training = card["recipe"]["training"]
    assert (training["steps"], training["minutes"], training["seed"]) == (3, None, 1)
    assert seen[-1].step == 3
    assert seen[-1].evaluation
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert lines == [progress.to_json() for progress in seen]
    assert lines[-1]["left_s"] == seen[-1].eta_s == 0
    loaded = load_recipe(recipe)
    loaded = replace(loaded, training=replace(loaded.training, steps=3, minutes=None, seed=1, learning_rate=1e-2))
    gram.train(loaded, out=tmp_path / "b", **fast)
    digests = {gram.load(tmp_path / name, device="cpu", dtype="float32").model.digest() for name in "ab"}
    assert len(digests) == 1
    assert load_recipe(loaded, minutes=2.0).training.steps is None


def test_what_is_no_setting_is_refused(recipe, tmp_path):
    for source in (recipe, load_recipe(recipe)):
        for values in ({"stpes": 3}, {"steps": 0}, {"target": "set", "prior_share": 0.5}):
            with pytest.raises(RecipeError, match=next(iter(values))):
                gram.train(source, tmp_path / "no", **values)
    with pytest.raises(ValueError, match="dtype"):
        gram.train(recipe, tmp_path / "no", dtype="int3")
    assert not (tmp_path / "no" / "run.json").exists()


def test_scalars_are_what_the_log_says(recipe, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    for steps in (10, 20):
        gram.train(recipe, out, device="cpu", dtype="float32", is_compiled=False, is_tensorboard=True, steps=steps)
    found = reader.EventAccumulator(str(out / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    for name in ("cross_entropy", "kl_first", "learning_rate"):
        written = [(event.step, event.value) for event in found.Scalars(name)]
        wanted = [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in lines]
        assert written == wanted
    assert [event.step for event in found.Scalars("evaluation/single_accuracy")] == [10, 20]


def test_without_tensorboard_nothing_is_written(recipe, tmp_path, monkeypatch, capsys):
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(("train", str(recipe), "--out", str(tmp_path / "run"), "--steps", "1", "--tensorboard", "--quiet")) == 2
    assert "[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
