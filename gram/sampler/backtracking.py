"""Backtracking of a lattice: what a conflict teaches is kept (after Davis, Logemann and Loveland, 1962).

A conflict says that the last commitment was wrong, if those before it were right. So the trajectory goes back to the
state before that commitment, rules its value out there, and thinks again. A conflict without a commitment says that
the model was wrong somewhere: then the trajectory starts anew from its puzzle, in its next life, and believes the
model less (`belief`).

The states gone through are not stored. Every value remembers at which level, the number of commitments standing then,
it went; going back gives back what went since.

Shapes: `B` trajectories, `A` answer tokens, `V` values (symbols of the vocabulary).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gram.sampler.lattice import Round

LEFT = torch.iinfo(torch.int16).max
"""Level of values that are still possible."""
LESS_BELIEVED = 0.5
"""Factor of a life on the probabilities of being right below which values and states are given up."""


class Trail(NamedTuple):
    """The levels of a state and its way back."""

    gone_at: Tensor
    """Level at which each value went, int16 `[B, A, V]`; 0 of what the puzzle rules out, `LEFT` of what is possible."""
    choices: Tensor
    """The commitments in order, int32 `[B, A]`: token times `V` plus value. Only the first `level` count."""
    level: Tensor
    """Number of commitments, int64 `[B]`."""
    lives: Tensor
    """How often the trajectory started anew, int64 `[B]`."""

    @property
    def sets(self) -> Tensor:
        """Possible values, bool `[B, A, V]`."""
        return self.gone_at == LEFT

    @property
    def belief(self) -> Tensor:
        """What `play_round` takes it for, fp32 `[B]`: 1 in the first life."""
        return LESS_BELIEVED ** self.lives.to(torch.float32)


def begin(first: Tensor) -> Trail:
    """The trails of states that only know their puzzles, whose possible values are `first` (bool `[B, A, V]`)."""
    count, tokens, _ = first.shape
    return Trail(
        torch.where(first, LEFT, 0).to(torch.int16),
        torch.zeros(count, tokens, dtype=torch.int32, device=first.device),
        *torch.zeros(2, count, dtype=torch.int64, device=first.device),
    )


def follow(trail: Trail, first: Tensor, played: Round) -> Trail:
    """The trails after a round: one level further where it committed a token, one back where it met a conflict, and
    at the puzzle again (`first`, bool `[B, A, V]`) where there was no commitment to take back."""
    gone_at, choices, level, lives = trail
    wide = level[:, None, None]
    is_left = gone_at == LEFT
    further = torch.where(is_left & ~played.kept, wide, gone_at)
    further = torch.where(is_left & played.kept & ~played.sets, wide + 1, further)
    last = (level - 1).clamp(min=0)[:, None]
    back = (
        torch.where(gone_at >= wide, LEFT, gone_at)
        .flatten(1)
        .scatter(1, choices.gather(1, last).long(), last.to(gone_at.dtype))
    )
    back = torch.where(wide > 0, back.view_as(gone_at), torch.where(first, LEFT, 0).to(gone_at.dtype))
    is_conflict = played.is_conflict[:, None, None]
    commits = played.choice >= 0
    at = level.clamp(max=choices.shape[1] - 1)[:, None]
    named = torch.where(commits[:, None], played.choice[:, None], choices.gather(1, at).long())
    return Trail(
        torch.where(is_conflict, back, further).to(gone_at.dtype),
        choices.scatter(1, at, named.to(choices.dtype)),
        torch.where(played.is_conflict, (level - 1).clamp(min=0), level + commits),
        lives + (played.is_conflict & (level == 0)),
    )
