"""The table of training methods: rows, intervals, order; the script on tiny trained runs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from gram.evals import baselines
from gram.evals.baselines import JudgedRun, markdown, method_of, rows
from gram.tasks.registry import get_task
from gram.training.recipe import load_recipe
from gram.training.run import train
from scripts import baselines_table
from tests.unit.test_training import recipe

ROOT = Path(__file__).parents[2]


def judged(method: str, single: list[float], *, coverage: list[float] | None = None) -> JudgedRun:
    card = {"optimiser_steps": 100, "minutes": 10.0, "parameters": 1000}
    values = np.array(single)
    found = None if coverage is None else np.array(coverage)
    return JudgedRun(method=method, card=card, single=values, accuracy=(values > 0.5).astype(float), coverage=found)


def queens(count: int):
    task = get_task("nqueens6")
    return task, task.split("test", limit=count)


def test_the_main_method_stands_first_and_differences_are_from_it():
    task, puzzles = queens(8)
    share = [0.5, 1.0, 0.0, 0.5, 1.0, 1.0, 0.5, 0.5]
    worse = [max(0.0, value - 0.5) for value in share]
    table = rows(task, puzzles, [judged("trm-set", worse, coverage=worse), judged("gram", share, coverage=share)])
    assert [row.method for row in table] == ["gram", "trm-set"]
    main, other = table
    assert main.minus_main == other.minus_baseline == {}
    assert main.figures["single"][0] == pytest.approx(np.mean(share))
    assert set(other.minus_main) == {"single", "accuracy", "coverage", "pooled"}
    for name, (estimate, low, high) in other.minus_main.items():
        assert low <= estimate <= high
        assert main.minus_baseline[name] == pytest.approx((-estimate, -high, -low), abs=0.03)
        assert estimate == pytest.approx(other.figures[name][0] - main.figures[name][0])
    assert other.minus_main["single"][0] == pytest.approx(np.mean(worse) - np.mean(share))
    for value, low, high in other.figures.values():
        assert low <= value <= high


def test_runs_of_one_method_are_one_row_with_their_range():
    task, puzzles = queens(4)
    full, none = [1.0] * 4, [0.0] * 4
    table = rows(task, puzzles, [judged("gram", full, coverage=full), judged("gram", none, coverage=none)])
    assert len(table) == 1
    assert (table[0].runs, table[0].minus_baseline) == (2, {})
    assert table[0].ranges == dict.fromkeys(("single", "accuracy", "coverage", "pooled"), (0.0, 1.0))
    text = markdown(task, table, width=20)
    assert "| `gram` | 2 | 0.0 to 100.0 % | 0.0 to 100.0 % | 0.0 to 100.0 % | 0.0 to 100.0 % |" in text
    assert "points minus" not in text
    assert table[0].figures["single"][0] == 0.5
    assert table[0].figures["pooled"][0] == 0.5


def test_without_the_main_method_there_is_no_table():
    task, puzzles = queens(2)
    with pytest.raises(ValueError, match="must hold one of recipe 'nqueens6-gram' to compare with, got trm-set"):
        rows(task, puzzles, [judged("trm-set", [0.0, 1.0])])


def test_pooled_coverage_weighs_puzzles_by_their_solutions():
    """One solution of each puzzle is found."""
    task = get_task("nqueens8")
    puzzles = task.split("test", limit=40)
    every = np.array([task.count_solutions(puzzle) for puzzle in puzzles.puzzles])
    share = list(1 / every)
    main, other = rows(task, puzzles, [judged(name, share, coverage=share) for name in ("gram", "trm-set")])
    value, low, high = main.figures["pooled"]
    assert value == pytest.approx(40 / every.sum())
    assert value < main.figures["coverage"][0]
    assert 0 < low < value < high < 1
    assert other.minus_main["pooled"][0] == 0


def test_names_of_methods():
    assert method_of("nqueens8", "nqueens8-gram") == "gram"
    assert method_of("nqueens8", "nqueens8") == "main", "of a length of its own"
    assert method_of("nqueens8", "nqueens8-best-of-many") == "best-of-many"


def test_a_task_of_one_solution_has_no_coverage_column():
    task = get_task("sudoku4")
    puzzles = task.split("test", limit=3)
    text = markdown(
        task, rows(task, puzzles, [judged("gram", [1.0, 0.5, 0.0]), judged("trm-set", [1.0, 0.5, 0.0])]), width=4
    )
    assert "coverage" not in text
    assert "pooled" not in text
    assert "range over" not in text, "one run of each method"
    assert text.count("not significant") == 4, "one trajectory and vote, from each of the two sides"
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1


RUNS = (("nqueens4-gram", "full", 0), ("nqueens4-trm-set", "none", 0), ("nqueens4-trm-set", "none", 1))


@pytest.mark.slow
def test_the_script_on_trained_runs(tmp_path, monkeypatch, capsys):
    """Main method, its twin of two seeds; the second call samples nothing anew and writes the same page. The first is a
    process of its own."""
    runs = []
    for name, guidance, seed in RUNS:
        target = "drawn" if guidance == "full" else "set"
        made = replace(recipe(model={"guidance": guidance}, seed=seed, steps=10, target=target), name=name)
        runs.append(tmp_path / f"{name}-{seed}")
        train(made, runs[-1], is_compiled=False, dtype=torch.float32)
    page, picture = tmp_path / "out" / "page.md", tmp_path / "out" / "curves.svg"

    def command(*arguments: str) -> list[str]:
        return ["scripts/baselines_table.py", *arguments, "--width", "3", "--out", str(page), "--note", "Trained here."]

    def call(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", command(*arguments))
        baselines_table.main()

    folders = list(map(str, runs))
    curves = (*folders, "--curves", str(picture))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, *command(*curves)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first = page.read_text()
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")
    assert first.count("| `gram` | 1 |") == 1
    for method in ("trm-set", "ptrm-0.1", "ptrm-1.0"):
        assert first.count(f"| `{method}` | 2 |") == 2, "its figures, and its range over training seeds"
    assert "- `ptrm-1.0`: `trm-set` sampled with Gaussian noise of scale 1.0" in first
    assert "One answer of each puzzle covers at most" in first
    assert "folds" not in first
    assert first.count("KL per token at the first noisy step") == 1, "of the main method alone: the twin has no noise"
    assert "\nTrained here.\n" in first
    shards = {path: path.stat().st_size for path in tmp_path.glob("*/samples/*/*")}
    assert shards
    call(*curves)
    assert page.read_text() == first
    assert {path: path.stat().st_size for path in tmp_path.glob("*/samples/*/*")} == shards
    for arguments, words in (
        ([*folders, "--limit", "0"], "limit must be at least 1, got 0"),
        ([str(tmp_path)], "must be a folder of gram train"),
        (folders[1:], "must hold one of recipe 'nqueens4-gram' to compare with, got trm-set"),
    ):
        with pytest.raises(SystemExit) as refused:
            call(*arguments)
        assert refused.value.code == 2
        assert words in capsys.readouterr().err
    assert page.read_text() == first


def test_validation_scores_are_means_over_training_seeds(monkeypatch):
    task = get_task("nqueens4")
    monkeypatch.setattr(baselines_table, "read_card", lambda run: {"seed": int(run.name)})
    monkeypatch.setattr(baselines_table, "draw", lambda run, puzzles, name, width, seed, *, sigma, injector: sigma)

    def judge_run(task, puzzles, results, card):
        found = results[0] * (1 + card["seed"]) / 2
        return judged("trm-set", [found] * len(puzzles), coverage=[found] * len(puzzles))

    monkeypatch.setattr(baselines_table.baselines, "judge_run", judge_run)
    scores = baselines_table.validation_scores([Path("0"), Path("1")], task, 3)
    assert scores == pytest.approx([0.75 * sigma for sigma in baselines_table.SIGMAS])


def test_a_run_without_samples_is_refused():
    task, puzzles = queens(2)
    with pytest.raises(ValueError, match="at least one sampling seed"):
        baselines.judge_run(task, puzzles, [], {})


def test_runs_of_another_length_are_no_row_of_the_method():
    task, puzzles = queens(2)
    short = judged("gram", [0.0, 1.0])
    long = judged("gram", [0.0, 1.0])
    long = replace(long, card={**long.card, "optimiser_steps": 2700})
    with pytest.raises(ValueError, match="runs of gram must be of one length, got 100 and 2700 optimiser steps"):
        rows(task, puzzles, [short, long])


def test_training_seeds_that_differ_widen_the_interval():
    task = get_task("nqueens8")
    puzzles = task.split("test", limit=60)
    share = list(np.random.default_rng(0).random(60))
    alike = [judged("gram", share) for _ in range(3)]
    apart = [judged("gram", [value * scale for value in share]) for scale in (1.0, 0.6, 0.2)]
    (narrow,), (wide,) = rows(task, puzzles, alike), rows(task, puzzles, apart)
    widths = [row.figures["single"][2] - row.figures["single"][1] for row in (narrow, wide)]
    assert widths[1] > 2 * widths[0]


def test_a_method_that_is_always_right_keeps_an_interval():
    task, puzzles = queens(8)
    (row,) = rows(task, puzzles, [judged("gram", [1.0] * 8) for _ in range(3)])
    estimate, low, high = row.figures["accuracy"]
    assert (estimate, high) == (1.0, 1.0)
    assert low < 0.9


def test_parameters_stand_beside_those_of_the_main_method():
    task = get_task("sudoku4")
    puzzles = task.split("test", limit=3)
    wider = judged("trm-set", [0.5, 0.5, 0.0])
    wider = replace(wider, card={**wider.card, "parameters": 1015})
    text = markdown(task, rows(task, puzzles, [judged("gram", [1.0, 0.5, 0.0]), wider]), width=4)
    assert "| `trm-set` | 1 | 1,015 (+1.5%) | 100 |" in text
    assert "| `gram` | 1 | 1,000 | 100 |" in text


def test_what_one_answer_covers_is_the_mean_of_one_over_the_solutions():
    task, puzzles = get_task("nqueens8"), get_task("nqueens8").split("test", limit=50)
    every = [task.count_solutions(puzzle) for puzzle in puzzles.puzzles]
    mean, pooled = baselines.one_answer(task, puzzles)
    assert mean == pytest.approx(np.mean([1 / count for count in every]))
    assert pooled == pytest.approx(50 / sum(every))
    assert pooled <= mean < 1


def test_folds_are_joined_puzzle_by_puzzle():
    task = get_task("nqueens6")
    first, second = task.split("test", limit=3), task.split("validation", limit=2)
    parts = [(first, [judged("gram", [1.0, 0.5, 0.0])]), (second, [judged("gram", [0.25, 0.75])])]
    whole, (run,) = baselines.joined(parts)
    assert run.single.tolist() == [1.0, 0.5, 0.0, 0.25, 0.75]
    assert np.array_equal(whole.puzzles[3:], second.puzzles)
    assert whole.groups is not None
    assert not set(whole.groups[:3].tolist()) & set(whole.groups[3:].tolist())
    with pytest.raises(ValueError, match="every fold must have as many runs, got 0 and 1"):
        baselines.joined([*parts, (second, [])])


def test_folds_stand_apart_with_their_spread():
    """Shares of .5, .7 and .9: a range of 50 to 90 % and a deviation of 20 points."""
    task = get_task("nqueens6")
    puzzles = task.split("test", limit=4)
    shares = {"test": 0.5, "test-fold1": 0.9, "test-fold2": 0.7}
    folds = {
        split: (puzzles, [judged(split.replace("test", "gram"), [share] * 4, coverage=[share] * 4)])
        for split, share in shares.items()
    }
    *_, last, spread = (table := baselines.fold_markdown(task, folds, width=5).strip().splitlines())
    assert [line.split("|")[1].strip() for line in table[2:5]] == [f"`{split}`" for split in shares]
    assert (last.count("50.0 to 90.0 %"), last.count("| 0.0 to 100.0 %")) == (3, 1), "the vote is right above .5"
    assert (spread.count("| 20.0"), spread.count("| 57.7")) == (3, 1)
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(ValueError, match="folds must be at least two, got test"):
        baselines.fold_markdown(task, {"test": folds["test"]}, width=5)


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_every_fold_has_a_recipe_that_differs_in_its_split_alone(fold):
    plain, other = load_recipe("nqueens8-gram"), load_recipe(f"nqueens8-gram-fold{fold}")
    assert other.model == plain.model
    assert other.training == replace(plain.training, split=f"train-fold{fold}")
    assert f"test-fold{fold}" in other.task.splits
