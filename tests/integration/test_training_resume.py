"""Stopping, killing and repeating a run: its weights are those of a run that was never stopped, bit for bit."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gram import checkpoint
from gram.training.recipe import RecipeError
from gram.training.run import train
from gram.training.run_folder import LOCK_FILE, RUN_FILE, open_run
from gram.training.trainer import Trainer
from tests.unit.test_training import recipe, run, trainer

CASES: dict[str, dict[str, object]] = {
    "learned noise": {"model": {"head_hidden": 4}},
    "prior led": {"prior_share": 0.5},
    "one network twice": {"model": {"transitions": 2, "noise_order": "after"}},
    "any solution": {"target": "set", "model": {"guidance": "none"}},
    "stored": {"target": "stored", "model": {"guidance": "none"}},
    "random start": {"model": {"guidance": "none", "initial_std": 1.0, "path_noise": 0.01}},
    "best of many": {"best_of": 2},
    "several steps at once": {"gradient_steps": 3, "rows_at_once": 4},
    "late and revealed": {
        "late_share": 0.5, "late_steps": (2, 6), "reveal_until": 0.6, "model": {"task": "sudoku4", "vocabulary": 6},
    },
    "no condition": {"prior_share": 0.5, "model": {"task": "sudoku4", "vocabulary": 6, "is_conditional": False}},
}  # fmt: skip


class Killed(BaseException):
    """Stands for a kill: nothing after it is run."""


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / checkpoint.WEIGHTS_FILE).read_bytes()).hexdigest()


def killed_at(folder: Path, made, step: int, monkeypatch, go=run, kind=Trainer) -> None:
    """A run that dies in the middle of an optimiser step."""
    advance = kind.advance

    def dying(self):
        if self.step == step:
            raise Killed
        return advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "advance", dying)
        with pytest.raises(Killed):
            go(folder, made)


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_twice_ends_with_the_weights_of_one_never_stopped(tmp_path, monkeypatch, case):
    """30 steps straight, and with kills at 7 and 19, each some steps behind the last checkpoint."""
    made = recipe(steps=30, checkpoint_every_steps=5, **CASES[case])
    run(tmp_path / "straight", recipe(steps=30, **CASES[case]))
    killed_at(tmp_path / "killed", made, 7, monkeypatch)
    assert checkpoint.read_card(tmp_path / "killed")["optimiser_steps"] == 5
    killed_at(tmp_path / "killed", made, 19, monkeypatch)
    assert checkpoint.read_card(tmp_path / "killed")["optimiser_steps"] == 15
    run(tmp_path / "killed", made)
    assert weights_sha256(tmp_path / "killed") == weights_sha256(tmp_path / "straight")


@pytest.mark.parametrize("boundary", [1, 4, 13])
def test_where_checkpoints_and_evaluations_lie_changes_no_weight(tmp_path, monkeypatch, boundary):
    run(tmp_path / "straight", recipe(steps=30))
    made = recipe(steps=30, checkpoint_every_steps=boundary, evaluate_every_steps=3)
    killed_at(tmp_path / "killed", made, 27, monkeypatch)
    run(tmp_path / "killed", made)
    assert weights_sha256(tmp_path / "killed") == weights_sha256(tmp_path / "straight")


def test_a_run_asked_to_stop_goes_on_as_if_it_had_not_been(tmp_path):
    run(tmp_path / "straight", recipe(steps=30))
    for steps in (7, 12):
        asked = iter([False] * steps + [True])
        run(tmp_path / "stopped", recipe(steps=30), should_stop=lambda asked=asked: next(asked))
    assert run(tmp_path / "stopped", recipe(steps=30))["optimiser_steps"] == 30
    assert weights_sha256(tmp_path / "stopped") == weights_sha256(tmp_path / "straight")


def test_another_seed_has_other_weights(tmp_path):
    """What the digests above compare is not blind to the run."""
    for seed in (0, 1):
        run(tmp_path / str(seed), recipe(steps=5, seed=seed))
    assert weights_sha256(tmp_path / "0") != weights_sha256(tmp_path / "1")


@pytest.mark.slow
def test_compiled_steps_and_kills_give_the_same_weights(tmp_path, monkeypatch):
    """As `gram train` runs: compiled and in bfloat16, each part compiled anew."""

    def go(folder: Path, made) -> None:
        torch.compiler.reset()
        train(made, folder)

    made = recipe(steps=24, checkpoint_every_steps=5)
    go(tmp_path / "straight", made)
    killed_at(tmp_path / "killed", made, 13, monkeypatch, go)
    go(tmp_path / "killed", made)
    assert weights_sha256(tmp_path / "killed") == weights_sha256(tmp_path / "straight")


@pytest.mark.slow
def test_sigkill_then_the_same_command_continues(tmp_path):
    """A real process, killed without warning once it has saved; the second run ends with all steps done. Its shapes are
    those of the test above, so that it finds their steps compiled."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        "task = 'nqueens4'\n[model]\ndim = 16\nhidden = 16\nmixer_hidden = 8\nguidance_hidden = 8\ndepth = 3\n"
        "[training]\nsteps = 150\nbatch = 8\nrollout_slots = 4\ncheckpoint_every_steps = 5\nevaluate_puzzles = 4\n"
        "evaluate_width = 2\n"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gram", "train", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "card.json").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((out / "card.json").read_text())["optimiser_steps"] < 150
    done = subprocess.run([*command, "--json", "--quiet"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["optimiser_steps"] == 150
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 150
    leftovers = [name for name in os.listdir(out) if name.startswith(".")]
    assert len(leftovers) <= 2, leftovers


def test_a_resumed_run_has_the_whole_state(tmp_path):
    whole, parts = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    for _ in range(4):
        whole.advance()
    for _ in range(2):
        parts.advance()
    parts.save_state()
    resumed = trainer(tmp_path / "b")
    assert resumed.load_state()
    assert resumed.step == 2
    for _ in range(2):
        resumed.advance()
    for part in ("slots", "flat", "rollouts"):
        wanted, found = getattr(whole, part).state(), getattr(resumed, part).state()
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value), (part, name)


def test_rollouts_begin_anew_with_another_number_of_ranks(tmp_path):
    """Two ranks' rollouts are none of one rank's: the run goes on all the same."""
    first, second = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    for _ in range(3):
        first.advance()
    doubled = {name: torch.cat([value, value]) for name, value in first.rollouts.state().items()}
    second.rollouts.load_state(doubled)
    assert second.rollouts.started == second.rollouts.written == 0
    second.rollouts.load_state(first.rollouts.state())
    assert second.rollouts.started == first.rollouts.started > 0


def test_two_runs_into_one_folder_are_refused(tmp_path):
    """The second is told so in a line and changes nothing; once the first has ended the folder is free."""
    out, refusals = tmp_path / "run", []

    def second(progress) -> None:
        before = sorted(path.name for path in out.iterdir())
        for made in (recipe(steps=20), recipe(steps=40)):
            with pytest.raises(RecipeError) as error:
                run(out, made)
            refusals.append(str(error.value))
        assert sorted(path.name for path in out.iterdir()) == before

    run(out, recipe(steps=20), on_progress=second)
    assert refusals == [f"folder {out} is being trained into by another process"] * 4
    assert run(out, recipe(steps=30))["optimiser_steps"] == 30


def _hold(out: Path, is_held, may_go) -> None:
    with open_run(recipe(steps=20), out, None, None):
        is_held.set()
        may_go.wait()


def test_another_process_holds_the_folder_until_it_ends(tmp_path):
    """Also where it is killed: the lock goes with the process."""
    context = multiprocessing.get_context("spawn")
    is_held, may_go = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, is_held, may_go))
    process.start()
    assert is_held.wait(60)
    with pytest.raises(RecipeError, match="is being trained into by another process"):
        run(tmp_path, recipe(steps=20))
    assert process.pid is not None
    process.kill()
    process.join()
    assert run(tmp_path, recipe(steps=20))["optimiser_steps"] == 20


def test_a_run_of_another_recipe_cannot_take_a_folder_that_is_held(tmp_path):
    other = replace(recipe(steps=20), name="other")
    with open_run(recipe(steps=20), tmp_path, None, None), pytest.raises(RecipeError, match="another name"):
        run(tmp_path, other)
    assert json.loads((tmp_path / RUN_FILE).read_text())["name"] == "tiny"


def test_a_refused_folder_is_left_as_it_is(tmp_path):
    (tmp_path / checkpoint.CONFIG_FILE).write_text("{}")
    with pytest.raises(RecipeError, match="got a checkpoint"):
        run(tmp_path, recipe())
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.CONFIG_FILE]
    run(tmp_path / "run", recipe(steps=2))
    assert (tmp_path / "run" / LOCK_FILE).stat().st_size == 0
