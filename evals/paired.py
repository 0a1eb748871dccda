"""Paired comparisons of two systems: one score test for differences by puzzle, and the interval that is its inversion.

The mean `x` of the differences `d` in [-1, 1] is tested against any value `t` in (-1, 1). A cluster of puzzles that are
alike is the unit of chance; the test looks at the sums of clusters, so `G` clusters give `G - 1` degrees of freedom.
Two departures are weighed, and `t` is refused only where both refuse it:

- Student's, `(x - t) / s`, where `s` counts one more cluster that differs as the others do on average. For verdicts of
  separate puzzles and `t = 0` that is McNemar's score with one more discordant pair, `(b - c)^2 / (b + c + 1)`: as
  Agresti and Min (2005) advise, it refuses where the mid-p test does (5 to 0, 7 to 1, 9 to 2);
- Wilson's, for `t` on the side of `x`: a system ahead by `t` differs on at least a share `t` of the puzzles, so the
  variance of `x` is at least `t (1 - t) / n`, at an effective number `n` of puzzles. It rules where few or none differ,
  and leaves `t = 0` to the first.

The interval is every `t` that is not refused, so it leaves out zero exactly where the p-value is below .05. The choice
was made by simulation: `scripts/simulate_statistics.py`.

Shapes: `P` puzzles, `C` vectorised tests (pairs of systems), `G` clusters, `R` draws of something else than puzzles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from gram.evals.statistics import ALPHA, ClusterSums, Floats, cluster_sums, defined, few_degrees

Value = TypeVar("Value")
_ZERO = 1e-7
"""Differences of a cluster's mean up to this are none: single precision gives no better."""
_TOGETHER = 64
"""Columns whose differences are held in double precision at once."""
_HALVINGS = 44
"""Of [-1, 1], to find the end of a mixture's interval."""
_INDEPENDENT = 0.5
"""Share of the variance of independent puzzles that a cluster's variance is never below: differences of one cluster
that happen to cancel are no knowledge."""


class Difference(NamedTuple, Generic[Value]):
    """Mean of `a - b` over puzzles with its 95 % interval and the p-value of the test that the interval inverts; of
    columns, `[C]` each."""

    estimate: Value
    low: Value
    high: Value
    p_value: Value
    """Two-sided, that the mean is 0; 1 where nothing differs."""


