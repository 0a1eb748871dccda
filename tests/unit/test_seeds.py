"""Several runs of one recipe in one process: each is what it is alone, and none is lost."""

import json
from dataclasses import replace

import pytest
import torch

from gram import checkpoint
from gram.cli.main import main
from gram.training import run as run_file
from gram.training.device_trainer import DeviceTrainer
from gram.training.recipe import RecipeError, load_recipe
from gram.training.side_by_side import fitting, fitting_in, run_bytes, train_seeds
from gram.training.trainer import Trainer
from tests.integration.test_training_resume import weights_sha256
from tests.unit.test_training import recipe, run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SEEDS = [3, 0, 5]


def trained(made, out, **kwargs):
    return train_seeds(made, out, SEEDS, is_compiled=False, dtype=torch.float32, **kwargs)


@pytest.fixture(params=[Trainer, DeviceTrainer])
def kind(request, monkeypatch):
    """What trains all runs, on a CPU."""
    monkeypatch.setattr(run_file, "kind_of_trainer", lambda *about: request.param)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_each_run_is_what_it_is_alone(tmp_path, kind, at_once):
    made, told = recipe(steps=12, evaluate_every_steps=5, checkpoint_every_steps=4), []
    cards = trained(made, tmp_path / "many", at_once=at_once, on_progress=lambda seed, line: told.append(seed))
    assert list(cards) == SEEDS
    for seed in SEEDS:
        run(tmp_path / str(seed), replace(made, training=replace(made.training, seed=seed)))
        folder = tmp_path / "many" / f"seed{seed}"
        assert weights_sha256(folder) == weights_sha256(tmp_path / str(seed))
        assert cards[seed]["recipe"]["training"]["seed"] == seed
        assert checkpoint.read_card(folder)["optimiser_steps"] == 12
    # A line at steps 5, 10 and 12 of each, by turns within those side by side.
    groups = [SEEDS[first : first + at_once] for first in range(0, 3, at_once)]
    assert told == [seed for group in groups for seed in 3 * group]


def test_runs_that_are_stopped_are_saved_and_go_on(tmp_path, kind):
    made, asked = recipe(steps=9), iter([False] * 8 + [True] * 99)
    stopped = trained(made, tmp_path / "many", at_once=2, should_stop=lambda: next(asked))
    assert {seed: card["optimiser_steps"] for seed, card in stopped.items()} == {3: 4, 0: 4}
    assert not (tmp_path / "many" / "seed5").exists()
    trained(made, tmp_path / "many", at_once=3)
    trained(made, tmp_path / "straight", at_once=1)
    for name in (f"seed{seed}" for seed in SEEDS):
        assert weights_sha256(tmp_path / "many" / name) == weights_sha256(tmp_path / "straight" / name)


