"""Training of a model that reads demonstrations: every grid of a task is predicted from those before it.

A task of `E` demonstrations and a test input is read once. The memory after 1, 2 .. `E` of them predicts the output of
the grid that comes next, so that one reading gives `E` examples, with every number of demonstrations. All supervision
steps of the examples are taken at once, a new task at each optimiser step: nothing is carried over. The heads learn
from the same states.

Shapes: `P` tasks, `E` demonstrations, `A` cells of a grid, `B = P E` examples, `D` channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from gram.config import SamplerConfig
from gram.demonstrations import Shown, describe, encode, mean_slots, to_write
from gram.kernels import memory
from gram.kernels.memory import Remembered
from gram.kernels.reference import decode, read_head, transition
from gram.sampler.run import sample
from gram.training.optimiser import learning_rate
from gram.training.trainer import Trainer


class StepLoss(NamedTuple):
    """Of one supervision step of the examples."""

    h: Tensor
    l: Tensor
    cross_entropy: Tensor
    """Mean over cells, nats."""
    halt: Tensor
    """The halt head's error."""
    lprm: Tensor
    """Predicted final accuracy, `[B]`."""
    is_right: Tensor
    """Whether every cell is right, `[B]` fp32."""


class DemonstrationTrainer(Trainer):
    """One run: its weights and folder. One process alone."""

    def _open(self, is_compiled: bool) -> None:
        if self.ranks.size > 1:
            raise ValueError(f"a memory of demonstrations must be trained by one process, got {self.ranks.size}")
        self.shown = max((self.task, *self.recipe.others), key=lambda task: task.demonstrations)
        """The task of most demonstrations: fewer are its beginnings."""
        compiled: Callable[..., Any] = (
            (lambda function: torch.compile(function, dynamic=False)) if is_compiled else (lambda function: function)
        )
        self._read = compiled(self._read_of_flat)
        self._think = compiled(self._think_of_flat)

    def _parts(self) -> dict[str, Any]:
        return {}

    def _read_of_flat(self, flat: Tensor, canvases: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Features and keys of all inputs `[P, E + 1, A, ...]`, and what their memory is written with."""
        weights, config = self.flat.views(flat), self.recipe.model
        features, keys = describe(weights, config, canvases[:, 0::2])
        shown = Shown(features[:, :-1], keys[:, :-1], canvases[:, 0:-2:2], canvases[:, 1:-2:2])
        make = mean_slots if config.memory == "mean" else to_write
        return features, keys, make(weights, config, shown)

    def _embed(self, flat: Tensor, canvases: Tensor) -> Tensor:
        """`e_x` of all examples `[B, A, D + ...]`."""
        config = self.recipe.model
        if config.memory == "none":
            return encode(self.flat.views(flat), config, canvases[:, 2::2]).flatten(0, 1)
        features, keys, written = self._read(flat, canvases)
        if config.memory != "mean":
            # Step by step outside the compiled parts: a compiler would unroll every chunk.
            start = self.flat.views(flat)["memory.start"].to(torch.float32)
            every = config.output_tokens // config.memory_chunk
            written = memory.write(start, *written, kind=config.memory, every=every)
        remembered = Remembered(written.flatten(0, 1), keys[:, 1:].flatten(0, 1))
        return torch.cat([features[:, 1:].flatten(0, 1), memory.fold(remembered, config.spec)], -1)

    def _think_of_flat(self, flat: Tensor, h: Tensor, l: Tensor, e_x: Tensor, targets: Tensor) -> StepLoss:
        """One supervision step."""
        weights, config = self.flat.views(flat), self.recipe.model
        for _ in range(config.transitions):
            h, l = transition(weights, config, h, l, e_x, None)
        logits = decode(weights, config, h)
        error = cross_entropy(logits.flatten(0, 1), targets.flatten())
        is_right = (logits.argmax(-1) == targets).all(1).to(torch.float32)
        seen = h.detach()
        halt = binary_cross_entropy_with_logits(read_head(weights, "halt", seen, config), is_right)
        return StepLoss(h, l, error, halt, read_head(weights, "lprm", seen, config), is_right)

    def advance(self) -> dict[str, Any]:
        """One optimiser step; returns the figures of `TrainProgress` that it made."""
        config, training = self.recipe.model, self.training
        rng = np.random.default_rng([training.seed, self.step])
        puzzles, answers = self.shown.training_batch(rng, training.batch, split=training.split)
        whole = np.concatenate([puzzles, answers], 1).astype(np.int64)
        canvases = torch.from_numpy(whole).to(self.device).unflatten(1, (-1, config.output_tokens))
        flat = self.flat.compute
        e_x = self._embed(flat, canvases)
        targets = canvases[:, 3::2].flatten(0, 1)
        h, l = (self.flat.buffers[name].expand(*e_x.shape[:2], -1) for name in ("z0_h", "z0_l"))
        steps = []
        for _ in range(config.depth):
            steps.append(self._think(flat, h.detach(), l.detach(), e_x, targets))
            h, l = steps[-1].h, steps[-1].l
        last = steps[-1]
        error = torch.stack([step.cross_entropy for step in steps]).mean()
        heads = torch.stack([step.halt + (step.lprm - last.is_right).square().mean() for step in steps]).mean()
        (error + heads).backward()
        rate = learning_rate(training, self.step, self.fraction)
        norm = self.flat.update(rate, self.fraction_after)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm must be finite, got {norm} at optimiser step {self.step}")
        self.step += 1
        return {
            "cross_entropy": float(last.cross_entropy.detach()),
            "kl": math.nan,
            "kl_first": math.nan,
            "kl_transitions": [],
            "exact": float(last.is_right.mean()),
            "heads": float(heads.detach()),
            "rollout_right": float(last.is_right.mean()),
            "gradient_norm": norm,
            "learning_rate": rate,
            "kl_beta": math.nan,
        }

    def evaluate(self) -> dict[str, float]:
        """Accuracy of one trajectory on held-out rules."""
        held_out = self.puzzles.held_out
        assert held_out.answers is not None
        config = SamplerConfig(width=1, halting="fixed", seed=self.training.seed)
        found = sample(self.averaged(), self.task, held_out.puzzles, config).candidates[:, 0]
        return {"single_accuracy": float((found == held_out.answers).all(1).mean())}
