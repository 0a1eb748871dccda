"""What `scripts/lowest_versions.sh` refuses before it fetches anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "must be a folder for the environment, got nothing"),
        (["-k", "philox"], "must be a folder for the environment, got -k"),
        (["{tmp}/file"], "the folder must be a folder, got"),
        (["{tmp}"], "must be new, empty or of an earlier call, got"),
        ([f"{ROOT}/docs/none"], "must lie outside the repository, got"),
    ],
)
def test_a_folder_that_will_not_do_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    run = subprocess.run(
        ["bash", str(ROOT / "scripts/lowest_versions.sh"), *(each.format(tmp=tmp_path) for each in arguments)],
        env={**os.environ, "PYTHON": "python3"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert said in run.stderr
    assert run.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert not (ROOT / "docs/none").exists()


def test_an_interpreter_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", str(ROOT / "scripts/lowest_versions.sh"), str(tmp_path / "new")],
        env={**os.environ, "PYTHON": "python-none"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "PYTHON must be an interpreter, got python-none" in run.stderr
    assert not (tmp_path / "new").exists()
