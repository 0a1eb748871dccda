"""The clock: step times that are interleaved, kept under what they depend on, and taken up again."""

import json

import numpy as np
import pytest

from gram.api import Sampler
from gram.evals.frontier import prefix_timing, timing_file
from gram.evals.frontier.latency import courses_of, measure, row_counts
from gram.evals.frontier.prefix_timing import Course
from gram.evals.frontier.prices import StepTimes
from gram.sampler.engine import Engine, SlotStates
from gram.tasks.registry import get_task
from tests.models import tiny_model
from tests.unit.test_device_loop import Remote

COURSES = courses_of(("interactive", "throughput"), (False,), 4, 8)


class Runs:
    """A stand-in for the sampler: every run takes as long as it is told."""

    def __init__(self, step=lambda course: float(course.rows)):
        self.done, self.step = [], step

    def __call__(self, course, index):
        self.done.append((course, tuple(index.tolist())))
        return prefix_timing.PrefixTiming(self.step(course), 0.5 * course.rows, 0.25)


def test_few_numbers_of_rows_are_timed():
    assert row_counts(1) == [1]
    assert row_counts(5) == [1, 2, 3, 4, 5]
    assert row_counts(16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert len(row_counts(128)) == 14
    assert [course.rows for course in COURSES] == [1, 2, 3, 4, 8]
    both = courses_of(("interactive",), (False, True, False), 2, 8)
    assert both == [Course("interactive", reads, rows) for reads in (False, True) for rows in (1, 2)]
    with pytest.raises(ValueError, match="mode must be one of"):
        courses_of(("quick",), (False,), 1, 8)


def test_every_number_of_rows_is_timed_in_every_round():
    runs, told = Runs(), []
    found = measure(COURSES, runs, puzzles=10, rounds=6, on_timed=told.append)
    assert sum(told) == 6 * len(COURSES)
    assert len(runs.done) == 7 * (len(COURSES) + 1)
    timed = runs.done[len(COURSES) + 1 :]
    rounds = [timed[n * (len(COURSES) + 1) : (n + 1) * (len(COURSES) + 1)] for n in range(6)]
    assert all(control == (COURSES[0], (0,)) for control, *_ in rounds)
    assert len({tuple(course for course, _ in each[1:]) for each in rounds}) == 6
    for number, each in enumerate(rounds):
        assert {course for course, _ in each[1:]} == set(COURSES)
        assert {index for course, index in each[1:] if course.mode == "interactive"} == {(number % 10,)}
        (full,) = (index for course, index in each[1:] if course.mode == "throughput")
        assert len(set(full)) == 8
    alone, full = found["clock"]
    assert (alone["mode"], alone["rows"], full["rows"]) == ("interactive", [1, 2, 3, 4], [8])
    assert alone["step_ms"] == [[1.0, 2.0, 3.0, 4.0]] * 6
    assert StepTimes.of(alone).ending.tolist() == [[0.5, 1.0, 1.5, 2.0]] * 6
    assert not found["is_noisy"] or found["control_spread"] > 0.3


@pytest.mark.parametrize(("puzzles", "count"), [(3, 2), (8, 8), (100, 8), (1, 1)])
def test_a_launch_is_filled_from_few_puzzles(puzzles, count):
    runs = Runs()
    measure(COURSES, runs, puzzles=puzzles, rounds=1)
    assert {len(index) for course, index in runs.done if course.mode == "throughput"} == {count}


IDENTITY = {"processor": "one", "threads": 2, "interactive_launch": "the rows that run"}


def test_timings_are_kept_and_taken_up(tmp_path):
    file, runs = tmp_path / timing_file.name_of(IDENTITY), Runs()
    measure(COURSES, runs, puzzles=5, rounds=2, file=file, identity=IDENTITY)
    with file.open("a") as stream:
        stream.write('{"course": "interactive 1", "step_ms"')  # torn by a kill
    before, told = len(runs.done), []
    found = measure(COURSES, runs, puzzles=5, rounds=3, file=file, identity=IDENTITY, on_timed=told.append)
    assert len(runs.done) - before == 2 * (len(COURSES) + 1)
    assert sum(told) == 3 * len(COURSES)
    assert {len(entry["step_ms"]) for entry in found["clock"]} == {3}
    again = len(runs.done)
    assert measure(COURSES, runs, puzzles=5, rounds=3, file=file, identity=IDENTITY) == found
    assert len(runs.done) == again
    json.dumps(found)


def test_a_file_torn_in_its_first_line_begins_anew(tmp_path):
    file = tmp_path / "latency.jsonl"
    file.write_text('{"identity": {"proc')
    found = measure(COURSES, Runs(), puzzles=5, rounds=1, file=file, identity=IDENTITY)
    assert measure(COURSES, Runs(lambda course: 9.0), puzzles=5, rounds=1, file=file, identity=IDENTITY) == found


@pytest.mark.parametrize(
    ("name", "value"), [("processor", "two"), ("threads", 1), ("interactive_launch", "8 rows"), ("dtype", "float32")]
)
def test_timings_of_another_machine_are_not_mixed_in(tmp_path, name, value):
    file, other = tmp_path / timing_file.name_of(IDENTITY), {**IDENTITY, name: value}
    assert timing_file.others(tmp_path, other) is None
    measure(COURSES, Runs(), puzzles=5, rounds=1, file=file, identity=IDENTITY)
    assert timing_file.name_of(other) != file.name
    told = timing_file.others(tmp_path, other)
    assert f"{name} {value} instead of {IDENTITY.get(name)}" in told
    assert "\n" not in told
    assert timing_file.others(tmp_path, IDENTITY) is None
    before = file.read_text()
    with pytest.raises(ValueError, match=f"{name} {value} instead of"):
        measure(COURSES, Runs(), puzzles=5, rounds=2, file=file, identity=other)
    assert file.read_text() == before


def test_timings_without_an_identity_are_refused(tmp_path):
    file = tmp_path / "latency-0123456789ab.jsonl"
    file.write_text('{"course": "interactive 1", "step_ms": 1.0}\n')
    with pytest.raises(ValueError, match="no identity"):
        timing_file.read(file, IDENTITY)


def test_a_noisy_machine_is_told(monkeypatch):
    now, waits = [0.0], iter(np.random.default_rng(0).uniform(1, 3, 100))
    monkeypatch.setattr("gram.evals.frontier.latency.time.perf_counter", lambda: now[0])

    class Uneven(Runs):
        def __call__(self, course, index):
            now[0] += next(waits)
            return super().__call__(course, index)

    found = measure(COURSES[:1], Uneven(), puzzles=5, rounds=20)
    assert found["is_noisy"]
    assert found["control_spread"] > 0.3


class Ticks:
    """A clock that moves only when the model works."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(prefix_timing.time, "perf_counter", lambda: self.now)
        self.slow(monkeypatch, "advance", lambda rows: 1.0 + rows)
        self.slow(monkeypatch, "_readout", lambda rows: 0.125 * len(rows))
        self.slow(monkeypatch, "_start", lambda rows: 16.0)

    def slow(self, monkeypatch, method, seconds):
        real = getattr(SlotStates, method)

        def slowed(slots, *arguments):
            self.now += seconds(arguments[0])
            return real(slots, *arguments)

        monkeypatch.setattr(SlotStates, method, slowed)


@pytest.mark.parametrize(("width", "reading"), [(1, False), (3, False), (4, True)])
def test_a_run_is_taken_apart(monkeypatch, width, reading):
    sampler = Sampler(tiny_model(), get_task("nqueens4"), name="tiny")
    puzzles = sampler.task.split("train", limit=1).puzzles
    rule = {"halting": "unchanged", "halt_threshold": 9} if reading else {"halting": "fixed"}
    config = sampler.settings(width=width, depth=6, slots=8, launch=8, is_padded=False, **rule)
    Ticks(monkeypatch)
    found = prefix_timing.time_prefix(sampler, puzzles, config)
    read = 125.0 * width
    assert found.step_ms == pytest.approx(1000.0 * (1 + width) + read * reading)
    assert found.ending_ms == pytest.approx(0.0 if reading else read)
    assert found.overhead_ms == pytest.approx(16000.0)


def test_the_steps_of_a_run_that_the_device_could_drive_are_timed_one_by_one(monkeypatch):
    """On a GPU such a run tells of several steps at once."""
    sampler = Sampler(tiny_model(), get_task("nqueens4"), name="tiny")
    puzzles = sampler.task.split("train", limit=2).puzzles
    config = sampler.settings(width=4, depth=6, slots=8, launch=8, halting="fixed")
    engine = Engine(sampler.model, sampler.task, puzzles, config, kind_of_slots=Remote)
    assert engine.is_on_device
    monkeypatch.setattr("gram.sampler.run.slots_of", lambda _: Remote)
    Ticks(monkeypatch)
    found = prefix_timing.time_prefix(sampler, puzzles, config)
    assert found.step_ms == pytest.approx(1000.0 * (1 + 8) + 125.0 * 8)  # answers come with the heads


def test_runs_that_cannot_be_timed_are_refused():
    sampler = Sampler(tiny_model(), get_task("nqueens4"), name="tiny")
    puzzles = sampler.task.split("train", limit=3).puzzles
    with pytest.raises(ValueError, match="slots must hold all 12"):
        prefix_timing.time_prefix(sampler, puzzles, sampler.settings(width=4, slots=8, halting="fixed"))
    with pytest.raises(ValueError, match="depth must be at least 3"):
        prefix_timing.time_prefix(sampler, puzzles, sampler.settings(width=4, slots=12, depth=2, halting="fixed"))
