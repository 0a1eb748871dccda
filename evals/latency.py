"""Latency of cells on this machine: from tokens in to answer out. It is given a function that samples; it times it.

`interactive`: one puzzle at a time, another one each round. `throughput`: one full launch, milliseconds a trajectory,
times the cell's width. One run times all depths of a width (`laps.py`): a trajectory of depth 8 passes through depth 4,
so the clock is read there. Every run is made once before anything counts (compilation, allocation), then runs are
interleaved in random order, round by round, so that a slow minute of the machine hits all alike. A control (the
narrowest cell, always the same puzzle) is timed every round: where it spreads, the machine was too noisy, and the
report says so. Rounds are kept as they end.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.atomic_files import naming
from gram.evals.energy import Counter

MODES = ("interactive", "throughput")
ROUNDS = 20
NOISY = 0.3
"""Spread of the control, (p95 - p5) / p50, above which the machine was too noisy."""
CONTROL = "control"


class Key(NamedTuple):
    """What is timed."""

    mode: str
    halting: str
    width: int
    depth: int


Indices = NDArray[np.int64]


class Course(NamedTuple):
    """What one run times: a width, at each of some depths."""

    mode: str
    halting: str
    width: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    """Widths of the cells that learn from it: its own one, or in throughput mode all."""

    def cells(self) -> list[Key]:
        """Every cell that it times."""
        return [Key(self.mode, self.halting, width, depth) for width in self.widths for depth in self.depths]


Run = Callable[[Course, Indices], Sequence[float]]
"""Samples the puzzles of these indices to the deepest of the course's depths; milliseconds from tokens in to selected
answers out at each of its depths."""


def measure(
    keys: Sequence[Key],
    run: Run,
    *,
    puzzles: int,
    batch: int,
    rounds: int = ROUNDS,
    seed: int = 0,
    file: Path | None = None,
    on_timed: Callable[[int], None] | None = None,
    energy: Counter | None = None,
) -> dict[str, Any]:
    """Times every cell `rounds` times: `latencies` and what is known of the machine meanwhile.

    `batch` is the number of trajectories that fill the device (a launch): what the throughput mode runs at once.
    `file` keeps the timings; a run that was killed goes on with it. `on_timed(n)` is told how many timings are done.
    `energy` counts joules (`energy.py`): read before and after each run, outside of what is timed.
    """
    kept = _read(file)
    rng = np.random.default_rng(seed)
    courses = _courses(keys, puzzles, batch)
    narrowest = min(keys, key=lambda key: (key.mode != "interactive", key.width * key.depth, key.halting))
    control = Course(*narrowest[:3], (narrowest.depth,), (narrowest.width,))
    missing = [course for course in courses if _is_missing(course, kept, rounds)]
    for course in ([*missing, control]) if missing else []:
        run(course, _batch(course, 0, puzzles, batch))
    for number in range(rounds):
        order = [courses[index] for index in rng.permutation(len(courses))]
        wanted = [course for course in order if _is_missing(course, kept, number + 1)]
        if on_timed is not None:
            on_timed(sum(len(course.cells()) for course in order if course not in wanted))
        if not wanted:
            continue
        machine = {"load": os.getloadavg()[0], "mhz": clock_mhz()}
        (waited,) = run(control, np.zeros(1, np.int64))
        lines: list[dict[str, Any]] = [{"cell": CONTROL, "ms": waited, **machine}]
        for course in wanted:
            index = _batch(course, number, puzzles, batch)
            before, started = energy and energy(), time.perf_counter()
            times = run(course, index)
            if energy is not None and before is not None:
                # Over the whole run: counters move too seldom to be read at each depth.
                spent = {"joules": energy() - before, "s": time.perf_counter() - started}
                lines.append({"cell": _energy_name(course.mode, course.halting, course.width), **spent})
            lines += [{"cell": _name(key), "ms": ms} for key, ms in _shared(course, times, len(index))]
            if on_timed is not None:
                on_timed(len(course.cells()))
        for line in lines:
            kept.setdefault(line["cell"], []).append(line)
        _append(file, lines)
    width_of = {key: course.width for course in courses for key in course.cells()}
    return {
        "latencies": [_summary(key, kept, rounds, _watts(key, width_of[key], kept)) for key in keys],
        **_machine(kept, rounds),
    }


def grid_keys(modes: Iterable[str], haltings: Iterable[str], widths: Sequence[int], depths: Sequence[int]) -> list[Key]:
    """Every cell to time. Raises `ValueError` for an unknown mode."""
    found = []
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        found += [Key(mode, halting, width, depth) for halting in haltings for width in widths for depth in depths]
    return found


def price_table(
    latencies: Iterable[dict[str, Any]],
    mode: str,
    halting: str,
    widths: Sequence[int],
    depths: Sequence[int],
    field: str = "p50_ms",
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Median milliseconds (or another field) `[M, N]` of a mode and halting rule; NaN where a cell has none."""
    price = np.full((len(depths), len(widths)), np.nan)
    for each in latencies:
        is_wanted = (each["mode"], each["halting"]) == (mode, halting)
        if is_wanted and each["width"] in widths and each["depth"] in depths and each.get(field) is not None:
            price[depths.index(each["depth"]), widths.index(each["width"])] = each[field]
    return price


