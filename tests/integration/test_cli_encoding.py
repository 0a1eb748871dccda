"""Commands that draw, on outputs that cannot show every character: exit 0, and ASCII in place of what is missing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.text import Text

from gram.cli import errors, terminal
from gram.cli.main import COMMANDS, main
from gram.tasks.registry import get_task
from tests.integration.test_cli import tiny

ROOT = Path(__file__).parents[2]
ENCODINGS = ["cp1252", "ascii", "latin-1", "cp437", "koi8-r", "shift_jis"]


class Bytes(io.BytesIO):
    """Outlives the stream that writes to it."""

    def close(self) -> None:
        pass


@contextmanager
def streams_of(encoding: str, errors: str = "strict") -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Stdout and stderr of an encoding for a while; the bytes that reach them."""
    written = Bytes(), Bytes()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (io.TextIOWrapper(raw, encoding=encoding, errors=errors) for raw in written)
    try:
        yield written
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before


def board_lines(name: str, encoding: str) -> list[str]:
    task = get_task(name)
    puzzles = task.split("train", limit=1)
    assert puzzles.answers is not None
    with streams_of(encoding) as (out, _):
        errors.show_what_fits()
        for answer in (None, puzzles.answers[0]):
            board = task.board(puzzles.puzzles[0], answer)
            terminal.output().print(terminal.framed(board, name, marks=True))
            terminal.output().print(terminal.board_text(board, marks=True))
        terminal.output().print(Text("\u2713 valid \u2500\u253c\u2500\u2502\u256d\u2026"))
    return out.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("name", ["sudoku4", "sudoku9", "nqueens4", "colouring8", "maze6"])
def test_boards_keep_their_columns_in_every_encoding(name):
    wanted = board_lines(name, "utf-8")
    assert any(not line.isascii() for line in wanted)
    for encoding in ENCODINGS:
        shown = board_lines(name, encoding)
        assert [len(line) for line in shown] == [len(line) for line in wanted]
        assert not any("?" in line or "\\" in line for line in shown)
    assert board_lines(name, "ascii")[-1] == "v valid -+-|+."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny(tmp_path_factory.mktemp("tiny"))


def test_commands_that_draw_succeed_in_every_encoding(checkpoint, tmp_path):
    given = ["--checkpoint", checkpoint, "--depth", "2"]
    all_draw = [
        ["tasks"],
        ["solve", "nqueens4", "--limit", "2", "--width", "4", *given],
        ["solve", "sudoku6", "--limit", "1", "--width", "2", "--depth", "1"],
    ]
    others = [
        ["doctor"],
        ["eval", "nqueens4", "--limit", "2", "--width", "2", *given],
        ["sample", "nqueens4", "--limit", "2", "--width", "2", "--out", str(tmp_path / "s\u00e9\u0142\u2713"), *given],
        ["generate", "sudoku6", "--checkpoint", "sudoku6-unconditional", "--count", "2", "--depth", "1"],
        *([name, "--help"] for name in COMMANDS),
    ]
    for encoding, commands in {"ascii": all_draw + others, "cp1252": all_draw, "latin-1": all_draw}.items():
        for command in commands:
            with streams_of(encoding) as (out, err):
                code = main(command)
            assert code == 0, (command, err.getvalue())
            assert out.getvalue().decode(encoding)


def test_progress_tells_on_such_a_stderr_too():
    for encoding in ENCODINGS:
        with streams_of(encoding) as (_, err):
            errors.show_what_fits()
            console = terminal.Console(stderr=True, force_terminal=True, width=60)
            with terminal.bars(console, None) as bar:
                bar.add_task("\u2713 puzzles", total=4, completed=2)
                bar.refresh()
            terminal.log("\u2026 \u00b7 done")
        assert "puzzles" in err.getvalue().decode(encoding)
        assert "done" in err.getvalue().decode(encoding)


def test_what_was_asked_for_stays_and_odd_names_go_out_as_they_came():
    with streams_of("ascii", "replace") as (out, _):
        errors.show_what_fits()
        print("\u2500")
    assert out.getvalue() == b"?\n"
    for encoding in ("utf-8", "ascii", "cp1252"):
        with streams_of(encoding) as (out, _):
            errors.show_what_fits()
            print(os.fsdecode(b"a\xff\xfeb"), "\ud800", "\u4e2d" if encoding != "utf-8" else "?")
        assert out.getvalue() == b"a\xff\xfeb ? ?\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_the_command_itself_in_such_an_environment(environment):
    given = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    run = subprocess.run(
        [sys.executable, "-c", ENTRY], cwd=ROOT, env=given | environment, capture_output=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"sudoku4" in run.stdout
    assert run.stdout.splitlines()[-1] == b"-v"


ENTRY = """
import sys
from gram.cli.main import main
from gram.tasks import registry
registry.task_names = lambda: ("sudoku4",)
sys.argv = ["gram", "tasks"]
code = main()
print("\\u2500\\u2713")
sys.exit(code)
"""
"""What the console script does, with few tasks; then what such a stream cannot hold."""
