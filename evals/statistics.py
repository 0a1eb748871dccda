"""How sure a figure is: 95 % intervals, corrections, power. No figure is made here; `paired.py` compares two systems.

Shapes: `P` puzzles, `C` vectorised tests, `G` clusters of puzzles that are alike (2411.00640: a cluster is the unit of
chance).

Which interval a mean of values in [0, 1] gets was chosen by simulation (`scripts/simulate_statistics.py` prints it):

- values 0 or 1, every puzzle its own cluster: Wilson's score interval, and Clopper and Pearson's exact one where fewer
  than `FEW` puzzles are right or wrong (Wilson's holds the truth in as few as 84 of 100 there; this, in 93 or more);
- else the same at an effective number of puzzles, `mean (1 - mean) / variance of the mean over clusters`, reduced by
  `(z / t)^2` for few clusters (Korn and Graubard 1998). It is never more than there are puzzles, unless at
  least `DEVIATING` clusters (fewer of few) are away from whichever end (0 or 1) is nearer: only then do shares between
  0 and 1 tell more than as many verdicts. Where all clusters agree it is the number of clusters.

Two things of the second kind are known badly from few clusters:

- the variance, where few clusters deviate from the nearer end. A study that happens to meet few errors meets them one
  by one more often than the truth has it, so its accuracy is too high and its variance too small at once. The variance
  is therefore that of one more cluster that deviates as the others do, `1 + 1 / deviating - 1 / G` times as large;
- its degrees of freedom. They are `G - 1` for sums of clusters that are normal, and more where these are flatter
  (2 over the relative variance of a sample variance), as verdicts of a cluster are near one half.

FEW counts before the reduction: that is for the variance, which the choice of the method has nothing to do with.

A bootstrap over clusters holds the truth less often than this near 0 and 1, and no more often between.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Share of studies whose interval may miss the truth; p-values below it are significant."""
FEW = 10
"""Right or wrong puzzles below which a proportion's interval is exact."""
DEVIATING = 20
"""Clusters that must differ from the nearer end of the scale before shares count for more than verdicts; of few
clusters half of them will do, ten at least."""


class Interval(NamedTuple):
    """A 95 % interval unless another level was asked for; NaN where undefined."""

    low: float
    high: float


class ClusterSums(NamedTuple):
    """Sums of the values of each cluster, `[G]` or `[G, C]`, and its number (or weight) of puzzles, `[G]`."""

    sums: Floats
    sizes: Floats


NAN = Interval(float("nan"), float("nan"))


def clustered_interval(
    values: ArrayLike, clusters: ArrayLike | None = None, *, weights: ArrayLike | None = None
) -> Interval:
    """Interval of the mean of one value in [0, 1] per puzzle `[P]`, where puzzles of one cluster `[P]` may be alike.

    The module says which method is used when. None: every puzzle is its own cluster. `weights` `[P]`, positive where
    the value is defined: of a weighted mean, as pooled coverage is of coverage by the number of solutions. NaN values
    are left out; NaN where none is left. The puzzles' order has no influence. Raises `ValueError` for values or weights
    out of range or shape.
    """
    kept, labels, weight = defined(np.asarray(values, dtype=np.float64), clusters, weights)
    if kept.size and not (kept.min() >= 0 and kept.max() <= 1):
        raise ValueError(f"values must be within 0 and 1, got {kept.min():g} to {kept.max():g}")
    if kept.size == 0:
        return NAN
    by_cluster = cluster_sums(kept[:, None], labels, weight)
    # In an order that does not depend on the puzzles'; sums are rounded where only the order of summation speaks.
    sums, sizes = np.round(by_cluster.sums, 12), np.round(by_cluster.sizes, 12)
    order = np.lexsort((sums[:, 0], sizes))
    is_verdict = np.array([weights is None and bool(np.isin(kept, (0.0, 1.0)).all())])
    found = _intervals(ClusterSums(sums[order], sizes[order]), kept.size, is_verdict)
    return Interval(*found[0].tolist())


