"""Bad input on the command line: one line that names the thing, its value and what was expected; exit 2."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from gram import checkpoint
from gram.cli import errors, terminal
from gram.cli.main import main
from gram.config import ModelConfig
from gram.kernels import dispatch
from gram.model import Model
from gram.training.trainer import Trainer

TASK = "nqueens4"
SHAPE: dict[str, Any] = {
    "tokens": 16,
    "vocabulary": 3,
    "output_tokens": 16,
    "dim": 16,
    "hidden": 16,
    "mixer_hidden": 16,
    "guidance_hidden": 16,
}


COMPILER_WORDS = "C++ compile error"
TINY = """
task = "nqueens4"
[model]
dim = 16
hidden = 16
mixer_hidden = 8
guidance_hidden = 8
depth = 2
[training]
steps = 2
batch = 8
rollout_slots = 2
evaluate_puzzles = 2
evaluate_width = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, good and bad, and puzzle files."""
    root = tmp_path_factory.mktemp("errors")
    checkpoint.save(Model(ModelConfig(task=TASK, depth=2, **SHAPE)), root / "good")
    checkpoint.save(Model(ModelConfig(task="nqueens8", depth=2, **SHAPE)), root / "other")
    good = json.loads((root / "good" / "config.json").read_text())
    for name, config in (
        ("notjson", "{"),
        ("foreign", '{"model_type": "bert"}'),
        ("range", json.dumps({**good, "dim": 6})),
    ):
        (root / name).mkdir()
        (root / name / "config.json").write_text(config)
    (root / "noweights").mkdir()
    (root / "noweights" / "config.json").write_bytes((root / "good" / "config.json").read_bytes())
    (root / "empty.txt").write_text("")
    (root / "wrong.txt").write_text("Q...\n")
    return root


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line on stderr of a command line that must be refused."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("gram: ")
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("slove",), ("slove", "solve")),
        (("--what",), ("--what",)),
        (("solve",), ("TASK",)),
        (("solve", "nqueens"), ("nqueens",)),
        (("solve", "chess"), ("chess", "nqueens", "task_module")),
        (("solve", TASK, "--nonsense"), ("--nonsense",)),
        (("eval", TASK, "--width", "0"), ("width", "0", "at least 1")),
        (("eval", TASK, "--width", "many"), ("width", "many")),
        (("eval", TASK, "--depth", "-1"), ("depth", "-1", "at least 1")),
        (("eval", TASK, "--selector", "best"), ("selector", "best", "vote")),
        (("eval", TASK, "--halting", "never"), ("halting", "never", "head")),
        (("eval", TASK, "--halt-threshold", "1.5"), ("halt_threshold", "1.5")),
        (("eval", TASK, "--halting", "fixed", "--halt-threshold", "0.5"), ("halt_threshold", "fixed")),
        (("eval", TASK, "--halting", "unchanged", "--halt-threshold", "1.5"), ("halt_threshold", "1.5", "steps")),
        (("eval", TASK, "--halting", "residual", "--halt-threshold", "0"), ("halt_threshold", "0")),
        (("eval", TASK, "--views", "all"), ("views", "all", "random")),
        (("generate", "sudoku6", "--views", "random"), ("views", "off", "unconditional")),
        (("eval", TASK, "--injector", "dice"), ("injector", "dice", "gaussian")),
        (("eval", TASK, "--sigma", "0.3"), ("sigma", "gaussian")),
        (("eval", TASK, "--injector", "gaussian", "--sigma", "-1"), ("sigma", "-1")),
        (("eval", TASK, "--injector", "path"), ("sigma", "path")),
        (("eval", TASK, "--noise-site", "x"), ("noise_site", "x", "both")),
        (("eval", TASK, "--resampler", "luck"), ("resampler", "luck", "lprm")),
        (("eval", TASK, "--resampler", "lprm", "--resample-threshold", "0"), ("resample_threshold", "0")),
        (("eval", TASK, "--resampler", "lprm", "--width-policy", "decided"), ("width_policy", "resampler", "decided")),
        (("eval", TASK, "--width-policy", "enough"), ("width_policy", "enough", "staged")),
        (("eval", TASK, "--width-threshold", "0.9"), ("width_threshold", "none")),
        (("eval", TASK, "--width-stage", "2"), ("width_stage", "fixed")),
        (("eval", TASK, "--width-policy", "first-halt", "--width-stage", "21"), ("width_stage", "21")),
        (("eval", TASK, "--width-policy", "first-halt", "--slots", "4"), ("slots", "first-halt", "4")),
        (("eval", TASK, "--width-policy", "decided", "--width-threshold", "1"), ("width_threshold", "1")),
        (("eval", TASK, "--slots", "0"), ("slots", "0", "at least 1")),
        (("eval", TASK, "--transitions", "0"), ("transitions", "0", "at least 1")),
        (("eval", TASK, "--low-level-updates", "-1"), ("low_level_updates", "-1", "at least 0")),
        (("eval", TASK, "--kernel", "fast"), ("kernel", "fast", "eager")),
        (("eval", TASK, "--kernel", "fused", "--device", "cpu"), ("kernel", "fused", "GPU")),
        (("sample", TASK), ("--out", "--trace", "neither")),
        (("sample", TASK, "--out", "{folder}/a", "--trace", "{folder}/b"), ("--out", "--trace", "both")),
        (("sample", TASK, "--trace", "{folder}/empty.txt"), ("empty.txt",)),
        (("bench", "luck"), ("luck", "sampler")),
        (("bench", "sampler", "--rounds", "0"), ("rounds", "0")),
        (("bench", "training", "--recipe", "luck"), ("recipe", "luck")),
        (("bench", "training", "--against", "nowhere"), ("against", "nowhere")),
        (("bench", "training", "--puzzles", "missing.csv"), ("puzzles", "missing.csv")),
        (("bench", "kernels", "--teraflops", "0"), ("teraflops", "0")),
        (("bench", "kernels", "--terabytes", "inf"), ("terabytes", "inf")),
        (("eval", TASK, "--temperature", "-1"), ("temperature", "-1")),
        (("eval", TASK, "--temperature", "nan"), ("temperature", "nan")),
        (("eval", TASK, "--seed", "-1"), ("seed", "-1")),
        (("eval", TASK, "--seed", str(2**64)), ("seed", str(2**64))),
        (("eval", TASK, "--launch", "0"), ("launch", "0", "1")),
        (("eval", TASK, "--limit", "0"), ("limit", "0")),
        (("eval", TASK, "--split", "holdout"), ("holdout",)),
        (("eval", TASK, "--puzzles", "missing.csv"), ("missing.csv",)),
        (("eval", TASK, "--puzzles", "{folder}/empty.txt"), ("empty.txt",)),
        (("eval", TASK, "--puzzles", "{folder}/wrong.txt"), ("wrong.txt", "16")),
        (("eval", TASK, "--puzzles", "{folder}"), ("{folder}",)),
        (("eval", TASK, "--out", "{folder}/empty.txt"), ("empty.txt", "folder")),
        (("eval", TASK, "--task-module", "nowhere.py"), ("nowhere.py",)),
        (("solve", TASK, "Q"), ("16",)),
        (("solve", TASK, "x..............."), ("x",)),
        (("solve", TASK, "QQ.............."), ()),
        (("solve", TASK, "Q...............", "--puzzles", "missing.csv"), ("--puzzles", "both")),
        (("solve", TASK, "--watch", "--json"), ("--watch", "--json")),
        (("solve", TASK, "--pause", "-1"), ("pause", "-1")),
        (("solve", TASK, "--device", "abacus"), ("device", "abacus")),
        (("solve", TASK, "--dtype", "int3"), ("dtype", "int3", "bfloat16")),
        (("solve", TASK, "--checkpoint", "{folder}/nothing"), ("checkpoint", "nothing")),
        (("solve", TASK, "--checkpoint", "{folder}/notjson"), ("notjson", "JSON")),
        (("solve", TASK, "--checkpoint", "{folder}/foreign"), ("foreign", "bert")),
        (("solve", TASK, "--checkpoint", "{folder}/range"), ("dim", "6")),
        (("solve", TASK, "--checkpoint", "{folder}/noweights"), ("noweights", "model.safetensors")),
        (("solve", TASK, "--checkpoint", "{folder}/other"), (TASK, "nqueens8")),
        (("generate", TASK, "--checkpoint", "{folder}/good"), ("empty condition",)),
        (("generate", TASK, "--count", "0"), ("count", "0")),
        (("generate", "colouring8"), ("colouring8",)),
        (("generate", TASK, "--width", "3"), ("--width",)),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    given = [argument.format(folder=folder) for argument in arguments]
    if given[0] in ("solve", "eval", "generate", "sample") and TASK in given and "--checkpoint" not in given:
        given += ["--checkpoint", str(folder / "good")]
    message = refused(capsys, *given)
    assert all(part.format(folder=folder) in message for part in named), message


def test_a_task_without_a_shipped_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    assert "--checkpoint" in refused(capsys, "solve", TASK)


def test_what_nobody_expected_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gram import api

    def fail(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(api, "load", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["solve", TASK, "--checkpoint", str(folder / "good")])


def test_the_traceback_of_bad_input_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="width must be at least 1"):
        main(["eval", TASK, "--width", "0"])


def test_a_stop_that_a_library_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_received", [signal.SIGTERM])
    with pytest.raises(errors.Interrupted) as stop, terminal.progress(2, "puzzles", is_quiet=True) as advance:
        advance(1)
    assert stop.value.exit_code == 143


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_compiler_that_a_signal_ends_is_no_defect_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    """One line without what PyTorch says of its compiler, and the same command begins or goes on."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    recipe, out = tmp_path / "tiny.toml", tmp_path / "out"
    recipe.write_text(TINY)
    line = ["train", str(recipe), "--out", str(out), "--quiet"]

    def interrupted(self: Trainer) -> None:
        signal.raise_signal(signum)
        raise RuntimeError(COMPILER_WORDS)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", interrupted)
        assert main(line) == 128 + signum
    err = capsys.readouterr().err
    assert COMPILER_WORDS not in err
    assert err.splitlines()[-1].startswith(
        f"gram: stopped by {'Ctrl-C' if signum == signal.SIGINT else 'SIGTERM'}: {out}"
    )
    assert main(line) == 0


