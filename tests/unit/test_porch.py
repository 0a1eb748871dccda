"""Workflows, templates, citation and version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import gram

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_whose_steps_do_something(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"]
    assert workflow[True], "YAML reads the key `on` as true"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_scripts_that_there_are(path: Path) -> None:
    lines = [step["run"] for job in read(path)["jobs"].values() for step in job["steps"] if "run" in step]
    named = {name for line in lines for name in re.findall(r"(?<!\S)(?:scripts/[\w.]+|\.ci/\w+)", line)}
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_checks_and_the_site_run_on_every_change() -> None:
    called = "".join(path.read_text() for path in WORKFLOWS)
    for command in (".ci/run", "scripts/test.sh", "mkdocs build --strict", "python -m build"):
        assert command in called


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_for_something(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) > 0


def test_the_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gram.__version__"}
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == gram.__version__
    assert citation["license"] == project["project"]["license"]
    assert f"## [{gram.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
