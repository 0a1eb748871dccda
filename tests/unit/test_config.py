"""Settings refuse what is out of range in one line, and survive JSON."""

import json
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.config import MODEL_FIELDS, ModelConfig, SamplerConfig, config_from_json, config_to_json
from gram.presets import PRESETS, model_config
from gram.training.config import TrainConfig


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
        (SamplerConfig, {"launch": 0}, "launch must be at least 1, got 0"),
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
        ({"width": "many"}, "width must be a whole number, got 'many'"),
        ({"width": True}, "width must be a whole number, got True"),
        ({"temperature": "hot"}, "temperature must be a finite number"),
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


def test_a_model_is_stored_in_one_order_as_its_shipped_file():
    assert sorted(MODEL_FIELDS) == sorted(field.name for field in fields(ModelConfig))
    folder = checkpoint.find("nqueens8")
    stored = json.loads((folder / "config.json").read_text())
    assert list(checkpoint.config_json(checkpoint.read_config(folder)).items()) == list(stored.items())


def test_presets_are_valid_and_overridable():
    for preset in PRESETS:
        assert model_config(preset, tokens=36, output_tokens=36).tokens == 36
    with pytest.raises(ValueError, match="preset must be one of"):
        model_config("huge")


NUMPY_WHOLE = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@given(st.integers(1, 127), st.sampled_from([int, *NUMPY_WHOLE]))
def test_whole_numbers_of_any_type_become_plain_ones(number, kind):
    for config, names in (
        (SamplerConfig(width=kind(number), depth=kind(number), seed=kind(number)), ("width", "depth", "seed")),
        (TrainConfig(steps=kind(number), batch=kind(number)), ("steps", "batch")),
        (ModelConfig(registers=kind(number), transitions=kind(number)), ("registers", "transitions")),
    ):
        assert all(type(getattr(config, name)) is int and getattr(config, name) == number for name in names)
        assert json.loads(json.dumps(config_to_json(config)))[names[0]] == number


@given(st.integers(0, 63), st.sampled_from([int, float, np.float16, np.float32, np.float64, np.int32, Fraction]))
def test_real_numbers_of_any_type_become_plain_ones(number, kind):
    share = number / 64
    value = kind(share) if kind not in (int, np.int32) else kind(number)
    config = SamplerConfig(temperature=value)
    assert type(config.temperature) is float
    assert config.temperature == (number if kind in (int, np.int32) else share)
    assert type(TrainConfig(minutes=1, kl_beta=((np.float32(0), value),)).kl_beta[0][1]) is float


def test_lists_and_names_become_plain():
    config = TrainConfig(steps=1, token_weights=[[np.int64(2), np.float32(0.5)]])
    assert config.token_weights == ((2, 0.5),)
    assert [type(part) for part in config.token_weights[0]] == [int, float]
    assert ModelConfig(is_conditional=np.bool_(True)).is_conditional is True
    assert type(SamplerConfig(selector=np.str_("vote")).selector) is str


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        (SamplerConfig, "width", 4.0, "whole number"),
        (SamplerConfig, "width", "4", "whole number"),
        (SamplerConfig, "width", True, "whole number"),
        (SamplerConfig, "width", np.float64(4), "whole number"),
        (SamplerConfig, "width", np.True_, "whole number"),
        (SamplerConfig, "width", None, "whole number"),
        (SamplerConfig, "depth", [3], "whole number or none"),
        (SamplerConfig, "seed", 1.5, "whole number"),
        (SamplerConfig, "temperature", "1", "finite number"),
        (SamplerConfig, "temperature", False, "finite number"),
        (SamplerConfig, "temperature", 10**400, "finite number"),
        (SamplerConfig, "sigma", 1j, "finite number or none"),
        (SamplerConfig, "selector", ["vote"], "name"),
        (ModelConfig, "dim", 128.0, "whole number"),
        (ModelConfig, "dim", "128", "whole number"),
        (ModelConfig, "is_conditional", 1, "true or false"),
        (ModelConfig, "relations", "row", "list of names"),
        (ModelConfig, "norm_eps", float("inf"), "finite number"),
        (TrainConfig, "batch", 2.5, "whole number"),
        (TrainConfig, "minutes", np.array([1.0, 2.0]), "finite number"),
        (TrainConfig, "kl_beta", ((0.0, "1"),), "finite number"),
        (TrainConfig, "kl_beta", ((0.0,),), "list of pairs"),
        (TrainConfig, "token_weights", ((1.5, 1.0),), "whole number"),
    ],
)
def test_values_of_another_type_are_one_line(kind, name, value, expected):
    needed = {"steps": 1} if kind is TrainConfig else {}
    with pytest.raises(ValueError, match=f"{name} must be .*{expected}.*, got ") as error:
        kind(**{**needed, name: value})
    assert "\n" not in str(error.value)
