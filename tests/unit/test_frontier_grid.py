"""The grid that `gram frontier` makes of its options, and what stands beside a verdict on a terminal."""

import numpy as np
import pytest

from gram import checkpoint
from gram.api import Sampler
from gram.cli.frontier import show
from gram.cli.main import main
from gram.config import ModelConfig, SamplerConfig
from gram.evals.frontier.beside import selector_heads, selector_lines
from gram.evals.frontier.grid import Grid, tabulate
from gram.evals.frontier.study import make_grid
from gram.evals.frontier.verdict import short_depths
from gram.sampler.selectors import RECORDED
from gram.tasks.registry import get_task
from tests.models import tiny_model
from tests.traces import random_traces
from tests.unit.test_frontier import fake_timings, made


def grid_of(model, depths=None, selectors=None):
    sampler = Sampler(model, get_task("nqueens4"), name="tiny")
    config, haltings = SamplerConfig(), ("head", "fixed")
    return make_grid(sampler, config, widths=(1, 2), depths=depths, selectors=selectors, haltings=haltings)


@pytest.mark.parametrize(
    ("trained", "default", "depths"),
    [
        (8, 8, (1, 2, 4, 8, 16, 32)),
        (12, 12, (1, 2, 4, 8, 12, 16, 24, 32, 48)),
        (2, 64, (1, 2, 4, 8)),  # found after training to gain from more steps
        (1, 3, (1, 2, 4)),
    ],
)
def test_depths_reach_what_the_headline_pays_for(trained, default, depths):
    grid = grid_of(tiny_model(depth=default, trained_depth=None if trained == default else trained))
    assert grid.depths == depths
    assert grid.trained_depth == trained
    assert short_depths(grid) is None


@pytest.mark.parametrize(("given", "is_short"), [("1,2,3", True), ("1,11", True), ("1,12", False), ("64", False)])
def test_depths_that_stop_short_are_told_in_a_line(tmp_path, capsys, given, is_short):
    folder = tmp_path / "tiny"
    checkpoint.save(tiny_model(), folder)  # trained at 3
    assert (short_depths(grid_of(tiny_model(), [int(depth) for depth in given.split(",")])) is not None) == is_short
    command = ["frontier", "nqueens4", "--checkpoint", str(folder), "--depths", given, "--dry-run", "--limit", "2"]
    assert main([*command, "--widths", "1,2", "--json", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == is_short
    assert ("short of 12" in told) == is_short


@pytest.mark.parametrize("bad", [0, -1])
def test_a_trained_depth_below_one_is_refused(bad):
    with pytest.raises(ValueError, match=f"trained_depth must be at least 1, got {bad}"):
        ModelConfig(trained_depth=bad)


def test_selectors_are_all_that_the_model_has_its_own_first():
    assert set(grid_of(tiny_model()).selectors) == set(RECORDED)
    own = Sampler(tiny_model(), get_task("nqueens4"), name="tiny").settings().selector
    assert grid_of(tiny_model()).selectors[0] == own
    imported = tiny_model()
    imported.lprm.weight.zero_()
    assert set(grid_of(imported).selectors) == set(RECORDED) - {"lprm"}
    assert grid_of(tiny_model(), selectors=("halt", "first")).selectors == ("halt", "first")


@pytest.mark.parametrize("selector", ["lprm", "halt", "margin", "residual"])
@pytest.mark.parametrize("undefined", [[0], [0, 1, 2], [0, 1, 2, 3]])
def test_an_undefined_score_ranks_below_every_defined_one(selector, undefined):
    """Whatever the others' scores are, minus infinity too; trajectory 0 where none is defined."""
    traces = random_traces(0, puzzles=6, width=4, depth=3)
    worst = np.inf if selector == "residual" else -np.inf
    traces.arrays[selector][:] = worst
    traces.arrays[selector][:, undefined] = np.nan
    traces.arrays["is_right"][:] = False
    first = 0 if len(undefined) == 4 else len(undefined)
    traces.arrays["is_right"][:, first] = True
    grid = Grid(widths=(1, 4), depths=(3,), selectors=(selector,), haltings=("fixed",), trained_depth=3)
    assert tabulate([traces], grid).is_right_directly[:, 0, 0, 1, 0].all()


def test_the_terminal_shows_one_line_for_each_selector_within_its_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    grid = Grid(widths=(1, 2, 4), depths=(1, 2, 4), selectors=RECORDED, trained_depth=1)
    found = made(grid=grid, timings={**fake_timings(grid), "is_noisy": True, "control_spread": 0.5})
    show("synthetic", found)
    told = capsys.readouterr().out
    lines = told.splitlines()
    heads = next(number for number, line in enumerate(lines) if line.startswith("selector"))
    assert [line.split()[0] for line in lines[heads + 1 : heads + 9]] == [*RECORDED, "(coverage)"]
    assert max(map(len, lines[heads:])) <= 80
    assert found["verdict"]["sentence"] in told
    assert "spread by 50 %" in told
    assert "matched arithmetic" in told
    assert "halting fixed" in told
    row = selector_lines(found)[0]
    assert len(row) == len(selector_heads(found))
    assert row[1] == f"{100 * found['verdict']['depth']['value']:.1f} %"
