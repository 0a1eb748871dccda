"""One checkpoint's frontier: estimate, traces, timings, analysis. What a killed run has done is not done again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gram.api import Sampler
from gram.config import SamplerConfig, config_to_json, identity_json
from gram.evals import cost
from gram.evals.benchmarks.memory_probe import peak_kib
from gram.evals.evaluate import clusters_of
from gram.evals.frontier import energy, launch_check, timing_file
from gram.evals.frontier.analysis import analyse
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.latency import courses_of, cpu_facts, measure, processors
from gram.evals.frontier.outcomes import Arrays
from gram.evals.frontier.prefix_timing import TIMED_STEPS, Course, PrefixTiming, alone, time_prefix, timed
from gram.evals.frontier.prices import READING
from gram.evals.progress import ShowProgress, silent
from gram.kernels import dispatch
from gram.sampler.engine import Progress, first_halt
from gram.sampler.run import Backend, supported_selectors
from gram.sampler.trace import Traces
from gram.tasks.protocol import PuzzleSet, Tokens
from gram.versions import versions

PROBE_STEPS = 4
PILOT = 32
"""Trajectories, each of another puzzle, that say how long those of a lattice run."""


def make_grid(
    sampler: Sampler,
    config: SamplerConfig,
    *,
    widths: Sequence[int],
    depths: Sequence[int] | None = None,
    selectors: Sequence[str] | None = None,
    haltings: Sequence[str],
) -> Grid:
    """The grid of a study. Depths left out: powers of 2 up to four times the trained depth, which the headline's budget
    pays for. Selectors left out: the checkpoint's own, then every other that it has a head for. Raises `ValueError`."""
    trained = sampler.model.config.trained_depth or sampler.model.config.depth
    powers = [2**power for power in range((4 * trained).bit_length())]
    thresholds = []
    for place, rule in enumerate(haltings):
        setting: Any = {"halting": rule, "halt_threshold": None if place else config.halt_threshold}
        thresholds.append(sampler.settings(replace(config, **setting)).halt_threshold)
    if selectors is None:
        own = str(sampler.settings(config).selector)
        selectors = own, *(each for each in supported_selectors(sampler.model) if each != own)
    return Grid(
        widths=tuple(sorted({1, *widths})),
        depths=tuple(sorted({trained, *(depths or [*powers, 2 * trained, 4 * trained])})),
        selectors=tuple(selectors),
        haltings=tuple(haltings),
        trained_depth=trained,
        first_halt=first_halt(sampler.settings(config), sampler.model),
        thresholds=tuple(thresholds),
    )


