"""The price list of sparsity: a row a mechanism, arithmetic as counted, and what it refuses."""

import sys

import pytest

from scripts import sparsity_price


def told(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sparsity_price.py", *arguments])
    sparsity_price.main()


def test_every_mechanism_has_a_row_of_figures(monkeypatch, capsys):
    told(monkeypatch, "--rows", "1", "--rounds", "1")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 7
    named = {row[0]: row for row in rows}
    own, other = (
        int(part.replace(",", "")) for part in named["a sixteenth of the weights, in dense products"][1].split(" / ")
    )
    assert own < other / 10
    assert float(named["lookup memory"][2]) <= 1.02
    assert all(float(row[3].split()[0]) > 0 for row in rows)


@pytest.mark.parametrize("name", ["--rows", "--rounds"])
def test_nothing_to_time_is_one_line(monkeypatch, capsys, name):
    with pytest.raises(SystemExit) as left:
        told(monkeypatch, name, "0")
    assert left.value.code == 2
    assert f"{name[2:]} must be at least 1, got 0" in capsys.readouterr().err
