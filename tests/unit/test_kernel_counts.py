"""`gram bench kernels`: counts, resources and the harness of a GPU's timings. No speed is judged here."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gram.cli import kernel_view, terminal
from gram.cli.main import main
from gram.evals.benchmarks import gpu_benchmark, gpu_rates, kernel_counts
from gram.evals.benchmarks.kernel_counts import Rates
from gram.evals.benchmarks.timing import Measurement
from gram.kernels import first_use, reference, resources
from gram.kernels.philox import NoiseKey
from gram.presets import PRESETS
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


def test_the_floor_is_the_longest_of_four_times():
    entries = list(kernel_counts.roofline(["small"], trajectories=100, rates=Rates(1.0, 1e6, 1e6, 1e6)))
    assert [entry["path"] for entry in entries] == ["eager", "blocks", "fused", "gemm"]
    for entry in entries:
        assert entry["bound"] == "FLOPs"
        assert entry["floor_ms"] == pytest.approx(entry["flops"] / 1e9)
    for entry in kernel_counts.roofline(["small"], trajectories=100, rates=Rates(1e6, 1.0, 1e6, 1e6)):
        assert entry["bound"] == "bytes"
        assert entry["floor_ms"] == pytest.approx(entry["bytes"] / 1e9)
    for entry in kernel_counts.roofline(["small"], trajectories=100, rates=Rates(1e6, 1e6, 1.0, 1e6)):
        assert entry["bound"] == "L2 bytes"
        assert entry["floor_ms"] == pytest.approx(entry["l2_bytes"] / 1e9)
    for entry in kernel_counts.roofline(["small"], trajectories=100, rates=Rates(1e6, 1e6, 1e6, 1.0)):
        assert entry["bound"] == "special functions"
        assert entry["floor_ms"] == pytest.approx(entry["special_functions"] / 1e9)


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
    assert made["rates"] == {"teraflops": 790.0, "terabytes": 3.0, "l2_terabytes": 5.5, "special_tera": 3.7}
    assert set(made["rates_from"].values()) == {"H100"}
    assert {entry["preset"] for entry in made["roofline"]} == set(PRESETS)
    fitting = [entry for entry in made["resources"] if "error" not in entry]
    wanted = {"registers", "stack_bytes", "shared_bytes", "occupancy", "preset", "target"}
    assert all(wanted <= entry.keys() for entry in fitting)


def test_without_resources_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(resources, "kept_or_compiled", lambda *_, **__: pytest.fail("must not compile"))
    assert main(["bench", "kernels", "--no-timings", "--no-resources", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resources"] == []


@pytest.fixture
def gpu(monkeypatch):
    """A GPU's rates, of which the product's cannot be measured."""

    def fails(device):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(gpu_rates, "product_teraflops", fails)
    monkeypatch.setattr(gpu_rates, "copy_terabytes", lambda device: 4.3)
    monkeypatch.setattr(gpu_rates, "special_tera", lambda device: 4.2)


def test_a_floors_rates_are_the_gpus_unless_given(gpu):
    found = gpu_rates.known({"special_tera": 5.0}, torch.device("cuda"))
    assert found.rates == Rates(teraflops=790.0, terabytes=4.3, special_tera=5.0)
    assert found.sources == {
        "teraflops": "H100, since here: RuntimeError: out of memory",
        "terabytes": "measured",
        "l2_terabytes": "H100",
        "special_tera": "given",
    }
    assert gpu_rates.known({"terabytes": 1.0}, torch.device("cuda")).rates.terabytes == 1.0
    assert gpu_rates.known({}, None).rates == kernel_counts.H100


def test_the_command_takes_the_gpus_rates_where_it_times_there(gpu, monkeypatch, capsys):
    monkeypatch.setattr("gram.api.choose_device", lambda: torch.device("cuda"))
    taken = []
    monkeypatch.setattr(gpu_benchmark, "rows", lambda *_, rates, **__: taken.append(rates) or ())
    line = ["bench", "kernels", "--preset", "small", "--no-resources", "--no-cpu", "--json", "--quiet"]
    assert main([*line, "--l2-terabytes", "7"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["rates"] == {"teraflops": 790.0, "terabytes": 4.3, "l2_terabytes": 7.0, "special_tera": 4.2}
    assert (made["rates_from"]["terabytes"], made["rates_from"]["l2_terabytes"]) == ("measured", "given")
    assert taken == [Rates(790.0, 4.3, 7.0, 4.2)]
    assert main([*line, "--no-timings"]) == 0
    assert json.loads(capsys.readouterr().out)["rates"]["terabytes"] == 3.0


def test_rates_by_what_is_counted_and_timed(monkeypatch):
    """A copy reads and writes; a product of two bfloat16 matrices is taken once a run."""
    clock = iter(range(1000))
    monkeypatch.setattr(gpu_rates.time, "perf_counter", lambda: next(clock))
    cpu = torch.device("cpu")
    assert gpu_rates.copy_terabytes(cpu, 1 << 20) == pytest.approx(gpu_rates.REPEATS * 2**21 / 1e12)
    assert gpu_rates.product_teraflops(cpu, 16) == pytest.approx(gpu_rates.REPEATS * 2 * 16**3 / 1e12)
    properties = {"sm_clock_rate": 1_755_000}
    driver = SimpleNamespace(active=SimpleNamespace(utils=SimpleNamespace(get_device_properties=lambda _: properties)))
    monkeypatch.setattr("triton.runtime.driver", driver)
    unit = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: unit)
    assert gpu_rates.special_tera(torch.device("cuda:0")) == pytest.approx(kernel_counts.H100.special_tera, rel=2e-3)


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
    counts = {
        "roofline": list(kernel_counts.roofline(["small"])),
        "rates": {"teraflops": 1, "terabytes": 1, "l2_terabytes": 1, "special_tera": 1},
    }
    monkeypatch.setattr(terminal, "output", lambda: terminal.Console(width=100, highlight=False))
    kernel_view.show_counts(counts | {"resources": []}, [row])
    (fused,) = (line for line in capsys.readouterr().out.splitlines() if "fused" in line)
    assert fused.rstrip().endswith("200.00")


def stand_ins(error=0.0, fails=()):
    """Versions of a step that need no GPU, with an error in the fused one; those in `fails` cannot be made."""

    def versions(model, spec, inputs):
        def step(shift=0.0):
            made = reference.supervision_step(model.weights(), spec, *inputs[0], inputs[1])
            return made._replace(h=made.h + shift)

        def broken():
            raise RuntimeError("no such instruction\nand more")

        shifts = dict.fromkeys(("eager", "torch.compile", gpu_benchmark.GRAPH, "blocks"), 0.0) | {"fused": error}
        runs = {name: lambda shift=shift: step(shift) for name, shift in shifts.items()}
        return {name: broken if name in fails else lambda run=run: run for name, run in runs.items()}

    return versions


def test_gpu_rows_come_with_spread_error_and_fraction_of_the_floor(monkeypatch):
    monkeypatch.setattr(gpu_benchmark, "REPEATS", 2)
    rates = Rates(1e-3, 1e-3, 1e-3)
    rows = list(gpu_benchmark.step_rows("tiny", tiny_model(), 9, 2, rates=rates, make=stand_ins()))
    first, *_, fraction = rows
    assert first.floor == 2.0
    assert gpu_benchmark.GRAPH in first.name
    assert [row.floor for row in rows[1:]] == [None] * 4
    for row in rows:
        assert row.low <= row.ratio <= row.high
    assert set(first.facts["errors"]) == set(first.facts["seconds"]) == set(first.facts["teraflops"])
    assert fraction.ratio * 1e3 * min(first.facts["seconds"]["fused"]) <= first.facts["floor_ms"] * 1.001


def test_no_gpu_ratio_is_given_where_a_version_differs_or_fails(monkeypatch):
    """The others are measured all the same, over eager where no kernel is left."""
    monkeypatch.setattr(gpu_benchmark, "REPEATS", 1)
    make = stand_ins(1e-2, fails=("torch.compile",))
    rows = list(gpu_benchmark.step_rows("tiny", tiny_model(), 9, 1, make=make))
    errors = {row.facts["version"]: row.error for row in rows if row.error is not None}
    assert set(errors) == {"fused", "torch.compile"}
    assert errors["torch.compile"] == "RuntimeError: no such instruction"
    assert "fused must agree with eager before it is timed" in errors["fused"]
    left = [row for row in rows if row.error is None]
    assert set(left[0].facts["seconds"]) == {"eager", gpu_benchmark.GRAPH, "blocks"}
    assert all("/ eager" in row.name or "floor, eager" in row.name for row in left)


def test_versions_of_a_step_that_magnifies_rounding_are_timed_and_checked(monkeypatch):
    """As untrained `paper-sudoku` in bfloat16, where eager itself is further off than the truth is long."""
    monkeypatch.setattr(gpu_benchmark, "REPEATS", 1)
    model = tiny_model(dim=64, transitions=6, low_level_updates=6, noise_order="after").to(torch.bfloat16)
    inputs = first_use.made_up(model.spec, model.dtype, model.device, 64)
    assert first_use.truth(model.weights(), model.spec, model.dtype, inputs).is_magnified
    assert not [row for row in gpu_benchmark.step_rows("tiny", model, 64, 1, make=stand_ins()) if row.error]
    wrong = gpu_benchmark.step_rows("tiny", model, 64, 1, make=stand_ins(0.3))
    assert [row.facts["version"] for row in wrong if row.error] == ["fused"]


def test_a_preset_that_fails_is_a_row_and_the_file_has_the_others(monkeypatch, capsys, tmp_path):
    file = tmp_path / "kernels.json"
    lengths = []

    def step_rows(preset, model, *_, **__):
        lengths.append(len(json.loads(file.read_text())["rows"]))
        if preset == "small-attention":
            raise RuntimeError("out of memory")
        yield Measurement.of(f"GPU step {preset}", [2.0])

    monkeypatch.setattr("gram.api.choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(gpu_benchmark, "step_rows", step_rows)
    monkeypatch.setattr(gpu_benchmark, "Model", lambda config: torch.nn.Identity())
    monkeypatch.setattr(torch.nn.Identity, "to", lambda self, *_: self)
    presets = ["--preset", "small", "--preset", "small-attention", "--preset", "paper"]
    line = ["bench", "kernels", *presets, "--no-resources", "--no-cpu", "--out", str(file)]
    assert main([*line, "--json", "--quiet"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == made
    rows = [row for row in made["rows"] if row["name"].startswith("GPU step")]
    assert [(row["ratio"], row["error"]) for row in rows] == [
        (2.0, None),
        (None, "RuntimeError: out of memory"),
        (2.0, None),
    ]
    assert lengths[0] < lengths[1] < lengths[2], "rows are written as they come"
    assert main([*line, "--quiet"]) == 0
    assert "out of memory" in " ".join(capsys.readouterr().out.split())


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
