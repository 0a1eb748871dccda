"""The mathematics of a supervision step, against plain fp64 loops and against what the method says."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from gram.kernels import reference, relations
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.spec import Injection
from gram.model import Model
from tests.models import tiny_config, tiny_model

ROWS = torch.arange(5)
KEY = NoiseKey(1, *torch.tensor([[8], [2], [4]]))
"""Of puzzle 8, trajectory 2, step 4."""


def run(model: Model, *, steps=2, seed=3, temperature=1.0, rows=ROWS, first_step=0):
    puzzles = torch.randint(1, 3, (5, 16), generator=torch.Generator().manual_seed(0))[rows % 5]
    e_x = model.embed(puzzles)
    h, l = model.initial_state(len(rows))
    for step in range(first_step, first_step + steps):
        out = model.step(
            h,
            l,
            e_x,
            NoiseKey(seed, rows * 0 + 9, rows, torch.full_like(rows, step)),
            injection=Injection(temperature=temperature),
        )
        h, l = out.h, out.l
    return out


def test_rmsnorm_by_hand():
    x = torch.tensor([[3.0, 4.0]])
    assert torch.allclose(reference.rmsnorm(x, 0.0), x / math.sqrt(12.5))


def test_token_mixer_is_a_swiglu_over_tokens():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, generator=generator)
    gate_up, down = torch.randn(10, 6, generator=generator), torch.randn(6, 5, generator=generator)
    expected = reference.swiglu(x.transpose(1, 2), gate_up, down).transpose(1, 2)
    assert torch.allclose(reference.mix_tokens(x, gate_up, down), expected, atol=1e-5)


def test_attention_against_loops():
    spec = tiny_model(mixer="attention", positions="rotary").spec
    generator = torch.Generator().manual_seed(0)
    dim, width = spec.dim, spec.dim // spec.heads
    x = torch.randn(1, spec.length, dim, generator=generator)
    qkv, out = torch.randn(3 * dim, dim, generator=generator), torch.randn(dim, dim, generator=generator)
    actual = reference.attend(x, qkv, out, spec)[0]

    q, k, v = (x[0] @ qkv.T).split(dim, dim=-1)

    def rotated(vector: torch.Tensor, position: int) -> torch.Tensor:
        turned = vector.clone()
        for i in range(width // 2):
            angle = position / spec.rope_theta ** (2 * i / width)
            a, b = vector[i], vector[i + width // 2]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    mixed = torch.zeros(spec.length, dim)
    for head in range(spec.heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(spec.length):
            scores = torch.stack(
                [rotated(q[i, part], i) @ rotated(k[j, part], j) / math.sqrt(width) for j in range(spec.length)]
            )
            mixed[i, part] = torch.softmax(scores, 0) @ v[:, part]
    assert torch.allclose(actual, mixed @ out.T, atol=1e-3)


def by_hand(model: Model, order: str) -> torch.Tensor:
    """One noisy transition of trajectory 0, written out from the method's equations."""
    weights, spec = model.weights(), model.spec
    e_x = model.embed(torch.ones(1, 16, dtype=torch.long))
    h, l = model.initial_state(1)
    normal = noise((16, 16), KEY, Site.PRIOR, KEY.step)

    def noisy(u):
        mean, log_sigma = reference.gaussian(weights, "prior", u, spec)
        return u + mean + log_sigma.exp() * normal

    high = "low" if spec.is_core_shared else "high"
    if order == "before":
        h = noisy(h)
    for _ in range(spec.low_level_updates):
        l = reference.core(weights, "low", l + h + e_x, spec)
    u = reference.core(weights, high, h + l, spec)
    return noisy(u) if order == "after" else u


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("is_core_shared", [True, False])
def test_transition_follows_the_equations(order, is_core_shared):
    model = tiny_model(noise_order=order, is_core_shared=is_core_shared)
    out = model.step(*model.initial_state(1), model.embed(torch.ones(1, 16, dtype=torch.long)), KEY)
    assert torch.allclose(out.h, by_hand(model, order), atol=1e-5)


def test_first_step_is_noise_free_and_later_ones_are_not():
    model = tiny_model(noise_free_steps=1)
    first, second = run(model, steps=1), run(model, steps=2)
    assert torch.equal(run(model, steps=1, seed=4).h, first.h)
    assert not torch.equal(run(model, steps=2, seed=4).h, second.h)


@pytest.mark.parametrize("order", ["before", "after"])
def test_deterministic_model_ignores_seed_and_temperature(order):
    model = tiny_model(guidance="none", noise_order=order)
    assert torch.equal(run(model, seed=1, temperature=2.0).h, run(model, seed=2, temperature=0.0).h)


def test_temperature_zero_follows_the_mean():
    model = tiny_model()
    only_mean = Model(replace(model.config, guidance="mean")).requires_grad_(False)
    only_mean.load_state_dict(model.state_dict())
    assert torch.allclose(run(model, temperature=0.0).h, run(only_mean).h)
    assert not torch.equal(run(model).h, run(only_mean).h)


def test_log_sigma_is_bounded():
    model = tiny_model(log_sigma_center=-1.0, log_sigma_range=1.25)
    weights = {name: value * 1e4 if name.startswith("prior") else value for name, value in model.weights().items()}
    _, log_sigma = reference.gaussian(weights, "prior", torch.randn(4, 16, 16), model.spec)
    assert log_sigma.min() >= -2.2501
    assert log_sigma.max() <= 0.2501
    assert log_sigma.max() - log_sigma.min() > 2


