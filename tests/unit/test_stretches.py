"""Supervision steps as CUDA graphs, as far as a machine without a GPU can tell: what a graph may not hold, in which
order host and device are spoken to, and that what is launched is what was captured."""

import types
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gram.config import SamplerConfig
from gram.kernels import graphs, philox
from gram.kernels.fused import pack
from gram.kernels.philox import Drawn, NoiseKey
from gram.sampler import device_loop, stretches
from gram.sampler.device_loop import DeviceLoop
from gram.sampler.engine import Engine, SlotStates
from gram.sampler.run import resolve
from gram.sampler.stretches import CalledStretches, CapturedStretches
from tests.models import tiny_model
from tests.unit.test_device_loop import PUZZLES, TASK, Remote, assert_same, halting_model, results

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item", "rand", "normal")
"""How operations begin that wait for the device, give what has no fixed shape or draw by a generator's state."""


class OnTheDevice(TorchDispatchMode):
    """Refuses what must not be in a CUDA graph. Meta tensors have no values, so that whoever waits for one fails."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        name = func.__name__.split(".")[0]
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, made)) if isinstance(each, torch.Tensor)]
        if name.startswith(WAITING) or (name.startswith(("index", "_index")) and is_masked(args)):
            raise AssertionError(f"{name} waits for the device")
        if any(each.device.type != "meta" for each in tensors):
            raise AssertionError(f"{name} speaks with the host")
        return made


def is_masked(args):
    return any(each.dtype == torch.bool for each in tree_leaves(args[1]) if isinstance(each, torch.Tensor))


def refused(*_, **__):
    raise AssertionError("a tensor of numbers of the host is copied to the device")


@contextmanager
def on_the_device(monkeypatch):
    with monkeypatch.context() as patch, OnTheDevice() as mode, torch.inference_mode():
        for name in ("tensor", "as_tensor", "from_numpy"):  # no dispatch sees them
            patch.setattr(torch, name, refused)
        yield mode


def meta_loop(overrides, settings_, **more):
    """A loop whose states have no values."""
    model = tiny_model(**overrides)
    config = resolve(SamplerConfig(width=6, launch=4, slots=7, **settings_), model)
    scheduler = Engine(model, TASK, PUZZLES[:3], config, is_traced=True).scheduler
    slots = SlotStates(model.to("meta"), config, task=TASK, is_unconditional=more.pop("is_unconditional", False))
    assert slots.is_remote
    return DeviceLoop(slots, scheduler, first_halt=1, depth=3)


@pytest.mark.parametrize(
    ("overrides", "settings_"),
    [
        ({}, {}),
        ({"mixer": "attention", "positions": "rotary", "registers": 2, "head_hidden": 8}, {"halting": "residual"}),
        ({"mixer": "relations", "relations": ("row", "column", "diagonal", "up")}, {"width_policy": "decided"}),
        ({"lookup": ("row", "column")}, {"halting": "fixed", "width_policy": "verified"}),
        ({"experts": 4, "expert_hidden": 8, "experts_kept": 2}, {}),
        ({"positions": "learned"}, {"injector": "gaussian", "sigma": 0.3, "noise_site": "both"}),
        ({"guidance": "none", "initial_std": 1.0, "path_keep": 0.05, "path_noise": 0.1, "head_readout": "mean"}, {}),
    ],
    ids=lambda each: "-".join(map(str, each)) or "plain",
)
def test_a_stretch_speaks_with_no_host(overrides, settings_, monkeypatch):
    """Nothing in it waits for the device, copies from the host or has a shape that depends on values."""
    monkeypatch.setattr(device_loop, "STEPS_A_READBACK", 2)
    loop = meta_loop(overrides, settings_)
    with torch.inference_mode():
        loop.stretch()  # makes tables that are kept
    before = [each.data_ptr() for each in buffers(loop)], loop.slots.h
    with on_the_device(monkeypatch) as mode:
        loop.stretch()
    assert mode.seen > 100
    assert before[1] is loop.slots.h


def buffers(loop):
    """All that a stretch changes."""
    slots = loop.slots
    return [slots.h, slots.h_before, slots.l, slots.e_x, slots.device_names, loop.row, loop.puzzle, loop.reports.whole]


@pytest.mark.parametrize("path", ["fused", "blocks"])
def test_kernels_are_launched_without_the_host(path, monkeypatch):
    """What a step of a Triton kernel does beside its launches, which are left out."""
    module = import_module(f"gram.kernels.{path}.path")
    model = tiny_model(tokens=16, dim=16, hidden=16, mixer_hidden=16, guidance_hidden=16, head_hidden=16)
    packed = pack.pack(model.weights(), model.spec, torch.float32)
    packed = packed._replace(**{name: each.to("meta") for name, each in packed._asdict().items() if is_tensor(each)})
    launched = []
    monkeypatch.setattr(module.fused if path == "blocks" else module, "launch", lambda *given: launched.append(given))
    monkeypatch.setattr(module, "target_of", lambda device: "sm_90")
    h, l, e_x = torch.zeros(3, 5, model.spec.length, 16, device="meta")
    key = NoiseKey(2**40 + 3, *torch.zeros(3, 5, dtype=torch.int64, device="meta"))
    with on_the_device(monkeypatch) as mode:
        step = module.supervision_step(packed, model.spec, h, l, e_x, key)
    assert step.h.shape == h.shape
    assert launched
    assert mode.seen


def is_tensor(each):
    return isinstance(each, torch.Tensor)


class Recorder(TorchDispatchMode):
    """Writes down every operation."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made


