"""Which kernel path is chosen, that the reason is said, and that a wrong kernel is refused."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import gram.kernels
from gram.kernels import dispatch, reference
from tests.models import tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_takes_the_reference_and_says_why():
    path = dispatch.choose(CPU, tiny_model().spec)
    assert path.kernel == "eager"
    assert "GPU" in path.reason
    assert dispatch.choose(CPU).kernel == "eager"


def test_a_gpu_takes_the_fused_kernel_where_asked_and_where_the_model_fits():
    spec = tiny_model().spec
    assert dispatch.choose(GPU, spec, torch.bfloat16, "fused").kernel == "fused"
    assert dispatch.choose(GPU, spec, torch.bfloat16, "blocks").kernel == "blocks"
    assert dispatch.choose(GPU, spec, wanted="eager") == ("eager", "asked for")
    unproven = dispatch.choose(GPU, spec, torch.bfloat16)
    assert unproven.kernel == "eager"
    assert "proven" in unproven.reason
    for overrides, word in (({"dim": 512}, "512"), ({"mixer_norm": "tokens"}, "tokens")):
        with pytest.raises(ValueError, match=word):
            dispatch.choose(GPU, replace(spec, **overrides), wanted="fused")


@pytest.mark.parametrize(
    ("device", "dtype", "wanted", "message"),
    [
        (CPU, torch.float32, "fused", "needs a GPU"),
        (CPU, torch.float32, "blocks", "kernel blocks cannot run: .* needs a GPU"),
        (GPU, torch.float16, "fused", "float16"),
        (CPU, torch.float32, "fast", "must be one of"),
    ],
)
def test_what_cannot_run_raises(device, dtype, wanted, message):
    with pytest.raises(ValueError, match=message):
        dispatch.choose(device, tiny_model().spec, dtype, wanted)


@pytest.mark.parametrize("error", [0.0, 1.0, float("nan")])
def test_first_use_refuses_a_kernel_that_differs(monkeypatch, error):
    def step(packed, *arguments, **rows):
        made = reference.supervision_step(model.weights(), *arguments, **rows)
        return made._replace(h=made.h + error)

    monkeypatch.setitem(sys.modules, "gram.kernels.transition", SimpleNamespace(supervision_step=step))
    monkeypatch.setattr(gram.kernels, "transition", sys.modules["gram.kernels.transition"], raising=False)
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: None)
    monkeypatch.setattr(dispatch, "_READY", {})
    model, rows = tiny_model(), torch.arange(2)
    h, l = model.initial_state(2)
    arguments = (model.weights(), model.spec, h, l, model.embed(torch.ones(2, 16, dtype=torch.long)))
    keys = {"seed": 0, "puzzle_hash_B": rows, "trajectory_B": rows, "step_B": rows, "kernel": "fused"}
    if error == 0:
        made = dispatch.supervision_step(*arguments, **keys)
        assert torch.equal(made.h, dispatch.supervision_step(*arguments, **keys | {"kernel": "eager"}).h)
    else:
        with pytest.raises(RuntimeError, match="agree with the reference"):
            dispatch.supervision_step(*arguments, **keys)


def test_weights_are_packed_again_only_after_a_change(monkeypatch):
    monkeypatch.setattr(dispatch, "_READY", {})
    model = tiny_model()
    assert dispatch._packed(model.weights(), model.spec, torch.float32)[1]
    assert not dispatch._packed(model.weights(), model.spec, torch.float32)[1]
    model.low[0].channel.down.mul_(2)
    assert dispatch._packed(model.weights(), model.spec, torch.float32)[1]
