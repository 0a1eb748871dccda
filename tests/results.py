"""Sampling results made by hand, for tests of what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gram.config import SamplerConfig
from gram.sampler.result import SampleResult
from gram.sampler.selectors import Scores, count_votes, select
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
    votes = count_votes(canonical, widths=width_of)
    taken = np.broadcast_to(np.asarray(steps), shape).astype(np.int64)
    halts, lprms, nothing = (np.broadcast_to(np.float32(value), shape).copy() for value in (halt, lprm, 0.0))
    is_halted = taken < 8
    scores = Scores(votes, halts, lprms, nothing, nothing, taken, is_halted)
    config = SamplerConfig(
        **{"width": shape[1], "depth": 8, "launch": 64, "kernel": "eager", "selector": "vote", **settings}
    )
    return SampleResult(
        puzzles=puzzles,
        candidates=candidates,
        steps=taken,
        halt=halts,
        lprm=lprms,
        residual=nothing,
        margin=nothing,
        is_halted=is_halted,
        lineage=np.broadcast_to(np.arange(shape[1]), shape).copy(),
        widths=width_of,
        selected=select(config.selector or "vote", scores),
        votes=votes,
        config=config,
        elapsed_s=elapsed_s,
        steps_run=int(taken.sum()),
        kernel="eager",
        device="cpu",
        dtype="float32",
    )
