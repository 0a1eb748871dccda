"""Training: gradients, the schedule, resume after a kill, refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gram import checkpoint
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.diagnosis import Signs, diagnose
from gram.training.objective import Replay, head_loss, set_loss, step_loss
from gram.training.optimiser import FlatWeights, kl_beta, learning_rate
from gram.training.recipe import Recipe, RecipeError, load_recipe, recipe_names
from gram.training.run import train
from gram.training.trainer import Trainer
from tests.models import tiny_config, tiny_model


def recipe(*, model=None, **training) -> Recipe:
    values = {
        "steps": 6, "batch": 8, "rollout_slots": 4, "warmup_steps": 2, "evaluate_puzzles": 4, "evaluate_width": 2,
        "checkpoint_every_steps": 10**9, "evaluate_every_steps": 10**9,
    }  # fmt: skip
    config = tiny_config(**(model or {}))
    return Recipe("tiny", "", get_task(config.task), config, TrainConfig(**{**values, **training}))


def trainer(path: Path, **kwargs) -> Trainer:
    return Trainer(recipe(**kwargs), path, device=torch.device("cpu"), dtype=torch.float32, is_compiled=False)


def run(path: Path, made: Recipe, **kwargs):
    return train(made, path, is_compiled=False, dtype=torch.float32, **kwargs)


def loss_and_gradients(path: Path, **model):
    made = trainer(path, model=model)
    rng = np.random.default_rng(0)
    made.slots.refill(made.model.weights(), rng)
    made.slots.taken[:] = 2  # all slots noisy
    weights = {
        name: value.detach().requires_grad_(value.is_floating_point()) for name, value in made.model.weights().items()
    }
    replay = Replay(torch.randn(5, made.spec.length, 16), torch.ones(5), torch.ones(5), torch.ones(5))
    slots = made.slots.view()
    loss = step_loss(
        weights, made.recipe.model, made.training, slots, replay, torch.tensor(2.0), made.token_weights,
        slots.h, slots.l,
    )  # fmt: skip
    loss.total.backward()
    return loss, weights


def test_every_weight_learns(tmp_path):
    _, weights = loss_and_gradients(tmp_path, registers=2, head_hidden=4)
    # Heads start at zero, so what stands behind their last layer learns from the second step on.
    late = {"halt.gate_up", "lprm.gate_up"}
    for name, value in weights.items():
        if not name.startswith("z0"):
            assert name in late or (value.grad is not None and value.grad.abs().sum() > 0), name


def test_heads_send_no_gradient_into_the_core():
    model = tiny_model()
    weights = {name: value.detach().requires_grad_() for name, value in model.weights().items()}
    h = torch.randn(5, 16, 16)
    head_loss(weights, model.spec, Replay(h, torch.ones(5), torch.ones(5), torch.ones(5))).backward()
    moved = {name for name, value in weights.items() if value.grad is not None}
    assert moved == {"halt.weight", "halt.bias", "lprm.weight", "lprm.bias"}


def test_empty_replay_gives_no_head_loss():
    model = tiny_model()
    nothing = Replay(torch.randn(5, 16, 16), torch.ones(5), torch.zeros(5), torch.zeros(5))
    assert head_loss(model.weights(), model.spec, nothing) == 0


def test_deterministic_twin_has_no_kl(tmp_path):
    loss, weights = loss_and_gradients(tmp_path, guidance="none")
    assert loss.kl == 0
    assert diagnose(Signs(kl_first=float(loss.kl_first))) == "undefined"
    assert not any(name.startswith(("prior", "posterior", "target")) for name in weights)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("transitions", [1, 2])
def test_carried_state_has_no_history(tmp_path, order, transitions):
    loss, _ = loss_and_gradients(tmp_path, noise_order=order, transitions=transitions)
    assert not loss.h.requires_grad
    assert loss.total.isfinite()


def test_flat_weights_are_the_model(tmp_path):
    model = tiny_model(registers=1)
    flat = FlatWeights(model, TrainConfig(steps=1), torch.float32)
    views = flat.views(flat.master)
    assert set(views) == set(model.weights())
    for name, value in model.weights().items():
        assert torch.equal(views[name], value), name


def test_a_step_equals_adamw_on_the_plain_model():
    """The flat buffers change nothing of what AdamW would do to the parameters themselves."""
    model = tiny_model()
    training = TrainConfig(steps=1, clip=1e9)
    flat = FlatWeights(model, training, torch.float32)
    plain = {name: torch.nn.Parameter(value.detach().clone()) for name, value in model.named_parameters()}
    adam = torch.optim.AdamW(
        plain.values(), lr=training.learning_rate, betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
    )  # fmt: skip
    for step in range(2):
        gradient = torch.randn(flat.master.shape, generator=torch.Generator().manual_seed(step))
        for name, view in flat.views(gradient).items():
            if name in plain:
                plain[name].grad = view.clone()
        adam.step()
        flat.compute.grad = gradient
        flat.update(training.learning_rate)
    for name, parameter in plain.items():
        assert torch.allclose(flat.views(flat.master)[name], parameter, atol=1e-6), name


def test_schedules():
    training = TrainConfig(steps=100, warmup_steps=10, kl_beta=((0.0, 1.0), (0.2, 1.0), (0.4, 5.0)))
    assert learning_rate(training, 0, 0.0) == pytest.approx(1e-4)
    assert learning_rate(training, 50, 0.0) == pytest.approx(1e-3)
    assert learning_rate(training, 99, 1.0) == pytest.approx(1e-4)
    assert [kl_beta(training, f) for f in (0.0, 0.2, 0.3, 0.4, 1.0)] == pytest.approx([1, 1, 3, 5, 5])


def test_training_learns_a_tiny_task(tmp_path):
    """4x4 N-Queens, two solutions: a fraction of a minute takes single accuracy from nothing to most.

    The bound comes near to `log S` of its puzzles and stays above it on the whole: no better than the number of
    solutions allows.
    """
    sizes = {"dim": 32, "hidden": 64, "mixer_hidden": 32}
    made = recipe(model=sizes, steps=250, batch=64, learning_rate=3e-3, evaluate_puzzles=64)
    untrained = trainer(tmp_path / "none", model=sizes, evaluate_puzzles=64)
    before, held = untrained.evaluate(), untrained.puzzles.held_out
    after = run(tmp_path / "run", made)["held_out_while_training"]
    assert before["single_accuracy"] < 0.5
    assert after["single_accuracy"] > 0.9
    assert after["coverage_pooled"] > 0.9
    floor = np.mean([math.log(untrained.task.count_solutions(puzzle)) for puzzle in held.puzzles])
    assert floor - 0.3 < after["nelbo"] < before["nelbo"] / 4


def test_run_writes_a_loadable_checkpoint_and_a_log(tmp_path):
    card = run(tmp_path / "run", recipe(steps=10))
    assert card["optimiser_steps"] == 10
    assert checkpoint.read_card(tmp_path / "run") == json.loads(json.dumps(card))
    assert checkpoint.load(tmp_path / "run").dtype == torch.bfloat16
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10]
    assert lines[0]["diagnosis"] in ("leaking", "healthy", "failing", "collapsed", "undefined")
    assert 0 <= lines[-1]["evaluation"]["single_accuracy"] <= 1


def test_another_recipe_into_the_same_folder_is_refused(tmp_path):
    run(tmp_path, recipe(steps=2))
    with pytest.raises(RecipeError, match="must be empty or hold a run of recipe tiny, got another model"):
        run(tmp_path, recipe(steps=2, model={"dim": 32}))
    with pytest.raises(RecipeError, match="another training"):
        run(tmp_path, recipe(steps=2, batch=4))
    assert run(tmp_path, recipe(steps=4))["optimiser_steps"] == 4


def test_stop_request_saves_and_the_same_call_continues(tmp_path):
    asked = iter([False, False, True])
    assert run(tmp_path, recipe(), should_stop=lambda: next(asked))["optimiser_steps"] == 2
    assert run(tmp_path, recipe())["optimiser_steps"] == 6


def test_exploding_training_says_so(tmp_path):
    made = trainer(tmp_path)
    with torch.no_grad():
        made.flat.master[:100] = math.nan
        made.flat.compute.copy_(made.flat.master)
    with pytest.raises(FloatingPointError, match="gradient norm must be finite"):
        made.advance()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task = 'nqueens8'\n[training]\nminutes = 0", "minutes must be above 0"),
        ("task = 'nqueens8'\n[training]\nbatsh = 3\nminutes = 1", "'batsh' is not a setting"),
        ("task = 'chess'\n[training]\nminutes = 1", "chess"),
        ("[training]\nminutes = 1", "task must name a task"),
        ("task = 'nqueens8'\nextra = 1", "'extra' is not a key"),
        ("task = ", "not TOML"),
        ("task = 'nqueens8'\n[training]\nsteps = 0", "steps must be at least 1, got 0"),
        ("task = 'nqueens8'\n[training]\nminutes = 1\nkl_beta = [[0.0]]", "kl_beta must be a list of pairs"),
        ("task = 'nqueens8'\n[training]\nminutes = 1\ntoken_weights = [[9, 2.0]]", "tokens below 3, got 9"),
        ("task = 'nqueens8'\n[training]\nminutes = 1\nempty_probability = 0.5", "must go together"),
        ("task = 'nqueens8'\n[model]\nheads = 0\n[training]\nminutes = 1", "heads must be at least 1, got 0"),
        ("task = 'nqueens8'\n[model]\npreset = 'huge'\n[training]\nminutes = 1", "preset must be one of"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_shipped_recipes_load_and_a_budget_stands_alone():
    assert {"nqueens8", "nqueens8-trm-set", "sudoku6", "colouring8"} <= set(recipe_names())
    for name in recipe_names():
        assert load_recipe(name).model.task == load_recipe(name).task.name
    changed = load_recipe("nqueens8", steps=5, seed=3).training
    assert (changed.steps, changed.minutes, changed.seed) == (5, None, 3)
    with pytest.raises(RecipeError, match="recipe must be a TOML file or one of"):
        load_recipe("nqueens99")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    card = run(tmp_path, recipe(steps=10))
    assert card["held_out_while_training"]
    assert run(tmp_path, recipe(steps=10), command="again") == json.loads(json.dumps(card))


def test_a_resumed_run_mends_its_log_and_keeps_its_figures(tmp_path):
    run(tmp_path, recipe(steps=20))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 25}) + '\n{"step": 2')
    card = run(tmp_path, recipe(steps=30))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [10, 20, 30]
    assert card["optimiser_steps"] == 30
    assert card["leak_diagnosis"]


def test_a_folder_with_a_checkpoint_but_no_run_is_refused(tmp_path):
    checkpoint.save(tiny_model(), tmp_path)
    with pytest.raises(RecipeError, match="got a checkpoint"):
        run(tmp_path, recipe())


def test_set_loss_is_the_likelihood_of_any_valid_answer():
    """By hand: two answers of two tokens; a third place is padding and must not count."""
    logits = torch.tensor([[[0.0, 1.0, 2.0], [0.5, 0.0, 1.0]]])
    solutions = torch.tensor([[[1, 2], [2, 1], [0, 0]]])
    p = logits[0].softmax(-1)
    expected = -math.log(float(p[0, 1] * p[1, 2] + p[0, 2] * p[1, 1])) / 2
    assert float(set_loss(logits, solutions, torch.ones(3))[0]) == pytest.approx(expected, abs=1e-6)
    only = torch.tensor([[[1, 2], [0, 0], [0, 0]]])
    entropy = torch.nn.functional.cross_entropy(logits[0], torch.tensor([1, 2]))
    assert float(set_loss(logits, only, torch.ones(3))[0]) == pytest.approx(float(entropy), abs=1e-6)


def test_set_loss_of_a_slot_that_aims_at_nothing_is_zero_and_pulls_at_nothing():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    solutions = torch.tensor([[[0, 0, 0], [0, 0, 0]], [[1, 2, 3], [0, 0, 0]]])
    loss = set_loss(logits, solutions, torch.ones(4))
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] > 0
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].any()


def test_slots_that_follow_the_prior_never_see_the_target(tmp_path):
    """With all slots on the prior the posterior learns nothing, and the carried state does not depend on the target."""
    made = trainer(tmp_path, prior_share=1.0)
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    made.slots.taken[:] = 2
    assert made.slots.is_prior.all()
    weights = {name: value.detach().requires_grad_() for name, value in made.model.weights().items()}
    replay = Replay(torch.randn(5, 16, 16), torch.ones(5), torch.ones(5), torch.ones(5))
    states = []
    for targets in (made.slots.targets, 3 - made.slots.targets):
        made.slots.targets = targets
        slots = made.slots.view()
        loss = step_loss(
            weights, made.recipe.model, made.training, slots, replay, torch.tensor(2.0),
            made.token_weights, slots.h, slots.l,
        )  # fmt: skip
        states.append(loss.h)
        loss.total.backward()
    assert torch.equal(*states)
    assert weights["prior.down"].grad.abs().sum() > 0
    assert not any(
        value.grad is not None and value.grad.any() for name, value in weights.items() if "posterior" in name
    )


def test_prior_slots_hold_valid_answers(tmp_path):
    made = trainer(tmp_path, prior_share=0.5, batch=64)
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    assert 10 < made.slots.is_prior.sum() < 54
    for slot in np.flatnonzero(made.slots.is_prior):
        listed = made.slots.solutions[slot].astype(np.uint8)
        listed = listed[listed[:, 0] > 0]
        puzzle = made.slots.puzzles[slot].astype(np.uint8)
        assert made.task.verify(np.repeat(puzzle[None], len(listed), 0), listed).all()
        assert len(listed) == made.task.count_solutions(puzzle)


def test_prior_slots_of_a_task_with_one_solution_hold_the_target(tmp_path):
    made = trainer(tmp_path, prior_share=0.5, batch=64, model={"task": "sudoku4", "vocabulary": 6})
    made.advance()
    led = made.slots.is_prior
    assert 10 < led.sum() < 54
    assert np.array_equal(made.slots.solutions[led, 0], made.slots.targets[led])
    assert made.slots.solutions.shape[1] == 1
