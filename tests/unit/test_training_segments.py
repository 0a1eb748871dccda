"""Gradients through several supervision steps: against an unrolled loop by hand, its KL, its memory, its refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.reference import add_noise, transition
from gram.model import embed, embed_target
from gram.training import segment
from gram.training.cost import cost_of
from gram.training.guidance import balanced_kl, kl, posterior, prior
from gram.training.objective import Replay, head_loss
from gram.training.recipe import RecipeError, load_recipe
from gram.training.run import train
from gram.training.segment import check_memory, learn_segment, saved_bytes
from gram.training.trainer import Trainer
from tests.models import tiny_config
from tests.unit.test_training import recipe, trainer

CPU = torch.device("cpu")
FORMS = {
    "no noise": {"guidance": "none"},
    "noise first": {"noise_order": "before"},
    "noise last, several transitions": {"noise_order": "after", "transitions": 2, "noise_free_steps": 0},
}


def filled(path, **settings) -> Trainer:
    """A run whose slots have begun, at steps of their own."""
    made = trainer(path, **settings)
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    made.slots.taken[:] = np.arange(len(made.slots.taken)) % 3
    return made


def nothing(made: Trainer) -> Replay:
    """No rollouts: heads learn nothing."""
    return Replay(torch.zeros(2, made.spec.length, made.recipe.model.dim), *torch.zeros(3, 2))


def learned(made: Trainer, beta: float = 2.0):
    """Loss, figures and gradient of one segment."""
    loss, earlier = made._learn_segment(made.lanes[0], made.slots.view(), nothing(made), torch.tensor(beta))
    return loss, earlier, made.flat.master.grad.clone()


def unrolled(made: Trainer, beta: float):
    """The segment as a plain loop over steps and transitions, one graph: its loss, KLs and end."""
    config, training, slots = made.recipe.model, made.training, made.slots.view()
    weights = made.flat.views(made.flat.master)
    key = NoiseKey(training.seed, slots.puzzle_hash, slots.trajectory, slots.step)
    h, l, errors, charges, kls = slots.h, slots.l, [], [], []
    for number in range(training.gradient_steps):
        step = slots.step + number
        noisy = step >= config.noise_free_steps
        charged = torch.zeros(len(h), config.length)
        for index in range(config.transitions):
            seen = {}

            def guide(u, number=step * config.transitions + index, noisy=noisy, seen=seen):
                e_y = embed_target(weights, config, slots.targets)
                q = posterior(weights, config, u, e_y)
                at = u.detach()
                seen["q"], seen["p"] = posterior(weights, config, at, e_y), prior(weights, config, at)
                normal = noise((config.length, config.dim), key, Site.POSTERIOR, number)
                return add_noise(u, *q, normal, noisy, config, 1.0)

            e_x = embed(weights, config, slots.puzzles)
            h, l = transition(weights, config, h, l, e_x, None if config.guidance == "none" else guide)
            if seen:
                charged = charged + balanced_kl(seen["q"], seen["p"], training.kl_balance)
                kls.append((kl(seen["q"], seen["p"]).mean(1) * noisy).detach())
        logits = h[:, config.answer_start :][:, : config.output_tokens] @ weights["decoder.weight"].T
        errors.append(cross_entropy(logits.flatten(0, 1), slots.targets.flatten()))
        charges.append((charged.mean(1) * noisy).mean())
    answered = [error + beta * sum(charges[: number + 1]) for number, error in enumerate(errors)]
    return sum(answered) / len(answered), kls, h, l


@pytest.mark.parametrize("rows", [8, 4, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_an_unrolled_loop(tmp_path, form, rows):
    """Backward passes of all, half and an uneven part of the slots."""
    made = filled(tmp_path, model={"depth": 3, **FORMS[form]}, gradient_steps=3, rows_at_once=rows)
    loss, earlier, gradient = learned(made)
    made.flat.master.grad = None
    expected, kls, h, l = unrolled(made, 2.0)
    expected.backward()
    assert float(loss.total) == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, made.flat.master.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(loss.h, h, atol=1e-5)
    assert torch.allclose(loss.l, l, atol=1e-5)
    assert not loss.h.requires_grad
    if kls:
        turns = made.spec.transitions
        noisy = sum(int((made.slots.taken + number >= made.spec.noise_free_steps).sum()) for number in range(3))
        told = [*earlier.kl, loss.kl]
        for index in range(turns):
            assert float(told[index]) == pytest.approx(float(sum(each.sum() for each in kls[index::turns])) / noisy)


def test_earlier_steps_learn_from_later_losses(tmp_path):
    """Cut between its steps, a segment has another gradient."""
    made = filled(tmp_path, model={"noise_free_steps": 0}, gradient_steps=3)
    whole = learned(made, beta=0.0)[2]
    step = made._segment_step

    def cut(master, slots, h, l, config):
        return step(master, slots, h.detach(), l.detach(), config)

    made._segment_step = cut
    assert not torch.allclose(learned(made, beta=0.0)[2], whole, rtol=1e-2)


def test_a_segment_of_one_step_is_the_loss_of_a_step(tmp_path):
    made = filled(tmp_path)
    _, _, gradient = learned(made)
    made.flat.compute.grad = None
    slots = made.slots.view()
    loss = made._loss(made.flat.compute, slots, nothing(made), torch.tensor(2.0), slots.h, slots.l)
    loss.total.backward()
    assert torch.allclose(gradient, made.flat.compute.grad, rtol=1e-4, atol=1e-7)


def test_heads_learn_beside_a_segment_and_slots_take_all_its_steps(tmp_path):
    made = trainer(tmp_path, gradient_steps=3)
    for _ in range(4):
        figures = made.advance()
        assert np.isfinite([figures[name] for name in ("cross_entropy", "gradient_norm", "heads", "kl")]).all()
        assert (made.slots.taken == 3).all()
        assert (made.slots.left == 0).all()
    assert made.slots.started == 8 * 4
    replay = made.rollouts.draw(np.random.default_rng(0), 8)
    assert replay.share.any()
    made.flat.master.grad = None
    loss, *_ = made._learn_segment(made.lanes[0], made.slots.view(), replay, torch.tensor(1.0))
    expected = head_loss(made.flat.views(made.flat.master.detach()), made.recipe.model, replay)
    assert float(loss.heads) == pytest.approx(float(expected))
    assert made.flat.views(made.flat.master.grad)["halt.weight"].any()


def test_sequences_are_whole_segments_and_spread_over_the_depth(tmp_path):
    made = trainer(tmp_path, model={"depth": 6}, gradient_steps=2)
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    assert made.slots.left.tolist() == [2, 4, 6, 2, 4, 6, 2, 4]


def test_prior_led_slots_and_any_solution_learn_by_segments(tmp_path):
    for name, settings in (
        ("prior", {"prior_share": 0.5}),
        ("set", {"target": "set", "model": {"guidance": "none"}}),
        ("unconditional", {"model": {"task": "sudoku4", "vocabulary": 6, "is_conditional": False}}),
    ):
        figures = trainer(tmp_path / name, gradient_steps=3, **settings).advance()
        assert np.isfinite(figures["gradient_norm"])
        assert np.isnan(figures["kl_first"]) == (name != "prior")


@pytest.mark.parametrize("model", [{}, {"transitions": 2, "guidance": "none"}, {"mixer": "attention", "dim": 32}])
def test_counted_memory_is_what_a_backward_pass_keeps(tmp_path, model):
    """All that autograd holds, weights and inputs apart, against the count on shapes."""
    made = filled(tmp_path, model=model, gradient_steps=3)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    master, config = made.flat.master, made.recipe.model
    weights = made.flat.views(master)
    slots, steps = made.slots.view(), []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        h, l = slots.h, slots.l
        for number in range(3):
            steps.append(
                segment.segment_step(
                    weights, config, made.training, slots._replace(step=slots.step + number), made.token_weights, h, l
                )
            )
            h, l = steps[-1].h, steps[-1].l
    own = {master.untyped_storage().data_ptr()}
    found = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    counted = 3 * len(slots.h) * saved_bytes(config, made.training, torch.float32)
    assert counted == pytest.approx(found, rel=0.1)


def test_a_segment_beyond_memory_is_refused_in_one_line_and_writes_nothing(tmp_path, monkeypatch):
    made = recipe(gradient_steps=3)
    check_memory(made.model, made.training, device=CPU, dtype=torch.float32)
    monkeypatch.setattr(segment, "device_bytes", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"memory of cpu, got gradient_steps 3 for 8 rows_at_once: at least") as error:
        train(made, tmp_path / "out", is_compiled=False, dtype=torch.float32)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    check_memory(made.model, replace(made.training, gradient_steps=1), device=CPU, dtype=torch.float32)


def test_the_cost_of_a_segment_is_that_of_its_steps():
    """By hand: one block, K = 1, two transitions, no noise: each of both is learned, three times over."""
    config = tiny_config(guidance="none", transitions=2, low_level_updates=1, blocks=1)
    made = recipe()
    base, longer = (
        cost_of(replace(made, model=config, training=replace(made.training, gradient_steps=steps))) for steps in (1, 3)
    )
    call = 2 * 16 * 3 * 8 * 16 + 2 * 16 * 3 * 16 * 16
    decoding = 2 * 16 * 3 * 16
    rollouts = 4 * (2 * 2 * call + decoding)
    assert base.step_flops == 8 * (3 * (2 * call + decoding) + 2 * call) + rollouts
    assert longer.step_flops == 3 * 8 * 3 * (2 * 2 * call + decoding) + rollouts


def test_registers_of_identities_learn_through_every_backward_pass(tmp_path):
    """A leaf of the graph is shared by all parts of a batch."""
    made = filled(tmp_path, gradient_steps=3, rows_at_once=4, model={"registers": 2, "guidance": "none"})
    rows = torch.randn(8, 16, requires_grad=True)
    scale = torch.ones(2, 16)
    slots = made.slots.view()

    def gradient(rows_at_once):
        rows.grad = None
        registers = torch.tanh(rows)[:, None] * scale
        training = replace(made.training, rows_at_once=rows_at_once)

        def step(part, h, l):
            return made._segment_step(made.flat.master, part, h, l, made.recipe.model)

        made.flat.master.grad = None
        learn_segment(step, made.recipe.model, training, slots._replace(registers=registers), torch.tensor(1.0))
        return rows.grad.clone()

    whole = gradient(8)
    assert whole.abs().sum() > 0
    assert torch.allclose(gradient(4), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = 'nqueens8'\n[training]\ngradient_steps = 0", "gradient_steps must be at least 1, got 0"),
        ("base = 'nqueens8'\n[training]\ngradient_steps = 3", "gradient_steps must divide the model's depth 8, got 3"),
        ("base = 'nqueens8'\n[training]\ngradient_steps = 9999999", "gradient_steps must be at most 65,536"),
        ("base = 'nqueens8'\n[training]\ngradient_steps = 1.5", "gradient_steps must be a whole number, got 1.5"),
        (
            "base = 'nqueens8-hrm'\n[training]\ngradient_steps = 2",
            "gradient_calls must be 0 with gradient_steps above 1, got 2",
        ),
        (
            "base = 'nqueens8-best-of-many'\n[training]\ngradient_steps = 2",
            "best_of must be 1 with gradient_steps above 1, got 4",
        ),
        ("base = 'queens'\n[training]\ngradient_steps = 2", "gradient_steps must be 1 with a lattice, got 2"),
        ("base = 'recolour'\n[training]\ngradient_steps = 2", "must be 1 with a memory of demonstrations, got 2"),
    ],
)
def test_bad_segments_are_one_line(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_native_core_says_that_it_cannot():
    from gram.kernels.native import path

    if path.has_avx512_bfloat16():
        from tests.unit.test_native_core import made

        weights, spec, _ = made()
        assert "several steps" in str(path.unsupported_reason(weights, spec, gradient_steps=2))
