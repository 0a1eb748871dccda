"""The native noise of training against its definition: states, KL and every gradient; its normals against Philox."""

import pytest
import torch

from gram.kernels import reference
from gram.kernels.native import guide, path
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.spec import Injection, Spec
from gram.training import guidance
from gram.training.recipe import load_recipe
from gram.training.trainer import Trainer

SHAPES = [
    {},
    {"tokens": 7, "answer": 3, "rows": 9, "dim": 32, "hidden": 32},
    {"tokens": 81, "answer": 81, "rows": 5, "dim": 160, "hidden": 128},
]
BALANCE = 0.8


@pytest.fixture(autouse=True)
def _needs_bf16():
    if not path.has_avx512_bfloat16():
        pytest.skip("needs a processor with AVX-512 products of bfloat16")


def made(tokens=18, answer=18, rows=6, dim=64, hidden=64, vocabulary=5):
    """Weights, spec, states, targets, which rows follow the prior, the noise's key, and gradients to come."""
    spec = Spec(
        tokens=tokens, output_start=tokens - answer, output_tokens=answer, dim=dim, guidance="full", noise_free_steps=1
    )
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(torch.bfloat16)

    weights = {
        "prior.gate_up": drawn(2 * hidden, dim),
        "prior.down": drawn(2 * dim, hidden),
        "posterior.gate_up": drawn(2 * hidden, 2 * dim),
        "posterior.down": drawn(2 * dim, hidden),
        "target_embedding.weight": drawn(vocabulary, dim),
    }
    u = torch.randn(rows, tokens, dim, generator=generator).to(torch.bfloat16)
    targets = torch.randint(vocabulary, (rows, answer), generator=generator)
    hashes = torch.randint(2**31, (rows,), generator=generator)
    key = NoiseKey(7 + (3 << 40), hashes, torch.arange(rows), torch.arange(rows) % 3)
    is_prior = torch.arange(rows) % 2 == 0
    pulls = torch.randn(rows, tokens, dim, generator=generator), torch.randn(rows, tokens, generator=generator)
    return weights, spec, u, targets, is_prior, key, pulls


def plain(weights, spec, u, targets, is_prior, key):
    """What `objective._transition` computes, and the KL of rows with noise alone."""
    noisy = key.step >= spec.noise_free_steps
    before = spec.answer_start
    after = spec.length - before - targets.shape[1]
    e_y = torch.nn.functional.pad(weights["target_embedding.weight"][targets] * spec.dim**0.5, (0, 0, before, after))
    p, q = guidance.prior(weights, spec, u), guidance.posterior(weights, spec, u, e_y)
    mean, log_sigma = (torch.where(is_prior[:, None, None], a, b) for a, b in zip(p, q, strict=True))
    normal = noise((spec.length, spec.dim), key, Site.POSTERIOR, key.step)
    divergence = guidance.balanced_kl(q, p, BALANCE) * noisy[:, None]
    return reference.add_noise(u, mean, log_sigma, normal, noisy, spec, 1.0), divergence


def native(weights, spec, u, targets, is_prior, key):
    noisy = key.step >= spec.noise_free_steps
    return guide.led(weights, spec, u, targets, noisy, is_prior, key, key.step, BALANCE)


def run(function, dtype, weights, spec, u, targets, is_prior, key, pulls):
    """State, KL and all gradients, by name."""
    weights = {name: weight.to(dtype).clone().requires_grad_() for name, weight in weights.items()}
    h, divergence = function(weights, spec, u.to(dtype), targets, is_prior, key)
    ((h * pulls[0]).sum() + (divergence * pulls[1]).sum()).backward()
    return {"h": h.detach(), "kl": divergence.detach(), **{name: weight.grad for name, weight in weights.items()}}


