"""What a training run costs before it starts: operations counted from shapes, and hours on a named GPU.

Counts, not measurements: matrix products of forward and backward passes; normalisation, activations, noise and the
optimiser are left out. The rate is what large bf16 products reach on the GPU; `UTILISATION` is an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gram.kernels import dispatch, lookup
from gram.model import OPINIONS, Model
from gram.training.recipe import Recipe
from gram.training.starts import mean_late_steps

GPU = "NVIDIA H100 SXM"
GPU_FLOPS = 790e12
"""bf16 matrix products a second, as measured on one."""
UTILISATION = 0.3
"""Assumed share of that rate which training reaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """Counted cost of one recipe."""

    parameters: int
    step_flops: float
    """Floating-point operations of one optimiser step, all ranks together."""
    identities: int
    """Rows of the table of task embeddings, which are no parameters here: a step reads those of its batch alone."""
    identity_dim: int
    """Numbers of a row; 0 without a table."""
    steps: int | None
    """Optimiser steps of the run; None where its length is given in minutes alone."""
    late_flops: float = 0.0
    """The part of `step_flops` that late starts take in the mean: they draw how many slots and steps."""
    row_flops: float = 0.0
    """Operations of one supervision step of one trajectory of continuous states without gradient."""

    @property
    def flops(self) -> float | None:
        """Of the whole run."""
        return None if self.steps is None else self.step_flops * self.steps

    @property
    def gpu_hours(self) -> float | None:
        """On one `GPU` at the assumed utilisation."""
        return None if self.flops is None else self.flops / (GPU_FLOPS * UTILISATION * 3600)

    def sentence(self) -> str:
        """The cost in one line."""
        each = f"{self.parameters:,} parameters{self._table()}, "
        each += f"{self.step_flops:.2g} floating-point operations an optimiser step"
        if self.late_flops:
            each += f" ({100 * self.late_flops / self.step_flops:.0f} % of them late starts)"
        if self.flops is None or self.gpu_hours is None:
            return f"cost: {each} (counted)"
        rate = f"{100 * UTILISATION:.0f} % of {GPU_FLOPS / 1e12:.0f} TFLOP/s"
        hours = f"about {self.gpu_hours:.3g} hours" if self.gpu_hours >= 0.1 else "less than 0.1 hours"
        hours += f" on one {GPU} at {rate}"
        return f"cost: {each}, {self.flops:.2g} in {self.steps:,} steps; {hours} (counted, not measured)"

    def _table(self) -> str:
        """What the table of identities adds, in memory and in each of a checkpoint's states."""
        if not self.identity_dim:
            return ""
        if not self.identities:
            return f" and {self.identity_dim} numbers for each identity of its data set"
        size = 4 * self.identities * self.identity_dim
        return f" and a table of {self.identities:,} identities x {self.identity_dim} numbers ({size / 1e9:.3g} GB)"


def cost_of(recipe: Recipe) -> TrainingCost:
    """Counts a recipe's cost. A backward pass counts as two forward ones."""
    config, training = recipe.model, recipe.training
    with torch.device("meta"):  # shapes alone: a table of identities may fill gigabytes
        model = Model(config)
    weights, spec = model.weights(), model.spec
    turns, length = spec.transitions, spec.length
    transition = dispatch.step_flops(weights, spec) / turns
    if spec.lookup:
        transition += 2 * lookup.puzzle_macs(spec)  # training looks up anew in every transition
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if config.latent == "lattice":
        # Each loop with a gradient is asked for its opinion; the round takes the last one's.
        read = (
            2 * length * config.dim * (OPINIONS * (len(config.values) if config.notes else 1) + 2 * config.head_hidden)
        )
        loops = training.loops_with_gradient(turns)
        beside = (turns - loops) / 2 + (turns if training.play_averaged else (turns - loops) / 2)
        row = 3 * loops * (transition + read) + beside * transition
        return TrainingCost(
            parameters=parameters,
            identities=0,
            identity_dim=0,
            step_flops=training.batch * row,
            steps=training.steps,
        )
    posterior = sum(2 * tensor.numel() * length for name, tensor in weights.items() if name.startswith("posterior"))
    decoding = 2 * config.output_tokens * config.vocabulary * config.dim
    led = posterior if training.has_posterior else 0
    # A transition with a KL reads both Gaussians once more, at the detached state.
    steps = training.gradient_steps
    charged = turns if steps > 1 else 1
    learned = charged * (transition + 2 * led) + decoding
    step = steps * training.batch * 3 * learned + training.rows * (turns - charged) * (transition + led)
    if not training.has_posterior:
        step += training.rows * (transition + decoding)
    step += training.rollout_slots * (turns * transition + decoding)
    late = training.rows * steps / config.depth * mean_late_steps(training) * turns * transition
    return TrainingCost(
        parameters=parameters,
        identities=config.identities,
        identity_dim=config.identity_dim,
        step_flops=step + late,
        steps=training.steps,
        late_flops=late,
        row_flops=turns * transition,
    )
