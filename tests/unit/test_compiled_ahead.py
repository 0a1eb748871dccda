"""Cuts compiled ahead of their launch: the launch finds them in Triton's cache. No GPU is needed."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gram.kernels import first_use
from gram.kernels.fused import ahead, pack
from gram.kernels.resources import TARGETS, shapes_of
from tests.models import tiny_model

CUT = pack.Tuning(warps=4, stages=2, tile=64, token_tile=64)


def request_of(cut, target="sm_90"):
    model = tiny_model()
    return ahead.Request(
        target=target, compiler_target=TARGETS[target], spec=model.spec, shapes=shapes_of(model.weights()),
        dtype=torch.bfloat16, tuning=cut, rows=64,
    )  # fmt: skip


def launched(target, cut):
    """What a process says that launches a step cut so, as a sweep does, on a device that can launch nothing."""
    from triton.runtime import driver

    from gram.kernels.fused import path

    driver.set_active(ahead.Driver(TARGETS[target]))
    path.target_of = lambda device: target
    model = tiny_model().to(torch.bfloat16).requires_grad_(False)
    states, key = first_use.made_up(model.spec, model.dtype, model.device, 64)
    packed = pack.pack(model.weights(), model.spec, model.dtype, cut)
    try:
        path.supervision_step(packed, model.spec, *states, key)
    except AttributeError as error:
        return str(error)
    return "launched"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache, empty."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled(cache):
    return {path.relative_to(cache) for path in cache.rglob("*") if path.suffix in (".cubin", ".ttir")}


@pytest.mark.slow
def test_a_launch_finds_what_was_compiled_ahead(cache):
    """The very kernel: its launch compiles nothing; one that is cut otherwise, or for another device, does."""
    other = replace(CUT, stages=1)
    assert ahead.compile_all([request_of(CUT), request_of(CUT)], 2) == [None, None]
    found = compiled(cache)
    assert {path.suffix for path in found} == {".cubin", ".ttir"}
    counts = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for target, cut in (("sm_90", CUT), ("sm_90", other), ("sm_80", CUT)):
            said = pool.submit(launched, target, cut).result()
            assert "Driver" in said, "compiled, and not launched"
            counts.append(len(compiled(cache)) // len(found))
    assert counts == [1, 2, 3]


@pytest.mark.slow
def test_what_cannot_be_compiled_is_told_and_stops_no_other(cache):
    broken = replace(request_of(CUT), spec=replace(request_of(CUT).spec, mixer="none"))
    said = ahead.compile_all([broken, request_of(CUT)], 1)
    assert said[0] is not None
    assert said[1] is None
    assert compiled(cache)


def test_the_request_of_a_gpu_at_hand(monkeypatch):
    model, device = tiny_model(), torch.device("cuda:0")
    monkeypatch.setattr("triton.runtime.driver", SimpleNamespace(active=ahead.Driver(TARGETS["sm_90"])))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    made = ahead.request(device, model.spec, shapes_of(model.weights()), torch.bfloat16, CUT, 64)
    assert made == request_of(CUT)
