"""Kernel C in Triton's interpreter, fp32, against the reference: 1e-4, for sums are taken in another order.

Triton decides at import whether kernels are interpreted, so the cases run in a process of their own.
"""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gram.kernels import reference
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import LEARNED, Injection
from tests.models import tiny_model
from tests.unit.test_kernel_interpreted import CASES, INJECTIONS, IS_INTERPRETED, NAN, interpreted, run_apart

if IS_INTERPRETED:
    from tests import mended_interpreter

SEED = (0xF0000007 << 32) | 0xE0000009
COMPANY = 8
"""Trajectories of a launch in most tests: the least that the sampler launches."""


if not IS_INTERPRETED:

    def test_in_a_process_that_interprets():
        run_apart("not slow", __file__)

    @pytest.mark.slow
    def test_in_a_process_that_interprets_slowly():
        run_apart("slow", __file__)


def given(spec, rows=(0, 1, 2), dtype=torch.float32):
    """States and noise key of some rows of eight trajectories that differ in everything."""
    rows = list(rows)
    generator = torch.Generator().manual_seed(5)
    states = [torch.randn(COMPANY, spec.length, spec.dim, generator=generator)[rows].to(dtype) for _ in range(3)]
    hashes, trajectories = [9, 2**32 - 5, 7, 0, 1, 2, 3, 4], [0, 5, 2**31 + 1, 3, 4, 5, 6, 7]
    steps = [0, 1, 4, 2, 0, 1, 2, 3]
    return states, NoiseKey(SEED, *torch.tensor([hashes, trajectories, steps])[:, rows])


def poisoned(matrices, spec, count, injection, has_active):
    """NaN in every buffer of the plan that the next step will run, and in what it is to fill."""
    from gram.kernels.gemm import path as gemm

    device = torch.device("cpu")
    ready = gemm.captured(matrices, spec, count, injection, has_active=has_active, device=device)
    for operation in ready.plan.operations:
        for tensor in getattr(operation, "touched", None) or [operation.out]:
            tensor.fill_(NAN)
    for tensor in (ready.plan.key, ready.plan.scale, ready.plan.step):
        tensor.fill_(7)
    ready.plan.numbers = ()
    return (torch.full((2, count, spec.length, spec.dim), NAN, dtype=matrices.dtype), torch.full((2, count), NAN))


def launch(
    model,
    *,
    injection=LEARNED,
    rows=(0, 1, 2),
    active_B=None,
    matrices=None,
    seed=SEED,
    dtype=torch.float32,
):
    """Kernel C's step of some rows, and the reference's in fp32 of the same weights and states."""
    from gram.kernels.gemm import path as gemm

    states, key = given(model.spec, rows, dtype)
    key = key._replace(seed=seed)
    weights = {name: tensor.to(dtype).float() for name, tensor in model.weights().items()}
    matrices = matrices or gemm_pack.pack(weights, model.spec, dtype)
    out = poisoned(matrices, model.spec, len(rows), injection, active_B is not None)
    actual = gemm.supervision_step(matrices, model.spec, *states, key, injection=injection, active_B=active_B, out=out)
    wide = (state.float() for state in states)
    return actual, reference.supervision_step(weights, model.spec, *wide, key, injection=injection), states


def assert_equal_to_reference(model, **options):
    actual, expected, _ = launch(model, **options)
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-4, name


