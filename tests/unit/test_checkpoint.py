"""The checkpoint directory: one format, read and written with and without transformers."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from gram import checkpoint
from gram.checkpoint import CheckpointError
from gram.config import ModelConfig, config_from_json
from gram.training.config import TrainConfig
from gram.training.recipe import load_recipe
from tests.models import tiny_config, tiny_model


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "overrides", [{}, {"guidance": "none"}, {"is_core_shared": False, "registers": 2, "mixer": "attention"}]
)
def test_round_trip(tmp_path, overrides):
    model = tiny_model(**overrides)
    checkpoint.save(model, tmp_path, card={"figures": {"accuracy": 0.5}})
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == model.config
    assert same(loaded.state_dict(), model.state_dict())
    assert checkpoint.read_card(tmp_path) == {"figures": {"accuracy": 0.5}}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_are_cast_once_to_the_type_asked_for(tmp_path):
    checkpoint.save(tiny_model(), tmp_path, dtype=torch.bfloat16)
    assert checkpoint.load(tmp_path).dtype == torch.bfloat16
    assert checkpoint.load(tmp_path, dtype=torch.float32).z0_h.dtype == torch.float32


def test_nothing_is_left_beside_the_files(tmp_path):
    checkpoint.save(tiny_model(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    checkpoint.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def spoil(directory, how):
    weights, config = directory / "model.safetensors", directory / "config.json"
    tensors = load_file(weights)
    if how == "no directory":
        return directory / "elsewhere", "must be a directory with config.json"
    if how == "no weights":
        weights.unlink()
        return directory, "must hold model.safetensors"
    if how == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-50])
        return directory, "not a safetensors file"
    if how == "not json":
        config.write_text("{")
        return directory, "not JSON"
    if how == "another model":
        config.write_text('{"model_type": "bert"}')
        return directory, "model_type must be 'gram', got 'bert'"
    if how == "bad value":
        config.write_text(json.dumps({**json.loads(config.read_text()), "dim": -4}))
        return directory, "dim must be at least 1, got -4"
    if how == "missing tensor":
        del tensors["model.decoder.weight"]
        save_file(tensors, weights)
        return directory, "model.decoder.weight is missing"
    if how == "other shape":
        tensors["model.decoder.weight"] = torch.zeros(2, 2)
        save_file(tensors, weights)
        return directory, "model.decoder.weight must be [3, 16], got [2, 2]"
    save_file({**tensors, "model.extra": torch.zeros(1)}, weights)
    return directory, "model.extra is not a tensor of this model"


@pytest.mark.parametrize(
    "how",
    [
        "no directory", "no weights", "torn weights", "not json", "another model", "bad value", "missing tensor",
        "other shape", "surplus tensor",
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_one_line(tmp_path, how):
    checkpoint.save(tiny_model(), tmp_path)
    directory, words = spoil(tmp_path, how)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(directory)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_find_knows_names_and_directories(tmp_path):
    checkpoint.save(tiny_model(), tmp_path)
    assert checkpoint.find(tmp_path) == tmp_path
    for name in checkpoint.shipped_names():
        assert checkpoint.find(name).name == name
    with pytest.raises(CheckpointError, match="got 'nowhere'"):
        checkpoint.find("nowhere")


def test_shipped_checkpoints_are_small_bf16_and_carry_a_card():
    names = checkpoint.shipped_names()
    assert {"nqueens8", "nqueens8-deterministic", "sudoku6", "colouring8"} <= set(names)
    total = 0
    for name in names:
        directory = checkpoint.find(name)
        size = (directory / "model.safetensors").stat().st_size
        total += size
        assert size <= 2 * 2**20, name
        assert {tensor.dtype for tensor in load_file(directory / "model.safetensors").values()} == {torch.bfloat16}
        card = checkpoint.read_card(directory)
        assert {"recipe", "command", "optimiser_steps", "minutes", "figures"} <= set(card), name
        assert checkpoint.load(directory).config.task == card["task"]
    assert total <= 12 * 2**20


def told_training(card, recipe, name):
    """The settings of a card's training, those of an older card in today's terms.

    Older runs looked and saved by the clock, neither of which changes a weight, and could end by the clock: the recipe
    then gives the steps that they came to.
    """
    told = dict(card["recipe"]["training"])
    if "evaluate_every_s" in told:
        del told["evaluate_every_s"], told["checkpoint_every_s"]
        told |= {key: getattr(recipe.training, key) for key in ("evaluate_every_steps", "checkpoint_every_steps")}
        if told["steps"] is None:
            assert card["minutes"] >= 0.99 * told["minutes"], name
            assert card["reproduces"].startswith("no: "), name
            told |= {"steps": card["optimiser_steps"], "minutes": None}
    return config_from_json(TrainConfig, told, where=name)


def test_shipped_checkpoints_come_from_the_published_recipes():
    """The recipe on a card is the one in `gram/recipes/`, setting by setting."""
    for name in checkpoint.shipped_names():
        card = checkpoint.read_card(checkpoint.find(name))
        recipe = load_recipe(card["recipe"]["name"])
        # A setting that is younger than the card had its default.
        model = config_from_json(ModelConfig, card["recipe"]["model"], where=name)
        training = told_training(card, recipe, name)
        assert (card["recipe"]["task"], model, training) == (recipe.task.name, recipe.model, recipe.training), name
        center = recipe.model.log_sigma_center + math.log(card.get("noise_scale", 1.0))
        shipped = checkpoint.read_config(checkpoint.find(name))
        assert shipped.log_sigma_center == pytest.approx(center)
        assert shipped.halt_threshold == card.get("halt_threshold", recipe.model.halt_threshold)
        assert shipped.depth == card.get("depth", recipe.model.depth)
        assert (shipped.trained_depth or shipped.depth) == recipe.model.depth
        if "selection" in card:
            assert shipped.selector == card["selection"]["selector"]
        else:
            assert shipped.selector == recipe.model.selector
        assert shipped.views == card.get("views", recipe.model.views)
        assert shipped.width_policy == card.get("width_policy", recipe.model.width_policy)
        assert shipped.width_stage == card.get("width_stage", recipe.model.width_stage)
        names = ("log_sigma_center", "halt_threshold", "depth", "trained_depth", "selector", "views")
        for name in ("transitions", "is_warm_started"):
            assert getattr(shipped, name) == card.get(name, getattr(recipe.model, name))
        names += ("width_policy", "width_stage", "transitions", "is_warm_started")
        chosen = {name: getattr(recipe.model, name) for name in names}
        assert replace(shipped, **chosen) == recipe.model
        # Steps or minutes, whichever ended the run; a card says where it was stopped before.
        limit = recipe.training.minutes
        is_whole = card["optimiser_steps"] == recipe.training.steps or (limit and card["minutes"] >= 0.99 * limit)
        assert is_whole or "stopped" in card["reproduces"], name


class TestTransformers:
    """`gram/hub.py` reads and writes the same directory."""

    def test_auto_model_reads_what_we_write(self, tmp_path):
        from transformers import AutoConfig, AutoModel

        import gram.hub  # noqa: F401 - registers the classes

        model = tiny_model(registers=2, mixer="attention")
        checkpoint.save(model, tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).to_model_config() == model.config
        loaded = AutoModel.from_pretrained(tmp_path)
        assert same(loaded.model.state_dict(), model.state_dict())

    def test_we_read_what_save_pretrained_writes(self, tmp_path):
        from gram.config import config_to_json
        from gram.hub import GramConfig, GramForReasoning

        config = tiny_config(is_core_shared=False, head_hidden=4, views="random")
        written = GramForReasoning(GramConfig(**config_to_json(config)))
        written.save_pretrained(tmp_path)
        loaded = checkpoint.load(tmp_path)
        assert loaded.config == config
        assert same(loaded.state_dict(), written.model.state_dict())


def test_loading_a_checkpoint_imports_no_transformers():
    code = "import sys, gram.checkpoint, gram.api; sys.exit('transformers' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_default_checkpoint_can_do_the_task_and_is_its_best(tmp_path, monkeypatch):
    assert checkpoint.default_for("nqueens8") == "nqueens8"
    assert checkpoint.default_for("sudoku6") == "sudoku6"
    # sudoku-solutions is for boards with several solutions, whatever its card's figures on those.
    assert checkpoint.default_for("sudoku9") == checkpoint.default_for("sudoku4") == "sudoku-lattice"
    assert checkpoint.default_for("sudoku6", is_conditional=False) == "sudoku6-unconditional"
    with pytest.raises(CheckpointError, match="colouring8"):
        checkpoint.default_for("colouring8", is_conditional=False)
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    for name, accuracy in (("nqueens4", 0.5), ("better", 0.9), ("worse", 0.2)):
        checkpoint.save(tiny_model(), tmp_path / name, card={"figures": {"accuracy": accuracy}})
    assert checkpoint.default_for("nqueens4") == "better"
