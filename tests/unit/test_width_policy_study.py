"""`scripts/width_policy_study.py`: width policies a puzzle at a time, paired, kept as they come."""

import json

import pytest

from gram import checkpoint
from scripts import width_policy_study as study
from tests.unit.test_lattice import lattice_model

WAYS = ("trusted", "first-halt:2", "first-halt")


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["study", *map(str, arguments)])
    study.main()


def test_every_way_is_a_row_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    checkpoint.save(lattice_model(search="backtrack", drop_below=0.4, halt_threshold=0.86, depth=20), tmp_path / "tiny")
    out = tmp_path / "answers.jsonl"
    command = (tmp_path / "tiny", *WAYS, "--rows", "1-4", "--width", "4", "--kernel", "eager", "--out", out)
    run(monkeypatch, *command)
    table = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{way}`" for way in WAYS]
    assert rows[0][2] == rows[0][4] == "-"
    assert all("(" in row[2] and "(" in row[4] for row in rows[1:])
    lines = out.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    for line in map(json.loads, lines):
        if line["way"] == "first-halt":
            assert (line["trajectories"], line["steps"]) == (4, 4 * line["rounds"])
    out.write_text("".join(lines[:7]))
    asked = []
    real = study.answer
    monkeypatch.setattr(study, "answer", lambda *given: asked.append(1) or real(*given))
    run(monkeypatch, *command)
    assert len(asked) == 1 + 5, "one to warm up and what was missing"
    again = [json.loads(line) for line in out.read_text().splitlines()]
    for name in ("way", "puzzle", "rounds", "trajectories", "steps", "is_right"):
        assert [line[name] for line in again] == [json.loads(line)[name] for line in lines]


def test_a_way_may_have_other_settings_and_counts_its_own_arithmetic(tmp_path, monkeypatch, capsys):
    checkpoint.save(lattice_model(search="backtrack", drop_below=0.4, halt_threshold=0.86, depth=20), tmp_path / "tiny")
    ways = ("first-halt:2", "first-halt:2,transitions=200,depth=1,is_warm_started=true")
    out = tmp_path / "answers.jsonl"
    run(monkeypatch, tmp_path / "tiny", *ways, "--rows", "1-3", "--width", "2", "--kernel", "eager", "--out", out)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{way}`" for way in ways]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["rounds"] for line in lines if line["way"] == ways[1]} == {1}
    assert max(line["rounds"] for line in lines if line["way"] == ways[0]) > 1
    two = [{**json.loads(out.read_text().splitlines()[0]), "steps": 10**6}]
    for name in ("asked", "way", "puzzle"):
        del two[0][name]
    costs = study.table({"one": two, "other": two}, {"one": 1e6, "other": 3e6}, "wall_s").splitlines()[2:]
    assert [row.strip("| ").split(" | ")[-1] for row in costs] == ["1.00", "3.00"]


def test_bad_ways_are_refused_before_anything_is_sampled(tmp_path, monkeypatch, capsys):
    checkpoint.save(lattice_model(), tmp_path / "tiny")
    out = tmp_path / "answers.jsonl"
    for way, message in (
        ("best", "width_policy must be one of"),
        ("trusted:2", "width_stage must come with first-halt"),
        ("trusted,loops=2", "a way's setting must be one of depth, transitions, "),
        ("trusted,transitions=few", "transitions must be a value in JSON, got 'few'"),
        ("trusted,transitions=0", "transitions must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as refusal:
            run(monkeypatch, tmp_path / "tiny", "trusted", way, "--out", out)
        assert refusal.value.code == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
