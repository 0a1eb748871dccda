"""Programs of two and three trajectories, in Triton's interpreter, fp32: against the reference (1e-4, for sums are
taken in another order), and bit for bit against the same trajectory in any other place and company.

The cases run in a process of their own, as those of test_kernel_interpreted.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.kernels import reference
from gram.kernels.fused import pack
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import LEARNED, Injection
from tests.models import tiny_model
from tests.unit.test_kernel_interpreted import INJECTIONS, IS_INTERPRETED, NAN, TILES, interpreted, run_apart

if not IS_INTERPRETED:

    def test_in_a_process_that_interprets():
        run_apart("not slow", __file__)

    @pytest.mark.slow
    def test_in_a_process_that_interprets_slowly():
        run_apart("slow", __file__)


THREE = {"tokens": 36, "output_tokens": 36}
ATTENTION = {"mixer": "attention", "dim": 32, "heads": 2, "positions": "both"}
CASES = {
    "two": (2, {}),
    "two-odd": (2, {"tokens": 9, "output_tokens": 9, "hidden": 40, "mixer_hidden": 21, "head_hidden": 5}),
    "two-after": (2, {"noise_order": "after", "is_core_shared": False, "registers": 2, "head_readout": "register"}),
    "two-attention": (2, ATTENTION | {"tokens": 13, "output_tokens": 13}),
    "two-longer": (2, {"transitions": 2, "low_level_updates": 3, "blocks": 1, "noise_free_steps": 0}),
    "two-no-low-level": (2, {"low_level_updates": 0}),
    **{f"two-guidance-{name}": (2, {"guidance": name}) for name in ("mean", "noise", "none")},
    "three": (3, THREE),
    "three-fewest": (3, {"tokens": 33, "output_tokens": 33, "head_hidden": 5, "mixer_hidden": 21}),
    "three-most": (3, {"tokens": 40, "output_tokens": 40, "noise_order": "after", "head_readout": "first"}),
    "three-attention": (3, ATTENTION | THREE | {"head_hidden": 5}),
}
CASE = pytest.mark.parametrize("case", CASES)


@cache
def model_of(case):
    return tiny_model(**{"transitions": 2} | CASES[case][1])


def inputs(spec, count):
    """States of trajectories that differ in everything: puzzle, name and step, some of them without noise."""
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(3, count, spec.length, spec.dim, generator=generator)
    rows = torch.arange(count)
    key = NoiseKey((0xF0000007 << 32) | 0xE0000009, (rows * 0x9E3779B1 + 7) % 2**32, 2**32 - 1 - rows * 3, rows % 3)
    return list(states), key


def step(model, states, key, group, *, injection=LEARNED, active_B=None, lag=0):
    from gram.kernels.fused import path as fused

    spec, count = model.spec, len(states[0])
    packed = pack.pack(model.weights(), spec, torch.float32, replace(TILES, group=group, output_lag=lag))
    out = (torch.full((2, count, spec.length, spec.dim), NAN), torch.full((2, count), NAN))
    return fused.supervision_step(packed, spec, *states, key, injection=injection, active_B=active_B, out=out)


def assert_near(actual, expected, rows=slice(None)):
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        assert float((one[rows] - other[rows]).abs().max()) <= 1e-4, name


@interpreted
@pytest.mark.parametrize("case", ["two-attention", "three-attention"])
def test_a_later_output_product_changes_no_bit(case):
    """Its sum takes the same terms in the same order, and zeros first."""
    model, group = model_of(case), CASES[case][0]
    states, key = inputs(model.spec, 2 * group - 1)
    at_once, later = (step(model, states, key, group, lag=lag) for lag in (0, 1))
    for name, one, other in zip(at_once._fields, at_once, later, strict=True):
        assert torch.equal(one, other), name


@interpreted
@CASE
@pytest.mark.parametrize("missing", [0, 1])
def test_equals_the_reference(case, missing):
    """With a last program that is full, and with one that lacks a trajectory."""
    model, group = model_of(case), CASES[case][0]
    states, key = inputs(model.spec, 2 * group - missing)
    expected = reference.supervision_step(model.weights(), model.spec, *states, key)
    assert_near(step(model, states, key, group), expected)


@interpreted
@pytest.mark.parametrize("case", ["two", "three", "three-attention"])
@INJECTIONS
def test_every_injector(case, injection):
    group, shape = CASES[case]
    model = tiny_model(**shape | {"path_keep": 0.05, "transitions": 2})
    states, key = inputs(model.spec, group + 1)
    expected = reference.supervision_step(model.weights(), model.spec, *states, key, injection=injection)
    assert_near(step(model, states, key, group, injection=injection), expected)


@interpreted
@pytest.mark.parametrize("case", ["two", "two-attention", "three", "three-attention"])
def test_a_trajectory_is_the_same_in_every_place_and_company(case):
    """Where a product sums in one order; how matrix units sum is tested on a GPU."""
    from tests import mended_interpreter

    model, group = model_of(case), CASES[case][0]
    states, key = inputs(model.spec, 2 * group)
    with mended_interpreter.ordered_products():
        together = step(model, states, key, group)
        for place in range(2 * group):
            alone = step(model, [x[place : place + 1] for x in states], key.at(slice(place, place + 1)), group)
            for name, whole, one in zip(together._fields, together, alone, strict=True):
                assert torch.equal(whole[place], one[0]), (name, place)


@interpreted
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(["two", "two-attention", "three", "three-attention"]),
    active=st.lists(st.booleans(), min_size=1, max_size=7),
)
def test_any_number_of_trajectories_some_of_which_have_halted(case, active):
    model, group = model_of(case), CASES[case][0]
    states, key = inputs(model.spec, len(active))
    active_B = torch.tensor(active)
    injection = Injection(injector="gaussian", sigma=0.3, site="both")
    actual = step(model, states, key, group, injection=injection, active_B=active_B)
    assert torch.equal(actual.h[~active_B], states[0][~active_B])
    assert torch.equal(actual.l[~active_B], states[1][~active_B])
    assert torch.equal(actual.halt.isnan(), ~active_B)
    assert torch.equal(actual.lprm.isnan(), ~active_B)
    if active_B.any():
        expected = reference.supervision_step(model.weights(), model.spec, *states, key, injection=injection)
        assert_near(actual, expected, active_B)


@interpreted
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["two", "two-attention", "three", "three-attention"])
def test_a_trajectory_that_diverged_leaves_its_neighbours_alone(case, bad):
    model, group = model_of(case), CASES[case][0]
    states, key = inputs(model.spec, group)
    right = step(model, states, key, group)
    for place in range(group):
        others = torch.arange(group) != place
        broken = [x.clone() for x in states]
        broken[0][place, 3, 5] = bad
        made = step(model, broken, key, group)
        assert not bool(made.h[place].isfinite().all())
        for one, other in zip(made, right, strict=True):
            assert torch.equal(one[others], other[others])


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "tokens", "group"), [("token", 64, 2), ("token", 36, 3), ("attention", 64, 2),
                                                        ("attention", 55, 2), ("attention", 36, 3)])  # fmt: skip
@pytest.mark.parametrize("order", ["before", "after"])
def test_full_width(mixer, tokens, group, order):
    model = tiny_model(
        mixer=mixer, tokens=tokens, output_tokens=tokens, dim=128, heads=4, hidden=96, mixer_hidden=64,
        low_level_updates=1, positions="both", noise_order=order, head_hidden=64, guidance_hidden=64,
    )  # fmt: skip
    states, key = inputs(model.spec, group + 1)
    expected = reference.supervision_step(model.weights(), model.spec, *states, key)
    assert_near(step(model, states, key, group), expected)


@pytest.mark.parametrize(
    ("shape", "group", "said"),
    [
        ({"tokens": 81}, 2, "at most 64 tokens"),
        ({"tokens": 32}, 3, "33 to 40 tokens"),
        ({"tokens": 41}, 3, "33 to 40 tokens"),
        ({"tokens": 64}, 4, "one, two or three"),
        ({"tokens": 64, "guidance_hidden": 256}, 2, "at most 128"),
    ],
)
def test_a_group_that_does_not_fit_is_refused(shape, group, said):
    model = tiny_model(**shape | {"output_tokens": shape["tokens"]})
    with pytest.raises(ValueError, match=said):
        pack.pack(model.weights(), model.spec, torch.float32, replace(TILES, group=group))


def test_blocks_refuse_weights_packed_for_groups():
    from gram.kernels.blocks import path as blocks

    model = tiny_model()
    states, key = inputs(model.spec, 2)
    packed = pack.pack(model.weights(), model.spec, torch.float32, replace(TILES, group=2))
    with pytest.raises(ValueError, match="one trajectory"):
        blocks.supervision_step(packed, model.spec, *states, key)
