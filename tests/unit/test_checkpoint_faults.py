"""Checkpoints that anybody may have written, cut off or edited: every fault is one line that names file and thing."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file

import gram
from gram import checkpoint
from gram.checkpoint import CheckpointError
from gram.cli.main import main
from gram.config import LATER, MOST_BYTES, ModelConfig, read_json, read_toml
from tests.models import tiny_model


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(tiny_model(), tmp_path / "mine", card={"figures": {"accuracy": 0.5}})
    return tmp_path / "mine"


def refusal(folder):
    """The one line with which a checkpoint is refused; the command line prints the same and exits 2."""
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def edited(folder, **changes):
    """Its `config.json` with some values replaced, or (None) taken out."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    "name", [one.name for one in fields(ModelConfig) if one.default not in (None, ()) and one.name not in LATER]
)
def test_a_field_that_changes_the_model_must_be_written(folder, name):
    edited(folder, **{name: None})
    assert f"{name} must be given" in refusal(folder)


def test_what_is_missing_and_what_is_misnamed_are_both_named(folder):
    edited(folder, transitions=None, transitons=3)
    told = refusal(folder)
    assert "transitions must be given" in told
    assert "'transitons': not a setting" in told
    assert str(folder / "config.json") in told


@pytest.mark.parametrize("key", ["dimension", "Depth", "noise_scale", "arch"])
def test_an_unknown_key_is_named(folder, key):
    edited(folder, **{key: 1})
    assert f"'{key}': not a setting" in refusal(folder)


