"""A supervision step on the CPU, paired in one run: the compiled path against the reference and the official TRM step.

Correctness comes first: both versions take the same step of the same state, and no ratio is given where they differ by
more than their type allows. A measured reference has its weights cast once. Not the sampler: steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from gram.api import multiplies_bfloat16
from gram.evals.benchmarks.peers import imported, official_steps, sudoku_mlp
from gram.evals.benchmarks.timing import Measurement, paired
from gram.kernels import reference
from gram.kernels.compiled import path as compiled
from gram.kernels.dispatch import step_flops
from gram.kernels.philox import NoiseKey, Site
from gram.kernels.reference import Step
from gram.model import Model
from gram.presets import model_config
from gram.tasks.registry import get_task

TRAJECTORIES = 1024
PEER_TRAJECTORIES = 64
PRESETS = {"token-mix": "small", "attention": "small-attention"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error of fp32 outputs; relative error (root of mean squares) of bf16 ones, against the reference in fp32 with
the same weights and states: two bf16 paths round in different places, and neither is the other's truth."""
NOISE_FLOOR = 0.05

Arguments = tuple[tuple[Tensor, Tensor, Tensor], NoiseKey]


def rows(peer_repo: Path | None, *, rounds: int) -> Iterator[Measurement]:
    """The CPU's rows; those against TRM where `peer_repo` names its checkout.

    Raises `AssertionError` where the two versions of a step disagree, `ValueError` for a checkout of something else.
    """
    types = [torch.float32]
    if multiplies_bfloat16(torch.device("cpu")):
        types.append(torch.bfloat16)
    for dtype in types:
        for name, preset in PRESETS.items():
            yield from step_rows(name, Model(model_config(preset)).to(dtype), TRAJECTORIES, rounds)
    if peer_repo is not None:
        yield from peer_rows(peer_repo, types[-1], rounds)


