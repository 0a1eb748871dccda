"""How sparse latent states are: three measures, and what a Gaussian state of the same shape would have.

Hidden states of language models become sparser on harder and unfamiliar inputs (2603.03415). Here the measures are
taken from `h` and `l` after a supervision step, outside any kernel, each over a trajectory's whole state. They do not
change with the state's scale, the order of its numbers or their signs.

Shapes: `k` trajectories, `L` tokens, `D` channels, `n = L D` numbers of a state.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

TOP_SHARE = 0.05
"""Share of a state's numbers whose energy is looked at: the largest 5 %."""


class Measures(NamedTuple):
    """Of one state; NaN where the state is zero."""

    top_share: float
    """Share of the energy (sum of squares) that the largest 5 % of the numbers have, in [about .05, 1]."""
    hoyer: float
    """`(sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1)` (Hoyer 2004): 0 where all are equal, 1 where one has everything."""
    participation: float
    """Participation ratio `(sum x^2)^2 / sum x^4`: how many numbers share the energy, in [1, n]."""


def top_count(count: int) -> int:
    """How many numbers are the largest 5 % of `count`, at least one."""
    return max(1, math.ceil(TOP_SHARE * count))


def measures(states: Tensor) -> Tensor:
    """The `Measures` of states `[k, L, D]`, in fp32: `[k, 3]`."""
    size = states.to(torch.float32).abs().flatten(1)
    count = size.shape[1]
    # By the largest number, so that no square leaves the range of fp32.
    size = size / size.amax(1, keepdim=True)
    energy = size.square()
    total = energy.sum(1)
    top = energy.topk(top_count(count), dim=1, sorted=False).values.sum(1) / total
    root = math.sqrt(count)
    hoyer = (root - size.sum(1) / total.sqrt()) / max(root - 1, 1e-30)
    participation = total.square() / energy.square().sum(1)
    return torch.stack([top.clamp(max=1.0), hoyer.clamp(0.0, 1.0), participation.clamp(1.0, count)], 1)


def measures_of_states(h: Tensor, l: Tensor) -> Tensor:
    """The measures of both states `[k, L, D]` in the order of `trace.SPARSITY`, fp32 `[k, 6]`."""
    return torch.cat([measures(h), measures(l)], 1)


@lru_cache(maxsize=64)
def gaussian_null(count: int) -> Measures:
    """What `count` independent normal numbers have, in closed form.

    Hoyer is the exact mean: on the sphere `E |x|_1 / |x|_2 = count Gamma(count / 2) / (sqrt(pi) Gamma((count + 1) /
    2))`. Participation is the exact harmonic mean, `(count + 2) / 3`. The share of the largest 5 % is its limit for
    many numbers, `2 (q phi(q) + 1 - Phi(q))` at the quantile `q` that as many exceed in size: off by at most about
    `1 / count`. Raises `ValueError` for fewer than two numbers.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    normal = NormalDist()
    tail = top_count(count) / count / 2
    quantile = normal.inv_cdf(1 - tail)
    root = math.sqrt(count)
    length = count / math.sqrt(math.pi) * math.exp(math.lgamma(count / 2) - math.lgamma((count + 1) / 2))
    return Measures(
        top_share=2 * (quantile * normal.pdf(quantile) + tail),
        hoyer=(root - length) / (root - 1),
        participation=(count + 2) / 3,
    )
