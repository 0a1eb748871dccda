"""What a training run tells while it runs: a line of `log.jsonl`, and what the command line shows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """What a run tells while it runs; also a line of `log.jsonl`."""

    step: int
    elapsed_s: float
    fraction: float
    """Part of the run done, in [0, 1]."""
    steps_per_s: float
    """Optimiser steps a second since the last line."""
    left_s: float
    """Seconds left at this rate."""
    cross_entropy: float
    kl: float
    """KL per token of the last transition, the one that the loss charges, nats."""
    kl_transitions: list[float]
    """The same of every transition of a supervision step, first to last, at this step; empty without a posterior."""
    kl_first: float
    """KL per token at the first noisy step, nats, summed over its transitions, mean over the steps since the last line
    that measured it: the figure to watch."""
    diagnosis: str
    """`leaking`, `healthy`, `collapsed`, `failing` (prior rollouts wrong), or `undefined` without guidance."""
    exact: float
    """Share of slots that decode their target under the posterior: not accuracy."""
    heads: float
    rollout_right: float
    """Share of prior rollouts' answers that are right, on training puzzles."""
    gradient_norm: float
    learning_rate: float
    kl_beta: float
    evaluation: dict[str, float] = field(default_factory=dict)
    """Prior rollouts on held-out puzzles with the averaged weights, and the bound `nelbo`, where this line has them."""
