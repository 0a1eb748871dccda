"""Selectors: which of a puzzle's candidates is the answer. None of them sees the verifier.

Shapes: `P` puzzles, `N` width, `A` answer tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.config import SELECTORS
from gram.tasks.protocol import Tokens


class Scores(NamedTuple):
    """What is known of every trajectory at its last step, `[P, N]` each."""

    votes: NDArray[np.int64]
    """Lineages of the puzzle that gave the same answer; 0 for a trajectory that does not count."""
    halt: NDArray[np.float32]
    lprm: NDArray[np.float32]
    residual: NDArray[np.float32]
    margin: NDArray[np.float32]
    steps: NDArray[np.int64]
    is_halted: NDArray[np.bool_]


def count_votes(
    canonical: Tokens, *, lineage: NDArray[np.int64] | None = None, widths: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """For each candidate `[P, N, A]`, how many lineages of its puzzle gave the same answer: `[P, N]`.

    `lineage [P, N]`: the trajectory that each descends from (None: itself), so that copies made by resampling count
    once. `widths [P]`: trajectories that count (None: all); the others get 0 votes.
    """
    votes = np.zeros(canonical.shape[:2], dtype=np.int64)
    for index, (row, candidates) in enumerate(zip(votes, canonical, strict=True)):
        count = len(row) if widths is None else int(widths[index])
        if not count:
            continue
        _, group = np.unique(candidates[:count], axis=0, return_inverse=True)
        group = group.reshape(-1)
        line = np.arange(count) if lineage is None else lineage[index, :count]
        pairs = np.unique(np.stack([group, line]), axis=1)
        row[:count] = np.bincount(pairs[0])[group]
    return votes


def select(selector: str, scores: Scores) -> NDArray[np.int64]:
    """Index of the selected trajectory of each puzzle, `[P]`.

    `vote`: an answer given most often. `lprm`: highest predicted final accuracy. `halt`: highest halt logit.
    `residual`: least movement in its last step (EqR). `margin`: largest mean distance between the two likeliest tokens.
    `first`: trajectory 0. `first-halt`: fewest steps to its halt (2601.19085). Ties go to the lowest trajectory, so a
    vote's pick is the first trajectory that gave one of the tied answers. An undefined score (NaN) ranks below every
    defined one; where all are undefined, trajectory 0 is picked. Raises `ValueError` for an unknown selector.
    """
    if selector not in SELECTORS:
        raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, got {selector!r}")
    values: dict[str, NDArray[Any]] = {
        "vote": scores.votes,
        "lprm": scores.lprm,
        "halt": scores.halt,
        "residual": -scores.residual,
        "margin": scores.margin,
        "first": np.zeros(scores.votes.shape),
        "first-halt": np.where(scores.is_halted, -scores.steps.astype(np.float64), -np.inf),
    }
    value = values[selector]
    # -inf is also a real value of first-halt: one step below it for NaN, and one more for those that do not count.
    defined = np.nan_to_num(value.astype(np.float64), nan=-1e301, neginf=-1e300)
    rank = np.where(scores.votes > 0, defined, -np.inf)
    return np.asarray(rank.argmax(axis=1) if rank.shape[1] else np.zeros(len(rank)), dtype=np.int64)