OWN_CASES = {
    "odd-dim": {"dim": 24, "heads": 1},
    "wider": {"dim": 64, "hidden": 96, "transitions": 2},
    "norm-over-tokens": {"mixer_norm": "tokens", "tokens": 13, "output_tokens": 13, "noise_order": "after"},
    "many-tokens": {"tokens": 133, "output_tokens": 133, "low_level_updates": 1},
    "many-tokens-norm": {"tokens": 133, "output_tokens": 133, "low_level_updates": 1, "mixer_norm": "tokens"},
    "attention-63": {"mixer": "attention", "dim": 64, "heads": 2, "positions": "rotary", "tokens": 63,
                     "output_tokens": 63, "low_level_updates": 1},
    "several-key-tiles": {"mixer": "attention", "dim": 16, "heads": 1, "positions": "both", "tokens": 81,
                          "output_tokens": 81, "low_level_updates": 0, "head_readout": "first"},
    "unguided-transitions": {"guidance": "none", "transitions": 2},
    "unguided-high-level": {"guidance": "none", "transitions": 2, "low_level_updates": 0},
    **{f"high-level-{order}": {"transitions": 2, "low_level_updates": 0, "noise_order": order}
       for order in ("before", "after")},
    "register-and-hidden": {"registers": 1, "head_readout": "register", "head_hidden": 12},
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("case", [*CASES, *OWN_CASES])
def test_equals_the_reference(case):
    assert_equal_to_reference(tiny_model(**(CASES | OWN_CASES)[case]))


@interpreted
@pytest.mark.parametrize("order", ["before", "after"])
@INJECTIONS
def test_every_injector(injection, order):
    model = tiny_model(path_keep=0.05, transitions=2, noise_order=order, low_level_updates=1)
    assert_equal_to_reference(model, injection=injection)


@interpreted
@pytest.mark.parametrize("guidance", ["mean", "noise", "none"])
@pytest.mark.parametrize("injection", [Injection(temperature=0.0), Injection(injector="none")])
def test_guidance_without_its_noise(guidance, injection):
    assert_equal_to_reference(tiny_model(guidance=guidance, low_level_updates=1), injection=injection)


@interpreted
@pytest.mark.parametrize("mixer", ["token", "attention"])
def test_inactive_rows_keep_their_state(mixer):
    active_B = torch.tensor([True, False, True])
    injection = Injection(injector="gaussian", sigma=0.3, site="both")
    model = tiny_model(mixer=mixer, heads=1)
    actual, expected, (h, l, _) = launch(model, active_B=active_B, injection=injection)
    assert torch.equal(actual.h[1], h[1])
    assert torch.equal(actual.l[1], l[1])
    assert torch.equal(actual.halt.isnan(), ~active_B)
    assert torch.equal(actual.lprm.isnan(), ~active_B)
    assert torch.allclose(actual.h[active_B], expected.h[active_B], atol=1e-4)


@interpreted
@pytest.mark.parametrize("mixer", ["token", "attention"])
def test_a_trajectory_is_the_same_in_any_slot_and_company(mixer):
    """Bit for bit at one launch size; alone within what a product's rounding may change."""
    model = tiny_model(mixer=mixer, heads=1)
    together, _, _ = launch(model, rows=range(8))
    turned, _, _ = launch(model, rows=[2, 1, 0, 2, 7, 7, 7, 5])
    alone, _, _ = launch(model, rows=[2])
    for whole, other, one in zip(together, turned, alone, strict=True):
        for slot, row in enumerate([2, 1, 0, 2, 7, 7, 7, 5]):
            assert torch.equal(whole[row], other[slot])
        assert torch.allclose(whole[2], one[0], atol=1e-5)


def last_plan(matrices):
    return [*matrices.captured.values()][-1].plan


@interpreted
def test_a_plan_is_laid_out_once_for_a_launch_shape():
    """What changes from step to step stands in buffers: other seeds, scales and rows need no other plan."""
    model = tiny_model()
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.float32)
    plans = []
    for seed, temperature in ((1, 1.0), (2**63 + 5, 1.0), (1, 0.5)):
        injection = Injection(temperature=temperature)
        assert_equal_to_reference(model, matrices=matrices, seed=seed, injection=injection)
        plans.append(last_plan(matrices))
    assert plans[0] is plans[1] is plans[2]
    assert_equal_to_reference(model, matrices=matrices, rows=[4, 1])
    assert_equal_to_reference(model, matrices=matrices, rows=[4, 1], injection=Injection(injector="none"))
    assert last_plan(matrices) is not plans[0]
    assert len(matrices.captured) == 3
    assert_equal_to_reference(model, matrices=matrices)
    assert last_plan(matrices) is plans[0]


