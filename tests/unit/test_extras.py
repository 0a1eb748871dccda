"""Packages that only some commands need: declared as extras, and named in one line where one is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from gram.cli.main import main
from gram.extras import EXTRAS, missing_package

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"yaml": "pyyaml", "huggingface_hub": "transformers"}
"""Names under which an import is installed, where they differ; transformers brings the hub's client."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line)[0] for line in requirements}


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_every_optional_package_has_its_extra(package: str) -> None:
    distribution = DISTRIBUTIONS.get(package, package)
    assert distribution in names(PROJECT["optional-dependencies"][EXTRAS[package]])
    assert distribution not in names(PROJECT["dependencies"])
    assert EXTRAS[package] in PROJECT["optional-dependencies"]["all"][0]


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("ray", ["eval", "sudoku6", "--limit", "1", "--ray", "new"]),
        ("yaml", ["import", "trm", "there.pt", "--out", "here"]),
    ],
)
def test_a_missing_package_is_one_line_or_not_needed(
    package: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.startswith(("gram.distributed", "gram.foreign_files"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "gram.importers", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    code = main(command)
    said = capsys.readouterr().err
    if command[-1] == "--help":
        assert (code, said) == (0, "")
        return
    assert code == 2
    assert said.count("\n") == 1
    assert f"[{EXTRAS[package]}]" in said


def test_a_missing_package_of_anything_else_is_an_error() -> None:
    assert missing_package(ModuleNotFoundError("no", name="gram.nothing")) is None
    assert missing_package(ModuleNotFoundError("no")) is None
