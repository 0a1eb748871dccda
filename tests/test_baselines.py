"""The table of training methods: rows, intervals, order; the script on tiny trained runs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gram.evals import baselines
from gram.evals.baselines import Judged, markdown, method_of, rows
from gram.tasks.registry import get_task
from gram.train import train
from tests.test_training import recipe

ROOT = Path(__file__).parent.parent


def judged(method: str, single: list[float], *, coverage: list[float] | None = None) -> Judged:
    card = {"optimiser_steps": 100, "minutes": 10.0, "parameters": 1000}
    values = np.array(single)
    found = None if coverage is None else np.array(coverage)
    return Judged(method=method, card=card, single=values, accuracy=(values > 0.5).astype(float), coverage=found)


def queens(count: int):
    task = get_task("nqueens6")
    return task, task.split("test", limit=count)


def test_the_main_method_stands_first_and_differences_are_from_it():
    task, puzzles = queens(8)
    share = [0.5, 1.0, 0.0, 0.5, 1.0, 1.0, 0.5, 0.5]
    worse = [max(0.0, value - 0.5) for value in share]
    table = rows(task, puzzles, [judged("trm", worse, coverage=worse), judged("gram", share, coverage=share)])
    assert [row.method for row in table] == ["gram", "trm"]
    main, other = table
    assert main.less_main == other.less_twin == {}
    assert main.figures["single"][0] == pytest.approx(np.mean(share))
    assert set(other.less_main) == {"single", "accuracy", "coverage", "pooled"}
    for name, (estimate, low, high) in other.less_main.items():
        assert low <= estimate <= high
        assert main.less_twin[name] == pytest.approx((-estimate, -high, -low))
        assert estimate == pytest.approx(other.figures[name][0] - main.figures[name][0])
    assert other.less_main["single"][0] == pytest.approx(np.mean(worse) - np.mean(share))
    for value, low, high in other.figures.values():
        assert low <= value <= high


def test_runs_of_one_method_are_one_row_with_their_range():
    task, puzzles = queens(4)
    full, none = [1.0] * 4, [0.0] * 4
    table = rows(task, puzzles, [judged("gram", full, coverage=full), judged("gram", none, coverage=none)])
    assert len(table) == 1
    assert (table[0].runs, table[0].less_twin) == (2, {})
    assert table[0].ranges == dict.fromkeys(("single", "accuracy", "coverage", "pooled"), (0.0, 1.0))
    text = markdown(task, table, width=20)
    assert "| `gram` | 2 | 0.0 to 100.0 % | 0.0 to 100.0 % | 0.0 to 100.0 % | 0.0 to 100.0 % |" in text
    assert "points less" not in text
    assert table[0].figures["single"][0] == 0.5
    assert table[0].figures["pooled"][0] == 0.5


def test_without_the_main_method_there_is_no_table():
    task, puzzles = queens(2)
    with pytest.raises(ValueError, match="must hold one of recipe 'nqueens6' to compare with, got trm"):
        rows(task, puzzles, [judged("trm", [0.0, 1.0])])


def test_pooled_coverage_weighs_puzzles_by_their_solutions():
    """One solution of each puzzle is found."""
    task = get_task("nqueens8")
    puzzles = task.split("test", limit=40)
    every = np.array([task.count_solutions(puzzle) for puzzle in puzzles.puzzles])
    share = list(1 / every)
    main, other = rows(task, puzzles, [judged(name, share, coverage=share) for name in ("gram", "trm")])
    value, low, high = main.figures["pooled"]
    assert value == pytest.approx(40 / every.sum())
    assert value < main.figures["coverage"][0]
    assert 0 < low < value < high < 1
    assert other.less_main["pooled"][0] == 0


def test_names_of_methods():
    assert method_of("nqueens8", "nqueens8") == "gram"
    assert method_of("nqueens8", "nqueens8-best-of-many") == "best-of-many"


def test_a_task_of_one_solution_has_no_coverage_column():
    task = get_task("sudoku4")
    puzzles = task.split("test", limit=3)
    text = markdown(
        task, rows(task, puzzles, [judged("gram", [1.0, 0.5, 0.0]), judged("trm", [1.0, 0.5, 0.0])]), width=4
    )
    assert "coverage" not in text
    assert "pooled" not in text
    assert "range over" not in text, "one run of each method"
    assert text.count("not told apart") == 4, "one trajectory and vote, from each of the two sides"
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.slow
def test_the_script_on_trained_runs(tmp_path):
    """Main method, its twin of two seeds; the second call samples nothing anew and writes the same page."""
    runs = []
    for name, guidance, seed in (("nqueens4", "full", 0), ("nqueens4-trm", "none", 0), ("nqueens4-trm", "none", 1)):
        made = replace(recipe(model={"guidance": guidance}, seed=seed, steps=10), name=name)
        runs.append(tmp_path / f"{name}-{seed}")
        train(made, runs[-1], is_compiled=False, dtype=torch.float32)
    page, picture = tmp_path / "out" / "page.md", tmp_path / "out" / "curves.png"

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = ["--width", "3", "--out", str(page), "--note", "Trained here."]
        command = [sys.executable, "scripts/baselines_table.py", *arguments, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    folders = list(map(str, runs))
    done = call(*folders, "--curves", str(picture))
    assert done.returncode == 0, done.stderr
    first = page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert first.count("| `gram` | 1 |") == 1
    assert first.count("| `trm` | 2 |") == 2, "its figures, and its range over training seeds"
    assert first.count("KL per token at the first noisy step") == 1, "of the main method alone: the twin has no noise"
    assert "\nTrained here.\n" in first
    shards = {path: path.stat().st_size for path in tmp_path.glob("*/samples/*/*")}
    assert shards
    assert call(*folders, "--curves", str(picture)).returncode == 0
    assert page.read_text() == first
    assert {path: path.stat().st_size for path in tmp_path.glob("*/samples/*/*")} == shards
    for refused, words in (
        (call(*folders, "--limit", "0"), "limit must be at least 1, got 0"),
        (call(str(tmp_path)), "must be a folder of gram train"),
        (call(*folders[1:]), "must hold one of recipe 'nqueens4' to compare with, got trm"),
    ):
        assert refused.returncode == 2
        assert words in refused.stderr
    assert page.read_text() == first


def test_a_run_without_samples_is_refused():
    task, puzzles = queens(2)
    with pytest.raises(ValueError, match="at least one sampling seed"):
        baselines.judge_run(task, puzzles, [], {})
