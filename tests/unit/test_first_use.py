"""The check before a kernel's first use sees every planted fault, and refuses no kernel that only rounds otherwise."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

import gram
from gram.kernels import dispatch, first_use, reference
from gram.kernels.compiled import path as compiled
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import LEARNED, Injection
from gram.model import Model
from gram.presets import PRESETS, model_config
from tests import rounding
from tests.kernel_presets import FUSED, GEMM
from tests.models import tiny_model

CPU = torch.device("cpu")
FAST = ("sudoku6", "colouring8")
NAN = float("nan")
MODELS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in (*FUSED, *GEMM, *PRESETS)]
GAUSSIAN = Injection(injector="gaussian", sigma=0.3, site="both")


@cache
def model_of(name: str) -> Model:
    """A shipped model or a preset with random heads, in bfloat16."""
    if name not in PRESETS:
        return gram.load(name).model.to(torch.bfloat16).requires_grad_(False)
    model = Model(model_config(name)).requires_grad_(False)
    for number, head in enumerate((model.halt, model.lprm)):
        head.weight.normal_(generator=torch.Generator().manual_seed(number))
    return model.to(torch.bfloat16)


def count_of(model: Model) -> int:
    """Rows checked."""
    return 8 if model.spec.dim > 256 else first_use.ROWS


def found_in(model: Model, change=None, *, injection=LEARNED, step=rounding.supervision_step, **overrides) -> list[str]:
    """What the check finds in the rounding of the fused kernel with some of its arguments or its result changed: each
    change is made of all of them."""
    count = count_of(model)
    spec = replace(model.spec, **overrides)

    def run(asked, states, key):
        given = {"spec": asked, "key": key, "injection": injection, "result": lambda made: made}
        given |= {name: value(given) for name, value in (change or {}).items()}
        made = step(model.weights(), given["spec"], *states, given["key"], injection=given["injection"])
        return given["result"](made)

    return first_use.faults(run, model.weights(), spec, model.dtype, CPU, injection, count)


def with_key(given, **parts):
    return given["key"]._replace(**parts)


def wrong_row(made):
    """A sixteenth of one row's channels is zero: as far off as another trajectory's noise, and less."""
    h = made.h.clone()
    h[len(h) // 2, :, : h.shape[-1] // 16] = 0
    return made._replace(h=h)


FAULTS = {
    "no noise": {"injection": lambda given: replace(given["injection"], temperature=0.0)},
    "one noise for all rows": {
        "key": lambda given: with_key(
            given,
            trajectory=torch.zeros_like(given["key"].trajectory),
            puzzle_hash=torch.zeros_like(given["key"].puzzle_hash),
        )
    },
    "noise of the trajectory alone": {
        "key": lambda given: with_key(given, puzzle_hash=torch.zeros_like(given["key"].puzzle_hash))
    },
    "half of the seed": {"key": lambda given: with_key(given, seed=first_use.SEED & 0xFFFFFFFF)},
    "noise of the next step": {"key": lambda given: with_key(given, step=given["key"].step + 1)},
    "no mean": {"spec": lambda given: replace(given["spec"], guidance="noise")},
    "heads swapped": {"result": lambda _: lambda made: made._replace(halt=made.lprm, lprm=made.halt)},
    "one wrong row": {"result": lambda _: wrong_row},
    "a NaN": {"result": lambda _: lambda made: made._replace(lprm=made.lprm.index_fill(0, torch.tensor(3), NAN))},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_planted_fault_is_seen_and_right_rounding_is_not_refused(name, monkeypatch):
    model, truth = model_of(name), first_use.truth
    once = cache(lambda spec: truth(model.weights(), spec, *rest))
    rest = model.dtype, first_use.made_up(model.spec, model.dtype, CPU, count_of(model)), LEARNED
    monkeypatch.setattr(first_use, "truth", lambda weights, spec, *_: once(spec))
    assert found_in(model) == []
    for fault, change in FAULTS.items():
        assert found_in(model, change), fault


def test_a_head_near_zero_is_held_to_the_size_of_all():
    """Its summands cancel, so that rounding is as large as in other rows: eager's luck there refuses nobody."""
    values = torch.tensor([84.0, -21.0, -0.03, -34.0])
    expected = reference.Step(torch.ones(4, 2, 2), torch.ones(4, 2, 2), values, values)
    eager, kernel = (
        expected._replace(halt=values + torch.tensor([0.3, 0.3, gap, 0.3]), lprm=values + 0.3) for gap in (0.001, 1.0)
    )
    allowed = first_use.errors(eager, expected)
    assert first_use.excess(first_use.errors(kernel, expected), allowed) == []
    worse = kernel._replace(halt=values + 5.0)
    assert first_use.excess(first_use.errors(worse, expected), allowed) != []


TANHS = {
    "too far from 0": torch.ones_like,
    "too near to 0": lambda half: -torch.ones_like(half),
    "here and there": lambda half: torch.sin(1e4 * half),
}
"""Ways in which an approximate hyperbolic tangent is as wrong as it may be."""


