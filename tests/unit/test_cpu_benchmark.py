"""The CPU benchmark: its gate, its rows and its frozen baseline. No speed is judged here."""

import hashlib
import inspect

import pytest
import torch

from gram.evals.benchmarks import cpu_benchmark
from gram.kernels import reference
from gram.kernels.compiled import path as compiled
from tests.models import tiny_model

BASELINE = (
    reference.supervision_step, reference.transition, reference.core, reference.mix_tokens, reference.attend,
    reference.relate, reference.swiglu, reference.rmsnorm, reference.gaussian, reference.add_noise, reference.read_head,
)  # fmt: skip


@pytest.fixture
def uncompiled(monkeypatch):
    """The compiled pieces' own mathematics, not compiled."""
    monkeypatch.setattr(compiled, "piece", lambda name, spec, *_: compiled.PIECES[name](spec))


def test_rows_come_with_their_spread_and_floor(uncompiled):
    step, products, noise = cpu_benchmark.step_rows("token-mix", tiny_model(), 20, rounds=2)
    assert (step.floor, products.floor, noise.floor) == (1.7, None, 0.05)
    assert noise.is_ceiling
    for row in (step, products, noise):
        assert row.low <= row.ratio <= row.high
    assert step.facts["error"] <= 1e-4


def test_no_ratio_is_given_where_the_step_differs(uncompiled, monkeypatch):
    real = compiled.supervision_step
    monkeypatch.setattr(compiled, "supervision_step", lambda *a, **k: (s := real(*a, **k))._replace(h=s.h + 1e-3))
    with pytest.raises(AssertionError, match="before it is timed"):
        next(cpu_benchmark.step_rows("token-mix", tiny_model(), 20, rounds=1))


def test_products_are_those_that_are_counted(uncompiled):
    from torch.utils.flop_counter import FlopCounterMode

    from gram.kernels.dispatch import step_flops

    model = tiny_model(transitions=2)
    count = compiled.block_size(model.spec)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        cpu_benchmark.products(model, count)()
    assert counted.get_total_flops() == count * step_flops(model.weights(), model.spec)


def test_the_baseline_is_frozen():
    """The reference is what speed-ups are measured against: making it slower or faster changes what they mean. Whoever
    changes it on purpose measures them again."""
    text = "".join(inspect.getsource(function) for function in BASELINE)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "88dc0ec394c217b095431859950b4070588277e957902650c05361c61d2d7e10"
    )
