"""A whole run: its plan, its store where it has one, and the result put together from the shards.

Shapes: `P` puzzles, `N` width, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from gram.config import SamplerConfig, config_to_json
from gram.kernels import dispatch
from gram.model import Model
from gram.sampler.engine import Engine, StepView
from gram.sampler.plan import Plan, Shard, make_plan
from gram.sampler.result import SampleResult, ShardResult, scores_of
from gram.sampler.selectors import count_votes, select
from gram.sampler.settings import resolve
from gram.sampler.store import Store
from gram.tasks.protocol import Task, Tokens


def sample(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: SamplerConfig,
    *,
    is_unconditional: bool = False,
    is_traced: bool = False,
    out: Path | None = None,
    about: dict[str, Any] | None = None,
    on_ended: Callable[[int], None] | None = None,
    on_step: Callable[[StepView], None] | None = None,
) -> SampleResult:
    """Samples up to `config.width` trajectories of each puzzle `[P, L]` and selects an answer.

    `is_unconditional` shows the model the empty condition in place of the puzzles. With `out`, finished shards are kept
    in that folder and a run that was killed goes on from there; `is_traced` also keeps every supervision step, and
    `about` is written beside. `on_ended` is told how many trajectories have just come to their end; `on_step` sees
    every step. Same seed, puzzles and launch size: the same trajectories, whatever the batch. Raises `ValueError` for
    puzzles of another length, settings that the model does not fit or an untrained empty condition, `StoreError` for a
    folder that holds another run.
    """
    config = resolve(config, model)
    if puzzles.ndim != 2 or puzzles.shape[1] != model.config.tokens:
        raise ValueError(f"puzzles must be [P, {model.config.tokens}] tokens, got {list(puzzles.shape)}")
    if is_traced and out is None:
        raise ValueError("out must name a folder for a traced run, got none")
    if is_unconditional:
        model.embed_empty(1)
    started = time.perf_counter()
    kernel = dispatch.choose(model.device).kernel
    plan = make_plan(
        model, task, puzzles, config, kernel=kernel, is_unconditional=is_unconditional, is_traced=is_traced
    )
    engine = Engine(
        model,
        task,
        puzzles,
        config,
        is_unconditional=is_unconditional,
        is_traced=is_traced,
        on_ended=on_ended,
        on_step=on_step,
    )
    facts = {
        "task": task.name,
        "puzzles": len(puzzles),
        "config": config_to_json(config),
        "is_traced": is_traced,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kernel": kernel,
        "shards": [list(astuple(shard)) for shard in plan.shards],
        **(about or {}),
    }
    size = len(puzzles), config.width, model.config.output_tokens
    if out is None:
        merged = _together(puzzles, size, engine.run(plan.shards))
        elapsed_s, steps_before = time.perf_counter() - started, 0
    else:
        with Store.open(out, plan.key, len(plan.shards), facts) as store:
            before = store.done()
            _run_into(store, engine, plan, started, on_ended)
            merged = _together(puzzles, size, _stored(store, plan))
            elapsed_s = store.elapsed_s
            steps_before = sum(int(store.read(index)["steps"].sum()) for index in before)
    votes = count_votes(task.canonical(merged.candidates), lineage=merged.lineage, widths=merged.widths)
    return SampleResult(
        **{name: value for name, value in merged.arrays().items() if not name.startswith("trace_")},
        selected=select(config.selector, scores_of(merged, votes)),
        votes=votes,
        config=config,
        elapsed_s=elapsed_s,
        steps_run=engine.steps_run + steps_before,
        kernel=kernel,
        device=facts["device"],
        dtype=facts["dtype"],
    )


def run_shard(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: SamplerConfig,
    shard: Shard,
    *,
    is_unconditional: bool = False,
    is_traced: bool = False,
    on_step: Callable[[StepView], None] | None = None,
) -> ShardResult:
    """One shard of a plan over `puzzles`, with resolved settings: what a worker runs. Same arguments, same arrays,
    whatever the number of slots. An exception that `on_step` raises ends it between two supervision steps."""
    engine = Engine(
        model, task, puzzles, config, is_unconditional=is_unconditional, is_traced=is_traced, on_step=on_step
    )
    ((_, result),) = engine.run([shard])
    return result


def _run_into(store: Store, engine: Engine, plan: Plan, started: float, on_ended: Callable[[int], None] | None) -> None:
    """Runs the shards that the store lacks and keeps each as soon as it is finished."""
    done = store.done()
    if on_ended is not None and done:
        on_ended(sum(shard.puzzles * shard.trajectories for shard in plan.shards if shard.index in done))
    told = started
    for shard, result in engine.run(shard for shard in plan.shards if shard.index not in done):
        now = time.perf_counter()
        store.append(shard.index, result.arrays(), now - told)
        told = now


def _stored(store: Store, plan: Plan) -> Iterator[tuple[Shard, ShardResult]]:
    """The shards of a complete store, without their traces."""
    for shard in plan.shards:
        arrays = store.read(shard.index)
        yield shard, ShardResult.from_arrays({name: arrays[name] for name in arrays if not name.startswith("trace_")})


def _together(puzzles: Tokens, size: tuple[int, int, int], shards: Iterable[tuple[Shard, ShardResult]]) -> ShardResult:
    """All shards as one, `[P, N]`."""
    count, width, answer_tokens = size
    whole = ShardResult(
        puzzles=puzzles,
        candidates=np.zeros((count, width, answer_tokens), np.uint8),
        steps=np.zeros((count, width), np.int64),
        halt=np.zeros((count, width), np.float32),
        lprm=np.zeros((count, width), np.float32),
        residual=np.zeros((count, width), np.float32),
        margin=np.zeros((count, width), np.float32),
        is_halted=np.zeros((count, width), bool),
        lineage=np.zeros((count, width), np.int64),
        widths=np.zeros(count, np.int64),
    )
    for shard, part in shards:
        rows = slice(shard.first_puzzle, shard.first_puzzle + shard.puzzles)
        columns = slice(shard.first_trajectory, shard.first_trajectory + shard.trajectories)
        for name in ("candidates", "steps", "halt", "lprm", "residual", "margin", "is_halted", "lineage"):
            getattr(whole, name)[rows, columns] = getattr(part, name)
        whole.widths[rows] += part.widths
    return whole
