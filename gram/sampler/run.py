"""A whole run: its plan, its store where it has one, and the result put together from the shards.

Shapes: `P` puzzles, `N` width, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch

from gram.config import SamplerConfig, config_to_json
from gram.model import Model
from gram.sampler.engine import Engine, StepView
from gram.sampler.memory import check_fits
from gram.sampler.plan import Plan, Shard, make_plan
from gram.sampler.record import Sealed
from gram.sampler.result import SampleResult, ShardResult, scores_of
from gram.sampler.selectors import count_votes, select
from gram.sampler.settings import SELECTOR, resolve, spec_of
from gram.sampler.store import Store
from gram.tasks.inputs import input_tokens
from gram.tasks.protocol import Task, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What others need to run a plan's shards elsewhere."""

    model: Model
    task: Task
    puzzles: Tokens
    """`[P, L]`."""
    config: SamplerConfig
    """Resolved."""
    is_unconditional: bool
    is_traced: bool
    kernel: str
    """Kernel path that the plan counts on."""
    device: torch.device
    """Where the plan counts on running."""


class Backend(Protocol):
    """Runs shards somewhere else than here."""

    @property
    def device(self) -> torch.device | None:
        """Where its workers compute; None: as the model here."""

    def start(self, job: Job, shards: int) -> None:
        """Waits until there is somebody to run `shards` shards. Raises `ValueError`."""

    def run(self, shards: Iterable[Shard]) -> Generator[tuple[Shard, Sealed], None, None]:
        """Runs each of `shards` and yields its result; a shard may come twice. Raises `ValueError` at the end where
        shards are left that cannot be run. Closing it stops everything."""


