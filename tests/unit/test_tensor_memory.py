"""Tensor memory of sm_100: what does not fit is an error, and the default cut fits with every version of Triton."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton

from gram.kernels import dispatch, resources
from gram.kernels.fused import path, tuning
from gram.kernels.spec import LEARNED
from tests.kernel_presets import FUSED, small_config, spec_and_shapes
from tests.models import tiny_model
from tests.unit.test_kernel_tuning import model_of

GPU = torch.device("cuda")
SAID = "supervision step needs 544 columns of tensor memory, of 512, with triton "


def compiled_with(columns):
    """Triton's answer for a kernel that needs so many columns."""
    return lambda *_, **__: SimpleNamespace(metadata=SimpleNamespace(tmem_size=columns, shared=0, num_warps=8))


@pytest.mark.parametrize(
    ("triton_version", "is_old"),
    [("3.4.0", True), ("3.7.1+git12", True), ("3.8.0", False), ("3.10.0", False), ("4.0.0", False)],
)
def test_versions_that_spend_tensor_memory(triton_version, is_old, monkeypatch):
    monkeypatch.setattr(tuning, "version", lambda _: triton_version)
    assert tuning.spends_columns("sm_100") == is_old
    assert not tuning.spends_columns("sm_90")


@pytest.mark.parametrize(
    ("name", "triton_version", "group", "stages"),
    [
        ("small", "3.7.1", 1, 1),
        ("small-attention", "3.7.1", 1, 1),
        ("colouring10", "3.7.1", 1, 1),
        ("colouring8", "3.7.1", 1, 1),
        ("sudoku6", "3.7.1", 3, 3),
        ("sudoku6", "3.6.0", 1, 1),
        ("colouring8", "3.8.0", 3, 2),
    ],
)
def test_the_default_cut_by_version(name, triton_version, group, stages, monkeypatch):
    monkeypatch.setattr(tuning, "version", lambda _: triton_version)
    model = model_of(name)
    made = tuning.default("sm_100", torch.bfloat16, model.spec, model.weights())
    assert (made.group, made.stages) == (group, stages)
    assert tuning.default("sm_90", torch.bfloat16, model.spec, model.weights()).group > 1


def test_a_kernel_that_does_not_fit_is_an_error_of_one_line(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton, "compile", compiled_with(544))
    with pytest.raises(resources.DoesNotFit) as raised:
        resources.compile_path(*spec_and_shapes(small_config()), "sm_100")
    assert str(raised.value) == SAID + tuning.version("triton")


@pytest.mark.parametrize("columns", [None, 0, 256, 512])
def test_what_fits_is_none(columns):
    assert tuning.column_excess(SimpleNamespace(tmem_size=columns)) is None
    assert tuning.column_excess(SimpleNamespace()) is None


def test_a_process_of_its_own_says_it_in_one_line_too(monkeypatch, capsys):
    """Its last words are what `compile_apart` tells."""
    spec, shapes = spec_and_shapes(small_config())
    request = resources._request(spec, shapes, "sm_100", LEARNED, "fused", None)

    def fails(*_, **__):
        raise resources.DoesNotFit(SAID)

    monkeypatch.setattr(resources.json, "load", lambda _: request)
    monkeypatch.setattr(resources, "compile_path", fails)
    with pytest.raises(SystemExit) as raised:
        resources.main()
    assert raised.value.code == SAID
    assert capsys.readouterr().out == ""


def test_a_sweep_hears_of_a_cut_that_does_not_fit(monkeypatch):
    """Compiled ahead of its launch, which would be refused."""
    monkeypatch.setattr(path, "launch", compiled_with(544))
    model = tiny_model()
    packed = tuning.packed(model.weights(), model.spec, torch.float32)
    states = torch.zeros(3, 1, model.spec.length, model.spec.dim)
    key = SimpleNamespace(seed=0, puzzle_hash=states, trajectory=states, step=states)
    with pytest.raises(RuntimeError, match="needs 544 columns of tensor memory, of 512"):
        path.compile_step(packed, model.spec, *states, key, target="sm_100")


@pytest.fixture
def blackwell(monkeypatch):
    """An sm_100 with Triton 3.7.1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr(tuning, "version", lambda _: "3.7.1")


@pytest.mark.parametrize("kernel", ["fused", "blocks"])
def test_float32_has_no_cut_that_fits_before_triton_3_8(kernel, blackwell, monkeypatch):
    spec = model_of("small").spec
    with pytest.raises(
        ValueError, match=r"float32 with 64 .*512 columns.*3\.7\.1: .*3\.8 or bfloat16; kernel gemm"
    ) as raised:
        dispatch.choose(GPU, spec, torch.float32, kernel)
    assert "\n" not in str(raised.value)
    auto = dispatch.choose(GPU, spec, torch.float32)
    assert auto.kernel == "eager"
    assert "tensor memory" in auto.reason
    assert dispatch.choose(GPU, spec, torch.bfloat16, kernel).kernel == kernel
    assert dispatch.choose(GPU, spec, torch.float32, "gemm").kernel == "gemm"
    monkeypatch.setattr(tuning, "version", lambda _: "3.8.0")
    assert dispatch.choose(GPU, spec, torch.float32, kernel).kernel == kernel


@pytest.mark.parametrize(
    ("dtype", "tokens", "dim", "heads", "fits"),
    [
        (torch.float32, 64, 64, 2, True),
        (torch.float32, 100, 64, 2, False),
        (torch.float32, 64, 64, 1, False),
        (torch.float32, 100, 32, None, True),
        (torch.float32, 100, 32, 1, False),
        (torch.float32, 100, 16, 1, False),
        (torch.float32, 30, 128, 1, True),
        (torch.float32, 9, 128, None, True),
        (torch.bfloat16, 100, 128, 1, False),
        (torch.bfloat16, 100, 64, 1, False),
        (torch.bfloat16, 100, 128, 4, True),
        (torch.bfloat16, 64, 128, 1, True),
        (torch.bfloat16, 100, 128, None, True),
    ],
)
def test_shapes_without_a_cut_that_fits(dtype, tokens, dim, heads, fits, blackwell):
    """As compiled with Triton 3.7.1; with 3.8 all fit."""
    more = {"mixer": "token"} if heads is None else {"mixer": "attention", "heads": heads}
    spec = replace(model_of("small").spec, tokens=tokens, dim=dim, **more)
    assert (tuning.column_obstacle(GPU, dtype, spec) is None) == fits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "small-attention", *FUSED])
def test_the_default_cut_fits_with_the_installed_triton(name):
    model = model_of(name)
    (made,) = resources.compile_path(model.spec, resources.shapes_of(model.weights()), "sm_100")
    assert made.registers > 32, "a trap takes 4"
    assert made.products == "tcgen05.mma"
