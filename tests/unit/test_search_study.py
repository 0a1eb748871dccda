"""`scripts/search_study.py`: three ways to search, paired, by one table."""

import pytest

from gram import checkpoint
from scripts import search_study as study
from tests.models import tiny_model
from tests.unit.test_lattice import lattice_model


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["study", *map(str, arguments)])
    study.main()


def test_every_way_is_a_row_beside_the_first(tmp_path, monkeypatch, capsys):
    checkpoint.save(lattice_model(drop_below=0.3, conflict_above=1.0), tmp_path / "tiny")
    out = tmp_path / "table.md"
    run(monkeypatch, tmp_path / "tiny", "--rows", "1-6", "--depths", "16,4", "--out", out)
    rows = [line.split(" | ") for line in out.read_text().splitlines()[2:]]
    assert [row[1] for row in rows] == ["restart", "backtrack, sure", "backtrack"]
    assert rows[0][4] == "-"
    assert all("(" in row[4] for row in rows[1:])
    assert all(float(row[2]) <= float(row[3]) for row in rows), "more rounds solve no fewer"
    assert "solved in 4, % | solved in 16, %" in capsys.readouterr().out


def test_a_study_may_take_other_loops_than_the_checkpoint(tmp_path, monkeypatch, capsys):
    """A warm checkpoint of 6 loops, asked for 3 from `z0`, is the cold one of 3 loops."""
    kind = {"drop_below": 0.3, "conflict_above": 1.0}
    checkpoint.save(lattice_model(**kind, transitions=6, is_warm_started=True), tmp_path / "tiny")
    run(monkeypatch, tmp_path / "tiny", "--rows", "1-6", "--depths", "8", "--transitions", "3", "--cold-start")
    asked = capsys.readouterr().out
    checkpoint.save(lattice_model(**kind, transitions=3), tmp_path / "tiny")
    run(monkeypatch, tmp_path / "tiny", "--rows", "1-6", "--depths", "8")
    assert capsys.readouterr().out == asked


def test_other_models_and_bad_depths_are_refused(tmp_path, monkeypatch, capsys):
    checkpoint.save(tiny_model(), tmp_path / "continuous")
    for arguments, message in (
        ((tmp_path / "continuous",), "checkpoints must be lattices, got"),
        ((tmp_path / "continuous", "--depths", "many"), "invalid literal"),
        (("sudoku-lattice", "--transitions", "0"), "depths, width and transitions at least 1"),
    ):
        with pytest.raises(SystemExit) as refusal:
            run(monkeypatch, *arguments)
        assert refusal.value.code == 2
        assert message in capsys.readouterr().err
