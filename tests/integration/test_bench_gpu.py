"""`scripts/bench_gpu.sh`: it refuses in one line, and a part which fails hides no other. Nothing is measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.sh"
PARTS = ["machine", "doctor", "tests", "kernels", "sampler", "frontier-eager", "frontier-fused"]

PYTHON = """#!/bin/sh
# Stands in for the interpreter: prints what it is asked for; parts in FAILING end with 3, `-c` as SEES_GPU says.
case "$*" in -c*) exit "$SEES_GPU" ;; esac
for word in $FAILING; do
    case "$*" in *"$word"*) echo "no $word" >&2; exit 3 ;; esac
done
case "$*" in *--json*) echo '{"asked": "'"$*"'"}' ;; *) echo "asked: $*" ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose installation, interpreter and GPU are stand-ins."""
    root = tmp_path / "checkout"
    for name, text in (
        ("scripts/setup.sh", "true"),
        (".venv/bin/python", PYTHON),
        ("bin/nvidia-smi", "#!/bin/sh\necho GPU 0\n"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(SCRIPT, root / "scripts")
    return root


def run(root: Path, *arguments: str, failing: str = "", sees_gpu: int = 0, has_gpu: bool = True):
    path = os.environ["PATH"]
    if has_gpu:
        path = f"{root / 'bin'}:{path}"
    environment = {**os.environ, "PATH": path, "FAILING": failing, "SEES_GPU": str(sees_gpu)}
    return subprocess.run(
        ["bash", str(root / "scripts" / "bench_gpu.sh"), *arguments],
        capture_output=True, text=True, env=environment, cwd=root.parent,
    )  # fmt: skip


def assert_refused(done, *words):
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing(checkout, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert_refused(run(checkout, "results", has_gpu=False), "GPU", "nothing was run")
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_folders_are_refused(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    assert_refused(run(checkout), "folder", "0 arguments")
    assert_refused(run(checkout, "one", "two"), "folder", "2 arguments")
    assert_refused(run(checkout, "file"), "file")
    assert_refused(run(checkout, "full"), "empty")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]
    assert_refused(run(checkout, "results", sees_gpu=1), "PyTorch")
    assert not (tmp_path / "results").exists()


def test_every_part_leaves_its_result(checkout, tmp_path):
    done = run(checkout, "results")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in (tmp_path / "results" / "status.tsv").read_text().splitlines()]
    assert [line[0] for line in lines[1:]] == PARTS
    assert {line[1] for line in lines[1:]} == {"0"}
    assert "bench kernels" in json.loads((tmp_path / "results" / "kernels.json").read_text())["asked"]
    assert "-m gpu" in (tmp_path / "results" / "tests.txt").read_text()


def test_a_part_that_fails_is_told_and_hides_no_other(checkout, tmp_path):
    done = run(checkout, "results", failing="kernels sampler")
    assert done.returncode == 1
    lines = [line.split("\t") for line in (tmp_path / "results" / "status.tsv").read_text().splitlines()]
    assert {line[0]: line[1] for line in lines[1:]} == {
        name: "3" if name in ("kernels", "sampler") else "0" for name in PARTS
    }
    assert "no kernels" in done.stdout
    assert not (tmp_path / "results" / "kernels.json").exists()
    assert (tmp_path / "results" / "frontier-fused.json").exists()
