"""The Triton kernels on a GPU, against the reference in float64; runs only where there is one."""

from importlib import import_module

import pytest
import torch

import gram
from gram.kernels import dispatch, first_use, reference
from gram.kernels.fused import pack
from gram.kernels.philox import NoiseKey
from gram.kernels.resources import shapes_of
from gram.kernels.spec import Injection
from gram.sampler import stretches
from gram.sampler.engine import Engine
from gram.sampler.run import shards_of
from tests.kernel_presets import FUSED, GEMM
from tests.models import tiny_model
from tests.unit.test_device_loop import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


TYPES = pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=["float32", "bfloat16"]
)
"""Named, since `scripts/bench_gpu.sh` takes the tests in bfloat16 first."""


@TYPES
@pytest.mark.parametrize("mixer", ["token", "attention"])
@pytest.mark.parametrize("tokens", [9, 63, 64, 81])
@pytest.mark.parametrize("path", ["fused", "blocks"])
def test_equals_float64(dtype, limit, mixer, tokens, path):
    """Relative error of the states; norms and noise are fp32 there too, and bf16 rounds every activation (2^-9)."""
    from gram.kernels.blocks import path as blocks
    from gram.kernels.fused import path as fused

    step = {"fused": fused, "blocks": blocks}[path].supervision_step
    model = tiny_model(
        mixer=mixer, tokens=tokens, output_tokens=tokens, dim=128, heads=4, hidden=256, mixer_hidden=128,
        positions="both", guidance_hidden=128,
    ).to("cuda", dtype)  # fmt: skip
    generator = torch.Generator("cuda").manual_seed(0)
    shape, rows = (33, tokens, 128), torch.arange(33, device="cuda")
    h, l, e_x = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(3))
    key = NoiseKey(2**40 + 3, rows % 5, rows, rows % 3)
    out = (torch.full((2, *shape), float("nan"), device="cuda", dtype=dtype), torch.full((2, 33), 0.0, device="cuda"))
    packed = pack.pack(model.weights(), model.spec, dtype)
    actual = step(packed, model.spec, h, l, e_x, key, out=out)
    weights = {name: tensor.double() for name, tensor in model.weights().items()}
    expected = reference.supervision_step(weights, model.spec, h.double(), l.double(), e_x.double(), key)
    for one, other in ((actual.h, expected.h), (actual.l, expected.l)):
        gap = (one.double() - other).square().mean().sqrt() / other.square().mean().sqrt()
        assert float(gap) <= limit
    for one, other in ((actual.halt, expected.halt), (actual.lprm, expected.lprm)):
        assert float((one - other).abs().max() / other.abs().max().clamp(min=1)) <= limit
    alone = step(packed, model.spec, h[7:8], l[7:8], e_x[7:8], key.at(slice(7, 8)))
    assert torch.equal(alone.h[0], actual.h[7])


@pytest.mark.parametrize(("tokens", "group"), [(64, 2), (55, 2), (36, 3), (40, 3)])
@pytest.mark.parametrize("mixer", ["token", "attention"])
def test_a_trajectory_is_the_same_in_every_place_of_a_program_in_bfloat16(mixer, tokens, group):
    """Bit for bit: the order of a sum over tokens does not show where among others a trajectory stands."""
    from gram.kernels.fused import path as fused

    model = tiny_model(
        mixer=mixer, tokens=tokens, output_tokens=tokens, dim=128, heads=4, hidden=256, mixer_hidden=128,
        positions="both", guidance_hidden=128, head_hidden=64,
    ).to("cuda", torch.bfloat16)  # fmt: skip
    inputs, key = first_use.made_up(model.spec, torch.bfloat16, model.device, 31)
    cut = pack.Tuning(stages=2, group=group, output_lag=int(mixer == "attention" and group == 3))
    packed = pack.pack(model.weights(), model.spec, torch.bfloat16, cut)
    together = fused.supervision_step(packed, model.spec, *inputs, key)
    truth = first_use.truth(model.weights(), model.spec, torch.bfloat16, (inputs, key))
    assert not first_use.excess(first_use.errors(together, truth.expected), truth.eager)
    for shift in range(1, group + 1):
        later = fused.supervision_step(packed, model.spec, *(x[shift:] for x in inputs), key.at(slice(shift, None)))
        for whole, part in zip(together, later, strict=True):
            assert torch.equal(whole[shift:], part)


