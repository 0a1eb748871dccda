"""Patterns of attention: each against a mask made by hand, in loops; `full` stays what it was."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gram import checkpoint
from gram.config import config_to_json
from gram.evals.cost import step_macs
from gram.kernels import dispatch, patterns, reference
from gram.kernels.compiled import path as compiled
from gram.kernels.fused import pack
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Spec
from gram.model import Model
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.recipe import Recipe
from gram.training.run import train
from tests.models import tiny_config, tiny_model

BY_PLACE = [{"pattern": "window", "pattern_radius": 1}, {"pattern": "axial"}]
ALL = [*BY_PLACE, {"pattern": "block-topk", "pattern_block": 3, "pattern_kept": 2}]


def sees(spec: Spec, one: int, other: int) -> bool:
    """Whether a token attends to another by their places."""
    if min(one, other) < spec.registers:
        return True
    one, other = one - spec.registers, other - spec.registers
    side = math.isqrt(spec.tokens)
    if side * side != spec.tokens:
        return abs(one - other) <= spec.pattern_radius
    down, along = abs(one // side - other // side), abs(one % side - other % side)
    return max(down, along) <= spec.pattern_radius if spec.pattern == "window" else 0 in (down, along)


def drawn(spec: Spec, seed: int = 0, rows: int = 2) -> list[torch.Tensor]:
    """Queries, keys and values `[B, H, L, W]`."""
    generator = torch.Generator().manual_seed(seed)
    shape = rows, spec.heads, spec.length, spec.dim // spec.heads
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def attended(query, key, value, seen_BHLL):
    """One token after another, over those it sees alone."""
    found = torch.zeros_like(value)
    for at in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        row, head, token = at
        mine = torch.nonzero(seen_BHLL[row, head, token]).flatten()
        weights = torch.softmax(key[row, head, mine] @ query[row, head, token] / query.shape[-1] ** 0.5, 0)
        found[row, head, token] = weights @ value[row, head, mine]
    return found


def blocks_seen(spec: Spec, query, key):
    """The mask of `block-topk` in loops, `[B, H, L, L]`."""
    seen = torch.zeros(*query.shape[:3], spec.length, dtype=torch.bool)
    seen[..., : spec.registers], seen[:, :, : spec.registers] = True, True
    starts = range(spec.registers, spec.length, spec.pattern_block)
    blocks = [slice(start, min(start + spec.pattern_block, spec.length)) for start in starts]
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            for token in range(spec.registers, spec.length):
                scores = [float(query[row, head, token] @ key[row, head, block].mean(0)) for block in blocks]
                for number in sorted(range(len(blocks)), key=lambda number: -scores[number])[: spec.pattern_kept]:
                    seen[row, head, token, blocks[number]] = True
    return seen


@given(
    side=st.integers(1, 5),
    registers=st.integers(0, 2),
    radius=st.integers(1, 4),
    pattern=st.sampled_from(["window", "axial"]),
)
def test_patterns_by_place_are_full_attention_under_their_mask(side, registers, radius, pattern):
    spec = Spec(tokens=side * side, registers=registers, dim=8, heads=2, pattern=pattern, pattern_radius=radius)
    mask = torch.tensor([[sees(spec, one, other) for other in range(spec.length)] for one in range(spec.length)])
    assert torch.equal(patterns.place_mask(spec, torch.device("cpu")), mask)
    each = drawn(spec, seed=side)
    assert torch.allclose(patterns.attend(*each, spec), attended(*each, mask.expand(2, 2, -1, -1)), atol=1e-5)


@given(tokens=st.integers(1, 20), registers=st.integers(0, 2), size=st.integers(1, 7), data=st.data())
def test_blocks_are_chosen_by_their_mean_key(tokens, registers, size, data):
    kept = data.draw(st.integers(1, -(-tokens // size)))
    spec = Spec(tokens=tokens, registers=registers, dim=8, heads=2, pattern="block-topk", pattern_block=size,
                pattern_kept=kept)  # fmt: skip
    query, key, value = drawn(spec, seed=tokens)
    mask = blocks_seen(spec, query, key)
    assert torch.equal(patterns.block_mask(query, key, spec), mask)
    assert torch.allclose(patterns.attend(query, key, value, spec), attended(query, key, value, mask), atol=1e-5)


def test_a_window_where_there_is_no_grid_is_of_places():
    spec = Spec(tokens=6, dim=8, heads=2, pattern="window", pattern_radius=1)
    mask = patterns.place_mask(spec, torch.device("cpu"))
    assert torch.nonzero(mask).tolist() == [[i, j] for i in range(6) for j in range(6) if abs(i - j) <= 1]


@pytest.mark.parametrize(
    "overrides",
    [
        {"pattern": "block-topk", "pattern_block": 5, "pattern_kept": 4},
        {"pattern": "block-topk", "pattern_block": 16, "pattern_kept": 1, "registers": 2},
        {"pattern": "window", "pattern_radius": 3},
    ],
)
def test_a_pattern_that_shows_all_is_full_attention(overrides):
    wide = tiny_model(mixer="attention", positions="both", **overrides)
    full = tiny_model(mixer="attention", positions="both", registers=overrides.get("registers", 0))
    weights, x = wide.weights(), torch.randn(2, wide.spec.length, 16, generator=torch.Generator().manual_seed(0))
    expected = reference.core(full.weights(), "low", x, full.spec)
    assert torch.allclose(reference.core(weights, "low", x, wide.spec), expected, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("overrides", ALL)
def test_what_is_not_seen_is_not_heard_and_has_no_gradient(overrides, registers):
    spec = tiny_config(mixer="attention", registers=registers, **overrides).spec
    query, key, value = (x.requires_grad_() for x in drawn(spec))
    seen = patterns.block_mask(query, key, spec) if spec.pattern == "block-topk" else None
    patterns.attend(query, key, value, spec)[0, 0, -1].sum().backward()
    heard = seen[0, 0, -1] if seen is not None else patterns.place_mask(spec, query.device)[-1]
    assert 0 < heard.sum() < spec.length
    for gradient in (key.grad, value.grad):
        assert torch.equal((gradient[0, 0] != 0).any(-1), heard)
    assert query.grad[0, 0, -1].abs().max() > 0
    assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("overrides", ALL)
def test_what_is_compiled_is_the_reference_with_the_token_axis_first(overrides, registers):
    """The module that inductor takes, run as it is; the compiled pieces themselves are tested in `test_compiled.py`."""
    model = Model(tiny_config(mixer="attention", positions="both", registers=registers, **overrides))
    weights, spec = model.weights(), model.spec
    x = torch.randn(2, spec.length, 16, generator=torch.Generator().manual_seed(0))
    expected = reference.core(weights, "low", x, spec)
    first = x.transpose(0, 1)
    alike = compiled._alike("core", spec)
    found = compiled.Core(alike)(first, torch.zeros_like(first), *compiled.core_weights(weights, "low", spec))
    assert torch.allclose(found.transpose(0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("overrides", ALL)
def test_a_pattern_changes_what_a_step_gives_and_a_checkpoint_keeps_it(overrides, tmp_path):
    model, full = tiny_model(mixer="attention", **overrides), tiny_model(mixer="attention")
    rows = torch.arange(2)
    puzzles = torch.randint(1, 3, (2, 16), generator=torch.Generator().manual_seed(0))

    def stepped(one):
        return one.step(*one.initial_state(2), one.embed(puzzles), NoiseKey(0, rows, rows, rows)).h

    assert model.digest() == full.digest()
    assert (stepped(model) - stepped(full)).abs().max() > 1e-3
    checkpoint.save(model, tmp_path / "model", card={"task": "nqueens4"}, dtype=torch.float32)
    kept = checkpoint.load(tmp_path / "model", dtype=torch.float32)
    assert kept.config == model.config
    assert torch.equal(stepped(kept), stepped(model))
    assert not [name for name in config_to_json(full.config) if name.startswith("pattern")]


@pytest.mark.parametrize("overrides", ALL)
def test_it_trains(overrides, tmp_path):
    training = {"steps": 3, "batch": 4, "rollout_slots": 2, "evaluate_puzzles": 2, "evaluate_width": 2}
    config = tiny_config(mixer="attention", **overrides)
    train(Recipe("tiny", "", get_task("nqueens4"), config, TrainConfig(**training)), tmp_path, is_compiled=False)
    made = checkpoint.load(tmp_path, dtype=torch.float32)
    assert made.config.pattern == overrides["pattern"]
    start = Model(config, seed=0).weights()["low.0.mixer.qkv"]
    assert not torch.equal(made.weights()["low.0.mixer.qkv"], start.to(torch.bfloat16).float())


def test_arithmetic_is_counted_by_pattern():
    def mixed(**overrides):
        config = tiny_config(mixer="attention", guidance="none", **overrides)
        projected = 16 * 4 * 16 * 16 + 16 * 3 * 16 * 16
        return (step_macs(config)["core"] / (3 * config.blocks) - projected) / 16

    assert mixed() == 2 * 16 * 16
    assert mixed(pattern="axial") == 2 * 16 * (4 + 4)
    assert mixed(pattern="window") == 2 * 16 * 16, "a mask leaves out no product"
    assert mixed(pattern="block-topk", pattern_block=5, pattern_kept=2) == 2 * 16 * 16 + 16 * 4


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("overrides", ALL)
def test_arithmetic_is_what_torch_counts(overrides, registers):
    model = tiny_model(mixer="attention", guidance="none", registers=registers, **overrides)
    weights, spec, x = model.weights(), model.spec, torch.randn(2, 16 + registers, 16)
    with FlopCounterMode(display=False) as counted:
        reference.core(weights, "low", x, spec)
    calls = spec.transitions * (spec.low_level_updates + 1)
    assert counted.get_total_flops() == 2 * dispatch.step_flops(weights, spec) / calls
    assert 2 * step_macs(model.config)["core"] == dispatch.step_flops(weights, spec)


@pytest.mark.parametrize("overrides", ALL)
@pytest.mark.parametrize("unsupported_reason", [pack.unsupported_reason, gemm_pack.unsupported_reason])
def test_the_kernels_that_lack_it_refuse_in_one_line(unsupported_reason, overrides):
    reason = unsupported_reason(Spec(mixer="attention", **overrides))
    assert reason is not None
    assert f"got pattern {overrides['pattern']}" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pattern": "ring"}, "pattern must be one of full, window, axial, block-topk, got 'ring'"),
        ({"pattern": "axial", "mixer": "token"}, "pattern must come with the mixer attention, got mixer token"),
        ({"pattern": "axial", "tokens": 15, "output_tokens": 15}, "on a square grid alone, got 15 tokens"),
        ({"pattern_radius": 3}, "pattern_radius must come with the pattern window, got pattern full"),
        ({"pattern": "window", "pattern_kept": 3}, "pattern_kept must come with the pattern block-topk"),
        ({"pattern": "window", "pattern_radius": 0}, "pattern_radius must be at least 1, got 0"),
        ({"pattern": "window", "pattern_radius": 10**9}, "pattern_radius must be at most 10,000,000"),
        ({"pattern": "block-topk", "pattern_block": 0}, "pattern_block must be at least 1, got 0"),
        ({"pattern": "block-topk", "pattern_block": 5, "pattern_kept": 5}, "at most the 4 blocks, got 5"),
        ({"pattern": "window", "pattern_radius": 1.5}, "pattern_radius must be a whole number"),
    ],
)
def test_what_does_not_go_together_is_one_line(values, words):
    with pytest.raises(ValueError, match="pattern") as error:
        tiny_config(**{"mixer": "attention", **values})
    assert words in str(error.value)
    assert "\n" not in str(error.value)
