"""Importing where a folder is there already, and from files that frameworks have wrapped: `gram/importers.py`."""

import pytest
import torch

import gram.checkpoint as checkpoint
from gram.checkpoint import CheckpointError
from gram.cli.main import main
from gram.foreign_files import canonical_name, read_settings, tensors_of
from gram.importers import import_checkpoint, write
from tests.integration.test_importers import saved, state_dict

FILES = ["card.json", "config.json", "model.safetensors"]


@pytest.fixture
def command(tmp_path):
    files = saved(tmp_path / "step_1", state_dict("trm"), {"puzzle_emb_len": 3})
    return ["import", "trm", str(files["file"]), "--config", str(files["settings"]), "--out"]


@pytest.mark.parametrize("how", [".", "sub/..", "empty", "link", "chain", "dangling link", "lost+found"])
def test_an_import_goes_into_an_empty_folder_however_it_is_named(tmp_path, command, how, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.chdir(folder)
    out = {"empty": str(folder), "lost+found": str(folder)}.get(how, how)
    if how == "sub/..":
        monkeypatch.chdir(tmp_path)
        out = "there/../there"
    elif how == "lost+found":
        (folder / "lost+found").mkdir()
    elif how in ("link", "chain", "dangling link"):
        out = str(tmp_path / "link")
        (tmp_path / "link").symlink_to(tmp_path / "middle" if how == "chain" else folder)
        (tmp_path / "middle").symlink_to(folder)
        if how == "dangling link":
            folder.rmdir()
    assert main([*command, out]) == 0
    assert sorted(path.name for path in folder.iterdir() if path.name != "lost+found") == FILES
    assert checkpoint.load(folder).config.task == "sudoku9"
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("held", [".", "link"])
def test_a_folder_that_holds_something_is_named(tmp_path, command, held, monkeypatch, capsys):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert main([*command, "." if held == "." else str(tmp_path / "link")]) == 2
    assert f"must be a new or empty folder, got {folder}" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("failing", FILES)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_import_leaves_nothing(tmp_path, command, failing, is_there, monkeypatch, capsys):
    folder = tmp_path / "there"
    if is_there:
        folder.mkdir()
    before = sorted(tmp_path.iterdir())
    original = checkpoint.replacing

    def replacing(path):
        if path.name == failing:
            raise OSError(28, "No space left on device", str(path))
        return original(path)

    monkeypatch.setattr(checkpoint, "replacing", replacing)
    assert main([*command, str(folder)]) == 2
    told = capsys.readouterr().err
    assert failing in told
    assert "No space left on device" in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert not is_there or not list(folder.iterdir())


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


STATE = state_dict("trm")
WRAPPED = {
    "module.": under("module.", STATE),
    "module.model.": under("module.model.", STATE),
    "_orig_mod.module.model.": under("_orig_mod.module.model.", STATE),
    "module._orig_mod.model.": under("module._orig_mod.model.", STATE),
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "model_state_dict": {"model_state_dict": under("module.", STATE), "optimizer_state_dict": {}},
    "model in state_dict": {"state_dict": {"model": under("_orig_mod.", STATE)}},
    "state_dict in model": {"model": {"state_dict": under("module._orig_mod.", STATE)}, "step": 5},
    "module in module": {"module": {"module": under("module.", STATE)}},
    "names": under("model_state_dict.module.state_dict.", STATE),
}


@pytest.mark.parametrize("found", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_under_any_wrapper(tmp_path, found):
    plain = import_checkpoint("trm", **saved(tmp_path / "plain", STATE, {"puzzle_emb_len": 3}))
    wrapped = import_checkpoint("trm", **saved(tmp_path / "wrapped", found, {"puzzle_emb_len": 3}))
    assert wrapped.model.digest() == plain.model.digest()
    write(wrapped, tmp_path / "out")
    assert checkpoint.load(tmp_path / "out").digest() == plain.model.digest()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"model": STATE, "state_dict": STATE}, "one set of weights, got model and state_dict"),
        ({**STATE, **under("module.", STATE)}, "must be there once, got"),
        (under("student.", STATE), "tensors must be named inner.*, got the prefix student."),
        ({"net": STATE}, "net must be a tensor, got dict"),
        (under("module.teacher.", STATE), "got the prefix teacher."),
    ],
)
def test_another_wrapper_is_named(tmp_path, found, words):
    with pytest.raises(CheckpointError) as error:
        import_checkpoint("trm", **saved(tmp_path / "step", found, {"puzzle_emb_len": 3}))
    assert words in str(error.value)


def test_canonical_names():
    assert canonical_name("_orig_mod.module.model.inner.H_init") == "inner.H_init"
    assert canonical_name("inner.L_level._orig_mod.layers.0.mlp.down_proj.weight").startswith("inner.L_level.layers.0")
    assert canonical_name("model") == "model"


def test_the_average_is_laid_over_wrapped_weights_too(tmp_path):
    state = {"module.inner.a": torch.zeros(2), "module.inner.b": torch.zeros(2)}
    found = {"model": {"state_dict": state}, "ema": {"shadow": {"_orig_mod.inner.b": torch.ones(2)}}}
    tensors = tensors_of(found, tmp_path)
    assert (tensors["inner.a"].sum(), tensors["inner.b"].sum()) == (0, 2)


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)


@pytest.mark.parametrize("content", ["[" * 50_000, "a: 2020-99-99", "a: \xff", "a: !!int x"])
def test_settings_that_are_no_yaml_are_one_line(tmp_path, content):
    path = tmp_path / "all.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"all\.yaml: not YAML") as error:
        read_settings(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["H_cycles", "name", "pos_encodings", "mlp_t", "L_layers"])
def test_settings_that_repeat_themselves_a_million_times_are_one_line(tmp_path, name):
    files = saved(tmp_path / "step_1", STATE)
    files["settings"].write_text(f"{BOMB}arch:\n  hidden_size: 16\n  puzzle_emb_len: 3\n  {name}: *p\n")
    with pytest.raises(CheckpointError) as error:
        import_checkpoint("trm", **files)
    assert name in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))
