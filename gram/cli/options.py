"""Options that commands share: flags, help and what they open. Their defaults are those of `SamplerConfig`.

Values are checked where they are used (`SamplerConfig`, the task, `gram.api`), so that every way in
gives the same line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.errors import report
from gram.cli.main import ADVANCED
from gram.config import (
    HALTINGS,
    INJECTORS,
    KERNELS,
    NOISE_SITES,
    RESAMPLERS,
    SELECTORS,
    VIEWS,
    WIDTH_POLICIES,
    SamplerConfig,
)
from gram.sampler.halting import RULES

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.distributed.pool import Pool
    from gram.tasks.protocol import Task


def whole(text: str) -> int:
    """A whole number from the command line. Raises `BadParameter`."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number, got {text!r}") from None


def real(text: str) -> float:
    """A number from the command line. Raises `BadParameter`."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, got {text!r}") from None


def tasks_that_begin(incomplete: str) -> list[str]:
    """Completions of a task's name, for the shell."""
    from gram.tasks.registry import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="Task, as `gram tasks` lists them.", autocompletion=tasks_that_begin)
]
PuzzleFile = Annotated[
    Path | None,
    typer.Option(
        "--puzzles",
        metavar="FILE",
        help="Your puzzles: CSV, TSV, JSON, or one string a line; or hf://owner/dataset/path/file.",
    ),
]
MOST_COUNTED = 10_000_000
"""Of puzzles and whatever else a flag counts."""
Rows = Annotated[
    str | None,
    typer.Option(metavar="A-B", help="Puzzles A to B of FILE (or of the split) alone, counted from 1. [default: all]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
TaskModule = Annotated[
    Path | None, typer.Option("--task-module", metavar="FILE", help="Python file that defines TASK.")
]

Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")]
Dtype = Annotated[str, typer.Option(metavar="auto|bfloat16|float32", help="Type to compute in.")]


def _choice(choices: tuple[str, ...], text: str) -> Any:
    return Annotated[str, typer.Option(metavar="|".join(choices), help=text)]


def _optional(kind: Callable[[str], Any], metavar: str, text: str) -> Any:
    option = typer.Option(parser=kind, metavar=metavar, help=text)
    return Annotated[int | None, option] if kind is whole else Annotated[float | None, option]


def _halt_thresholds() -> str:
    """Each halting rule's default threshold and what it is."""
    values = {name: f"{rule.threshold:g}" for name, rule in RULES.items() if rule.threshold is not None}
    values["head"] = "as the checkpoint says"
    return ", ".join(f"{name} {value} ({RULES[name].meaning})" for name, value in values.items())


SETTINGS: dict[str, Any] = {
    "width": Annotated[int, typer.Option(parser=whole, metavar="N", help="Trajectories per puzzle, at most.")],
    "depth": _optional(whole, "M", "Supervision steps at most. [default: as the checkpoint says]"),
    "selector": Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SELECTORS), help="Which candidate is the answer. [default: as the checkpoint says]"
        ),
    ],
    "views": Annotated[
        str | None,
        typer.Option(
            metavar="|".join(VIEWS),
            help="Show each trajectory the puzzle under a symmetry of its own. [default: as the checkpoint says]",
        ),
    ],
    "injector": Annotated[
        str | None,
        typer.Option(
            metavar="|".join(INJECTORS), help="Where noise comes from. [default: as the checkpoint was trained]"
        ),
    ],
    "sigma": _optional(real, "S", "Scale of the gaussian or path injector's noise. [default: 0.3, or as trained]"),
    "noise_site": _choice(NOISE_SITES, "State that the gaussian injector disturbs."),
    "temperature": Annotated[
        float, typer.Option(parser=real, metavar="T", help="Factor on the prior's noise; 0 follows the mean.")
    ],
    "resampler": _choice(RESAMPLERS, "Score by which a puzzle's running trajectories are resampled."),
    "resample_threshold": Annotated[
        float, typer.Option(parser=real, metavar="R", help="Effective share of trajectories that calls for resampling.")
    ],
    "halting": _choice(HALTINGS, "When a trajectory stops."),
    "halt_threshold": _optional(
        real,
        "P",
        f"Of the halting rule. [default: {_halt_thresholds()}]",
    ),
    "width_policy": Annotated[
        str | None,
        typer.Option(
            metavar="|".join(WIDTH_POLICIES),
            help="When a puzzle has enough trajectories. [default: as the checkpoint says]",
        ),
    ],
    "width_threshold": _optional(
        real,
        "P",
        "Of the width policy. [default: staged 0.9, trusted 0.5 (LPRM), sparse as a Gaussian, decided 0.95 (probability"
        " of a lead)]",
    ),
    "width_stage": _optional(
        whole, "N", "Trajectories that first-halt runs side by side. [default: the checkpoint's, or all of --width]"
    ),
    "transitions": _optional(whole, "T", "Transitions of a supervision step. [default: the checkpoint's]"),
    "low_level_updates": _optional(whole, "K", "Low-level updates of a transition. [default: the checkpoint's]"),
    "seed": Annotated[int, typer.Option(parser=whole, metavar="S", help="Key of all noise.")],
    "slots": _optional(whole, "S", "Trajectories advanced side by side; changes no result. [default: by the device]"),
    "kernel": _choice(KERNELS, "Kernel path; `gram doctor` says what runs here."),
    "launch": _optional(whole, "B", "Trajectories of one launch. [default: by model, device and kernel]"),
    "is_padded": Annotated[
        bool,
        typer.Option(
            "--padded/--unpadded",
            help="Launches of full size, or of the rows that run: faster for few, not kept, rounding may differ.",
        ),
    ],
    "measures_sparsity": Annotated[
        bool,
        typer.Option("--measures-sparsity", help="Measure how sparse states are: columns of the result and its trace."),
    ],
    "is_warm_started": Annotated[
        bool | None,
        typer.Option(
            "--warm-start/--cold-start",
            help="Of a lattice: whether a round goes on from the core's state before. [default: the checkpoint's]",
        ),
    ],
}
"""One option for each field of `SamplerConfig`."""
ADAPTIVE = ("resampler", "resample_threshold", "width_policy", "width_threshold", "width_stage")
"""Fields that look at several trajectories of a puzzle."""

