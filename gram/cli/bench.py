"""`gram bench`: paired measurements against floors, with their spread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.options import Json, Quiet, at_least_one, real, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gram.evals.benchmarks.gpu_rates import Known
    from gram.evals.benchmarks.kernel_counts import Rates
    from gram.evals.benchmarks.timing import Measurement

KINDS = ("sampler", "host", "kernels", "tuning", "slots", "engine", "ray", "training")
POLICIES: dict[str, dict[str, Any]] = {
    "staged, LPRM above 0.9": {"width_policy": "staged"},
    "decided, probability .95": {"width_policy": "decided"},
    "decided, probability .9": {"width_policy": "decided", "width_threshold": 0.9},
}


def bench(
    kind: Annotated[str, typer.Argument(metavar="|".join(KINDS), help="What to measure.")],
    peer_repo: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your checkout of the official TRM code: adds rows against its own loop."),
    ] = None,
    rounds: Annotated[int, typer.Option(parser=whole, metavar="R", help="Paired rounds.")] = 5,
    limit: Annotated[int, typer.Option(parser=whole, metavar="P", help="Puzzles of a timed run.")] = 200,
    has_resources: Annotated[
        bool,
        typer.Option(
            "--resources/--no-resources",
            help="Of kernels: compile them for every GPU named, which takes minutes the first time.",
        ),
    ] = True,
    has_timings: Annotated[
        bool, typer.Option("--timings/--no-timings", help="Of kernels: time a supervision step here.")
    ] = True,
    presets: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="Of kernels and tuning: this preset alone; of tuning, a shipped checkpoint too; repeatable."
            " [default: all]",
        ),
    ] = None,
    has_cpu: Annotated[
        bool, typer.Option("--cpu/--no-cpu", help="Of kernels: time the CPU's paths too, on a machine with a GPU.")
    ] = True,
    teraflops: Annotated[
        float | None,
        typer.Option(
            parser=real,
            metavar="R",
            help="Of kernels: a GPU's bf16 rate, TFLOP/s. [default: measured on a GPU, else 790]",
        ),
    ] = None,
    terabytes: Annotated[
        float | None,
        typer.Option(
            parser=real,
            metavar="R",
            help="Of kernels: a GPU's memory rate, TB/s. [default: measured on a GPU, else 3]",
        ),
    ] = None,
    l2_terabytes: Annotated[
        float | None,
        typer.Option(
            parser=real,
            metavar="R",
            help="Of kernels: its second-level cache's rate, TB/s. [default: 5.5]",
        ),
    ] = None,
    special_tera: Annotated[
        float | None,
        typer.Option(
            parser=real,
            metavar="R",
            help="Of kernels: its rate of special functions, 10^12 a second. [default: by a GPU's"
            " multiprocessors and clock, else 3.7]",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="R", help="Of training: the recipe, by name or a TOML file.")
    ] = "sudoku9",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Of training and host: a worktree of another commit, timed by turns with this one."
        ),
    ] = None,
    puzzles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of training: what the recipe trains on. [default: some made here]",
        ),
    ] = None,
    shards: Annotated[int, typer.Option(parser=whole, metavar="S", help="ray: shards of the driver's plan.")] = 320,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the JSON there too, again after every row; tuning: the chosen cuts."),
    ] = None,
    as_json: Json = False,
    is_quiet: Quiet = False,
) -> None:
    """Measure what the engine, the kernels, training or a Ray cluster cost or save, paired; leave the machine otherwise
    idle."""
    if kind not in KINDS:
        raise ValueError(f"benchmark must be one of {', '.join(KINDS)}, got {kind!r}")
    at_least_one("rounds", rounds)
    at_least_one("limit", limit)
    asked = {
        "teraflops": teraflops,
        "terabytes": terabytes,
        "l2_terabytes": l2_terabytes,
        "special_tera": special_tera,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be above 0, got {value:g}")
    chosen = [] if kind == "tuning" else _presets(presets)
    at_least_one("shards", shards)
    from gram.cli import terminal
    from gram.evals.benchmarks.timing import to_json
    from gram.versions import versions

    def tell(line: str) -> None:
        if not is_quiet:
            terminal.log(line)

    rows: list[Measurement] = []
    counts: dict[str, Any] = {}

    def summary() -> dict[str, Any]:
        return to_json(rows) | counts | {"versions": versions()}

    def keep() -> None:
        if out is not None and kind != "tuning":
            from gram.checkpoint import write_json
            from gram.formatting import plain

            write_json(out, plain(summary()))

    if kind == "kernels":
        known = _rates(given, has_timings)
        counts = _kernel_counts(chosen, known, has_resources, tell)
        rows += counts.pop("rows")
    keep()
    measured: dict[str, Callable[[], Iterable[Measurement]]] = {
        "sampler": lambda: _sampler_rows(rounds, limit, peer_repo),
        "host": lambda: _host_rows(rounds, against),
        "kernels": lambda: _kernel_rows(chosen, rounds, peer_repo, known.rates, has_cpu) if has_timings else (),
        "tuning": lambda: _tuning_rows(presets, rounds, out, tell),
        "slots": lambda: _engine_rows("slots", rounds, limit),
        "engine": lambda: _engine_rows("engine", rounds, limit),
        "ray": lambda: _ray_rows(rounds, shards),
        "training": lambda: _training_rows(recipe, against, puzzles, rounds, tell),
    }
    for row in measured[kind]():
        rows.append(row)
        keep()
        tell(f"{row.name}: {row.error or format(row.ratio, '.2f')}")
    if as_json:
        terminal.print_json(summary())
        return
    if counts:
        from gram.cli.kernel_view import show_counts

        show_counts(counts, rows)
    _show(rows)


def _tuning_rows(
    presets: list[str] | None, rounds: int, out: Path | None, tell: Callable[[str], None]
) -> Iterator[Measurement]:
    """A sweep over the presets asked for; without one, over those and the shipped checkpoints that `fused` takes."""
    from functools import partial

    import torch

    from gram.api import choose_device
    from gram.checkpoint import find, load, shipped_names
    from gram.evals.benchmarks import tuning_benchmark
    from gram.model import Model
    from gram.presets import PRESETS, model_config

    known = [*PRESETS, *shipped_names()]
    for name in presets or ():
        if name not in known:
            raise ValueError(f"preset must be one of {', '.join(known)}, got {name!r}")
    models = {name: Model(model_config(name)) if name in PRESETS else load(find(name)) for name in (presets or known)}
    models, device = tuning_benchmark.takes_fused(models), choose_device()
    tuning_benchmark.refuse(device, models.values())
    if out is None:
        raise ValueError("out must name the file for the chosen cuts, which GRAM_TUNING takes, got none")
    choices, compiler = tuning_benchmark.Choices.of(out), partial(tuning_benchmark.compiled_ahead, tell=tell)
    for name, model in models.items():
        one = {name: model.to(device, torch.bfloat16).requires_grad_(False)}
        yield from tuning_benchmark.rows(one, choices, rounds=rounds, compiler=compiler)


def _training_rows(
    recipe: str, against: Path | None, puzzles: Path | None, rounds: int, tell: Callable[[str], None]
) -> Iterator[Measurement]:
    from gram.api import choose_device
    from gram.evals.benchmarks import gpu_training_benchmark, training_benchmark

    if against is None and choose_device().type == "cuda":
        yield from gpu_training_benchmark.rows(recipe, puzzles=puzzles, rounds=rounds, tell=tell)
        return
    yield from training_benchmark.rows(recipe, against=against, puzzles=puzzles, rounds=rounds, tell=tell)


def _presets(asked: list[str] | None) -> list[str]:
    """The presets asked for; all of them where none is."""
    from gram.presets import PRESETS

    for name in asked or ():
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return list(asked or PRESETS)


def _rates(given: dict[str, float], has_timings: bool) -> Known:
    """What a GPU can do: of the one at hand where steps are timed on it, so that floor and time are of one device."""
    from gram.api import choose_device
    from gram.evals.benchmarks.gpu_rates import known

    device = choose_device()
    return known(given, device if has_timings and device.type == "cuda" else None)


def _kernel_counts(
    presets: list[str], known: Known, has_resources: bool, tell: Callable[[str], None]
) -> dict[str, Any]:
    """`rows` that are counted, `roofline`, its `rates`, where those are from (`rates_from`) and, where asked for, the
    compiled kernels' `resources`."""
    from gram.evals.benchmarks import kernel_counts

    roofline = list(kernel_counts.roofline(presets, rates=known.rates))
    return {
        "rows": list(kernel_counts.rows(roofline)),
        "rates": known.rates._asdict(),
        "rates_from": known.sources,
        "roofline": roofline,
        "resources": list(kernel_counts.compiled(presets, tell=tell)) if has_resources else [],
    }


