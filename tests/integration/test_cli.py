"""The command line: what each command prints and writes. A tiny untrained model; figures are not judged here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gram import checkpoint
from gram.cli.main import COMMANDS, main
from gram.config import ModelConfig
from gram.kernels.dispatch import KERNELS
from gram.model import Model
from gram.tasks import registry

TASK = "nqueens4"
PUZZLE = ".Q....../........"


def tiny(directory: Path, **overrides: Any) -> str:
    """A small random checkpoint of `TASK`."""
    shape = {
        "tokens": 16,
        "vocabulary": 3,
        "output_tokens": 16,
        "dim": 16,
        "hidden": 16,
        "mixer_hidden": 16,
        "guidance_hidden": 16,
    }
    torch.manual_seed(0)
    checkpoint.save(
        Model(ModelConfig(**({"task": TASK, "depth": 3, "has_empty_condition": True} | shape | overrides))), directory
    )
    return str(directory)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny(tmp_path_factory.mktemp("checkpoint"))


class Command:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], directory: str) -> None:
        self.capsys, self.directory = capsys, directory

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = main(arguments)
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def sample(self, command: str, *arguments: str) -> str:
        """stdout of a sampling command that must succeed."""
        code, out, err = self(command, TASK, "--checkpoint", self.directory, "--width", "4", *arguments)
        assert code == 0, err
        return out

    def json(self, command: str, *arguments: str) -> dict[str, Any]:
        """The one object that `--json` prints; `parse_constant` refuses NaN."""
        parsed: dict[str, Any] = json.loads(self.sample(command, "--json", *arguments), parse_constant=pytest.fail)
        return parsed


@pytest.fixture
def gram(capsys: pytest.CaptureFixture[str], trained: str) -> Command:
    return Command(capsys, trained)


def test_help_lists_every_command_and_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from gram.cli.main import main; main(['--help']); "
        "print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_has_help(gram: Command, command: str) -> None:
    code, out, _ = gram(command, "--help")
    assert code == 0
    assert f"gram {command}" in out


def test_version_and_no_command(gram: Command) -> None:
    assert gram("--version")[:2] == (0, "gram 0.1.0\n")
    assert "Commands:" in gram()[1]


def test_tasks_as_json_and_on_screen(gram: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "task_names", lambda: ("nqueens8", "sudoku6", "colouring6"))
    code, out, _ = gram("tasks", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [task["task"] for task in listed["tasks"]] == ["nqueens8", "sudoku6", "colouring6"]
    assert [entry["checkpoint"] for entry in listed["checkpoints"]] == checkpoint.shipped_names()
    assert "nqueens8" in gram("tasks")[1]


def test_solve_shows_boards_verdict_and_timings(gram: Command) -> None:
    out = gram.sample("solve")
    assert "puzzle 3 of 3" in out
    assert "puzzle 4" not in out
    assert "answer," in out
    assert "trajectories/s" in out
    assert "eager" in out
    assert "\x1b" not in out


def test_solve_json_judges_every_distinct_answer(gram: Command) -> None:
    report = gram.json("solve", "--limit", "2")
    assert len(report["puzzles"]) == 2
    for puzzle in report["puzzles"]:
        assert sum(answer["votes"] for answer in puzzle["answers"]) == 4
        assert len(puzzle["answers"]) == puzzle["distinct"]
        assert puzzle["answers"][0]["answer"] == puzzle["answer"]
        assert all((answer["conflicts"] == 0) == answer["is_valid"] for answer in puzzle["answers"])
        assert puzzle["distinct_valid"] <= puzzle["solutions"]
    assert report["width"] == 4
    assert report["depth"] == 3


def test_solve_takes_a_puzzle_from_the_command_line_and_from_a_file(gram: Command, tmp_path: Path) -> None:
    puzzle = gram.json("solve")["puzzles"][0]["puzzle"]
    alone = gram.json("solve", puzzle)["puzzles"]
    assert len(alone) == 1
    assert alone[0]["puzzle"] == puzzle
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{puzzle}\n{puzzle}\n")
    assert gram.json("solve", "--puzzles", str(file))["puzzles"] == alone * 2
    file.write_text("\n".join(each["puzzle"] for each in gram.json("solve", "--limit", "4")["puzzles"]))
    whole = gram.json("solve", "--puzzles", str(file))["puzzles"]
    for options, expected in (
        (("--rows", "2-3"), whole[1:3]),
        (("--rows", "2-4", "--limit", "1"), whole[1:2]),
    ):
        assert gram.json("solve", "--puzzles", str(file), *options)["puzzles"] == expected
        assert gram.json("solve", *options)["puzzles"] == expected
    for options, line in (
        (("--puzzles", str(file), "--rows", "2-5"), "rows must be A-B within 1 and 4, got '2-5'"),
        ((puzzle, "--rows", "1-1"), "rows must be of FILE or of the held-out puzzles, got PUZZLE"),
    ):
        code, _, err = gram("solve", TASK, *options)
        assert (code, err) == (2, f"gram: {line}\n")


def test_watch_prints_one_line_a_step_where_there_is_no_terminal(gram: Command) -> None:
    out = gram.sample("solve", "--watch", "--limit", "2", "--halting", "fixed")
    frames = [line for line in out.splitlines() if " halted " in line]
    assert [line.split("step")[1].split("of")[0].strip() for line in frames] == ["1", "2", "3"] * 2
    assert all("distinct answer" in line and "valid" in line for line in frames)


def test_generate_counts_valid_and_distinct(gram: Command, trained: str) -> None:
    code, out, _ = gram("generate", TASK, "--checkpoint", trained, "--count", "9", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["count"] == 9 == len(report["boards"])
    assert report["valid"] == sum(board["is_valid"] for board in report["boards"])
    assert report["distinct"] == len({board["board"] for board in report["boards"]})
    assert "valid" in gram("generate", TASK, "--checkpoint", trained, "--count", "5")[1]


def test_eval_writes_what_it_prints(gram: Command, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    report = gram.json("eval", "--limit", "3", "--out", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "plan.json",
        "predictions.jsonl",
        "results.json",
        "shards.bin",
    ]
    assert json.loads((folder / "results.json").read_text()) == report
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == report["puzzles"] == 3
    needed = """
        task checkpoint puzzles width depth selector accuracy accuracy_low accuracy_high single_accuracy
        single_accuracy_low single_accuracy_high pass_at_width coverage coverage_pooled coverage_multi coverage_ceiling
        coverage_pooled_ceiling conflicts mean_steps elapsed_s trajectories_per_s trajectories_sha256 seed device dtype
        kernel versions command
    """
    assert set(needed.split()) <= set(report)
    assert {"gram", "torch", "numpy", "python"} <= set(report["versions"])


def test_eval_on_screen_and_its_progress(gram: Command, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gram.cli import terminal

    monkeypatch.setattr(terminal, "PLAIN_PROGRESS_EVERY_S", 0.0)
    call = ("eval", TASK, "--checkpoint", trained, "--limit", "2", "--width", "4")
    _, out, err = gram(*call)
    assert "\u2026" not in out
    assert "coverage@4" in out
    assert "8 of 8 trajectories" in err
    assert gram(*call, "--quiet")[2] == ""


def test_limit_takes_the_first_of_one_permutation(gram: Command, tmp_path: Path) -> None:
    def puzzles(*arguments: str) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        gram.json("eval", "--out", str(folder), "--width", "1", *arguments)
        return [json.loads(line)["puzzle"] for line in (folder / "predictions.jsonl").read_text().splitlines()]

    assert puzzles("--limit", "4")[:2] == puzzles("--limit", "2")
    file = tmp_path / "puzzles.txt"
    rows = list(dict.fromkeys(puzzles("--split", "train", "--limit", "8")))
    file.write_text("\n".join(rows))
    few, all_rows = (
        puzzles("--puzzles", str(file), "--limit", "2"),
        puzzles("--puzzles", str(file), "--limit", str(len(rows))),
    )
    assert few == all_rows[:2]
    assert sorted(all_rows) == sorted(rows)
    assert puzzles("--puzzles", str(file)) == rows


def test_a_seed_decides_the_trajectories(gram: Command) -> None:
    def digest(*arguments: str) -> str:
        sha: str = gram.json("eval", "--limit", "3", *arguments)["trajectories_sha256"]
        return sha

    assert digest("--seed", "1") == digest("--seed", "1") != digest("--seed", "2")


def test_doctor_ends_with_a_verdict(gram: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAM_DATA", raising=False)
    code, out, _ = gram("doctor")
    assert code == 0
    assert out.splitlines()[-1].strip() == "ready"
    report = json.loads(gram("doctor", "--json")[1])
    assert report["is_ready"]
    assert {"device", "kernel", "dtype", "torch"} <= set(report["checks"])
    paths = {name: report["checks"][f"kernel {name}"] for name in KERNELS}
    assert paths["eager"]["state"] == "ok"
    if not torch.cuda.is_available():
        assert "needs a GPU" in paths["fused"]["finding"]
        assert "needs a GPU" in paths["blocks"]["finding"]
    monkeypatch.setenv("GRAM_DATA", "/nowhere")
    code, out, _ = gram("doctor")
    assert code == 1
    assert "broken: GRAM_DATA" in out


def test_a_signal_ends_a_run_with_one_line_and_keeps_only_what_can_go_on(trained: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    options = ["--checkpoint", trained, "--width", "100000", "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gram", "eval", TASK, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 60
    while not (folder / "plan.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == ""
    assert "SIGTERM" in err.splitlines()[-1]
    assert "Traceback" not in err
    # The store of finished shards stays, for the same command to go on; no result and no temporary file does.
    assert {path.name for path in folder.iterdir()} <= {"plan.json", "shards.bin"}


def test_a_killed_evaluation_goes_on_and_ends_alike(gram: Command, tmp_path: Path) -> None:
    """The log cut at several places, as a kill leaves it: the same command gives the same figures and files."""
    whole = gram.json("eval", "--out", str(tmp_path / "whole"))
    log = (tmp_path / "whole" / "shards.bin").read_bytes()
    for size in (0, 10, len(log) // 2, len(log) - 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "plan.json").write_bytes((tmp_path / "whole" / "plan.json").read_bytes())
        (folder / "shards.bin").write_bytes(log[:size])
        again = gram.json("eval", "--out", str(folder))
        timed = ("elapsed_s", "trajectories_per_s", "command")
        assert {key: again[key] for key in again if key not in timed} == {
            key: whole[key] for key in whole if key not in timed
        }
        predictions = [
            path.read_text() for path in (folder / "predictions.jsonl", tmp_path / "whole" / "predictions.jsonl")
        ]
        assert predictions[0] == predictions[1]


def test_a_folder_of_another_run_is_refused(gram: Command, tmp_path: Path) -> None:
    gram.sample("eval", "--out", str(tmp_path))
    before = (tmp_path / "shards.bin").read_bytes()
    code, _, err = gram("eval", TASK, "--checkpoint", gram.directory, "--width", "3", "--out", str(tmp_path))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "width" in err
    assert (tmp_path / "shards.bin").read_bytes() == before


def test_a_trace_holds_every_step(gram: Command, tmp_path: Path) -> None:
    from gram.sampler.trace import Traces

    summary = gram.json("sample", "--trace", str(tmp_path), "--halting", "fixed")
    with Traces.open(tmp_path) as traces:
        blocks = list(traces.blocks())
        assert (traces.width, traces.depth, traces.metadata["checkpoint"]) == (4, 3, gram.directory)
    steps = sum(int(block.steps.sum()) for block in blocks)
    assert steps == summary["supervision_steps"] == summary["trajectories"] * 3
    evaluated = gram.json("eval", "--halting", "fixed")
    right = sum(int(block.is_right[:, :, -1].sum()) for block in blocks)
    assert right / summary["trajectories"] == pytest.approx(evaluated["single_accuracy"])
    assert summary["trajectories_sha256"] == evaluated["trajectories_sha256"]


def test_an_interrupted_run_keeps_what_was_finished(trained: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, one line that names the folder, and the same command finishes."""
    arguments = [
        "sample", TASK, "--checkpoint", trained, "--out", str(tmp_path / "run"), "--width", "4000", "--launch", "8",
        "--slots", "8", "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "gram", *arguments], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "shards.bin"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "holds what was finished" in err
    from gram.sampler.store import Store

    with Store.read_only(tmp_path / "run") as store:
        assert 0 < len(store.done()) < store.shard_count
