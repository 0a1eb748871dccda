"""Figures of merit from counts and scores. Not intervals or tests (`statistics.py`), not tasks (`evaluate.py`).

Shapes: `P` puzzles, `N` width, `S` valid solutions of a puzzle, `k` samples looked at. An undefined figure is NaN,
never a made-up 0 or 1, and means leave it out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Auroc(NamedTuple):
    """Area under the ROC curve, taken inside each puzzle."""

    pooled: float
    """Over all (right, wrong) pairs of all puzzles; NaN where no puzzle has both."""
    puzzles: int
    """How many puzzles have both."""


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Floats:
    """Probability that `k` of `n` samples, drawn without replacement, hold one of the `c` right ones.

    The unbiased estimator `1 - C(n - c, k) / C(n, k)` of 2107.03374 (equation 1). Arguments broadcast. NaN where
    `k > n` or `n` is 0. Raises `ValueError` unless `0 <= c <= n` and `k >= 1`.
    """
    samples, right, drawn = np.broadcast_arrays(*(np.asarray(value, dtype=np.int64) for value in (n, c, k)))
    if (drawn < 1).any():
        raise ValueError(f"k must be at least 1, got {drawn.min()}")
    if (right < 0).any() or (right > samples).any():
        worst = np.argmax((right < 0) | (right > samples))
        raise ValueError(f"c must be within 0 and n={samples.flat[worst]}, got {right.flat[worst]}")
    logs = np.log(np.arange(1, samples.max(initial=1) + 1))
    log_factorial = np.concatenate([[0.0], np.cumsum(logs)])
    is_defined, is_sure = drawn <= samples, samples - right < drawn
    is_open = is_defined & ~is_sure
    wrong, all_, few = (np.where(is_open, value, 0) for value in (samples - right, samples, drawn))
    # Log of C(n - c, k) / C(n, k); bracketed so that it is exactly 0 where nothing is right.
    log_missed = (log_factorial[wrong] - log_factorial[wrong - few]) - (log_factorial[all_] - log_factorial[all_ - few])
    found: Floats = np.where(is_sure, 1.0, -np.expm1(log_missed))
    found[~is_defined] = np.nan
    return found


def coverage_at_k(counts: ArrayLike, n: ArrayLike, all_solutions: ArrayLike, k: ArrayLike) -> Floats:
    """Expected share of a puzzle's valid solutions among `k` of its `n` samples, drawn without replacement.

    `counts` `[..., S']`: how many samples gave each distinct valid solution (zeros, such as padding, add nothing);
    `n`, `all_solutions` and `k` broadcast against its leading axes, which the result has. Each solution is found with
    the probability of `pass_at_k`, so at `k = n` this is found / all. NaN where `k > n`, `n` is 0 or there is no
    solution. Raises `ValueError` where more solutions are found than exist.
    """
    each = np.asarray(counts, dtype=np.int64)
    samples, drawn = (np.asarray(value, dtype=np.int64)[..., None] for value in (n, k))
    exist = np.asarray(all_solutions, dtype=np.float64)
    distinct = (each > 0).sum(axis=-1)
    if (distinct > exist).any():
        most = np.broadcast_to(exist, np.broadcast_shapes(exist.shape, distinct.shape))[distinct > exist].flat[0]
        raise ValueError(f"distinct valid solutions must be at most all solutions ({most:g}), got {distinct.max()}")
    if each.shape[-1] == 0:
        each = np.zeros((*each.shape[:-1], 1), dtype=np.int64)
    found = pass_at_k(samples, each, drawn).sum(axis=-1)
    coverage: Floats = np.divide(found, exist, out=np.full(np.broadcast(found, exist).shape, np.nan), where=exist > 0)
    return coverage


def uniform_ceiling(all_solutions: ArrayLike, k: ArrayLike) -> Floats:
    """Expected coverage of a sampler that draws `k` valid solutions uniformly: `1 - (1 - 1/S)^k` of each puzzle.

    The ceiling that a sampler without memory of its draws is measured against. NaN where a puzzle has no solution.
    Raises `ValueError` for `k` below 1.
    """
    exist, drawn = np.asarray(all_solutions, dtype=np.float64), np.asarray(k, dtype=np.float64)
    if (drawn < 1).any():
        raise ValueError(f"k must be at least 1, got {drawn.min():g}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ceiling: Floats = -np.expm1(drawn * np.log1p(-1 / np.where(exist >= 1, exist, np.nan)))
    return ceiling


def pooled(coverage: ArrayLike, all_solutions: ArrayLike) -> float:
    """Solutions found / solutions that exist, both summed over puzzles `[P]`, from each puzzle's (expected) coverage.

    Puzzles with undefined coverage are left out of both sums; NaN where none is left.
    """
    share, exist = np.asarray(coverage, dtype=np.float64), np.asarray(all_solutions, dtype=np.float64)
    is_defined = ~np.isnan(share)
    total = exist[is_defined].sum()
    return float((share * exist)[is_defined].sum() / total) if total > 0 else float("nan")


def mean_defined(values: ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN where none is."""
    array = np.asarray(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if defined.size else float("nan")


def within_puzzle_auroc(scores: ArrayLike, right: ArrayLike) -> Auroc:
    """How well `scores` `[P, N]` rank the `right` trajectories `[P, N]` of a puzzle above its wrong ones.

    Probability that a right one scores higher than a wrong one of the same puzzle, ties counting half (the
    Mann-Whitney statistic), so that easy puzzles scoring high earn nothing. A NaN score is a trajectory that is not
    there. Raises `ValueError` for arguments of different shape.
    """
    score, is_right = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    if score.shape != is_right.shape or score.ndim != 2:
        raise ValueError(f"scores must have the shape [P, N] of right {is_right.shape}, got {score.shape}")
    puzzle, trajectory = np.nonzero(~np.isnan(score))
    order = np.lexsort((score[puzzle, trajectory], puzzle))
    puzzle, trajectory = puzzle[order], trajectory[order]
    value, is_good = score[puzzle, trajectory], is_right[puzzle, trajectory]
    # A tie is a run of equal scores of one puzzle, in rising order.
    is_first = np.ones(value.size, dtype=bool)
    is_first[1:] = (value[1:] != value[:-1]) | (puzzle[1:] != puzzle[:-1])
    tie, owner = np.cumsum(is_first) - 1, puzzle[is_first]
    good, bad = np.bincount(tie, weights=is_good), np.bincount(tie, weights=~is_good)
    all_good, all_bad = (np.bincount(owner, weights=each, minlength=len(score)) for each in (good, bad))
    below = np.cumsum(bad) - bad - (np.cumsum(all_bad) - all_bad)[owner]
    wins = np.bincount(owner, weights=good * (below + bad / 2), minlength=len(score))
    pairs = all_good * all_bad
    has_both = pairs > 0
    if not has_both.any():
        return Auroc(float("nan"), 0)
    return Auroc(float(wins.sum() / pairs.sum()), int(has_both.sum()))
