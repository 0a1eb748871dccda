"""Published recipes: each baseline is the main model but for the one thing that defines it, and trains."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gram.cli.main import main
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.tasks.registry import get_task
from gram.training.diagnosis import Signs, diagnose
from gram.training.objective import Replay, step_loss
from gram.training.recipe import RecipeError, load_recipe, recipe_names
from gram.training.run import train
from gram.training.trainer import Trainer

TASKS = ("nqueens8", "sudoku6")
BASELINES = (
    "trm", "hrm", "looped", "direct", "eqr", "literal", "constant-beta", "stochastic-only", "mean-only", "best-of-many",
)  # fmt: skip
TARGETED = [f"{name}-{target}" for name in ("trm", "hrm", "eqr") for target in ("set", "stored")]
"""Deterministic baselines of N-Queens with another target."""
TWIN = {"guidance", "hidden", "mixer_hidden"}
"""What a model without guidance has otherwise: as many parameters in wider blocks."""
CHANGED = {
    "trm": TWIN,
    "hrm": TWIN | {"is_core_shared", "blocks", "transitions"},
    "looped": TWIN | {"low_level_updates", "depth", "noise_free_steps"},
    "direct": TWIN | {"is_core_shared", "blocks", "low_level_updates", "depth", "noise_free_steps"},
    "eqr": TWIN | {"initial_std", "path_keep", "path_noise"},
    "literal": {"noise_order", "noise_free_steps", "transitions"},
    "constant-beta": set(),
    "stochastic-only": {"guidance"},
    "mean-only": {"guidance"},
    "best-of-many": set(),
}
"""Fields of the model that a baseline sets otherwise than the main recipe."""
CPU = torch.device("cpu")


def tiny(task: str, name: str, **training):
    """A baseline of a few columns and puzzles, with everything else as published."""
    loaded = load_recipe(f"{task}-{name}", steps=100)
    small = {
        "batch": 8, "rollout_slots": 2, "evaluate_puzzles": 4, "evaluate_width": 2, "warmup_steps": 1,
        "evaluate_every_steps": 10**9, "checkpoint_every_steps": 10**9,
    }  # fmt: skip
    model = replace(loaded.model, dim=16, hidden=16, mixer_hidden=10, guidance_hidden=8, head_hidden=4)
    return replace(loaded, model=model, training=replace(loaded.training, **{**small, **training}))


def trainer(path: Path, made) -> Trainer:
    return Trainer(made, path, device=CPU, dtype=torch.float32, is_compiled=False)


def parameters(name: str, *parts: str) -> int:
    """Weights of a recipe's model, or of some of its parts."""
    model = Model(load_recipe(name).model)
    return sum(value.numel() for key, value in model.named_parameters() if key.startswith(parts or ("",)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_the_main_model_but_for_what_defines_it(task, name):
    main, other = load_recipe(f"{task}-gram"), load_recipe(f"{task}-{name}")
    differing = {key for key, value in asdict(other.model).items() if value != asdict(main.model)[key]}
    assert differing - {"has_empty_condition"} == CHANGED[name]
    assert (other.training.batch, other.training.learning_rate) == (main.training.batch, main.training.learning_rate)
    assert other.training.prior_share == 0


@pytest.mark.parametrize("name", [f"{task}-{name}" for task in TASKS for name in BASELINES])
def test_baselines_have_equal_parameters_and_steps_and_no_clock(name):
    """Guidance networks included; two networks of one block have as many weights as one of two blocks."""
    task = name.split("-")[0]
    main, training = load_recipe(f"{task}-gram"), load_recipe(name).training
    assert (training.steps, training.minutes) == (main.training.steps, None)
    assert parameters(name) == pytest.approx(parameters(task), rel=0.02)
    twin = f"{task}-trm" if load_recipe(name).model.guidance == "none" else task
    assert parameters(name, "low.", "high.") == parameters(twin, "low.", "high.")


@pytest.mark.parametrize("name", TARGETED)
def test_another_target_is_all_that_differs(name):
    base, target = name.rsplit("-", 1)
    plain, other = load_recipe(f"nqueens8-{base}"), load_recipe(f"nqueens8-{name}")
    assert other.model == plain.model
    assert other.training == replace(plain.training, target=target)


def test_no_recipe_of_a_checkpoint_or_baseline_has_a_clock():
    assert [name for name in recipe_names() if load_recipe(name).training.minutes is not None] == []
    for task in TASKS:
        assert load_recipe(f"{task}-gram").model == load_recipe(task).model


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_trains_a_few_steps_into_a_checkpoint(tmp_path, task, name):
    made = tiny(task, name)
    card = train(
        replace(made, training=replace(made.training, steps=3)), tmp_path, is_compiled=False, dtype=torch.float32
    )
    assert card["optimiser_steps"] == 3
    assert 0 <= card["held_out_while_training"]["single_accuracy"] <= 1
    assert (card["leak_diagnosis"] == "") == (name in ("trm", "hrm", "looped", "direct", "eqr", "best-of-many"))


@pytest.mark.parametrize("name", [*BASELINES, "trm-set", "eqr-set", "hrm-stored"])
def test_a_baseline_fits_a_handful_of_puzzles(tmp_path, name):
    """Shown four puzzles again and again, the loss falls."""
    made = trainer(tmp_path, tiny("nqueens8", name, learning_rate=1e-2))
    four = made.task.training_batch(np.random.default_rng(0), 4)
    made.puzzles.draw = lambda rng, count: tuple(  # type: ignore[method-assign]
        part[np.arange(count) % 4] for part in four
    )
    losses = [made.advance()["cross_entropy"] for _ in range(40)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def noisy_loss(path: Path, name: str, *, step: int = 2, **training):
    """Loss of one supervision step, all slots noisy; and the weights, with their gradients."""
    made = trainer(path, tiny("nqueens8", name, **training))
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    made.slots.taken[:] = step
    weights = {key: value.detach().requires_grad_() for key, value in made.model.weights().items()}
    slots = made.slots.view()
    if not made.training.has_posterior:
        *_, nearest = made._ahead(made.flat.compute.detach(), slots, slots.h, slots.l)
        slots = slots.take(nearest)
    replay = Replay(torch.randn(2, made.spec.length, 16), torch.ones(2), torch.ones(2), torch.zeros(2))
    loss = step_loss(
        weights, made.recipe.model, made.training, slots, replay, torch.tensor(1.0), made.token_weights,
        slots.h, slots.l,
    )  # fmt: skip
    loss.total.backward()
    return made, loss, weights


def learns(weights, start: str) -> bool:
    return any(
        bool(value.grad is not None and value.grad.any()) for key, value in weights.items() if key.startswith(start)
    )


def test_trm_has_neither_noise_nor_prior(tmp_path):
    made, loss, weights = noisy_loss(tmp_path, "trm")
    assert not [key for key in weights if key.startswith(("prior", "posterior", "target"))]
    assert loss.kl == 0
    assert not made.recipe.model.is_stochastic


def test_hrm_has_two_networks_and_the_gradient_of_their_last_calls(tmp_path):
    _, loss, weights = noisy_loss(tmp_path, "hrm")
    assert learns(weights, "low.")
    assert learns(weights, "high.")
    # The earlier transition has no gradient in any case; here the last one's first call is left out too.
    _, whole_loss, whole = noisy_loss(tmp_path, "hrm", gradient_calls=0)
    assert torch.equal(loss.h, whole_loss.h)
    low = [key for key in weights if key.startswith("low.")]
    assert any(not torch.allclose(weights[key].grad, whole[key].grad) for key in low)


@pytest.mark.parametrize("task", TASKS)
def test_the_looped_transformer_is_supervised_once_at_equal_calls(task):
    main, looped = load_recipe(task).model, load_recipe(f"{task}-looped").model
    assert looped.depth * looped.transitions == 1
    calls = [model.depth * model.transitions * (model.low_level_updates + 1) for model in (main, looped)]
    assert calls[0] == calls[1]


def test_every_slot_of_the_looped_transformer_is_refilled_after_its_one_step(tmp_path):
    made = trainer(tmp_path, tiny("nqueens8", "looped"))
    for _ in range(2):
        made.advance()
        assert (made.slots.taken == 1).all()
        assert (made.slots.left == 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_direct_prediction_uses_each_weight_once(task):
    model = load_recipe(f"{task}-direct").model
    assert (model.depth, model.transitions, model.low_level_updates, model.is_core_shared) == (1, 1, 1, False)


def test_eqr_starts_anywhere_and_meets_noise_as_in_sampling(tmp_path):
    made = trainer(tmp_path, tiny("nqueens8", "eqr"))
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    h = made.slots.h
    assert not torch.equal(h[0], h[1])
    assert float(h.std()) == pytest.approx(1, abs=0.05)
    slots = made.slots.view()
    key = slots.key(made.training.seed)
    h0, l0 = made.model.random_state(key)
    assert torch.equal(h0, slots.h)
    sampled = made.model.step(h0, l0, made.model.embed(slots.puzzles), key, injection=made.rollouts.injection)
    replay = Replay(torch.randn(2, made.spec.length, 16), torch.ones(2), torch.ones(2), torch.zeros(2))
    trained = step_loss(
        made.model.weights(), made.recipe.model, made.training, slots, replay, torch.tensor(1.0),
        made.token_weights, slots.h, slots.l,
    )  # fmt: skip
    assert torch.allclose(trained.h, sampled.h, atol=1e-5)
    calm = replace(made.recipe.model, path_noise=0.0)
    assert not torch.allclose(
        step_loss(
            made.model.weights(), calm, made.training, slots, replay, torch.tensor(1.0),
            made.token_weights, slots.h, slots.l,
        ).h,
        trained.h, atol=1e-5,
    )  # fmt: skip


def test_the_literal_order_decodes_the_noisy_state_and_charges_the_first_step(tmp_path):
    made, loss, weights = noisy_loss(tmp_path, "literal", step=0)
    assert (made.spec.noise_order, made.spec.transitions, made.spec.noise_free_steps) == ("after", 3, 0)
    assert float(loss.kl_first) > 0
    assert learns(weights, "posterior")


def test_a_constant_beta_stays(tmp_path):
    for task, weight in (("nqueens8", 0.07), ("sudoku6", 0.1)):
        assert load_recipe(f"{task}-constant-beta").training.kl_beta == ((0.0, weight),)


def test_as_published_is_the_literal_order_with_the_constant_beta():
    published, literal, constant = (
        load_recipe(f"nqueens8-{name}") for name in ("published", "literal", "constant-beta")
    )
    assert published.model == literal.model
    assert published.training == replace(literal.training, kl_beta=constant.training.kl_beta)


def test_stochastic_only_keeps_the_mean_at_zero(tmp_path):
    """Half of the last layer of prior and posterior makes the mean: it gets no gradient, the deviation's half does."""
    _, loss, weights = noisy_loss(tmp_path, "stochastic-only")
    for name in ("prior.down", "posterior.down"):
        mean, deviation = weights[name].grad.chunk(2)
        assert not mean.any(), name
        assert deviation.any(), name
    assert float(loss.kl) > 0


def test_mean_only_moves_all_trajectories_alike(tmp_path):
    made, _, weights = noisy_loss(tmp_path, "mean-only")
    assert weights["prior.down"].grad.chunk(2)[0].any()
    assert not made.recipe.model.is_stochastic
    puzzle = torch.from_numpy(made.slots.puzzles[:1].repeat(2, 0))
    h, l = made.model.initial_state(2)
    same = torch.zeros(2, dtype=torch.int64)
    step = made.model.step(h, l, made.model.embed(puzzle), NoiseKey(0, same, torch.arange(2), same + 3))
    assert torch.equal(step.h[0], step.h[1])


def test_best_of_many_follows_the_prior_and_pays_the_nearest(tmp_path):
    made, loss, weights = noisy_loss(tmp_path, "best-of-many")
    assert not learns(weights, "posterior")
    assert not learns(weights, "target_embedding")
    assert learns(weights, "prior")
    assert loss.kl == 0
    slots = made.slots.view()
    assert len(slots.h) == 4 * made.training.batch
    assert torch.equal(slots.puzzles[0::4], slots.puzzles[3::4])
    assert len(slots.trajectory.unique()) == len(slots.trajectory)
    h, _, nearest = made._ahead(made.flat.compute.detach(), slots, slots.h, slots.l)
    assert (nearest // 4).tolist() == list(range(made.training.batch))
    entropy = torch.nn.functional.cross_entropy(
        made.model.decode(h).transpose(1, 2), slots.targets, weight=made.token_weights, reduction="none"
    ).mean(1)
    assert torch.equal(entropy.view(-1, 4).argmin(1), nearest % 4)


def test_best_of_many_carries_every_trajectory_and_keeps_the_groups(tmp_path):
    made = trainer(tmp_path, tiny("nqueens8", "best-of-many"))
    for _ in range(12):
        made.advance()
        groups = made.slots.taken.reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
    h = made.slots.h.view(-1, 4, *made.slots.h.shape[1:])
    late = torch.from_numpy(made.slots.taken.reshape(-1, 4)[:, 0] > 2)
    assert late.any()
    assert not torch.isclose(h[late][:, 0], h[late][:, 1]).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = 'nqueens8'\n[model]\npath_noise = 0.1", "guidance must be none with path noise"),
        ("base = 'nqueens8-trm'\n[training]\nbest_of = 4", "best_of must be 1 without learned noise"),
        ("base = 'nqueens8'\n[training]\nbest_of = 4\nprior_share = 0.5", "prior_share must be 0 with best_of 4"),
        ("base = 'nqueens8'\n[training]\nbest_of = 0", "best_of must be at least 1, got 0"),
        ("base = 'nqueens8'\n[training]\ngradient_calls = -1", "gradient_calls must be at least 0, got -1"),
        ("base = 'chess8'", "base must be a TOML file or one of"),
        ("base = 'bad.toml'", "base must not lead back to itself"),
        ("task = 'nqueens8'\ntraining = 3", "training must be a table, got 3"),
        ("base = 'colouring8'\n[model]\nis_conditional = false", "answers on the puzzle's own grid"),
    ],
)
def test_bad_variants_are_one_line(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        train(load_recipe(str(path), steps=1), tmp_path / "out", is_compiled=False)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_base_lends_what_its_recipe_does_not_say(tmp_path):
    (tmp_path / "mine.toml").write_text("base = 'nqueens8'\n[model]\ndim = 64\n[training]\nsteps = 7\n")
    (tmp_path / "further.toml").write_text("base = 'mine.toml'\n[training]\nminutes = 2\n")
    mine, further = load_recipe(str(tmp_path / "mine.toml")), load_recipe(str(tmp_path / "further.toml"))
    assert (mine.model.dim, mine.model.head_hidden, mine.training.steps, mine.training.minutes) == (64, 64, 7, None)
    assert (further.model, further.training.steps, further.training.minutes) == (mine.model, None, 2)


def test_every_published_recipe_says_what_it_is_and_ends():
    for name in recipe_names():
        loaded = load_recipe(name)
        assert loaded.description, name
        assert loaded.training.steps, name


def test_a_recipe_of_a_file_is_refused_without_one(tmp_path):
    with pytest.raises(RecipeError, match=r"sudoku9 must be given --puzzles FILE \(made by: python scripts/make_"):
        train(load_recipe("sudoku9", steps=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    missing = str(tmp_path / "nowhere.csv")
    assert main(("train", "sudoku9", "--out", str(tmp_path / "out"), "--puzzles", missing, "--quiet")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"gram: {missing}: no such file"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["nqueens5", "colouring5"])
def test_the_leak_is_diagnosed_in_words(tmp_path, task):
    """What the command prints at the end, and its word in every line of the log."""
    task = get_task(task)
    shape = {
        "task": task.name, "vocabulary": task.vocabulary, "tokens": task.tokens, "output_start": task.output_start,
        "output_tokens": task.output_tokens, "has_empty_condition": False,
    }  # fmt: skip
    made = tiny("sudoku6", "stochastic-only", steps=10, empty_probability=0.0, token_weights=())
    made = replace(made, task=task, model=replace(made.model, guidance="full", **shape))
    card = train(made, tmp_path, is_compiled=False, dtype=torch.float32)
    figure, words = card["leak_diagnosis"].split(" nats, ")
    word = words.split(":")[0]
    assert figure.startswith("KL per token at the first noisy step ")
    assert word in ("leaking", "failing", "collapsed")
    assert word == diagnose(Signs(kl_first=float(figure.split()[-1]), rollout_right=0.0, fraction=1.0))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["diagnosis"] in ("leaking", "healthy", "failing", "collapsed", "undefined") for line in logged)
