"""One checkpoint's frontier as `gram frontier` runs it: estimate, traces, timings, analysis."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gram.cli.options import Sampling

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.evals.frontier.cells import Grid
    from gram.evals.frontier.energy import Counter
    from gram.evals.frontier.laps import Course
    from gram.evals.frontier.outcomes import Arrays
    from gram.tasks.protocol import PuzzleSet, Tokens

PROBE_STEPS = 4


class Study:
    """One checkpoint's frontier: estimate, traces, latencies, analysis."""

    def __init__(
        self,
        sampler: Sampler,
        chosen: PuzzleSet,
        grid: Grid,
        sampling: Sampling,
        modes: Sequence[str],
        seeds: int,
        rounds: int,
        folder: Path,
        is_quiet: bool,
    ) -> None:
        self.sampler, self.chosen, self.grid = sampler, chosen, grid
        self.seeds, self.rounds, self.folder, self.is_quiet = seeds, rounds, folder, is_quiet
        self.sampling = sampling
        self.outcomes: Arrays | None = None
        """Outcomes by puzzle, once it has run."""
        from gram.evals.frontier.latency import courses_of
        from gram.evals.frontier.prices import READING

        varied: dict[str, Any] = {"selector": grid.selectors[0]}
        self.config = sampler.settings(sampling.config, **varied, width=grid.widths[-1], depth=grid.depths[-1])
        assert self.config.launch is not None
        self.launch = self.config.launch
        self.kernel = sampler.settings(self.config, kernel=sampling.config.kernel, puzzles=seeds * len(chosen)).kernel
        """Path of traces and full launches; one puzzle at a time takes `config`'s, which suits so short a run."""
        reading = [rule in READING for rule in grid.haltings]
        self.courses = courses_of(modes, reading, grid.widths[-1], self.launch)
        turns = {name: getattr(self.config, name) for name in ("transitions", "low_level_updates")}
        self.model = replace(sampler.model.config, **turns)
        """The model's shape, with the run's own `T` and `K`."""

    def estimate(self) -> dict[str, Any]:
        """What the run will cost, from the model's shape and a probe of some steps."""
        import numpy as np

        from gram.evals.benchmarks.memory_probe import peak_kib
        from gram.evals.cost import preflight
        from gram.evals.frontier.laps import TIMED_STEPS
        from gram.evals.frontier.measures import bases

        probe = replace(self.config, width=self.launch, depth=PROBE_STEPS, halting="fixed", halt_threshold=None)
        speed = 0.0
        for _ in range(2):
            started = time.perf_counter()
            self.sampler.sample(self.chosen.puzzles[:1], probe)
            speed = max(speed, self.launch * PROBE_STEPS / (time.perf_counter() - started))
        return preflight(
            self.model,
            self.grid,
            puzzles=len(self.chosen),
            bases=len(np.unique(bases(self.chosen))),
            seeds=self.seeds,
            timed_rows=self.rounds * sum(course.rows for course in self.courses),
            timed_steps=TIMED_STEPS,
            steps_per_s=speed,
            resident_bytes=1024 * peak_kib(),
        )

    def run(self, source: dict[str, Any], budgets: list[float] | None) -> dict[str, Any]:
        """Everything; what a killed run has done is not done again."""
        from gram.cli import terminal
        from gram.cli.versions import versions
        from gram.config import config_to_json
        from gram.evals.frontier import timing_file
        from gram.evals.frontier.analysis import analyse
        from gram.evals.frontier.laps import Laps, time_laps, timed
        from gram.evals.frontier.latency import measure
        from gram.evals.frontier.launch_check import compare_launches
        from gram.sampler.trace import Traces

        started = time.perf_counter()
        # No selector takes part in a trace: one that is chosen later finds the same traces.
        fixed = replace(self.config, halting="fixed", halt_threshold=None, selector="vote", kernel=self.kernel)
        folders = [self.folder / "traces" / f"seed-{seed}" for seed in range(self.seeds)]
        total = self.seeds * len(self.chosen) * self.grid.widths[-1]
        with (
            self.sampling.backend(self.sampler, is_quiet=self.is_quiet) as backend,
            terminal.progress(total, "trajectories", is_quiet=self.is_quiet, cluster=backend) as advance,
        ):
            for seed, folder in enumerate(folders):
                self.sampler.sample(
                    self.chosen, fixed, seed=seed, out=folder, is_traced=True, on_ended=advance, backend=backend
                )
        account = backend.account() if backend is not None else {}
        traced_s = time.perf_counter() - started
        puzzles = self.chosen.puzzles[self.chosen.puzzles.any(axis=1)]

        def run(course: Course, index: Any) -> Laps:
            kernel = self.config.kernel if course.mode == "interactive" else self.kernel
            config = replace(self.config, kernel=kernel)
            return time_laps(self.sampler, puzzles[index], timed(config, course, len(index)))

        identity = self.identity()
        if (told := timing_file.others(self.folder, identity)) is not None:
            terminal.tell(told)
        with terminal.progress(len(self.courses) * self.rounds, "timings", is_quiet=self.is_quiet) as advance:
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
        timed_s = time.perf_counter() - started - traced_s
        traces = [Traces.open(folder) for folder in folders]
        timings["launch_check"] = compare_launches(self.sampler.task, traces[0], self.grid, self.answers)
        facts = traces[0].about
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
            "sampling": {key: value for key, value in config_to_json(fixed).items() if key not in ("seed", "slots")},
            "interactive_launch": self.launch_policy(),
            "model_sha256": self.sampler.model.digest(),
            "data_sha256": hashlib.sha256(self.chosen.puzzles.tobytes()).hexdigest(),
            "versions": versions(),
            "command": shlex.join(["gram", *sys.argv[1:]]),
        }
        made = analyse(
            self.sampler.task,
            self.chosen,
            traces,
            self.grid,
            self.model,
            timings=timings,
            about=about,
            budgets=budgets,
            on_outcomes=self.keep,
        )
        analysed_s = time.perf_counter() - started - traced_s - timed_s
        made["about"]["times"] = {
            "traced_s": round(traced_s, 1),
            "timed_s": round(timed_s, 1),
            "analysed_s": round(analysed_s, 1),
        }
        return made | account

    def keep(self, outcomes: Arrays) -> None:
        """Takes the outcomes by puzzle."""
        self.outcomes = outcomes

    def answers(self, puzzle: Tokens, width: int, depth: int) -> Tokens:
        """Candidates `[width, A]` of one puzzle at the timed launch."""
        from gram.evals.frontier.laps import alone

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
        import torch

        from gram.cli.versions import versions
        from gram.config import config_to_json
        from gram.evals.frontier.laps import TIMED_STEPS
        from gram.evals.frontier.latency import processors

        varied = ("width", "depth", "halting", "halt_threshold", "selector", "seed", "slots", "is_padded")
        settings = {name: value for name, value in config_to_json(self.config).items() if name not in varied}
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
            "settings": settings,
            "model_sha256": self.sampler.model.digest(),
            "data_sha256": hashlib.sha256(self.chosen.puzzles.tobytes()).hexdigest(),
            "versions": versions(),
        }

    def processor(self) -> str | None:
        """Model of the GPU or CPU that it runs on."""
        from gram.evals.frontier.latency import processor_name

        device = self.sampler.model.device
        if device.type == "cuda":
            import torch

            return torch.cuda.get_device_name(device)
        return processor_name()

    def energy_counter(self) -> Counter | None:
        """What counts the device's joules, where it reports them."""
        from gram.evals.frontier.energy import counter

        device = self.sampler.model.device
        if device.type == "cuda":
            import torch

            return counter(str(torch.cuda.get_device_properties(device).uuid))
        return counter()

    def reason(self) -> str:
        """Why traces take their kernel path."""
        from gram.kernels import dispatch

        model, wanted = self.sampler.model, self.sampling.config.kernel
        steps = self.seeds * len(self.chosen) * self.grid.widths[-1] * self.grid.depths[-1]
        flops = steps * dispatch.step_flops(model.weights(), model.spec)
        return dispatch.choose(model.device, model.spec, model.dtype, wanted, flops).reason


