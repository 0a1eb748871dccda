"""`gram/hub.py`: the same directory and the same values as without transformers, and the same refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gram import checkpoint
from gram.checkpoint import CheckpointError
from gram.config import INJECTORS, SamplerConfig
from gram.sampler.run import sample
from gram.tasks.registry import get_task
from tests.models import tiny_config, tiny_model

NOISES = {
    "prior": ({}, {}),
    "prior, mean only": ({"guidance": "mean"}, {}),
    "prior, noise only, no free step": ({"guidance": "noise", "noise_free_steps": 0}, {}),
    "none": ({"guidance": "none"}, {}),
    "path noise": ({"guidance": "none", "path_noise": 0.3, "path_keep": 0.1}, {}),
    "random start": ({"guidance": "none", "initial_std": 1.0}, {}),
    "both": ({"guidance": "none", "initial_std": 0.5, "path_noise": 0.1, "transitions": 2}, {}),
    "path noise off": ({"guidance": "none", "path_noise": 0.3, "initial_std": 1.0}, {"injector": "none"}),
    "path noise of a guided model": ({}, {"injector": "path", "sigma": 0.2}),
    "random start, gaussian": ({"guidance": "none", "initial_std": 1.0}, {"injector": "gaussian", "sigma": 0.5}),
    "gaussian": ({}, {"injector": "gaussian", "noise_site": "both"}),
    "prior named": ({"guidance": "mean"}, {"injector": "prior"}),
    "temperature": ({}, {"temperature": 0.5, "seed": 7, "transitions": 2}),
    "attention and registers": ({"mixer": "attention", "registers": 2}, {"launch": 16}),
}


def test_every_injector_is_among_the_noises():
    named = {settings.get("injector") for _, settings in NOISES.values()}
    own = {tiny_config(**model).injector for model, _ in NOISES.values()}
    assert set(INJECTORS) == named - {None} | {"commitment"}  # a lattice's, which forward refuses
    assert {"prior", "path", "none"} <= own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("model", "settings"), NOISES.values(), ids=NOISES)
def test_auto_model_is_trajectory_0_bit_for_bit(tmp_path, model, settings, dtype):
    from transformers import AutoModel

    import gram.hub  # noqa: F401 - registers the classes

    checkpoint.save(tiny_model(**model), tmp_path)
    task = get_task("nqueens4")
    puzzles = task.split("train").puzzles[:5]
    sampling = SamplerConfig(width=2, halting="fixed", **settings)
    sampled = sample(checkpoint.load(tmp_path, dtype=dtype), task, puzzles, sampling)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    with torch.inference_mode():
        output = loaded(torch.from_numpy(puzzles.astype(np.int64)), sampling=sampling if settings else None)
    assert np.array_equal(output.halt.numpy(), sampled.halt[:, 0])
    assert np.array_equal(output.lprm.numpy(), sampled.lprm[:, 0])
    assert np.array_equal(output.logits.argmax(-1).numpy(), sampled.candidates[:, 0])


def test_a_model_without_condition_generates_as_the_sampler_does(tmp_path):
    from gram.api import Sampler
    from gram.hub import GramForReasoning

    checkpoint.save(tiny_model(is_conditional=False), tmp_path)
    sampler = Sampler(checkpoint.load(tmp_path), get_task("nqueens4"), name="tiny")
    sampled = sampler.generate(2, halting="fixed")
    output = GramForReasoning.from_pretrained(tmp_path)(torch.zeros(1, 16, dtype=torch.long))
    assert np.array_equal(output.halt.detach().numpy(), sampled.halt[:, 0])
    assert np.array_equal(output.logits.argmax(-1).numpy(), sampled.candidates[:, 0])


def test_more_puzzles_than_a_launch_and_gradients(tmp_path):
    from gram.hub import GramForReasoning

    checkpoint.save(tiny_model(), tmp_path)
    loaded = GramForReasoning.from_pretrained(tmp_path)
    puzzles = torch.from_numpy(get_task("nqueens4").split("train").puzzles.astype(np.int64)).repeat(9, 1)[:20]
    small = SamplerConfig(launch=8)
    together, alone = loaded(puzzles, sampling=small, depth=2), loaded(puzzles[17:18], sampling=small, depth=2)
    assert torch.equal(together.logits[17:18], alone.logits)
    together.logits.sum().backward()
    assert loaded.model.embedding.weight.grad.abs().sum() > 0


def spoil(folder, how):
    """Breaks a checkpoint; what the refusal must name."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors, values = load_file(weights), json.loads(config.read_text())
    name = "model.decoder.weight"
    if how == "missing":
        del tensors[name]
    elif how == "missing buffer":
        del tensors[name := "model.z0_h"]
    elif how == "surplus":
        tensors[name := "model.more"] = torch.zeros(1)
    elif how == "shape":
        tensors[name] = torch.zeros(2, 2)
    elif how == "type":
        tensors[name] = tensors[name].to(torch.int64)
    elif how == "not finite":
        tensors[name].view(-1)[3] = float("nan")
    elif how == "field":
        del values[name := "transitions"]
    elif how == "misnamed":
        values[name := "transitons"] = values.pop("transitions")
    elif how == "size":
        values[name := "dim"] = 10**12
    save_file(tensors, weights)
    config.write_text(json.dumps(values))
    return name


