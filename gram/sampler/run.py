"""A whole run, here or elsewhere: settings resolved, plan of shards, store where it has one, result of all shards.

A plan is a fixed list of shards, the one unit of work of local runs, Ray, resume and traces. Which shards a run has
follows from its settings and the number of puzzles alone, never from slots, workers or what has been done before. The
plan's key hashes everything that decides its results, so that a stored result belongs to exactly one plan.

Shapes: `P` puzzles of the run, `N` width, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from gram import latent_kinds
from gram.config import ModelConfig, ResolvedConfig, SamplerConfig, Selector, WidthPolicy, config_to_json, identity_json
from gram.kernels import dispatch
from gram.kernels.fused.tuning import provenance
from gram.kernels.spec import Spec
from gram.model import Model
from gram.sampler.demonstration_slots import DemonstrationSlots
from gram.sampler.engine import Engine, Observer, SlotStates, spec_of
from gram.sampler.halting import RULES
from gram.sampler.lattice_slots import LatticeSlots
from gram.sampler.record import Serialized
from gram.sampler.result import SampleResult
from gram.sampler.scheduler import Shard, ShardResult
from gram.sampler.selectors import RECORDED, answer_labels, count_votes, select
from gram.sampler.sparsity import gaussian_null
from gram.sampler.store import Store
from gram.sampler.views import check_views
from gram.sampler.width import THRESHOLDS
from gram.tasks.protocol import Task, Tokens, input_tokens
from gram.versions import device_software

SELECTOR: Selector = "vote"
"""Of a checkpoint that names none."""
GAUSSIAN_SIGMA = 0.3
"""PTRM's scale on Sudoku (2605.19943)."""
TRAJECTORIES_PER_SHARD = 1024
"""About how many trajectories a shard has: seconds to minutes of work."""
TRAJECTORY_BLOCK = 4
"""Trajectories of one puzzle in a shard where they do not depend on each other: a run then serves all puzzles' first
trajectories first, and a killed one keeps whole widths."""
NO_IDENTITY = ("slots", "selector", "is_padded")
"""Settings that change no trajectory: where they run, and which of them is picked afterwards; and padding, which every
run that is kept has."""
LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says a container's memory limit, version 2 and 1."""
TRAJECTORY_BYTES = 8 + 8 + 8 + 4 * 4 + 1
"""Steps, lineage, votes, four scores and whether it halted, beside the answer and its canonical form."""
STATES = 4
"""Tensors of the size of a state that every slot has (`engine.py`)."""


def resolve(config: SamplerConfig, model: Model, puzzles: int = 0) -> ResolvedConfig:
    """`config` with what it leaves open filled in.

    `puzzles`, their number, lets kernel `auto` compile a long run on a CPU; without it the run counts as short. Raises
    `ValueError` where the model cannot do what it asks.
    """
    own, spec = model.config, model.spec
    injector = config.injector or own.injector
    if own.latent == "lattice":
        check_lattice(config)
    elif config.is_warm_started:
        raise ValueError("is_warm_started must be off for continuous states, which are always carried, got on")
    elif injector == "commitment":
        raise ValueError("injector must be none, prior, gaussian or path for continuous states, got commitment")
    if injector == "prior" and own.guidance == "none":
        raise ValueError("injector must be none, gaussian or path for a model without a prior, got prior")
    sigma = config.sigma
    if sigma is None and injector == "gaussian":
        sigma = GAUSSIAN_SIGMA
    if sigma is None and injector == "path":
        sigma = own.path_noise
        if not (sigma or own.initial_std):
            raise ValueError("sigma must be given for injector path with a model trained without, got none")
    policy, stage = resolved_width_policy(config, own)
    # What first-halt stops at another's halt is no answer to choose.
    selector = config.selector or ("first-halt" if policy == "first-halt" else own.selector or SELECTOR)
    if selector == "lprm" and selector not in supported_selectors(model):
        raise ValueError(f"selector must be of a head that was trained, got {selector} and an LPRM of zeros")
    threshold = config.halt_threshold
    if threshold is None:
        threshold = own.halt_threshold if config.halting == "head" else RULES[config.halting].threshold
    if own.identity_dim and config.views == "random":
        raise ValueError("views must be off where an identity names the view, got random")
    depth = config.depth if config.depth is not None else own.depth
    least = THRESHOLDS.get(policy)
    measures_sparsity = config.measures_sparsity or selector == "sparsity" or policy == "sparse"
    if measures_sparsity:
        if own.latent == "lattice":
            raise ValueError("sparsity must be measured of continuous states, got a lattice")
        least = gaussian_null(spec.length * spec.dim).hoyer if policy == "sparse" else least
    transitions = config.transitions if config.transitions is not None else spec.transitions
    updates = config.low_level_updates if config.low_level_updates is not None else spec.low_level_updates
    asked = replace(spec, transitions=transitions, low_level_updates=updates)
    flops = puzzles * config.width * depth * dispatch.step_flops(model.weights(), asked)
    kernel = dispatch.choose(model.device, spec, model.dtype, config.kernel, flops).kernel
    launch = config.launch if config.launch is not None else dispatch.launch_size(spec, model.device, kernel)
    slots = config.slots
    if slots is None:
        side_by_side = (stage or config.width) if policy == "first-halt" else 1
        slots = max(dispatch.slot_count(model.device, launch), side_by_side)
    filled = {
        "depth": depth,
        "selector": selector,
        "views": config.views or own.views,
        "width_policy": policy,
        "width_stage": stage,
        "injector": injector,
        "sigma": sigma,
        "halt_threshold": threshold,
        "width_threshold": least if config.width_threshold is None else config.width_threshold,
        "measures_sparsity": measures_sparsity,
        "transitions": transitions,
        "low_level_updates": updates,
        "is_warm_started": own.is_warm_started if config.is_warm_started is None else config.is_warm_started,
        "launch": launch,
        "kernel": kernel,
        "slots": slots,
    }
    return ResolvedConfig(**{**asdict(config), **filled})