@pytest.mark.parametrize(
    ("signum", "later_s", "is_saved"),
    [(signal.SIGTERM, 0.5, True), (signal.SIGTERM, 1.5, False), (signal.SIGINT, 0.5, False)],
)
def test_training_is_saved_though_sigterm_comes_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, later_s: float, is_saved: bool
) -> None:
    """As `timeout` sends it; later, or by hand, a second signal ends a run without a save."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    recipe, out, advance = tmp_path / "tiny.toml", tmp_path / "out", Trainer.advance
    recipe.write_text(TINY)
    clock = iter([10.0, 10.0 + later_s])

    def interrupted(self: Trainer) -> dict[str, float]:
        with monkeypatch.context() as patched:
            patched.setattr("gram.cli.train.time.monotonic", lambda: next(clock))
            signal.raise_signal(signum)
            signal.raise_signal(signum)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    assert main(["train", str(recipe), "--out", str(out), "--quiet"]) == 128 + signum
    assert bool(list(out.glob("*.safetensors"))) == is_saved


def test_a_file_in_the_place_of_a_puzzle_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "solve", TASK, str(folder / "wrong.txt"), "--checkpoint", str(folder / "good"))
    assert "--puzzles" in line
    assert "wrong.txt" in line
    assert "--puzzles" not in refused(capsys, "solve", TASK, "Q..", "--checkpoint", str(folder / "good"))


@pytest.mark.parametrize("command", ["solve", "sample"])
def test_a_compiler_that_a_signal_ends_is_no_defect_of_sampling(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(errors, "_received", [])

    def interrupted(*arguments: object, **settings: object) -> None:
        errors._received.append(signal.SIGTERM)
        raise RuntimeError(COMPILER_WORDS)

    line = [command, TASK, "--checkpoint", str(folder / "good"), "--width", "2"]
    line += ["--out", str(tmp_path / "out"), "--quiet"] if command == "sample" else []
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "supervision_step", interrupted)
        assert main(line) == 143
    err = capsys.readouterr().err
    assert COMPILER_WORDS not in err
    assert err.splitlines()[-1].startswith("gram: stopped by SIGTERM: ")
    assert (str(tmp_path / "out") in err) == (command == "sample")
    monkeypatch.setattr(errors, "_received", [])
    assert main(line) == 0


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ValueError("width must be 1, got 2")])
def test_an_error_is_an_interruption_only_after_a_signal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors.stopped_by(error, None) is None
    is_defect = isinstance(error, RuntimeError)
    assert isinstance(errors.stopped_by(error, signal.SIGINT), errors.Interrupted) == is_defect
    monkeypatch.setenv("GRAM_TRACEBACK", "1")
    assert errors.stopped_by(error, signal.SIGINT) is None
