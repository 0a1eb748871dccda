"""`scripts/sparse_dense_study.py`: what it holds equal, its graded figure, and that it goes on where it stopped."""

import json

import numpy as np
import pytest

from gram.evals.cost import step_macs
from gram.kernels.relations import BASES, RANDOM
from scripts import sparse_dense_study as study
from tests.refusals import check_refusal


@pytest.mark.parametrize("task", list(study.SETTINGS))
def test_arithmetic_is_equal_within_two_percent_and_never_more_than_dense(task):
    models = dense, sparse, control, axial, half = [study.matched(task, arm) for arm in study.ARMS]
    counted = [step_macs(config)["total"] for config in models]
    assert all(0.98 * counted[0] <= count <= counted[0] for count in counted[:-1])
    assert 0.48 * counted[0] <= counted[-1] <= 0.5 * counted[0]
    assert half.dim < sparse.dim
    assert half.relations == sparse.relations
    assert (axial.mixer, axial.pattern, dense.pattern) == ("attention", "axial", "full")
    assert counted[1] == counted[2]
    assert control.relations == tuple(RANDOM.get(name, name) for name in sparse.relations)
    assert sum(name in BASES for name in control.relations) == len(control.relations) - 1, "all cells have no order"
    assert (control.dim, control.hidden, control.mixer_hidden) == (sparse.dim, sparse.hidden, sparse.mixer_hidden)


def test_average_precision_by_hand():
    is_right = np.array([True, False, True, False])
    assert study.average_precision(np.array([4.0, 3.0, 2.0, 1.0]), is_right) == pytest.approx((1 + 2 / 3) / 2)
    assert study.average_precision(np.array([4.0, 2.0, 3.0, 1.0]), is_right) == 1
    assert study.average_precision(np.array([1.0, 3.0, 2.0, 4.0]), is_right) == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1"], "seeds must be at least 2"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--learning-rate", "0"], "learning-rate must be above 0 and at most 1, got 0"),
        (["--runs", __file__], "runs must be a folder, got the file"),
    ],
)
def test_what_cannot_be_studied_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    check_refusal(study, arguments, words, tmp_path / "runs", monkeypatch, capsys)


def test_it_goes_on_where_it_stopped_and_prints_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(study.SETTINGS, "maze11", study.Setting(2, 4))
    monkeypatch.setattr(study, "HELD_OUT", 4)
    monkeypatch.setattr(study, "AT_ONCE", 3)
    first = study.study(tmp_path, ["maze11"], study.ARMS[:3], 2, None)
    assert first["maze11"]["dense"]["precision"].shape == (2, 4)
    assert "6/6 maze11-random-seed1: precision" in capsys.readouterr().err
    kept = tmp_path / "maze11-sparse-seed1" / "sparse-dense.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"accuracy": [1.0] * 4}))
    again = study.study(tmp_path, ["maze11"], study.ARMS[:3], 2, None)
    assert np.array_equal(again["maze11"]["dense"]["precision"], first["maze11"]["dense"]["precision"])
    study.print_study(again)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 3 + 3 + 2
    assert "sparse minus dense" in printed
    assert printed.count("neither answers one") == 1, "of random and dense"
    assert "| 50.0% |" in printed
