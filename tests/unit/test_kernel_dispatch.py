"""Which kernel path is chosen, that the reason is said, and that a wrong kernel is refused."""

from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gram.config import SamplerConfig
from gram.kernels import dispatch, reference
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Injection
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
        (729, 48, "eager", (4, 4, 256, 2048)),
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


class _Seen(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("injection", [Injection(), Injection(injector="gaussian", sigma=0.3, site="both")])
def test_a_step_makes_no_tensor_of_a_python_number(injection):
    """On a GPU each is a copy that waits for all work before it, and is illegal while a graph is captured."""
    model, rows = tiny_model(transitions=2, mixer="attention", positions="both"), torch.arange(2)
    h, l = model.initial_state(2)
    e_x = model.embed(torch.ones(2, 16, dtype=torch.long))
    with _Seen() as before:
        torch.tensor(1)
    assert [name for name in before.names if "lift" in name], "else nothing would be found below"
    with _Seen() as seen:
        model.step(h, l, e_x, NoiseKey(0, rows, rows, rows + 1), injection=injection)
    assert len(seen.names) > 100
    assert not [name for name in seen.names if "lift" in name]


@pytest.mark.parametrize("path", ["fused", "blocks", "gemm"])
def test_kernels_run_on_the_device_of_their_states(monkeypatch, path):
    """Else `cuda:1` would run on the stream of `cuda:0`."""
    from gram.kernels.fused import path as fused

    entered = []

    @contextmanager
    def device(chosen):
        entered.append(chosen)
        yield

    model = tiny_model()
    real = fused.on_device
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(fused, "on_device", lambda _: real(torch.device("cuda:1")))
    h, l = model.initial_state(3 if path == "gemm" else 0)
    e_x, key = torch.zeros_like(h), NoiseKey(0, *[torch.arange(len(h))] * 3)
    launched = dispatch.LAUNCHED[path]
    module = import_module(f"gram.kernels.{launched.module}")
    if path == "gemm":
        plan = SimpleNamespace(
            given=lambda: [torch.zeros(each.shape, dtype=each.dtype) for each in (h, l, e_x, *key[1:])],
            write_numbers=lambda *_: None, run=lambda: None,
            state=torch.zeros(2, *h.shape), score=torch.zeros(2, len(h)),
        )  # fmt: skip
        monkeypatch.setattr(module, "captured", lambda *_, **__: SimpleNamespace(plan=plan, graph=None))
    packed = launched.packer(model.weights(), model.spec, torch.float32)
    module.supervision_step(packed, model.spec, h, l, e_x, key)
    assert entered == [torch.device("cuda:1")]
    entered.clear()
    with real(torch.device("cpu")):
        assert not entered
