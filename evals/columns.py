"""Intervals and tests of many cells at once, which share their random draws: one matrix product for all of them.

The methods are those of `statistics.py`, which serves where a bootstrap fails. Shapes: `P` puzzles, `C` columns (cells,
or pairs of cells), `G` groups of puzzles that share a base, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gram.evals import statistics

Floats = NDArray[np.float64]
_CHUNK = 1 << 21
"""Random numbers held at once."""
_TOGETHER = 64
"""Columns whose differences are held in double precision at once."""
TAILS = (0.025, 0.975)
_EXACT = 12
"""Groups that differ up to which every pattern of signs is tried."""


class Differences(NamedTuple):
    """Paired differences of columns, `[C]` each."""

    estimate: Floats
    low: Floats
    high: Floats
    p_value: Floats
    """Two-sided randomisation test that the means are equal; see `sign_flip_p_values`."""


class _Sums(NamedTuple):
    """Sums of each column `[G, C]` and sizes `[G]` of the groups."""

    sums: Floats
    sizes: Floats

    @property
    def means(self) -> Floats:
        found: Floats = self.sums.sum(axis=0) / self.sizes.sum()
        return found

    @property
    def influence(self) -> Floats:
        return self.sums - self.means * self.sizes[:, None]


def clustered_intervals(
    values: ArrayLike, groups: ArrayLike | None = None, *, seed: int = 0, resamples: int = 2_000
) -> Floats:
    """`statistics.clustered_interval` of columns of values in [0, 1], `[P, C]`: `[C, 2]`. With NaN: none."""
    table = np.asarray(values)
    found = np.full((table.shape[1], 2), np.nan)
    if not len(table):
        return found
    labels, clusters = _by_group(table, groups)
    spread = 1e-7 * clusters.sizes[:, None]
    deviating = np.minimum((clusters.sums > spread).sum(0), (clusters.sums < clusters.sizes[:, None] - spread).sum(0))
    is_plain = (deviating < statistics.DEVIATING) | _is_constant(clusters)
    if clusters.sizes.max() == 1:
        is_plain |= ((table == 0) | (table == 1)).all(axis=0)
    is_known = ~np.isnan(clusters.sums).any(axis=0)
    for column in np.flatnonzero(is_plain & is_known):
        found[column] = statistics.clustered_interval(np.clip(table[:, column], 0, 1), labels, seed=seed)
    rest = np.flatnonzero(~is_plain & is_known)
    some = _Sums(clusters.sums[:, rest], clusters.sizes)
    found[rest] = np.clip(_bca(some, _resampled(some, seed, resamples), np.arange(len(rest))), 0, 1)
    return found


def paired_differences(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    wanted: Sequence[int] | None = None,
    drawn: Sequence[NDArray[np.int64]] | None = None,
) -> Differences:
    """`statistics.paired_difference` of each column of `a` less the same one of `b`, `[P, C]`, and a test of it.

    `wanted`: columns to tell, and for each of them `drawn [R]`: the column that draw `r` of something else (timings,
    which choose cells) has instead; empty for none. Bootstrap draw `r` then takes that column's mean, which widens the
    interval by what the draws move its ends. Raises `ValueError` for different shapes.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"a and b must have one shape [P, C], got {first.shape} and {second.shape}")
    told = np.arange(first.shape[1]) if wanted is None else np.asarray(wanted, dtype=np.int64)
    if not len(first):
        nothing = np.full(len(told), np.nan)
        return Differences(nothing, nothing, nothing, nothing)
    labels, clusters = _paired_sums(first, second, groups)
    found = np.full((first.shape[1], 2), np.nan)
    differing = (np.abs(clusters.sums) > 1e-7 * clusters.sizes[:, None]).sum(axis=0)
    is_plain = (differing < statistics.DEVIATING) | _is_constant(clusters)
    for column in np.flatnonzero(is_plain):
        one = statistics.paired_difference(first[:, column], second[:, column], labels, seed=seed)
        found[column] = one.low, one.high
    rest = np.flatnonzero(~is_plain)
    means = _resampled(clusters, seed, resamples)
    found[rest] = _bca(clusters, means, rest)
    ends = found[told]
    for place, other in enumerate(drawn if drawn is not None else ()):
        if (other != told[place]).any():
            mixed = means[np.arange(resamples), other[np.arange(resamples) % len(other)]]
            moved = np.quantile(mixed, TAILS) - np.quantile(means[:, told[place]], TAILS)
            ends[place] += np.minimum(moved[0], 0), np.maximum(moved[1], 0)
    p_values = sign_flip_p_values(clusters.sums[:, told], seed=seed)
    return Differences(clusters.means[told], np.maximum(ends[:, 0], -1), np.minimum(ends[:, 1], 1), p_values)


