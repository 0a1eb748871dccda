"""Ways to run several trajectories of a lattice: what each costs and answers, by hand and from a frontier's folder."""

import json

import numpy as np
import pytest

from gram import checkpoint
from gram.cli.main import main
from gram.evals.frontier.first_solved import (
    ONE,
    WAYS,
    Halts,
    RunPrices,
    first_solved,
    one_by_one,
    rows_of,
    staged,
    times_of,
    to_their_end,
    until_one,
)
from gram.evals.frontier.grid import Grid
from scripts import first_solved as script
from tests.models import tiny_model
from tests.unit.test_lattice import lattice_model

ROWS = np.array([1, 2, 3, 4])
STEP, OVERHEAD = ROWS * 10.0, np.full(4, 1.0)
ENTRY = {
    "mode": "interactive",
    "reads_every_step": False,
    "rows": ROWS.tolist(),
    "step_ms": [STEP.tolist()] * 2,
    "ending_ms": [[5.0] * 4] * 2,
    "overhead_ms": [OVERHEAD.tolist()] * 2,
    "watts": None,
}
DEPTH, NEVER = 8, 9
STOP = np.array([[3, 2, NEVER, 2], [NEVER, 6, 4, NEVER], [NEVER] * 4], np.int32)
RIGHT = np.array([[True, False, False, True], [False, True, True, False], [True, False, False, False]])


@pytest.fixture
def clock():
    return RunPrices(times_of([ENTRY]))


def test_each_way_by_hand(clock):
    """A step of `r` rows takes `10 r` ms, an ending 5, a run 1 beside."""
    end, one, serial, default = (way(clock, STOP, RIGHT, DEPTH) for way in WAYS.values())
    # Four rows for 2 steps, two for 1, one for 5; three occasions of ending.
    assert end.ms.tolist() == [80 + 20 + 50 + 15 + 1, 4 * 40 + 2 * 30 + 2 * 20 + 15 + 1, 8 * 40 + 5 + 1]
    assert one.ms.tolist() == [2 * 40 + 6, 4 * 40 + 6, 8 * 40 + 6]
    assert serial.ms.tolist() == [30 + 6, 80 + 60 + 2 * 6, 4 * (80 + 6)]
    assert default.ms.tolist() == [30 + 6, 80 + 6 + 4 * 30 + 2 * 20 + 2 * 10 + 15 + 1, 80 + 6 + 8 * 30 + 6]
    # The fewest rounds, and of as many the first; by id where one runs after another.
    assert end.is_right.tolist() == one.is_right.tolist() == [False, True, True]
    assert serial.is_right.tolist() == default.is_right.tolist() == [True, True, True]
    assert (to_their_end, until_one, one_by_one, staged) == tuple(WAYS.values())


def test_where_none_is_solved_the_first_one_answers():
    assert first_solved(STOP, RIGHT, 1).tolist() == [True, False, True]
    assert first_solved(STOP, RIGHT, 4, by_id=True).tolist() == [True, True, True]
    assert first_solved(STOP, RIGHT, 2).tolist() == [False, False, True]
    few = np.array([[False, True], [False, True]])
    assert staged(RunPrices(times_of([ENTRY])), np.full((2, 2), NEVER, np.int32), few, DEPTH).is_right.any() == 0


def test_rows_stand_beside_one_trajectory_that_costs_no_more():
    grid = Grid(widths=(1, 2, 4), depths=(2, 4, DEPTH), haltings=("head",), trained_depth=4)
    stop = np.repeat(STOP, 8, axis=0)
    right = np.repeat(RIGHT[:, :, None] & (np.arange(1, DEPTH + 1) >= np.minimum(STOP, 5)[..., None]), 8, axis=0)
    found = rows_of(Halts(stop, right), times_of([ENTRY]), grid, np.arange(24))
    assert [row["depth"] for row in found if row["way"] == ONE] == [2, 4, DEPTH]
    singles = {row["depth"]: row for row in found if row["way"] == ONE}
    assert singles[DEPTH]["accuracy"] == pytest.approx(RIGHT.mean())
    assert singles[2]["accuracy"] == pytest.approx(1 / 12)  # wrong before they are solved, but for one
    others = [row for row in found if row["way"] != ONE]
    assert len(others) == len(WAYS) * 2 * 3
    for row in others:
        beside = row["minus_one"]
        assert beside["ms"] <= 1.05 * row["ms"]
        deeper = [each for each in grid.depths if each > beside["depth"]]
        assert all(singles[each]["ms"] > 1.05 * row["ms"] for each in deeper)
        assert beside["estimate"] == pytest.approx(row["accuracy"] - singles[beside["depth"]]["accuracy"])
        assert beside["low"] <= beside["estimate"] <= beside["high"]


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["first_solved", *map(str, arguments)])
    script.main()


def test_rows_of_a_frontier(tmp_path, monkeypatch, capsys):
    """One trajectory and a run of fixed width are the frontier's own cells."""
    model = lattice_model(drop_below=0.3, search="backtrack", halt_threshold=0.87, depth=12, trained_depth=6)
    checkpoint.save(model, tmp_path / "tiny")
    command = ["frontier", "sudoku4", "--checkpoint", str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--json"]
    options = ["--widths", "1,2,4", "--depths", "6,24", "--limit", "6", "--rounds", "2", "--haltings", "head"]
    assert main([*command, *options, "--modes", "interactive", "--seeds", "2"]) == 0
    cells = {
        (cell["width"], cell["depth"]): cell
        for cell in json.loads(capsys.readouterr().out)["cells"]
        if cell["selector"] == "first-halt"
    }
    run(monkeypatch, tmp_path / "out", "--json")
    rows = json.loads(capsys.readouterr().out)
    own = [row for row in rows if row["way"] in (ONE, "at once, all to their end")]
    assert len(own) == len(cells) == 6
    for row in own:
        assert row["ms"] == pytest.approx(cells[row["width"], row["depth"]]["latency_ms"])
        assert row["accuracy"] == pytest.approx(cells[row["width"], row["depth"]]["accuracy"])
        assert row["p95_ms"] == pytest.approx(cells[row["width"], row["depth"]]["latency_ms_p95"])
    by_cell = {(row["way"], row["width"], row["depth"]): row["ms"] for row in rows}
    for width in (2, 4):
        assert by_cell["at once, until one is solved", width, 24] < by_cell["at once, all to their end", width, 24]
    run(monkeypatch, tmp_path / "out", "--depths", "24")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + len(WAYS) * 2, "heads, one trajectory and every way at 2 and 4, of this depth alone"
    assert all(line.count("|") == 7 for line in lines)


def test_other_folders_are_refused(tmp_path, monkeypatch, capsys):
    checkpoint.save(tiny_model(), tmp_path / "tiny")
    command = ["frontier", "nqueens4", "--checkpoint", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]
    options = ["--widths", "1,2", "--depths", "3", "--limit", "4", "--rounds", "2", "--seeds", "1", "--quiet"]
    assert main([*command, *options]) == 0
    capsys.readouterr()
    for folder, message in ((tmp_path, "frontier.json"), (tmp_path / "out", "must be of a lattice, got injector")):
        with pytest.raises(SystemExit) as refusal:
            run(monkeypatch, folder)
        assert refusal.value.code == 2
        assert message in capsys.readouterr().err
