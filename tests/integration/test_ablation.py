"""Studies: reading, caching by content, and paired comparisons of their cells."""

import json

import numpy as np
import pytest

from gram import checkpoint
from gram.cli.main import main
from gram.evals import ablation
from gram.evals.comparison import StoredEvaluation, compare
from tests.models import tiny_model

STUDY = """
name = "Tiny"
task = "nqueens4"
limit = 8
[base]
checkpoint = "{folder}"
launch = 8
[[grid]]
width = [1, 4]
selector = ["vote", "lprm"]
[[grid]]
temperature = 0.5
"""


@pytest.fixture
def study(tmp_path):
    checkpoint.save(tiny_model(), tmp_path / "tiny")
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(folder=tmp_path / "tiny"))
    return path


def test_a_study_lists_its_cells(study):
    plan = ablation.read(study)
    assert [cell.label for cell in plan.cells] == [
        "width 1, selector vote",
        "width 1, selector lprm",
        "width 4, selector vote",
        "width 4, selector lprm",
        "temperature 0.5",
    ]
    assert plan.cells[2].config.width == 4
    assert plan.cells[0].config.launch == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task = ", "not TOML"),
        ("x = 1", "'x' is no key of a study"),
        ("limit = 3", "task must be named, got None"),
        ('task = "a"\nlimit = 0', "limit must be at least 1, got 0"),
        ('task = "a"\n[[grid]]\nwidht = [1]', "grid 1: 'widht' is not a setting"),
        ('task = "a"\n[[grid]]\nwidth = []', "width must have at least one value"),
        ('task = "a"\n[[grid]]\nwidth = ["x"]', "grid 1: width must be a whole number, got 'x'"),
        ('task = "a"\n[[grid]]\nsigma = [0.1]', "sigma must come with injector gaussian or path"),
        ('task = "a"\n[base]\ncheckpoint = 3', "checkpoint must be a name or folder, got 3"),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path, text, message):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ablation.read(path)


def test_shipped_studies_can_be_read():
    files = sorted(ablation.STUDIES.glob("*.toml"))
    assert len(files) >= 9
    shipped = checkpoint.shipped_names()
    for file in files:
        plan = ablation.read(ablation.find(file.stem))
        assert len(plan.cells) > 1
        assert {cell.checkpoint for cell in plan.cells} <= set(shipped)
    with pytest.raises(ValueError, match="study must be a TOML file or one of adaptive-width"):
        ablation.find("nothing")


