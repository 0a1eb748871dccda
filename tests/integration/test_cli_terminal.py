"""How boards and live frames are drawn: what is told apart, what fits, what survives without colours."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gram.cli import outcome_view, terminal, watch
from gram.formatting import plain
from gram.sampler.engine import StepView
from gram.sampler.result import SampleResult
from gram.tasks.protocol import Board, BoardCell
from gram.tasks.registry import get_task
from tests.results import hand_made

ClusterStatus = pytest.importorskip("gram.distributed.pool").ClusterStatus  # needs ray
BOARD: Board = [
    [BoardCell("1", "given"), BoardCell("2", "filled")],
    [BoardCell("2", "conflict"), BoardCell(".", "blank")],
]


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
    before = [[BoardCell("1", "given"), BoardCell("3", "filled")], BOARD[1]]
    styles = {str(span.style) for span in terminal.board_text(BOARD, marks=False, before=before).spans}
    assert terminal.NEW_STYLE in styles


def test_columns_align_when_texts_differ_in_width() -> None:
    board: Board = [
        [BoardCell("10", "label"), BoardCell("1", "given")],
        [BoardCell("2", "label"), BoardCell("1", "given")],
    ]
    assert terminal.board_text(board, marks=False).plain == " 10 1\n 2  1"


@pytest.mark.parametrize(
    ("settings", "is_plain"), [({}, False), ({"no_color": True}, True), ({"color_system": None}, True)]
)
def test_colours_are_missed_under_no_color_and_in_a_pipe(settings: dict[str, Any], is_plain: bool) -> None:
    assert terminal.is_plain(console(80, **settings)) is is_plain


def test_undefined_numbers_are_null_in_json_and_a_dash_on_screen() -> None:
    value = {"a": math.nan, "b": [np.float32(0.5), np.int64(2)], "c": (math.inf, np.array([1.0, np.nan]))}
    assert plain(value) == {"a": None, "b": [0.5, 2], "c": [None, [1.0, None]]}
    assert terminal.percent(math.nan) == terminal.number(None) == terminal.rate(None) == "-"


def test_a_slow_rate_is_not_zero_and_a_fast_one_is_whole() -> None:
    assert [terminal.rate(value) for value in (0.0471, 1.26, 9.47, 9.5, 10.4, 1234.5)] == [
        *("0.047", "1.3", "9.5", "10", "10", "1,234")
    ]


def test_the_head_says_at_most_where_a_width_may_end_early() -> None:
    sampled = result("sudoku4", 10)
    for policy, words in (("fixed", "10 trajectories, "), ("decided", "at most 10 trajectories (decided), ")):
        screen = console(120, color_system=None)
        settings = replace(sampled.config, width_policy=policy)
        outcome_view.show_run(screen, SimpleNamespace(task=get_task("sudoku4"), name="tiny"), settings)  # type: ignore[arg-type]
        assert lines(screen)[1].startswith(words)
    assert terminal.trajectories(1, "decided", " a puzzle") == "at most 1 trajectory a puzzle (decided)"


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
    outcome_view.show_puzzle(screen, sampled[0], "puzzle 1 of 1")
    plain = console(width, color_system=None)
    outcome_view.show_puzzle(plain, sampled[0], "puzzle 1 of 1")
    text = "\n".join(lines(plain))
    assert max(map(len, lines(plain))) <= width
    assert "answer, " in text
    assert "puzzle \u2500" in text
    assert "\u2026" not in text
    assert text.count("votes") >= 1
    assert "found" in text


def test_trajectories_that_stopped_at_anothers_halt_are_told() -> None:
    """Of the last stage alone: those of an earlier one ran to their end."""
    sampled = result("sudoku4", 10)
    for policy, halted, expected in (
        ("first-halt", [9], 1),
        ("first-halt", [8, 9], 0),
        ("first-halt", [], 0),
        ("trusted", [9], 0),
    ):
        stage = 4 if policy == "first-halt" else None
        found = replace(sampled, config=replace(sampled.config, width_policy=policy, width_stage=stage))
        found.is_halted[:] = False
        found.is_halted[0, halted] = True
        assert found[0].stopped_trajectories == expected
        screen = console(120)
        outcome_view.show_puzzle(screen, found[0], "puzzle 1 of 1")
        assert ("1 stopped when the first halted" in " ".join(lines(screen))) == (expected == 1)


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_head_that_was_never_trained_is_not_shown(is_trained: bool) -> None:
    sampled = result("sudoku4", 5)
    screen = console(80)
    if not is_trained:
        sampled.lprm[:] = 0
    outcome_view.show_puzzle(screen, sampled[0], "puzzle 1 of 1")
    assert ("LPRM" in "\n".join(lines(screen))) == is_trained
    watcher = watch.Watcher(screen, get_task("sudoku4"), sampled.puzzles[0], sampled.config, title="puzzle 1 of 1")
    one = np.arange(1)
    watcher.take(
        StepView(one + 1, one, one, sampled.candidates[0, :1], one > 0, sampled.halt[0, :1], sampled.lprm[0, :1])
    )
    screen.print(watcher.frame())
    assert ("LPRM" in "\n".join(lines(screen))) == is_trained


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
    found = sampled[1]
    assert sum(answer.votes for answer in found.answers) == 20
    assert found.answers[0].is_selected
    assert found.answers[0].votes == found.votes == max(answer.votes for answer in found.answers)
    assert len(found.solutions) <= found.solution_count == task.count_solutions(sampled.puzzles[1])
    assert [answer.votes for answer in found.answers[1:]] == sorted((a.votes for a in found.answers[1:]), reverse=True)


AT_WORK = ClusterStatus(shards=40, finished=12, poison=0, workers=3, starting=0, nodes=2, retries=0, copies=0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "12 of 40 shards, 3 workers on 2 nodes"),
        ({"workers": 1, "nodes": 1, "shards": 1, "finished": 0}, "0 of 1 shard, 1 worker on 1 node"),
        ({"workers": 0, "nodes": 0, "starting": 2, "finished": 0}, "0 of 40 shards, 2 starting"),
        ({"workers": 0, "nodes": 0, "shards": 0, "finished": 0}, "nothing to run yet"),
        ({"workers": 0, "nodes": 0}, "12 of 40 shards, no worker"),
        ({"starting": 1, "retries": 1}, "12 of 40 shards, 3 workers on 2 nodes, 1 starting, 1 retry"),
        (
            {"retries": 1_200, "copies": 2, "poison": 1},
            "12 of 40 shards, 3 workers on 2 nodes, 2 extra copies, 1,200 retries, 1 shard failed for good",
        ),
    ],
)
def test_a_cluster_is_told_in_words(changed: dict[str, int], words: str) -> None:
    status = AT_WORK._replace(**changed)
    assert terminal.cluster_line(status).plain == words


def test_what_is_amiss_on_a_cluster_stands_out() -> None:
    def loud(status: ClusterStatus) -> list[str]:
        line = terminal.cluster_line(status)
        return [line.plain[span.start : span.end] for span in line.spans if "yellow" in str(span.style)]

    assert loud(AT_WORK) == []
    assert loud(AT_WORK._replace(retries=2, poison=1)) == ["2 retries", "1 shard failed for good"]
    assert loud(AT_WORK._replace(workers=0)) == ["no worker"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_view_of_a_cluster_fits_the_terminal(width: int) -> None:
    stands = [AT_WORK]
    screen = console(width, color_system=None)
    view = terminal.bars(screen, lambda: stands[0])
    clock = iter(range(0, 1000, 10))
    view.get_time = lambda: float(next(clock))
    task = view.add_task("trajectories", total=40_000)
    screen.print(view.make_tasks_table(view.tasks))
    assert "left" not in lines(screen).pop(), "there is no rate yet"
    for _ in range(3):
        view.advance(task, 4_000)
    for renderable in view.get_renderables():
        screen.print(renderable)
    stands[0] = AT_WORK._replace(workers=0, retries=3, copies=2, poison=1)
    screen.print(list(view.get_renderables())[1])
    shown = lines(screen)[1:]
    assert max(map(len, shown)) <= width
    assert "12000/40000" in shown[0]
    assert "400/s" in shown[0]
    assert "0:01:10 left" in shown[0]
    assert shown[1].rstrip() == "cluster      12 of 40 shards, 3 workers on 2 nodes"
    assert shown[2].startswith("cluster      12 of 40 shards, 2 extra copies, no worker, 3"), "after a loss"
    assert "shard failed for good" in " ".join(" ".join(shown[2:]).split())
    assert all(line.startswith(" " * 13) for line in shown[3:]), "what does not fit goes on below"


def test_plain_progress_tells_the_rate_of_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a folder held before came at once and says nothing of the speed."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    told = terminal._PlainProgress(2_000, "trajectories", lambda: AT_WORK)
    told(1_000)
    assert told.line(now[0]) == "1,000 of 2,000 trajectories, 12 of 40 shards, 3 workers on 2 nodes"
    now[0] += 50
    told(500)
    assert told.line(now[0]).startswith("1,500 of 2,000 trajectories, 10/s, 50 s left, 12 of 40 shards")
    assert terminal._PlainProgress(8, "boards").line(now[0]) == "0 of 8 boards"


@pytest.mark.parametrize(("label", "needs"), [("a", 11), ("gfx942", 16), ("a label of twenty-two", 26)])
def test_a_label_takes_no_more_columns_than_it_is_long(label, needs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(needs))
    made = terminal.table("", "1,234.5")
    made.add_row(label, "1,234.56")
    terminal.output().print(made)
    lines = capsys.readouterr().out.splitlines()
    assert "1,234.5" in lines[0], "side by side"
    assert any(line.endswith("1,234.56") for line in lines[1:])
    assert all(len(line) <= needs for line in lines)


@pytest.mark.parametrize("columns", [120, 60, 50, 40, 30])
def test_a_narrow_terminal_breaks_labels_and_never_cuts_a_figure(columns, monkeypatch, capsys):
    figures = ["15.8 %", "12.1 to 17.0", "-10.1 (-12.3 to +4.5)", "1,234.56"]
    monkeypatch.setenv("COLUMNS", str(columns))
    for wraps in (None, 0):
        made = terminal.table("", "value", "95 % interval", "less baseline, points", "steps", wraps=wraps)
        made.add_row("accuracy of the answer (first-halt)", *figures)
        made.add_row("trajectories of a puzzle, mean", "3.00")
        terminal.output().print(made)
        shown = capsys.readouterr().out
        assert "\u2026" not in shown
        assert all(len(line) <= columns for line in shown.splitlines())
        for figure in (*figures, "3.00"):
            assert figure in " ".join(shown.split()), f"{figure} at {columns} columns"
        assert "trajectories" in shown


@pytest.mark.parametrize(("width", "boards"), [(80, 1), (120, 2)])
def test_a_board_too_wide_for_two_is_shown_once(width: int, boards: int) -> None:
    screen = console(width, color_system=None)
    outcome_view.show_puzzle(screen, result("maze21", 20)[0], "puzzle 1 of 1")
    text = "\n".join(lines(screen))
    assert text.count("\u256d") == boards
    assert "answer, " in text
    assert "\u2026" not in text
