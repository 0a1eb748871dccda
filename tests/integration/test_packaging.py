"""What is in the wheel and the source distribution, built without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "distributed", "evals")

pytestmark = pytest.mark.slow


def tracked(root: Path) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).exists()]


def packaged(names: list[str]) -> set[str]:
    """Where the files of a checkout belong in a package: sources, recipes, behaviours, weights, the typing mark."""
    wanted = set()
    for name in names:
        top = Path(name).parts[0]
        folders = ("gram/behaviours/", "gram/recipes/", "gram/weights/", "evals/pages/page/", "evals/studies/")
        is_data = name == "gram/py.typed" or name.startswith(folders)
        if top in ("gram", *LINKED) and (name.endswith((".py", ".cpp", ".h")) or is_data):
            wanted.add(f"gram/{name}" if top in LINKED else name)
    return {
        name for name in wanted if not name.endswith("/log.jsonl")
    }  # a training's log: for who reads the repository


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel built from it: a file missing from the first is missing from both."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: cannot tell which files belong to the project")
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in tracked(ROOT):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_every_file_once(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = Counter(member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile())
    wanted = packaged(tracked(ROOT))
    assert wanted
    assert {name: names[name] for name in wanted if names[name] != 1} == {}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(names)
    assert [name for name in names if name.split("/")[0] in LINKED] == []


def test_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = Counter(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "gram = gram.cli.main:main" in archive.read(entry_points).decode()
    inside = {name for name in names if name.startswith("gram/")}
    assert inside == packaged(tracked(ROOT))
    assert max(names.values()) == 1
    assert {name.split("/")[0] for name in set(names) - inside} == {entry_points.split("/")[0]}


def test_wheel_imports_by_the_projects_names(built: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(site)
    code = "import gram, gram.kernels.philox as p, gram.config as c; print(gram.__file__, p.__file__, c.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert all(Path(name).is_relative_to(site) for name in run.stdout.split())
