"""The fused kernel in Triton's interpreter, fp32, against the reference: 1e-4, for sums are taken in another order.

Triton decides at import whether kernels are interpreted, so the cases run in a process of their own.
"""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton

from gram.kernels import reference
from gram.kernels.fused import pack
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import LEARNED, Injection
from tests.models import tiny_model
from tests.unit.test_philox import KNOWN

TRITON, NUMPY = (tuple(map(int, each.__version__.split(".")[:2])) for each in (triton, np))
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in the process that test_in_a_process_* starts")
NAN = float("nan")
TILES = pack.Tuning(tile=16, token_tile=16)

if IS_INTERPRETED:
    from tests import mended_interpreter

    mended_interpreter.hasten()


def run_apart(marks: str, file: str = __file__) -> None:
    if TRITON < (3, 7) and NUMPY >= (2, 4):
        pytest.skip(
            f"the interpreter of triton {triton.__version__} makes an integer of an array of one dimension, which "
            f"numpy {np.__version__} refuses: numpy before 2.4 or triton 3.7 is needed"
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", file, "-q", "-m", marks, "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


if not IS_INTERPRETED:

    def test_in_a_process_that_interprets():
        run_apart("not slow")

    @pytest.mark.slow
    def test_in_a_process_that_interprets_slowly():
        run_apart("slow")


def launch(model, *, injection=LEARNED, rows=(0, 1, 2), active_B=None, spec=None, path="fused", dtype=torch.float32):
    """The kernel's and the reference's step of some rows of three trajectories that differ in everything.

    The reference computes in fp32, from the same weights and states as the kernel.
    """
    from gram.kernels.blocks import path as blocks
    from gram.kernels.fused import path as fused

    spec, rows = spec or model.spec, list(rows)
    generator = torch.Generator().manual_seed(5)
    h, l, e_x = (torch.randn(3, spec.length, spec.dim, generator=generator)[rows].to(dtype) for _ in range(3))
    rows_of_key = torch.tensor([[9, 2**32 - 5, 7], [0, 5, 2**31 + 1], [0, 1, 4]])[:, rows]
    key = NoiseKey((0xF0000007 << 32) | 0xE0000009, *rows_of_key)
    weights = {name: tensor.to(dtype).float() for name, tensor in model.weights().items()}
    packed = pack.pack(weights, spec, dtype, TILES)
    out = (torch.full((2, len(rows), spec.length, spec.dim), NAN, dtype=dtype), torch.full((2, len(rows)), NAN))
    step = {"fused": fused, "blocks": blocks}[path].supervision_step
    actual = step(packed, spec, h, l, e_x, key, injection=injection, active_B=active_B, out=out)
    wide = (state.float() for state in (h, l, e_x))
    return actual, reference.supervision_step(weights, spec, *wide, key, injection=injection), (h, l)


def assert_equal_to_reference(model, **options):
    actual, expected, _ = launch(model, **options)
    for name, one, other in zip(actual._fields, actual, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-4, name


ATTENTION = {"mixer": "attention", "dim": 32, "heads": 2}
CASES = {
    "token": {},
    "token-odd": {"tokens": 9, "output_tokens": 9, "hidden": 40, "mixer_hidden": 21, "guidance_hidden": 24},
    "registers": {"registers": 2, "head_readout": "register"},
    "head-hidden": {"head_hidden": 5, "noise_order": "after", "is_core_shared": False},
    "rotary": {**ATTENTION, "positions": "rotary", "tokens": 13, "output_tokens": 13},
    "no-rotary": {**ATTENTION, "noise_order": "after"},
    "two-transitions": {"transitions": 2, "low_level_updates": 3, "blocks": 1, "noise_free_steps": 0},
    "no-low-level": {"low_level_updates": 0, "is_core_shared": False},
    **{f"guidance-{name}": {"guidance": name} for name in ("mean", "noise", "none")},
}


PATHS = pytest.mark.parametrize("path", ["fused", "blocks"])
INJECTIONS = pytest.mark.parametrize(
    "injection",
    [
        *(Injection(injector="gaussian", sigma=0.3, site=site) for site in ("h", "l", "both")),
        Injection(injector="path", sigma=0.1),
        Injection(injector="none"),
        Injection(temperature=0.0),
        Injection(temperature=1.5),
    ],
    ids=lambda injection: f"{injection.injector}-{injection.site}-{injection.temperature}",
)


@interpreted
@PATHS
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case, path):
    assert_equal_to_reference(tiny_model(**CASES[case]), path=path)


@interpreted
@PATHS
@INJECTIONS
def test_every_injector(injection, path):
    assert_equal_to_reference(tiny_model(path_keep=0.05, transitions=2), injection=injection, path=path)


@interpreted
@PATHS
def test_inactive_rows_keep_their_state(path):
    active_B = torch.tensor([True, False, True])
    injection = Injection(injector="gaussian", sigma=0.3, site="both")
    actual, expected, (h, l) = launch(tiny_model(), active_B=active_B, injection=injection, path=path)
    assert torch.equal(actual.h[1], h[1])
    assert torch.equal(actual.l[1], l[1])
    assert torch.equal(actual.halt.isnan(), ~active_B)
    assert torch.equal(actual.lprm.isnan(), ~active_B)
    assert torch.allclose(actual.h[active_B], expected.h[active_B], atol=1e-4)


@interpreted
@PATHS
def test_a_trajectory_is_the_same_in_any_launch_and_slot(path):
    model = tiny_model()
    together, _, _ = launch(model, path=path)
    alone, _, _ = launch(model, rows=[2], path=path)
    turned, _, _ = launch(model, rows=[2, 1, 0, 2], path=path)
    for whole, one, other in zip(together, alone, turned, strict=True):
        assert torch.equal(whole[2], one[0])
        assert torch.equal(whole[2], other[3])
        assert torch.equal(whole[0], other[2])


@interpreted
def test_a_stored_state_may_be_expanded():
    from gram.kernels.fused import path as fused

    model = tiny_model()
    rows = torch.arange(2)
    h, l = model.initial_state(2)
    e_x = model.embed(torch.ones(1, 16, dtype=torch.long)).expand(2, -1, -1)
    key = NoiseKey(1, rows, rows, rows + 1)
    packed = pack.pack(model.weights(), model.spec, torch.float32, TILES)
    actual = fused.supervision_step(packed, model.spec, h, l, e_x, key)
    expected = reference.supervision_step(model.weights(), model.spec, h, l, e_x, key)
    assert torch.allclose(actual.h, expected.h, atol=1e-4)


if IS_INTERPRETED:
    import triton
    import triton.language as tl

    from gram.kernels import philox_triton

    @triton.jit
    def words_kernel(in_ptr, out_ptr):
        at = tl.arange(0, 1)
        word = [tl.load(in_ptr + index + at).to(tl.uint32) for index in tl.static_range(6)]
        made = philox_triton.philox4x32(word[0], word[1], word[2], word[3], word[4], word[5])
        for index in tl.static_range(4):
            tl.store(out_ptr + index + at, made[index].to(tl.int64))

    @triton.jit
    def normals_kernel(out_ptr, transition, trajectory, puzzle_hash, k0, k1, ROWS: tl.constexpr, DIM: tl.constexpr):
        at = tl.arange(0, ROWS)[:, None] * DIM + tl.arange(0, DIM)[None, :]
        made = philox_triton.normals(
            tl.load(k0), tl.load(k1), tl.load(transition), 5, tl.load(trajectory), tl.load(puzzle_hash), ROWS, DIM
        )
        tl.store(out_ptr + at, made)


@interpreted
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    out = torch.zeros(4, dtype=torch.int64)
    words_kernel[(1,)](torch.tensor([*counter, *key]), out)
    assert tuple(out.tolist()) == expected


@interpreted
def test_normals_follow_the_contract():
    from gram.kernels.philox import Site, noise

    one = {"transition": 77, "trajectory": 2**32 - 3, "puzzle_hash": 2**31 + 9, "k0": 4, "k1": 2**32 - 1}
    out = torch.full((64, 128), NAN)
    normals_kernel[(1,)](out, *(torch.tensor([value]) for value in one.values()), 64, 128)
    expected = noise(
        (64, 128),
        NoiseKey((one["k1"] << 32) | one["k0"], *torch.tensor([[one["puzzle_hash"]], [one["trajectory"]], [0]])),
        Site.PATH,
        torch.tensor([77]),
    )[0]
    assert float((out - expected).abs().max()) <= 1e-5


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["token", "attention"])
@pytest.mark.parametrize("tokens", [63, 64, 81])
@pytest.mark.parametrize("order", ["before", "after"])
def test_full_width(mixer, tokens, order):
    model = tiny_model(
        mixer=mixer, tokens=tokens, output_tokens=tokens, dim=128, heads=4, hidden=96, mixer_hidden=64,
        low_level_updates=1, positions="both", noise_order=order, head_hidden=64,
    )  # fmt: skip
    assert_equal_to_reference(model, rows=[2])


def test_what_does_not_fit_is_refused():
    spec = tiny_model().spec
    assert pack.unsupported_reason(spec) is None
    assert "dim" in (pack.unsupported_reason(replace(spec, dim=512)) or "")
    assert "tokens" in (pack.unsupported_reason(replace(spec, tokens=129)) or "")
    assert "heads of" in (pack.unsupported_reason(replace(spec, mixer="attention", heads=2)) or "")
    model = tiny_model(dim=24)
    with pytest.raises(ValueError, match="dim"):
        pack.pack(model.weights(), model.spec, torch.float32)
