"""Training on a data set of many views: what is drawn, which rows learn and how, resuming, cost, faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gram import checkpoint
from gram.cli.main import main
from gram.config import ModelConfig
from gram.tasks.arc import Arc
from gram.tasks.arc_folder import NAMES_FILE, open_arc_folder
from gram.tasks.protocol import PuzzleError
from gram.training import run_folder
from gram.training.arc_builder import build
from gram.training.arc_puzzles import ArcFolderPuzzles, open_training_puzzles, with_identities
from gram.training.config import TrainConfig
from gram.training.cost import cost_of
from gram.training.recipe import Recipe, RecipeError, load_recipe
from gram.training.run import train
from gram.training.trainer import Trainer
from tests.arc_tasks import arc_folder, arc_json

CPU = torch.device("cpu")
RATE = {"identity_learning_rate": 0.1, "identity_weight_decay": 0.5, "warmup_steps": 1, "final_learning_rate": 1.0}


def recipe(*, model: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """A small model of `arc` with task embeddings, of which its data set says how many."""
    shape: dict[str, Any] = {
        "task": "arc", "tokens": 900, "output_tokens": 900, "vocabulary": 12, "mixer": "attention", "heads": 2,
        "dim": 8, "hidden": 8, "blocks": 1, "guidance": "none", "noise_free_steps": 0, "depth": 2, "registers": 2,
        "identity_dim": 12,
    }  # fmt: skip
    values = {
        "steps": 2, "batch": 2, "rollout_slots": 1, "evaluate_puzzles": 1, "evaluate_width": 1,
        "checkpoint_every_steps": 10**9, "evaluate_every_steps": 10**9, "token_weights": ((0, 0.0),),
    } | RATE | training  # fmt: skip
    return Recipe("tiny", "", Arc(), ModelConfig(**shape | (model or {})), TrainConfig(**values))


def trainer(out: Path, data: Path, **training: Any) -> Trainer:
    made = with_identities(recipe(**training), data)
    source = open_training_puzzles(made, data)
    return Trainer(made, out, device=CPU, dtype=torch.float32, is_compiled=False, puzzles=source)


def test_pairs_come_with_their_identity_and_tasks_equally_often(tmp_path: Path) -> None:
    data = arc_folder(tmp_path, count=2, views=3)
    made = recipe()
    source = open_training_puzzles(made, data)
    assert isinstance(source, ArcFolderPuzzles)
    puzzles, targets, identities = source.draw_identified(np.random.default_rng(0), 400)
    folder = open_arc_folder(data)
    split = folder.split("train")
    known = {
        (
            split.inputs[row].tobytes(),
            split.labels[row].tobytes(),
            int(split.identities[split.puzzles_of(np.array([row]))[0]]),
        )
        for row in range(len(split.inputs))
    }
    drawn = [(p.tobytes(), t.tobytes(), int(i)) for p, t, i in zip(puzzles, targets, identities, strict=True)]
    assert set(drawn) == known
    share = np.mean([folder.view(int(identity))[0] == "task0" for identity in identities])
    assert 0.4 < share < 0.6
    again = source.draw_identified(np.random.default_rng(0), 400)
    assert np.array_equal(again[2], identities)
    assert np.array_equal(source.draw(np.random.default_rng(0), 400)[0], puzzles)
    wrong = targets.copy()
    wrong[:, np.flatnonzero(targets[0])[0]] ^= 1
    assert not source.are_right(puzzles, targets, wrong)[0]
    padding = np.where(targets == 0, 5, targets).astype(np.uint8)
    assert source.are_right(puzzles, targets, padding).all()


def test_tests_are_held_out_and_judged(tmp_path: Path) -> None:
    secret = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1, 2]]}]}
    data = arc_folder(tmp_path, count=2, views=3, secret=secret)
    made = recipe(evaluate_puzzles=100)
    source = open_training_puzzles(made, data)
    held_out = source.held_out
    assert held_out.identities is not None
    assert held_out.answers is not None
    assert len(held_out) == 3 * 4  # those of the task without output are not among them
    assert made.task.verify(held_out.puzzles, held_out.answers).all()
    assert len(np.unique(held_out.groups)) == 2
    (tmp_path / "b").mkdir()
    unlabelled = arc_folder(tmp_path / "b", count=0, secret=secret)
    with pytest.raises(PuzzleError, match="must hold a test with its output to judge training by"):
        open_training_puzzles(recipe(), unlabelled)


def test_rows_of_the_batch_learn_by_signs_and_no_others(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", arc_folder(tmp_path))
    table = made.model.identities
    assert table is not None
    assert len(table) == 16
    table.rows.fill_(0.25)
    made.advance()
    own = np.unique(made.slots.identities)
    others = np.setdiff1d(np.arange(16), own)
    assert (table.rows[others] == 0.25).all()
    moved = table.rows[own] - 0.25 * (1 - 0.1 * 0.5)
    assert torch.isclose(moved.abs(), torch.tensor(0.1)).float().mean() > 0.9  # 0 where a gradient is
    assert len({tuple(row.tolist()) for row in moved.sign()}) == len(own)


def test_a_row_learns_what_its_gradient_says(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", arc_folder(tmp_path))
    table = made.model.identities
    assert table is not None
    taken: list[torch.Tensor] = []
    learn = table.learn
    table.learn = lambda ids, gradient, *rest: (taken.append(gradient.clone()), learn(ids, gradient, *rest))[1]  # type: ignore[method-assign]
    made.advance()
    assert taken[0].shape == (2, 12)
    assert taken[0].abs().min() > 0


@pytest.mark.slow
def test_an_identity_tells_two_tasks_of_one_input_apart(tmp_path: Path) -> None:
    """One input, two outputs: whoever knows the task knows the answer, and nobody else can."""

    def task(colour: int) -> dict[str, Any]:
        pairs = [{"input": [[0]], "output": [[colour]]}]
        return {"train": pairs, "test": pairs}

    build([arc_json(tmp_path / "tasks.json", {"a": task(3), "b": task(7)})], tmp_path / "data", views=0)
    quick = {"learning_rate": 1e-2, "identity_learning_rate": 0.05, "weight_decay": 0.0, "identity_weight_decay": 0.0}
    shape = {"depth": 1, "transitions": 1}
    right = {}
    for width in (12, 0):
        made = with_identities(recipe(model=shape | {"identity_dim": width}, batch=4, **quick), tmp_path / "data")
        source = open_training_puzzles(made, tmp_path / "data")
        run = Trainer(
            made, tmp_path / f"run{width}", device=CPU, dtype=torch.float32, is_compiled=False, puzzles=source
        )  # fmt: skip
        right[width] = np.mean([run.advance()["exact"] for _ in range(45)][-15:])
    assert right[12] == 1
    assert right[0] < 0.9


def test_a_resumed_run_ends_with_the_same_table(tmp_path: Path) -> None:
    data = arc_folder(tmp_path)
    whole, first = trainer(tmp_path / "whole", data), trainer(tmp_path / "halves", data)
    for _ in range(3):
        whole.advance()
    first.advance()
    first.save_state()
    second = trainer(tmp_path / "halves", data)
    assert second.load_state()
    for _ in range(2):
        second.advance()
    tables = [each.model.identities for each in (whole, second)]
    assert tables[0] is not None
    assert tables[1] is not None
    assert torch.equal(tables[0].rows, tables[1].rows)
    assert tables[0].rows.any()
    assert torch.equal(whole.flat.master, second.flat.master)


def test_the_command_trains_a_checkpoint_that_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = arc_folder(tmp_path, count=2, views=1), tmp_path / "run"
    made = recipe(steps=2, evaluate_every_steps=2)
    card = train(made, out, device="cpu", dtype="float32", puzzles=data, is_compiled=False)
    assert card["held_out_while_training"]["single_accuracy"] == 0
    model = checkpoint.load(out)
    assert model.identities is not None
    assert (model.config.identities, model.identities.rows.dtype) == (5, torch.bfloat16)
    assert (out / NAMES_FILE).read_bytes() == (data / NAMES_FILE).read_bytes()
    command = [
        "eval",
        "arc",
        "--data",
        str(data),
        "--checkpoint",
        str(out),
        "--width",
        "1",
        "--launch",
        "1",
        "--slots",
        "1",
    ]
    assert main([*command, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["tests"] == 3
    # Another run begins with its table.
    again = Trainer(
        with_identities(made, data), tmp_path / "again", device=CPU, dtype=torch.float32, is_compiled=False, start=out,
        puzzles=open_training_puzzles(made, data),
    )  # fmt: skip
    assert again.model.identities is not None
    assert torch.equal(again.model.identities.rows, model.identities.rows.float())
    (tmp_path / "b").mkdir()
    with pytest.raises(RecipeError, match="start must be a checkpoint of the data set's identities"):
        run_folder.starting_rows(out, arc_folder(tmp_path / "b", count=1) / NAMES_FILE)


def test_the_table_is_in_the_cost_that_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = arc_folder(tmp_path)
    assert "512 numbers for each identity of its data set" in cost_of(load_recipe("paper-arc1")).sentence()
    command = ["train", "paper-arc1", "--out", str(tmp_path / "run"), "--puzzles", str(data), "--dry-run"]
    assert main(command) == 0
    assert "a table of 16 identities x 512 numbers" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["identities"], told["identity_dim"]) == (16, 512)
    assert not (tmp_path / "run").exists()


def test_identities_without_their_data_set_are_one_line(tmp_path: Path) -> None:
    data = arc_folder(tmp_path)
    for puzzles in (None, tmp_path / "tasks.json"):
        with pytest.raises(RecipeError, match=r"must be given --puzzles (DIR|FILE)"):
            train(recipe(), tmp_path / "run", puzzles=puzzles)
    with pytest.raises(RecipeError, match="identities must be the 16 of"):
        with_identities(recipe(model={"identities": 3}), data)
    assert with_identities(replace(recipe(model={"identity_dim": 0})), None).model.identities == 0
    assert not (tmp_path / "run").exists()


def test_an_old_folder_of_a_run_is_taken_on(tmp_path: Path) -> None:
    made = recipe(model={"identity_dim": 0})
    with run_folder.open_run(made, tmp_path / "run", None, None):
        pass
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("identity_learning_rate", "identity_weight_decay", "play_averaged"):
        del kept["training"][name]
    (tmp_path / "run" / "run.json").write_text(json.dumps(kept))
    plain = replace(made, training=replace(made.training, identity_learning_rate=1e-2, identity_weight_decay=0.1))
    with run_folder.open_run(plain, tmp_path / "run", None, None):
        pass
    with (
        pytest.raises(RecipeError, match="got another training"),
        run_folder.open_run(made, tmp_path / "run", None, None),
    ):
        pass