def arguments(model: Model, count: int) -> Arguments:
    """A state and counters of `count` trajectories that all meet noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, model.spec.length, model.spec.dim)
    h, l, e_x = (torch.randn(shape, generator=generator).to(model.dtype) for _ in range(3))
    ids = torch.arange(count)
    steps = torch.full_like(ids, model.spec.noise_free_steps + 1)
    return (h, l, e_x), NoiseKey(1, ids * 7, ids, steps)


def check(model: Model, states: tuple[Tensor, Tensor, Tensor], key: NoiseKey) -> float:
    """The error of the compiled step. Raises `AssertionError` where it exceeds what the type allows."""
    made = compiled.supervision_step(model.weights(), model.spec, *states, key)
    return step_error(made, model, states, key, "the compiled step")


def step_error(made: Step, model: Model, states: tuple[Tensor, Tensor, Tensor], key: NoiseKey, what: str) -> float:
    """The error of a step against the reference in fp32. Raises `AssertionError` where the type allows less."""
    h, l, e_x = states
    weights, spec, worst = model.weights(), model.spec, 0.0
    wide_weights = {name: weight.float() for name, weight in weights.items()}
    expected = reference.supervision_step(wide_weights, spec, h.float(), l.float(), e_x.float(), key)
    for one, other in zip(made, expected, strict=True):
        gap, wide = one.float() - other.float(), other.float()
        if model.dtype is torch.float32:
            error = gap.abs().max().item()
        else:
            error = (gap.square().mean().sqrt() / wide.square().mean().sqrt().clamp(min=1)).item()
        if not error <= TOLERANCE[model.dtype]:
            raise AssertionError(
                f"{what} must agree within {TOLERANCE[model.dtype]:g} before it is timed, got {error:.3g}"
            )
        worst = max(worst, error)
    return worst


@torch.inference_mode()
def step_rows(name: str, model: Model, count: int, rounds: int) -> Iterator[Measurement]:
    """Reference over compiled, noise as a share of the compiled step, and the compiled step over its products alone."""
    model.requires_grad_(False)
    weights, spec = model.weights(), model.spec
    states, key = arguments(model, count)
    error = check(model, *arguments(model, 2 * compiled.block_size(spec)))
    versions: dict[str, Callable[[], object]] = {
        "reference": lambda: reference.supervision_step(weights, spec, *states, key),
        "compiled": lambda: compiled.supervision_step(weights, spec, *states, key),
        "noise": lambda: draw(model, count, key),
        "products": products(model, count),
    }
    seconds = paired(versions, rounds)
    label = f"{name} D={spec.dim} L={spec.length}, {count} trajectories, {_name(model.dtype)}"
    facts = {
        "seconds": seconds,
        "error": error,
        "block": compiled.block_size(spec),
        "flops": count * step_flops(weights, spec),
    }
    ratios, ours, label = Measurement.of_ratios, seconds["compiled"], f"CPU step {label}"
    yield ratios(f"{label}: reference / compiled", seconds["reference"], ours, 1.7, facts=facts)
    yield ratios(f"{label}: compiled / its products alone", ours, seconds["products"])
    share = f"{label}: noise, share of the compiled step"
    yield ratios(share, seconds["noise"], ours, NOISE_FLOOR, is_ceiling=True)


def draw(model: Model, count: int, key: NoiseKey) -> None:
    """The noise of a supervision step alone, as the compiled path draws it."""
    spec, block = model.spec, compiled.block_size(model.spec)
    for first in range(0, count, block):
        part = key.at(slice(first, first + block))
        for index in range(spec.transitions):
            compiled.noise(spec, part, Site.PRIOR, part.step * spec.transitions + index)


def products(model: Model, count: int) -> Callable[[], None]:
    """The matrix products of a supervision step alone, in the compiled path's shapes; attention's own left out."""
    spec, weights = model.spec, model.weights()
    block = compiled.block_size(spec)
    left, right = [], []
    for name, weight in weights.items():
        if not name.startswith(("low.", "high.", "prior.")) or (name.startswith("prior.") and spec.guidance == "none"):
            continue
        calls = spec.low_level_updates + spec.is_core_shared if name.startswith("low.") else 1
        if spec.mixer == "token" and ".mixer." in name:
            left.append((weight, torch.randn(weight.shape[1], block * spec.dim).to(model.dtype), calls))
        else:
            right.append((weight, torch.randn(spec.length * block, weight.shape[1]).to(model.dtype), calls))

    def run() -> None:
        for _ in range(-(-count // block) * spec.transitions):
            for weight, x, calls in left:
                for _ in range(calls):
                    torch.mm(weight, x)
            for weight, x, calls in right:
                for _ in range(calls):
                    linear(x, weight)

    return run


@torch.inference_mode()
def peer_rows(repo: Path, dtype: torch.dtype, rounds: int) -> Iterator[Measurement]:
    """TRM Sudoku-MLP (D=512, L=97): the official supervision step over the compiled one, both in `dtype`.

    Raises `ValueError` where `repo` is no checkout of TRM.
    """
    count = PEER_TRAJECTORIES
    peer, _ = sudoku_mlp(repo, batch_size=count, forward_dtype=_name(dtype))
    ours = imported("trm", *sudoku_mlp(repo, batch_size=count)).to(dtype).requires_grad_(False)
    puzzles = torch.from_numpy(get_task("sudoku9").split("test", limit=count).puzzles.astype("int32"))
    short = _short(ours)
    error = check(short, *arguments(short, compiled.block_size(short.spec)))
    _, key = arguments(ours, count)
    states = (*ours.initial_state(count), ours.embed(puzzles.long()))
    weights, spec = ours.weights(), ours.spec
    seconds = paired(
        {
            "official": partial(official_steps, peer, puzzles, 1),
            "compiled": lambda: compiled.supervision_step(weights, spec, *states, key),
            "products": products(ours, count),
        },
        rounds,
    )
    label = f"CPU step token-mix D=512 L=97, {count} trajectories, {_name(dtype)}"
    facts = {"seconds": seconds, "error": error, "block": compiled.block_size(spec)}
    ratios, mine = Measurement.of_ratios, seconds["compiled"]
    yield ratios(f"{label}: official TRM / compiled", seconds["official"], mine, 2.5, facts=facts)
    yield ratios(f"{label}: compiled / its products alone", mine, seconds["products"], facts={"goal": 1.3})


def _short(model: Model) -> Model:
    """The model with one transition, to compare quickly; it shares its weights and compiled core."""
    made = Model(replace(model.config, transitions=1)).to(model.dtype).requires_grad_(False)
    made.load_state_dict(model.state_dict())
    return made


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