def test_a_study_end_to_end(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["ablate", str(study), "--out", str(out), "--json", "--quiet"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["cells"]) == 5
    assert "less_baseline" not in made["cells"][0]
    assert made["cells"][1]["less_baseline"]["difference"] == 0  # one trajectory, whatever picks it
    assert len(list((out / "cells").iterdir())) == 5
    assert len(list((out / "trajectories").iterdir())) == 3  # selectors share theirs
    page = (out / "report.html").read_text()
    assert "temperature" in page
    assert "sortable" in page

    times = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json*")}
    assert main(["ablate", str(study), "--out", str(out), "--quiet"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json*")}
    capsys.readouterr()

    cells = [out / "cells" / cell["folder"] for cell in made["cells"]]
    assert main(["compare", str(cells[2]), str(cells[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0]["difference"] == pytest.approx(made["cells"][2]["less_baseline"]["difference"])
    assert found["both_right"] + found["both_wrong"] + found["only_a"] + found["only_b"] == found["puzzles"]
    assert main(["compare", str(cells[2]), str(cells[0])]) == 0
    shown = capsys.readouterr().out
    assert "A alone right on" in shown
    assert "…" not in shown, "a cut figure, where there is no terminal and lines have 80 characters"
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


def test_cells_may_run_side_by_side(study, tmp_path, capsys):
    assert main(["ablate", str(study), "--out", str(tmp_path / "one"), "--json", "--quiet"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main(["ablate", str(study), "--out", str(tmp_path / "two"), "--json", "--quiet", "--jobs", "2"]) == 0
    two = json.loads(capsys.readouterr().out)
    digests = [[cell["trajectories_sha256"] for cell in made["cells"]] for made in (one, two)]
    assert digests[0] == digests[1]
    assert [cell["folder"] for cell in one["cells"]] == [cell["folder"] for cell in two["cells"]]


def test_a_dry_run_lists_cells(study, tmp_path, capsys):
    assert main(["ablate", str(study), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "width 4, selector lprm" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_task_is_refused(study, tmp_path, capsys):
    study.write_text(study.read_text().replace("nqueens4", "nqueens5"))
    assert main(["ablate", str(study), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "must be one of task 'nqueens5', got 'nqueens4'" in capsys.readouterr().err


def test_a_resampler_that_never_fired_is_no_result(tmp_path, capsys):
    """With one trajectory there is nothing to resample; with a threshold of 1 every step resamples."""
    model = tiny_model()
    model.halt.weight.mul_(10)  # scores far apart
    checkpoint.save(model, tmp_path / "tiny")
    path, out = tmp_path / "study.toml", tmp_path / "out"
    grids = (("none", 4, 0.5), ("halt", 1, 1.0), ("halt", 4, 1.0), ("halt", 4, 1e-9))
    path.write_text(
        f'name = "Tiny"\ntask = "nqueens4"\nlimit = 8\n[base]\ncheckpoint = "{tmp_path / "tiny"}"\nlaunch = 8\n'
        'halting = "fixed"\n'
        + "".join(f'[[grid]]\nresampler = "{name}"\nwidth = {n}\nresample_threshold = {t}\n' for name, n, t in grids)
    )
    assert main(["ablate", str(path), "--out", str(out), "--json", "--quiet"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["never_fired"] for cell in cells] == [False, True, False, True]
    assert all(cell["single_accuracy_low"] <= cell["single_accuracy"] for cell in cells)
    assert (out / "report.html").read_text().count("never fired") == 2
    assert main(["ablate", str(path), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out.count("never fired") == 2


def judged(name, right, puzzles=None):
    right = np.array(right, dtype=bool)
    texts = puzzles or [f"p{n}" for n in range(len(right))]
    return StoredEvaluation(name, {}, texts, np.arange(len(right)), right, right * 0.5, right * 1.0)


def test_a_comparison_by_hand():
    found = compare(judged("a", [1, 1, 1, 0, 0]), judged("b", [1, 0, 0, 1, 0]))
    assert found["differences"][0]["difference"] == pytest.approx(0.2)
    assert found["differences"][1]["difference"] == pytest.approx(0.1)
    assert (found["only_a"], found["only_b"]) == (2, 1)
    assert (found["both_right"], found["both_wrong"]) == (1, 1)
    assert not found["differences"][0]["is_told_apart"]


def test_equal_puzzles_are_one_base():
    found = compare(judged("a", [1, 1, 0], ["x", "x", "y"]), judged("b", [0, 0, 0], ["x", "x", "y"]))
    assert found["bases"] == 2


def test_other_puzzles_cannot_be_compared():
    with pytest.raises(ValueError, match="runs must be of the same puzzles"):
        compare(judged("a", [1, 0]), judged("b", [1, 0], ["x", "y"]))


ONE = '{"puzzle": "p", "index": 0, "is_right": true, "candidates": [{"is_right": true}], "distinct_valid": 1}\n'
RESULTS = '{"task": "t", "puzzles": 1, "accuracy": 1.0}'


@pytest.mark.parametrize(
    ("results", "predictions"),
    [
        ("{}", ONE),
        ("[]", ONE),
        ("null", ONE),
        ('{"task": "t"}', ONE),
        (RESULTS, '{"x": 1}\n'),
        (RESULTS, ""),
        (RESULTS, ONE + ONE),
        (RESULTS.replace("1,", '"1",'), ONE),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, capsys, results, predictions):
    (tmp_path / "results.json").write_text(results)
    (tmp_path / "predictions.jsonl").write_text(predictions)
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "must " in told.err
    assert str(tmp_path) in told.err
    assert told.err.count("\n") == 1


def test_an_evaluation_is_read_and_a_missing_one_named(tmp_path, capsys):
    (tmp_path / "results.json").write_text(RESULTS)
    (tmp_path / "predictions.jsonl").write_text(ONE)
    assert main(["compare", str(tmp_path), str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["both_right"] == 1
    assert main(["compare", str(tmp_path / "no"), str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