def test_a_run_that_fails_takes_no_other_with_it(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(Trainer, "advance", _failing(Trainer.advance))
    monkeypatch.setattr(DeviceTrainer, "advance", _failing(DeviceTrainer.advance))
    with pytest.raises(FloatingPointError, match="must be finite"):
        trained(recipe(steps=20), tmp_path, at_once=2)
    assert checkpoint.read_card(tmp_path / "seed3")["optimiser_steps"] == 7
    assert not (tmp_path / "seed0" / "card.json").exists()
    assert not (tmp_path / "seed5").exists()


def _failing(advance):
    def failing(self):
        if self.training.seed == 0 and self.step == 6:
            raise FloatingPointError("gradient norm must be finite, got nan at optimiser step 6")
        return advance(self)

    return failing


def test_memory_decides_how_many_go_side_by_side():
    made = load_recipe("sudoku9")
    held, kept = run_bytes(made, torch.bfloat16)
    need = held + 2 * kept
    for free, count in ((held, 1), (need, 1), (2 * need - 1, 1), (5 * need, 5)):
        assert fitting_in(free, made, CUDA, torch.bfloat16) == count
    with pytest.raises(ValueError, match="the states of one run of recipe sudoku9: at least"):
        fitting_in(held - 1, made, CUDA, torch.bfloat16)
    for name in ("sudoku9", "queens", "recolour"):
        assert fitting(load_recipe(name), CPU, torch.bfloat16) == 1
    assert fitting(load_recipe("queens"), CUDA, torch.bfloat16) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_a_run_holds_is_counted(tmp_path, dtype):
    made = recipe(steps=9, batch=4, model={"dim": 64, "hidden": 128, "transitions": 2})
    trainer = DeviceTrainer(made, tmp_path, device=CPU, dtype=dtype, is_compiled=False)
    trainer.advance()
    flat, slots, rollouts = trainer.flat, trainer.slots, trainer.rollouts
    tensors = [flat.master, flat.average, flat.compute, *flat.adam.state[flat.master].values()]
    tensors += [flat.master, flat.compute]  # their gradients, which a step lets go of
    tensors += [slots.h, slots.l, rollouts.h, rollouts.l, rollouts.past_h, rollouts.kept_h]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert run_bytes(made, dtype)[0] == pytest.approx(held, rel=0.01)  # places are rounded up to cache lines


def test_a_backward_pass_reads_as_much_as_is_counted(tmp_path):
    made = recipe(steps=9, batch=4, rollout_slots=2, model={"transitions": 3})
    trainer = DeviceTrainer(made, tmp_path, device=CPU, dtype=torch.float32, is_compiled=False)
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.advance()
    read = sum(storage.nbytes() for storage in seen.values())
    weights = trainer.flat.compute.numel() * 4
    # What the heads read of replayed states comes on top, and puzzles.
    assert 0.9 * (read - weights) < run_bytes(made, torch.float32)[1] + 128 * made.model.length * made.model.dim * 4
    assert run_bytes(made, torch.float32)[1] < 1.1 * read


def test_what_cannot_be_trained_so_is_refused(tmp_path):
    made = recipe(steps=2)
    for seeds in ([], [1, 1]):
        with pytest.raises(RecipeError, match="seeds must be different ones, at least one, got"):
            train_seeds(made, tmp_path, seeds)
    with pytest.raises(RecipeError, match="length is in steps"):
        train_seeds(recipe(steps=None, minutes=1.0), tmp_path, [0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", "0,x"), "seeds must be whole numbers with commas between, got '0,x'"),
        (("--seeds", "2,2"), "seeds must be different ones, at least one, got 2, 2"),
        (("--seeds", "0,-1"), "seed must be"),
        (("--seeds", "0,1", "--seed", "2"), "seed must not come with --seeds, got 2"),
        (("--at-once", "2"), "at-once must come with --seeds, got 2 alone"),
        (("--seeds", "0", "--at-once", "0"), "at-once must be at least 1, got 0"),
        (("--seeds", "0,1", "--minutes", "1"), "seeds must be of a recipe whose length is in steps"),
    ],
)
def test_the_command_refuses_in_a_line(tmp_path, capsys, arguments, said):
    assert main(("train", "nqueens8-trm", "--out", str(tmp_path / "out"), "--quiet", *arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_the_command_prints_one_object(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    file = tmp_path / "tiny.toml"
    file.write_text(
        "task = 'nqueens4'\ndescription = ''\n[model]\ndim = 8\nhidden = 8\nmixer_hidden = 4\nguidance_hidden = 4\n"
        "depth = 2\n[training]\nsteps = 3\nbatch = 4\nrollout_slots = 2\nevaluate_puzzles = 2\nevaluate_width = 1\n"
    )
    out = tmp_path / "out"
    command = ("train", str(file), "--out", str(out), "--seeds", "4,1", "--at-once", "2", "--dtype", "float32")
    assert main((*command, "--json")) == 0
    captured = capsys.readouterr()
    runs = json.loads(captured.out)["runs"]
    assert {seed: card["optimiser_steps"] for seed, card in runs.items()} == {"4": 3, "1": 3}
    assert "seed 4: step 3" in captured.err
    assert main(command) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny, seed 4: 3 optimiser steps in ")
    assert first.endswith(f"-> {out}/seed4")
