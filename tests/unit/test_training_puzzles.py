"""Pairs to train on: files under the task's symmetries, what is held out, right answers, boards from nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gram import checkpoint
from gram.api import Sampler
from gram.cli.main import main
from gram.config import ModelConfig
from gram.tasks.arc import Arc
from gram.tasks.arc_grids import decode, encode
from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import Recipe, RecipeError, load_recipe
from gram.training.run import train
from gram.training.trainer import Trainer
from scripts.make_sudoku_file import hard_puzzle
from tests.models import tiny_config

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def sudoku_recipe(**training) -> Recipe:
    task = get_task("sudoku4")
    model = tiny_config(task="sudoku4", vocabulary=6, tokens=16, output_tokens=16)
    values = {
        "steps": 4, "batch": 8, "rollout_slots": 2, "evaluate_puzzles": 4, "evaluate_width": 2,
        "checkpoint_every_steps": 10**9, "evaluate_every_steps": 10**9,
    }  # fmt: skip
    return Recipe("tiny", "", task, model, TrainConfig(**{**values, **training}))


def sudoku_file(path: Path, count: int = 5, *, has_answers: bool = True) -> Path:
    task = get_task("sudoku4")
    made = task.split("train", limit=count)
    lines = ["question,answer" if has_answers else "question"]
    for puzzle, answer in zip(made.puzzles, made.answers, strict=True):
        question = task.format(puzzle)
        lines.append(f"{question},{task.format(puzzle, answer)}" if has_answers else question)
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(task) -> ModelConfig:
    return tiny_config(
        task=task.name, vocabulary=task.vocabulary, tokens=task.tokens, output_start=task.output_start,
        output_tokens=task.output_tokens,
    )  # fmt: skip


def test_pairs_of_a_file_are_shown_under_symmetries_and_stay_right(tmp_path):
    made = sudoku_recipe()
    source = TrainingPuzzles(made.task, made.model, made.training, sudoku_file(tmp_path / "mine.csv", 1))
    puzzles, targets = source.draw(np.random.default_rng(0), 40)
    assert made.task.verify(puzzles, targets).all()
    assert len(np.unique(puzzles, axis=0)) > 10
    assert len(np.unique((puzzles > 1).sum(1))) == 1
    assert len(source.held_out) == 4  # the task's own test puzzles: the file keeps all of its rows


def test_a_file_without_answers_is_refused(tmp_path):
    made = sudoku_recipe()
    with pytest.raises(PuzzleError, match="must hold an answer of every puzzle to train on"):
        train(made, tmp_path / "out", puzzles=sudoku_file(tmp_path / "mine.csv", has_answers=False))
    assert not (tmp_path / "out").exists()


def test_a_run_keeps_to_its_file(tmp_path):
    made = sudoku_recipe()
    file = sudoku_file(tmp_path / "mine.csv")
    card = train(made, tmp_path / "out", puzzles=file, is_compiled=False, dtype=torch.float32)
    assert card["optimiser_steps"] == 4
    longer = replace(made, training=replace(made.training, steps=6))
    other = sudoku_file(tmp_path / "other.csv", 3)
    for given in (other, None):
        with pytest.raises(RecipeError, match="got another puzzles"):
            train(longer, tmp_path / "out", puzzles=given, is_compiled=False)
    again = train(longer, tmp_path / "out", puzzles=file, is_compiled=False, dtype=torch.float32)
    assert again["optimiser_steps"] == 6


def test_right_is_the_verifiers_word_where_there_are_several_answers():
    queens, sudoku = get_task("nqueens7"), get_task("sudoku4")
    training = TrainConfig(steps=1)
    source = TrainingPuzzles(queens, config_of(queens), training)
    puzzles, targets = source.draw(np.random.default_rng(0), 50)
    others = np.stack([queens.solutions(puzzle)[-1] for puzzle in puzzles])
    assert (others != targets).any()
    assert source.are_right(puzzles, targets, others).all()
    assert not source.are_right(puzzles, targets, puzzles).any()
    source = TrainingPuzzles(sudoku, config_of(sudoku), training)
    puzzles, targets = source.draw(np.random.default_rng(0), 5)
    assert source.are_right(puzzles, targets, targets).all()
    assert source.are_right(puzzles, targets, targets[::-1]).sum() <= 1


def arc_file(path: Path, tasks: int = 6) -> Path:
    rng = np.random.default_rng(0)

    def pair() -> dict[str, list[list[int]]]:
        grid = rng.integers(0, 10, rng.integers(1, 6, 2))
        return {"input": grid.tolist(), "output": grid.T.tolist()}

    values = {f"t{index}": {"train": [pair(), pair()], "test": [pair()]} for index in range(tasks)}
    path.write_text(json.dumps(values))
    return path


def test_arc_trains_on_demonstrations_and_holds_whole_tasks_out(tmp_path):
    task = Arc()
    file = arc_file(tmp_path / "arc.json")
    source = TrainingPuzzles(task, config_of(task), TrainConfig(steps=1, evaluate_puzzles=3), file)
    assert source.pairs is not None
    assert (len(source.held_out), len(source.pairs)) == (4, 8)
    assert not set(source.held_out.groups) & set(source.pairs.groups)
    tests = {puzzle.tobytes() for puzzle in Arc().load(file).puzzles}
    assert not tests & {puzzle.tobytes() for puzzle in source.pairs.puzzles}
    assert task.verify(source.held_out.puzzles, source.held_out.answers).all()
    puzzles, targets = source.draw(np.random.default_rng(0), 20)
    assert source.are_right(puzzles, targets, targets).all()
    assert not source.are_right(puzzles, targets, np.roll(targets, 1, axis=0)).all()
    for puzzle, target in zip(puzzles, targets, strict=True):
        # The rule of these tasks, the transpose, outlives every symmetry but quarter turns, which reverse it.
        grid = decode(puzzle)
        assert any(np.array_equal(decode(target), turned) for turned in (grid.T, np.rot90(grid, 2).T))


def test_arc_files_with_too_little_are_refused(tmp_path):
    task = Arc()
    with pytest.raises(PuzzleError, match="must hold more than the 96 puzzles held out"):
        TrainingPuzzles(task, config_of(task), TrainConfig(steps=1), arc_file(tmp_path / "arc.json"))
    with pytest.raises(ValueError, match="must come from your files"):
        TrainingPuzzles(task, config_of(task), TrainConfig(steps=1))


def test_arc_augmentation_keeps_black_and_sizes():
    rng = np.random.default_rng(0)
    grid = np.array([[0, 3, 3], [0, 0, 5]], dtype=np.uint8)
    puzzles = np.stack([encode(grid)] * 30)
    turned, answers = Arc().augment(rng, puzzles, puzzles)
    assert np.array_equal(turned, answers)
    shapes = {decode(puzzle).shape for puzzle in turned}
    assert shapes == {(2, 3), (3, 2)}
    assert all((decode(puzzle) == 0).sum() == 3 for puzzle in turned)


def unconditional(steps: int = 4) -> Recipe:
    made = sudoku_recipe(steps=steps)
    return replace(made, model=replace(made.model, is_conditional=False))


def test_a_model_without_condition_never_sees_the_puzzle(tmp_path):
    made = Trainer(unconditional(), tmp_path, device=CPU, dtype=torch.float32, is_compiled=False)
    made.advance()
    assert made.slots.is_empty.all()
    assert made.rollouts.is_empty is not None
    assert made.rollouts.is_empty.all()
    assert not made.flat.views(made.flat.master.grad)["embedding.weight"].any()
    assert made.flat.views(made.flat.master.grad)["empty"].any()
    figures = made.evaluate()
    assert set(figures) == {"valid", "distinct"}
    assert 0 <= figures["valid"] <= 1


def test_its_slots_that_follow_the_prior_aim_at_boards_near_to_their_answers(tmp_path):
    made = unconditional()
    made = replace(made, training=replace(made.training, prior_share=0.5, batch=64))
    trainer = Trainer(made, tmp_path, device=CPU, dtype=torch.float32, is_compiled=False)
    for _ in range(2):
        trainer.advance()
        aims, blank = trainer.slots.solutions[:, 0].astype(np.uint8), np.ones((64, 16), np.uint8)
        has_aim = aims[:, 0] > 0
        assert has_aim.any()
        assert not has_aim[~trainer.slots.is_prior].any()
        assert made.task.verify(blank[has_aim], aims[has_aim]).all()
    newest = trainer.slots.taken == 0
    trainer.slots.left[:8] = 0
    trainer.slots.refill(trainer.model.weights(), np.random.default_rng(1))
    assert not newest.any()
    assert not trainer.slots.solutions[:8].any()  # nothing answered yet, nothing to aim at


def test_tasks_that_find_no_nearest_boards_refuse_them(tmp_path):
    task = get_task("nqueens4")
    model = replace(config_of(task), is_conditional=False)
    training = TrainConfig(steps=1, prior_share=0.5)
    with pytest.raises(RecipeError, match="prior_share must be 0 for nqueens4, which finds no nearest boards"):
        train(Recipe("q", "", task, model, training), tmp_path / "q")


def test_its_answers_are_right_when_they_are_boards():
    made = unconditional()
    source = TrainingPuzzles(made.task, made.model, made.training)
    puzzles, targets = source.draw(np.random.default_rng(0), 8)
    assert source.are_right(puzzles, targets, targets[::-1]).all()  # another puzzle's board is a board
    assert not source.are_right(puzzles, targets, puzzles).any()


def test_its_checkpoint_generates(tmp_path):
    card = train(unconditional(), tmp_path, is_compiled=False, dtype=torch.float32)
    assert set(card["held_out_while_training"]) == {"valid", "distinct"}
    sampler = Sampler(checkpoint.load(tmp_path), get_task("sudoku4"), name="mine")
    assert sampler.generate(6, halting="fixed").candidates.shape == (1, 6, 16)
    assert card["leak_diagnosis"] == ""  # the noise decides everything: its KL is due


def test_generated_boards_of_held_out_grids_are_counted(tmp_path, capsys):
    train(unconditional(), tmp_path, is_compiled=False, dtype=torch.float32)
    assert main(("generate", "sudoku4", "--checkpoint", str(tmp_path), "--count", "6", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 <= told["never_shown"] <= told["valid"] <= 6


def make_sudoku_file(path: Path, count: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/make_sudoku_file.py", str(path), "--count", str(count), "--jobs", "1"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )


def test_hard_puzzles_are_minimal_unique_harder_and_never_of_the_test_split():
    task = get_task("sudoku9")
    start, made = hard_puzzle(task, 3, rounds=0), hard_puzzle(task, 3, rounds=10)
    assert made == hard_puzzle(task, 3, rounds=10)
    assert start[1] == made[1]
    assert made[2] >= start[2]
    question, answer, rating = made
    board = [int(digit) if digit != "." else 0 for digit in question]
    assert task.solver.solutions(board, 2) == [[int(digit) for digit in answer]]
    assert task.solver.rating(board) == rating
    for cell, digit in enumerate(board):
        if digit:
            without = [*board[:cell], 0, *board[cell + 1 :]]
            assert len(task.solver.solutions(without, 2)) == 2, cell
    tokens = np.array([int(digit) + 1 for digit in answer], dtype=np.uint8)
    assert not task.is_test_grid(tokens[None])[0]


@pytest.mark.slow
def test_the_sudoku_file_is_continued_and_can_be_trained_on(tmp_path):
    whole, parts = tmp_path / "a.csv", tmp_path / "b.csv"
    assert make_sudoku_file(whole, 6).returncode == 0
    assert make_sudoku_file(parts, 3).returncode == 0
    with parts.open("a") as file:
        file.write("half a li")
    assert make_sudoku_file(parts, 6).returncode == 0
    assert whole.read_bytes() == parts.read_bytes()
    loaded = load_recipe("sudoku9", steps=1)
    source = TrainingPuzzles(loaded.task, loaded.model, replace(loaded.training, evaluate_puzzles=2), whole)
    assert source.pairs is not None
    assert source.pairs.ratings is not None
    assert (source.pairs.ratings[1::2] > 0).all()
    assert loaded.task.verify(*source.draw(np.random.default_rng(0), 20)).all()
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    refused = make_sudoku_file(tmp_path / "c.csv", 6)
    assert refused.returncode
    assert "must be one that this script began" in refused.stderr
    assert (tmp_path / "c.csv").read_text() == "a,b\n1,2\n"
