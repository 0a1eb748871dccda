"""Sampling results made by hand, for tests of what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gram.config import ResolvedConfig
from gram.sampler.result import SampleResult
from gram.sampler.scheduler import ShardResult
from gram.sampler.selectors import answer_labels, count_votes, select
from gram.tasks.protocol import Task, Tokens


def hand_made(
    task: Task,
    puzzles: Tokens,
    candidates: Tokens,
    *,
    steps: Any = 4,
    halt: Any = 0.0,
    lprm: Any = 0.0,
    widths: Any = None,
    elapsed_s: float = 2.0,
    **settings: Any,
) -> SampleResult:
    """A result with these candidates `[P, N, A]`; scores `[P, N]` or one number for all."""
    shape = candidates.shape[:2]
    canonical = task.canonical(candidates.reshape(-1, candidates.shape[-1])).reshape(candidates.shape)
    width_of = np.full(shape[0], shape[1]) if widths is None else np.asarray(widths)
    votes = count_votes(answer_labels(canonical), widths=width_of)
    taken = np.broadcast_to(np.asarray(steps), shape).astype(np.int64)
    halts, lprms, nothing = (np.broadcast_to(np.float32(value), shape).copy() for value in (halt, lprm, 0.0))
    resolved = {"injector": "prior", "halt_threshold": 0.95, "transitions": 1, "low_level_updates": 2, "slots": 64}
    config = ResolvedConfig(
        **{
            "width": shape[1],
            "depth": 8,
            "launch": 64,
            "kernel": "eager",
            "selector": "vote",
            "views": "off",
            **resolved,
            **settings,
        }
    )
    found = ShardResult(
        puzzles=puzzles,
        candidates=candidates,
        steps=taken,
        halt=halts,
        lprm=lprms,
        residual=nothing,
        margin=nothing,
        is_halted=taken < 8,
        lineage=np.broadcast_to(np.arange(shape[1]), shape).copy(),
        widths=width_of,
    )
    return SampleResult(
        **found.arrays(),
        selected=select(config.selector, found.scores(votes)),
        votes=votes,
        config=config,
        elapsed_s=elapsed_s,
        steps_run=int(taken.sum()),
        device="cpu",
        dtype="float32",
        task=task,
    )
