"""A full disk is one line that names the file, and what was finished stays."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gram import checkpoint
from gram.cli.main import main
from gram.sampler import store
from gram.sampler.store import Store, StoreError
from tests.arc_tasks import arc_json, tasks
from tests.integration.test_importers import saved, state_dict
from tests.models import tiny_model


def gram(*arguments, limit=None, **options):
    """The command in a process of its own, whose files may have at most `limit` bytes."""

    def preset():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "gram", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=preset, check=False, **options)


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")


@needs_full
@pytest.mark.parametrize("arguments", [["tasks"], ["tasks", "--json"], ["--help"], ["solve", "--help"], ["--version"]])
def test_stdout_that_is_full_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = gram(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (2, f"gram: standard output: {os.strerror(errno.ENOSPC)}\n")


@needs_full
@pytest.mark.parametrize("is_json", [True, False])
def test_results_are_kept_where_stdout_is_full(tmp_path, is_json):
    checkpoint.save(tiny_model(), tmp_path / "mine")
    command = ["eval", "nqueens4", "--checkpoint", tmp_path / "mine", "--limit", 2, "--width", 2, "--quiet"]
    with open("/dev/full", "w") as full:
        done = gram(*command, "--out", tmp_path / "out", *(["--json"] if is_json else []), stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"gram: standard output: {os.strerror(errno.ENOSPC)}"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["puzzles"] == 2


def test_an_import_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files fails as a full disk does, in Rust's writer of tensors too."""
    files = saved(tmp_path / "step_1", state_dict("trm"), {"puzzle_emb_len": 3})
    before = sorted(tmp_path.iterdir())
    command = ["import", "trm", files["file"], "--config", files["settings"], "--out", tmp_path / "out"]
    done = gram(*command, limit=4096, stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "model.safetensors: " in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_data_set_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    file = arc_json(tmp_path / "tasks.json", tasks(3))
    done = gram("data", "arc", file, "--out", tmp_path / "data", "--views", 9, "--quiet", limit=20_000)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gram: ")
    assert "all__inputs.npy" in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("name", ["state.safetensors", "results.json"])
def test_a_failed_write_names_the_file_and_keeps_the_old_one(tmp_path, code, name, monkeypatch, capsys):
    path = tmp_path / name

    def write(value):
        if name == "results.json":
            checkpoint.write_json(path, {"a": value})
        else:
            checkpoint.write_tensors(path, {"a": torch.tensor([value])})

    write(1)
    old = path.read_bytes()

    def full(*_, **__):
        if name == "results.json":
            raise OSError(code, os.strerror(code))
        raise checkpoint.SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr(*((Path, "write_bytes") if name == "results.json" else (checkpoint, "save_file")), full)
    with pytest.raises(OSError, match=name) as error:
        write(2)
    assert (error.value.errno, error.value.filename) == (code, str(path))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == old


def test_a_failed_sync_names_the_file_too(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"card\.json"):
        checkpoint.write_json(tmp_path / "card.json", {})
    assert not list(tmp_path.iterdir())


def test_a_store_names_its_file_and_goes_on_once_there_is_room(tmp_path, monkeypatch):
    import numpy as np

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store.open(tmp_path / "run", "key", 2, {}) as opened:
        opened.append(0, {"a": np.arange(3)})
        with monkeypatch.context() as patch:
            patch.setattr(store.os, "pwrite", full)
            with pytest.raises(StoreError, match=r"shards\.bin cannot be written: No space"):
                opened.append(1, {"a": np.arange(4)})
        assert opened.append(1, {"a": np.arange(4)})
        assert opened.done() == {0, 1}


def test_an_error_that_names_no_file_is_still_one_line(monkeypatch, capsys):
    import gram.cli.tasks as tasks

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tasks, "_checkpoints", full)
    assert main(["tasks"]) == 2
    assert capsys.readouterr().err == "gram: cannot write: No space left on device\n"
