"""`scripts/sparse_study.py`: it resumes, prints the same again, and refuses what it cannot study."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "sparse_study.py"
STUDY = runpy.run_path(str(SCRIPT))


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse_study.py", *arguments])
    STUDY["main"]()


def test_a_small_study_prints_its_tables_and_the_same_again(tmp_path, monkeypatch, capsys):
    line = ["--runs", str(tmp_path), "--tasks", "sudoku4", "--shares", "1", "0.25", "--circuit-shares", "1", "0.25"]
    line += ["--seeds", "2", "--steps", "2", "--mask-steps", "1"]
    run(monkeypatch, *line)
    first = capsys.readouterr()
    assert "### sudoku4" in first.out
    assert "minus first, points (95 %)" in first.out
    assert "4/4 sudoku4-share0.25-seed1" in first.err
    assert (tmp_path / "sudoku4-share0.25-seed0" / "sparse.safetensors").is_file()
    # Two steps teach nothing, so there is nothing to prune.
    assert "no circuits, since a whole model has a loss of" in first.err
    assert first.out.count("| none |") == 6
    run(monkeypatch, *line)
    assert capsys.readouterr().out == first.out


def test_circuits_are_compared_seed_by_seed(capsys):
    def made(edges: int, control: bool | None) -> dict:
        shown = {"circuit": {"accuracy": 1.0}, "ablated": {"accuracy": 0.5}, "random": {"accuracy": 0.5}}
        is_controlled = None if control is None else {"is_reached": control}
        return {"is_reached": True, "target": 0.15, "nodes": 9, "edges": edges, "control": is_controlled, **shown}

    seeds = [{"1": made(100, False), "0.25": made(25, False)}, {"1": made(400, None), "0.25": made(100, None)}]
    STUDY["print_circuits"]({"b": [*seeds, {"1": {"is_reached": False}, "0.25": {"is_reached": False}}]}, [1.0, 0.25])
    rows = capsys.readouterr().out.splitlines()
    assert "| 0.25 (0.25 to 0.25) | 100.0% | 50.0% | 50.0% | 0 of 1 |" in rows[-1]
    assert "| 100, 400 |" in rows[-2]
    assert "| 2 of 3 |" in rows[-1], "a seed without a circuit is counted"
    assert STUDY["ratio"](np.log([0.5])) == "0.50"
    assert STUDY["ratio"](np.log([0.5, 0.25])).startswith("0.35 (")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shares", "0"], "weight_share must be above 0"),
        (["--shares", "1", "1.5"], "weight_share must be above 0 and at most 1"),
        (["--seeds", "1"], "seeds must be at least 2"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--mask-steps", "-1"], "mask-steps must be at least 1, got -1"),
        (["--runs", __file__], "runs must be a folder, got the file"),
        (["--shares", "1", "--circuit-shares", "0.5"], "circuit-shares must be some of shares"),
    ],
)
def test_bad_input_is_refused(tmp_path, monkeypatch, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--runs", str(tmp_path / "runs"), *arguments)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