def test_plans_of_alternating_launches_are_kept(monkeypatch):
    """As a frontier alternates them; the one not used for longest goes first, and its buffers with it."""
    from gram.kernels.gemm import path as gemm

    laid_out = []
    plan = gemm.StepPlan

    def counted(*arguments, **named):
        laid_out.append(arguments[2])
        return plan(*arguments, **named)

    monkeypatch.setattr(gemm, "StepPlan", counted)
    model = tiny_model()
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.float32)

    def take(count):
        device = torch.device("cpu")
        return gemm.captured(matrices, model.spec, count, LEARNED, has_active=False, device=device)

    for _ in range(3):
        assert [take(8).plan.count, take(16).plan.count] == [8, 16]
    assert laid_out == [8, 16]
    for count in range(1, gemm.KEPT):
        take(8)
        take(count)
    assert len(matrices.captured) == gemm.KEPT
    first = weakref.ref(take(8).plan)
    laid_out.clear()
    take(16)
    assert laid_out == [16], "the oldest was let go"
    for count in range(20, 20 + gemm.KEPT):
        take(count)
    assert first() is None


def test_a_plan_is_captured_on_a_gpu_alone_and_not_where_graphs_are_off(monkeypatch):
    """A stand-in passes for a GPU."""
    from gram.kernels.gemm import path as gemm

    model = tiny_model()
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.float32)
    plan = SimpleNamespace(given=tuple, write_numbers=lambda *_: None)
    monkeypatch.setattr(gemm, "StepPlan", lambda *_, **__: plan)
    monkeypatch.setattr(gemm, "_capture", lambda *_: "graph")

    for device, asked, expected in (
        ("cuda", "on", "graph"),
        ("cuda", "off", None),
        ("cuda", "on", "graph"),
        ("cpu", "on", None),
    ):
        monkeypatch.setenv("GRAM_GRAPHS", asked)
        ready = gemm.captured(matrices, model.spec, 8, LEARNED, has_active=False, device=torch.device(device))
        assert ready.graph == expected


def test_seed_and_scales_are_written_where_they_change(monkeypatch):
    """Filled in place: no step copies a number to the device."""
    from gram.kernels.gemm import plan as gemm_plan

    model, filled = tiny_model(), []
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.float32)
    plan = gemm_plan.StepPlan(matrices, model.spec, 2, LEARNED, has_active=False, device=torch.device("cpu"))
    real = torch.Tensor.fill_
    monkeypatch.setattr(torch.Tensor, "fill_", lambda tensor, value: filled.append(value) or real(tensor, value))
    for seed, sigma in ((SEED, 0.5), (SEED, 0.5), (SEED, 0.25), (1, 0.25)):
        plan.write_numbers(seed, 1.5, sigma)
        assert plan.key.tolist() == [seed & 0xFFFFFFFF, seed >> 32]
        assert plan.scale.tolist() == [1.5, sigma]
    assert len(filled) == 3 * 4


@interpreted
def test_states_may_be_expanded_and_made_for_inference():
    from gram.kernels.gemm import path as gemm

    model = tiny_model()
    rows = torch.arange(2)
    key = NoiseKey(1, rows, rows, rows + 1)
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.float32)
    h, l = model.initial_state(2)
    with torch.inference_mode():
        e_x = model.embed(torch.ones(1, 16, dtype=torch.long)).expand(2, -1, -1)
        first = gemm.supervision_step(matrices, model.spec, h, l, e_x, key)
        second = gemm.supervision_step(matrices, model.spec, first.h, first.l, e_x, key)
    expected = reference.supervision_step(model.weights(), model.spec, h, l, e_x.clone(), key)
    assert torch.allclose(first.h, expected.h, atol=1e-4)
    again = gemm.supervision_step(matrices, model.spec, h, l, e_x, key)
    assert torch.equal(again.h, first.h)
    assert not torch.equal(second.h, first.h)


@interpreted
def test_bad_states_are_refused_and_none_are_taken():
    from gram.kernels.gemm import path as gemm

    model = tiny_model()
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.float32)
    (h, l, e_x), key = given(model.spec)
    with pytest.raises(ValueError, match=r"l must be of the packed weights' type torch\.float32, got torch\.bfloat16"):
        gemm.supervision_step(matrices, model.spec, h, l.bfloat16(), e_x, key)
    with pytest.raises(ValueError, match=r"e_x must be \[3, 16, 16\], got \[2, 16, 16\]"):
        gemm.supervision_step(matrices, model.spec, h, l, e_x[:2], key)
    none = gemm.supervision_step(matrices, model.spec, h[:0], l[:0], e_x[:0], key)
    assert none.h.shape == (0, 16, 16)


