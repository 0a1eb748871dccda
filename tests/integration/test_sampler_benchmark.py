"""The benchmark of the engine: what its rows say, on a tiny model. No speed is judged here."""

import pytest

from gram.api import Sampler
from gram.evals.benchmarks import engine_benchmark, sampler_benchmark
from gram.evals.benchmarks.sampler_benchmark import adaptive_rows, refill_rows, slot_row
from gram.evals.benchmarks.timing import Measurement, paired, to_json
from gram.kernels import graphs
from gram.sampler.device_loop import DeviceLoop
from gram.sampler.engine import Engine
from gram.tasks.registry import get_task
from tests.models import tiny_model


@pytest.fixture(scope="module")
def sampler():
    model = tiny_model(depth=6)
    model.halt.weight.mul_(40)
    return Sampler(model, get_task("nqueens4"), name="tiny")


def test_refill_runs_fewer_steps_for_the_same_trajectories(sampler):
    puzzles = sampler.task.split("train", limit=8)
    steps, seconds = refill_rows(sampler, puzzles, width=8, rounds=2)
    runs = steps.facts["steps_run"]
    assert steps.ratio == runs["rectangular"] / runs["refill"] > 1
    assert steps.low == steps.high == steps.ratio
    assert seconds.low <= seconds.ratio <= seconds.high
    assert all(len(each) == 2 for each in seconds.facts["seconds"].values())


def test_no_ratio_is_given_where_results_differ(sampler, monkeypatch):
    real = sampler_benchmark.Engine

    def broken(*arguments, is_static, **kept):
        engine = real(*arguments, is_static=is_static, **kept)
        if is_static:
            engine.depth -= 1
        return engine

    monkeypatch.setattr(sampler_benchmark, "Engine", broken)
    with pytest.raises(AssertionError, match="must give the rectangular sampler's trajectories"):
        list(refill_rows(sampler, sampler.task.split("train", limit=8), width=4, rounds=1))


def test_adaptive_rows_count_cancelled_steps_and_compare_answers(sampler):
    puzzles = sampler.task.split("train", limit=8)
    rows = list(adaptive_rows(sampler, puzzles, depth=3, width=9, policies={"staged": {"width_policy": "staged"}}))
    steps, points = rows
    assert steps.ratio == steps.facts["steps_run"]["fixed"] / steps.facts["steps_run"]["adaptive"]
    difference = steps.facts["accuracy"]["adaptive"] - steps.facts["accuracy"]["fixed"]
    assert points.ratio == pytest.approx(100 * difference)
    assert points.low <= points.ratio <= points.high


def test_slots_give_one_digest(sampler):
    row = slot_row(sampler, sampler.task.split("train", limit=4), width=6)
    assert row.ratio == 1
    assert row.is_met
    assert len(row.facts) == len(sampler_benchmark.SLOT_COUNTS) + 1


def test_rows_know_whether_they_hold():
    def row(value, floor, **more):
        return Measurement.of("x", [value], floor, **more)

    assert [row(2.0, 2.0).is_met, row(1.9, 2.0).is_met, row(1.9, None).is_met] == [True, False, None]
    assert [row(60, 64, is_ceiling=True).is_met, row(65, 64, is_ceiling=True).is_met] == [True, False]
    assert to_json([row(1.0, 2.0)])["rows"][0]["is_met"] is False


def test_rounds_are_paired_after_a_warm_up():
    calls = []
    seconds = paired({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert calls.count("a") == calls.count("b") == 5
    assert {name: len(each) for name, each in seconds.items()} == {"a": 4, "b": 4}
    found = Measurement.of_ratios("x", [2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 4.0)


@pytest.mark.slow
@pytest.mark.alone
def test_memory_grows_with_slots_not_with_trajectories(monkeypatch):
    monkeypatch.setattr(sampler_benchmark, "MEMORY_RUNS", (1_000, 20_000))
    row = sampler_benchmark.memory_row()
    assert row.is_met, row


def test_slots_and_speed_of_each_kernel(sampler, monkeypatch):
    """A path that fails is a row with its error, and the others are measured."""
    monkeypatch.setattr(engine_benchmark, "CHECKPOINTS", ("tiny",))
    monkeypatch.setattr(engine_benchmark, "kernels_of", lambda _: ["eager", "fused"])
    right, wrong = engine_benchmark.slot_rows(lambda _: sampler, limit=4)
    assert (right.ratio, right.is_met, right.error) == (1.0, True, None)
    assert "eager" in right.name
    assert (wrong.is_met, wrong.facts) == (None, {"kernel": "fused"})
    assert "fused" in wrong.error
    wrong, right = engine_benchmark.speed_rows(lambda _: sampler, limit=4, width=5, rounds=2)
    assert "fused" in wrong.error
    assert (right.ratio, right.low, right.high) == (1.0, 1.0, 1.0)
    facts = right.facts
    assert (facts["kernel"], facts["launch"], facts["device"]) == ("eager", 64, "cpu")
    assert len(facts["seconds"]) == 2
    assert facts["trajectories_per_s"] * sum(facts["seconds"]) / 2 == pytest.approx(20)


def test_the_share_of_the_host_is_told_where_a_device_halts_by_itself(sampler, monkeypatch):
    """And graphs are asked for or not; on a CPU that passes for a GPU."""
    asked = []

    class Waiting(DeviceLoop):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            asked.append(graphs.are_on())
            self.stretches.captures = 3

        def take(self):
            self.reports.waited_s += 1e-4
            return super().take()

    class OnDevice(Engine):
        kind_of_loop = Waiting

        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            self.is_on_device = True

    monkeypatch.setattr("gram.sampler.run.Engine", OnDevice)
    monkeypatch.setenv("GRAM_GRAPHS", "on")
    versions = [engine_benchmark.Version("eager"), engine_benchmark.Version("eager", has_graphs=False)]
    puzzles = sampler.task.split("train", limit=4)
    rows = list(engine_benchmark.speed_rows_of(sampler, puzzles, versions, width=5, rounds=2))
    assert rows[1].name.endswith("eager / eager without graphs, time")
    for row, version in zip(rows, versions, strict=True):
        assert row.facts["has_graphs"] is version.has_graphs
        assert len(row.facts["host_share"]) == 2
        assert all(0 < share < 1 for share in row.facts["host_share"])
        assert (row.facts["captures"], row.facts["capture_s"]) == (3, 0.0)
    assert asked.count(True) == asked.count(False) == 4
    assert graphs.are_on()


def test_a_path_that_fails_in_a_later_round_is_a_row_and_the_others_go_on(sampler, monkeypatch):
    """A run without graphs is left out where the other one has none either."""
    real, runs = type(sampler).sample, []

    def sample(self, puzzles, *, kernel, **more):
        runs.append(kernel)
        if runs.count("fused") == 3 and kernel == "fused":
            raise RuntimeError("no graph any more")
        return real(self, puzzles, kernel="eager", **more)

    monkeypatch.setattr(type(sampler), "sample", sample)
    versions = [engine_benchmark.Version(kernel, has) for kernel in ("eager", "fused") for has in (True, False)]
    puzzles = sampler.task.split("train", limit=4)
    wrong, right = engine_benchmark.speed_rows_of(sampler, puzzles, versions, width=5, rounds=3)
    assert "no graph any more" in wrong.error
    assert right.facts["kernel"] == "eager"
    assert len(right.facts["seconds"]) == 3
    assert (runs.count("eager"), runs.count("fused")) == (5, 3)


def test_kernels_are_those_that_can_run(sampler):
    assert engine_benchmark.kernels_of(sampler) == ["eager"]
