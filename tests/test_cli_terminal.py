"""How boards and live frames are drawn: what is told apart, what fits, what survives without colours."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gram.cli import outcome_view, terminal, watch
from gram.cli.outcome import outcome
from gram.sampler.engine import StepView
from gram.sampler.result import SampleResult
from gram.tasks.protocol import Board, Cell
from gram.tasks.registry import get_task
from tests.results import hand_made

BOARD: Board = [[Cell("1", "given"), Cell("2", "filled")], [Cell("2", "conflict"), Cell(".", "blank")]]


PUZZLES = {
    "nqueens10": "/".join("." * column + "Q" + "." * (9 - column) for column in (0, 2, 5, 7, 9)) + "/.........." * 5,
    "colouring10": "10: " + ", ".join(f"{a}-{b}" for a in range(10) for b in range(a + 1, 10) if a % 3 != b % 3),
}


def console(width: int, height: int = 24, **settings: Any) -> Console:
    shown = {"force_terminal": True, "color_system": "truecolor"} | settings
    return Console(file=io.StringIO(), width=width, height=height, highlight=False, legacy_windows=False, **shown)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_marks_tell_cells_apart_where_there_are_no_colours() -> None:
    assert terminal.board_text(BOARD, marks=True).plain == " 1+2\n!2 ."
    assert terminal.board_text(BOARD, marks=False).plain == " 1 2\n 2 ."


def test_kinds_have_different_styles() -> None:
    assert len(set(terminal.STYLES.values()) | {terminal.NEW_STYLE}) >= 5
    spans = terminal.board_text(BOARD, marks=False).spans
    assert len({str(span.style) for span in spans}) == 4


def test_a_cell_filled_since_the_last_step_stands_out() -> None:
    before = [[Cell("1", "given"), Cell("3", "filled")], BOARD[1]]
    styles = {str(span.style) for span in terminal.board_text(BOARD, marks=False, before=before).spans}
    assert terminal.NEW_STYLE in styles


def test_columns_align_when_texts_differ_in_width() -> None:
    board: Board = [[Cell("10", "label"), Cell("1", "given")], [Cell("2", "label"), Cell("1", "given")]]
    assert terminal.board_text(board, marks=False).plain == " 10 1\n 2  1"


@pytest.mark.parametrize(
    ("settings", "is_plain"), [({}, False), ({"no_color": True}, True), ({"color_system": None}, True)]
)
def test_colours_are_missed_under_no_color_and_in_a_pipe(settings: dict[str, Any], is_plain: bool) -> None:
    assert terminal.is_plain(console(80, **settings)) is is_plain


def test_undefined_numbers_are_null_in_json_and_a_dash_on_screen() -> None:
    value = {"a": math.nan, "b": [np.float32(0.5), np.int64(2)], "c": (math.inf, np.array([1.0, np.nan]))}
    assert terminal.defined(value) == {"a": None, "b": [0.5, 2], "c": [None, [1.0, None]]}
    assert terminal.percent(math.nan) == terminal.number(None) == "-"


def result(name: str, width: int) -> SampleResult:
    """A dense puzzle or two held-out ones; most candidates are solutions, the others have a cell changed."""
    task = get_task(name)
    rng = np.random.default_rng(0)
    puzzles = np.stack([task.parse(PUZZLES[name])]) if name in PUZZLES else task.split("test", limit=2).puzzles
    candidates = np.zeros((len(puzzles), width, task.output_tokens), dtype=np.uint8)
    for row, puzzle in zip(candidates, puzzles, strict=True):
        solutions = task.solutions(puzzle)
        row[:] = solutions[rng.integers(len(solutions), size=width)]
        row[::3, rng.integers(task.output_tokens)] = task.vocabulary - 1
    noise = rng.random(candidates.shape[:2]).astype(np.float32)
    return hand_made(task, puzzles, candidates, steps=rng.integers(1, 8, size=noise.shape), halt=noise, lprm=noise)


@pytest.mark.parametrize(
    "name", ["nqueens8", "nqueens10", "sudoku4", "sudoku6", "sudoku9", "colouring8", "colouring10"]
)
@pytest.mark.parametrize("width", [80, 120])
def test_an_outcome_fits_the_terminal(name: str, width: int) -> None:
    task, sampled = get_task(name), result(name, 20)
    screen = console(width)
    outcome_view.show_run(screen, SimpleNamespace(task=task, name=name), sampled.config)  # type: ignore[arg-type]
    outcome_view.show_outcome(screen, task, outcome(task, sampled, 0), "puzzle 1 of 1")
    plain = console(width, color_system=None)
    outcome_view.show_outcome(plain, task, outcome(task, sampled, 0), "puzzle 1 of 1")
    text = "\n".join(lines(plain))
    assert max(map(len, lines(plain))) <= width
    assert "answer, " in text
    assert "puzzle \u2500" in text
    assert "\u2026" not in text
    assert text.count("votes") >= 1
    assert "found" in text


@pytest.mark.parametrize("name", ["nqueens8", "sudoku9", "colouring8"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_a_live_frame_fits_the_terminal(name: str, width: int, height: int) -> None:
    task, sampled = get_task(name), result(name, 20)
    screen = console(width, height, color_system=None)
    watcher = watch.Watcher(screen, task, sampled.puzzles[0], sampled.config, title="puzzle 1 of 1")
    ids, halted = np.arange(20), np.arange(20) < 5
    for step in (1, 2):
        view = StepView(
            np.full(20, step),
            ids * 0,
            ids,
            sampled.candidates[0],
            halted & (step == 1),
            sampled.halt[0],
            sampled.lprm[0],
        )
        watcher.take(view)
        frame = watcher.frame()
    screen.print(frame)
    shown = [line.rstrip() for line in lines(screen)]
    assert len("\n".join(shown).rstrip().splitlines()) <= height
    assert max(map(len, shown)) <= width
    assert "step  2 of 8" in shown[0]
    assert "5 of 20 halted" in shown[1]
    assert "valid" in shown[1]
    assert any("halt 1" in line for line in shown)
    assert any("\u2713" in line for line in shown)


def test_answers_are_counted_up_to_the_tasks_symmetry() -> None:
    task, sampled = get_task("nqueens8"), result("nqueens8", 20)
    found = outcome(task, sampled, 1)
    assert sum(answer.votes for answer in found.answers) == 20
    assert found.selected.is_selected
    assert found.selected.votes == max(answer.votes for answer in found.answers)
    assert found.distinct_valid <= found.solutions == task.count_solutions(sampled.puzzles[1])
    assert [answer.votes for answer in found.answers[1:]] == sorted((a.votes for a in found.answers[1:]), reverse=True)