class Gpu:
    """Passes for one: a graph is the operations that were recorded, on the very tensors on which they were; recording
    changes nothing. `log` is what it was asked for."""

    def __init__(self, patch):
        self.log, self.loop = [], None
        gpu = self

        class Graph:
            calls = None

            def replay(self):
                gpu.log.append("replay")
                with torch.inference_mode():
                    for func, args, kwargs, before in self.calls:
                        made = func(*args, **kwargs)
                        for old, new in zip(tree_leaves(before), tree_leaves(made), strict=True):
                            if is_tensor(old) and old.data_ptr() != new.data_ptr():
                                old.copy_(new)

        @contextmanager
        def graph(captured, *, pool, stream, capture_error_mode):
            assert (pool, stream, capture_error_mode) == ("pool", "aside", "thread_local")
            gpu.log.append("capture")
            kept = [each.clone() for each in buffers(gpu.loop)]
            with Recorder() as recorder:
                yield
            captured.calls = recorder.calls
            for each, before in zip(buffers(gpu.loop), kept, strict=True):
                each.copy_(before)

        class Event:
            def record(self):
                self.number = sum(each.startswith("launched") for each in gpu.log)
                gpu.log.append(f"launched {self.number}")

            def synchronize(self):
                gpu.log.append(f"read {self.number}")

        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", graph)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        patch.setattr(torch.cuda, "Stream", lambda device: "aside")
        patch.setattr(torch.cuda, "current_stream", lambda: None)
        # The end of inference mode would end the recorder that begins in it.
        inference = torch.inference_mode
        patch.setattr(torch, "inference_mode", lambda mode=True: inference() if mode else nullcontext())

        class OnGpu(DeviceLoop):
            def __init__(self, *arguments, **more):
                super().__init__(*arguments, **more)
                gpu.loop = self
                self.stretches = CapturedStretches(torch.device("cuda"), lambda: "kept")
                self.reports.arrived = [Event() for _ in range(stretches.AHEAD)]

        patch.setattr(Engine, "kind_of_loop", OnGpu)


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize(
    "settings_", [{}, {"halting": "residual", "halt_threshold": 0.3}, {"width_policy": "decided"}], ids=str
)
def test_a_captured_stretch_does_what_a_called_one_does(settings_, is_traced, monkeypatch):
    """Bit for bit, though nothing of Python's runs; and the host reads a report once the next stretch is launched."""
    model = halting_model(depth=9)
    config = resolve(SamplerConfig(width=13, launch=4, slots=10, **settings_), model)
    _, host = results(model, config, is_traced=is_traced)
    gpu = Gpu(monkeypatch)
    _, device = results(model, config, kind=Remote, is_on_device=True, is_traced=is_traced)
    assert_same(host, device)
    assert gpu.loop.stretches.kept == "kept"
    launched = [each for each in gpu.log if each.startswith("launched")]
    assert gpu.log.count("capture") == gpu.loop.stretches.captures == 1
    assert gpu.log.count("replay") == len(launched) - stretches.CALLED_FIRST > 0
    order = [each for each in gpu.log if each not in ("capture", "replay")]
    number = len(launched)
    expected = ["launched 0"] + [each for k in range(1, number) for each in (f"launched {k}", f"read {k - 1}")]
    assert order == [*expected, f"read {number - 1}"]


