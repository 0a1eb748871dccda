"""Cards of shipped checkpoints: they say what card.json holds; shipping a run measures and keeps its settings."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gram.checkpoint import read_card, read_config
from gram.evals.model_card import model_card
from gram.training.run import train
from scripts import ship_checkpoint
from tests.unit.test_training import recipe

WEIGHTS = Path(__file__).parents[2] / "gram" / "weights"
SHIPPED = sorted(path.parent.name for path in WEIGHTS.glob("*/card.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_readme_says_what_the_card_holds(name):
    assert (WEIGHTS / name / "README.md").read_text() == model_card(name, read_card(WEIGHTS / name))


@pytest.mark.parametrize("name", SHIPPED)
def test_settings_of_the_card_are_those_of_the_model(name):
    card, config = read_card(WEIGHTS / name), read_config(WEIGHTS / name)
    trained = card["recipe"]["model"]
    scale = math.exp(config.log_sigma_center - trained["log_sigma_center"])
    assert scale == pytest.approx(card.get("noise_scale", 1.0))
    assert config.depth == card.get("depth", trained["depth"])
    assert (config.trained_depth or config.depth) == trained["depth"]
    if "halt_threshold" in card or "halt_threshold" in trained:
        assert config.halt_threshold == card.get("halt_threshold", trained.get("halt_threshold"))
    if "parts" in card:
        last = card["parts"][-1]
        assert (last["recipe"], last["optimiser_steps"]) == (card["recipe"]["name"], card["optimiser_steps"])
        total = sum(part["optimiser_steps"] for part in card["parts"])
        assert f"| all | {total:,} |" in model_card(name, card)


def test_a_run_is_shipped_with_its_settings_and_figures(tmp_path, monkeypatch):
    """`gram eval` is a stand-in that notes what it was asked: the figures are its means."""
    run, asked = tmp_path / "run", []
    train(replace(recipe(steps=20), name="nqueens4"), run, is_compiled=False, dtype=torch.float32)
    share = {"single_accuracy": 0.5, "accuracy": 0.75, "pass_at_width": 1.0, "mean_steps": 2.0}

    def evaluate(*arguments: str, verb: str = "eval"):
        asked.append(arguments)
        seed = int(arguments[arguments.index("--seed") + 1]) if "--seed" in arguments else 0
        told = {**dict.fromkeys(ship_checkpoint.SHOWN), **share, "single_accuracy": 0.5 + seed / 100}
        ends = {f"{name}_{end}": value for name in share for end, value in (("low", 0.25), ("high", 0.875))}
        aurocs = {"lprm_auroc": 0.5, "halt_auroc": None, "auroc_puzzles": 3}
        return "gram eval ...", {**told, **ends, **aurocs, "puzzles": 2, "width": 20, "depth": 5, "versions": {}}

    monkeypatch.setattr(ship_checkpoint, "evaluate", evaluate)
    monkeypatch.setattr(ship_checkpoint, "ROOT", tmp_path)
    options = ["--noise-scale", "1.5", "--depth", "5", "--halt-threshold", "0.9", "--limit", "2", "--few-puzzles", "1"]
    monkeypatch.setattr("sys.argv", ["ship_checkpoint.py", str(run), "tiny", *options])
    ship_checkpoint.main()

    target = tmp_path / "gram" / "weights" / "tiny"
    config, before = read_config(target), read_config(run)
    assert config.log_sigma_center == pytest.approx(before.log_sigma_center + math.log(1.5))
    assert (config.depth, config.halt_threshold) == (5, 0.9)
    assert config.trained_depth == before.depth
    assert (target / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    card = json.loads((target / "card.json").read_text())
    assert card["figures"]["single_accuracy"] == pytest.approx(0.51), "the mean over three sampling seeds"
    assert card["figures"]["intervals"]["accuracy"] == [0.25, 0.875]
    assert "coverage" not in card["figures"], "undefined there"
    assert [arguments[-3:] for arguments in asked[:3]] == [("2", "--seed", seed) for seed in "012"]
    page = (target / "README.md").read_text()
    assert page == model_card("tiny", card)
    assert "| accuracy | 0.7500 | 0.2500 to 0.8750 |" in page
    assert "scaled after training by | 1.5 |" in page


def test_a_card_tells_the_bound_where_the_run_has_one():
    card = read_card(WEIGHTS / "nqueens8")
    told = {**card, "held_out_while_training": {"nelbo": 3.456, "nelbo_kl": 2.5}}
    assert "| 3.46, of it KL 2.50 |" in model_card("nqueens8", told)
    assert "negative ELBO" not in model_card("nqueens8", {**card, "held_out_while_training": {}})


@pytest.mark.parametrize("name", ["nqueens10", "colouring8", "colouring10", "sudoku9"])
def test_cards_whose_command_cannot_give_the_weights_say_so(name):
    """Stopped early, by the clock, or changed by hand."""
    assert read_card(WEIGHTS / name)["reproduces"].startswith("no: ")
    assert "| does the command give these weights? | no: " in (WEIGHTS / name / "README.md").read_text()


def test_a_depth_chosen_after_training_stands_beside_the_trained_ones():
    page = (WEIGHTS / "sudoku9" / "README.md").read_text()
    assert "chosen after training | 128 |" in page
    assert "| supervision steps, trained | 16 and 32 |" in page
    assert read_config(WEIGHTS / "sudoku9").trained_depth == 32
    card = read_card(WEIGHTS / "nqueens8")
    silent = {key: value for key, value in card.items() if key != "reproduces"}
    assert "does the command give" not in model_card("nqueens8", silent)
    assert "supervision steps, trained" not in model_card("nqueens8", card)
    assert "| supervision steps, trained | 8 |" in model_card("nqueens8", {**card, "depth": 16})
