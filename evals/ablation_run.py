"""Running the cells of an ablation: each is kept under what decides its results, so that no cell is run twice.

Cells that differ in nothing but their selector share their trajectories.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from gram import __version__, api
from gram.api import Sampler
from gram.config import ResolvedConfig, SamplerConfig, identity_json
from gram.evals import ablation, comparison
from gram.evals.ablation import AblationCell, AblationStudy, content_key
from gram.evals.evaluate import PREDICTIONS_FILE, RESULTS_FILE, evaluate_result, predictions, to_json, write_results
from gram.evals.progress import ShowProgress, silent
from gram.evals.puzzle_choice import PuzzleChoice
from gram.formatting import plain
from gram.kernels import dispatch
from gram.sampler.engine import Observer, Progress
from gram.sampler.run import Backend, shape_of
from gram.tasks.protocol import PuzzleSet
from gram.versions import versions


@dataclass(frozen=True, kw_only=True)
class AblationRun:
    """The cells of a study file on some puzzles, in a folder."""

    file: Path
    out: Path
    choice: PuzzleChoice
    """Of the study's split, or of the caller's puzzles."""
    device: str = "auto"
    dtype: str = "auto"
    samplers: dict[str, Sampler] = field(init=False, default_factory=dict, repr=False, compare=False)
    """By checkpoint, once opened."""

    @classmethod
    def of(cls, study: str | Path, out: Path, **options: Any) -> AblationRun:
        """A run of a shipped study or a file. Options: `puzzles`, `rows`, `limit` (`PuzzleChoice`), `device`, `dtype`.
        Raises `ValueError`."""
        file = ablation.find(str(study))
        plan = ablation.read(file)
        chosen = {name: options.pop(name, None) for name in ("puzzles", "rows", "limit")}
        choice = PuzzleChoice(split=plan.split, **(chosen | {"limit": chosen["limit"] or plan.limit}))
        return cls(file=file, out=out, choice=choice, **options)

    @cached_property
    def plan(self) -> AblationStudy:
        """What the file says."""
        return ablation.read(self.file)

    @cached_property
    def puzzles(self) -> PuzzleSet:
        """The puzzles that all cells share."""
        return self.choice.of(self.sampler(self.plan.cells[0]).task)

    def sampler(self, cell: AblationCell) -> Sampler:
        """The sampler of a cell's checkpoint, opened once. Raises `ValueError` for one of another task."""
        if cell.checkpoint not in self.samplers:
            opened = api.load(cell.checkpoint, device=self.device, dtype=self.dtype)
            if opened.task.name != self.plan.task:
                raise ValueError(
                    f"checkpoint {cell.checkpoint!r} must be one of task {self.plan.task!r}, got {opened.task.name!r}"
                )
            self.choice.warn(opened)
            self.samplers[cell.checkpoint] = opened
        return self.samplers[cell.checkpoint]

    def run(self, *, jobs: int = 1, backend: Backend | None = None, progress: ShowProgress = silent) -> list[Path]:
        """Runs the cells that have no results yet, `jobs` side by side; the folder of each cell."""
        numbers = range(len(self.plan.cells))
        with progress(len(numbers), "cells") as advance:
            done: dict[int, Path] = {}
            if jobs == 1:
                for number in numbers:
                    done[number] = self.run_cell(number, observer=Progress(lambda _: advance(0)), backend=backend)
                    advance(1)
                return [done[number] for number in numbers]
            # Cells that share trajectories share their folder, which one process at a time writes.
            shares: dict[tuple[str, SamplerConfig], list[int]] = {}
            for number, cell in enumerate(self.plan.cells):
                shared = cell.checkpoint, replace(cell.config, selector="first", slots=None)
                shares.setdefault(shared, []).append(number)
            with ProcessPoolExecutor(jobs, get_context("spawn"), _take_share_of_threads, (jobs,)) as pool:
                waiting = [pool.submit(replace(self).run_cells, share) for share in shares.values()]
                for future in as_completed(waiting):
                    done |= future.result()
                    advance(len(future.result()))
            return [done[number] for number in numbers]

    def run_cells(self, numbers: list[int]) -> dict[int, Path]:
        """Some cells, one after another; the folder of each."""
        return {number: self.run_cell(number) for number in numbers}

    def run_cell(self, number: int, *, observer: Observer | None = None, backend: Backend | None = None) -> Path:
        """One cell to its folder, unless that holds it already."""
        cell = self.plan.cells[number]
        sampler, puzzles = self.sampler(cell), self.puzzles
        settings = sampler.settings(cell.config)
        own, shared = self._keys(sampler, settings, (backend and backend.device) or sampler.model.device)
        folder = self.out / "cells" / own
        if (folder / RESULTS_FILE).is_file() and (folder / PREDICTIONS_FILE).is_file():
            return folder
        trajectories = self.out / "trajectories" / shared
        result = sampler.sample(puzzles, settings, out=trajectories, observer=observer, backend=backend)
        found = evaluate_result(sampler.task, puzzles, result, checkpoint=sampler.name, versions=versions())
        summary = to_json(found) | self.choice.facts(sampler.card)
        write_results(folder, summary, predictions(sampler.task, puzzles, result))
        return folder

    def _keys(self, sampler: Sampler, settings: ResolvedConfig, device: torch.device) -> tuple[str, str]:
        """Digests of what decides a cell's results, and its trajectories alone."""
        values = identity_json(settings, without=("slots",))
        model = sampler.model
        parts = {
            "model": model.digest(),
            "shape": json.dumps(shape_of(model), sort_keys=True),
            "puzzles": hashlib.sha256(self.puzzles.puzzles.tobytes()).hexdigest(),
            "where": f"{device.type} {model.dtype} {dispatch.choose(model.device).kernel}",
            "gram": __version__,
        }
        without = {name: value for name, value in values.items() if name != "selector"}
        return content_key({**parts, "settings": values}), content_key({**parts, "settings": without})

    def summary(self, folders: list[Path], command: str = "") -> dict[str, Any]:
        """What `ablation.json` holds: every cell compared with the first."""
        stored = [comparison.read(folder) for folder in folders]
        names = ("task", "split", "puzzle_file", "rows", "puzzles", "device", "dtype", "kernel")
        about = {name: stored[0].results.get(name) for name in names}
        about |= {"study": self.file.name, "versions": versions(), "command": command}
        made: dict[str, Any] = plain(
            ablation.summarise(self.plan, stored, comparison.known_clusters(stored[0]), about=about)
        )
        return made


def _take_share_of_threads(jobs: int) -> None:
    """Each of several processes takes its share of the processors."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
