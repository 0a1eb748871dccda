"""The fused kernel compiles for every device we name, within its budgets; no GPU is needed."""

from dataclasses import replace

import pytest

from gram.config import ModelConfig
from gram.kernels import resources
from gram.kernels.reference import Injection
from tests.kernel_presets import SHIPPED, shipped_config, spec_and_shapes

STACK_BUDGET, SHARED_BUDGET = 64, 227 * 1024


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


def test_an_interpreting_process_refuses_to_compile(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        resources.compile_step(*spec_and_shapes(shipped_config("nqueens8")), "sm_90")
    with pytest.raises(ValueError, match="sm_75"):
        resources.compile_step(*spec_and_shapes(shipped_config("nqueens8")), "sm_75")
