"""The arithmetic of `scripts/sparsity_signal_study.py`: branches, correlations, regressions, and a small run of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.registry import get_task
from scripts import sparsity_signal_study as study
from scripts.sparsity_signal_study import (
    auroc,
    clusters_of,
    colouring_branches,
    cross_validated,
    difficulty,
    fitted,
    interval,
    other_puzzles,
    partial_rank_correlation,
    queens_branches,
)


def test_branches_by_hand() -> None:
    triangle = np.ones((3, 3), bool) & ~np.eye(3, dtype=bool)
    assert colouring_branches(triangle) == 1, "two colours for the second node, one for the third"
    assert colouring_branches(np.zeros((2, 2), bool)) == 2, "three colours for the second node"
    board = np.zeros((4, 4), bool)
    assert queens_branches(board) == 3 + 1 + 1, "four columns in the first row, of which the outer two leave two"
    board[0, 1] = True
    assert queens_branches(board) == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**15 - 1))
def test_every_solution_is_a_leaf_of_the_search(code: int) -> None:
    task = get_task("colouring6")
    edges = np.array([code >> bit & 1 for bit in range(15)])
    puzzle = np.zeros(task.tokens, np.uint8)
    puzzle[:15] = 1 + edges
    (branches,), (givens,) = difficulty(task, puzzle[None])
    assert givens == edges.sum()
    assert task.count_solutions(puzzle) <= branches + 1, "a search of so many branches has one leaf more"


@pytest.mark.parametrize(("name", "densities"), [("sudoku4", (5, 9)), ("nqueens6", (4,)), ("colouring6", (0.2, 0.6))])
def test_puzzles_of_other_densities_are_puzzles(name: str, densities: tuple) -> None:
    task = get_task(name)
    known = task.split("test", limit=5)
    made = other_puzzles(task, known.puzzles, known.answers, densities, 6)
    assert len(made) == 6
    assert task.is_input(made).all()
    assert all(task.count_solutions(puzzle) for puzzle in made)
    givens = difficulty(task, made)[1]
    if name != "colouring6":
        assert set(givens) == set(densities)
    assert np.array_equal(made, other_puzzles(task, known.puzzles, known.answers, densities, 6))


def test_puzzles_dug_from_one_grid_are_one_cluster() -> None:
    task = get_task("sudoku4")
    known = task.split("test", limit=3)
    dug = other_puzzles(task, known.puzzles, known.answers, (9,), 6)
    found = clusters_of(task, np.concatenate([known.puzzles, dug]))
    grids = np.array([task.solutions(puzzle)[0] for puzzle in (*known.puzzles, *dug)])
    assert np.array_equal(found[:, None] == found, (grids[:, None] == grids).all(-1))
    assert set(found[3:]) <= set(found[:3])


def test_what_is_taken_out_explains_nothing_any_more() -> None:
    rng = np.random.default_rng(0)
    givens = rng.permutation(400) * 1.0
    assert partial_rank_correlation(np.exp(givens / 100), -givens, givens) != partial_rank_correlation(
        givens, givens, rng.permutation(400) * 1.0
    )
    noise = rng.standard_normal((2, 400))
    both = givens + 40 * noise  # alike by the givens alone
    assert abs(partial_rank_correlation(both[0], both[1], givens)) < 0.15
    assert partial_rank_correlation(both[0], both[0] ** 3, givens) == pytest.approx(1)
    assert partial_rank_correlation(both[0], -both[0], givens) == pytest.approx(-1)
    assert np.isnan(partial_rank_correlation(both[0], np.zeros(400), givens)), "nothing is left to correlate"


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs(rows) -> None:
    score, right = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    pairs = [(a > b) + (a == b) / 2 for a in score[right] for b in score[~right]]
    assert auroc(score, right) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_the_regression_is_where_its_slope_is_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3))
    y = rng.random(300) < 1 / (1 + np.exp(-(x @ [2.0, 0, -1] + 0.5)))
    weights = fitted(x, y, ridge=1.0)
    chance = 1 / (1 + np.exp(-(x @ weights[:3] + weights[3])))
    assert x.T @ (chance - y) + weights[:3] == pytest.approx(np.zeros(3), abs=1e-6)
    assert (weights > 0).tolist()[::2] == [True, False]


def test_predictions_do_not_see_their_own_cluster() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(100), 4)
    by_cluster = np.repeat(rng.standard_normal((100, 20)), 4, axis=0)
    chance = np.repeat(rng.random(100) < 0.5, 4)
    assert 0.3 < auroc(cross_validated(by_cluster, chance, clusters), chance) < 0.7, "nothing to learn"
    seen = chance + rng.standard_normal(400) / 2
    assert auroc(cross_validated(np.column_stack([seen, by_cluster[:, 0]]), chance, clusters), chance) > 0.9


def test_an_interval_is_over_clusters() -> None:
    values = np.repeat(np.random.default_rng(0).standard_normal(50), 10)
    clusters = np.repeat(np.arange(50), 10)
    found, low, high = interval(lambda at: float(values[at].mean()), clusters, 400)
    assert found == pytest.approx(values.mean())
    spread = values[::10].std() / 50**0.5
    assert (high - low) == pytest.approx(2 * 1.96 * spread, rel=0.2)


def test_a_small_run_prints_its_tables_and_goes_on(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "table.md"
    command = ["study", "--runs", str(tmp_path / "runs"), "--checkpoints", "nqueens8", "--puzzles", "8", "4"]
    monkeypatch.setattr(study, "SEEDS", 1)
    monkeypatch.setattr("sys.argv", [*command, "--draws", "5", "--out", str(out)])
    study.main()
    first = out.read_text()
    assert "no default" in first, "one task alone decides nothing"
    monkeypatch.setattr("gram.sampler.engine.measures_of_states", None)  # nothing is sampled again
    study.main()
    assert out.read_text() == first
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*command[:-2], "0", "4"])
    with pytest.raises(SystemExit) as refusal:
        study.main()
    assert refusal.value.code == 2
    assert "puzzles, graphs and draws must be at least 1, got [0, 4], 80, 1000" in capsys.readouterr().err


def test_the_study_of_sizes_tells_those_of_training_from_others(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(study, "SEEDS", 1)
    monkeypatch.setattr(study, "TRAINED", (6,))
    monkeypatch.setattr(study, "OTHERS", {"beyond": (7,)})
    command = ["study", "--sizes", "--runs", str(tmp_path / "runs"), "--graphs", "6", "--draws", "5"]
    monkeypatch.setattr("sys.argv", command)
    study.main()
    shown = capsys.readouterr().out
    assert "| 6 | yes | 6 |" in shown
    assert "| 7 | no | 6 |" in shown
    assert "| beyond: 7 |" in shown
