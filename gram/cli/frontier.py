"""`gram frontier`: width against depth at matched, measured latency; traces once, times every cell, writes a report."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.errors import keeping
from gram.cli.eval import choose_puzzles
from gram.cli.options import (
    ADAPTIVE,
    Json,
    PuzzleFile,
    Quiet,
    Sampling,
    TaskName,
    at_least_one,
    whole,
    with_sampling_options,
)

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.config import SamplerConfig
    from gram.evals.cells import Grid
    from gram.evals.latency import Course, Key
    from gram.tasks.protocol import PuzzleSet

FRONTIER_FILE, CELLS_FILE, REPORT_FILE, PICTURES = "frontier.json", "cells.csv", "report.html", "pictures"
SMALLEST_LAUNCH = 8
PROBE_STEPS = 4


@with_sampling_options(without=("width", "depth", "selector", "halting", "seed", *ADAPTIVE), is_spread=True)
def frontier(
    task: TaskName,
    puzzles: PuzzleFile = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the task, where no FILE is given.")] = "test",
    limit: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="P", help="First P puzzles of the set's fixed permutation. [default: all]"),
    ] = None,
    widths: Annotated[str, typer.Option(metavar="N,N,...", help="Widths, from 1.")] = "1,2,4,8,16,32",
    depths: Annotated[
        str | None,
        typer.Option(metavar="M,M,...", help="Depths. [default: powers of 2 up to twice the trained depth]"),
    ] = None,
    selectors: Annotated[str, typer.Option(metavar="S,S,...", help="Selectors.")] = "vote,lprm,halt,first-halt",
    haltings: Annotated[
        str, typer.Option(metavar="H,H,...", help="Halting rules; the verdict speaks of the first.")
    ] = "head,fixed",
    budgets: Annotated[
        str, typer.Option(metavar="auto|MS,MS,...", help="Latency budgets; auto doubles from one trajectory's.")
    ] = "auto",
    modes: Annotated[str, typer.Option(metavar="MODE,...", help="Latency modes.")] = "interactive,throughput",
    rounds: Annotated[int, typer.Option(parser=whole, metavar="R", help="Rounds of timing each cell.")] = 20,
    seeds: Annotated[int, typer.Option(parser=whole, metavar="S", help="Sampling seeds, from 0.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results; a killed run goes on there. [default: runs/frontier/CHECKPOINT]"),
    ] = None,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the estimate of cost and stop.")] = False,
    as_json: Json = False,
    is_quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Find whether width or depth is the better use of a time budget. `--checkpoint A,B` studies each in turn."""
    from gram.cli import terminal
    from gram.evals.latency import grid_keys

    for name, value in (("limit", limit), ("rounds", rounds), ("seeds", seeds)):
        at_least_one(name, value)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    family = sampling.task(task)
    chosen = choose_puzzles(family, puzzles, split, limit)
    names: list[str | None] = [None] if sampling.checkpoint is None else [*sampling.checkpoint.split(",")]
    wanted_budgets = None if budgets == "auto" else numbers("budgets", budgets, float)
    found: dict[str, Any] = {}
    for checkpoint in names:
        sampler = replace(sampling, checkpoint=checkpoint).sampler(family)
        grid = make_grid(sampler, sampling.config, widths, depths, selectors, haltings)
        keys = grid_keys(modes.split(","), grid.haltings, grid.widths, grid.depths)
        label = Path(sampler.name).name
        folder = (out or Path("runs") / "frontier" / label) if len(names) == 1 or out is None else out / label
        study = Study(sampler, chosen, grid, sampling, keys, seeds, rounds, folder, is_quiet)
        estimate = study.estimate()
        if not as_json and not is_quiet:
            show_estimate(estimate)
        if is_dry_run:
            found[label] = estimate
            continue
        with keeping(folder):
            made = study.run({"split": split} if puzzles is None else {"puzzle_file": str(puzzles)}, wanted_budgets)
        write(folder, made)
        found[label] = made
        if not as_json:
            terminal.output().print(f"\n{label}: {made['verdict']['sentence']}\n{folder / REPORT_FILE}", soft_wrap=True)
    if as_json:
        terminal.print_json(next(iter(found.values())) if len(found) == 1 else found)


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
        from gram.evals.cost import preflight

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
            seeds=self.seeds,
            rounds=dict.fromkeys({key.mode for key in self.keys}, self.rounds),
            batch=self.launch,
            steps_per_s=speed,
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
            )
        timed_s = time.perf_counter() - started - traced_s
        traces = [Traces.open(folder) for folder in folders]
        facts = traces[0].about
        about = {
            "task": self.sampler.task.name,
            "checkpoint": self.sampler.name,
            **source,
            "device": facts["device"],
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
        )
        analysed_s = time.perf_counter() - started - traced_s - timed_s
        made["about"]["times"] = {
            "traced_s": round(traced_s, 1),
            "timed_s": round(timed_s, 1),
            "analysed_s": round(analysed_s, 1),
        }
        return made | account

    def identity(self) -> str:
        """Digest of what latencies depend on besides the machine."""
        from gram.config import config_to_json

        parts: list[Any] = [config_to_json(self.config), self.sampler.model.digest(), str(self.sampler.model.device)]
        parts += [list(self.grid.thresholds), hashlib.sha256(self.chosen.puzzles.tobytes()).hexdigest()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def reason(self) -> str:
        """Why this kernel path."""
        from gram.kernels import dispatch

        model, wanted = self.sampler.model, self.sampling.config.kernel
        return dispatch.choose(model.device, model.spec, model.dtype, wanted).reason


def make_grid(
    sampler: Sampler, config: SamplerConfig, widths: str, depths: str | None, selectors: str, haltings: str
) -> Grid:
    """The grid that the options name. Raises `ValueError`."""
    from gram.evals.cells import Grid
    from gram.sampler.settings import first_halt

    trained = sampler.model.config.depth
    wanted = numbers("depths", depths, int) if depths else [2**power for power in range((2 * trained).bit_length())]
    rules = tuple(haltings.split(","))
    thresholds = []
    for place, rule in enumerate(rules):
        setting: Any = {"halting": rule, "halt_threshold": None if place else config.halt_threshold}
        thresholds.append(sampler.settings(replace(config, **setting)).halt_threshold)
    return Grid(
        widths=tuple(sorted({1, *numbers("widths", widths, int)})),
        depths=tuple(sorted({trained, *wanted})),
        selectors=tuple(selectors.split(",")),
        haltings=rules,
        trained_depth=trained,
        first_halt=first_halt(sampler.settings(config), sampler.model),
        thresholds=tuple(thresholds),
    )


def numbers(name: str, text: str, kind: type[Any]) -> list[Any]:
    """Numbers between commas. Raises `ValueError`."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between, got {text!r}") from None
    if min(values) <= 0:
        raise ValueError(f"{name} must be above 0, got {text!r}")
    return values


def write(folder: Path, made: dict[str, Any]) -> None:
    """`frontier.json`, `cells.csv`, the report and the pictures, each moved into place once complete."""
    from gram.checkpoint import write_atomically, write_json
    from gram.evals.frontier import cells_csv
    from gram.evals.plots import draw
    from gram.evals.report import render

    write_json(folder / FRONTIER_FILE, made)
    write_atomically(folder / CELLS_FILE, cells_csv(made).encode())
    write_atomically(folder / REPORT_FILE, render(made).encode())
    draw(made, folder / PICTURES)


def show_estimate(estimate: dict[str, Any]) -> None:
    """The pre-flight, on stderr."""
    from gram.cli import terminal

    minutes = (estimate["trace_s"] + estimate["latency_s"]) / 60
    needed = ", ".join(
        f"{each['puzzles']:,.0f} for {100 * each['difference']:g} points" for each in estimate["puzzles_needed"]
    )
    work = f"{estimate['cells']:,} cells from {estimate['steps_of_trace']:,} supervision steps"
    saving = f"{estimate['saving']:.1f} times fewer than cell by cell"
    terminal.tell(f"{work} ({saving}), {estimate['macs'] / 1e12:.2f} TMACs")
    parts = f"{estimate['trace_s'] / 60:.1f} traces, {estimate['latency_s'] / 60:.1f} latency"
    disk, memory = (f"{estimate[name] / 2**20:,.0f} MiB" for name in ("disk_bytes", "memory_bytes"))
    terminal.tell(f"about {minutes:.1f} minutes ({parts}), {disk} on disk, {memory} of memory")
    terminal.tell(f"puzzles that tell a difference apart, power 80 %: {needed} (here {estimate['puzzles']:,})")
