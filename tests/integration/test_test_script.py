"""The exit code of `scripts/test.sh`: what a release and the workflows go by. Its checks are stand-ins here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "test.sh"
PYTHON = """#!/bin/sh
case "$2" in
    pytest) exit "$PYTEST_CODE" ;;
    mypy) exit "$MYPY_CODE" ;;
    ruff) exit "$RUFF_CODE" ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ({}, 0),
        ({"PYTEST_CODE": "1"}, 1),
        ({"PYTEST_CODE": "5"}, 5),  # no test was found
        ({"MYPY_CODE": "1"}, 1),
        ({"RUFF_CODE": "1"}, 1),
    ],
)
def test_the_script_ends_as_its_checks_do(codes: dict[str, str], wanted: int, tmp_path: Path) -> None:
    for name, text in (("scripts/setup.sh", "exit 0\n"), (".venv/bin/python", PYTHON)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    passing = dict.fromkeys(("PYTEST_CODE", "MYPY_CODE", "RUFF_CODE"), "0")
    run = subprocess.run(
        ["bash", str(tmp_path / "scripts/test.sh")],
        env={**os.environ, **passing, **codes},
        capture_output=True,
        check=False,
    )
    assert run.returncode == wanted, run.stdout + run.stderr
