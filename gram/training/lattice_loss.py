"""The loss of one loop of a lattice's core: three opinions on a state, against what its solutions say (2605.08605).

A value should be kept where a solution within the state takes it. A wrong removal cannot be undone in this life of a
trajectory, so it weighs more than a value kept in vain. Of a lost state no value belongs to a solution: removing all
of them is how the core shows a conflict.

Shapes: `B` states, `A` answer tokens, `v` values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gram.config import ModelConfig
from gram.kernels.reference import Weights, core, read_head
from gram.model import read_values
from gram.training.lattice_pool import States

KEEP_WEIGHT, DROP_WEIGHT = 4.0, 0.5
"""Of values that belong to a solution, and of those that do not."""


class Losses(NamedTuple):
    """Sums over the states."""

    keep: Tensor
    """Weighted binary cross-entropy over possible values of undecided tokens, where a search repairs of decided ones
    too, per value of the board."""
    value: Tensor
    """Cross-entropy of the value of tokens that are not given, per token of the board; of states that are not lost.
    With several solutions: of any value that one takes, or of all by their shares."""
    sound: Tensor
    """Binary cross-entropy of whether a solution is left."""


def loop(
    weights: Weights, config: ModelConfig, h: Tensor, shown: Tensor, states: States, *, by_share: bool = False
) -> tuple[Tensor, Losses]:
    """One more loop: the core's state after it and its losses. `shown` is the embedded state, `by_share` whether values
    are learnt by their shares."""
    h = core(weights, "low", h + shown, config.spec)
    keep, value = read_values(weights, config, h)
    places = config.output_tokens
    target = states.sets & states.survivors
    is_decided = states.sets.sum(-1, keepdim=True) == 1
    if config.search == "repair":
        # Removal is not final, and what was decided wrongly is to be found again.
        weight = KEEP_WEIGHT * (states.sets & ~states.given[..., None])
    else:
        weight = torch.where(target, KEEP_WEIGHT, DROP_WEIGHT) * (states.sets & ~is_decided)
    error = binary_cross_entropy_with_logits(keep, target.float(), reduction="none") * weight
    counts = ~states.given & ~(states.is_lost[:, None] & (config.search != "repair"))
    chance = value.log_softmax(-1)
    if by_share or config.notes:
        likely = (states.shares * chance).sum(-1)
    else:
        likely = chance.masked_fill(~states.survivors & counts[..., None], -torch.inf).logsumexp(-1)
    value_error = torch.where(counts, -likely, 0.0)
    sound = binary_cross_entropy_with_logits(
        read_head(weights, "halt", h, config.spec), (~states.is_lost).float(), reduction="sum"
    )
    return h, Losses(error.sum() / (places * len(config.values)), value_error.sum() / places, sound)
