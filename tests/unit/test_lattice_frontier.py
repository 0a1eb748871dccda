"""A lattice's frontier from traces that stop at halting: all it reads is that of traces to the full depth."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram import checkpoint
from gram.api import Sampler
from gram.cli.main import main
from gram.config import SamplerConfig
from gram.evals.frontier.calibration import CalibrationTally
from gram.evals.frontier.grid import Grid, tabulate
from gram.evals.frontier.prices import stop_table
from gram.evals.frontier.study import FrontierStudy, make_grid
from gram.sampler.selectors import RECORDED, Scores, select
from gram.sampler.trace import Traces
from gram.tasks.registry import get_task
from tests.models import tiny_model
from tests.unit.test_lattice import lattice_model

HALTINGS = ("head", "fixed", "residual", "unchanged")
READ = ("answer", "is_right", "halt", "lprm", "residual", "margin")
DEPTH = 24


def lenient_task():
    """Sudoku whose verifier accepts half of all answers: a model of random weights has none right."""
    task = get_task("sudoku4")

    class Lenient(type(task)):
        def verify(self, puzzles, answers):
            return (answers[:, :6].sum(axis=1) + puzzles[:, 0]) % 2 == 0

    lenient = object.__new__(Lenient)
    lenient.__dict__.update(task.__dict__)
    return lenient


def study_of(model, folder, *, haltings=HALTINGS, puzzles=5, **config) -> FrontierStudy:
    task = lenient_task()
    sampler = Sampler(model, task, name="tiny")
    chosen, asked = task.split("test", limit=puzzles), SamplerConfig(launch=4, **config)
    grid = make_grid(sampler, asked, widths=(1, 2, 4), depths=(1, 3, 12, DEPTH), selectors=RECORDED, haltings=haltings)
    return FrontierStudy(sampler, chosen, grid, folder=folder, config=asked, modes=["interactive"], seeds=1, rounds=2)


def full_depth(study: FrontierStudy, folder: Path) -> Traces:
    """Traces of the same trajectories, which nothing halts."""
    config = study.sampler.settings(study.config, halting="fixed", halt_threshold=None)
    study.sampler.sample(study.chosen, config, out=folder, is_traced=True)
    return Traces.open(folder)


@settings(max_examples=12, deadline=None)
@given(
    search=st.sampled_from(["backtrack", "restart"]),
    is_warm_started=st.booleans(),
    threshold=st.sampled_from([0.5, 0.86, 0.87, 0.88, 0.95]),
    conflict_above=st.sampled_from([0.2, 0.8, 1.0]),
    drop_below=st.sampled_from([0.0, 0.05, 0.3]),
    views=st.sampled_from(["off", "random"]),
    seed=st.integers(0, 99),
)
def test_traces_that_stop_are_those_to_the_full_depth(
    search, is_warm_started, threshold, conflict_above, drop_below, views, seed
):
    model = lattice_model(
        search=search,
        is_warm_started=is_warm_started,
        halt_threshold=threshold,
        conflict_above=conflict_above,
        drop_below=drop_below,
        depth=12,
    )
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(model, Path(folder) / "study", views=views, seed=seed)
        study.sampler.sample(study.chosen, study.traced, out=study.trace_folders[0], is_traced=True)
        with Traces.open(study.trace_folders[0]) as stopped, full_depth(study, Path(folder) / "full") as full:
            assert stopped.depth == full.depth == DEPTH
            for ours, theirs in zip(stopped.blocks(), full.blocks(), strict=True):
                assert (theirs.steps == DEPTH).all()
                for name in READ:
                    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
                for table, other in zip(ours.tables, theirs.tables, strict=True):
                    np.testing.assert_array_equal(table, other)
            tallies = [CalibrationTally(DEPTH, study.grid) for _ in range(2)]
            outcomes = [
                tabulate([each], study.grid, conflicts=study.sampler.task.conflicts, on_block=tally.add)
                for each, tally in zip((stopped, full), tallies, strict=True)
            ]
            for name in outcomes[0].__slots__:
                np.testing.assert_array_equal(*(getattr(each, name) for each in outcomes), err_msg=name)
            np.testing.assert_equal(*(tally.summary() for tally in tallies))
            np.testing.assert_array_equal(*(stop_table([each], study.grid) for each in (stopped, full)))


def easy_model(**changes):
    """The judge calls some complete states solved and others not."""
    return lattice_model(drop_below=0.3, depth=12, search="backtrack", halt_threshold=0.87, **changes)


@pytest.mark.parametrize(("halting", "own"), [*((each, None) for each in HALTINGS), ("head", 0.86)])
def test_cells_are_direct_runs(tmp_path, halting, own):
    """Whatever halts them, and at a threshold of the run's own, which changes what a lattice accepts."""
    study = study_of(easy_model(), tmp_path, haltings=(halting,), halt_threshold=own)
    study.trace()
    with Traces.open(study.trace_folders[0]) as traces:
        found = tabulate([traces], study.grid)
        taken = np.concatenate([block.steps for block in traces.blocks()])
    assert (taken < DEPTH).any()
    assert (taken == DEPTH).any()
    puzzles = study.chosen.puzzles
    threshold = study.grid.threshold(halting) if halting != "fixed" else None
    for m, depth in enumerate(study.grid.depths):
        direct = study.sampler.sample(
            puzzles, width=4, depth=depth, halting=halting, halt_threshold=threshold, launch=4, width_policy="fixed"
        )
        scores = Scores(*(getattr(direct, name) for name in Scores._fields))
        for s, selector in enumerate(study.grid.selectors):
            answers = direct.candidates[np.arange(len(puzzles)), select(selector, scores)]
            verdicts = study.sampler.task.verify(puzzles, answers)
            np.testing.assert_array_equal(found.is_right_directly[:, 0, m, 2, s], verdicts, err_msg=selector)
        np.testing.assert_allclose(found.steps[:, 0, m], direct.steps.mean(axis=1), rtol=1e-6)