def _ray_rows(rounds: int, shards: int) -> Iterator[Measurement]:
    from dataclasses import asdict

    import gram
    from gram.distributed import driver_benchmark
    from gram.distributed.cluster import NEW, connected
    from gram.evals.benchmarks.ray_benchmark import driver_row, start_row

    sampler = gram.load("nqueens8")
    name = "driver overhead per shard, ms"
    yield driver_row(f"{name}: in process", lambda: asdict(driver_benchmark.in_process(sampler, shards=shards)), rounds)
    with connected(NEW, cpus=driver_benchmark.WORKERS):
        yield driver_row(f"{name}: over Ray", lambda: asdict(driver_benchmark.over_ray(sampler, shards=shards)), rounds)
    yield start_row(rounds)


def _kernel_rows(
    presets: list[str], rounds: int, peer_repo: Path | None, rates: Rates, has_cpu: bool
) -> Iterator[Measurement]:
    from gram.api import choose_device
    from gram.evals.benchmarks import cpu_benchmark, gpu_benchmark

    if choose_device().type == "cuda":
        yield from gpu_benchmark.rows(presets, rounds=rounds, rates=rates)
    if has_cpu:
        yield from cpu_benchmark.rows(peer_repo, rounds=rounds)


def _engine_rows(kind: str, rounds: int, limit: int) -> Iterator[Measurement]:
    import gram
    from gram.evals.benchmarks import engine_benchmark

    if kind == "slots":
        yield from engine_benchmark.slot_rows(gram.load, limit=min(limit, 12))
    else:
        yield from engine_benchmark.speed_rows(gram.load, limit=limit, rounds=rounds)


