"""The check of a kernel path before its first use with a model: one step of made-up states, held to wider arithmetic.

A run begins with noise-free steps of equal states, where most faults of a kernel cannot be seen. So the states are made
up here, and nearly all rows are past the noise-free steps. The kernel's error and eager's own are both taken against
the reference in the next wider type. The kernel is right where, in every row, its error is at most a margin above the
largest of eager's: two paths that round in different places differ by about as much as either differs from the truth.
A step of several transitions may magnify rounding until it hides everything; then one transition is checked as well.

Shapes: `B` trajectories, `L` tokens (registers included), `D` channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gram.kernels import reference
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step, Weights
from gram.kernels.spec import LEARNED, Injection, Spec

ROWS = 64
"""Rows checked of a path whose rows do not depend on their number."""
STATE_MARGIN, HEAD_MARGIN = 1.5, 4.0
"""Largest error allowed of a row's states and heads, over the largest of eager's own. A head is one number a row, which
varies more than the thousands of a state."""
LEAST = 1e-3
"""Error that is always allowed: where eager is exact, another order of sums is not."""
MAGNIFIED = 0.1
"""Error of eager's own states above which a single transition is checked too."""
SEED = (0xF0000007 << 32) | 0xE0000009
"""Both halves use their highest bit."""

Inputs = tuple[tuple[Tensor, Tensor, Tensor], NoiseKey]
Run = Callable[[Spec, tuple[Tensor, Tensor, Tensor], NoiseKey], Step]


def kind_of(injection: Injection) -> tuple[Any, ...]:
    """What of an injection decides which code a kernel runs; its scales do not."""
    return injection.injector, injection.site, injection.sigma != 0, injection.temperature != 0


def made_up(spec: Spec, dtype: torch.dtype, device: torch.device, count: int = ROWS) -> Inputs:
    """States `h, l, e_x [count, L, D]` and a noise key whose rows all differ. Each eighth row is at its first step."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, min(count, ROWS), spec.length, spec.dim, generator=generator).to(device, dtype)
    rows = torch.arange(count, device=device)
    h, l, e_x = drawn[:, rows % ROWS].unbind()
    step = torch.where(rows % 8 == 7, 0, spec.noise_free_steps + rows % 5)
    return (h, l, e_x), NoiseKey(SEED, (rows * 0x9E3779B1 + 7) % 2**32, (rows * 0x85EBCA6B + 3) % 2**31, step)


def errors(made: Step, expected: Step) -> dict[str, Tensor]:
    """Errors `[B]` by part: of states relative to the row's root of mean squares, of heads to that of all rows, or to 1
    where it is below: a head rounds as its summands do, in a row where they cancel, too."""
    found = {}
    for name, one, other in zip(made._fields, made, expected, strict=True):
        gap = one.to(other.dtype) - other
        if name in ("h", "l"):
            size = other.square().mean((1, 2)).sqrt().clamp(min=1e-12)
            found[name] = gap.square().mean((1, 2)).sqrt() / size
        else:
            found[name] = gap.abs() / other.square().mean().sqrt().clamp(min=1)
    return found


def excess(found: dict[str, Tensor], eager: dict[str, Tensor]) -> list[str]:
    """The parts whose errors exceed what those of `eager` allow, with the worst row; both as `errors` gives them."""
    said = []
    for name, error in found.items():
        margin = STATE_MARGIN if name in ("h", "l") else HEAD_MARGIN
        limit = max(margin * float(eager[name].max()), LEAST)
        worst = int(error.nan_to_num(float("inf"), float("inf")).argmax())
        if not float(error[worst]) <= limit:
            said.append(f"{name} of row {worst}: error {float(error[worst]):.3g}, allowed {limit:.3g}")
    return said


class Truth(NamedTuple):
    """What a step of given inputs should give, and how far eager is from it."""

    expected: Step
    """The reference's step in the next wider type."""
    eager: dict[str, Tensor]
    """Errors of eager's own step."""

    @property
    def is_magnified(self) -> bool:
        """Whether the step makes so much of rounding that it hides faults."""
        return max(float(self.eager[name].max()) for name in ("h", "l")) > MAGNIFIED


@torch.no_grad()
def truth(weights: Weights, spec: Spec, dtype: torch.dtype, inputs: Inputs, injection: Injection = LEARNED) -> Truth:
    """The truth of one supervision step in `dtype`, whose inputs `made_up` gives."""
    (h, l, e_x), key = inputs
    wide = torch.float64 if dtype is torch.float32 else torch.float32
    own = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}
    wider = {name: tensor.to(wide) for name, tensor in own.items()}
    states = h.to(wide), l.to(wide), e_x.to(wide)
    expected = reference.supervision_step(wider, spec, *states, key, injection=injection)
    return Truth(expected, errors(reference.supervision_step(own, spec, h, l, e_x, key, injection=injection), expected))


@torch.no_grad()
def faults(
    run: Run, weights: Weights, spec: Spec, dtype: torch.dtype, device: torch.device, injection: Injection, count: int
) -> list[str]:
    """Where `run` is not the reference's supervision step; empty where it is.

    `run` takes the spec, the states and the key of `count` rows; its states come back in `dtype`.
    """
    inputs = made_up(spec, dtype, device, count)
    whole = truth(weights, spec, dtype, inputs, injection)
    found = excess(errors(run(spec, *inputs), whole.expected), whole.eager)
    if whole.is_magnified and spec.transitions > 1:
        short = replace(spec, transitions=1)
        one = truth(weights, short, dtype, inputs, injection)
        said = excess(errors(run(short, *inputs), one.expected), one.eager)
        found += [f"{each} (1 of {spec.transitions} transitions)" for each in said]
    return found