def test_graphs_follow_how_random_numbers_are_drawn(monkeypatch):
    """Compiling begins with as many as where nothing is captured, outside a graph, and takes a new one."""
    monkeypatch.setattr(stretches, "CALLED_FIRST", 1)
    model = halting_model(depth=9)
    config = resolve(SamplerConfig(width=13, launch=4, slots=10), model)
    monkeypatch.setattr(Drawn, "elements", 0)
    _, host = results(model, config, kind=Remote, is_on_device=True)
    drawn = Drawn.elements
    gpu = Gpu(monkeypatch)
    compiled = []

    def bits(*arguments):
        compiled.append(gpu.log[-1])
        return philox._bits(*arguments)

    monkeypatch.setattr(philox, "_compiled_bits", lambda: bits)
    monkeypatch.setattr(philox, "COMPILE_FROM_ELEMENTS", drawn // 2)
    monkeypatch.setattr(Drawn, "elements", 0)
    _, device = results(model, config, kind=Remote, is_on_device=True)
    assert_same(host, device)
    assert Drawn.elements == drawn
    assert gpu.loop.stretches.captures == 2
    assert compiled[0] != "capture"
    assert compiled[-1] == "capture"
    assert gpu.loop.stretches.is_compiled


class Copies(TorchDispatchMode):
    """Counts copies between the memory of host and device."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu, self.count = gpu, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.startswith("copy_") and self.gpu.loop is not None:
            loop = self.gpu.loop
            host = [each.data_ptr() for each in map(storage, (loop.mirror, loop.decided, *loop.reports.copies))]
            self.count += sum(storage(each).data_ptr() in host for each in args[:2]) == 1
        return func(*args, **(kwargs or {}))


def storage(tensor):
    return tensor.untyped_storage()


@pytest.mark.parametrize("policy", ["fixed", "decided", "verified"])
def test_copies_and_waits_of_a_stretch(policy, monkeypatch):
    """At most four and one, less than one for each supervision step; slots copy nothing beside."""
    model = halting_model(depth=9)
    config = resolve(SamplerConfig(width=13, launch=4, slots=10, width_policy=policy), model)
    gpu = Gpu(monkeypatch)
    with Copies(gpu) as copies:
        there, _ = results(model, config, kind=Remote, is_on_device=True)
    launched = sum(each.startswith("launched") for each in gpu.log)
    assert launched < copies.count <= 4 * launched
    assert sum(each.startswith("read") for each in gpu.log) == launched
    assert there.slots.copies == 0


def test_a_stretch_is_called_again_where_something_is_new(monkeypatch):
    """As where another model's weights were packed since the last one: they would be packed inside the graph."""
    monkeypatch.setattr(stretches, "CALLED_FIRST", 2)
    gpu = Gpu(monkeypatch)
    kept = iter("aabcdd")  # read after each call, and again before the next stretch
    gpu.loop = meta_loop({}, {})
    made = CapturedStretches(torch.device("cuda"), lambda: next(kept))
    called = []
    for _ in range(5):
        made.run(lambda: called.append(len(gpu.log)))
    assert gpu.log == ["capture", "replay", "replay"]
    assert called == [0, 0, 0, 1]
    assert made.kept == "d"


@pytest.mark.parametrize("was_begun", [True, False])
def test_a_failed_capture_says_what_to_do_and_is_not_under_way_for_good(was_begun, monkeypatch):
    """What failed first is told, and not what PyTorch says of it when the capture ends."""
    log = []

    @contextmanager
    def graph(*_, **__):
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def end(device, pool):
        log.append(("end", device, pool))
        if not was_begun:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def stretch():
        if log:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "aside")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: log.append("pool") or "pool")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *given: log.append(("release", *given)))
    made = CapturedStretches(torch.device("cuda"), lambda: None)
    for _ in range(stretches.CALLED_FIRST):
        made.run(stretch)
    with pytest.raises(RuntimeError, match=r"got: CUDA error: .* is capturing; GRAM_GRAPHS=off runs without"):
        made.run(stretch)
    assert log == ["pool", ("end", 3, "pool"), ("release", 3, "pool")][: 2 + was_begun]