def test_the_estimate_counts_what_the_traces_take(tmp_path):
    """A pilot of every puzzle and the first trajectory has the steps that their traces take."""
    study = study_of(easy_model(), tmp_path, haltings=("head",), puzzles=12)
    estimate = study.estimate()
    study.trace()
    with Traces.open(study.trace_folders[0]) as traces:
        taken = np.concatenate([block.steps for block in traces.blocks()])
    pilot = estimate["steps_of_trajectory"]
    assert pilot["trajectories"] == 12
    assert pilot["mean"] == pytest.approx(taken[:, 0].mean())
    assert pilot["low"] < pilot["mean"] < pilot["high"]
    assert estimate["steps_of_trace"] == round(taken.size * taken[:, 0].mean())
    assert estimate["steps_of_trace"] < taken.size * DEPTH
    assert estimate["saving"] > 1
    by_cell = sum(np.minimum(taken[:, 0], depth).mean() for depth in study.grid.depths)
    assert estimate["steps_cell_by_cell"] == round(12 * sum(study.grid.widths) * by_cell)


def test_the_estimate_tells_the_pilot_in_a_line(tmp_path, capsys):
    checkpoint.save(easy_model(), tmp_path / "tiny")
    command = ["frontier", "sudoku4", "--checkpoint", str(tmp_path / "tiny"), "--limit", "6", "--dry-run"]
    assert main([*command, "--widths", "1,2", "--depths", "12,24", "--haltings", "head"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "stop at halting" in line]
    assert len(told) == 1
    assert "6 trajectories of a pilot took" in told[0]


def test_continuous_states_are_traced_to_the_full_depth(tmp_path):
    """They go on changing behind their halt, which the calibration of the head reads."""
    sampler = Sampler(tiny_model(), get_task("nqueens4"), name="tiny")
    chosen = sampler.task.split("test", limit=2)
    grid = Grid(widths=(1, 2), depths=(1, 3), trained_depth=3, haltings=("head",))
    options = {"config": SamplerConfig(), "modes": ["interactive"], "seeds": 1, "rounds": 2}
    study = FrontierStudy(sampler, chosen, grid, folder=tmp_path, **options)
    assert study.traced.halting == "fixed"
    assert study.estimate()["steps_of_trajectory"] is None