class _Score(NamedTuple):
    """What the test needs of each column, `[C]` each."""

    estimate: Floats
    error: Floats
    """Standard error `s`."""
    freedom: Floats
    """Degrees of freedom."""
    puzzles: Floats
    """Effective number of puzzles of Wilson's departure."""

    def take(self, columns: NDArray[np.int64]) -> _Score:
        return _Score(*(values[columns] for values in self))

    def below(self, value: Floats | float) -> Floats:
        """One-sided p-value that the mean is `value` or less, against more, `[C]`."""
        return self._mirrored()._above(-np.asarray(value))

    def above(self, value: Floats | float) -> Floats:
        """One-sided p-value that the mean is `value` or more, against less, `[C]`."""
        return self._above(np.asarray(value))

    def _mirrored(self) -> _Score:
        return self._replace(estimate=-self.estimate)

    def _above(self, value: Floats) -> Floats:
        gap = value - self.estimate
        student = special.stdtr(self.freedom, -gap / self.error)
        # On the other side of zero than the estimate Wilson's departure has no say; at the estimate both are 1/2.
        has_say = (gap > 0) & np.where(self.estimate >= 0, value > 0, value < 0)
        size = np.abs(value)
        spread = np.sqrt(np.maximum(size * (1 - size), 0) / self.puzzles)
        with np.errstate(divide="ignore", invalid="ignore"):
            wilson = np.where(has_say & (spread > 0), special.ndtr(-gap / spread), 0.0)
        found: Floats = np.maximum(student, wilson)
        return found

    def interval(self) -> tuple[Floats, Floats]:
        """Lower and upper end, `[C]` each."""
        upper = self._upper()
        return np.maximum(-self._mirrored()._upper(), -1), np.minimum(upper, 1)

    def _upper(self) -> Floats:
        z_squared = float(special.ndtri(1 - ALPHA / 2)) ** 2
        student = self.estimate + special.stdtrit(self.freedom, 1 - ALPHA / 2) * self.error
        size, scale = np.abs(self.estimate), 1 + z_squared / self.puzzles
        middle = (size + z_squared / (2 * self.puzzles)) / scale
        spread = size * (1 - size) / self.puzzles + z_squared / (4 * self.puzzles**2)
        outer = middle + np.sqrt(z_squared * np.maximum(spread, 0)) / scale
        # The product of both roots is known, so the inner one never loses its sign to rounding.
        wilson = np.where(self.estimate >= 0, outer, -(size**2) / (scale * outer))
        found: Floats = np.maximum(student, wilson)
        return found


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None, *, weights: ArrayLike | None = None
) -> Difference[float]:
    """Mean of `a - b` over puzzles `[P]` (values in [0, 1]), its interval and test, puzzles of one cluster kept
    together; a weighted mean where there are `weights` `[P]`.

    Puzzles where either is NaN are left out. Raises `ValueError` for values, weights or clusters out of range or shape.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a and b must have one shape, got {first.shape} and {second.shape}")
    for name, values in (("a", first), ("b", second)):
        if values.size and not (np.nanmin(values, initial=0) >= 0 and np.nanmax(values, initial=0) <= 1):
            raise ValueError(f"{name} must be within 0 and 1, got {np.nanmin(values):g} to {np.nanmax(values):g}")
    kept, labels, weight = defined(first - second, clusters, weights)
    if not kept.size:
        return Difference(*[math.nan] * 4)
    # In an order of their own, so that the puzzles' order moves no digit.
    order = np.lexsort((kept, weight, labels))
    score = _scored(kept[order, None], labels[order], weight[order])
    (low, high), p_value = score.interval(), _two_sided(score.below(0.0), score.above(0.0))
    return Difference(float(score.estimate[0]), float(low[0]), float(high[0]), float(p_value[0]))


def paired_differences(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    wanted: Sequence[int] | None = None,
    drawn: Sequence[NDArray[np.int64]] | None = None,
) -> Difference[Floats]:
    """`paired_difference` of each column of `a` and the same one of `b`, `[P, C]`, without NaN.

    `wanted`: columns to tell, and for each of them `drawn [R]`: the column that draw `r` of something else (timings,
    which choose cells) has instead; empty for none. A value is then refused only where the test refuses it, and the
    mean over draws of the tests of their columns does too: that widens the interval by what the draws move its ends.
    Raises `ValueError` for different shapes.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"a and b must have one shape [P, C], got {first.shape} and {second.shape}")
    told = np.arange(first.shape[1]) if wanted is None else np.asarray(wanted, dtype=np.int64)
    if not len(first):
        nothing = np.full(len(told), np.nan)
        return Difference(nothing, nothing, nothing, nothing)
    score = _scored_pairs(first, second, clusters)
    own = score.take(told)
    low, high = own.interval()
    below, above = own.below(0.0), own.above(0.0)
    moved = [place for place, other in enumerate(drawn or ()) if (other != told[place]).any()]
    if drawn is not None and moved:
        mixture = _Mixture.of(score, [drawn[place] for place in moved])
        low[moved] = np.minimum(low[moved], mixture.end(upper=False))
        high[moved] = np.maximum(high[moved], mixture.end(upper=True))
        zero = np.zeros(len(moved))
        below[moved] = np.maximum(below[moved], mixture.mean(score.below, zero))
        above[moved] = np.maximum(above[moved], mixture.mean(score.above, zero))
    return Difference(own.estimate, low, high, _two_sided(below, above))


