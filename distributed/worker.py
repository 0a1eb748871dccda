"""The worker: a process of a Ray cluster that holds one copy of the model and runs shards, one after the other.

What travels is bytes: weights, puzzles and results in the safetensors format, everything else as JSON. An error of a
shard comes back as text. So nothing of ours is pickled, and nobody needs the checkpoint's folder on their disk.

Shapes: `P` puzzles, `L` puzzle tokens.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gram import __version__
from gram.config import ModelConfig, SamplerConfig, config_from_json, config_to_json
from gram.distributed import sources
from gram.identities import with_table
from gram.model import Model
from gram.sampler.engine import Engine, Observer
from gram.sampler.record import Serialized
from gram.sampler.run import Job, resolve, software
from gram.sampler.scheduler import Shard
from gram.tasks.registry import get_task

PUZZLES, TABLE, IDENTITIES = "puzzles", "identity_rows", "identities"
WEIGHT = "model."
CANCELLED = "cancelled"
"""In place of an error's text, where a shard was ended because its result is not needed any more."""
Parcel = tuple[bytes, str]
"""What a worker is started with: tensors (weights and puzzles) and a JSON object of the rest."""


class WorkerMetadata(NamedTuple):
    """What a worker says of itself when it is ready. The plan counts on all but the last two."""

    version: str
    sources: str
    """Digest of the package's sources: a copy of the same version may compute something else."""
    device: str
    kernel: str
    weights: str
    """Digest of the model's weights."""
    software: str
    """Versions of what computes on a GPU."""
    node: str
    process: int


class ShardOutcome(NamedTuple):
    """What came of a shard: its result, or why there is none."""

    serialized: bytes
    """`gram.sampler.record.Serialized`, ready for the driver's store: the driver is one, workers are many."""
    error: str
    elapsed_s: float


def pack(job: Job, *, task_module: Path | None) -> Parcel:
    """A job as bytes; a user's task file goes with it."""
    tensors = {WEIGHT + name: tensor.detach().cpu().contiguous() for name, tensor in job.model.weights().items()}
    tensors[PUZZLES] = torch.from_numpy(np.ascontiguousarray(job.puzzles))
    if job.model.identities is not None and job.identities is not None:
        rows, places = job.model.identities.part(job.identities)
        tensors |= {TABLE: rows, IDENTITIES: torch.from_numpy(places)}
    is_elsewhere = job.device.type != job.model.device.type
    request = {
        "task": job.task.name,
        "task_source": None if task_module is None else task_module.read_text(encoding="utf-8"),
        "device": job.device.type,
        "model": config_to_json(job.model.config),
        "config": config_to_json(job.config) | ({"slots": None} if is_elsewhere else {}),
        "is_unconditional": job.is_unconditional,
        "is_traced": job.is_traced,
    }
    return save_tensors(tensors), json.dumps(request)


def expected_metadata(job: Job) -> tuple[str, ...]:
    """What a worker must say of itself for its results to belong to the plan: the first of `WorkerMetadata`."""
    kind = job.device.type
    return __version__, sources.digest(), kind, job.config.kernel, job.model.digest(), software(kind)


class _Cancelled(Exception):
    """Ends a shard between two supervision steps."""


class _Cancellation(Observer):
    """Raises `_Cancelled` after a supervision step where the shard is not needed any more."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self.is_cancelled = is_cancelled

    def on_advanced(self, engine: Engine) -> None:
        if self.is_cancelled():
            raise _Cancelled


class Runner:
    """What the actor does, without Ray."""

    def __init__(self, parcel: Parcel) -> None:
        packed, text = parcel
        request: dict[str, Any] = json.loads(text)
        tensors = load_tensors(packed)
        puzzles: NDArray[np.uint8] = tensors.pop(PUZZLES).numpy()
        device = torch.device(request["device"])
        config = config_from_json(ModelConfig, request["model"], where="model")
        identities = tensors.pop(IDENTITIES).numpy() if IDENTITIES in tensors else None
        table = None
        if identities is not None:
            config, table = with_table(config, tensors.pop(TABLE))
        model = Model(config)
        model.identities = table
        model.load_state_dict({name.removeprefix(WEIGHT): tensor for name, tensor in tensors.items()}, assign=True)
        model = model.to(device=device).eval().requires_grad_(False)
        self.job = Job(
            model=model,
            task=_task(request["task"], request["task_source"]),
            puzzles=puzzles,
            identities=identities,
            config=resolve(config_from_json(SamplerConfig, request["config"], where="config"), model),
            device=device,
            is_unconditional=bool(request["is_unconditional"]),
            is_traced=bool(request["is_traced"]),
        )

    def metadata(self, node: str) -> WorkerMetadata:
        """What the driver checks before it sends work."""
        version, digest, device, kernel, weights, software = expected_metadata(self.job)
        return WorkerMetadata(version, digest, device, kernel, weights, software, node, os.getpid())

    def run(self, shard: Shard, *, is_cancelled: Callable[[], bool] = lambda: False) -> ShardOutcome:
        """One shard's result, or the text of what it raised. `is_cancelled` is asked before the first supervision step
        and after each; the shard ends there with the text `CANCELLED` where it says so."""
        started = time.perf_counter()

        try:
            if is_cancelled():
                raise _Cancelled
            result = self.job.run_shard(shard, _Cancellation(is_cancelled))
        except _Cancelled:
            return ShardOutcome(b"", CANCELLED, time.perf_counter() - started)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return ShardOutcome(b"", text[:500], time.perf_counter() - started)
        return ShardOutcome(Serialized.of(result.arrays()).to_bytes(), "", time.perf_counter() - started)


class Worker:
    """The actor. Its methods speak in plain values, so that any version of Python on the way can read them."""

    def __init__(self, parcel: Parcel) -> None:
        self.runner = Runner(parcel)

    def ready(self) -> tuple[Any, ...]:
        """`WorkerMetadata`, once the model is loaded."""
        import ray

        return tuple(self.runner.metadata(ray.get_runtime_context().get_node_id()))

    def run(self, shard: tuple[int, ...]) -> tuple[bytes, str, float]:
        """`ShardOutcome` of a shard given as its fields. After `ray.cancel` it returns within a supervision step, and
        Ray tells the driver that it was cancelled."""
        import ray

        is_cancelled = ray.get_runtime_context().is_canceled
        serialized, error, elapsed_s = self.runner.run(Shard(*shard), is_cancelled=is_cancelled)
        return serialized, error, elapsed_s


def _task(name: str, source: str | None) -> Any:
    """The task, a user's one from its source."""
    if source is None:
        return get_task(name)
    with TemporaryDirectory(prefix="gram-") as folder:
        file = Path(folder) / "task_module.py"
        file.write_text(source, encoding="utf-8")
        return get_task(name, file)
