"""Training of a lattice: gradient through all loops of one round, on states that the rounds themselves lead to.

An optimiser step takes the core's opinion on every state of the pool, learns from it, and advances the state by a round
with that same opinion (after LDT, 2605.08605).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram.config import ModelConfig, SamplerConfig
from gram.kernels.reference import core, read_head
from gram.model import embed_sets, over_symbols, read_values
from gram.sampler.lattice import Opinion, play_round, rules_of
from gram.sampler.run import sample
from gram.training.lanes import LatticeLane, open_lattice_lanes
from gram.training.lattice_loss import Losses, loop
from gram.training.lattice_pool import LatticePool, States
from gram.training.optimiser import learning_rate
from gram.training.trainer import Trainer

EVALUATED_ROUNDS = 48


class LatticeTrainer(Trainer):
    """One run: its weights, pool and folder. One process alone."""

    def _open(self, is_compiled: bool) -> None:
        if self.ranks.size > 1:
            raise ValueError(f"a lattice must be trained by one process, got {self.ranks.size}")
        self.training.check_rows_at_once()
        self.loops = self.training.loops_with_gradient(self.recipe.model.transitions)
        self.lattice_lanes = open_lattice_lanes(self.recipe, self.puzzles, self.device)
        self.played = [0.0, 0.0]
        self._loop: Callable[..., Any] = self._loop_of_master
        self._ahead: Callable[..., Any] = self._loop_ahead
        if is_compiled:
            self._loop = torch.compile(self._loop_of_master, dynamic=False)
            self._ahead = torch.compile(self._loop_ahead, dynamic=False)

    @property
    def pool(self) -> LatticePool:
        """The states of the recipe's own task."""
        return self.lattice_lanes[0].pool

    def _parts(self) -> dict[str, Any]:
        return {f"pool{number or ''}": lane.pool for number, lane in enumerate(self.lattice_lanes)}

    def _weights(self, master: Tensor) -> dict[str, Tensor]:
        # Converted in here, so that gradients of all loops and rows are summed in fp32.
        return self.flat.views(master.to(self.dtype))

    def _loop_of_master(
        self, master: Tensor, config: ModelConfig, h: Tensor, shown: Tensor, states: States
    ) -> tuple[Tensor, Losses]:
        by_share = self.training.value_target == "share"
        return loop(self._weights(master), config, h, shown, states, by_share=by_share)

    def _loop_ahead(self, flat: Tensor, config: ModelConfig, h: Tensor, shown: Tensor) -> Tensor:
        return core(self._weights(flat), "low", h + shown, config.spec)

    def advance(self) -> dict[str, Any]:
        """One optimiser step; returns the figures of `TrainProgress` that it made."""
        training = self.training
        lane = self.lattice_lanes[self.step % len(self.lattice_lanes)]
        config, pool = lane.config, lane.pool
        pool.refill(np.random.default_rng([training.seed, self.step]))
        states = pool.view()
        self.flat.master.grad = None
        total, ends = torch.zeros(3, device=self.device), []
        player = self.flat.average if training.play_averaged else self.flat.master
        for number, first in enumerate(range(0, training.batch, training.rows_at_once)):
            part = States(*(each[first : first + training.rows_at_once] for each in states))
            before = (self.step + number) * self.loops % config.transitions
            h, losses = self._loss_of(config, part, before)
            total += losses
            if training.play_averaged:
                h = self._played(player, config, part, config.transitions)
            elif before + self.loops < config.transitions:
                h = self._played(player, config, part, config.transitions - before - self.loops, h)
            ends.append(h)
        with torch.no_grad():
            weights = self._weights(player)
            h = torch.cat(ends)
            keep, value = (over_symbols(config, part) for part in read_values(weights, config, h))
            opinion = Opinion(keep, value, read_head(weights, "halt", h, config.spec))
            rules = rules_of(config)
            sets = torch.from_numpy(pool.sets).to(self.device)
            played = play_round(
                sets, states.given, opinion, rules, pool.key(), None, torch.from_numpy(pool.first).to(self.device)
            )
        rate = learning_rate(training, self.step, self.fraction)
        norm = self.flat.update(rate, self.fraction_after)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm must be finite, got {norm} at optimiser step {self.step}")
        counts = pool.carry(played, np.random.default_rng([training.seed, self.step, 1]))
        self.step += 1
        self.played = [0.95 * old + new for old, new in zip(self.played, counts, strict=True)]
        right, wrong = self.played
        keep_error, value_error, sound_error = (total / training.batch).tolist()
        return {
            "cross_entropy": value_error,
            "kl": math.nan,
            "kl_first": math.nan,
            "kl_transitions": [],
            "exact": float(states.is_lost.float().mean()),
            "heads": sound_error,
            "keep": keep_error,
            "solved": counts[0],
            "rollout_right": right / (right + wrong) if right + wrong else math.nan,
            "gradient_norm": norm,
            "learning_rate": rate,
            "kl_beta": math.nan,
        }

    def evaluate(self) -> dict[str, float]:
        """Share of held-out puzzles that one trajectory solves within `EVALUATED_ROUNDS`, and solves wrongly; of
        several tasks as `Trainer.evaluate` has them."""
        return self._of_lanes([(lane.task.name, self._evaluate_lane(lane)) for lane in self.lattice_lanes])

    def _evaluate_lane(self, lane: LatticeLane) -> dict[str, float]:
        depth = lane.config.depth if lane.config.notes else EVALUATED_ROUNDS
        config = SamplerConfig(width=1, depth=depth, seed=self.training.seed)
        held_out = lane.puzzles.held_out
        result = sample(self.averaged(lane.config), lane.task, held_out.puzzles, config)
        is_right = lane.task.verify(held_out.puzzles, result.candidates[:, 0])
        is_wrong = result.is_halted[:, 0] & ~is_right
        return {"single_accuracy": float(is_right.mean()), "wrongly_solved": float(is_wrong.mean())}

    @torch.no_grad()
    def _played(
        self, player: Tensor, config: ModelConfig, states: States, loops: int, start: Tensor | None = None
    ) -> Tensor:
        """The core's state of some states after `loops` by the weights `player`, from `start` (None: `z0`)."""
        shown = embed_sets(self._weights(player), config, states.puzzles, states.sets)
        h = self.flat.buffers["z0_h"].expand_as(shown) if start is None else start
        for _ in range(loops):
            h = self._ahead(player, config, h, shown)
        return h

    def _loss_of(self, config: ModelConfig, states: States, before: int) -> tuple[Tensor, Tensor]:
        """Adds the gradient of some states to the master's, of the loops after `before`; returns the core's state after
        them and their summed losses."""
        master = self.flat.master
        h = self._played(master, config, states, before)
        shown = embed_sets(self._weights(master), config, states.puzzles, states.sets)
        sums = []
        for _ in range(self.loops):
            h, losses = self._loop(master, config, h, shown, states)
            sums.append(torch.stack(losses))
        mean = torch.stack(sums).mean(0)
        weighted = mean[0] + mean[1] + self.training.judge_weight * mean[2]
        (weighted / self.training.batch).backward()
        return h.detach(), mean.detach()
