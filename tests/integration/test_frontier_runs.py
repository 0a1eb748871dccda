"""`gram frontier` on a tiny model: the trace's cells are those of direct runs, and a killed run ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gram import checkpoint
from gram.api import Sampler
from gram.cli.frontier import labelled
from gram.cli.main import main
from gram.evals.frontier.grid import Grid, tabulate
from gram.evals.frontier.outcomes import read
from gram.sampler.engine import first_halt
from gram.sampler.selectors import RECORDED, Scores, select
from gram.sampler.trace import Traces
from gram.tasks.registry import get_task
from tests.frontier_parts import stable
from tests.models import tiny_model

OPTIONS = ["--widths", "1,2,4", "--depths", "1,2,3", "--limit", "10", "--seeds", "2", "--rounds", "2", "--launch", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose halt head stops some trajectories."""
    model = tiny_model()
    model.halt.weight.mul_(30)
    directory = tmp_path_factory.mktemp("tiny")
    checkpoint.save(model, directory)
    return directory


@pytest.mark.parametrize("halting", ["head", "fixed", "residual", "unchanged"])
def test_cells_of_a_trace_are_direct_runs(tmp_path, halting):
    """Every selector's verdict for every puzzle, in fewer supervision steps."""
    model = tiny_model()
    model.halt.weight.mul_(30)
    sampler = Sampler(model, get_task("nqueens4"), name="tiny")
    puzzles = np.zeros((12, 16), np.uint8) + 1
    puzzles[np.arange(12), np.arange(12)] = 2
    settings = sampler.settings(width=8, depth=6, halting="fixed", launch=8)
    traced = sampler.sample(puzzles, settings, out=tmp_path, is_traced=True)
    grid = Grid(
        widths=(1, 2, 4, 8),
        depths=(1, 2, 3, 6),
        selectors=("vote", "lprm", "halt", "residual", "margin", "first", "first-halt"),
        haltings=(halting,),
        trained_depth=3,
        first_halt=first_halt(settings, model),
        thresholds=(0.2,) if halting == "residual" else (),
    )
    found = tabulate([Traces.open(tmp_path)], grid)
    run_directly = 0
    for m, depth in enumerate(grid.depths):
        for w, width in enumerate(grid.widths):
            threshold = 0.2 if halting == "residual" else None
            direct = sampler.sample(
                puzzles, settings, width=width, depth=depth, halting=halting, halt_threshold=threshold
            )
            scores = Scores(*(getattr(direct, name) for name in Scores._fields))
            for s, selector in enumerate(grid.selectors):
                answers = direct.candidates[np.arange(len(puzzles)), select(selector, scores)]
                verdicts = sampler.task.verify(puzzles, answers)
                np.testing.assert_array_equal(found.is_right_directly[:, 0, m, w, s], verdicts)
            run_directly += direct.steps_run
            if width == 8:
                np.testing.assert_allclose(found.steps[:, 0, m], direct.steps.mean(axis=1), rtol=1e-6)
    if halting == "fixed":
        assert run_directly / traced.steps_run == pytest.approx(15 * 12 / (8 * 6))