@pytest.mark.parametrize(
    "how", ["missing", "missing buffer", "surplus", "shape", "type", "not finite", "field", "misnamed", "size"]
)
def test_auto_model_refuses_what_load_refuses(tmp_path, how):
    from transformers import AutoModel

    import gram.hub  # noqa: F401 - registers the classes

    checkpoint.save(tiny_model(), tmp_path)
    name = spoil(tmp_path, how)
    for read in (checkpoint.load, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=name) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["missing", "surplus", "not finite"])
def test_weights_that_lie_elsewhere_are_held_to_the_same(tmp_path, how, monkeypatch):
    """As of a repository of the hub, whose folder is not known before it is loaded."""
    from gram.hub import GramForReasoning

    checkpoint.save(tiny_model(), tmp_path)
    name = spoil(tmp_path, how)
    monkeypatch.setattr(checkpoint, "load", lambda *_: None)
    with pytest.raises(CheckpointError, match=name):
        GramForReasoning.from_pretrained(tmp_path)


def test_shards_of_save_pretrained_are_loaded(tmp_path):
    from gram.hub import GramForReasoning

    checkpoint.save(tiny_model(), tmp_path / "one")
    GramForReasoning.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many", max_shard_size="3KB")
    assert len(checkpoint.weight_files(tmp_path / "many")) > 2
    assert checkpoint.load(tmp_path / "many").digest() == checkpoint.load(tmp_path / "one").digest()
    again = GramForReasoning.from_pretrained(tmp_path / "many")
    assert again.model.digest() == checkpoint.load(tmp_path / "one").digest()


def test_keys_that_transformers_writes_are_known():
    from transformers import PretrainedConfig

    keys = set(PretrainedConfig().to_dict())
    assert {key for key in keys if not key.startswith("_")} <= set(checkpoint.TRANSFORMERS_KEYS)


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(2, 16), torch.zeros(2, 9, dtype=torch.long), torch.zeros(16, dtype=torch.long),
     torch.full((1, 16), 257), torch.full((1, 16), -1), torch.full((1, 16), 3), torch.zeros(0, 16, dtype=torch.long)],
)  # fmt: skip
def test_what_are_no_tokens_is_one_line(ids):
    from gram.config import config_to_json
    from gram.hub import GramConfig, GramForReasoning
    from tests.models import tiny_config

    with pytest.raises(ValueError, match="input_ids must be"):
        GramForReasoning(GramConfig(**config_to_json(tiny_config())))(ids)


def test_forward_of_a_model_of_identities_is_refused(tmp_path):
    from gram.hub import GramForReasoning
    from gram.model import Model
    from tests.models import tiny_config

    model = Model(tiny_config(registers=2, identities=3, identity_dim=5))
    checkpoint.save(model, tmp_path, card={}, dtype=torch.float32)
    made = GramForReasoning.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="without task embeddings"):
        made(torch.ones(1, made.model.config.tokens, dtype=torch.long))


def test_forward_of_a_lattice_is_refused(tmp_path):
    from gram.hub import GramForReasoning
    from tests.unit.test_lattice import lattice_model

    checkpoint.save(lattice_model(), tmp_path, card={}, dtype=torch.float32)
    made = GramForReasoning.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got a lattice: sample it"):
        made(torch.ones(1, 16, dtype=torch.long))
