"""One evaluation: what a sampling run found on a set of puzzles, judged by the verifier. Nothing is sampled here.

Shapes: `P` puzzles, `N` width, `L` puzzle tokens, `A` answer tokens. Padding never counts: a puzzle of padding alone is
not a puzzle here. An undefined figure is NaN, and null in JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gram.checkpoint import write_atomically, write_json
from gram.config import ModelConfig, ResolvedConfig, SamplerConfig, config_to_json
from gram.evals import metrics, statistics
from gram.evals.cost import step_macs
from gram.formatting import count, number, percent, plain, span
from gram.sampler.result import SampleResult
from gram.sampler.run import SELECTOR
from gram.sampler.trace import FLOATS
from gram.sampler.width import first_look
from gram.tasks.protocol import PuzzleSet, Task, Tokens

RESULTS_FILE, PREDICTIONS_FILE = "results.json", "predictions.jsonl"
Value = TypeVar("Value")
OF_CEILING = "coverage_pooled_of_ceiling"
_ROWS = 16_384
"""Answers given to the verifier at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of one run; the fields' order is that of the JSON. Intervals are 95 %, puzzles of one cluster
    together."""

    task: str
    checkpoint: str
    puzzles: int
    width: int
    depth: int | None
    selector: str
    accuracy: float
    """Share of puzzles whose selected answer the verifier accepts."""
    accuracy_low: float
    accuracy_high: float
    single_accuracy: float
    """Mean over trajectories of the verifier's verdict (`single_accuracy_of`)."""
    single_accuracy_low: float
    single_accuracy_high: float
    pass_at_width: float
    """Share of puzzles with at least one right trajectory: the selector's ceiling."""
    pass_at_width_low: float
    pass_at_width_high: float
    coverage: float
    """Mean over puzzles of distinct valid solutions found / all; undefined, as its relatives, for a task of one
    solution per puzzle, where it would be `pass_at_width`."""
    coverage_low: float
    coverage_high: float
    coverage_pooled: float
    """Found / all, both summed over puzzles."""
    coverage_pooled_low: float
    coverage_pooled_high: float
    coverage_multi: float
    """`coverage` of the puzzles with several solutions."""
    coverage_ceiling: float
    """Expected `coverage` of a sampler that draws `width` valid solutions uniformly."""
    coverage_pooled_ceiling: float
    coverage_multi_ceiling: float
    coverage_pooled_of_ceiling: float
    """`coverage_pooled / coverage_pooled_ceiling`: 1 of a sampler that draws valid solutions uniformly."""
    coverage_pooled_of_ceiling_low: float
    coverage_pooled_of_ceiling_high: float
    solutions_found: int | None
    """Distinct valid solutions found, summed over puzzles."""
    solutions_all: int | None
    conflicts: float
    """Violated constraints of the selected answer, mean over puzzles."""
    mean_steps: float
    """Supervision steps, mean over trajectories."""
    mean_width: float
    """Trajectories that count, mean over puzzles: `width` unless its policy stops earlier."""
    supervision_steps: int
    """Supervision steps of all trajectories that count."""
    steps_run: int
    """Supervision steps of all trajectories that were run, those cancelled as no longer needed included."""
    flops_of_answer: float | None
    """Counted floating-point operations of all trajectories that count, mean over puzzles; None where the model is not
    known."""
    unique_solutions: float
    """Distinct valid answers found, mean over puzzles."""
    lprm_auroc: float
    """Probability that the LPRM ranks a right trajectory above a wrong one of the same puzzle, over all such pairs."""
    halt_auroc: float
    """The same of the halt logit at the last step."""
    auroc_puzzles: int
    """Puzzles with right and wrong trajectories, which alone count in both."""
    by_rating: list[dict[str, float | int]] | None
    """Accuracy by quarter of difficulty (`low` and `high`: ratings, both included), where ratings are known."""
    elapsed_s: float
    trajectories_per_s: float
    trajectories_sha256: str
    config: SamplerConfig
    """The run's settings; in JSON each stands by its own name."""
    device: str
    dtype: str
    kernel: str
    versions: dict[str, str | None]


