"""The Triton kernels in bfloat16, and the bytes they move, in Triton's interpreter with its faults mended.

Relative error 2e-2 against the reference in fp32 with the same weights: every activation is rounded to 2^-9. The cases
run in a process of their own, as those of test_kernel_interpreted.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gram.kernels import cost, dispatch, first_use
from gram.kernels.fused import pack
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import LEARNED, Injection
from tests.models import tiny_model
from tests.unit.test_kernel_interpreted import ATTENTION, CASES, IS_INTERPRETED, PATHS, interpreted, launch, run_apart

LIMIT = 2e-2
GAUSSIAN = Injection(injector="gaussian", sigma=0.3, site="both")

if IS_INTERPRETED:
    import triton
    import triton.language as tl

    from gram.kernels.blocks import path as blocks
    from tests import mended_interpreter

    @triton.jit
    def product_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
        at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
        made = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
        tl.store(out_ptr + at, made.to(tl.bfloat16))

else:

    def test_in_a_process_that_interprets():
        run_apart("not slow", __file__)

    @pytest.mark.slow
    def test_in_a_process_that_interprets_slowly():
        run_apart("slow", __file__)


def error_of(actual, expected):
    """Relative error by roots of mean squares; of heads, absolute below 1."""
    gap = (actual.float() - expected).square().mean().sqrt()
    return float(gap / expected.square().mean().sqrt().clamp(min=1 if expected.dim() == 1 else 0))


def assert_close(model, **options):
    with mended_interpreter.bfloat16():
        actual, expected, _ = launch(model, dtype=torch.bfloat16, **options)
    assert actual.h.dtype is torch.bfloat16
    errors = {name: error_of(*pair) for name, *pair in zip(actual._fields, actual, expected, strict=True)}
    print(errors)
    assert all(error <= LIMIT for error in errors.values()), errors
    assert errors["h"] > 1e-5, "bfloat16 must have rounded"


@interpreted
@PATHS
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_close_to_the_reference(case, path):
    assert_close(tiny_model(**CASES[case]), path=path)


@interpreted
@PATHS
@pytest.mark.parametrize(
    "injection", [GAUSSIAN, Injection(injector="path", sigma=0.1)], ids=lambda injection: injection.injector
)
def test_published_noise_in_bfloat16(injection, path):
    assert_close(tiny_model(path_keep=0.05, transitions=2), injection=injection, path=path)


@interpreted
@PATHS
@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["token", "attention"])
@pytest.mark.parametrize("tokens", [63, 64, 81])
def test_full_width_in_bfloat16(mixer, tokens, path):
    model = tiny_model(
        mixer=mixer, tokens=tokens, output_tokens=tokens, dim=128, heads=4, hidden=96, mixer_hidden=64,
        low_level_updates=1, positions="both", head_hidden=64,
    )  # fmt: skip
    assert_close(model, rows=[2], path=path)


@interpreted
@pytest.mark.parametrize("path", ["fused", "blocks", "gemm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("injection", [LEARNED, GAUSSIAN], ids=lambda injection: injection.injector)
def test_the_first_use_refuses_no_kernel(monkeypatch, path, dtype, injection):
    """By the way that a run takes; it would refuse one without noise, though the first step has none."""
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: None)
    monkeypatch.setattr(first_use, "ROWS", 8)
    model, rows = tiny_model(head_hidden=5).to(dtype), torch.arange(8)
    e_x = model.embed(torch.ones(8, 16, dtype=torch.long))
    launched = (model.weights(), model.spec, *model.initial_state(8), e_x, NoiseKey(0, rows, rows, rows * 0))
    with mended_interpreter.bfloat16():
        dispatch.supervision_step(*launched, injection=injection, kernel=path)


@interpreted
def test_the_mended_interpreter_rounds_and_multiplies():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, 32, generator=generator).to(torch.bfloat16) for _ in range(2))
    out = torch.full((32, 32), float("nan"), dtype=torch.bfloat16)
    expected = (a.double() @ b.double()).float()
    with mended_interpreter.bfloat16():
        product_kernel[(1,)](a, b, out, 32)
    assert torch.allclose(out.float(), expected, rtol=2**-8, atol=1e-5)


@interpreted
def test_rounding_is_that_of_pytorch():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 1_000, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    made = torch.from_numpy(mended_interpreter.rounded(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(made.view(torch.int16), expected.view(torch.int16))
    assert np.array_equal(mended_interpreter.widened(mended_interpreter.rounded(values)), expected.float().numpy())
    assert np.isnan(mended_interpreter.widened(mended_interpreter.rounded(np.array([np.nan], np.float32))))


MOVES = {
    "token": {"noise_free_steps": 0},
    "odd": {"tokens": 9, "output_tokens": 9, "noise_free_steps": 0},
    "rotary": {**ATTENTION, "positions": "rotary", "noise_free_steps": 0, "noise_order": "after"},
    "longer": {"transitions": 2, "low_level_updates": 3, "blocks": 1, "noise_free_steps": 0},
    "kept": {"transitions": 2, "low_level_updates": 3, "path_keep": 0.1, "noise_free_steps": 0},
    "no-low-level": {"low_level_updates": 0, "noise_free_steps": 0, "is_core_shared": False},
    "no-guidance": {"guidance": "none", "head_hidden": 16},
}


@interpreted
@PATHS
@pytest.mark.parametrize("case", MOVES)
def test_the_counts_of_bytes_are_what_the_kernels_move(case, path):
    """States, keys and heads of one trajectory: every byte under a mask; weights apart, which programs share."""
    model = tiny_model(**MOVES[case])
    weights, spec = model.weights(), model.spec
    with mended_interpreter.bfloat16(), mended_interpreter.traffic() as counted:
        launch(model, dtype=torch.bfloat16, path=path)
    moved = counted.loaded["bf16"] + counted.stored["bf16"] + counted.loaded["int64"] + counted.stored["fp32"]
    count = {"fused": cost.fused_step, "blocks": cost.blocks_step}[path]
    one, four = (count(weights, spec, rows, torch.bfloat16) for rows in (1, 4))
    assert moved == four.bytes - one.bytes  # of the three trajectories launched
    assert counted.tiles > 0
    if path == "blocks":
        from gram.kernels.fused import path as fused

        fixed = fused.constants(spec, pack.layout_of(weights, spec), Injection(), has_active=False, precision="ieee")
        assert one.launches == len(list(blocks.launches(spec, fixed)))
