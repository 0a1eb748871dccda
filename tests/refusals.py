"""What a study's script must do with arguments that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


def check_refusal(
    study: ModuleType,
    arguments: list[str],
    words: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line that holds `words`, exit code 2, and no folder of runs."""
    monkeypatch.setattr(sys, "argv", ["study.py", "--runs", str(runs), *arguments])
    with pytest.raises(SystemExit) as stop:
        study.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not runs.exists()