def sign_flip_p_values(sums: Floats, *, seed: int = 0, flips: int = 10_000) -> Floats:
    """P-values `[C]` that the differences of groups, `sums [G, C]`, are around zero: their signs drawn at random.

    Every pattern of signs is counted where at most a dozen groups differ (then the test is exact). 1 where none does.
    """
    p_values = np.ones(sums.shape[1])
    differs = np.abs(sums) > 1e-7
    few = differs.sum(axis=0) <= _EXACT
    for column in np.flatnonzero(few):
        some = sums[differs[:, column], column]
        bits = (np.arange(1 << some.size)[:, None] >> np.arange(some.size)) & 1
        p_values[column] = (np.abs((1 - 2 * bits) @ some) >= abs(some.sum()) - 1e-7).mean()
    many = np.flatnonzero(~few)
    if many.size:
        chosen, extreme, rng = sums[:, many], np.zeros(many.size), np.random.default_rng(seed)
        total = chosen.sum(axis=0)
        chunk = max(1, _CHUNK // len(sums))
        for start in range(0, flips, chunk):
            rows = min(chunk, flips - start)
            drawn = rng.integers(0, 256, (rows, -(-len(sums) // 8)), np.uint8)
            keeps = np.unpackbits(drawn, axis=1, count=len(sums)).astype(np.float64)
            # The sum under random signs is twice the sum of what keeps its sign, less the whole.
            extreme += (np.abs(2 * (keeps @ chosen) - total) >= np.abs(total) - 1e-7).sum(axis=0)
        p_values[many] = (extreme + 1) / (flips + 1)
    return p_values


def _by_group(table: NDArray[np.floating], groups: ArrayLike | None) -> tuple[NDArray[np.int64], _Sums]:
    """Number of each puzzle's group, and sums over groups."""
    if groups is None:
        return np.arange(len(table)), _Sums(table.astype(np.float64), np.ones(len(table)))
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(labels)
    order = np.argsort(labels, kind="stable")
    sums = np.add.reduceat(table[order], np.cumsum(sizes) - sizes, axis=0, dtype=np.float64)
    return labels, _Sums(sums, sizes.astype(np.float64))


def _is_constant(clusters: _Sums) -> NDArray[np.bool_]:
    return np.asarray(np.ptp(clusters.sums / clusters.sizes[:, None], axis=0) < 1e-7)


def _paired_sums(a: NDArray[Any], b: NDArray[Any], groups: ArrayLike | None) -> tuple[NDArray[np.int64], _Sums]:
    """Number of each puzzle's group, and sums of `a - b` over groups; some columns at a time, in double precision."""
    parts = []
    for start in range(0, a.shape[1], _TOGETHER):
        some = slice(start, start + _TOGETHER)
        labels, clusters = _by_group(a[:, some].astype(np.float64) - b[:, some].astype(np.float64), groups)
        parts.append(clusters.sums)
    return labels, _Sums(np.concatenate(parts, axis=1), clusters.sizes)


def _resampled(clusters: _Sums, seed: int, resamples: int) -> Floats:
    """Means of each column in bootstrap draws of the groups, `[resamples, C]`."""
    columns = clusters.sums.shape[1]
    means, rng, count = np.empty((resamples, columns)), np.random.default_rng(seed), clusters.sizes.size
    chunk = max(1, _CHUNK // count)
    for start in range(0, resamples if columns else 0, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means[start : start + rows] = (times @ clusters.sums) / (times @ clusters.sizes)[:, None]
    return means


def _bca(clusters: _Sums, means: Floats, columns: NDArray[np.int64]) -> Floats:
    """BCa intervals of some columns, `[., 2]`, from the bootstrap means of all."""
    estimates, influence = clusters.means, clusters.influence
    return np.array(
        [
            statistics.bca_interval(means[:, column], float(estimates[column]), influence[:, column])
            for column in columns
        ]
    ).reshape(-1, 2)
