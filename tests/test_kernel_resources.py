"""The fused kernel compiles for every device we name, within its budgets; no GPU is needed."""

from dataclasses import replace
from typing import Any

import pytest

from gram.config import ModelConfig
from gram.kernels import gemm_resources, resources
from gram.kernels.reference import LEARNED, Injection
from tests.kernel_presets import SHIPPED, shipped_config, spec_and_shapes

STACK_BUDGET, SHARED_BUDGET = 64, 227 * 1024
SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_90": SHARED_BUDGET, "sm_100": SHARED_BUDGET, "gfx942": 64 * 1024}
"""Shared memory that a program may have on each device."""


def assert_within_budget(made: resources.Resources) -> None:
    assert made.stack_bytes <= STACK_BUDGET, made
    assert made.shared_bytes <= SHARED_BUDGET, made
    assert made.products == "wgmma.mma_async", made


def test_one_shipped_model_fits_an_sm_90():
    assert_within_budget(resources.compile_apart(*spec_and_shapes(shipped_config("nqueens8")), "sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("target", list(resources.TARGETS))
def test_every_shipped_model_compiles(name, target):
    made = resources.compile_apart(*spec_and_shapes(shipped_config(name)), target)
    print(name, made)
    if target == "sm_90":
        assert_within_budget(made)
    assert made.products == {"sm_80": "mma.sync", "gfx942": "mfma", "sm_90": "wgmma.mma_async"}.get(
        target, made.products
    )
    assert made.product_count > 0


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["token", "attention"])
def test_above_64_rows_compiles_and_reports(mixer):
    config = ModelConfig(
        tokens=81, output_tokens=81, vocabulary=11, mixer=mixer, hidden=320, positions="both", is_core_shared=False
    )
    print(mixer, resources.compile_apart(*spec_and_shapes(config), "sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "injection",
    [Injection(injector="gaussian", sigma=0.3, site="both"), Injection(injector="path", sigma=0.01)],
    ids=lambda injection: injection.injector,
)
def test_published_injectors_fit_an_sm_90(injection):
    spec, shapes = spec_and_shapes(shipped_config("nqueens8"))
    spec = replace(spec, noise_order="after", path_keep=0.05)
    assert_within_budget(resources.compile_apart(spec, shapes, "sm_90", injection))


WIDE = {
    "token": {"mixer": "token", "tokens": 97, "mixer_hidden": 192},
    "norm-over-tokens": {"mixer": "token", "tokens": 97, "mixer_hidden": 192, "mixer_norm": "tokens"},
    "attention": {"mixer": "attention", "tokens": 96, "heads": 8, "positions": "rotary"},
}


def assert_kernel_c_within_budget(mixer: str, target: str, injection: Injection = LEARNED, **overrides: Any) -> None:
    """Every kernel of a step at D = 512: no stack, so nothing is spilled; matrix units where there is a product."""
    shape = WIDE[mixer] | overrides
    config = ModelConfig(dim=512, hidden=1536, guidance_hidden=512, transitions=3, output_tokens=81, **shape)
    made = gemm_resources.compile_apart(*spec_and_shapes(config), target, injection)
    print(mixer, *made.items(), sep="\n")
    names = {name.split("-")[0] for name in made}
    mixing = "attention" if mixer == "attention" else "token_mix"
    assert {"gate", "settle", "readout", mixing} <= names
    for name, used in made.items():
        assert used.stack_bytes == 0, (name, used)
        assert used.shared_bytes <= SHARED_LIMITS[target], (name, used)
        if name.startswith(mixing):
            wanted = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "mfma"}
            assert used.products == wanted[target], used


def test_kernel_c_fits_an_sm_90():
    assert_kernel_c_within_budget("attention", "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", WIDE)
@pytest.mark.parametrize("target", list(resources.TARGETS))
def test_kernel_c_compiles(mixer, target):
    assert_kernel_c_within_budget(mixer, target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "injection",
    [Injection(injector="gaussian", sigma=0.3, site="both"), Injection(injector="path", sigma=0.01)],
    ids=lambda injection: injection.injector,
)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_kernel_c_compiles_with_published_injectors(injection, target):
    more = {"noise_order": "after", "path_keep": 0.05, "head_hidden": 64, "is_core_shared": False}
    assert_kernel_c_within_budget("token", target, injection, **more)


def test_an_interpreting_process_refuses_to_compile(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        resources.compile_step(*spec_and_shapes(shipped_config("nqueens8")), "sm_90")
    with pytest.raises(ValueError, match="sm_75"):
        resources.compile_step(*spec_and_shapes(shipped_config("nqueens8")), "sm_75")
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        gemm_resources.compile_step(*spec_and_shapes(shipped_config("nqueens8")), "sm_90")
    with pytest.raises(ValueError, match="sm_75"):
        gemm_resources.compile_step(*spec_and_shapes(shipped_config("nqueens8")), "sm_75")
