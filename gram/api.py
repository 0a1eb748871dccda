"""The Python interface: `gram.load(name).sample(puzzles, width=20)`. The command line is its client.

Shapes: `P` puzzles, `N` width, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

import numpy as np
import torch

from gram import checkpoint
from gram.config import (
    Injector,
    Kernel,
    NoiseSite,
    Resampler,
    ResolvedConfig,
    SamplerConfig,
    Selector,
    ViewChoice,
    WidthPolicy,
)
from gram.model import Model
from gram.sampler.engine import Observer
from gram.sampler.halting import Halting
from gram.sampler.result import SampleResult
from gram.sampler.run import Backend, resolve, sample
from gram.sizes import SHAPE, resized, settings_for
from gram.tasks.protocol import PuzzleSet, Task, Tokens, input_tokens
from gram.tasks.registry import get_task

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CPU_INFO = Path("/proc/cpuinfo")
Puzzles = str | Sequence[str] | PuzzleSet | Tokens


def choose_device(device: str = "auto") -> torch.device:
    """The device to run on: `auto` is a GPU where PyTorch finds one, else the CPU. Raises `ValueError`."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{chosen.type} is neither")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be auto, cpu or a GPU that is present, got {device!r} ({reason})") from None
    return chosen


def choose_dtype(dtype: str = "auto", device: torch.device | None = None, *, is_training: bool = False) -> torch.dtype:
    """The type to compute in: `auto` is bfloat16 where the device multiplies it, and not slower than float32 unless
    `is_training`, whose native core is in bfloat16; else float32. Raises `ValueError`."""
    if dtype == "auto":
        device = device or choose_device()
        is_taken = multiplies_bfloat16(device) and (is_training or not halves_bfloat16(device))
        return torch.bfloat16 if is_taken else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16. A CPU without them emulates it up to 100 times slower."""
    if device.type != "cpu":
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return any(is_there for name, is_there in torch.cpu.get_capabilities().items() if "bf16" in name)


def halves_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 that do half of what those for float32 do: AVX-512's of Intel,
    where AMX is not to be had."""
    if device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return False
    try:
        return "GenuineIntel" in CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return False


class SamplerOptions(TypedDict, total=False):
    """Settings by keyword, so that an editor completes them: the fields of `gram.config.SamplerConfig`, which says what
    they mean."""

    width: int
    depth: int | None
    selector: Selector | None
    views: ViewChoice | None
    injector: Injector | None
    sigma: float | None
    noise_site: NoiseSite
    temperature: float
    resampler: Resampler
    resample_threshold: float
    halting: Halting
    halt_threshold: float | None
    width_policy: WidthPolicy | None
    width_threshold: float | None
    width_stage: int | None
    transitions: int | None
    low_level_updates: int | None
    seed: int
    slots: int | None
    launch: int | None
    is_padded: bool
    kernel: Kernel
    measures_sparsity: bool
    is_warm_started: bool | None


