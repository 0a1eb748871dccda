"""ARC evaluated on a data set of many views (`gram eval arc --data DIR`): every view of every test is sampled, and the
predictions of a test, turned back, vote for its two attempts (`evals/arc_votes.py`).

To the sampler views are puzzles and trajectories are trajectories: a block of tasks is one run of views x width. Blocks
keep memory bounded, and each is a stored run of its own under `out`, so that a killed evaluation goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.api import Sampler
from gram.checkpoint import write_atomically, write_json
from gram.config import ResolvedConfig, config_to_json
from gram.evals.arc_votes import ArcVotes, pass_at_k, submission
from gram.evals.evaluate import RESULTS_FILE
from gram.evals.progress import ShowProgress, silent
from gram.formatting import plain
from gram.sampler.engine import Progress
from gram.sampler.run import Backend
from gram.tasks.arc_folder import ArcFolder, ArcSplit, read_names
from gram.tasks.protocol import PuzzleError, PuzzleSet
from gram.versions import versions

log = logging.getLogger(__name__)
SUBMISSION_FILE, TASKS_FILE = "submission.json", "tasks.jsonl"
BLOCK_TRAJECTORIES = 8192
"""About how many trajectories a block of whole tasks has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcReport:
    """What `gram eval arc --data DIR` prints and writes."""

    summary: dict[str, Any]
    """What `results.json` holds."""
    rows: list[dict[str, Any]]
    """A line of `tasks.jsonl` for each test."""

    def save(self, folder: Path, **more: Any) -> None:
        """Writes `results.json` with `more` in it, `submission.json` and `tasks.jsonl`, each whole or not at all."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows)
        write_atomically(folder / TASKS_FILE, lines.encode())
        write_atomically(folder / SUBMISSION_FILE, json.dumps(submission(self.rows)).encode())
        write_json(folder / RESULTS_FILE, self.summary | more)


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole tasks that are sampled together."""

    tasks: list[str]
    examples: NDArray[np.int64]
    """Places in the split, `[k]`."""
    identities: NDArray[np.int64]
    """As the data set counts them, `[k]`."""


def evaluate_arc(
    sampler: Sampler,
    folder: ArcFolder,
    settings: ResolvedConfig,
    *,
    limit: int | None = None,
    out: Path | None = None,
    backend: Backend | None = None,
    progress: ShowProgress = silent,
) -> ArcReport:
    """Evaluates the tasks of a data set, or its first `limit`. With `out` the trajectories are kept there.

    Raises `PuzzleError` for a damaged data set and `ValueError` where the model does not know a view's name.
    """
    if settings.width_policy == "verified":
        raise ValueError("width_policy must not be verified with views, of which no verifier knows the answers")
    if settings.width_policy == "first-halt":
        raise ValueError("width_policy must not be first-halt with views, whose votes count every trajectory's answer")
    wanted = list(folder.tests)[:limit]
    split = folder.split("test")
    blocks = list(_blocks(folder, split, set(wanted), settings.width))
    if missing := set(wanted) - {task for block in blocks for task in block.tasks}:
        raise PuzzleError(f"{folder.path}: task {min(missing)[:40]!r} must have its tests in test, got none")
    rows_of = _rows_of_table(sampler, folder)
    for block in blocks:
        for identity in np.unique(block.identities).tolist():
            folder.view(identity)
        rows_of(block.identities)
    unlabelled = sum(test.output is None for task in wanted for test in folder.tests[task])
    tests = sum(len(folder.tests[task]) for task in wanted)
    if unlabelled:
        log.warning("%s: no label of %d of %d tests", folder.path, unlabelled, tests)
    votes, found = ArcVotes(folder), dict[str, list[dict[str, Any]]]()
    examples = sum(len(block.examples) for block in blocks)
    trajectories = steps = 0
    elapsed_s = 0.0
    result = None
    with progress(examples * settings.width, "trajectories") as advance:
        for number, block in enumerate(blocks):
            puzzles = PuzzleSet(
                puzzles=np.asarray(split.inputs[block.examples]), identities=rows_of(block.identities)
            )  # fmt: skip
            where = None if out is None else out / "views" / f"{number:05d}"
            result = sampler.sample(puzzles, settings, out=where, observer=Progress(advance), backend=backend)
            counted = result.is_counted
            puzzle, _ = np.nonzero(counted)
            votes.add(
                block.identities[puzzle], result.puzzles[puzzle], result.candidates[counted], result.halt[counted]
            )
            for task in block.tasks:
                found[task] = [voted.to_json() for voted in votes.close(task)]
            trajectories += len(puzzle)
            steps += int(result.steps[counted].sum())
            elapsed_s += result.elapsed_s
    assert result is not None
    rows = [row for task in wanted for row in found[task]]
    summary = {
        "task": sampler.task.name,
        "checkpoint": sampler.name,
        "data": str(folder.path),
        "tasks": len(wanted),
        "tests": tests,
        "tests_without_label": unlabelled,
        "examples": examples,
        "trajectories": trajectories,
        **{name: None if value is None else plain(value) for name, value in pass_at_k(rows).items()},
        "mean_steps": steps / trajectories,
        "elapsed_s": elapsed_s,
        "trajectories_per_s": trajectories / elapsed_s if elapsed_s > 0 else None,
        "device": result.device,
        "dtype": result.dtype,
        "versions": versions(),
    }
    settings_json = {name: value for name, value in config_to_json(settings).items() if name not in summary}
    return ArcReport(summary=summary | settings_json, rows=rows)


def _blocks(folder: ArcFolder, split: ArcSplit, wanted: set[str], width: int) -> Iterator[_Block]:
    """The wanted tasks of a split in its order, a few at a time."""
    block, seen = _Block([], np.zeros(0, np.int64), np.zeros(0, np.int64)), set[str]()
    for first, last in zip(split.groups[:-1].tolist(), split.groups[1:].tolist(), strict=True):
        task = folder.view(int(split.identities[first]))[0]
        if task not in wanted:
            continue
        if task in seen:
            raise PuzzleError(f"{folder.path}: task {task[:40]!r} must be one group of test, got two")
        seen.add(task)
        examples = np.arange(split.examples[first], split.examples[last])
        block = _Block(
            [*block.tasks, task],
            np.concatenate([block.examples, examples]),
            np.concatenate([block.identities, split.identities[split.puzzles_of(examples)]]),
        )
        if len(block.examples) * width >= BLOCK_TRAJECTORIES:
            yield block
            block = _Block([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    if block.tasks:
        yield block


def _rows_of_table(sampler: Sampler, folder: ArcFolder) -> Callable[[NDArray[np.int64]], NDArray[np.int64] | None]:
    """What turns a data set's identities into rows of the model's table, by name; into None for a model without.

    Its result raises `ValueError` for a name that the model does not know.
    """
    table = sampler.model.identities
    if table is None:
        return lambda identities: None
    names = folder.names if table.names is None else read_names(table.names)
    if len(names) > len(table):
        raise ValueError(f"table of identities must have a row for each of {len(names):,} names, got {len(table):,}")
    if names == folder.names:
        return lambda identities: identities
    known = {name: row for row, name in enumerate(names)}

    def rows_of(identities: NDArray[np.int64]) -> NDArray[np.int64]:
        own = [folder.names[identity] for identity in identities.tolist()]
        if (strange := next((name for name in own if name not in known), None)) is not None:
            raise ValueError(
                f"{folder.path}: views must be ones that the checkpoint was trained on, got {strange[:60]!r}, which "
                "its identifiers.json does not name"
            )
        return np.array([known[name] for name in own], dtype=np.int64)

    return rows_of