OPENING: dict[str, Any] = {
    "checkpoint": Annotated[
        str | None,
        typer.Option(metavar="C", help="Shipped checkpoint's name or a directory. [default: the best one for TASK]"),
    ],
    "task_module": TaskModule,
    "device": Device,
    "dtype": Dtype,
}
OPENING_DEFAULTS: dict[str, Any] = {"checkpoint": None, "task_module": None, "device": "auto", "dtype": "auto"}

Ray = Annotated[
    str,
    typer.Option(
        metavar="off|new|auto|ADDRESS",
        help="Spread over a Ray cluster: a new one here, the job's own or that of `gram cluster up`, or HOST:PORT.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(parser=whole, metavar="W", help="Workers on it. [default: what it has room for]")
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(parser=real, metavar="G", help="GPUs of each worker. [default: 1 where the device is a GPU, else 0]"),
]
SPREADING: dict[str, Any] = {"ray": Ray, "workers": Workers, "gpus_per_worker": GpusPerWorker}
SPREADING_DEFAULTS: dict[str, Any] = {"ray": "off", "workers": None, "gpus_per_worker": None}


COMMON = ("checkpoint", "width", "depth", "selector", "seed", "ray")
"""Shared options that help shows among a command's own; the others follow under a title of their own."""
for _name, _option in (SETTINGS | OPENING | SPREADING).items():
    if _name not in COMMON:
        _option.__metadata__[0].rich_help_panel = ADVANCED


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What the shared options of a sampling command say."""

    task_module: Path | None
    device: str
    dtype: str
    config: SamplerConfig
    checkpoint: str | None = None
    ray: str = "off"
    workers: int | None = None
    gpus_per_worker: float | None = None

    def task(self, name: str) -> Task:
        """The task called `name`. Raises `ValueError` for an unknown one."""
        from gram.tasks.registry import get_task

        return get_task(name, self.task_module)

    def sampler(self, task: Task, *, is_conditional: bool = True) -> Sampler:
        """The checkpoint named by `--checkpoint`, or the best shipped one that solves the task (or generates its
        boards).

        Raises `CheckpointError`, and `ValueError` for a checkpoint of another task.
        """
        from gram.checkpoint import default_for, find, read_config
        from gram.sizes import fits

        name = self.checkpoint or default_for(task.name, is_conditional=is_conditional)
        config = read_config(find(name))
        if config.task != task.name and (self.task_module is not None or not fits(config, task.name)):
            raise ValueError(f"checkpoint {name!r} must be one of task {task.name!r}, got one of {config.task!r}")
        sampler = self.load(name, None if config.task == task.name else task)
        # The caller's task, which may know its file's outputs.
        sampler.task = task
        return sampler

    def load(self, checkpoint: str, task: Task | None = None) -> Sampler:
        """A checkpoint's sampler, in the type that its workers will compute in; `task` where it is of another size than
        the checkpoint's own. Raises as `api.load` does."""
        from gram.api import load

        module, dtype = self.task_module, self.worker_dtype
        return load(checkpoint, device=self.device, dtype=dtype, task=task, task_module=module)

    @property
    def worker_dtype(self) -> str:
        """The type to compute in: that of the workers, where there are some."""
        is_on_gpus = self.ray != "off" and bool(self.gpus_per_worker)
        return "bfloat16" if is_on_gpus and self.dtype == "auto" else self.dtype

    @contextmanager
    def backend(self, sampler: Sampler, *, is_quiet: bool) -> Iterator[Pool | None]:
        """The cluster named by `--ray` for as long as it is needed; None where it is off, without importing Ray.

        Raises `ValueError` for an address that is none or that cannot be used.
        """
        if self.ray == "off":
            for name, value in (("workers", self.workers), ("gpus_per_worker", self.gpus_per_worker)):
                if value is not None:
                    raise ValueError(f"--{name.replace('_', '-')} must come with --ray, got {value:g} without")
            yield None
            return
        from gram.distributed import cluster

        at_least_one("workers", self.workers)
        gpus = self.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if sampler.model.device.type != "cpu" else 0.0
        with cluster.connected(self.ray, cpus=self.workers):
            from gram.distributed.pool import Pool

            yield Pool(
                workers=self.workers,
                gpus_per_worker=gpus,
                task_module=self.task_module,
                report=None if is_quiet else report,
            )


def with_sampling_options(
    *, without: Iterable[str] = (), is_spread: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the shared options to a command, which receives them as its keyword `sampling`.

    `without` names fields of `SamplerConfig` or of `OPENING` that this command does not offer, or in its own way;
    `is_spread` offers a Ray cluster.
    """
    defaults = {
        field.name: field.default
        for field in fields(SamplerConfig)
        if field.name in SETTINGS and field.name not in without
    }
    assert MISSING not in defaults.values()
    offered = OPENING_DEFAULTS | (SPREADING_DEFAULTS if is_spread else {})
    openings = {name: default for name, default in offered.items() if name not in without}
    annotations = OPENING | SPREADING | {name: SETTINGS[name] for name in defaults}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            config = SamplerConfig(**{name: values.pop(name) for name in defaults})
            opening = {name: values.pop(name) for name in openings}
            command(**values, sampling=Sampling(**opening, config=config))

        own = inspect.signature(command, eval_str=True).parameters
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotations[name])
            for name, default in (openings | defaults).items()
        ]
        kept = [own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in own if name != "sampling"]
        run.__signature__ = inspect.Signature([*kept, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def at_least_one(name: str, value: int | None) -> None:
    """Refuses a count below 1, or above what any run could do. Raises `ValueError`."""
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if value is not None and value > MOST_COUNTED:
        raise ValueError(f"{name} must be at most {MOST_COUNTED:,}, got {value}")
