"""Slots whose latent states are lattices: a supervision step is one round (`gram/sampler/lattice.py`).

The core starts every round from `z0` and sees the state alone: nothing but the sets of values is carried. With a warm
start (`is_warm_started`) it goes on from its state of the round before, too, except after a conflict and to judge an
answer. A trajectory in conflict goes on from its puzzle, in its next life, or from before its last commitment. Its halt
logit is that of a solution being left where every token has one value, and `UNSOLVED` elsewhere, so that the rule
`head` halts it when it is solved.

Shapes: `S` slots, `k` some slots, `A` answer tokens, `V` symbols, `v` of them values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gram.config import ResolvedConfig
from gram.kernels.philox import NoiseKey
from gram.model import Model, embed_sets, over_symbols, read_values
from gram.sampler.backtracking import Trail, begin, follow
from gram.sampler.engine import SlotStates
from gram.sampler.lattice import Opinion, play_round, rules_of
from gram.sizes import notes_of
from gram.tasks.protocol import Task

UNSOLVED = -20.0
"""Halt logit of a trajectory that is not solved."""


class LatticeSlots(SlotStates):
    """Sets of possible values, their puzzles, views and counters."""

    latent = "lattice"

    def __init__(self, model: Model, config: ResolvedConfig, *, task: Task, is_unconditional: bool) -> None:
        super().__init__(model, config, task=task, is_unconditional=is_unconditional)
        own, rows, device = model.config, self.rows, model.device
        self.values = list(own.values)
        self.notes = notes_of(task) if own.notes else None
        self.writer = self.notes or task
        # Other rules' thresholds are no probabilities.
        accepted = config.halt_threshold if config.halting == "head" else None
        self.rules = rules_of(own, config.temperature, accepted)
        shape = (rows, own.output_tokens, own.symbols)
        self.puzzles = torch.ones(rows, own.tokens, dtype=torch.int64, device=device)
        self.first = torch.zeros(shape, dtype=torch.bool, device=device)
        """What each puzzle leaves possible: where every life begins."""
        self.sets = torch.zeros_like(self.first)
        self.trail = begin(self.first) if own.search == "backtrack" else None
        self.is_cold = torch.ones(rows, dtype=torch.bool, device=device)
        """Whether the next round starts from `z0`."""

    def _start(self, index: Tensor, tokens: Tensor, identities: Tensor | None, names: Tensor) -> None:
        """New trajectories begin at their puzzles."""
        self.puzzles[index] = tokens
        candidates = self.writer.candidates(tokens.to(torch.uint8).cpu().numpy())
        self.first[index] = torch.from_numpy(candidates).to(self.h.device)
        self.sets[index] = self.first[index]
        self.is_cold[index] = True
        self.h[index] = 0  # what stood there is another trajectory's, and the first residual would show it
        if self.trail is not None:
            for tensor, anew in zip(self.trail, begin(self.first[index]), strict=True):
                tensor[index] = anew

    def _of_trajectories(self) -> tuple[Tensor, ...]:
        return self.h, self.puzzles, self.first, self.sets, self.is_cold, *(self.trail or ())

    def _advance_launch(self, number: int, cut: int | None) -> tuple[Tensor, Tensor]:
        """One round of a launch, or of its first `cut` rows."""
        first = number * self.launch
        rows = slice(first, first + (cut or self.launch))
        sets = self.sets[rows]
        shown = embed_sets(self.weights, self.model.config, self.puzzles[rows], sets[..., self.values])
        start = self.model.initial_state(len(sets))[0]
        if self.config.is_warm_started:
            start = torch.where(self.is_cold[rows, None, None], start, self.h[rows])
        key = NoiseKey(self.config.seed, *self.device_names[:, rows])
        after = self.model.step(
            start.contiguous(),
            shown,
            self.e_x[rows],
            key,
            spec=self.spec,
            kernel=self.config.kernel,
            weights=self.weights,
        )
        opinion = Opinion(*self._opinions(after.h), after.halt)
        trail = None if self.trail is None else Trail(*(part[rows] for part in self.trail))
        belief = None if trail is None else trail.belief
        played = play_round(sets, self.first[rows].sum(-1) == 1, opinion, self.rules, key, belief, self.first[rows])
        if trail is None or self.trail is None:
            self.sets[rows] = torch.where(played.is_conflict[:, None, None], self.first[rows], played.sets)
        else:
            after_round = follow(trail, self.first[rows], played)
            for tensor, part in zip(self.trail, after_round, strict=True):
                tensor[rows] = part
            self.sets[rows] = after_round.sets
        # After a conflict the core's state is of values since given back. An answer is judged from `z0`, so that the
        # verdict is on it alone and stays the same.
        self.is_cold[rows] = played.is_conflict | (self.sets[rows].sum(-1) == 1).all(-1)
        self.h_before[rows] = after.h
        return torch.where(played.is_solved, after.halt, UNSOLVED), after.lprm

    def _opinions(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of keeping and of being the value, of all symbols, `[k, A, V]`: -inf of those that are no values."""
        own = self.model.config
        keep, value = read_values(self.weights, own, h)
        return over_symbols(own, keep), over_symbols(own, value)

    def _decoded(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Tokens that states would answer, `[k, A]`: the likeliest value left; and its lead in probability, `[k]`."""
        logits = self._opinions(self.h[index])[1].masked_fill(~self.sets[index], -torch.inf)
        # A token that the puzzle decides may be no value: its one symbol is likeliest all the same.
        logits = torch.where(self.sets[index] & logits.isinf(), 0.0, logits)
        likeliest = logits.softmax(-1).topk(2, dim=-1).values
        symbols = logits.argmax(-1)
        if self.notes is not None:
            symbols = torch.from_numpy(self.notes.plain).to(symbols)[symbols]
        return symbols, (likeliest[..., 0] - likeliest[..., 1]).mean(1)