@interpreted
@pytest.mark.parametrize("case", [*CASES, *OWN_CASES])
def test_bfloat16_is_close_to_the_reference(case):
    """Relative error 2e-2, of heads absolute below 1: activations are rounded to 2^-9. One transition: a second
    magnifies the rounding, eager's as well."""
    model = tiny_model(**(CASES | OWN_CASES)[case] | {"transitions": 1})
    with mended_interpreter.bfloat16():
        actual, expected, _ = launch(model, dtype=torch.bfloat16)
    assert actual.h.dtype is torch.bfloat16
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        size = other.square().mean().sqrt().clamp(min=1 if other.dim() == 1 else 0)
        error = float((one.float() - other).square().mean().sqrt() / size)
        assert error <= 2e-2, (name, error)
        assert name != "h" or error > 1e-5, "bfloat16 must have rounded"


@interpreted
@pytest.mark.parametrize(
    "case", ["token", "two-transitions", "wider", "norm-over-tokens", "high-level-after", "rotary"]
)
def test_the_plan_says_what_its_kernels_move(case):
    """Launch by launch, every byte of a state under a mask; keys and weights apart."""
    from gram.kernels.gemm import plan as gemm_plan

    model = tiny_model(**{**(CASES | OWN_CASES)[case], "noise_free_steps": 0})
    matrices = gemm_pack.pack(model.weights(), model.spec, torch.bfloat16)
    cpu = torch.device("cpu")
    plan = gemm_plan.StepPlan(matrices, model.spec, 3, LEARNED, has_active=False, device=cpu)
    for tensor in plan.given():
        tensor.zero_()
    plan.write_numbers(0, 1.0, 0.0)
    for operation in plan.operations:
        with mended_interpreter.bfloat16(), mended_interpreter.traffic() as counted:
            operation.run()
        if isinstance(operation, gemm_plan.KernelLaunch):
            states = [tensor for tensor in operation.touched if tensor.dtype == torch.bfloat16]
            moved = counted.loaded.get("bf16", 0) + counted.stored.get("bf16", 0)
            assert moved == sum(2 * tensor.numel() for tensor in states), operation.kernel


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "shape",
    [
        {"mixer": "token", "tokens": 97, "output_tokens": 97, "mixer_hidden": 192},
        {"mixer": "token", "tokens": 81, "output_tokens": 81, "mixer_hidden": 160, "mixer_norm": "tokens"},
        {"mixer": "attention", "tokens": 96, "output_tokens": 96, "heads": 8, "positions": "rotary"},
    ],
    ids=["token-97", "token-81-norm-over-tokens", "attention-96"],
)
def test_full_width(shape, order):
    model = tiny_model(
        dim=512, hidden=1536, guidance_hidden=512, low_level_updates=1, noise_order=order, head_hidden=64, **shape
    )
    assert_equal_to_reference(model, rows=[2])


def test_what_does_not_fit_is_refused():
    spec = tiny_model().spec
    assert gemm_pack.unsupported_reason(spec) is None
    assert gemm_pack.unsupported_reason(replace(spec, dim=512, tokens=900)) is None
    assert "dim" in (gemm_pack.unsupported_reason(replace(spec, dim=20)) or "")
    assert "dim" in (gemm_pack.unsupported_reason(replace(spec, dim=8192)) or "")
    assert "heads of" in (gemm_pack.unsupported_reason(replace(spec, mixer="attention", heads=2)) or "")
    model = tiny_model(dim=12)
    with pytest.raises(ValueError, match="dim"):
        gemm_pack.pack(model.weights(), model.spec, torch.float32)


def test_packing_pads_hidden_units_alone():
    """Zero units in, nothing out: the padded SwiGLU is the model's own."""
    model = tiny_model(hidden=13, mixer_hidden=11)
    layers = gemm_pack.pack(model.weights(), model.spec, torch.float32).layers
    assert layers["low.0.channel.gate_up"].shape == (32, 16)
    assert layers["low.0.mixer.tiles"].shape == (3 * 32, 16)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    own = reference.swiglu(x, *(model.weights()[f"low.0.channel.{name}"] for name in ("gate_up", "down")))
    packed = reference.swiglu(x, *(layers[f"low.0.channel.{name}"] for name in ("gate_up", "down")))
    assert torch.allclose(own, packed, atol=1e-6)