def _host_rows(rounds: int, against: Path | None = None) -> Iterator[Measurement]:
    from gram.evals.benchmarks import host_benchmark, host_pairs

    yield from host_benchmark.rows(rounds) if against is None else host_pairs.rows(against, rounds)


def _sampler_rows(rounds: int, limit: int, peer_repo: Path | None) -> Iterator[Measurement]:
    import gram
    from gram.evals.benchmarks import peer_benchmark, sampler_benchmark

    yield from _host_rows(rounds)
    if peer_repo is not None:
        yield from peer_benchmark.rows(peer_repo, rounds=rounds)
    for name in ("nqueens8", "sudoku6"):
        sampler = gram.load(name)
        yield from sampler_benchmark.refill_rows(
            sampler, sampler.task.split("test", limit=limit), width=20, rounds=rounds
        )
    sampler = gram.load("nqueens8")
    everything = sampler.task.split("test")
    yield from sampler_benchmark.adaptive_rows(sampler, everything, depth=2, width=20, policies=POLICIES)
    yield sampler_benchmark.slot_row(sampler, sampler.task.split("test", limit=12), width=20)
    yield sampler_benchmark.memory_row()


def _show(rows: list[Measurement]) -> None:
    from gram.cli import terminal

    console = terminal.output()
    made = terminal.table("", "value", "low", "high", "floor", "", left=1, wraps=0)
    for row in rows:
        if row.error is not None:
            made.add_row(row.name, "", "", "", "", "FAILS")
            continue
        verdict = {None: "", True: "met", False: "SHORT"}[row.is_met]
        bound = "" if row.floor is None else f"{'<=' if row.is_ceiling else '>='} {row.floor:g}"
        made.add_row(row.name, f"{row.ratio:.2f}", f"{row.low:.2f}", f"{row.high:.2f}", bound, verdict)
    console.print(made)
    for row in rows:
        if row.error is not None:
            console.print(f"{row.name}: {row.error}", markup=False)
