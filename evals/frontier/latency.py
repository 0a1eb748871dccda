"""The clock: what a supervision step of so many rows takes on this machine. It is given a function that runs; it times.

`interactive`: one puzzle at a time, in launches without padding, at some numbers of rows from one on. `throughput`: one
full launch. A run is a few supervision steps in which nobody halts (`prefix_timing.py`); what a cell costs follows from
step times and traces (`prices.py`), so no cell is run to be timed. Every run is made once before anything counts
(compilation, allocation), then runs are interleaved in random order, round by round, so that a slow minute of the
machine hits all alike. A control (one row, always the same puzzle) is timed every round: where it spreads, the machine
was too noisy, and the report says so. Rounds are kept as they end, under what they depend on (`timing_file.py`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier import timing_file
from gram.evals.frontier.energy import Counter
from gram.evals.frontier.prefix_timing import Course, PrefixTiming

MODES = ("interactive", "throughput")
ROUNDS = 20
NOISY = 0.3
"""Spread of the control, (p95 - p5) / p50, above which the machine was too noisy."""
CONTROL = "control"
Indices = NDArray[np.int64]


Run = Callable[[Course, Indices], PrefixTiming]
"""Runs so many rows over the puzzles of these indices."""


def courses_of(modes: Iterable[str], reading: Iterable[bool], widest: int, batch: int) -> list[Course]:
    """Every run to time: one puzzle at up to `widest` rows, a full launch of `batch`, once for each of `reading`.

    Raises `ValueError` for an unknown mode.
    """
    found = []
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        counts = row_counts(widest) if mode == "interactive" else [batch]
        found += [Course(mode, reads, rows) for reads in sorted(set(reading)) for rows in counts]
    return found


def row_counts(widest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to `widest`: what is timed; between lie straight lines."""
    powers = [2**power for power in range(widest.bit_length())]
    return sorted({count for count in (*powers, *(power * 3 // 2 for power in powers), widest) if count <= widest})


def measure(
    courses: Sequence[Course],
    run: Run,
    *,
    puzzles: int,
    rounds: int = ROUNDS,
    seed: int = 0,
    file: Path | None = None,
    identity: dict[str, Any] | None = None,
    on_timed: Callable[[int], None] | None = None,
    energy: Counter | None = None,
) -> dict[str, Any]:
    """Times every course `rounds` times: `clock`, entries that `prices.StepTimes` reads, and what is known of the
    machine meanwhile.

    `file` keeps the timings of this `identity`; a run that was killed goes on with it. `on_timed(n)` is told how many
    timings are done. `energy` counts joules (`energy.py`): read before and after each run, outside of what is timed.
    Raises `ValueError` for a file of another identity.
    """
    kept = timing_file.read(file, identity or {})
    rng = np.random.default_rng(seed)
    control = min(courses, key=lambda course: (course.mode != "interactive", course.reads_every_step, course.rows))
    missing = [course for course in courses if len(kept.get(_name(course), [])) < rounds]
    for course in ([*missing, control]) if missing else []:
        run(course, _batch(course, 0, puzzles))
    for number in range(rounds):
        order = [courses[index] for index in rng.permutation(len(courses))]
        wanted = [course for course in order if len(kept.get(_name(course), [])) <= number]
        if on_timed is not None:
            on_timed(len(order) - len(wanted))
        if not wanted:
            continue
        machine = {"load": os.getloadavg()[0], "mhz": clock_mhz()}
        began = time.perf_counter()
        run(control, _batch(control, 0, puzzles))
        waited = 1e3 * (time.perf_counter() - began)
        lines: list[dict[str, Any]] = [{"course": CONTROL, "ms": waited, **machine}]
        for course in wanted:
            before, started = energy and energy(), time.perf_counter()
            timing = run(course, _batch(course, number, puzzles))
            line = {"course": _name(course), **timing._asdict()}
            if energy is not None and before is not None:
                line |= {"joules": energy() - before, "s": time.perf_counter() - started}
            lines.append(line)
            if on_timed is not None:
                on_timed(1)
        for line in lines:
            kept.setdefault(line["course"], []).append(line)
        timing_file.append(file, identity or {}, lines)
    clock = clock_of(courses, kept, rounds)
    return {"clock": clock, **_machine(kept, rounds, identity or {}), "steps": step_rows(clock)}


def clock_of(courses: Sequence[Course], kept: dict[str, list[dict[str, Any]]], rounds: int) -> list[dict[str, Any]]:
    """Timings by mode and reading: milliseconds `[Q][K]` by round and number of rows; `watts [K]`: mean power, None
    where no energy was counted."""
    entries = []
    for mode, reads in dict.fromkeys((course.mode, course.reads_every_step) for course in courses):
        timed = sorted(course for course in courses if course[:2] == (mode, reads))
        lines = [kept[_name(course)][:rounds] for course in timed]
        by_round = list(zip(*lines, strict=True))
        watts = [_watts(each) for each in lines]
        entries.append(
            {
                "mode": mode,
                "reads_every_step": reads,
                "rows": [course.rows for course in timed],
                **{name: [[line[name] for line in each] for each in by_round] for name in PrefixTiming._fields},
                "watts": None if None in watts else watts,
            }
        )
    return entries


def step_rows(clock: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A supervision step in milliseconds by mode, reading and rows: mean over rounds, p5 and p95."""
    found = []
    for entry in clock:
        for rows, times in zip(entry["rows"], np.array(entry["step_ms"]).T, strict=True):
            p5, p95 = np.percentile(times, (5, 95))
            place = {name: entry[name] for name in ("mode", "reads_every_step")}
            figures = {"ms": float(times.mean()), "p5_ms": float(p5), "p95_ms": float(p95)}
            found.append({**place, "rows": rows, **figures})
    return found


def cpu_facts(name: str) -> list[str]:
    """What the system tells under a name of each processor; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(name)]


def clock_mhz() -> float | None:
    """Mean clock of the processors now, where the system tells."""
    clocks = [float(value) for value in cpu_facts("cpu mhz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def processors() -> int | None:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _batch(course: Course, number: int, puzzles: int) -> Indices:
    """Which puzzles a round times: one, or as many as fill a launch with whole widths."""
    count = 1
    if course.mode != "interactive":
        count = next(each for each in range(min(puzzles, course.rows), 0, -1) if course.rows % each == 0)
    return (number * count + np.arange(count)) % puzzles


def _name(course: Course) -> str:
    return f"{course.mode}{' reading' if course.reads_every_step else ''} {course.rows}"


def _watts(lines: Sequence[dict[str, Any]]) -> float | None:
    """Mean power over runs; None where no energy was counted."""
    seconds = sum(line.get("s", 0.0) for line in lines)
    return sum(line.get("joules", 0.0) for line in lines) / seconds if seconds else None


def _machine(kept: dict[str, list[dict[str, Any]]], rounds: int, identity: dict[str, Any]) -> dict[str, Any]:
    """How quiet the machine was."""
    control = kept.get(CONTROL, [])
    times = [line["ms"] for line in control]
    p5, p50, p95 = np.percentile(times, (5, 50, 95)) if times else (math.nan,) * 3
    spread = float((p95 - p5) / p50) if times else math.nan
    loads = [line["load"] for line in control]
    clocks = [line["mhz"] for line in control if line["mhz"] is not None]
    spent = [line["joules"] for lines in kept.values() for line in lines if "joules" in line]
    return {
        "rounds": rounds,
        "control_spread": spread,
        "is_noisy": bool(spread > NOISY),
        "load": [min(loads), max(loads)] if loads else None,
        "mhz": [min(clocks), max(clocks)] if clocks else None,
        "processors": processors(),
        "energy_j": sum(spent) if spent else None,
        "identity": identity,
    }
