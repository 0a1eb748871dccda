"""`gram.evaluate`, `gram.frontier` and `gram.ablate`: what the commands print, as objects."""

import json

import numpy as np
import pytest

import gram
from gram import checkpoint
from gram.cli.main import main
from gram.tasks.protocol import PuzzleError
from tests.frontier_parts import stable
from tests.models import tiny_model

TIMES = ("elapsed_s", "trajectories_per_s", "command")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint.save(tiny_model(), folder)
    return folder


def without_times(values):
    return {name: value for name, value in values.items() if name not in TIMES}


def printed(capsys, *arguments):
    assert main([*arguments, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_evaluation_is_what_the_command_prints(tiny, tmp_path, capsys):
    out = tmp_path / "python"
    found = gram.evaluate(str(tiny), width=4, depth=2, limit=6, split="train", out=out, launch=8)
    options = ("--width", "4", "--depth", "2", "--limit", "6", "--split", "train", "--launch", "8")
    told = printed(capsys, "eval", "nqueens4", "--checkpoint", str(tiny), *options, "--out", str(tmp_path / "command"))
    assert without_times(found.to_json()) == without_times(told)
    assert list(found.to_json()) == [name for name in told if name != "command"]
    assert json.loads((out / "results.json").read_text()) == found.to_json()
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "command" / "predictions.jsonl").read_bytes()
    assert found.metrics["accuracy"] == found.evaluation.accuracy
    assert all(np.isfinite(value) for value in found.metrics.values())
    percent = f"{100 * found.evaluation.accuracy:.1f} %"
    assert percent in repr(found)
    assert percent in next(line for line in str(found).splitlines() if line.startswith("accuracy of the answer"))
    assert f"<td>{percent}</td>" in found._repr_html_()


def test_puzzles_of_ones_own_are_evaluated(tiny):
    sampler = gram.load(tiny)
    texts = [sampler.task.format(puzzle) for puzzle in sampler.task.split("train", limit=3).puzzles]
    shown = []

    def progress(total, unit):
        from contextlib import contextmanager

        @contextmanager
        def show():
            yield lambda count: shown.append((total, unit, count))

        return show()

    found = gram.evaluate(sampler, texts, width=2, depth=2, progress=progress)
    assert (found.evaluation.puzzles, found.to_json()["is_unseen"]) == (3, None)
    assert sum(count for *_, count in shown) == 6
    assert {(total, unit) for total, unit, _ in shown} == {(6, "trajectories")}
    assert [line["puzzle"] for line in found.predictions()] == texts
    with pytest.raises(PuzzleError):
        gram.evaluate(sampler, ["nonsense"])
    with pytest.raises(ValueError, match="rows must be A-B"):
        gram.evaluate(sampler, texts, rows="2-9")


def test_a_frontier_is_what_the_command_prints(tiny, tmp_path, capsys):
    grid = {"widths": (1, 2), "depths": (1, 2, 3), "seeds": 1, "rounds": 2, "limit": 8, "launch": 8}
    found = gram.frontier(tiny, out=tmp_path / "python", **grid)
    options = ["--widths", "1,2", "--depths", "1,2,3", "--seeds", "1", "--rounds", "2", "--limit", "8", "--launch", "8"]
    out = ("--out", str(tmp_path / "command"))
    told = printed(capsys, "frontier", "nqueens4", "--checkpoint", str(tiny), *options, *out)
    mine, theirs = stable(found.to_json()), stable(told)
    assert mine == theirs
    assert found.cells == json.loads((tmp_path / "python" / "frontier.json").read_text())["cells"]
    assert {path.name for path in (tmp_path / "python").iterdir()} >= {"report.html", "pictures", "outcomes.npz"}
    assert found.sentence in repr(found)
    assert "<img" in found._repr_html_()


def test_an_ablation_is_what_the_command_prints(tiny, tmp_path, capsys):
    study = tmp_path / "study.toml"
    study.write_text(
        f'task = "nqueens4"\nlimit = 6\n[base]\ncheckpoint = "{tiny}"\nlaunch = 8\n[[grid]]\nwidth = [1, 4]\n'
    )
    found = gram.ablate(study, tmp_path / "python")
    told = printed(capsys, "ablate", str(study), "--out", str(tmp_path / "command"))
    digests = [[cell["trajectories_sha256"] for cell in each["cells"]] for each in (found.to_json(), told)]
    assert digests[0] == digests[1]
    assert [cell["folder"] for cell in found.cells] == [cell["folder"] for cell in told["cells"]]
    assert found.cells[1]["less_baseline"] == told["cells"][1]["less_baseline"]
    assert (tmp_path / "python" / "report.html").is_file()
    assert found.rows()[0][2] == "baseline"
    assert "width 4" in repr(found)
    assert any("width 4" in line and "baseline" not in line for line in str(found).splitlines())
    assert "width 4" in found._repr_html_()