def test_zero_noise_rows_stay_bit_for_bit():
    """With and without the noise's arithmetic, a noise-free bf16 state is the same."""
    model = tiny_model().to(torch.bfloat16)
    u = torch.randn(2, 16, 16).to(torch.bfloat16)
    mean, log_sigma = reference.gaussian(model.weights(), "prior", u, model.spec)
    out = reference.add_noise(u, mean, log_sigma, torch.ones(2, 16, 16), torch.tensor([False, True]), model.spec, 1.0)
    assert torch.equal(out[0], u[0])
    assert not torch.equal(out[1], u[1])


def test_rows_of_different_steps_share_a_launch():
    """Each row carries its own step counter: a mixed launch equals the rows alone."""
    model = tiny_model()
    e_x = model.embed(torch.ones(3, 16, dtype=torch.long))
    h, l = model.initial_state(3)
    key = NoiseKey(0, *torch.tensor([[5, 6, 5], [4, 1, 4], [0, 3, 7]]))
    mixed = model.step(h, l, e_x, key)
    for row in range(3):
        alone = model.step(h[:1], l[:1], e_x[:1], key.at(slice(row, row + 1)))
        assert torch.allclose(mixed.h[row], alone.h[0], atol=1e-5)


@pytest.mark.parametrize("readout", ["mean", "register"])
@pytest.mark.parametrize("head_hidden", [0, 4])
def test_heads_read_what_they_should(readout, head_hidden):
    model = tiny_model(registers=2, head_readout=readout, head_hidden=head_hidden)
    h = torch.randn(3, 18, 16)
    value = reference.read_head(model.weights(), "halt", h, model.spec)
    changed = h.clone()
    changed[:, -1] += 1
    is_read = not torch.allclose(reference.read_head(model.weights(), "halt", changed, model.spec), value)
    assert is_read == (readout == "mean")


def test_decoder_reads_the_output_positions_only():
    model = tiny_model(registers=2, tokens=16, output_start=5, output_tokens=4)
    h = torch.randn(1, 18, 16)
    logits = model.decode(h)
    assert logits.shape == (1, 4, 3)
    changed = h.clone()
    changed[:, :7] += 1
    changed[:, 11:] += 1
    assert torch.equal(model.decode(changed), logits)


def test_registers_positions_and_scale_of_the_embedding():
    model = tiny_model(registers=2)
    puzzle = torch.full((1, 16), 2)
    e_x = model.embed(puzzle)
    assert e_x.shape == (1, 18, 16)
    weights = model.weights()
    expected = (weights["embedding.weight"][2] + weights["positions"][2]) * 4
    assert torch.allclose(e_x[0, 2], expected)
    assert torch.allclose(e_x[0, 0], (weights["registers"][0] + weights["positions"][0]) * 4)


def test_empty_condition_hides_the_puzzle_and_must_be_trained():
    model = tiny_model(has_empty_condition=True)
    assert model.embed_empty(2).shape == (2, 16, 16)
    assert not torch.equal(model.embed_empty(1), model.embed(torch.zeros(1, 16, dtype=torch.long)))
    with pytest.raises(ValueError, match="empty condition"):
        tiny_model().embed_empty(1)


def test_initial_state_is_stored_and_shared():
    model = tiny_model(seed=4)
    h, l = model.initial_state(3)
    assert torch.equal(h[0], h[2])
    assert torch.equal(h[0, 0], model.z0_h)
    assert torch.equal(l[1, 5], model.z0_l)
    assert "z0_h" in model.state_dict()


def test_paper_preset_has_about_ten_million_parameters():
    from gram.presets import model_config

    shape = {"vocabulary": 11, "tokens": 81, "output_tokens": 81}
    for preset in ("paper", "paper-sudoku"):
        count = sum(parameter.numel() for parameter in Model(model_config(preset, **shape)).parameters())
        assert 6e6 < count < 11e6
    assert tiny_config().is_stochastic


def test_sampling_first_does_not_spoil_gradients_later():
    """The rotary tables are kept between calls; made under inference they would break training."""
    model = tiny_model(mixer="attention", positions="rotary", tokens=13, output_tokens=13)
    puzzles = torch.ones(2, 13, dtype=torch.long)
    rows = torch.arange(2)
    key = NoiseKey(0, rows, rows, rows)
    with torch.inference_mode():
        model.step(*model.initial_state(2), model.embed(puzzles), key)
    model.requires_grad_(True)
    model.step(*model.initial_state(2), model.embed(puzzles), key).h.sum().backward()
    assert model.low[0].mixer.qkv.grad.abs().sum() > 0


def test_positions_start_alike_where_features_are_shared():
    model = tiny_model(registers=2)
    features = torch.zeros(16, 3)
    features[0, 0] = features[1, 0] = features[2, 1] = 1
    features[3, :2] = 1
    model.start_positions(features)
    positions = model.positions[2:]
    assert torch.equal(positions[0], positions[1])
    assert torch.allclose(positions[3], (positions[0] + positions[2]) / 2**0.5, atol=1e-6)
    with pytest.raises(ValueError, match="learned positions"):
        tiny_model(positions="none").start_positions(features)


@pytest.mark.parametrize(
    "looked_up",
    [
        lambda: reference.rotary_tables(4, 2, 100.0, torch.device("cpu"))[0],
        lambda: relations.tables(("row", "all"), 4, torch.device("cpu")),
    ],
)
def test_tables_are_kept_but_not_looked_up_by_the_compiler(looked_up):
    """Its warning of a cache that it looks through would stand at the start of every training."""
    assert looked_up() is looked_up()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(looked_up, backend="eager", fullgraph=True)()
    assert torch.equal(compiled, looked_up())