def resolved_width_policy(config: SamplerConfig, own: ModelConfig) -> tuple[WidthPolicy, int | None]:
    """The width policy of a run and its stage: the user's, or else the checkpoint's own. Raises `ValueError` where a
    stage is named of another policy than `first-halt`."""
    policy, stage = config.width_policy, config.width_stage
    if policy is None:
        policy = own.width_policy
        if config.resampler != "none" or (policy == "first-halt" and config.halting == "fixed"):
            policy = "fixed"
        if policy == "first-halt" and stage is None and own.width_stage is not None:
            stage = min(own.width_stage, config.width)
    if stage is not None:
        latent_kinds.check_stage(stage, policy, config.width)
    return policy, stage


def slots_of(model: Model) -> type[SlotStates]:
    """What holds the latent states of a model's trajectories."""
    if model.config.demonstrations:
        return DemonstrationSlots
    return LatticeSlots if model.config.latent == "lattice" else SlotStates


def check_lattice(config: SamplerConfig) -> None:
    """Raises `ValueError` where a lattice is asked for what only continuous states have."""
    for name, values in (
        ("injector", (None, "commitment")),
        ("resampler", ("none",)),
        ("low_level_updates", (None, 0)),
        ("sigma", (None,)),
    ):
        if getattr(config, name) not in values:
            expected = values[-1] if values[-1] is not None else "left out"
            raise ValueError(f"{name} must be {expected} with a lattice, got {getattr(config, name)}")


def supported_selectors(model: Model) -> tuple[Selector, ...]:
    """Selectors of what every run records that the model has a trained head for. An imported model keeps zeros where
    the LPRM would be: all its trajectories would tie."""
    has_lprm = bool(model.lprm.weight.any())
    return tuple(each for each in get_args(Selector) if each in RECORDED and (each != "lprm" or has_lprm))


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's shards and its key."""

    key: str
    """Hex digest of settings, weights, task, puzzles, kernel path, device and type; on a GPU of the versions of PyTorch
    and Triton and of the file of `GRAM_TUNING` too."""
    shards: tuple[Shard, ...]


def check_identities(model: Model, identities: NDArray[np.int64] | None, puzzles: int) -> None:
    """Raises `ValueError` where a model with task embeddings is not told every puzzle's row, or another one is."""
    if identities is None and model.config.identity_dim:
        raise ValueError(
            "puzzles must come with their identities for a model of task embeddings (gram eval arc --data DIR), got "
            "puzzles alone"
        )
    if identities is not None and (model.identities is None or len(identities) != puzzles):
        what = "a model without a table" if model.identities is None else f"{len(identities):,} for {puzzles:,} puzzles"
        raise ValueError(f"identities must be one for each puzzle of a model with a table of them, got {what}")


