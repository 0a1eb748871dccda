"""Slots of a model that reads demonstrations: each task's memory is made once, and all its trajectories share it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from gram.config import ResolvedConfig
from gram.model import Model
from gram.sampler.engine import SlotStates
from gram.tasks.protocol import Task

MOST_KEPT = 4096
"""Tasks whose memories are kept, tens of kilobytes each; of more, the oldest are made anew when they are needed."""


class DemonstrationSlots(SlotStates):
    """Slots with the embeddings of the tasks that the run has met, the memories behind them."""

    def __init__(self, model: Model, config: ResolvedConfig, *, task: Task, is_unconditional: bool) -> None:
        super().__init__(model, config, task=task, is_unconditional=is_unconditional)
        self.kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def _embedded(self, tokens: Tensor, identities: Tensor | None) -> Tensor:
        return torch.stack([self._of_task(puzzle) for puzzle in tokens])

    def _of_task(self, puzzle: Tensor) -> Tensor:
        key = puzzle.to(torch.uint8).cpu().numpy().tobytes()
        if key not in self.kept:
            # Alone, so that its rounding does not depend on which tasks begin beside it.
            self.kept[key] = self.model.embed(puzzle[None])[0]
            if len(self.kept) > MOST_KEPT:
                self.kept.popitem(last=False)
        return self.kept[key]
