"""Settings refuse what is out of range in one line, and survive JSON."""

import json

import pytest

from gram.config import (
    ModelConfig,
    SamplerConfig,
    config_from_json,
    config_to_json,
)
from gram.presets import PRESETS, model_config
from gram.train_config import TrainConfig


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (ModelConfig, {"dim": 0}, "dim must be at least 1, got 0"),
        (ModelConfig, {"dim": 130}, "dim must be a multiple of 4, got 130"),
        (ModelConfig, {"mixer": "mlp"}, "mixer must be one of token, attention, relations, got 'mlp'"),
        (ModelConfig, {"mixer": "attention", "heads": 3}, "heads"),
        (ModelConfig, {"output_start": 60, "output_tokens": 8}, "output tokens"),
        (ModelConfig, {"head_readout": "register"}, "registers"),
        (SamplerConfig, {"width": 0}, "width must be at least 1, got 0"),
        (SamplerConfig, {"depth": 0}, "depth must be at least 1, got 0"),
        (SamplerConfig, {"selector": "best"}, "selector must be one of"),
        (SamplerConfig, {"halt_threshold": 1.0}, "halt_threshold"),
        (SamplerConfig, {"temperature": -1.0}, "temperature"),
        (SamplerConfig, {"temperature": float("nan")}, "temperature"),
        (SamplerConfig, {"seed": -1}, "seed"),
        (SamplerConfig, {"seed": 2**64}, "seed"),
        (SamplerConfig, {"launch": 7}, "launch must be at least 8, got 7"),
        (TrainConfig, {}, "steps or minutes"),
        (TrainConfig, {"minutes": 0.0}, "minutes"),
        (TrainConfig, {"minutes": 1.0, "ema": 1.5}, "ema"),
        (TrainConfig, {"minutes": 1.0, "kl_beta": ((0.5, 1.0), (0.1, 2.0))}, "kl_beta"),
    ],
)
def test_bad_values_are_one_line(kind, values, words):
    with pytest.raises(ValueError, match="must") as error:
        kind(**values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"widht": 1}, "'widht' is not a setting"),
        ({"width": "many"}, "width must be int, got 'many'"),
        ({"width": True}, "width must be int, got True"),
        ({"temperature": "hot"}, "temperature must be float"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_bad_json_names_where(values, words):
    with pytest.raises(ValueError, match=r"study\.toml") as error:
        config_from_json(SamplerConfig, values, where="study.toml")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(dim=64, mixer="attention", registers=2),
        SamplerConfig(depth=3),
        TrainConfig(minutes=2, token_weights=((2, 2.0),)),
    ],
)
def test_json_round_trip(config):
    text = json.dumps(config_to_json(config))
    assert config_from_json(type(config), json.loads(text), where="here") == config


def test_presets_are_valid_and_overridable():
    for preset in PRESETS:
        assert model_config(preset, tokens=36, output_tokens=36).tokens == 36
    with pytest.raises(ValueError, match="preset must be one of"):
        model_config("huge")
