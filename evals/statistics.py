"""How sure a figure is: 95 % intervals, paired differences, tests. The only home of scipy; no figure is made here.

Shapes: `P` puzzles, `G` groups of puzzles that share a base (2411.00640: a group is the unit of chance).

Which interval a mean of values in [0, 1] gets was chosen by simulation (`tests/test_statistics.py` repeats a part):

- values 0 or 1, every puzzle its own group: Wilson's score interval, and Clopper and Pearson's exact one where fewer
  than `FEW` puzzles are right or wrong (Wilson's holds the truth in as few as 84 of 100 there; this, in 93 or more);
- at least `DEVIATING` groups away from whichever end (0 or 1) is nearer: the cluster bootstrap, BCa (Efron 1987). Plain
  percentiles miss the truth 10 to 20 times in 100 near the ends;
- fewer, where any bootstrap fails (with all values 1 it has no width): the first kind at an effective number of
  puzzles, `mean (1 - mean) / variance of the mean over groups`, never more than there are puzzles and reduced by
  `(t_{P-1} / t_{G-1})^2` for few groups (Korn and Graubard 1998).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

FEW = 10
"""Right or wrong puzzles below which a proportion's interval is exact."""
DEVIATING = 20
"""Groups that must differ from the nearer end of the scale before a bootstrap is trusted."""
_CHUNK = 1 << 21
"""Random numbers held at once by a bootstrap (16 MiB)."""


class Interval(NamedTuple):
    """A 95 % interval unless another level was asked for; NaN where undefined."""

    low: float
    high: float


class Difference(NamedTuple):
    """Mean of `a - b` over puzzles with its interval."""

    estimate: float
    low: float
    high: float

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


class McNemar(NamedTuple):
    """Exact McNemar test of two systems on the same puzzles."""

    p_value: float
    """Two-sided; 1 where no puzzle tells them apart, NaN without puzzles."""
    only_a: int
    """Puzzles that only `a` has right."""
    only_b: int
    """Puzzles that only `b` has right."""


class _Groups(NamedTuple):
    """Sum of values and number (or weight) of puzzles of each group, `[G]`, in an order that does not depend on the
    puzzles'."""

    sums: Floats
    sizes: Floats

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def influence(self) -> Floats:
        """What each group adds to the mean's departure, `[G]`, times the number of puzzles."""
        return self.sums - self.mean * self.sizes


NAN = Interval(float("nan"), float("nan"))