def test_a_key_that_stands_twice_is_named(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"transitions": 1', '"transitions": 1, "transitions": 3'))
    assert "'transitions' stands twice" in refusal(folder)


def test_optional_fields_and_keys_of_transformers_do_not_matter(folder):
    edited(folder, relations=None, _name_or_path="x", dtype="float32", transformers_version="4.0", id2label={})
    assert checkpoint.load(folder).config == tiny_model().config


@pytest.mark.parametrize("name", checkpoint.shipped_names())
def test_shipped_configurations_say_everything(name):
    values = json.loads((checkpoint.find(name) / "config.json").read_text())
    optional = {one.name for one in fields(ModelConfig) if one.default is None}
    assert {one.name for one in fields(ModelConfig)} - optional - set(LATER) <= set(values)


def test_a_setting_that_came_later_is_what_changes_nothing_where_it_is_missing(folder):
    assert checkpoint.load(folder).config.views == "off"
    edited(folder, views="random")
    assert checkpoint.load(folder).config.views == "random"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.decoder.weight", "model.z0_l", "model.halt.bias", "model.posterior.down"])
def test_one_weight_that_is_not_finite_is_refused(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors")
    assert f"{name} must be finite" in refusal(folder)


def test_a_weight_that_overflows_in_the_type_asked_for_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.z0_h"] = tensors["model.z0_h"].double()
    tensors["model.z0_h"][0] = 1e300
    save_file(tensors, folder / "model.safetensors")
    assert checkpoint.load(folder, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(CheckpointError, match=r"model\.z0_h must be finite"):
        checkpoint.load(folder, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.weight"] = tensors["model.decoder.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    assert "model.decoder.weight must be one of bfloat16, float16, float32, float64" in refusal(folder)


BAD_JSON = {
    "list": b"[]",
    "null": b"null",
    "text": b'"gram"',
    "number": b"3",
    "nested": b"[" * 100_000,
    "nested object": b'{"a":' * 100_000,
    "long number": b'{"dim": ' + b"1" * 5000 + b"}",
    "other bytes": b'{"model_type": "\xe9"}',
    "zeros": bytes(100),
    "empty": b"",
    "cut off": b'{"model_type": "gram", "di',
    "too long": b"{" + b" " * MOST_BYTES + b"}",
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a_configuration_that_is_no_object_is_one_line(folder, content, capsys):
    (folder / "config.json").write_bytes(content)
    told = refusal(folder)
    assert told.startswith(str(folder / "config.json"))
    assert len(told) < 300 + len(str(folder))
    assert main(["solve", "nqueens4", "--checkpoint", str(folder)]) == 2
    assert capsys.readouterr().err == f"gram: {told}\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_unicode_encodings_are_read(folder, encoding):
    path = folder / "config.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert checkpoint.load(folder).config == tiny_model().config


@pytest.mark.parametrize("size", [10**12, 10**30, 10**4000])
@pytest.mark.parametrize(
    "name", [one.name for one in fields(ModelConfig) if one.type == "int"]
)  # what tensors have, and what only takes time
def test_absurd_sizes_are_one_line(folder, name, size):
    edited(folder, **{name: size})
    told = refusal(folder)
    assert f"{name} must be at most" in told
    assert len(told) < 200 + len(str(folder))


@pytest.mark.parametrize(
    "changes", [{"dim": 9_999_996}, {"hidden": 10_000_000, "dim": 4_000_000}, {"tokens": 9_000_000}]
)
def test_sizes_are_compared_with_the_file_before_anything_is_allocated(folder, changes):
    edited(folder, **changes)
    assert "must be [" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("norm_eps", -1), ("norm_eps", 0), ("rope_theta", 0), ("dim", 16.0), ("depth", "8"),
                        ("task", None), ("mixer", 3), ("is_core_shared", 1), ("log_sigma_center", 1e400),
                        ("dim", [[[[[[[[]]]]]]]])],
)  # fmt: skip
def test_values_of_another_kind_are_one_line(folder, name, value):
    edited(folder, **{name: value})
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "changes", [{"output_start": 1, "output_tokens": 15}, {"output_tokens": 15}, {"task": "nqueens6"}]
)
def test_a_model_that_does_not_fit_its_task_is_one_line(folder, changes):
    edited(folder, **changes)
    with pytest.raises(ValueError, match="must fit task nqueens"):
        gram.load(folder, device="cpu")


@pytest.mark.parametrize("content", [*BAD_JSON.values()], ids=[*BAD_JSON])
def test_a_broken_card_is_no_condition_of_sampling(folder, content):
    (folder / "card.json").write_bytes(content)
    sampler = gram.load(folder, device="cpu", dtype="float32")
    assert sampler.card == {}
    assert sampler.sample([".Q.." + "." * 12], width=1).candidates.shape == (1, 1, 16)
    with pytest.raises(CheckpointError, match=r"card\.json"):
        checkpoint.read_card(folder)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa = 1\n", b"a = 1", b"\xef\xbb\xbf# n\xc3\xa4her\r\na = 1\r\n"])
def test_toml_may_begin_with_a_byte_order_mark(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert read_toml(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"a = ", b"a = '\xe9'", b"a = " + b"[" * 100_000, "a = 1".encode("utf-16")])
def test_bad_toml_names_its_file(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.toml: not TOML \("):
        read_toml(path)


def sharded(folder, parts=2):
    """The checkpoint's weights in shards, as transformers lays them out."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-{1 + n % parts:05}-of-{parts:05}.safetensors" for n, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_shards_are_read(folder, parts):
    whole = checkpoint.load(folder)
    sharded(folder, parts)
    assert len(checkpoint.weight_files(folder)) == parts
    assert checkpoint.load(folder).digest() == whole.digest()


@pytest.mark.parametrize("how", ["lost", "torn", "twice", "elsewhere", "no map", "map of numbers", "tensor"])
def test_broken_shards_are_one_line(folder, how):
    places = sharded(folder)
    index, first = folder / "model.safetensors.index.json", folder / "model-00001-of-00002.safetensors"
    if how == "lost":
        first.unlink()
        words = "model-00001-of-00002.safetensors must lie beside it"
    elif how == "torn":
        first.write_bytes(first.read_bytes()[:-9])
        words = "not a safetensors file"
    elif how == "twice":
        second = folder / "model-00002-of-00002.safetensors"
        save_file({**load_file(second), **load_file(first)}, second)
        words = "must be in one shard"
    elif how == "tensor":
        tensors = load_file(first)
        del tensors["model.decoder.weight" if "model.decoder.weight" in tensors else min(tensors)]
        save_file(tensors, first)
        words = "is missing, expected"
    else:
        bad = {"elsewhere": {name: f"../{file}" for name, file in places.items()}, "no map": None,
               "map of numbers": {"model.z0_h": 1}}[how]  # fmt: skip
        index.write_text(json.dumps({"weight_map": bad}))
        words = "weight_map must name"
    assert words in refusal(folder)


def test_read_json_gives_objects_and_names_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, {"b": null}]}')
    assert read_json(path) == {"a": [1, {"b": None}]}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"figures": 3}', b'{"minutes": {}}'])
def test_a_broken_card_is_told_where_cards_are_shown(folder, content, monkeypatch, capsys):
    (folder / "card.json").write_bytes(content)
    checkpoint.save(tiny_model(), folder.parent / "other", card={"figures": {"accuracy": 0.5}, "minutes": 2})
    monkeypatch.setattr(checkpoint, "SHIPPED", folder.parent)
    assert main(["tasks", "--json"]) == 0
    mine, other = json.loads(capsys.readouterr().out)["checkpoints"]
    assert "card.json" in mine["card_fault"]
    assert (mine["figures"], other["card_fault"], other["figures"]) == (None, None, {"accuracy": 0.5})
    for columns in (30, 57, 80, 200):  # a path is whole however narrow the terminal is
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["tasks"]) == 0
        shown = capsys.readouterr().out
        assert mine["card_fault"] in shown.splitlines()
        assert str(folder / "card.json") in shown
        assert "50.0 %" in shown


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_recipes_and_studies_may_begin_with_a_byte_order_mark(tmp_path, command, capsys):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfnonsense = 1\n")
    assert main([command, str(path), "--out", str(tmp_path / "out")]) == 2
    assert "'nonsense' is" in capsys.readouterr().err
    path.write_bytes(b"task = '\xe9'\n")
    assert main([command, str(path), "--out", str(tmp_path / "out")]) == 2
    assert "mine.toml: not TOML" in capsys.readouterr().err
