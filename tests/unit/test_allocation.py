"""The allocation study: what it holds equal, its verdicts, what it refuses, and that it goes on where it stopped."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from gram.model import Model
from scripts import allocation_study as study
from tests.refusals import check_refusal


@pytest.mark.parametrize("task", list(study.SETTINGS))
def test_parameters_are_equal_within_a_percent_and_arithmetic_within_a_tenth(task, monkeypatch):
    monkeypatch.setattr(study, "reached", lambda config: 1.0)  # it draws training puzzles
    found = [study.described(study.model_of(task, share)) for share in (0.0, 0.5, 1.0)]
    for name, most in (("parameters", 0.01), ("macs_a_token", 0.1)):
        values = [each[name] for each in found]
        assert max(values) / min(values) - 1 <= most
    assert found[0]["experts"] == study.KEPT
    assert found[-1]["rows"] == 0
    assert all(each["lookup_share"] <= 0.05 for each in found)


def test_one_dense_expert_always_remains():
    for share in (0.0, 1.0):
        names = Model(study.model_of("nqueens8", share)).weights()
        assert names["low.0.channel.down"].shape == (study.DIM, study.HIDDEN)


def test_an_inner_share_that_beats_both_ends_is_told_and_an_equal_one_is_not():
    rng = np.random.default_rng(0)
    means = np.array([1.0, 0.9, 0.5, 0.99, 1.2, 1.1])
    table = means[:, None] + 0.02 * rng.standard_normal((6, 3))
    found = study.verdicts(table)
    deviation = np.sqrt(table.var(1, ddof=1).mean())
    raw = [stats.t.sf((table[0].mean() - row.mean()) / (deviation * np.sqrt(2 / 3)), 12) for row in table[1:-1]]
    order = np.argsort(raw)
    assert found[1 + order[0]].p == pytest.approx(4 * raw[order[0]])
    assert found[2].p < 0.001
    assert found[4].p > 0.99
    assert np.isnan(found[0].p)
    assert np.isnan(found[-1].p)
    low, high = stats.t.interval(0.95, 12, found[2].gain, deviation * np.sqrt(2 / 3))
    assert found[2].gain_half == pytest.approx((high - low) / 2)
    assert found[2].gain == pytest.approx(table[0].mean() - table[2].mean())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shares", "0", "0.5", "1.2"], "share must be within 0 and 1, got 1.2"),
        (["--shares", "-0.1", "0.5", "1"], "share must be within 0 and 1, got -0.1"),
        (["--shares", "0", "0.33", "1"], "share must be a multiple of 1/20"),
        (["--shares", "1", "0.5", "0"], "shares must be at least three rising numbers"),
        (["--seeds", "1"], "seeds must be at least 2"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--runs", __file__], "runs must be a folder, got the file"),
    ],
)
def test_what_cannot_be_studied_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    check_refusal(study, arguments, words, tmp_path / "runs", monkeypatch, capsys)


def test_it_goes_on_where_it_stopped_and_prints_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(study.SETTINGS, "nqueens8", study.Setting(("diagonal", "row"), ("row", "all"), 2, 4, True))
    monkeypatch.setattr(study, "HELD_OUT", 4)
    asked = ("nqueens8",), (0.0, 0.5, 1.0), 2, None
    first = study.study(tmp_path, *asked)
    kept = tmp_path / "nqueens8-rho0.5-seed1" / "allocation.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"accuracy": 0.75}))
    again = study.study(tmp_path, *asked)
    assert [each["mean"] for each in first["nqueens8"]["verdicts"]] == [
        each["mean"] for each in again["nqueens8"]["verdicts"]
    ]
    assert again["nqueens8"]["accuracy"][1] >= 0.375
    study.print_study(again, asked[1])
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 4
    assert "nqueens8: " in printed


def test_the_picture_has_a_chart_a_task(tmp_path):
    entropies = 0.2 + 0.01 * np.random.default_rng(0).random((6, 3))
    found = {
        name: {"verdicts": [asdict(each) for each in study.verdicts(entropies)]} for name in ("maze15", "nqueens8")
    }
    study.draw(found, study.SHARES, tmp_path / "new")
    drawn = (tmp_path / "new" / "allocation.svg").read_text()
    assert [f"{name}: share of experts" in drawn for name in ("maze15", "nqueens8", "sudoku9")] == [True, True, False]