def test_a_launch_finds_the_cut_that_was_compiled_ahead_in_bfloat16(tmp_path, monkeypatch):
    """By processes that used no GPU; it compiles nothing."""
    from gram.kernels.fused import ahead
    from gram.kernels.fused import path as fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model = gram.load("sudoku6").model.to("cuda", torch.bfloat16).requires_grad_(False)
    cut = pack.Tuning(warps=4, tile=64, token_tile=64)
    asked = ahead.request(model.device, model.spec, shapes_of(model.weights()), model.dtype, cut, 64)
    assert ahead.compile_all([asked], 1) == [None]
    compiled = sorted(tmp_path.rglob("*.ttir"))
    assert compiled
    states, key = first_use.made_up(model.spec, model.dtype, model.device, 64)
    fused.supervision_step(pack.pack(model.weights(), model.spec, model.dtype, cut), model.spec, *states, key)
    torch.cuda.synchronize()
    assert sorted(tmp_path.rglob("*.ttir")) == compiled


@pytest.mark.parametrize("path", ["fused", "blocks"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "injection",
    [Injection(), Injection(injector="gaussian", sigma=0.3, site="both"), Injection(injector="path", sigma=0.1)],
    ids=lambda injection: injection.injector,
)
def test_longer_recurrences_with_every_noise(path, order, injection):
    """Two transitions, a kept share, inactive rows: states are stored and loaded again by other threads.

    Not more transitions: with random weights a third one magnifies rounding ten thousandfold, in the reference too.
    """
    from gram.kernels.blocks import path as blocks
    from gram.kernels.fused import path as fused

    step = {"fused": fused, "blocks": blocks}[path].supervision_step
    model = tiny_model(
        tokens=64, output_tokens=64, dim=128, hidden=96, mixer_hidden=64, guidance_hidden=64, transitions=2,
        low_level_updates=3, noise_order=order, path_keep=0.05, head_hidden=64,
    ).to("cuda")  # fmt: skip
    generator = torch.Generator("cuda").manual_seed(1)
    rows = torch.arange(300, device="cuda")
    h, l, e_x = (torch.randn(300, 64, 128, generator=generator, device="cuda") for _ in range(3))
    key = NoiseKey(3, rows % 7, rows, rows % 3)
    active_B = rows % 4 != 1
    packed = pack.pack(model.weights(), model.spec, torch.float32)
    actual = step(packed, model.spec, h, l, e_x, key, active_B=active_B)
    weights = {name: tensor.double() for name, tensor in model.weights().items()}
    expected = reference.supervision_step(weights, model.spec, h.double(), l.double(), e_x.double(), key)
    for one, other, start in ((actual.h, expected.h, h), (actual.l, expected.l, l)):
        gap = (one.double() - other)[active_B].square().mean().sqrt() / other[active_B].square().mean().sqrt()
        assert float(gap) <= 1e-4
        assert torch.equal(one[~active_B], start[~active_B])
    assert torch.equal(actual.halt.isnan(), ~active_B)


WIDE = {
    "token-97": {"mixer": "token", "tokens": 97, "output_tokens": 97, "mixer_hidden": 192},
    "norm-over-tokens-81": {
        "mixer": "token", "tokens": 81, "output_tokens": 81, "mixer_hidden": 160, "mixer_norm": "tokens"
    },
    "attention-96": {"mixer": "attention", "tokens": 96, "output_tokens": 96, "heads": 8, "positions": "rotary"},
}  # fmt: skip


@TYPES
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("shape", WIDE)
def test_kernel_c_equals_float64(dtype, limit, order, shape):
    """As above at D = 512; the graph is captured once and gives every later step, in any slot, bit for bit.

    In bf16 one transition: a second magnifies the rounding, eager's as well.
    """
    from gram.kernels.gemm import pack as gemm_pack
    from gram.kernels.gemm import path as gemm

    model = tiny_model(
        dim=512, hidden=1536, guidance_hidden=512, noise_order=order, head_hidden=64,
        transitions=1 if dtype == torch.bfloat16 else 2, **WIDE[shape],
    ).to("cuda", dtype)  # fmt: skip
    spec, rows = model.spec, torch.arange(33, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = (33, spec.length, 512)
    h, l, e_x = (torch.randn(sizes, generator=generator, device="cuda").to(dtype) for _ in range(3))
    key = NoiseKey(2**40 + 3, rows % 5, rows, rows % 3)
    out = (torch.full((2, *sizes), float("nan"), device="cuda", dtype=dtype), torch.full((2, 33), 0.0, device="cuda"))
    matrices = gemm_pack.pack(model.weights(), spec, dtype)
    actual = gemm.supervision_step(matrices, spec, h, l, e_x, key, out=out)
    (ready,) = matrices.captured.values()
    graph = ready.graph
    assert graph is not None
    weights = {name: tensor.double() for name, tensor in model.weights().items()}
    expected = reference.supervision_step(weights, spec, h.double(), l.double(), e_x.double(), key)
    for one, other in ((actual.h, expected.h), (actual.l, expected.l)):
        gap = (one.double() - other).square().mean().sqrt() / other.square().mean().sqrt()
        assert float(gap) <= limit
    for one, other in ((actual.halt, expected.halt), (actual.lprm, expected.lprm)):
        assert float((one.double() - other.double()).abs().max()) <= 10 * limit
    turned = NoiseKey(key.seed, *(part.flip(0) for part in key[1:]))
    again = gemm.supervision_step(matrices, spec, h.flip(0), l.flip(0), e_x.flip(0), turned)
    assert [each.graph for each in matrices.captured.values()] == [graph]
    for one, other in zip(again, actual, strict=True):
        assert torch.equal(one.flip(0), other)
    active_B = rows % 2 == 0
    some = gemm.supervision_step(matrices, spec, h, l, e_x, key, active_B=active_B)
    assert torch.equal(some.h[~active_B], h[~active_B])
    assert torch.equal(some.h[active_B], actual.h[active_B])


@pytest.mark.parametrize("injection", [Injection(), Injection(injector="gaussian", sigma=0.3, site="both")])
@pytest.mark.parametrize(
    ("name", "path"), [*((name, path) for name in FUSED for path in ("fused", "blocks", "gemm")),
                       *((name, "gemm") for name in GEMM)],
)  # fmt: skip
def test_shipped_models_are_not_refused_at_first_use_in_bfloat16(name, path, injection):
    """By the way that a run takes, at a launch of its size."""
    model = gram.load(name).model.to("cuda", torch.bfloat16)
    count = dispatch.launch_size(model.spec, model.device, path)
    rows = torch.arange(count, device="cuda")
    e_x = model.embed(torch.ones(count, model.config.tokens, dtype=torch.long, device="cuda"))
    key = NoiseKey(0, rows, rows, torch.zeros_like(rows))
    made = model.step(*model.initial_state(count), e_x, key, injection=injection, kernel=path)
    assert bool(made.h.isfinite().all())


@pytest.mark.parametrize("mixer", ["token", "attention"])
@pytest.mark.parametrize("path", ["fused", "blocks", "gemm"])
def test_a_step_is_the_same_every_time_in_bfloat16(path, mixer):
    """Bit for bit, three hundred times: threads that read before others have written would be seen."""
    model = tiny_model(
        mixer=mixer, tokens=64, output_tokens=64, dim=128, heads=4, hidden=256, mixer_hidden=128, positions="both",
        guidance_hidden=128, head_hidden=64, transitions=2,
    ).to("cuda", torch.bfloat16)  # fmt: skip
    launched = dispatch.LAUNCHED[path]
    step = import_module(f"gram.kernels.{launched.module}").supervision_step
    inputs, key = first_use.made_up(model.spec, torch.bfloat16, model.device, 600)
    packed = launched.packer(model.weights(), model.spec, torch.bfloat16)
    first = step(packed, model.spec, *inputs, key)
    for _ in range(300):
        for one, other in zip(step(packed, model.spec, *inputs, key), first, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "asked", [{}, {"width_policy": "decided"}, {"halting": "residual", "halt_threshold": 0.05}], ids=str
)
@pytest.mark.parametrize("kernel", ["eager", "fused", "gemm"])
def test_a_loop_on_the_device_samples_as_the_engine_does_in_bfloat16(kernel, asked, monkeypatch):
    """Traced, bit for bit: as one graph of several steps, with steps that are called, and with a host that is asked
    after each. In one launch, so that no path's rounding follows its rows."""
    sampler = gram.load("sudoku6", device="cuda", dtype="bfloat16")
    puzzles = sampler.task.split("test", limit=20).puzzles
    config = sampler.settings(width=40, slots=64, launch=64, kernel=kernel, **asked)
    monkeypatch.setattr(stretches, "CALLED_FIRST", 1)
    made, captures = {}, {}
    for name, is_on_device, graphs in (("graph", True, "on"), ("called", True, "off"), ("host", False, "on")):
        monkeypatch.setenv("GRAM_GRAPHS", graphs)
        engine = Engine(sampler.model, sampler.task, puzzles, config, is_traced=True)
        assert engine.is_on_device
        engine.is_on_device = is_on_device
        made[name] = {shard: result.arrays() for shard, result in engine.run(shards_of(len(puzzles), config))}
        captures[name] = engine.loop.stretches.captures if engine.loop else 0
    assert captures == {"graph": kernel != "gemm", "called": 0, "host": 0}
    assert_same(made["host"], made["called"])
    assert_same(made["host"], made["graph"])