def clustered_intervals(values: ArrayLike, clusters: ArrayLike | None = None) -> Floats:
    """`clustered_interval` of columns of values in [0, 1], `[P, C]`: `[C, 2]`. NaN for a column with NaN."""
    table = np.asarray(values)
    found = np.full((table.shape[1], 2), np.nan)
    if not len(table):
        return found
    labels = np.arange(len(table)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    by_cluster = cluster_sums(table, labels.reshape(-1), np.ones(len(table)))
    is_known = ~np.isnan(by_cluster.sums).any(axis=0)
    is_verdict = ((table == 0) | (table == 1)).all(axis=0)
    some = ClusterSums(by_cluster.sums[:, is_known], by_cluster.sizes)
    found[is_known] = _intervals(some, len(table), is_verdict[is_known])
    return found


def student_factor(degrees: int, level: float = 0.95) -> float:
    """How much wider an interval of `degrees` of freedom is than one of a known deviation, at least 1: the ratio of the
    quantiles of Student's t and of the normal distribution. Raises `ValueError` below 1."""
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    tail = (1 + level) / 2
    return float(special.stdtrit(degrees, tail) / special.ndtri(tail))


def student_quantile(degrees: int, level: float = 0.95) -> float:
    """Half the width of a two-sided interval of Student's t, in deviations."""
    return float(special.stdtrit(degrees, (1 + level) / 2))


def student_tail(value: float, degrees: int) -> float:
    """Probability that Student's t is larger."""
    return float(special.stdtr(degrees, -value))


def holm(p_values: ArrayLike) -> Floats:
    """P-values adjusted for their number by Holm's step-down method (1979), in the same order; NaN stays, uncounted."""
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    steps = raw[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def puzzles_for_power(difference: float, discordant: float, *, power: float = 0.8, level: float = 1 - ALPHA) -> float:
    """Independent puzzles for which a `difference` of the accuracies of two systems, paired, is significant.

    `discordant`: share of puzzles that exactly one of them has right (Connor 1987, for McNemar's test). Infinite for no
    difference. Raises `ValueError` unless `|difference| <= discordant <= 1`.
    """
    gap = abs(difference)
    if not gap <= discordant <= 1:
        raise ValueError(f"discordant must be within |difference|={gap:g} and 1, got {discordant:g}")
    if gap == 0:
        return math.inf
    z_level, z_power = special.ndtri(np.array([(1 + level) / 2, power]))
    needed = ((z_level * math.sqrt(discordant) + z_power * math.sqrt(discordant - gap * gap)) / gap) ** 2
    return float(math.ceil(needed))


def defined(
    values: Floats, clusters: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """The values `[P]` that are not NaN, the number of each one's cluster, and each one's weight, 1 on average.

    Raises `ValueError` for another shape and for weights that are not positive.
    """
    if values.ndim != 1:
        raise ValueError(f"values must be one per puzzle [P], got shape {values.shape}")
    labels = np.arange(values.size) if clusters is None else np.asarray(clusters)
    if labels.shape != values.shape:
        raise ValueError(f"clusters must be one per puzzle {values.shape}, got shape {labels.shape}")
    is_defined = ~np.isnan(values)
    weight = np.ones(values.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != values.shape:
        raise ValueError(f"weights must be one per puzzle {values.shape}, got shape {weight.shape}")
    weight = weight[is_defined]
    if weight.size and not (weight.min() > 0 and math.isfinite(weight.sum())):
        raise ValueError(f"weights must be positive, got {weight.min():g} to {weight.max():g}")
    labels = np.unique(labels[is_defined], return_inverse=True)[1].reshape(-1)
    return values[is_defined], labels, weight if weights is None else weight / (weight.mean() if weight.size else 1)


def cluster_sums(table: NDArray[np.floating], labels: NDArray[np.int64], weight: Floats) -> ClusterSums:
    """Weighted sums over clusters of columns `[P, C]`; `labels [P]` count the clusters from 0."""
    counts = np.bincount(labels)
    order, is_plain = np.argsort(labels, kind="stable"), bool((weight == 1).all())
    starts = np.cumsum(counts) - counts
    chosen = table[order] if is_plain else table[order] * weight[order, None]
    sums = chosen.astype(np.float64) if counts.max() == 1 else np.add.reduceat(chosen, starts, axis=0, dtype=np.float64)
    return ClusterSums(sums, np.bincount(labels, weights=weight).astype(np.float64))


def few_degrees(degrees: ArrayLike) -> Floats:
    """What an effective number of puzzles is multiplied by where its design effect has so many degrees of freedom."""
    factor: Floats = (special.ndtri(1 - ALPHA / 2) / special.stdtrit(degrees, 1 - ALPHA / 2)) ** 2
    return factor


def _intervals(by_cluster: ClusterSums, puzzles: int, is_verdict: NDArray[np.bool_]) -> Floats:
    """Intervals `[C, 2]`; `is_verdict [C]`: whether all of a column's values are 0 or 1, each of weight 1."""
    sizes, count = by_cluster.sizes, by_cluster.sizes.size
    total = float(sizes.sum())
    mean = np.clip(by_cluster.sums.sum(axis=0) / total, 0, 1)
    spread = 1e-7 * sizes[:, None]
    deviating = np.minimum((by_cluster.sums > spread).sum(0), (by_cluster.sums < sizes[:, None] - spread).sum(0))
    squares = (by_cluster.sums - mean * sizes[:, None]) ** 2
    between = squares.sum(axis=0)
    variance = between / total**2 * count / max(count - 1, 1) * (1 + 1 / np.maximum(deviating, 1) - 1 / count)
    alike = total**2 / float((sizes**2).sum())
    is_alike = variance < 1e-14
    effective = np.where(is_alike, alike, mean * (1 - mean) / np.where(is_alike, 1.0, variance))
    enough = min(DEVIATING, max(DEVIATING / 2, count / 2))
    effective = np.where(is_verdict | (deviating < enough), np.minimum(effective, puzzles), effective)
    is_plain = is_verdict & (count == puzzles)
    effective = np.where(is_plain, puzzles, effective)
    is_exact = np.minimum(mean * effective, effective - mean * effective) < FEW
    if count > 1:
        fourth = (squares**2).sum(axis=0) / np.where(is_alike, 1.0, between) ** 2
        flatter = 2 / np.where(is_alike, 1.0, fourth - 3 / count + 2 / (count - 1))
        degrees = np.where(is_alike, count - 1, np.maximum(flatter, count - 1))
        effective = np.where(is_plain, puzzles, effective * few_degrees(degrees))
    successes = mean * effective
    exact, wilson = (method(successes, effective, 1 - ALPHA) for method in (_exact, _wilson))
    return np.where(is_exact[:, None], exact, wilson)


def _exact(successes: Floats, n: Floats, level: float) -> Floats:
    """Clopper and Pearson's interval, `[C, 2]`."""
    tail, failures = (1 - level) / 2, np.maximum(n - successes, 0)
    is_none, is_all = successes <= 0, failures <= 0
    low = special.betaincinv(np.where(is_none, 1, successes), failures + 1, tail)
    high = special.betaincinv(successes + 1, np.where(is_all, 1, failures), 1 - tail)
    return np.stack([np.where(is_none, 0.0, low), np.where(is_all, 1.0, high)], axis=1)


def _wilson(successes: Floats, n: Floats, level: float) -> Floats:
    """Wilson's interval, `[C, 2]`."""
    z = float(special.ndtri((1 + level) / 2))
    share, scale = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * np.sqrt(np.maximum(share * (1 - share), 0) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding; the interval must hold the estimate.
    low, high = np.minimum(np.maximum(middle - half, 0), share), np.maximum(np.minimum(middle + half, 1), share)
    return np.stack([low, high], axis=1)
