"""The umask decides the modes of what commands write; private things stay private."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gram import checkpoint
from gram.atomic_files import making, replacing
from gram.cli.main import main
from gram.distributed import local_cluster
from gram.importers import Imported, write
from gram.sampler.store import Store
from tests.integration.test_cli import tiny
from tests.models import tiny_model


@pytest.fixture(params=[0o077, 0o002, 0o022, 0o027, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@contextmanager
def new_in(folder: Path) -> Iterator[dict[Path, int]]:
    """Modes of everything that a block leaves in a folder, filled in at its end."""
    found: dict[Path, int] = {}
    yield found
    found |= {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def assert_left_by(umask: int, found: dict[Path, int]) -> None:
    assert found
    assert found == {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in found}


def test_every_writer_leaves_the_mode_to_the_umask(tmp_path, umask):
    with new_in(tmp_path) as found:
        checkpoint.write_atomically(tmp_path / "a" / "page.html", b"x")
        checkpoint.write_json(tmp_path / "b" / "results.json", {})
        checkpoint.write_tensors(tmp_path / "c" / "state.safetensors", {"x": torch.ones(2)})
        checkpoint.save(tiny_model(), tmp_path / "d", card={"task": "x"})
        write(Imported(model=tiny_model(), card={}), tmp_path / "e")
        (tmp_path / "f").mkdir()
        write(Imported(model=tiny_model(), card={}), tmp_path / "f")
        Store.open(tmp_path / "g" / "h", "key", 1, {}).close()
    assert_left_by(umask, found)


def test_a_file_that_is_there_gets_the_mode_of_a_new_one(tmp_path, umask):
    path = tmp_path / "results.json"
    for mode in (0o600, 0o644, 0o666):
        path.touch()
        path.chmod(mode)
        checkpoint.write_json(path, {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_what_commands_write_has_it_too(tmp_path, umask, capsys):
    with new_in(tmp_path) as found:
        out = str(tmp_path / "eval")
        assert (
            main(["eval", "nqueens4", "--checkpoint", tiny(tmp_path / "tiny"), "--limit", "2", "--out", out, "--quiet"])
            == 0
        )
    assert_left_by(umask, {path: mode for path, mode in found.items() if str(path).startswith(out)})


def test_private_files_stay_so(tmp_path, umask, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    written = local_cluster._write_private(local_cluster.state_folder() / "cluster.token", "secret")
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE(written.parent.stat().st_mode) == 0o700
    assert [path.name for path in written.parent.iterdir()] == ["cluster.token"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=repr)
def test_what_fails_leaves_nothing(tmp_path, error):
    def write_file() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            raise error

    def write_folder() -> None:
        with making(tmp_path / "folder") as temporary:
            (temporary / "half").write_bytes(b"half")
            raise error

    for write_half in (write_file, write_folder):
        with pytest.raises(type(error)):
            write_half()
    assert list(tmp_path.iterdir()) == []
