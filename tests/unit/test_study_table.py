"""`scripts/study_table.py`: a finished ablation as Markdown."""

from __future__ import annotations

import json

import pytest

from scripts import study_table

CELL = {
    "accuracy": 0.97,
    "accuracy_low": 0.9,
    "accuracy_high": 0.99,
    "single_accuracy": 0.8,
    "pass_at_width": 1.0,
    "coverage": None,
    "mean_width": 2.02,
    "mean_steps": 4.881,
}
GAP = {"difference": 0.03, "low": 0.01, "high": 0.05}


def cells_of(line: str) -> list[str]:
    return [part.strip() for part in line.strip("|").split("|")]


def made(*cells):
    about = {"command": "gram ablate mine --out runs/mine", "puzzles": 1200, "task": "nqueens8"}
    return {"name": "Mine", "about": about, "cells": [{"label": f"cell {at}", **cell} for at, cell in enumerate(cells)]}


def test_every_row_is_as_wide_as_the_heads():
    told_apart = CELL | {"less_baseline": GAP | {"is_told_apart": True}}
    alike = CELL | {"less_baseline": GAP | {"is_told_apart": False}}
    text = study_table.section(made(CELL, told_apart, alike, alike | {"never_fired": True}))
    assert text.startswith("## Mine\n\n`gram ablate mine --out runs/mine`, 1,200 puzzles of `nqueens8`.\n\n")
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert tuple(cells_of(head)) == study_table.HEADS
    rows = [dict(zip(study_table.HEADS, cells_of(line), strict=True)) for line in lines]
    gaps = [row["less the first cell, points"] for row in rows]
    assert (gaps[0], gaps[3]) == ("-", "never fired")
    assert gaps[1] == f"**{gaps[2]}**"
    first = rows[0]
    assert (first["cell"], first["width"], first["steps"], first["coverage"]) == ("cell 0", "2.02", "4.88", "-")
    assert first["accuracy (95 % interval)"] == "97.0 % (90.0 to 99.0)"
    assert first["one trajectory"] == "80.0 %", "an older file has no interval of it"


def test_folders_stand_one_after_another_and_none_is_refused(tmp_path, monkeypatch, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "ablation.json").write_text(json.dumps(made(CELL) | {"name": name}))
    monkeypatch.setattr("sys.argv", ["study_table.py", str(tmp_path / "b"), str(tmp_path / "a")])
    study_table.main()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")] == ["## b", "## a"]
    monkeypatch.setattr("sys.argv", ["study_table.py"])
    with pytest.raises(SystemExit, match="name at least one folder"):
        study_table.main()
