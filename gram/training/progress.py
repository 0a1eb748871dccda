"""What a training run reports while it runs: lines of `log.jsonl`, the progress shown, scalars for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gram.formatting import plain


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """The figures of one optimiser step; also a line of `log.jsonl`."""

    step: int
    elapsed_s: float
    fraction: float
    """Part of the run done, in [0, 1]."""
    steps_per_s: float
    """Optimiser steps a second since the last line."""
    eta_s: float
    """Seconds left at this rate; `left_s` in `log.jsonl`."""
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
    """Share of prior rollouts' answers that are correct, on training puzzles."""
    keep: float = math.nan
    """Of a lattice: weighted cross-entropy of which values to keep, per value."""
    solved: float = math.nan
    """Of a lattice: states that the step solved rightly."""
    experts_dropped: float = math.nan
    """Of a model with routed experts: share of the tokens' choices that found an expert full."""
    flops: float = math.nan
    """Of continuous states: counted floating-point operations of the run so far, late starts included."""
    gradient_norm: float
    learning_rate: float
    kl_beta: float
    evaluation: dict[str, float] = field(default_factory=dict)
    """Prior rollouts on held-out puzzles with the averaged weights, and the bound `nelbo`, where this line has them."""

    def to_json(self) -> dict[str, Any]:
        """The line of `log.jsonl`."""
        line: dict[str, Any] = plain({"left_s" if key == "eta_s" else key: it for key, it in asdict(self).items()})
        return line

    def scalars(self) -> dict[str, float]:
        """Every finite figure by a name of its own."""
        values = {name: it for name, it in asdict(self).items() if isinstance(it, float)}
        values |= {f"kl_transitions/{index}": it for index, it in enumerate(self.kl_transitions)}
        values |= {f"evaluation/{name}": it for name, it in self.evaluation.items()}
        return {name: it for name, it in values.items() if math.isfinite(it)}


@contextmanager
def tensorboard(folder: Path, step: int) -> Iterator[Callable[[TrainProgress], None]]:
    """A function that writes a progress report's scalars into `folder` for TensorBoard.

    Scalars after `step`, which a killed run may have left, are dropped. Raises `ModuleNotFoundError` without the
    package `tensorboard`.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=step + 1) as writer:

        def write(progress: TrainProgress) -> None:
            for name, value in progress.scalars().items():
                writer.add_scalar(name, value, progress.step)
            writer.flush()

        yield write