def shards_of(puzzles: int, config: SamplerConfig) -> tuple[Shard, ...]:
    """The shards of a run over `puzzles`, in the order in which they are to run.

    Adaptive width and resampling look at all trajectories of a puzzle, so these stay in one shard.
    """
    is_independent = config.width_policy in (None, "fixed") and config.resampler == "none"
    block = min(config.width, TRAJECTORY_BLOCK) if is_independent else config.width
    together = max(1, TRAJECTORIES_PER_SHARD // block)
    shards: list[Shard] = []
    for first_trajectory in range(0, config.width, block):
        for first in range(0, puzzles, together):
            shards.append(
                Shard(
                    index=len(shards),
                    first_puzzle=first,
                    puzzles=min(together, puzzles - first),
                    first_trajectory=first_trajectory,
                    trajectories=min(block, config.width - first_trajectory),
                )
            )
    return tuple(shards)


def shape_of(model: Model) -> dict[str, Any]:
    """What of a model's configuration decides its trajectories, as JSON: all but which of them is picked, the default
    of a setting, and how many rows its table has."""
    return {
        name: value
        for name, value in config_to_json(model.config).items()
        if name not in ("selector", "views", "width_policy", "width_stage", "is_warm_started", "identities")
    }


def software(device_type: str) -> str:
    """What beside a run's settings decides on a GPU how its results are rounded; nothing on a CPU."""
    return device_software(device_type) + provenance(device_type)


def make_plan(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: ResolvedConfig,
    *,
    is_unconditional: bool,
    is_traced: bool,
    identities: NDArray[np.int64] | None = None,
    device: torch.device | None = None,
) -> Plan:
    """The plan of a run over puzzles `[P, L]`; `device` is where it runs, if not where the model is."""
    settings = identity_json(config, without=NO_IDENTITY)
    device = device or model.device
    digest = hashlib.sha256()
    for part in (
        json.dumps(settings, sort_keys=True),
        json.dumps(shape_of(model), sort_keys=True),
        model.digest(),
        task.name,
        hashlib.sha256(puzzles.tobytes()).hexdigest(),
        f"{device.type} {model.dtype} {config.kernel} {is_unconditional} {is_traced} {puzzles.shape}",
        *((software(device.type),) if device.type != "cpu" else ()),
    ):
        digest.update(part.encode() + b"\0")
    if model.identities is not None and identities is not None:
        digest.update(model.identities.digest(identities).encode())
    return Plan(digest.hexdigest(), shards_of(len(puzzles), config))


def machine_bytes() -> int | None:
    """Memory of this machine, or of the container where that is less; None where the system does not say."""
    found = []
    with suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in LIMIT_FILES:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            # No such file, or `max`.
            continue
    return min((count for count in found if count > 0), default=None)


def device_bytes(device: torch.device) -> int | None:
    """Memory of the device that slots live on."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_bytes()


def result_bytes(config: ResolvedConfig, puzzles: int, answer_tokens: int, *, is_traced: bool = False) -> int:
    """Bytes of a run's result, every trajectory of it, and of the one shard that a trace holds at once."""
    each = 2 * answer_tokens + TRAJECTORY_BYTES
    traced = config.depth * (answer_tokens + 16) if is_traced else 0
    shard = min(puzzles * config.width, max(TRAJECTORIES_PER_SHARD, config.width if puzzles else 0))
    return puzzles * config.width * each + shard * traced


def slot_bytes(config: ResolvedConfig, spec: Spec, item_bytes: int) -> int:
    """Bytes of the states of all slots."""
    rows = -(-config.slots // config.launch) * config.launch
    return rows * spec.length * spec.dim * item_bytes * STATES


def check_fits(
    config: ResolvedConfig,
    spec: Spec,
    puzzles: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    is_traced: bool = False,
    has_slots: bool = True,
) -> None:
    """Refuses a run that cannot fit in memory, before anything is sampled. `has_slots`: its slots are on this machine.

    The estimate is a lower one: what it refuses cannot run. Raises `ValueError` in one line with the estimate.
    """
    results = result_bytes(config, puzzles, spec.output_tokens, is_traced=is_traced)
    slots = slot_bytes(config, spec, dtype.itemsize) if has_slots else 0
    check_bytes(slots, device_bytes(device), device, f"{config.slots:,} slots in launches of {config.launch:,}")
    if device.type == "cpu":
        results += slots
    check_bytes(results, machine_bytes(), torch.device("cpu"), f"{puzzles:,} puzzles at width {config.width:,}")


def check_bytes(needed: int, there: int | None, device: torch.device, what: str) -> None:
    """Raises `ValueError` where `what` needs more bytes than there are on the device (None: nobody says)."""
    if there is not None and needed > there:
        raise ValueError(f"run must fit in {_size(there)} of memory of {device}, got {what}: at least {_size(needed)}")


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that the shards of a plan need to run, here or elsewhere."""

    model: Model
    task: Task
    puzzles: Tokens
    """`[P, L]`."""
    config: ResolvedConfig
    device: torch.device
    """Where the plan counts on running."""
    identities: NDArray[np.int64] | None = None
    """Row of each puzzle in the model's table of task embeddings, `[P]`."""
    is_unconditional: bool = False
    is_traced: bool = False

    def engine(self, observer: Observer | None = None) -> Engine:
        """An engine for some of its shards."""
        return Engine(
            self.model,
            self.task,
            self.puzzles,
            self.config,
            identities=self.identities,
            is_unconditional=self.is_unconditional,
            is_traced=self.is_traced,
            observer=observer,
            kind_of_slots=slots_of(self.model),
        )

    def run_shard(self, shard: Shard, observer: Observer | None = None) -> ShardResult:
        """One shard of a plan: what a worker runs. Same job, same arrays, whatever the number of slots.

        An exception of `observer` ends it between two supervision steps.
        """
        ((_, result),) = self.engine(observer).run([shard])
        return result


class Backend(Protocol):
    """Runs shards somewhere else than here."""

    @property
    def device(self) -> torch.device | None:
        """Where its workers compute; None: as the model here."""

    def start(self, job: Job, shards: int) -> None:
        """Waits until there is somebody to run `shards` shards. Raises `ValueError`."""

    def run(self, shards: Iterable[Shard]) -> Generator[tuple[Shard, Serialized], None, None]:
        """Runs each of `shards` and yields its result; a shard may come twice. Raises `ValueError` at the end where
        shards are left that cannot be run. Closing it stops everything."""


def run_into(store: Store, engine: Engine, shards: Sequence[Shard], observer: Observer, started: float) -> None:
    """Runs the shards that the store lacks, and keeps each as soon as it is finished.

    `started` is when the first one began, by `time.perf_counter`.
    """
    for shard, result in engine.run(_missing(store, shards, observer)):
        now = time.perf_counter()
        store.append(shard.index, result.arrays(), now - started)
        started = now


def run_elsewhere(
    store: Store, backend: Backend, job: Job, shards: Sequence[Shard], observer: Observer | None = None
) -> None:
    """Has a backend run the shards that the store lacks, and keeps each as it comes.

    The time until the backend is ready is not counted. `observer` sees when trajectories have ended and nothing else.
    """
    observer = observer or Observer()
    missing = _missing(store, shards, observer)
    if not missing:
        return
    backend.start(job, len(missing))
    before = time.perf_counter()
    with closing(backend.run(missing)) as results:
        for shard, serialized in results:
            now = time.perf_counter()
            if store.append_serialized(shard.index, serialized, now - before):
                before = now
                observer.on_ended(shard.puzzles * shard.trajectories)


def _missing(store: Store, shards: Sequence[Shard], observer: Observer) -> list[Shard]:
    """The shards that the store lacks; the observer hears at once of the trajectories of the others."""
    done = store.done()
    if done:
        observer.on_ended(sum(shard.puzzles * shard.trajectories for shard in shards if shard.index in done))
    return [shard for shard in shards if shard.index not in done]


def sample(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: SamplerConfig,
    *,
    identities: NDArray[np.int64] | None = None,
    is_unconditional: bool = False,
    is_traced: bool = False,
    out: Path | str | None = None,
    metadata: dict[str, Any] | None = None,
    observer: Observer | None = None,
    backend: Backend | None = None,
) -> SampleResult:
    """Samples up to `config.width` trajectories of each puzzle `[P, L]` and selects an answer.

    `identities [P]` are the puzzles' rows in the table of a model that has one, which must be given to it.
    `is_unconditional` shows the model the empty condition in place of the puzzles. With `out`, finished shards are kept
    in that folder, and a run that was killed continues from there; `is_traced` also keeps every supervision step, and
    `metadata` is written beside. With `backend` the shards run there, and `observer` sees no supervision steps. Same
    seed, puzzles and launch size: the same trajectories, whatever the batch, where launches are padded.

    Raises `PuzzleError` for what is no puzzle of the task, `ValueError` for settings that the model does not fit, an
    untrained empty condition or a run that cannot fit in memory, `StoreError` for a folder that holds another run.
    """
    resolved = config if isinstance(config, ResolvedConfig) else resolve(config, model)
    observer = observer or Observer()
    out = None if out is None else Path(out)
    if not is_unconditional:
        puzzles = input_tokens(task, puzzles)
    if is_traced and out is None:
        raise ValueError("out must name a folder for a traced run, got none")
    if not resolved.is_padded and (out is not None or backend is not None):
        where = f"the folder {out}" if out is not None else "a cluster"
        raise ValueError(f"is_padded must be on for a run in {where}, got off: its rounding may follow its company")
    if resolved.views == "random":
        check_views(task, is_unconditional=is_unconditional)
    if is_unconditional:
        model.embed_empty(1)
    check_identities(model, identities, len(puzzles))
    check_fits(
        resolved,
        spec_of(resolved, model),
        len(puzzles),
        device=model.device,
        dtype=model.dtype,
        is_traced=is_traced,
        has_slots=backend is None,
    )
    started = time.perf_counter()
    device = (backend and backend.device) or model.device
    plan = make_plan(
        model,
        task,
        puzzles,
        resolved,
        identities=identities,
        device=device,
        is_unconditional=is_unconditional,
        is_traced=is_traced,
    )
    written = {
        "task": task.name,
        "puzzles": len(puzzles),
        "config": config_to_json(resolved),
        "is_traced": is_traced,
        "device": str(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kernel": resolved.kernel,
        "shards": [list(astuple(shard)) for shard in plan.shards],
        **(metadata or {}),
    }
    job = Job(
        model=model,
        task=task,
        puzzles=puzzles,
        config=resolved,
        device=device,
        identities=identities,
        is_unconditional=is_unconditional,
        is_traced=is_traced,
    )
    with ExitStack() as stack:
        if out is None and backend is None:
            engine = job.engine(observer)
            merged = _merged(job, engine.run(plan.shards))
            elapsed_s, steps_run = time.perf_counter() - started, engine.steps_run
        else:
            folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="gram-")))
            store = stack.enter_context(Store.open(folder, plan.key, len(plan.shards), written))
            before = store.done()
            if backend is None:
                engine = job.engine(observer)
                run_into(store, engine, plan.shards, observer, started)
                steps_run = engine.steps_run + sum(int(store.read(index)["steps"].sum()) for index in before)
            else:
                run_elsewhere(store, backend, job, plan.shards, observer)
            merged = _merged(job, _stored(store, plan))
            elapsed_s, steps_run = store.elapsed_s, steps_run if backend is None else int(merged.steps.sum())
    votes = count_votes(answer_labels(task.canonical(merged.candidates)), lineage=merged.lineage, widths=merged.widths)
    found: dict[str, Any] = merged.arrays()
    return SampleResult(
        **found,
        selected=select(resolved.selector, merged.scores(votes)),
        votes=votes,
        config=resolved,
        elapsed_s=elapsed_s,
        steps_run=steps_run,
        device=written["device"],
        dtype=written["dtype"],
        task=task,
        is_unconditional=is_unconditional,
    )


def _stored(store: Store, plan: Plan) -> Iterator[tuple[Shard, ShardResult]]:
    """The shards of a complete store, without their traces."""
    for shard in plan.shards:
        arrays = store.read(shard.index)
        yield shard, ShardResult.from_arrays({name: arrays[name] for name in arrays if not name.startswith("trace_")})


def _merged(job: Job, shards: Iterable[tuple[Shard, ShardResult]]) -> ShardResult:
    """All shards as one, `[P, N]`."""
    config = job.config
    whole = ShardResult.blank(
        job.puzzles, config.width, job.model.config.output_tokens, measures_sparsity=config.measures_sparsity
    )
    for shard, part in shards:
        rows = slice(shard.first_puzzle, shard.first_puzzle + shard.puzzles)
        columns = slice(shard.first_trajectory, shard.first_trajectory + shard.trajectories)
        for name, values in part.by_trajectory().items():
            getattr(whole, name)[rows, columns] = values
        whole.widths[rows] += part.widths
    return whole