class FrontierStudy:
    """One checkpoint's frontier on some puzzles, kept in a folder. `trace`, `time` and `analyse`, in this order."""

    def __init__(
        self,
        sampler: Sampler,
        chosen: PuzzleSet,
        grid: Grid,
        *,
        folder: Path,
        config: SamplerConfig,
        modes: Sequence[str],
        seeds: int,
        rounds: int,
    ) -> None:
        self.sampler, self.chosen, self.grid, self.folder = sampler, chosen, grid, folder
        self.seeds, self.rounds, self.wanted_kernel = seeds, rounds, config.kernel
        self.outcomes: Arrays | None = None
        """Outcomes by puzzle, once it is analysed."""
        self.times: dict[str, float] = {}
        varied: dict[str, Any] = {"selector": grid.selectors[0], "width_policy": "fixed", "width_stage": None}
        self.config = sampler.settings(config, **varied, width=grid.widths[-1], depth=grid.depths[-1])
        assert self.config.launch is not None
        self.launch = self.config.launch
        self.kernel = sampler.settings(self.config, kernel=config.kernel, puzzles=seeds * len(chosen)).kernel
        """Path of traces and full launches; one puzzle at a time takes `config`'s, which suits so short a run."""
        self.courses = courses_of(modes, [rule in READING for rule in grid.haltings], grid.widths[-1], self.launch)
        turns = {name: getattr(self.config, name) for name in ("transitions", "low_level_updates")}
        self.model = replace(sampler.model.config, **turns)
        """The model's shape, with the run's own `T` and `K`."""
        self.data_sha256 = hashlib.sha256(chosen.puzzles.tobytes()).hexdigest()

    def estimate(self) -> dict[str, Any]:
        """What the run will cost, from the model's shape, a probe of some steps and, where traces stop at halting, a
        pilot of some trajectories."""
        probe = replace(self.config, width=self.launch, depth=PROBE_STEPS, halting="fixed", halt_threshold=None)
        speed = self._speed(probe)
        is_shorter = self.traced.halting != "fixed"
        traced_speed = self._speed(replace(probe, kernel=self.kernel)) if is_shorter else speed
        taken = self._pilot() if is_shorter else None
        trained = self.grid.trained_depth
        checked = min(launch_check.PUZZLES, len(self.chosen)) * min(launch_check.WIDTH, self.grid.widths[-1])
        return cost.preflight(
            self.model,
            self.grid,
            puzzles=len(self.chosen),
            bases=len(np.unique(clusters_of(self.chosen))),
            seeds=self.seeds,
            timed_rows=self.rounds * sum(course.rows for course in self.courses),
            timed_steps=TIMED_STEPS,
            steps_per_s=speed,
            traced_per_s=traced_speed,
            steps_taken=taken,
            checked_steps=round(checked * (trained if taken is None else float(np.minimum(taken, trained).mean()))),
            resident_bytes=1024 * peak_kib(),
        )

    def _speed(self, probe: SamplerConfig) -> float:
        """Supervision steps of trajectories a second, the better of two runs."""
        speed = 0.0
        for _ in range(2):
            started = time.perf_counter()
            self.sampler.sample(self.chosen.puzzles[:1], probe)
            speed = max(speed, probe.width * PROBE_STEPS / (time.perf_counter() - started))
        return speed

    def _pilot(self) -> NDArray[np.int64]:
        """Supervision steps of the first trajectories of some puzzles `[PILOT]`, up to where their traces end."""
        some = np.random.default_rng(0).permutation(len(self.chosen))[:PILOT]
        return self.sampler.sample(self.chosen.puzzles[some], replace(self.traced, width=1)).steps[:, 0]

    @property
    def traced(self) -> SamplerConfig:
        """Settings of the traces. No selector takes part in a trace: one that is chosen later finds the same traces.

        They run to the full depth, so that every halting rule can be read from them. A lattice that the halt head ends
        would stay as it is, so its traces stop there, which changes nothing in the cells (`gram/sampler/trace.py`).
        """
        rule: dict[str, Any] = {"halting": "fixed", "halt_threshold": None}
        if self.model.latent == "lattice":
            own = dict(zip(self.grid.haltings, self.grid.thresholds, strict=False)).get("head")
            rule = {"halting": "head", "halt_threshold": self.model.halt_threshold if own is None else own}
        return replace(self.config, **rule, selector="vote", kernel=self.kernel)

    @property
    def trace_folders(self) -> list[Path]:
        """Where the traces of each seed are."""
        return [self.folder / "traces" / f"seed-{seed}" for seed in range(self.seeds)]

    def trace(self, *, backend: Backend | None = None, progress: ShowProgress = silent) -> None:
        """Samples all trajectories, to the largest depth or, of a lattice, to their halt."""
        started = time.perf_counter()
        with progress(self.seeds * len(self.chosen) * self.grid.widths[-1], "trajectories") as advance:
            observer = Progress(advance)
            for seed, folder in enumerate(self.trace_folders):
                self.sampler.sample(
                    self.chosen, self.traced, seed=seed, out=folder, is_traced=True, observer=observer, backend=backend
                )
        self.times["traced_s"] = round(time.perf_counter() - started, 1)

    @property
    def earlier_timings(self) -> str | None:
        """One line on timings in the folder that were made otherwise and are not used."""
        return timing_file.others(self.folder, self.identity())

    def time(self, *, progress: ShowProgress = silent) -> dict[str, Any]:
        """Times supervision steps on this machine, which should be idle."""
        started = time.perf_counter()
        puzzles, identity = self.chosen.puzzles[self.chosen.puzzles.any(axis=1)], self.identity()

        def run(course: Course, index: Any) -> PrefixTiming:
            kernel = self.config.kernel if course.mode == "interactive" else self.kernel
            config = replace(self.config, kernel=kernel)
            return time_prefix(self.sampler, puzzles[index], timed(config, course, len(index)))

        with progress(len(self.courses) * self.rounds, "timings") as advance:
            timings = measure(
                self.courses,
                run,
                puzzles=len(puzzles),
                rounds=self.rounds,
                file=self.folder / timing_file.name_of(identity),
                identity=identity,
                on_timed=advance,
                energy=self.energy_counter(),
            )
        self.times["timed_s"] = round(time.perf_counter() - started, 1)
        return timings

    def analyse(
        self, timings: dict[str, Any], source: dict[str, Any], budgets: list[float] | None = None, command: str = ""
    ) -> dict[str, Any]:
        """What `frontier.json` holds. `source`: where the puzzles came from; `budgets`: latencies to match, ms."""
        started = time.perf_counter()
        traces = [Traces.open(folder) for folder in self.trace_folders]
        timings["launch_check"] = launch_check.compare_launches(self.sampler.task, traces[0], self.grid, self.answers)
        facts = traces[0].metadata
        about = {
            "task": self.sampler.task.name,
            "checkpoint": self.sampler.name,
            **source,
            "device": facts["device"],
            "processor": self.processor(),
            "dtype": facts["dtype"],
            "kernel": facts["kernel"],
            "kernel_reason": self.reason(),
            "interactive_kernel": self.config.kernel,
            "sampling": {
                key: value for key, value in config_to_json(self.traced).items() if key not in ("seed", "slots")
            },
            "interactive_launch": self.launch_policy(),
            "model_sha256": self.sampler.model.digest(),
            "data_sha256": self.data_sha256,
            "versions": versions(),
            "command": command,
        }
        found: list[Arrays] = []
        made = analyse(
            self.sampler.task,
            self.chosen,
            traces,
            self.grid,
            self.model,
            timings=timings,
            about=about,
            budgets=budgets,
            on_outcomes=found.append,
        )
        self.outcomes = found[0]
        self.times["analysed_s"] = round(time.perf_counter() - started, 1)
        made["about"]["times"] = dict(self.times)
        return made

    def answers(self, puzzle: Tokens, width: int, depth: int) -> Tokens:
        """Candidates `[width, A]` of one puzzle at the timed launch."""
        halting = self.grid.haltings[0]
        threshold = None if halting == "fixed" else self.grid.threshold(halting)
        rule: dict[str, Any] = {"halting": halting, "halt_threshold": threshold}
        settings = replace(alone(self.config, width, depth), **rule)
        candidates: Tokens = self.sampler.sample(puzzle, settings).candidates[0]
        return candidates

    def launch_policy(self) -> str:
        """What one puzzle at a time launches."""
        return f"the rows that run, {self.launch} at most, without padding"

    def identity(self) -> dict[str, Any]:
        """What timings depend on: this machine, how it is used, the model and its settings."""
        varied = ("width", "depth", "halting", "halt_threshold", "selector", "seed", "slots", "is_padded")
        return {
            "processor": self.processor(),
            "device": str(self.sampler.model.device),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "processors": processors(),
            "dtype": str(self.sampler.model.dtype).removeprefix("torch."),
            "interactive_launch": self.launch_policy(),
            "kernel": self.kernel,
            "steps": TIMED_STEPS,
            "settings": identity_json(self.config, without=varied),
            "model_sha256": self.sampler.model.digest(),
            "data_sha256": self.data_sha256,
            "versions": versions(),
        }

    def processor(self) -> str | None:
        """Model of the GPU or CPU that it runs on."""
        device = self.sampler.model.device
        return (
            torch.cuda.get_device_name(device) if device.type == "cuda" else next(iter(cpu_facts("model name")), None)
        )

    def energy_counter(self) -> energy.Counter | None:
        """What counts the device's joules, where it reports them."""
        device = self.sampler.model.device
        return energy.counter(str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None)

    def reason(self) -> str:
        """Why traces take their kernel path."""
        model = self.sampler.model
        steps = self.seeds * len(self.chosen) * self.grid.widths[-1] * self.grid.depths[-1]
        flops = steps * dispatch.step_flops(model.weights(), model.spec)
        return dispatch.choose(model.device, model.spec, model.dtype, self.wanted_kernel, flops).reason