def error(found, true):
    return float((found.float() - true).norm() / true.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_native_noise_is_as_near_to_fp32_as_the_definition_in_bf16(shape):
    given = made(**shape)
    assert guide.unsupported_reason(*given[:2]) is None
    true = run(plain, torch.float32, *given)
    in_bf16 = run(plain, torch.bfloat16, *given)
    found = run(native, torch.bfloat16, *given)
    for name, value in true.items():
        # Rounded less often than the definition in bf16.
        assert error(found[name], value) < max(error(in_bf16[name], value), 2**-9), name


def test_rows_without_noise_stay_bit_for_bit_and_threads_change_no_state():
    weights, spec, u, targets, is_prior, key, _ = made(rows=11)
    with torch.no_grad():
        one = native(weights, spec, u, targets, is_prior, key)
        still = key.step < spec.noise_free_steps
        assert torch.equal(one[0][still], u[still])
        assert not torch.equal(one[0][~still], u[~still])
        assert not one[1][still].any()
        torch.set_num_threads(3)
        try:
            assert all(map(torch.equal, one, native(weights, spec, u, targets, is_prior, key)))
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("dim", [32, 160])
def test_its_normals_are_those_of_the_reference(dim):
    """Of zero weights the prior is N(0, e^center), so that an empty state is noise alone, rounded to bf16."""
    weights, spec, u, _, _, key, _ = made(dim=dim, hidden=32, rows=7)
    weights = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    noisy = torch.ones(7, dtype=torch.bool)
    moved = guide.prior_led(weights, spec, torch.zeros_like(u), noisy, key, key.step * 5, 1.0)
    sigma = torch.tensor(spec.log_sigma_center).exp()
    expected = sigma * noise((spec.length, dim), key, Site.PRIOR, key.step * 5)
    torch.testing.assert_close(moved.float(), expected, rtol=2**-8, atol=1e-6)


def test_a_supervision_step_is_the_references():
    weights, spec, u, _, _, key, _ = made(rows=5)
    generator = torch.Generator().manual_seed(1)
    for block in range(spec.blocks):
        shapes = {
            "mixer.gate_up": (16, 18),
            "mixer.down": (18, 8),
            "channel.gate_up": (64, 64),
            "channel.down": (64, 32),
        }
        for name, shape in shapes.items():
            drawn = torch.randn(shape, generator=generator) * shape[1] ** -0.5
            weights[f"low.{block}.{name}"] = drawn.to(torch.bfloat16)
    for head in ("halt", "lprm"):
        weights[head + ".weight"] = torch.ones(1, 64, dtype=torch.bfloat16)
        weights[head + ".bias"] = torch.zeros(1, dtype=torch.bfloat16)
    l, e_x = u.flip(0), u.flip(1)
    wide = {name: weight.float() for name, weight in weights.items()}
    for injection in (Injection(), Injection(temperature=0.5), Injection(temperature=0.0)):
        true = reference.supervision_step(wide, spec, u.float(), l.float(), e_x.float(), key, injection=injection)
        in_bf16 = reference.supervision_step(weights, spec, u, l, e_x, key, injection=injection)
        with torch.no_grad():
            found = guide.supervision_step(weights, spec, u, l, e_x, key, injection=injection)
        for name in ("h", "l", "halt", "lprm"):
            value = getattr(true, name)
            bound = 1.5 * max(error(getattr(in_bf16, name), value), 2**-9)
            assert error(getattr(found, name), value) < bound, name


def test_it_says_what_it_cannot_do():
    weights, spec, u, targets, is_prior, key, _ = made()
    assert "before the core" in guide.unsupported_reason(weights, Spec(dim=64, noise_order="after"))
    assert "multiples of 32" in guide.unsupported_reason(*made(hidden=16)[:2])
    with pytest.raises(ValueError, match="must take no gradient"):
        native(weights, spec, u.requires_grad_(), targets, is_prior, key)


RECIPE = """task = "nqueens4"
description = "tiny"
[model]
dim = 32
hidden = 32
mixer_hidden = 8
guidance_hidden = 32
head_hidden = 8
depth = 3
low_level_updates = 1
transitions = 2
[training]
steps = 100
batch = 6
rollout_slots = 5
evaluate_puzzles = 2
prior_share = 0.5
"""


def test_training_takes_it_and_follows_the_definition(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)

    def losses():
        trainer = Trainer(load_recipe(file), tmp_path, device=torch.device("cpu"), dtype=torch.bfloat16)
        made = [trainer.advance() for _ in range(6)]
        return trainer._lead, [[each[name] for name in ("cross_entropy", "kl")] for each in made]

    lead, found = losses()
    assert lead is guide.led
    monkeypatch.setattr(guide, "unsupported_reason", lambda *_: "not wanted")
    lead, expected = losses()
    assert lead is None
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)


def test_compiled_around_it_gives_the_same():
    given = made()
    alone = run(native, torch.bfloat16, *given)
    around = run(torch.compile(native, backend="aot_eager"), torch.bfloat16, *given)
    for name, value in alone.items():
        assert torch.allclose(value, around[name], rtol=2**-7, atol=1e-3 * float(value.abs().max())), name