def processor_name() -> str | None:
    """Model of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")), None)


def clock_mhz() -> float | None:
    """Mean clock of the processors now, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.split(":")[1]) for line in lines if line.lower().startswith("cpu mhz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _courses(keys: Sequence[Key], puzzles: int, batch: int) -> list[Course]:
    """The fewest runs that time all cells."""
    found: dict[tuple[str, str, int], list[Key]] = {}
    for key in keys:
        width = key.width if key.mode == "interactive" else -(-batch // puzzles)
        found.setdefault((key.mode, key.halting, width), []).append(key)
    return [
        Course(*place, tuple(sorted({key.depth for key in cells})), tuple(sorted({key.width for key in cells})))
        for place, cells in found.items()
    ]


def _batch(course: Course, number: int, puzzles: int, batch: int) -> Indices:
    """Which puzzles a round times."""
    count = 1 if course.mode == "interactive" else max(1, batch // course.width)
    return (number * count + np.arange(count)) % puzzles


def _shared(course: Course, times: Sequence[float], puzzles: int) -> list[tuple[Key, float]]:
    """Milliseconds a puzzle of every cell of a course."""
    by_depth = dict(zip(course.depths, times, strict=True))
    each = puzzles * course.width
    return [(key, by_depth[key.depth] * key.width / each) for key in course.cells()]


def _is_missing(course: Course, kept: dict[str, list[dict[str, Any]]], rounds: int) -> bool:
    return any(len(kept.get(_name(key), [])) < rounds for key in course.cells())


def _name(key: Key) -> str:
    return f"{key.mode} {key.halting} {key.width}x{key.depth}"


def _energy_name(mode: str, halting: str, width: int) -> str:
    return f"energy {mode} {halting} {width}"


def _watts(key: Key, width: int, kept: dict[str, list[dict[str, Any]]]) -> float | None:
    """Mean power over the runs of a width; None where no energy was counted."""
    lines = kept.get(_energy_name(key.mode, key.halting, width), [])
    seconds = sum(line["s"] for line in lines)
    return sum(line["joules"] for line in lines) / seconds if seconds else None


def _summary(key: Key, kept: dict[str, list[dict[str, Any]]], rounds: int, watts: float | None) -> dict[str, Any]:
    """A cell's milliseconds a puzzle over rounds. `joules`: mean power while its width was timed, times the median;
    None where the device reports no energy."""
    times = [line["ms"] for line in kept.get(_name(key), [])[:rounds]]
    p5, p50, p95 = np.percentile(times, (5, 50, 95)) if times else (math.nan,) * 3
    joules = None if watts is None else watts * float(p50) / 1e3
    spread = {"p5_ms": float(p5), "p50_ms": float(p50), "p95_ms": float(p95)}
    return {**key._asdict(), "rounds": len(times), **spread, "joules": joules}


def _machine(kept: dict[str, list[dict[str, Any]]], rounds: int) -> dict[str, Any]:
    """How quiet the machine was."""
    control = kept.get(CONTROL, [])
    times = [line["ms"] for line in control]
    p5, p50, p95 = np.percentile(times, (5, 50, 95)) if times else (math.nan,) * 3
    spread = float((p95 - p5) / p50) if times else math.nan
    loads = [line["load"] for line in control]
    counted = [line for cell, lines in kept.items() if cell.startswith("energy ") for line in lines]
    clocks = [line["mhz"] for line in control if line["mhz"] is not None]
    return {
        "rounds": rounds,
        "control_spread": spread,
        "is_noisy": bool(spread > NOISY),
        "load": [min(loads), max(loads)] if loads else None,
        "mhz": [min(clocks), max(clocks)] if clocks else None,
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "energy_j": sum(spent) if (spent := [line["joules"] for line in counted]) else None,
    }


def _read(file: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Timings kept so far; a line torn by a kill is left out."""
    kept: dict[str, list[dict[str, Any]]] = {}
    if file is not None and file.is_file():
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            kept.setdefault(line["cell"], []).append(line)
    return kept


def _append(file: Path | None, lines: list[dict[str, Any]]) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file), file.open("a") as stream:
        # The first newline ends a line that a kill may have torn.
        stream.write("\n" + "".join(json.dumps(line) + "\n" for line in lines))
        stream.flush()
        os.fsync(stream.fileno())
