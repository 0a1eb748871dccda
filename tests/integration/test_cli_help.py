"""Help that shows the common options first, and completion by the shell."""

from __future__ import annotations

import pytest

from gram.cli.main import ADVANCED, COMMANDS, main
from gram.cli.options import COMMON, OPENING, SETTINGS, SPREADING


@pytest.mark.parametrize("command", ["solve", "eval", "sample", "frontier", "ablate"])
def test_common_options_come_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    first, advanced = capsys.readouterr().out.split(f"{ADVANCED}:")
    shared = [name for name in SETTINGS | OPENING | SPREADING if name not in ("is_padded", "is_warm_started")]
    flags = {name: f"  --{name.replace('_', '-')} " for name in shared}
    shown = [name for name in shared if flags[name] in first + advanced]
    assert {"device", "dtype"} <= set(shown)
    assert [name for name in shown if flags[name] in first] == [name for name in shown if name in COMMON]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_default_is_told_in_one_pair_of_brackets(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "default: (" not in " ".join(capsys.readouterr().out.split())


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What the shell would offer for the last word of a line."""
    monkeypatch.setenv("_GRAM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit) as end:
        main([])
    assert not end.value.code
    return set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("gram sol", {"solve"}),
        ("gram solve nqueens1", {"nqueens10"}),
        ("gram solve nqueens8 --wid", {"--width", "--width-policy", "--width-threshold", "--width-stage"}),
        ("gram nothing", set()),
    ],
)
def test_the_shell_completes(
    line: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete(line, monkeypatch, capsys) >= wanted
    assert not wanted <= complete("gram zzz", monkeypatch, capsys) or not wanted


def test_the_completion_of_a_shell_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))  # without a terminal there is none
    with pytest.raises(SystemExit) as end:
        main(["--show-completion"])
    assert not end.value.code
    assert "_GRAM_COMPLETE" in capsys.readouterr().out
