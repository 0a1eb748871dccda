"""Votes and selectors: which of a puzzle's candidates is the answer. None of them sees the verifier.

The sampler selects with these functions, and so does a frontier (`gram/evals/frontier/grid.py`).

Shapes: `P` puzzles, `N` width, `A` answer tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.config import SELECTORS
from gram.tasks.protocol import Tokens

RECORDED = tuple(each for each in SELECTORS if each != "sparsity")
"""Selectors of what every run records; `sparsity` needs one that measures it."""
MOST_BINS_A_VOTE = 8
"""Votes are counted in one bin for each possible answer, unless these outnumber the votes so many times."""


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
    sparsity: NDArray[np.float32] | None = None
    """None where it was not measured."""


def answer_labels(canonical: Tokens) -> NDArray[np.int64]:
    """Numbers that are equal exactly where candidates `[P, N, A]` of one puzzle are: `[P, N]`."""
    labels = np.zeros(canonical.shape[:2], dtype=np.int64)
    for row, candidates in zip(labels, canonical, strict=True):
        row[:] = np.unique(candidates, axis=0, return_inverse=True)[1].reshape(-1) if len(candidates) else 0
    return labels


def count_votes(
    labels: NDArray[np.integer[Any]],
    *,
    lineage: NDArray[np.int64] | None = None,
    widths: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """For each trajectory `[P, N]`, how many lineages of its puzzle gave the same answer: `[P, N]`.

    The count behind the majority vote (self-consistency, 2203.11171). `labels [P, N]` name the answers, at least 0
    (`answer_labels`). `lineage [P, N]` is the trajectory that each descends from (None: itself), so that copies made by
    resampling count once. `widths [P]` are the trajectories that count (None: all); the others get 0 votes.
    """
    count, width = labels.shape
    span = int(labels.max(initial=0)) + 1
    group = labels + np.arange(count)[:, None] * span
    if count * span > MOST_BINS_A_VOTE * labels.size:
        group = np.unique(group, return_inverse=True)[1].reshape(labels.shape)
    counts = np.ones(labels.shape, bool) if widths is None else np.arange(width) < widths[:, None]
    is_voter = counts
    if lineage is not None:
        # A lineage votes once for an answer: by the first of its trajectories that gave it.
        ballots = np.where(counts, group * width + lineage, -1)
        is_voter = np.zeros(labels.size, bool)
        is_voter[np.unique(ballots, return_index=True)[1]] = True
        is_voter = is_voter.reshape(labels.shape) & counts
    votes = np.bincount(group[is_voter], minlength=int(group.max(initial=0)) + 1)[group]
    return np.where(counts, votes, 0)


def rank(selector: str, scores: Scores) -> NDArray[Any]:
    """What a selector looks for the largest of, for each trajectory `[P, N]`. It does not ask which ones count.

    `vote`: answers given most often (majority vote, self-consistency). `lprm`: highest predicted final accuracy.
    `halt`: highest halt logit. `residual`: least movement in its last step (EqR). `margin`: largest mean distance
    between the two likeliest tokens. `first`: trajectory 0. `first-halt`: fewest steps to its halt (2601.19085).
    `sparsity`: the least sparse `h`, since wrong states are sparser (after 2603.03415). An undefined score (NaN) ranks
    below every defined one. Raises `ValueError` for an unknown selector, or for one whose score was not measured.
    """
    if selector not in SELECTORS:
        raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, got {selector!r}")
    if selector == "vote":
        return scores.votes
    if selector == "first":
        return np.zeros(scores.steps.shape)
    if selector == "first-halt":
        value: NDArray[Any] = np.where(scores.is_halted, -scores.steps.astype(np.float64), -np.inf)
    else:
        value = getattr(scores, selector)
        if value is None:
            raise ValueError(f"selector {selector} must have a run with measures_sparsity, got one without")
        value = -value if selector in ("residual", "sparsity") else value
    # -inf is also a real value of first-halt: one step below it for NaN.
    is_plain = np.isfinite(value).all()
    return value if is_plain else np.nan_to_num(value.astype(np.float64), nan=-1e301, neginf=-1e300)


def select(selector: str, scores: Scores) -> NDArray[np.int64]:
    """Index of the selected trajectory of each puzzle, `[P]`: the one of highest `rank` among those that count.

    Ties go to the lowest trajectory, so the majority vote picks the first that gave one of the tied answers. Where all
    scores are undefined, trajectory 0 is picked. Raises `ValueError` for an unknown selector.
    """
    ranks = np.where(scores.votes > 0, rank(selector, scores).astype(np.float64), -np.inf)
    return np.asarray(ranks.argmax(axis=1) if ranks.shape[1] else np.zeros(len(ranks)), dtype=np.int64)
