"""A user without a name and without a home folder, as containers have them: things work, or say what is missing."""

from __future__ import annotations

import json
import pwd
from pathlib import Path

import pytest
import torch

from gram.cli.main import main
from gram.distributed import access, cluster, local_cluster
from gram.kernels import dispatch
from gram.kernels.compiled import cache as compile_cache

FOLDERS = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", compile_cache.FOLDER_VARIABLE)
USER = ("USER", "LOGNAME", "LNAME", "USERNAME")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in (*FOLDERS, *USER, access.TOKEN, access.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        Path.home()


def test_the_compiled_path_runs_without_a_cache_and_says_so():
    assert "HOME" in (compile_cache.obstacle() or "")
    assert not compile_cache.has("anything")
    chosen = dispatch.choose(torch.device("cpu"), wanted="compiled")
    assert chosen.kernel == "compiled"
    assert "not kept" in chosen.reason
    assert "HOME" in chosen.reason
    assert "HOME" in dispatch.choose(torch.device("cpu"), flops=1e15).reason


@pytest.mark.parametrize("variable", FOLDERS[:2] + FOLDERS[3:])
def test_any_folder_of_the_users_will_do(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path))
    assert compile_cache.obstacle() is None
    assert compile_cache.folder().is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_a_cache_that_cannot_be_made_is_told(monkeypatch, tmp_path, name):
    (tmp_path / "a file").touch()
    monkeypatch.setenv(compile_cache.FOLDER_VARIABLE, str(tmp_path / name))
    assert str(tmp_path / name) in (compile_cache.obstacle() or "")
    assert "not kept" in dispatch.choose(torch.device("cpu"), wanted="compiled").reason


@pytest.mark.parametrize("command", [["status"], ["down"], ["status", "--json"]], ids=" ".join)
def test_clusters_say_which_variable_in_one_line(capsys, command):
    assert main(["cluster", *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "XDG_STATE_HOME or HOME" in captured.err
    assert captured.err.count("\n") == 1


def test_a_cluster_elsewhere_needs_no_home(monkeypatch, tmp_path):
    access.check_token("127.0.0.1:6379", "127.0.0.1")
    with pytest.raises(ValueError, match="must come with a token"):
        access.check_token("10.1.1.1:6379", "10.1.1.1")
    cluster.take_local_token("127.0.0.1:6379")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert local_cluster.current() is None


def test_doctor_reports_it(capsys):
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert "no cache" in checks["kernel compiled"]["finding"]
    assert "HOME" in checks["kernel compiled"]["finding"]
