"""Which kernel path is chosen, that the reason is said, and that a wrong kernel is refused."""

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from gram.config import SamplerConfig
from gram.kernels import dispatch, reference
from gram.kernels.philox import NoiseKey
from gram.sampler.run import resolve
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
    assert "fused" in unproven.reason
    wide = replace(spec, dim=512)
    assert dispatch.choose(GPU, wide, torch.bfloat16, "gemm") == ("gemm", "asked for")
    unproven = dispatch.choose(GPU, wide, torch.bfloat16)
    assert unproven.kernel == "eager"
    assert "gemm" in unproven.reason
    with pytest.raises(ValueError, match=r"512.*gemm"):
        dispatch.choose(GPU, wide, wanted="fused")
    with pytest.raises(ValueError, match=r"8.*4096.*8192"):
        dispatch.choose(GPU, replace(spec, dim=8192), wanted="gemm")
    for overrides, word in (({"dim": 512}, "512"), ({"mixer_norm": "tokens"}, "tokens")):
        with pytest.raises(ValueError, match=word):
            dispatch.choose(GPU, replace(spec, **overrides), wanted="fused")


@pytest.mark.parametrize(
    ("device", "dtype", "wanted", "message"),
    [
        (CPU, torch.float32, "fused", "fused.*GPU"),
        (CPU, torch.float32, "blocks", "blocks.*GPU"),
        (GPU, torch.float16, "fused", "float16"),
        (CPU, torch.float32, "gemm", "gemm.*GPU.*cpu"),
        (GPU, torch.float16, "gemm", "gemm.*float32.*bfloat16.*float16"),
        (CPU, torch.float32, "fast", "eager.*fast"),
    ],
)
def test_what_cannot_run_raises(device, dtype, wanted, message):
    with pytest.raises(ValueError, match=message):
        dispatch.choose(device, tiny_model().spec, dtype, wanted)


def test_every_launched_path_has_its_module():
    for launched in dispatch.LAUNCHED.values():
        assert find_spec(f"gram.kernels.{launched.module}") is not None


@pytest.mark.parametrize("kernel", ["fused", "gemm"])
@pytest.mark.parametrize("error", [0.0, 1.0, float("nan")])
def test_first_use_refuses_a_kernel_that_differs(monkeypatch, error, kernel):
    def step(packed, *arguments, injection):
        made = reference.supervision_step(model.weights(), *arguments, injection=injection)
        return made._replace(h=made.h + error)

    monkeypatch.setattr(dispatch, "import_module", lambda name: SimpleNamespace(supervision_step=step))
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: None)
    monkeypatch.setattr(dispatch, "_READY", {})
    model, rows = tiny_model(), torch.arange(2)
    h, l = model.initial_state(2)
    e_x, key = model.embed(torch.ones(2, 16, dtype=torch.long)), NoiseKey(0, rows, rows, rows)
    arguments = (model.weights(), model.spec, h, l, e_x, key)
    if error == 0:
        made = dispatch.supervision_step(*arguments, kernel=kernel)
        assert torch.equal(made.h, dispatch.supervision_step(*arguments, kernel="eager").h)
    else:
        with pytest.raises(RuntimeError, match="kernel"):
            dispatch.supervision_step(*arguments, kernel=kernel)


@pytest.mark.parametrize("kernel", ["fused", "blocks", "gemm"])
def test_weights_are_packed_again_only_after_a_change(monkeypatch, kernel):
    monkeypatch.setattr(dispatch, "_READY", {})
    model = tiny_model()
    first, is_new = dispatch._packed(model.weights(), model.spec, torch.float32, kernel)
    assert is_new
    again, is_new = dispatch._packed(model.weights(), model.spec, torch.float32, kernel)
    assert again is first
    assert not is_new
    model.low[0].channel.down.mul_(2)
    assert dispatch._packed(model.weights(), model.spec, torch.float32, kernel)[1]


def test_a_graph_is_not_made_of_weights_that_do_not_count_their_changes():
    with torch.inference_mode():
        model = tiny_model()
        weights = {name: tensor.clone() for name, tensor in model.weights().items()}
    with pytest.raises(ValueError, match=r"gemm.*inference_mode"):
        dispatch._packed(weights, model.spec, torch.float32, "gemm")


@pytest.mark.parametrize(
    ("tokens", "dim", "kernel", "sizes"),
    [
        (64, 128, "eager", (64, 64, 1024, 2048)),
        (81, 160, "gemm", (64, 64, 1024, 2048)),
        (97, 512, "eager", (16, 16, 256, 2048)),
        (97, 512, "gemm", (16, 16, 256, 2048)),
        (64, 128, "fused", (64, 64, 2048, 2048)),
        (128, 128, "blocks", (64, 64, 2048, 2048)),
    ],
)
def test_launches_are_sized_by_device_and_path(tokens, dim, kernel, sizes):
    spec = replace(tiny_model().spec, tokens=tokens, output_tokens=tokens, dim=dim)
    found = []
    for device in (CPU, GPU):
        launch = dispatch.launch_size(spec, device, kernel)
        found += [launch, dispatch.slot_count(device, launch)]
    assert tuple(found) == sizes


@pytest.mark.parametrize(("launch", "slots"), [(1, 32), (8, 256), (64, 2048), (2048, 2048), (4096, 4096)])
def test_slots_follow_a_launch_that_the_user_names(launch, slots):
    assert dispatch.slot_count(GPU, launch) == slots
    assert dispatch.slot_count(CPU, launch) == launch


@pytest.mark.parametrize(("kernel", "launch"), [("auto", 1024), ("eager", 1024), ("fused", 2048)])
def test_a_run_on_a_gpu_takes_the_launch_of_its_path(monkeypatch, kernel, launch):
    """Settings alone: no device is touched."""
    model = tiny_model()
    monkeypatch.setattr(type(model), "device", GPU)
    config = resolve(SamplerConfig(kernel=kernel), model)
    assert (config.launch, config.slots) == (launch, 2048)
    config = resolve(SamplerConfig(kernel=kernel, launch=8, slots=24), model)
    assert (config.launch, config.slots) == (8, 24)
