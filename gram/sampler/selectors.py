"""Selectors: which of a puzzle's candidates is the answer. None of them sees the verifier.

Shapes: `P` puzzles, `N` width, `A` answer tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.tasks.protocol import Tokens


def count_votes(canonical: Tokens) -> NDArray[np.int64]:
    """For each candidate `[P, N, A]`, how many of its puzzle's candidates are the same answer: `[P, N]`."""
    votes = np.empty(canonical.shape[:2], dtype=np.int64)
    for row, candidates in zip(votes, canonical, strict=True):
        _, group, counts = np.unique(candidates, axis=0, return_inverse=True, return_counts=True)
        row[:] = counts[group.reshape(-1)]
    return votes


def select(
    selector: str, *, votes: NDArray[np.int64], halt: NDArray[np.float32], lprm: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Index of the selected trajectory of each puzzle, `[P]`; all arguments are `[P, N]`.

    `vote`: an answer given most often; `lprm`: highest predicted final accuracy; `halt`: highest halt logit; `first`:
    trajectory 0. Ties go to the lowest trajectory, so a vote's pick is the first trajectory that gave the answer.
    Raises `ValueError` for an unknown selector.
    """
    if selector == "first":
        return np.zeros(votes.shape[0], dtype=np.int64)
    scores: dict[str, NDArray[Any]] = {"vote": votes, "lprm": lprm, "halt": halt}
    if selector not in scores:
        raise ValueError(f"selector must be one of vote, lprm, halt, first, got {selector!r}")
    return np.asarray(scores[selector].argmax(axis=1), dtype=np.int64)