def test_a_frontier_end_to_end(folder, tmp_path, capsys):
    command = ["frontier", "nqueens4", "--checkpoint", str(folder), *OPTIONS, "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["about"]["seeds"] == 2
    assert made["verdict"]["sentence"]
    assert made["grid"]["selectors"][0] == "vote"
    assert set(made["grid"]["selectors"]) == set(RECORDED)
    assert len(made["cells"]) == 2 * 3 * 3 * len(RECORDED)
    assert all(cell["latency_ms"] > 0 and cell["throughput_ms"] > 0 for cell in made["cells"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"frontier.json", "cells.csv", "report.html", "pictures", "traces"} <= names
    assert {"curves.svg", "heat_map.svg"} <= {path.name for path in (tmp_path / "out" / "pictures").iterdir()}

    assert main(command) == 0  # everything is there already, timings included
    assert json.loads(capsys.readouterr().out)["latency"] == made["latency"]

    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").read_text() == page


def test_traces_first_and_the_rest_later(folder, tmp_path, capsys):
    """What `--traces-only` has sampled is not sampled again, and the frontier is that of one command."""
    command = ["frontier", "nqueens4", "--checkpoint", str(folder), *OPTIONS, "--json", "--out"]
    assert main([*command, str(tmp_path / "two"), "--traces-only"]) == 0
    traces = [tmp_path / "two" / "traces" / f"seed-{seed}" for seed in (0, 1)]
    assert json.loads(capsys.readouterr().out) == {"traces": [str(each) for each in traces]}
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["traces"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "traces").rglob("*") if path.is_file()}
    for name in ("two", "one"):
        assert main([*command, str(tmp_path / name)]) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    two, one = (stable(json.loads((tmp_path / name / "frontier.json").read_text())) for name in ("two", "one"))
    assert json.dumps(two) == json.dumps(one)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Another checkpoint of the task."""
    directory = tmp_path_factory.mktemp("other")
    checkpoint.save(tiny_model(hidden=24), directory)
    return directory


def test_several_checkpoints_give_one_page(folder, second, tmp_path, capsys):
    out, puzzles = tmp_path / "out", tmp_path / "puzzles.txt"
    # Parts of one solution: one, two and three queens of it are no twins of each other.
    boards = [[["."] * 4 for _ in range(4)] for _ in range(8)]
    for board, rows in zip(boards, ("0", "01", "02", "03", "12", "012", "013", "0123"), strict=True):
        for row in map(int, rows):
            board[row][(1, 3, 0, 2)[row]] = "Q"
    puzzles.write_text("\n".join("/".join("".join(row) for row in board) for board in boards))
    named = ["--checkpoint", str(folder), "--checkpoint", str(second), "--puzzles", str(puzzles)]
    assert main(["frontier", "nqueens4", *named, *OPTIONS, "--out", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    labels = [folder.name, second.name]
    assert list(made["frontiers"]) == labels
    pair, covered = made["pairs"]
    assert (pair["measure"], covered["measure"]) == ("accuracy", "coverage")
    assert [pair["a"], pair["b"]] == sorted(labels)
    assert pair["puzzles"] == 8
    assert {row["matched_by"] for row in pair["budgets"]} == {"latency interactive", "latency throughput", "macs"}
    page = (out / "report.html").read_text()
    for label in labels:
        assert made["frontiers"][label]["verdict"]["sentence"].replace("'", "&#x27;") in page
        assert f'href="{label}/report.html"' in page
        assert (out / label / "report.html").is_file()
        assert read(out / label / "outcomes.npz", made["frontiers"][label]["grid"])["accuracy"].shape[0] == 8
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


def test_a_wrong_second_checkpoint_is_told_before_anything_runs(folder, tmp_path, capsys):
    out = tmp_path / "out"
    named = ["--checkpoint", str(folder), "--checkpoint", str(tmp_path / "none")]
    assert main(["frontier", "nqueens4", *named, *OPTIONS, "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        ([], [""]),
        (["a"], ["a"]),
        (["a", "b"], ["a", "b"]),
        (["one/best", "two/best"], ["one-best", "two-best"]),
        (["one/best/", "x"], ["best", "x"]),
    ],
)
def test_folders_of_checkpoints_have_different_names(tmp_path, monkeypatch, named, labels):
    monkeypatch.chdir(tmp_path)
    for name in named:
        if "/" in name:
            Path(name).mkdir(parents=True)
    assert list(labelled(named)) == labels


@pytest.mark.parametrize("named", [["a", "a"], [""], ["one/a", "./one/a"]])
def test_a_checkpoint_named_twice_is_refused(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    Path("one/a").mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoints must be different names or folders, got"):
        labelled(named)


def test_a_dry_run_in_json_estimates_arithmetic_time_and_memory(folder, second, tmp_path, capsys):
    out = tmp_path / "none"
    command = ["frontier", "nqueens4", "--checkpoint", str(folder), *OPTIONS, "--out", str(out), "--dry-run", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps_of_trace"] == found["puzzles"] * 2 * 4 * 3
    assert found["macs"] == (found["steps_of_trace"] + found["steps_of_latency"]) * found["macs_per_step"]
    assert min(found["trace_s"], found["latency_s"], found["disk_bytes"]) > 0
    assert found["memory_bytes"] > 256 << 20
    assert 1 <= found["bases"] <= found["puzzles"] <= 10
    assert main([*command, "--checkpoint", str(second)]) == 0
    assert list(json.loads(capsys.readouterr().out)["frontiers"]) == [folder.name, second.name]
    assert not out.exists()


def test_a_dry_run_only_estimates(folder, tmp_path, capsys):
    out = tmp_path / "none"
    assert main(["frontier", "nqueens4", "--checkpoint", str(folder), *OPTIONS, "--out", str(out), "--dry-run"]) == 0
    told = capsys.readouterr().err
    for words in ("TMACs", "minutes", "of memory", "independent puzzles that make a difference significant"):
        assert words in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "1,x"], "widths must be numbers with commas between, got '1,x'"),
        (["--depths", "0,2"], "depths must be finite and above 0"),
        (["--budgets", "nan"], "budgets must be finite and above 0, got 'nan'"),
        (["--selectors", "best"], "selectors must be some of vote"),
        (["--modes", "fast"], "mode must be one of interactive, throughput, got 'fast'"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(folder, options, message, capsys, tmp_path):
    command = ["frontier", "nqueens4", "--checkpoint", str(folder), "--limit", "2", "--out", str(tmp_path), *options]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_folder_without_a_frontier_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "must hold frontier.json, ablation.json, status.tsv or folders with frontier.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_frontier_ends_the_same(folder, tmp_path):
    """Killed at random moments (`GRAM_KILLS` times, 5 where it is not set): equal apart from latencies and times."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out):
        return ["frontier", "nqueens4", "--checkpoint", str(folder), *OPTIONS, "--out", str(out)]

    def process(out):
        return [sys.executable, "-m", "gram", *command(out)]

    started = time.perf_counter()
    subprocess.run(process(tmp_path / "whole"), cwd=root, env=environment, check=True, capture_output=True)
    whole_s = time.perf_counter() - started
    wanted = stable(json.loads((tmp_path / "whole" / "frontier.json").read_text()))
    rng = np.random.default_rng(0)
    for number in range(int(os.environ.get("GRAM_KILLS", "5"))):
        out = tmp_path / f"killed-{number}"
        running = subprocess.Popen(
            process(out), cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.3, 1.0) * whole_s)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert main(command(out)) == 0
        assert json.dumps(stable(json.loads((out / "frontier.json").read_text()))) == json.dumps(wanted)
