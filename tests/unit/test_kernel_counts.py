"""`gram bench kernels`: counts, resources and the harness of a GPU's timings. No speed is judged here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from gram.cli import kernel_view, terminal
from gram.cli.main import main
from gram.config import PRESETS
from gram.evals.benchmarks import gpu_benchmark, kernel_counts
from gram.evals.benchmarks.timing import Measurement
from gram.kernels import reference, resources
from gram.kernels.philox import NoiseKey
from tests.models import tiny_model

RESOURCES = resources.Resources(
    target="sm_90", kernel="supervision step", registers=245, stack_bytes=8, spills=2, inner_spills=0,
    shared_bytes=33_792, warps=8, programs=1, occupancy=0.125, products="wgmma.mma_async", product_count=9,
)  # fmt: skip


@pytest.fixture
def uncompiled(monkeypatch):
    """Resources without compiling: `blocks` has a second kernel, and gfx942 cannot be compiled for."""

    def made(spec, shapes, target, *, path):
        if target == "gfx942":
            raise RuntimeError(f"compiling {path} for {target} failed: no such target")
        first = replace(RESOURCES, target=target)
        second = replace(first, kernel="mixer", registers=250, occupancy=0.1, products="none")
        return [first, second] if path == "blocks" else [first]

    monkeypatch.setattr(resources, "kept_or_compiled", made)


def test_the_floor_is_the_longer_of_two_times():
    entries = list(kernel_counts.roofline(["small"], trajectories=100, teraflops=1.0, terabytes=1e6))
    assert [entry["path"] for entry in entries] == ["eager", "blocks", "fused", "gemm"]
    for entry in entries:
        assert entry["bound"] == "FLOPs"
        assert entry["floor_ms"] == pytest.approx(entry["flops"] / 1e9)
    for entry in kernel_counts.roofline(["small"], trajectories=100, teraflops=1e6, terabytes=1.0):
        assert entry["bound"] == "bytes"
        assert entry["floor_ms"] == pytest.approx(entry["bytes"] / 1e9)


def test_presets_too_wide_for_the_fused_kernel_are_counted_as_eager_and_gemm():
    assert {preset for preset in PRESETS if "fused" in kernel_counts.paths_of(preset)} == {"small", "small-attention"}
    assert [entry["path"] for entry in kernel_counts.roofline(["paper-sudoku"])] == ["eager", "gemm"]


def test_rows_hold_the_floors_of_bytes_and_launches():
    rows = list(kernel_counts.rows(kernel_counts.roofline()))
    assert len(rows) == 4
    assert all(row.is_met for row in rows)
    assert {row.floor for row in rows} == {50.0, 1.0}
    few = [{"preset": "a", "path": path, "trajectories": 1, "bytes": 49 if path == "eager" else 1, "launches": 2}
           for path in ("eager", "fused")]  # fmt: skip
    assert [row.is_met for row in kernel_counts.rows(few)] == [False, False]


def test_the_worst_of_several_kernels_is_told_and_what_fails_is_not_hidden(uncompiled):
    entries = list(kernel_counts.compiled(["small"]))
    assert {entry["target"] for entry in entries} == set(resources.TARGETS)
    worst = {(entry["path"], entry["target"]): entry for entry in kernel_counts.worst(entries)}
    assert worst["blocks", "sm_90"]["registers"] == 250
    assert worst["blocks", "sm_90"]["occupancy"] == 0.1
    assert worst["blocks", "sm_90"]["products"] == "wgmma.mma_async"
    assert worst["fused", "sm_90"]["registers"] == 245
    assert "no such target" in worst["fused", "gfx942"]["error"]


def test_the_command_prints_one_object_with_rows_and_resources(uncompiled, capsys):
    assert main(["bench", "kernels", "--no-timings", "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert captured.err == ""
    assert all({"name", "ratio", "low", "high", "floor"} <= row.keys() for row in made["rows"])
    assert made["rates"] == {"teraflops": 790.0, "terabytes": 3.0}
    assert {entry["preset"] for entry in made["roofline"]} == set(PRESETS)
    fitting = [entry for entry in made["resources"] if "error" not in entry]
    wanted = {"registers", "stack_bytes", "shared_bytes", "occupancy", "preset", "target"}
    assert all(wanted <= entry.keys() for entry in fitting)


def test_without_resources_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(resources, "kept_or_compiled", lambda *_, **__: pytest.fail("must not compile"))
    assert main(["bench", "kernels", "--no-timings", "--no-resources", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resources"] == []


def test_tables_fit_a_narrow_terminal(uncompiled, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "kernels", "--no-timings"]) == 0
    out = capsys.readouterr().out
    assert "\u2026" not in out
    assert "fused on gfx942: compiling fused for gfx942 failed" in " ".join(out.split())
    for word in ("registers", "occupancy", "wgmma", "245", "12.5 %", "33 KiB", "bound by", "met"):
        assert word in out


def test_measured_times_stand_beside_the_counts(monkeypatch, capsys):
    row = Measurement(
        name="a", ratio=2, low=2, high=2, floor=2, facts={"preset": "small", "seconds": {"fused": [0.1, 0.3, 0.2]}}
    )
    assert kernel_view.measured_ms([row, replace(row, facts={})]) == {("small", "fused"): 200.0}
    counts = {"roofline": list(kernel_counts.roofline(["small"])), "rates": {"teraflops": 1, "terabytes": 1}}
    monkeypatch.setattr(terminal, "output", lambda: terminal.Console(width=100, highlight=False))
    kernel_view.show_counts(counts | {"resources": []}, [row])
    (fused,) = (line for line in capsys.readouterr().out.splitlines() if "fused" in line)
    assert fused.rstrip().endswith("200.00")


def stand_ins(error=0.0):
    """Versions of a step that need no GPU, with an error in the fused one."""

    def versions(model, states, key):
        def step(shift=0.0):
            made = reference.supervision_step(model.weights(), model.spec, *states, key)
            return made._replace(h=made.h + shift)

        names = ("eager", "torch.compile", gpu_benchmark.GRAPH, "blocks")
        return dict.fromkeys(names, step) | {"fused": lambda: step(error)}

    return versions


def test_gpu_rows_come_with_spread_error_and_fraction_of_the_floor(monkeypatch):
    monkeypatch.setattr(gpu_benchmark, "REPEATS", 2)
    rates = {"teraflops": 1e-3, "terabytes": 1e-3}
    rows = list(gpu_benchmark.step_rows("tiny", tiny_model(), 9, 2, **rates, make=stand_ins()))
    first, *_, fraction = rows
    assert first.floor == 2.0
    assert gpu_benchmark.GRAPH in first.name
    assert [row.floor for row in rows[1:]] == [None] * 4
    for row in rows:
        assert row.low <= row.ratio <= row.high
    assert set(first.facts["errors"]) == set(first.facts["seconds"]) == set(first.facts["teraflops"])
    assert fraction.ratio * 1e3 * min(first.facts["seconds"]["fused"]) <= first.facts["floor_ms"] * 1.001


def test_no_gpu_ratio_is_given_where_a_version_differs():
    with pytest.raises(AssertionError, match=r"fused must agree within .* before it is timed"):
        next(gpu_benchmark.step_rows("tiny", tiny_model(), 9, 1, teraflops=1, terabytes=1, make=stand_ins(1e-3)))


def test_the_reference_can_be_compiled_as_the_baseline_does():
    model, rows = tiny_model(mixer="attention", dim=32, positions="rotary"), torch.arange(2)
    states = torch.randn(3, 2, 16, 32, generator=torch.Generator().manual_seed(0)).unbind()
    key = NoiseKey(1, rows, rows, rows + 1)
    weights, spec = model.weights(), model.spec
    expected = reference.supervision_step(weights, spec, *states, key)
    with torch.inference_mode():
        traced = torch.compile(
            lambda: reference.supervision_step(weights, spec, *states, key), backend="eager", fullgraph=True
        )
        assert torch.allclose(traced().h, expected.h, atol=1e-6)