def judge(
    task: Task, puzzles: Tokens, candidates: Tokens, counted: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The verifier's verdict on each candidate `[P, N, A]` of the puzzles `[P, L]`: `[P, N]`.

    False where `counted` `[P, N]` is false (None: all count).
    """
    count, width, tokens = candidates.shape
    right = np.zeros(count * width, dtype=bool)
    answers = candidates.reshape(count * width, tokens)
    asked = np.arange(right.size) if counted is None else np.flatnonzero(counted)
    for start in range(0, asked.size, _ROWS):
        rows = asked[start : start + _ROWS]
        right[rows] = task.verify(puzzles[rows // width], answers[rows])
    return right.reshape(count, width)


def solution_counts(task: Task, candidates: Tokens, right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many candidates `[P, N, A]` gave each distinct valid solution of a puzzle: `[P, N]`, zeros behind.

    `right` `[P, N]` are the verdicts; `task.canonical` decides which solutions are equal. For `metrics.coverage_at_k`.
    """
    puzzle, trajectory = np.nonzero(right)
    valid = np.ascontiguousarray(candidates[puzzle, trajectory])
    canonical = task.canonical(valid) if len(valid) else valid
    found = Counter((index, row.tobytes()) for index, row in zip(puzzle.tolist(), canonical, strict=True))
    counts = np.zeros(right.shape, dtype=np.int64)
    slots = [0] * len(right)
    for (index, _), times in found.items():
        counts[index, slots[index]] = times
        slots[index] += 1
    return counts


def count_solutions(task: Task, puzzles: Tokens) -> list[int]:
    """Exact number of solutions of each puzzle `[P, L]`; equal puzzles are counted once."""
    return _once_each(lambda puzzle: int(task.count_solutions(puzzle)), puzzles)


def clusters_of(known: PuzzleSet) -> NDArray[np.int64]:
    """Cluster of each puzzle `[P]`; equal puzzles share one (they share their noise and so their trajectories)."""
    if known.groups is not None:
        return known.groups
    return np.unique(known.puzzles, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def single_accuracy_of(
    right: NDArray[np.bool_], widths: NDArray[np.int64], config: ResolvedConfig
) -> NDArray[np.float64]:
    """Share of right trajectories of each puzzle, `[P]`, from verdicts `right [P, N]`; under an adaptive width of those
    alone that run to their end whatever is found, since a policy that stops at success would count it for more. NaN
    where none does."""
    look = first_look(config.width_policy, config.width_threshold, right.shape[1], config.width_stage)
    if not look:
        return np.full(len(right), np.nan)
    sure = np.minimum(widths, look)
    share: NDArray[np.float64] = (right & (np.arange(right.shape[1]) < sure[:, None])).sum(axis=1) / sure
    return share


def evaluate_result(
    task: Task,
    puzzle_set: PuzzleSet,
    result: SampleResult,
    *,
    checkpoint: str,
    versions: Mapping[str, str | None],
    model: ModelConfig | None = None,
) -> Evaluation:
    """Figures of `result`, a sampling run on exactly the puzzles of `puzzle_set`; `model` is what sampled.

    Raises `ValueError` where the result is of other puzzles, or a task counts fewer solutions than were found.
    """
    real = _real(puzzle_set, result)
    known, puzzles, candidates = puzzle_set.take(real), result.puzzles[real], result.candidates[real]
    selected, width = result.selected[real], result.candidates.shape[1]
    widths, counted = result.widths[real], result.is_counted[real]
    right = judge(task, puzzles, candidates, counted)
    chosen = np.arange(len(real)), selected
    accepted = right[chosen].astype(np.float64)
    single = single_accuracy_of(right, widths, result.config)
    clusters = clusters_of(known)
    passed = metrics.pass_at_k(widths, right.sum(axis=1), widths)
    lprm, halt = (
        metrics.within_puzzle_auroc(np.where(counted, score[real], np.nan), right)
        for score in (result.lprm, result.halt)
    )
    counts = solution_counts(task, candidates, right)
    return Evaluation(
        task=task.name,
        checkpoint=checkpoint,
        puzzles=len(real),
        width=width,
        depth=result.config.depth,
        selector=result.config.selector or SELECTOR,
        **_mean("accuracy", accepted, clusters),
        **_mean("single_accuracy", single, clusters),
        **_mean("pass_at_width", passed, clusters),
        **_coverage(task, puzzles, counts, widths, clusters),
        conflicts=metrics.mean_defined(task.conflicts(puzzles, candidates[chosen]) if len(real) else []),
        mean_steps=metrics.mean_defined(result.steps[real][counted]),
        mean_width=metrics.mean_defined(widths),
        supervision_steps=int(result.steps[real].sum()),
        steps_run=result.steps_run,
        flops_of_answer=_flops(model, result.config, result.steps[real]),
        unique_solutions=metrics.mean_defined((counts > 0).sum(axis=1)),
        lprm_auroc=lprm.pooled,
        halt_auroc=halt.pooled,
        auroc_puzzles=lprm.puzzles,
        by_rating=_by_rating(known.ratings, accepted),
        elapsed_s=result.elapsed_s,
        trajectories_per_s=float(widths.sum()) / result.elapsed_s if result.elapsed_s > 0 else float("nan"),
        trajectories_sha256=result.trajectories_sha256,
        config=result.config,
        device=result.device,
        dtype=result.dtype,
        kernel=result.kernel,
        versions=dict(versions),
    )


def predictions(task: Task, puzzle_set: PuzzleSet, result: SampleResult) -> Iterator[dict[str, Any]]:
    """One JSON object per puzzle: the selected answer and every trajectory with its answer, steps, scores and verdict.

    `index` is the puzzle's place in `puzzle_set`. Raises `ValueError` where the result is of other puzzles.
    """
    real = _real(puzzle_set, result)
    right = judge(task, result.puzzles[real], result.candidates[real], result.is_counted[real])
    distinct = (solution_counts(task, result.candidates[real], right) > 0).sum(axis=1)
    for row, index in enumerate(real.tolist()):
        puzzle, selected = result.puzzles[index], int(result.selected[index])
        texts = _once_each(partial(task.format, puzzle), result.candidates[index])
        candidates = [
            {
                "trajectory": trajectory,
                "answer": text,
                "steps": int(result.steps[index, trajectory]),
                **{name: plain(float(getattr(result, name)[index, trajectory])) for name in FLOATS},
                "is_halted": bool(result.is_halted[index, trajectory]),
                "lineage": int(result.lineage[index, trajectory]),
                "votes": int(result.votes[index, trajectory]),
                "is_right": bool(right[row, trajectory]),
            }
            for trajectory, text in enumerate(texts[: result.widths[index]])
        ]
        yield {
            "index": index,
            "puzzle": task.format(puzzle),
            "answer": texts[selected],
            "is_right": bool(right[row, selected]),
            "votes": int(result.votes[index, selected]),
            "distinct_valid": int(distinct[row]),
            "candidates": candidates,
        }


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as strict JSON values, in the fields' order; what is not a finite number is None."""
    own = {field.name: plain(getattr(evaluation, field.name)) for field in fields(evaluation) if field.name != "config"}
    return {**own, **{name: value for name, value in config_to_json(evaluation.config).items() if name not in own}}


def write_results(folder: Path, summary: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
    """`results.json` and `predictions.jsonl`, each moved into place once complete."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_atomically(folder / PREDICTIONS_FILE, text.encode())
    write_json(folder / RESULTS_FILE, summary)


def figure_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures of `to_json` for people: label, value, 95 % interval, and what a uniform sampler would reach."""
    width, made = summary["width"], []
    for label, key in (
        (f"accuracy of the answer ({summary['selector']})", "accuracy"),
        ("accuracy of one trajectory", "single_accuracy"),
        (f"pass@{width}", "pass_at_width"),
        (f"coverage@{width}, mean", "coverage"),
        (f"coverage@{width}, pooled", "coverage_pooled"),
        (f"coverage@{width}, several solutions", "coverage_multi"),
        (f"coverage@{width}, pooled, of a uniform sampler's", "coverage_pooled_of_ceiling"),
    ):
        if summary[key] is None:
            continue
        low, high, ceiling = (summary.get(f"{key}_{part}") for part in ("low", "high", "ceiling"))
        made.append((label, percent(summary[key]), span(low, high), percent(ceiling) if ceiling else ""))
    for label, key in (
        ("conflicts of the answer, mean", "conflicts"),
        ("steps of a trajectory, mean", "mean_steps"),
        ("trajectories of a puzzle, mean", "mean_width"),
        ("AUROC of the LPRM", "lprm_auroc"),
        ("AUROC of the halt head", "halt_auroc"),
    ):
        made.append((label, number(summary[key]), "", ""))
    if summary.get("flops_of_answer") is not None:
        made.append(("arithmetic of an answer, mean", f"{count(summary['flops_of_answer'])}FLOP", "", ""))
    return made


def figure_table(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """`figure_rows` below their heads, without the columns that no figure fills."""
    made = figure_rows(summary)
    is_filled = [place < 2 or any(row[place] for row in made) for place in range(4)]
    return [tuple(compress(row, is_filled)) for row in (("", "value", "95 % interval", "uniform"), *made)]


def _real(puzzle_set: PuzzleSet, result: SampleResult) -> NDArray[np.int64]:
    """Indices of the puzzles that are not padding alone. Raises `ValueError` where the result is of other puzzles."""
    if not np.array_equal(puzzle_set.puzzles, result.puzzles):
        raise ValueError(f"result must be of the same {len(puzzle_set)} puzzles, got {len(result.puzzles)} others")
    return np.flatnonzero(result.puzzles.any(axis=1))


def _flops(model: ModelConfig | None, config: ResolvedConfig, steps: NDArray[np.integer]) -> float | None:
    """Operations of a puzzle's steps `[P, N]`, mean over puzzles: two for each multiply-accumulate of `step_macs`."""
    if model is None or not len(steps):
        return None
    ran = replace(model, transitions=config.transitions, low_level_updates=config.low_level_updates)
    return 2.0 * step_macs(ran)["total"] * float(steps.sum()) / len(steps)


def _mean(name: str, values: NDArray[np.float64], clusters: NDArray[np.int64]) -> dict[str, Any]:
    """The field of a mean over puzzles `[P]`, and those of its interval."""
    low, high = statistics.clustered_interval(values, clusters)
    return {name: metrics.mean_defined(values), f"{name}_low": low, f"{name}_high": high}


def _coverage(
    task: Task,
    puzzles: Tokens,
    counts: NDArray[np.int64],
    widths: NDArray[np.int64],
    clusters: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """The fields on distinct solutions; undefined for a task of one solution per puzzle, unless puzzles of a file show
    that they have several."""
    names = ("coverage", "coverage_pooled", "coverage_multi")
    ends = [f"{name}_{end}" for name in (*names[:2], OF_CEILING) for end in ("low", "high")]
    if not task.is_multi_solution and (counts > 0).sum(axis=1).max(initial=0) < 2:
        ceilings = [f"{name}_ceiling" for name in names]
        undefined = dict.fromkeys((*names, *ceilings, OF_CEILING, *ends), float("nan"))
        return {**undefined, "solutions_found": None, "solutions_all": None}
    exact = count_solutions(task, puzzles)
    every = np.array([float(count) for count in exact])
    found, ceiling = metrics.coverage_at_k(counts, widths, every, widths), metrics.uniform_ceiling(every, widths)
    figures: dict[str, Any] = {}
    for share, ending in ((found, ""), (ceiling, "_ceiling")):
        values = metrics.mean_defined(share), metrics.pooled(share, every), metrics.mean_defined(share[every > 1])
        figures |= {f"{name}{ending}": value for name, value in zip(names, values, strict=True)}
    intervals = [statistics.clustered_interval(found, clusters, weights=weights) for weights in (None, every)]
    # Each puzzle's share of its ceiling weighs as much as the ceiling. Scaled to [0, 1] by the most that there can be.
    most = np.max(np.minimum(widths / every, 1) / ceiling, initial=1.0, where=every > 0)
    shares = statistics.clustered_interval(found / ceiling / most, clusters, weights=every * ceiling)
    figures[OF_CEILING] = metrics.pooled(found / ceiling, every * ceiling)
    figures |= zip(ends, (*intervals[0], *intervals[1], *(float(end * most) for end in shares)), strict=True)
    return {**figures, "solutions_found": int((counts > 0).sum()), "solutions_all": sum(exact)}


def _by_rating(ratings: NDArray[np.float64] | None, accepted: NDArray[np.float64]) -> list[dict[str, Any]] | None:
    """Accuracy by quarter of the known ratings; quarters that ties make equal are one."""
    if ratings is None or not np.isfinite(ratings).any():
        return None
    is_known = np.isfinite(ratings)
    rating, verdict = ratings[is_known], accepted[is_known]
    quarter = np.searchsorted(np.unique(np.quantile(rating, (0.25, 0.5, 0.75))), rating, side="left")
    return [
        {
            "low": float(rating[quarter == part].min()),
            "high": float(rating[quarter == part].max()),
            "puzzles": int((quarter == part).sum()),
            "accuracy": float(verdict[quarter == part].mean()),
        }
        for part in np.unique(quarter)
    ]


def _once_each(function: Callable[[Tokens], Value], rows: Tokens) -> list[Value]:
    """What a function gives for each row; equal rows are asked once."""
    known: dict[bytes, Value] = {}
    for row in rows:
        if (key := row.tobytes()) not in known:
            known[key] = function(row)
    return [known[row.tobytes()] for row in rows]
