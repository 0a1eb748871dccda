"""Evaluations from Python: `gram.evaluate`, `gram.frontier` and `gram.ablate`. The command line is their client.

Each returns a report with what the command's `--json` prints: `to_json()`, a table or a sentence for `print`, a table
or a picture in a notebook. With `out`, finished work is kept there, and the same call continues after a kill.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Unpack

from gram import api
from gram.api import Puzzles, Sampler, SamplerOptions
from gram.config import SamplerConfig
from gram.evals import ablation
from gram.evals.ablation_run import AblationRun
from gram.evals.evaluate import (
    Evaluation,
    evaluate_result,
    figure_rows,
    figure_table,
    predictions,
    to_json,
    write_results,
)
from gram.evals.frontier import files
from gram.evals.frontier.outcomes import Arrays
from gram.evals.frontier.study import FrontierStudy, make_grid
from gram.evals.pages import figures, pictures
from gram.evals.progress import ShowProgress, silent
from gram.evals.puzzle_choice import PuzzleChoice
from gram.formatting import aligned, difference, percent
from gram.sampler.engine import Progress
from gram.sampler.result import SampleResult
from gram.sampler.run import Backend
from gram.tasks.protocol import PuzzleSet, Task
from gram.versions import versions

FRONTIERS = Path("runs") / "frontier"
"""Where frontiers go that are given no folder."""
CELL_HEADS = ("", "accuracy", "minus baseline, points")
Choosable = Path | Puzzles | None


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class EvaluationReport:
    """What `gram eval` prints, of one sampling run."""

    evaluation: Evaluation
    """Every figure by its name."""
    puzzles: PuzzleSet
    result: SampleResult
    """The trajectories."""
    task: Task
    facts: dict[str, Any] = field(default_factory=dict)
    """Where the puzzles came from, and whether the checkpoint has seen them."""

    @property
    def metrics(self) -> dict[str, float]:
        """The defined figures of merit: shares within 0 and 1, means and AUROC."""
        return {name: value for name, value in to_json(self.evaluation).items() if isinstance(value, float)}

    def to_json(self) -> dict[str, Any]:
        """What `results.json` holds; undefined figures are None."""
        return to_json(self.evaluation) | self.facts

    def predictions(self) -> Iterator[dict[str, Any]]:
        """What `predictions.jsonl` holds: one object for each puzzle."""
        return predictions(self.task, self.puzzles, self.result)

    def save(self, folder: Path | str, **more: Any) -> None:
        """Writes `results.json`, with `more` in it, and `predictions.jsonl`, for `gram compare`."""
        write_results(Path(folder), self.to_json() | more, self.predictions())

    def __repr__(self) -> str:
        rows = ", ".join(f"{label} {value}" for label, value, *_ in figure_rows(self.to_json()))
        return f"<{self._head()}: {rows}>"

    def __str__(self) -> str:
        return f"{self._head()}\n{aligned(figure_table(self.to_json()))}"

    def _repr_html_(self) -> str:
        heads, *rows = figure_table(self.to_json())
        return _table(self._head(), heads, rows)

    def _head(self) -> str:
        found = self.evaluation
        return f"{found.task}, checkpoint {found.checkpoint}, {found.puzzles:,} puzzles x {found.width} trajectories"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class GridReport:
    """The JSON of many cells."""

    found: dict[str, Any]
    folder: Path
    """Holds the JSON, its page and what they are made of."""

    @property
    def cells(self) -> list[dict[str, Any]]:
        """One row for each cell of the grid; of an ablation, the baseline first."""
        return list(self.found["cells"])

    def to_json(self) -> dict[str, Any]:
        """What the file in the folder holds."""
        return self.found


class FrontierReport(GridReport):
    """What `frontier.json` holds, of one checkpoint."""

    __slots__ = ()

    @property
    def sentence(self) -> str:
        """The verdict: whether width or depth is the better use of a budget, by how much, and how sure that is."""
        return str(self.found["verdict"]["sentence"])

    def __repr__(self) -> str:
        return f"<{self.sentence} Page: {self.folder / files.REPORT_FILE}>"

    def _repr_html_(self) -> str:
        verdict = self.found["verdict"]
        chart = figures.family_curves(self.found, verdict["measure"], verdict["halting"])
        picture = "" if chart is None else _image(pictures.svg([chart]))
        return f"<p>{escape(self.sentence)}</p>{picture}"


class AblationReport(GridReport):
    """What `ablation.json` holds."""

    __slots__ = ()

    def rows(self) -> list[tuple[str, str, str]]:
        """Label, accuracy and difference from the baseline in points of each cell."""
        return [
            (
                cell["label"],
                percent(cell["accuracy"]),
                difference(found) if (found := cell.get("less_baseline")) else "baseline",
            )
            for cell in self.cells
        ]

    def __repr__(self) -> str:
        return f"<{self.found['name']}: " + "; ".join(", ".join(row) for row in self.rows()) + ">"

    def __str__(self) -> str:
        return f"{self.found['name']}\n{aligned([CELL_HEADS, *self.rows()])}"

    def _repr_html_(self) -> str:
        return _table(self.found["name"], CELL_HEADS, self.rows())


def evaluate(
    sampler: Sampler | str | Path,
    puzzles: Choosable = None,
    config: SamplerConfig | None = None,
    *,
    split: str = "test",
    rows: str | None = None,
    limit: int | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend | None = None,
    progress: ShowProgress = silent,
    **overrides: Unpack[SamplerOptions],
) -> EvaluationReport:
    """Accuracy, coverage and speed of a checkpoint: `gram.evaluate("nqueens8", width=20, limit=100).metrics`.

    `puzzles`: a file (`Path`) or puzzles; left out, the task's `split`; `rows` and `limit` take a part of either
    (`PuzzleChoice`). Settings: `config`, or fields of `SamplerConfig` by keyword. `out` keeps trajectories and results.
    Raises `CheckpointError`, `PuzzleError`, `StoreError` and `ValueError` for bad input.
    """
    opened = _opened(sampler, device, dtype)
    choice = PuzzleChoice(puzzles=puzzles, split=split, rows=rows, limit=limit)
    chosen = choice.of(opened.task)
    choice.warn(opened)
    found = evaluate_chosen(
        opened,
        choice,
        chosen,
        opened.settings(config, puzzles=len(chosen), **overrides),
        out=out,
        backend=backend,
        progress=progress,
    )
    if out is not None:
        found.save(out)
    return found


def evaluate_chosen(
    sampler: Sampler,
    choice: PuzzleChoice,
    chosen: PuzzleSet,
    settings: SamplerConfig,
    *,
    out: Path | str | None = None,
    backend: Backend | None = None,
    progress: ShowProgress = silent,
) -> EvaluationReport:
    """`evaluate` of puzzles that are chosen already; it saves trajectories, and no results."""
    with progress(len(chosen) * settings.width, "trajectories") as advance:
        result = sampler.sample(chosen, settings, out=out, observer=Progress(advance), backend=backend)
    return EvaluationReport(
        evaluation=evaluate_result(
            sampler.task,
            chosen,
            result,
            checkpoint=sampler.name,
            versions=versions(),
            model=sampler.model.config,
        ),
        puzzles=chosen,
        result=result,
        task=sampler.task,
        facts=choice.facts(sampler.card),
    )


def frontier(
    sampler: Sampler | str | Path,
    puzzles: Choosable = None,
    config: SamplerConfig | None = None,
    *,
    split: str = "test",
    rows: str | None = None,
    limit: int | None = None,
    widths: Sequence[int] = (1, 2, 4, 8, 16, 32),
    depths: Sequence[int] | None = None,
    selectors: Sequence[str] | None = None,
    haltings: Sequence[str] = ("head", "fixed"),
    budgets: Sequence[float] | None = None,
    modes: Sequence[str] = ("interactive", "throughput"),
    rounds: int = 20,
    seeds: int = 3,
    out: Path | str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend | None = None,
    progress: ShowProgress = silent,
    **overrides: Unpack[SamplerOptions],
) -> FrontierReport:
    """Whether width or depth is the better use of a time budget: traces once, times every cell, writes a report.

    Arguments are those of `gram frontier`; puzzles are chosen as in `evaluate`. `budgets`: latencies in ms to match;
    left out, doublings of one trajectory's. `out` left out: `runs/frontier/CHECKPOINT`. The machine should be idle
    while it times. Raises as `evaluate` does.
    """
    opened = _opened(sampler, device, dtype)
    choice = PuzzleChoice(puzzles=puzzles, split=split, rows=rows, limit=limit)
    settings = replace(config or SamplerConfig(), **overrides)
    study = FrontierStudy(
        opened,
        choice.of(opened.task),
        make_grid(opened, settings, widths=widths, depths=depths, selectors=selectors, haltings=haltings),
        folder=Path(out) if out is not None else FRONTIERS / Path(opened.name).name,
        config=settings,
        modes=modes,
        seeds=seeds,
        rounds=rounds,
    )
    choice.warn(opened)
    study.trace(backend=backend, progress=progress)
    made = study.analyse(study.time(progress=progress), choice.facts(opened.card), list(budgets) if budgets else None)
    return save_frontier(study.folder, made, study.outcomes)


def save_frontier(folder: Path, made: dict[str, Any], outcomes: Arrays | None) -> FrontierReport:
    """Writes a frontier with its page and pictures."""
    files.write(folder, made, outcomes)
    return FrontierReport(found=made, folder=folder)


def ablate(
    study: str | Path,
    out: Path | str,
    *,
    puzzles: Choosable = None,
    rows: str | None = None,
    limit: int | None = None,
    jobs: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend | None = None,
    progress: ShowProgress = silent,
) -> AblationReport:
    """Runs a study's cells, compares each with the first, and writes a page: `gram.ablate("temperature", "runs/t")`.

    `study`: the name of a shipped study, or a TOML file (`gram.evals.ablation`). `jobs`: cells side by side, each in a
    process of its own. Raises as `evaluate` does.
    """
    options = {"puzzles": puzzles, "rows": rows, "limit": limit, "device": device, "dtype": dtype}
    run = AblationRun.of(study, Path(out), **options)
    made = run.summary(run.run(jobs=jobs, backend=backend, progress=progress))
    return save_ablation(run.out, made)


def save_ablation(folder: Path, made: dict[str, Any]) -> AblationReport:
    """Writes an ablation with its page."""
    ablation.write(folder, made)
    return AblationReport(found=made, folder=folder)


def _opened(sampler: Sampler | str | Path, device: str, dtype: str) -> Sampler:
    return sampler if isinstance(sampler, Sampler) else api.load(sampler, device=device, dtype=dtype)


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def _image(svg: str) -> str:
    """A picture whose style does not reach the page around it."""
    return f'<img src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"/>'