def proportion_interval(
    successes: float, n: float, *, method: Literal["auto", "wilson", "exact"] = "auto", level: float = 0.95
) -> Interval:
    """Interval of a proportion from `successes` of `n` independent trials.

    `wilson`: the score interval (Wilson 1927). `exact`: Clopper and Pearson (1934), never too narrow, usually somewhat
    wide. `auto`: exact where fewer than `FEW` succeed or fail, else Wilson's. Both arguments may be fractions, of an
    effective sample size. NaN where `n` is 0. Raises `ValueError`.
    """
    if not 0 <= successes <= n or not math.isfinite(n):
        raise ValueError(f"successes must be within 0 and n={n:g}, got {successes:g}")
    if n == 0:
        return NAN
    if method not in ("auto", "wilson", "exact"):
        raise ValueError(f"method must be auto, wilson or exact, got {method!r}")
    if method == "exact" or (method == "auto" and min(successes, n - successes) < FEW):
        tail = (1 - level) / 2
        low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
        high = float(special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
        return Interval(low, high)
    z = float(special.ndtri((1 + level) / 2))
    share, scale = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding; the interval must hold the estimate.
    return Interval(min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def clustered_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of one value in [0, 1] per puzzle `[P]`, puzzles of one group `[P]` resampled together.

    The module says which method is used when. None: every puzzle is its own group. `weights` `[P]`, positive where the
    value is defined: of a weighted mean, as pooled coverage is of coverage by the number of solutions. NaN values are
    left out; NaN where none is left. The puzzles' order has no influence. Raises `ValueError` for values or weights out
    of range or shape.
    """
    kept, labels, weight = _defined(np.asarray(values, dtype=np.float64), groups, weights)
    if kept.size and not (kept.min() >= 0 and kept.max() <= 1):
        raise ValueError(f"values must be within 0 and 1, got {kept.min():g} to {kept.max():g}")
    if kept.size == 0:
        return NAN
    clusters = _by_group(kept, labels, weight)
    is_binary = weights is None and bool(np.isin(kept, (0.0, 1.0)).all())
    if is_binary and clusters.sizes.max() == 1:
        return proportion_interval(float(kept.sum()), kept.size, level=level)
    spread = 1e-9 * clusters.sizes
    deviating = min((clusters.sums > spread).sum(), (clusters.sums < clusters.sizes - spread).sum())
    if deviating < DEVIATING or np.ptp(clusters.sums / clusters.sizes) < 1e-9:
        return _effective_interval(clusters, level)
    low, high = _bootstrap_interval(clusters, seed, resamples, level)
    return Interval(max(low, 0.0), min(high, 1.0))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """Mean of `a - b` over puzzles `[P]` (values in [0, 1]) and its interval, puzzles of one group kept together; a
    weighted mean where there are `weights` `[P]`.

    BCa cluster bootstrap; where fewer than `DEVIATING` groups differ at all, the intervals of the gains
    `max(a - b, 0)` and the losses `max(b - a, 0)` joined as Zou and Donner (2008, MOVER) do, so two systems that never
    differ still get an interval with width. Puzzles where either is NaN are left out. Raises `ValueError`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a and b must have one shape, got {first.shape} and {second.shape}")
    for name, values in (("a", first), ("b", second)):
        if values.size and not (np.nanmin(values, initial=0) >= 0 and np.nanmax(values, initial=0) <= 1):
            raise ValueError(f"{name} must be within 0 and 1, got {np.nanmin(values):g} to {np.nanmax(values):g}")
    kept, labels, weight = _defined(first - second, groups, weights)
    if kept.size == 0:
        return Difference(float("nan"), *NAN)
    clusters = _by_group(kept, labels, weight)
    estimate = clusters.mean
    differing = np.abs(clusters.sums) > 1e-9 * clusters.sizes
    if differing.sum() >= DEVIATING and np.ptp(clusters.sums / clusters.sizes) >= 1e-9:
        return Difference(estimate, *_bootstrap_interval(clusters, seed, resamples, level))
    gains, losses = (_by_group(np.maximum(sign * kept, 0), labels, weight) for sign in (1, -1))
    gain, loss = _effective_interval(gains, level), _effective_interval(losses, level)
    below = math.hypot(gains.mean - gain.low, loss.high - losses.mean)
    above = math.hypot(gain.high - gains.mean, losses.mean - loss.low)
    return Difference(estimate, max(estimate - below, -1.0), min(estimate + above, 1.0))


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test that `a` and `b` (verdicts `[P]`) are right equally often (McNemar 1947).

    It takes puzzles as independent: where they share bases, read `paired_difference` first. Raises `ValueError`.
    """
    first, second = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    if first.shape != second.shape:
        raise ValueError(f"a and b must have one shape, got {first.shape} and {second.shape}")
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    if first.size == 0:
        return McNemar(float("nan"), 0, 0)
    discordant = only_a + only_b
    p_value = float(stats.binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(p_value, only_a, only_b)


def holm(p_values: ArrayLike) -> Floats:
    """P-values adjusted for their number by Holm's step-down method (1979), in the same order; NaN stays, uncounted."""
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    steps = raw[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _defined(
    values: Floats, groups: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """The values that are not NaN, the number of each one's group, and each one's weight, 1 on average."""
    if values.ndim != 1:
        raise ValueError(f"values must be one per puzzle [P], got shape {values.shape}")
    labels = np.arange(values.size) if groups is None else np.asarray(groups)
    if labels.shape != values.shape:
        raise ValueError(f"groups must be one per puzzle {values.shape}, got shape {labels.shape}")
    is_defined = ~np.isnan(values)
    weight = np.ones(values.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != values.shape:
        raise ValueError(f"weights must be one per puzzle {values.shape}, got shape {weight.shape}")
    weight = weight[is_defined]
    if weight.size and not (weight.min() > 0 and math.isfinite(weight.sum())):
        raise ValueError(f"weights must be positive, got {weight.min():g} to {weight.max():g}")
    labels = np.unique(labels[is_defined], return_inverse=True)[1].reshape(-1)
    return values[is_defined], labels, weight if weights is None else weight / (weight.mean() if weight.size else 1)


def _by_group(values: Floats, labels: NDArray[np.int64], weight: Floats) -> _Groups:
    """Sums (rounded where only the order of summation speaks) and sizes of the groups, sorted."""
    sums: Floats = np.round(np.bincount(labels, weights=values * weight), 12)
    sizes: Floats = np.round(np.bincount(labels, weights=weight), 12)
    order = np.lexsort((sums, sizes))
    return _Groups(sums[order], sizes[order])


def _effective_interval(clusters: _Groups, level: float) -> Interval:
    """Interval of a proportion at the effective number of puzzles; one group alone counts as one puzzle."""
    mean, puzzles, groups = min(max(clusters.mean, 0.0), 1.0), float(clusters.sizes.sum()), clusters.sums.size
    if groups == 1:
        return proportion_interval(mean, 1, level=level)
    variance = float((clusters.influence**2).sum()) / puzzles**2 * groups / (groups - 1)
    effective = min(mean * (1 - mean) / variance, puzzles) if variance > 1e-18 else puzzles
    quantiles = special.stdtrit(np.array([puzzles - 1, groups - 1]), (1 + level) / 2)
    effective *= float(quantiles[0] / quantiles[1]) ** 2
    return proportion_interval(min(mean * effective, effective), effective, level=level)


def _bootstrap_interval(clusters: _Groups, seed: int, resamples: int, level: float) -> Interval:
    """Bootstrap over groups."""
    return bca_interval(_resampled_means(clusters, seed, resamples), clusters.mean, clusters.influence, level=level)


def bca_interval(means: Floats, estimate: float, influence: Floats, *, level: float = 0.95) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987) from bootstrap means `[R]` and each group's influence on the
    estimate `[G]` (any common factor). It always holds the estimate."""
    is_equal = np.abs(means - estimate) <= 1e-12
    share_below = float(((means < estimate) & ~is_equal).mean() + is_equal.mean() / 2)
    bias = float(special.ndtri(min(max(share_below, 1 / means.size), 1 - 1 / means.size)))
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    z = bias + special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(means, special.ndtr(bias + z / (1 - acceleration * z)))
    return Interval(min(float(low), estimate), max(float(high), estimate))


def _resampled_means(clusters: _Groups, seed: int, resamples: int) -> Floats:
    """Means of `resamples` draws of `G` groups with replacement.

    Drawn as how often each distinct (sum, size) came, which is the same in law and far quicker where there are few
    distinct ones, as of verdicts and shares of `N`; else group by group.
    """
    kinds, count = np.unique(np.stack(clusters, axis=1), axis=0, return_counts=True)
    groups, rng = clusters.sums.size, np.random.default_rng(seed)
    is_counted = len(kinds) * 8 <= groups
    means = np.empty(resamples)
    chunk = max(1, _CHUNK // (len(kinds) if is_counted else groups))
    for start in range(0, resamples, chunk):
        part = means[start : start + chunk]
        if is_counted:
            drawn = rng.multinomial(groups, count / groups, size=part.size) @ kinds
            part[:] = drawn[:, 0] / drawn[:, 1]
        else:
            index = rng.integers(groups, size=(part.size, groups), dtype=np.int32)
            part[:] = clusters.sums[index].sum(axis=1) / clusters.sizes[index].sum(axis=1)
    return means


def puzzles_for_power(difference: float, discordant: float, *, power: float = 0.8, level: float = 0.95) -> float:
    """Independent puzzles needed to tell apart two systems whose accuracies differ by `difference`, paired.

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