def show_estimate(label: str, estimate: dict[str, Any]) -> None:
    """The pre-flight, on stderr."""
    from gram.cli import terminal

    minutes = (estimate["trace_s"] + estimate["latency_s"]) / 60
    needed = ", ".join(
        f"{each['puzzles']:,.0f} for {100 * each['difference']:g} points" for each in estimate["puzzles_needed"]
    )
    work = f"{estimate['cells']:,} cells from {estimate['steps_of_trace']:,} supervision steps"
    saving = f"{estimate['saving']:.1f} times fewer than cell by cell"
    terminal.tell(f"{label}: {work} ({saving}), {estimate['macs'] / 1e12:.2f} TMACs")
    parts = f"{estimate['trace_s'] / 60:.1f} traces, {estimate['latency_s'] / 60:.1f} latency"
    disk, memory = (f"{estimate[name] / 2**20:,.0f} MiB" for name in ("disk_bytes", "memory_bytes"))
    terminal.tell(f"about {minutes:.1f} minutes ({parts}), {disk} on disk, up to {memory} of memory")
    here = terminal.plural(estimate["puzzles"], "puzzle")
    if estimate["bases"] < estimate["puzzles"]:
        here += f" of {terminal.plural(estimate['bases'], 'base')}, which count"
    terminal.tell(f"independent puzzles that tell a difference apart, power 80 %: {needed} (here {here})")
