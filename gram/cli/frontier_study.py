"""One checkpoint's frontier as `gram frontier` runs it: estimate, traces, timings, analysis."""

from __future__ import annotations

import hashlib
import json
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
    from gram.config import SamplerConfig
    from gram.evals.cells import Grid
    from gram.evals.energy import Counter
    from gram.evals.latency import Course, Key
    from gram.evals.outcomes import Arrays
    from gram.tasks.protocol import PuzzleSet

SMALLEST_LAUNCH = 8
PROBE_STEPS = 4


class Study:
    """One checkpoint's frontier: estimate, traces, latencies, analysis."""

    def __init__(
        self,
        sampler: Sampler,
        chosen: PuzzleSet,
        grid: Grid,
        sampling: Sampling,
        keys: Sequence[Key],
        seeds: int,
        rounds: int,
        folder: Path,
        is_quiet: bool,
    ) -> None:
        self.sampler, self.chosen, self.grid, self.keys = sampler, chosen, grid, list(keys)
        self.seeds, self.rounds, self.folder, self.is_quiet = seeds, rounds, folder, is_quiet
        self.sampling = sampling
        self.outcomes: Arrays | None = None
        """Outcomes by puzzle, once it has run."""
        self.config = sampler.settings(sampling.config, width=grid.widths[-1], depth=grid.depths[-1])
        assert self.config.launch is not None
        self.launch = self.config.launch
        turns = {name: getattr(self.config, name) for name in ("transitions", "low_level_updates")}
        self.model = replace(sampler.model.config, **turns)
        """The model's shape, with the run's own `T` and `K`."""

    def settings(self, course: Course, puzzles: int) -> SamplerConfig:
        """Settings of a timed run, with slots for all its trajectories. One puzzle at a time takes the smallest launch
        that holds its trajectories: a launch is padded, and width would else be free up to its size."""
        launch = self.launch
        if course.mode == "interactive":
            launch = min(launch, max(SMALLEST_LAUNCH, 1 << (course.width - 1).bit_length()))
        varied: dict[str, Any] = {"halting": course.halting, "selector": self.grid.selectors[0]}
        return replace(
            self.config,
            width=course.width,
            halt_threshold=None if course.halting == "fixed" else self.grid.threshold(course.halting),
            launch=launch,
            slots=max(course.width * puzzles, launch),
            **varied,
        )

    def estimate(self) -> dict[str, Any]:
        """What the run will cost, from the model's shape and a probe of some steps."""
        import numpy as np

        from gram.evals.cost import preflight
        from gram.evals.measures import bases
        from gram.evals.memory_probe import peak_kib

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
            rounds=dict.fromkeys({key.mode for key in self.keys}, self.rounds),
            batch=self.launch,
            steps_per_s=speed,
            resident_bytes=1024 * peak_kib(),
        )

    def run(self, source: dict[str, Any], budgets: list[float] | None) -> dict[str, Any]:
        """Everything; what a killed run has done is not done again."""
        from gram.cli import terminal
        from gram.cli.versions import versions
        from gram.config import config_to_json
        from gram.evals.frontier import analyse
        from gram.evals.laps import time_depths
        from gram.evals.latency import measure
        from gram.sampler.trace import Traces

        started = time.perf_counter()
        fixed = replace(self.config, halting="fixed", halt_threshold=None)
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

        def run(course: Course, index: Any) -> list[float]:
            return time_depths(self.sampler, puzzles[index], self.settings(course, len(index)), course.depths)

        with terminal.progress(len(self.keys) * self.rounds, "timings", is_quiet=self.is_quiet) as advance:
            timings = measure(
                self.keys,
                run,
                puzzles=len(puzzles),
                batch=self.launch,
                rounds=self.rounds,
                file=self.folder / f"latency-{self.identity()[:12]}.jsonl",
                on_timed=advance,
                energy=self.energy_counter(),
            )
        timed_s = time.perf_counter() - started - traced_s
        traces = [Traces.open(folder) for folder in folders]
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
            "sampling": {key: value for key, value in config_to_json(fixed).items() if key not in ("seed", "slots")},
            "interactive_launch": f"the power of two from {SMALLEST_LAUNCH} that holds a puzzle's trajectories",
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

    def identity(self) -> str:
        """Digest of what latencies depend on besides the machine."""
        from gram.config import config_to_json

        parts: list[Any] = [config_to_json(self.config), self.sampler.model.digest(), str(self.sampler.model.device)]
        parts += [list(self.grid.thresholds), hashlib.sha256(self.chosen.puzzles.tobytes()).hexdigest()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def processor(self) -> str | None:
        """Model of the GPU or CPU that it runs on."""
        from gram.evals.latency import processor_name

        device = self.sampler.model.device
        if device.type == "cuda":
            import torch

            return torch.cuda.get_device_name(device)
        return processor_name()

    def energy_counter(self) -> Counter | None:
        """What counts the device's joules, where it reports them."""
        from gram.evals.energy import counter

        device = self.sampler.model.device
        if device.type == "cuda":
            import torch

            return counter(str(torch.cuda.get_device_properties(device).uuid))
        return counter()

    def reason(self) -> str:
        """Why this kernel path."""
        from gram.kernels import dispatch

        model, wanted = self.sampler.model, self.sampling.config.kernel
        return dispatch.choose(model.device, model.spec, model.dtype, wanted).reason


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