def test_a_capture_that_does_not_begin_leaves_the_stream_as_it_was(monkeypatch):
    """And begins outside inference mode, in which the random generator's memory would be one that later captures may
    not fill; what is captured is in inference mode as before."""
    current, seen = ["own"], []

    @contextmanager
    def stream(wanted):
        before, current[0] = current[0], wanted
        try:
            yield
        finally:
            current[0] = before

    class Graph:
        """As PyTorch's: its stream is current before the capture begins."""

        fails = False

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            seen.append(torch.is_inference_mode_enabled())
            current[0] = "aside"
            if self.fails:
                raise RuntimeError("CUDA error: a capture is under way")

        def __exit__(self, *_):
            current[0] = "own"

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(graphs, "_give_up", lambda _: None)
    made = partial(graphs.capture, stream="aside", pool="pool", what="it")
    with torch.inference_mode():
        made(lambda: seen.append(torch.is_inference_mode_enabled()))
    assert seen == [False, True]
    Graph.fails = True
    with pytest.raises(RuntimeError, match="it must become a CUDA graph, got: CUDA error: a capture is under way"):
        made(lambda: pytest.fail("must not run"))
    assert current == ["own"]


def test_who_is_captured(monkeypatch):
    """Not kernel gemm, whose step is a graph, nor eager in many launches, nor weights that must be packed anew at every
    step."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "aside")
    weights = {"a": torch.zeros(2)}
    with torch.inference_mode():
        uncounted = {"a": torch.zeros(2)}

    def kind(kernel, weights, *, is_cuda=True, launches=4):
        h = types.SimpleNamespace(is_cuda=is_cuda, device=torch.device("cuda"), dtype=torch.float32)
        config, size = types.SimpleNamespace(kernel=kernel), {"rows": 16 * launches, "launch": 16}
        return type(device_loop.stretches_of(types.SimpleNamespace(h=h, config=config, weights=weights, **size)))

    assert kind("fused", weights) is kind("blocks", weights) is kind("eager", uncounted) is CapturedStretches
    assert kind("fused", weights, launches=5) is CapturedStretches
    assert kind("eager", weights, launches=5) is CalledStretches
    assert kind("gemm", weights) is kind("fused", uncounted) is CalledStretches
    assert kind("eager", weights, is_cuda=False) is CalledStretches
    monkeypatch.setenv("GRAM_GRAPHS", "off")
    assert kind("eager", weights) is CalledStretches
    monkeypatch.setenv("GRAM_GRAPHS", "no")
    with pytest.raises(ValueError, match="GRAM_GRAPHS must be on or off, got 'no'"):
        kind("eager", weights)