class _Mixture(NamedTuple):
    """Columns that draws have instead of those told: one entry for each different column of each place."""

    parts: _Score
    """The columns, `[E]`."""
    share: Floats
    """Share of the place's draws, `[E]`."""
    starts: NDArray[np.int64]
    """First entry of each place."""

    @classmethod
    def of(cls, score: _Score, drawn: Sequence[NDArray[np.int64]]) -> _Mixture:
        counted = [np.unique(columns, return_counts=True) for columns in drawn]
        sizes = np.array([len(columns) for columns, _ in counted])
        share = np.concatenate([count / count.sum() for _, count in counted])
        return cls(score.take(np.concatenate([columns for columns, _ in counted])), share, np.cumsum(sizes) - sizes)

    def mean(self, test: Any, value: Floats) -> Floats:
        """Mean one-sided p-value (`_Score.below` or `above`) of each place at its `value`."""
        sizes = np.diff(np.append(self.starts, self.share.size))
        found = test.__func__(self.parts, np.repeat(value, sizes)) * self.share
        return np.asarray(np.add.reduceat(found, self.starts))

    def end(self, *, upper: bool) -> Floats:
        """End of each place's interval: where the mean one-sided p-value is half of `ALPHA`."""
        inner, outer = np.full(self.starts.size, -1.0 if upper else 1.0), np.full(self.starts.size, 1.0)
        outer *= 1 if upper else -1
        for _ in range(_HALVINGS):
            middle = (inner + outer) / 2
            is_held = self.mean(self.parts.above if upper else self.parts.below, middle) >= ALPHA / 2
            inner, outer = np.where(is_held, middle, inner), np.where(is_held, outer, middle)
        return outer


def _two_sided(below: Floats, above: Floats) -> Floats:
    found: Floats = np.minimum(2 * np.minimum(below, above), 1.0)
    return found


def _scored_pairs(a: NDArray[Any], b: NDArray[Any], clusters: ArrayLike | None) -> _Score:
    """`_scored` of `a - b`, some columns at a time."""
    labels = (
        np.arange(len(a)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
    )
    weight = np.ones(len(a))
    parts = []
    for start in range(0, max(a.shape[1], 1), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        parts.append(_scored(a[:, some].astype(np.float64) - b[:, some].astype(np.float64), labels, weight))
    return _Score(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _scored(differences: Floats, labels: NDArray[np.int64], weight: Floats) -> _Score:
    """The test of columns `[P, C]`; `labels [P]` count clusters from 0, weights `[P]` are 1 on average."""
    by_cluster: ClusterSums = cluster_sums(differences, labels, weight)
    sizes, count, total = by_cluster.sizes, by_cluster.sizes.size, float(by_cluster.sizes.sum())
    sums = np.where(np.abs(by_cluster.sums) > _ZERO * sizes[:, None], by_cluster.sums, 0.0)
    estimate = sums.sum(axis=0) / total
    squares, differing = (sums**2).sum(axis=0), (sums != 0).sum(axis=0)
    between = ((sums - estimate * sizes[:, None]) ** 2).sum(axis=0)
    heavy = weight**2
    square = heavy @ differences**2
    independent = square - 2 * estimate * (heavy @ differences) + estimate**2 * heavy.sum()
    one_more = np.where(differing == 0, sizes.max() ** 2, squares / np.maximum(differing, 1))
    variance = np.maximum(between, _INDEPENDENT * independent) + one_more
    error = np.sqrt(variance * count / (count - 1)) / total if count > 1 else np.full(estimate.shape, np.inf)
    # What a unit of the mean brings of variance: by puzzle its square over its size, by cluster the design effect.
    size = weight @ np.abs(differences)
    is_known = (differing > 0) & (independent > 1e-12 * total) & (size > 0)
    effect = np.maximum(between, independent) / np.where(is_known, independent, 1.0)
    unit = np.where(is_known, effect * square / np.where(is_known, size, 1.0), sizes.max())
    freedom = np.full(estimate.shape, max(count - 1.0, 1.0))
    return _Score(estimate, error, freedom, total / unit * few_degrees(max(count - 1, 1)))
