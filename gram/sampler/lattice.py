"""The lattice: a latent state that says, for every answer token, which values are still possible.

A round turns one state into the next (after LDT, 2605.08605): values that the model thinks wrong are removed; where a
token is left without a value, or the model judges the state wrong, it is in conflict and starts anew from its puzzle
(the trajectory's next life), or goes back one commitment (`gram/sampler/backtracking.py`); where every token had one
value, and the model finds nothing wrong with that, it is solved; else one undecided token is committed to a value.
Which token, and at a temperature above 0 which value, is the state's noise: it follows from the seed, the puzzle, the
trajectory and the step alone (`kernels/philox.py`), and steps are counted over all lives.

Shapes: `B` trajectories, `A` answer tokens, `V` values (symbols of the vocabulary).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gram.config import ModelConfig
from gram.kernels.philox import NoiseKey, Site, counter_word1, random_bits


class Opinion(NamedTuple):
    """What the model makes of a state, all fp32."""

    keep: Tensor
    """Logits that a possible value belongs to a solution within the state, `[B, A, V]`."""
    value: Tensor
    """Logits of each token's value, `[B, A, V]`."""
    sound: Tensor
    """Logit that a solution is left in the state, `[B]`."""


class Rules(NamedTuple):
    """How a round decides."""

    drop_below: float
    """Probability of belonging to a solution below which a value is removed."""
    conflict_above: float
    """Probability that no solution is left above which a state is in conflict."""
    temperature: float
    """Of the committed value; 0 takes the likeliest."""
    focus: float = 0.0
    """How much the choice of a token follows the model's certainty: in proportion to the probability of the token's
    likeliest value, to this power; 0 chooses uniformly, a power below 0 rather what the model is unsure of."""
    takes_fewest: bool = False
    """Whether only tokens with the fewest values left may be chosen."""
    repairs: bool = False
    """Whether a token left without a value gets all of them back, in place of a conflict, and a token is committed only
    where nothing was removed."""
    accept_above: float = 0.0
    """Probability that a solution is left at or below which a state with one value everywhere is in conflict, so that
    it is either solved or goes on."""


def rules_of(config: ModelConfig, temperature: float = 1.0, halt_threshold: float | None = None) -> Rules:
    """A model's rules, its temperature times the run's; `halt_threshold` is the run's own."""
    backtracks = config.search == "backtrack"
    return Rules(
        config.drop_below,
        config.conflict_above,
        config.commitment_temperature * temperature,
        config.commitment_focus,
        backtracks,
        config.search == "repair",
        (config.halt_threshold if halt_threshold is None else halt_threshold) if config.search != "restart" else 0.0,
    )


class Round(NamedTuple):
    """What a round leaves."""

    sets: Tensor
    """The next state, bool `[B, A, V]`; in conflict, what was found wrong (not yet the puzzle anew)."""
    is_conflict: Tensor
    """`[B]`."""
    is_solved: Tensor
    """Every token had one value already, so that the opinion is one on the whole answer, and there is no conflict:
    `[B]`."""
    kept: Tensor
    """The state before the commitment, bool `[B, A, V]`."""
    choice: Tensor
    """The commitment, int64 `[B]`: token times `V` plus value; -1 where there is none."""


def play_round(
    sets: Tensor,
    given: Tensor,
    opinion: Opinion,
    rules: Rules,
    key: NoiseKey,
    belief: Tensor | None = None,
    first: Tensor | None = None,
) -> Round:
    """One round of states `sets` (bool `[B, A, V]`); tokens `given` (bool `[B, A]`) are the puzzle's and keep their
    value. `belief` (fp32 `[B]`, 1 without it) is a factor on the probabilities of being right below which values and
    states are given up. `first` is what the puzzle leaves possible, which a repair gives back."""
    drop_below: Tensor | float = rules.drop_below
    conflict_above: Tensor | float = rules.conflict_above
    if belief is not None:
        drop_below = drop_below * belief[:, None, None]
        conflict_above = 1 - (1 - conflict_above) * belief
    is_wrong = opinion.keep.sigmoid() < drop_below
    kept = sets & ~(is_wrong & ~given[..., None])
    is_complete = (sets.sum(-1) == 1).all(-1)
    if rules.repairs:
        assert first is not None
        # Only an answer that nothing more is removed from is judged.
        is_still = (kept == sets).flatten(1).all(1)
        kept = torch.where(kept.any(-1, keepdim=True), kept, first)
        is_complete = is_complete & is_still
        conflict_above = 1.0
    left = kept.sum(-1)
    is_conflict = (left == 0).any(-1) | ((-opinion.sound).sigmoid() > conflict_above)
    if rules.accept_above:
        is_conflict = is_conflict | (is_complete & (opinion.sound.sigmoid() <= rules.accept_above))
    is_solved = is_complete & ~is_conflict
    chance = _uniforms(sets.shape[1], sets.shape[2], key)
    is_open = left > 1
    certainty = opinion.value.masked_fill(~kept, -torch.inf).log_softmax(-1).amax(-1)
    drawn = rules.focus * certainty - (-chance[:, : sets.shape[1]].log()).log()  # Gumbel: in proportion to exp
    if rules.takes_fewest:
        counted = torch.where(is_open, left, left.shape[-1] * kept.shape[-1])
        drawn = drawn.masked_fill(left > counted.amin(-1, keepdim=True), -torch.inf)
    token = drawn.masked_fill(~is_open, -torch.inf).argmax(-1)
    row = torch.arange(len(sets), device=sets.device)
    score = opinion.value[row, token]
    if rules.temperature > 0:
        score = score - rules.temperature * (-chance[:, sets.shape[1] :].log()).log()
    value = score.masked_fill(~kept[row, token], -math.inf).argmax(-1)
    commits = is_open.any(-1) & ~is_conflict
    if rules.repairs:
        # Not where nothing was removed alone: a token that loses all it could be has changed nothing either.
        commits = commits & (kept == sets).flatten(1).all(1)
    chosen = torch.zeros_like(kept[row, token]).scatter_(1, value[:, None], True)
    committed = kept.clone()
    committed[row, token] = torch.where(commits[:, None], chosen, kept[row, token])
    choice = torch.where(commits, token * sets.shape[2] + value, -1)
    return Round(committed, is_conflict, is_solved, kept, choice)


def _uniforms(tokens: int, values: int, key: NoiseKey) -> Tensor:
    """Numbers in (0, 1), one for every token and then one for every value, fp32 `[B, tokens + values]`."""
    count = tokens + values
    word = counter_word1(key.step, Site.COMMITMENT)
    bits = random_bits(-(-count // 4) * 4, key.seed, word, key.trajectory, key.puzzle_hash)
    return (bits[:, :count].to(torch.float32) + 0.5) * 2.0**-23