@pytest.mark.parametrize("wrong", TANHS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "sudoku6" else pytest.mark.slow) for name in FUSED]
)
def test_silu_by_the_approximate_tanh_of_a_gpu_is_not_refused(name, wrong):
    """What is sixty-four times as wrong is: so much the check measures."""
    assert (
        found_in(model_of(name), step=partial(rounding.supervision_step, act=rounding.silu_by_tanh(TANHS[wrong]))) == []
    )
    if name == "sudoku6" and wrong == "too far from 0":
        worse = rounding.silu_by_tanh(lambda half: 64 * torch.ones_like(half))
        assert found_in(model_of(name), step=partial(rounding.supervision_step, act=worse))


def test_noise_in_the_noise_free_steps_is_seen():
    model = model_of("sudoku6")
    assert found_in(model, {"spec": lambda given: replace(given["spec"], noise_free_steps=0)})


@pytest.mark.parametrize("injection", [GAUSSIAN, Injection(injector="path", sigma=0.1), Injection(injector="none")])
def test_each_injector_is_checked_with_its_own_noise(injection):
    model = model_of("sudoku6")
    assert found_in(model, injection=injection) == []
    none = Injection(injector="none")
    if injection != none:
        assert found_in(model, {"injection": lambda _: none}, injection=injection)
        assert found_in(model, {"key": lambda given: with_key(given, seed=1)}, injection=injection)
    if injection == GAUSSIAN:
        change = {"injection": lambda _: replace(GAUSSIAN, site="h")}
        assert found_in(model, change, injection=injection)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_path_would_be_taken(monkeypatch, dtype):
    """The right kernel that is at hand, with its own order of sums and its own roundings."""
    monkeypatch.setattr(compiled, "piece", lambda name, spec, *_: compiled.PIECES[name](spec))
    for overrides in ({}, {"mixer": "attention", "dim": 32}, {"transitions": 2, "head_hidden": 8}):
        model = tiny_model(**overrides).to(dtype)
        assert found_in(model, step=compiled.supervision_step) == []


def test_a_step_that_magnifies_rounding_is_checked_with_one_transition_too(monkeypatch):
    """Six transitions of random weights: what the whole step hides, the short one shows."""
    asked = []
    model = tiny_model(dim=64, transitions=6, low_level_updates=6, noise_order="after").to(torch.bfloat16)

    def step(weights, spec, *arguments, injection):
        asked.append(spec.transitions)
        return rounding.supervision_step(weights, spec, *arguments, injection=injection)

    assert found_in(model, step=step) == []
    assert asked == [6, 1]
    found = found_in(model, FAULTS["noise of the next step"])
    assert any("1 of 6 transitions" in each for each in found), found


def stand_in(monkeypatch, step):
    """`step` in place of every path of Triton kernels; nothing is known of any model."""
    monkeypatch.setattr(dispatch, "import_module", lambda name: SimpleNamespace(supervision_step=step))
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: None)
    monkeypatch.setattr(dispatch, "_READY", {})
    monkeypatch.setattr(dispatch, "_CHECKED", set())


def launch_of(model: Model, count: int = 2):
    """The first launch of a run: equal states at step 0."""
    rows = torch.arange(count)
    tokens = torch.ones(count, model.config.tokens, dtype=torch.long)
    return (*model.initial_state(count), model.embed(tokens), NoiseKey(0, rows, rows, rows * 0))


@pytest.mark.parametrize("kernel", ["fused", "blocks", "gemm"])
def test_a_kernel_without_noise_is_refused_at_step_0(monkeypatch, kernel):
    """There its launch is right."""
    model = tiny_model()

    def step(packed, spec, *arguments, injection):
        quiet = replace(injection, temperature=0.0)
        return reference.supervision_step(model.weights(), spec, *arguments, injection=quiet)

    stand_in(monkeypatch, step)
    launch = (model.weights(), model.spec, *launch_of(model))
    right = reference.supervision_step(*launch)
    assert torch.equal(step(None, *launch[1:], injection=LEARNED).h, right.h)
    with pytest.raises(RuntimeError, match=r"kernel .* first use, got another h of row .*--kernel eager"):
        dispatch.supervision_step(*launch, kernel=kernel)


def test_a_model_is_checked_once_for_each_kernel_and_kind_of_noise(monkeypatch):
    model, checked = tiny_model(), []
    stand_in(
        monkeypatch,
        lambda packed, spec, *rest, injection: reference.supervision_step(
            model.weights(), spec, *rest, injection=injection
        ),
    )
    real = first_use.faults
    monkeypatch.setattr(first_use, "faults", lambda *arguments: checked.append(arguments[-1]) or real(*arguments))

    def step(kernel, injection=LEARNED):
        launch = (model.weights(), model.spec, *launch_of(model))
        return dispatch.supervision_step(*launch, injection=injection, kernel=kernel)

    for _ in range(2):
        step("fused")
    assert checked == [first_use.ROWS]
    step("fused", Injection(temperature=0.5))
    assert len(checked) == 1
    step("fused", GAUSSIAN)
    step("fused", Injection(temperature=0.0))
    step("blocks")
    step("gemm")
    assert checked == [first_use.ROWS] * 4 + [2]
    model.low[0].channel.down.mul_(1.5)
    step("fused")
    assert len(checked) == 6