def sample(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: SamplerConfig,
    *,
    is_unconditional: bool = False,
    is_traced: bool = False,
    out: Path | str | None = None,
    about: dict[str, Any] | None = None,
    on_ended: Callable[[int], None] | None = None,
    on_step: Callable[[StepView], None] | None = None,
    on_advanced: Callable[[Engine], None] | None = None,
    backend: Backend | None = None,
) -> SampleResult:
    """Samples up to `config.width` trajectories of each puzzle `[P, L]` and selects an answer.

    `is_unconditional` shows the model the empty condition in place of the puzzles. With `out`, finished shards are kept
    in that folder and a run that was killed goes on from there; `is_traced` also keeps every supervision step, and
    `about` is written beside. `on_ended` is told how many trajectories have just come to their end; `on_step` sees
    every step, `on_advanced` the engine after it. With `backend` the shards run there and both see nothing. Same seed,
    puzzles and launch size: the same trajectories, whatever the batch, where launches are padded. Raises `PuzzleError`
    for what is no puzzle of the task, `ValueError` for settings that the model does not fit, an untrained empty
    condition or a run that cannot fit in memory, `StoreError` for a folder that holds another run.
    """
    config = resolve(config, model)
    out = None if out is None else Path(out)
    if not is_unconditional:
        puzzles = input_tokens(task, puzzles)
    if is_traced and out is None:
        raise ValueError("out must name a folder for a traced run, got none")
    if not config.is_padded and (out is not None or backend is not None):
        where = f"the folder {out}" if out is not None else "a cluster"
        raise ValueError(f"is_padded must be on for a run in {where}, got off: its rounding may follow its company")
    if is_unconditional:
        model.embed_empty(1)
    check_fits(
        config,
        spec_of(config, model),
        len(puzzles),
        device=model.device,
        dtype=model.dtype,
        is_traced=is_traced,
        has_slots=backend is None,
    )
    started = time.perf_counter()
    device = (backend and backend.device) or model.device
    kernel = config.kernel
    plan = make_plan(
        model,
        task,
        puzzles,
        config,
        kernel=kernel,
        device=device,
        is_unconditional=is_unconditional,
        is_traced=is_traced,
    )
    facts = {
        "task": task.name,
        "puzzles": len(puzzles),
        "config": config_to_json(config),
        "is_traced": is_traced,
        "device": str(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kernel": kernel,
        "shards": [list(astuple(shard)) for shard in plan.shards],
        **(about or {}),
    }
    size = len(puzzles), config.width, model.config.output_tokens
    if backend is not None:
        job = Job(
            model=model,
            task=task,
            puzzles=puzzles,
            config=config,
            is_unconditional=is_unconditional,
            is_traced=is_traced,
            kernel=kernel,
            device=device,
        )
        with ExitStack() as stack:
            folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="gram-")))
            store = stack.enter_context(Store.open(folder, plan.key, len(plan.shards), facts))
            run_elsewhere(store, backend, job, plan, on_ended)
            merged = _together(puzzles, size, _stored(store, plan))
            elapsed_s, steps_run = store.elapsed_s, int(merged.steps.sum())
    else:
        engine = Engine(
            model,
            task,
            puzzles,
            config,
            is_unconditional=is_unconditional,
            is_traced=is_traced,
            on_ended=on_ended,
            on_step=on_step,
            on_advanced=on_advanced,
        )
        if out is None:
            merged = _together(puzzles, size, engine.run(plan.shards))
            elapsed_s, steps_run = time.perf_counter() - started, engine.steps_run
        else:
            with Store.open(out, plan.key, len(plan.shards), facts) as store:
                before = store.done()
                _run_into(store, engine, plan, started, on_ended)
                merged = _together(puzzles, size, _stored(store, plan))
                elapsed_s = store.elapsed_s
                steps_run = engine.steps_run + sum(int(store.read(index)["steps"].sum()) for index in before)
    votes = count_votes(task.canonical(merged.candidates), lineage=merged.lineage, widths=merged.widths)
    return SampleResult(
        **{name: value for name, value in merged.arrays().items() if not name.startswith("trace_")},
        selected=select(config.selector or SELECTOR, scores_of(merged, votes)),
        votes=votes,
        config=config,
        elapsed_s=elapsed_s,
        steps_run=steps_run,
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
    on_advanced: Callable[[Engine], None] | None = None,
) -> ShardResult:
    """One shard of a plan over `puzzles`, with resolved settings: what a worker runs. Same arguments, same arrays,
    whatever the number of slots. An exception that `on_step` or `on_advanced` raises ends it between two supervision
    steps; the latter costs no decoding."""
    engine = Engine(
        model,
        task,
        puzzles,
        config,
        is_unconditional=is_unconditional,
        is_traced=is_traced,
        on_step=on_step,
        on_advanced=on_advanced,
    )
    ((_, result),) = engine.run([shard])
    return result


def _run_into(store: Store, engine: Engine, plan: Plan, started: float, on_ended: Callable[[int], None] | None) -> None:
    """Runs the shards that the store lacks and keeps each as soon as it is finished."""
    done = _tell_done(store, plan, on_ended)
    told = started
    for shard, result in engine.run(shard for shard in plan.shards if shard.index not in done):
        now = time.perf_counter()
        store.append(shard.index, result.arrays(), now - told)
        told = now


def run_elsewhere(
    store: Store, backend: Backend, job: Job, plan: Plan, on_ended: Callable[[int], None] | None = None
) -> None:
    """Has a backend run the shards that the store lacks and keeps each as it comes; the time until it is ready is not
    counted. `on_ended` is told how many trajectories have just come to their end."""
    done = _tell_done(store, plan, on_ended)
    missing = [shard for shard in plan.shards if shard.index not in done]
    if not missing:
        return
    backend.start(job, len(missing))
    told = time.perf_counter()
    with closing(backend.run(missing)) as results:
        for shard, sealed in results:
            now = time.perf_counter()
            if not store.append_sealed(shard.index, sealed, now - told):
                continue
            told = now
            if on_ended is not None:
                on_ended(shard.puzzles * shard.trajectories)


def _tell_done(store: Store, plan: Plan, on_ended: Callable[[int], None] | None) -> frozenset[int]:
    """The shards that the store has already; their trajectories are told at once."""
    done = frozenset(store.done())
    if on_ended is not None and done:
        on_ended(sum(shard.puzzles * shard.trajectories for shard in plan.shards if shard.index in done))
    return done


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
