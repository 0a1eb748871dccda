"""Learned noise: the posterior, and the balanced KL that ties prior and posterior (2605.19376, section 3.2).

Shapes: `B` trajectories, `L` tokens (registers included), `D` columns. The Gaussians' maths stands in
`kernels/reference.py`, since the prior also samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gram.kernels.reference import Weights, gaussian
from gram.kernels.spec import Spec

Lead = Callable[..., tuple[Tensor, Tensor]]
"""What moves a state by the posterior's noise and charges the balanced KL at once: `kernels/native/guide.led`."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian per token and column, fp32 `[B, L, D]`."""

    mean: Tensor
    log_sigma: Tensor


def prior(weights: Weights, spec: Spec, u: Tensor) -> Gaussian:
    """`p(eps | u)`."""
    return Gaussian(*gaussian(weights, "prior", u, spec))


def posterior(weights: Weights, spec: Spec, u: Tensor, e_y: Tensor) -> Gaussian:
    """`q(eps | u, y)`: reads `u` and the target's embedding side by side (adding them fails)."""
    return Gaussian(*gaussian(weights, "posterior", torch.cat([u, e_y], dim=-1), spec))


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """`KL(q || p)` in nats, summed over columns: `[B, L]`."""
    ratio = torch.exp(2 * (q.log_sigma - p.log_sigma))
    distance = ((q.mean - p.mean) * torch.exp(-p.log_sigma)).square()
    return (p.log_sigma - q.log_sigma + 0.5 * (ratio + distance - 1)).sum(-1)


def balanced_kl(q: Gaussian, p: Gaussian, balance: float) -> Tensor:
    """`balance * KL(sg(q) || p) + (1 - balance) * KL(q || sg(p))`, `[B, L]`: the value is the KL, the gradient mostly
    moves the prior (`balance` 0.8 in the paper)."""
    frozen_q, frozen_p = Gaussian(*(part.detach() for part in q)), Gaussian(*(part.detach() for part in p))
    return balance * kl(frozen_q, p) + (1 - balance) * kl(q, frozen_p)