class Sampler:
    """A model and its task, ready to sample."""

    def __init__(self, model: Model, task: Task, *, name: str, card: dict[str, Any] | None = None) -> None:
        self.model = model
        self.task = task
        self.name = name
        """Name of the shipped checkpoint, or its directory."""
        self.card = card or {}
        """What the checkpoint's card says (recipe, steps, figures); empty where it has none that can be read."""

    def __repr__(self) -> str:
        return f"<Sampler of {self.task.name}, checkpoint {self.name}: {self.model.device}, {self.model.dtype}>"

    def settings(
        self, config: SamplerConfig | None = None, *, puzzles: int = 0, **overrides: Unpack[SamplerOptions]
    ) -> ResolvedConfig:
        """`config` with `overrides` applied and what they leave open filled in.

        `puzzles`, their number, lets kernel `auto` compile a long run on a CPU; without it the run counts as short.
        Raises `ValueError` for a value out of range, `TypeError` for an unknown field.
        """
        given = SamplerConfig(**{**asdict(config or SamplerConfig()), **overrides})
        return resolve(given, self.model, puzzles)

    def tokens(self, puzzles: Puzzles) -> Tokens:
        """Puzzles as tokens `[P, L]`; the task parses text. Raises `PuzzleError` for what is no puzzle of it."""
        return input_tokens(self.task, puzzles)

    def sample(
        self,
        puzzles: Puzzles,
        config: SamplerConfig | None = None,
        *,
        out: Path | str | None = None,
        is_traced: bool = False,
        observer: Observer | None = None,
        backend: Backend | None = None,
        **overrides: Unpack[SamplerOptions],
    ) -> SampleResult:
        """Samples trajectories of every puzzle and selects an answer for each: `result[0].text`.

        `puzzles`: a text, texts, tokens `[P, L]` or a `PuzzleSet`. Settings: `config`, or fields of `SamplerConfig` by
        keyword (`width=`, `depth=`, `selector=`, `seed=` ...). With `out`, a folder, finished shards are kept, and the
        same call continues after a kill; `is_traced` keeps every supervision step there (`gram.sampler.trace`).
        `observer` watches the run (`gram.sampler.engine.Observer`). `backend` runs the shards elsewhere
        (`gram.distributed.pool.Pool`). Raises `PuzzleError`, `StoreError` and `ValueError` for bad input.
        """
        tokens = self.tokens(puzzles)
        own = puzzles.identities if isinstance(puzzles, PuzzleSet) and self.model.identities is not None else None
        if not isinstance(config, ResolvedConfig) or overrides:
            config = self.settings(config, puzzles=len(tokens), **overrides)
        return sample(
            self.model,
            self.task,
            tokens,
            config,
            identities=own,
            out=out,
            is_traced=is_traced,
            metadata={"checkpoint": self.name},
            observer=observer,
            backend=backend,
        )

    def save(self, directory: Path | str) -> None:
        """Writes the checkpoint into a new or empty folder. Raises `CheckpointError`, `OSError`."""
        checkpoint.save_new(self.model, Path(directory), card=self.card)

    def push(self, repository: str, *, is_private: bool = False) -> str:
        """Uploads the checkpoint to the Hugging Face hub's model `owner/name`; returns its address.

        Raises `gram.hub_files.HubError` in one line.
        """
        from gram.hub_files import push

        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "checkpoint")
            return push(Path(folder) / "checkpoint", repository, is_private=is_private)

    def generate(
        self,
        count: int,
        config: SamplerConfig | None = None,
        *,
        observer: Observer | None = None,
        **overrides: Unpack[SamplerOptions],
    ) -> SampleResult:
        """`count` unconditional samples: one empty puzzle of width `count`, so `candidates` is `[1, count, A]`.

        Raises `ValueError` where the model was not trained with the empty condition.
        """
        overrides["width"] = count
        settings = self.settings(config, **overrides)
        empty = np.zeros((1, self.model.config.tokens), dtype=np.uint8)
        return sample(self.model, self.task, empty, settings, is_unconditional=True, observer=observer)


def load(
    name_or_directory: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    task: Task | str | None = None,
    task_module: Path | str | None = None,
) -> Sampler:
    """A sampler from a shipped checkpoint's name or a checkpoint directory.

    `task` is one of another size than the checkpoint's own, for a model that knows no size (`gram.sizes`): `queens` on
    `nqueens9`. `task_module` is a file that defines the checkpoint's task where it is not a built-in one. Raises
    `checkpoint.CheckpointError` and `ValueError` in one line each.
    """
    directory = checkpoint.find(name_or_directory)
    where = choose_device(device)
    try:
        card = checkpoint.read_card(directory)
    except (checkpoint.CheckpointError, OSError):
        card = {}  # sampling needs none; commands that show cards say what is wrong with it
    model = checkpoint.load(directory, device=where, dtype=choose_dtype(dtype, where))
    if task is None:
        task = model.config.task
    if isinstance(task, str):
        task = get_task(task, task_module)
    if task.name != model.config.task:
        model.resize(resized(model.config, task, settings_for(card, task.name)))
    for field in SHAPE:
        if getattr(task, field) != getattr(model.config, field):
            raise ValueError(
                f"checkpoint {directory} must fit task {task.name} ({field} {getattr(task, field)}), "
                f"got {field} {getattr(model.config, field)}"
            )
    return Sampler(model, task, name=str(name_or_directory), card=card)
