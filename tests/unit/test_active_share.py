"""AbsTopK on hidden units: what stays, gradients, every mixer, training, circuits, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.config import config_to_json
from gram.evals.circuits.masked import MaskedModel
from gram.kernels import dispatch, reference
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.recipe import Recipe
from gram.training.run import train
from tests.models import tiny_config, tiny_model


@given(seed=st.integers(0, 999), units=st.integers(1, 40), share=st.floats(0.01, 1), axis=st.sampled_from([1, 2]))
def test_the_largest_units_stay_as_they_are_and_the_others_are_zero(seed, units, share, axis):
    x = torch.randn(2, *((units, 3) if axis == 1 else (3, units)), generator=torch.Generator().manual_seed(seed))
    kept = reference.keep_largest(x, share, axis)
    count = (kept != 0).sum(axis)
    assert (count == count.flatten()[0]).all()
    assert max(1, share * units) <= count.flatten()[0] < share * units + 1
    assert torch.equal(kept[kept != 0], x[kept != 0])
    least = kept.abs().masked_fill(kept == 0, torch.inf).amin(axis, keepdim=True)
    assert (x[kept == 0].abs() <= least.expand_as(x)[kept == 0]).all()


def test_all_units_are_the_same_tensor():
    x = torch.randn(2, 3, 4)
    assert reference.keep_largest(x, 1.0) is x


@pytest.mark.parametrize("overrides", [{}, {"mixer": "attention"}, {"mixer": "relations", "relations": ("row", "all")}])
def test_a_core_writes_with_few_units(overrides):
    """The channel SwiGLU's output is made of the kept units alone."""
    model = tiny_model(active_share=0.25, **overrides)
    weights, spec = model.weights(), model.spec
    x = torch.randn(2, spec.length, spec.dim)
    gate, up = (x @ weights["low.0.channel.gate_up"].T).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * up
    order = hidden.abs().argsort(-1, descending=True)[..., : -(-hidden.shape[-1] // 4)]
    kept = torch.zeros_like(hidden).scatter(-1, order, hidden.gather(-1, order)) @ weights["low.0.channel.down"].T
    parts = weights["low.0.channel.gate_up"], weights["low.0.channel.down"]
    torch.testing.assert_close(reference.swiglu(x, *parts, 0.25), kept)
    dense = tiny_model(**overrides)
    names = NoiseKey(0, *(torch.arange(2) for _ in range(3)))
    state = torch.randn(2, spec.length, spec.dim)
    few = reference.supervision_step(weights, spec, state, state, state, names)
    all_ = reference.supervision_step(weights, dense.spec, state, state, state, names)
    assert (few.h - all_.h).abs().max() > 1e-3


def test_only_kept_units_get_a_gradient():
    x = torch.randn(1, 2, 8, requires_grad=True)
    reference.keep_largest(x, 0.25).sum().backward()
    assert ((x.grad != 0).sum(-1) == 2).all()


def test_it_trains_and_is_kept_in_the_checkpoint(tmp_path):
    training = {"steps": 4, "batch": 8, "rollout_slots": 4, "evaluate_puzzles": 4, "evaluate_width": 2}
    model = tiny_config(active_share=0.25)
    train(Recipe("tiny", "", get_task("nqueens4"), model, TrainConfig(**training)), tmp_path, is_compiled=False)
    made = checkpoint.load(tmp_path, dtype=torch.float32)
    assert made.config.active_share == 0.25
    assert "active_share" not in config_to_json(tiny_config())
    start = Model(model, seed=0).weights()["low.0.channel.down"]
    assert not torch.equal(made.weights()["low.0.channel.down"], start.to(torch.bfloat16).float())


def test_circuits_are_found_in_the_same_model():
    model = tiny_model(active_share=0.25, guidance="none")
    puzzles = torch.randint(0, model.config.vocabulary, (3, model.config.tokens))
    masked = MaskedModel(model, depth=1)
    embedded = model.embed(puzzles)
    h, l = model.initial_state(3)
    key = NoiseKey(0, *(torch.arange(3) for _ in range(3)))
    stepped = reference.supervision_step(model.weights(), model.spec, h, l, embedded, key)
    torch.testing.assert_close(masked.logits(puzzles), model.decode(stepped.h), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_one_line(share):
    with pytest.raises(ValueError, match=r"^active_share must be above 0 and at most 1, got"):
        tiny_config(active_share=share)


def test_kernels_of_a_gpu_refuse_it():
    spec = tiny_model(active_share=0.5).spec
    for kernel in ("fused", "blocks", "gemm"):
        with pytest.raises(ValueError, match=r"active_share below 1"):
            dispatch.choose(torch.device("cuda"), spec, torch.float32, kernel)
