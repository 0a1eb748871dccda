"""Choosing cells: the best one of a family that a budget pays for, on each half of the puzzles, at the mean prices and
anew at every draw of the timings. No comparison (`budgets.py`), no sentence (`verdict.py`).

Families: `depth`, one trajectory of any depth; `width`, several at once at the depth that the checkpoint was trained
at; `mixed`, several at once at any other depth; `restarts`, several one after another, at any depth: they find what as
many at once find, and cost as many times one.

Shapes: `P` puzzles, `M` depths, `N` widths, `S` selectors of one halting rule, `R` draws of the timings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier.grid import Grid

FAMILIES = ("depth", "width", "mixed", "restarts")
TOLERANCE = 1.05
"""A cell fits a budget that is this much smaller than its price: measured prices are no surer than that."""
Floats = NDArray[np.float64]
Place = tuple[int, int, int]
"""Indices of depth, width and selector."""
Pick = tuple[Place, Place]
"""Cells chosen on the first and on the second half; each scores the half that did not choose it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What is compared: one halting rule's cells by puzzle."""

    values: NDArray[np.float32]
    """The measure, `[P, M, N, S]`; `S` is 1 where no selector takes part (coverage)."""
    direct: NDArray[np.bool_] | None
    """Verdicts of a direct run in the same shape; None where the measure is no verdict."""
    clusters: NDArray[np.int64]
    """Cluster of each puzzle `[P]`."""
    selectors: tuple[str | None, ...]
    halting: str


class Price(NamedTuple):
    """What cells cost, of trajectories at once: measured latency, energy or counted arithmetic."""

    mean: Floats
    """`[M, N]`; NaN is not for sale."""
    draws: Floats | None = None
    """The same from resampled timings, `[R, M, N]`; None where a price is counted."""
    has_restarts: bool = False
    """Whether trajectories one after another cost anything else than at once."""

    def of(self, family: str, widths: tuple[int, ...]) -> tuple[Floats, Floats | None]:
        """Mean and draws of a family: `restarts` pay for one trajectory after another."""
        if family != "restarts":
            return self.mean, self.draws
        times = np.array(widths, dtype=np.float64)
        draws = None if self.draws is None else self.draws[:, :, :1] * times
        return (self.mean[:, :1] if self.has_restarts else np.full((len(self.mean), 1), np.nan)) * times, draws


@dataclass(frozen=True, slots=True)
class Choice:
    """What a family's share of a budget buys."""

    family: str
    picks: tuple[Pick, ...]
    """The choice at the mean prices, then those that draws of the timings lead to instead."""
    drawn: tuple[int, ...] = ()
    """Which of `picks` each draw chooses, `[R]`; empty where prices are no measurement. A draw at which nothing fits
    keeps the choice at the mean prices."""

    @property
    def pick(self) -> Pick:
        """The choice at the mean prices."""
        return self.picks[0]

    @property
    def changes(self) -> float:
        """Share of draws that choose otherwise."""
        return sum(place > 0 for place in self.drawn) / len(self.drawn) if self.drawn else 0.0


class Judge:
    """Chooses cells of a slice on each half of the puzzles, and scores each half by what the other chose."""

    def __init__(self, grid: Grid, part: Slice, *, seed: int = 0) -> None:
        self.grid, self.part = grid, part
        self.is_first = halves(part.clusters, seed)
        """Whether each puzzle `[P]` is of the first half."""
        self.means: list[Floats] = []
        """Mean of every cell on each half, `[M, N, S]`."""
        for half in (self.is_first, ~self.is_first):
            values = part.values[half]
            self.means.append(
                values.mean(axis=0, dtype=np.float64) if len(values) else np.full(part.values.shape[1:], np.nan)
            )

    def choose(
        self, family: str, price: Price, budget: float, *, selector: int = 0, scale: Floats | None = None
    ) -> Choice | None:
        """`choices` of one budget."""
        return self.choices(family, price, [budget], selector=selector, scale=scale)[0]

    def choices(
        self, family: str, price: Price, budgets: Sequence[float], *, selector: int = 0, scale: Floats | None = None
    ) -> list[Choice | None]:
        """For each budget the cells `(m, n, s)` of a family with the best mean on the first and on the second half that
        it pays for. None where nothing fits.

        Ties go to the cheaper, then the narrower cell. `scale [R]`: what each draw of the timings multiplies the
        budget by.
        """
        (first, ones), (second, twos) = (self._best(side, family, price, budgets, selector, scale) for side in (0, 1))
        return [_choice(family, first, one, second, two) for one, two in zip(ones, twos, strict=True)]

    def _best(
        self, side: int, family: str, price: Price, budgets: Sequence[float], selector: int, scale: Floats | None
    ) -> tuple[list[Place], list[NDArray[np.int64]]]:
        """Cells from the best to the worst, and for each budget which of them is the first that each price pays for,
        `[1 + R]`; -1: none."""
        mean, draws = price.of(family, self.grid.widths)
        values = self._means(side, selector)
        m, n = np.nonzero(family_mask(self.grid, family) & np.isfinite(values))
        order = np.lexsort((m, n, mean[m, n], -np.round(values[m, n], 9)))
        m, n = m[order], n[order]
        places = [
            (a, b, selector if self.grid.widths[b] > 1 else 0) for a, b in zip(m.tolist(), n.tolist(), strict=True)
        ]
        if not places:
            return places, [np.array([-1])] * len(budgets)
        costs = mean[None, m, n] if draws is None else np.concatenate([mean[None, m, n], draws[:, m, n]])
        times = np.ones(len(costs))
        if draws is not None and scale is not None:
            times[1:] = scale
        found = []
        for budget in budgets:
            fits = costs <= (budget * TOLERANCE * times)[:, None]
            found.append(np.where(fits.any(axis=1), fits.argmax(axis=1), -1))
        return places, found

    def _means(self, side: int, selector: int) -> Floats:
        """Mean of every cell `[M, N]` under a selector, which one trajectory does not need."""
        means = self.means[side][..., selector if self.means[side].shape[-1] > 1 else 0].copy()
        means[:, 0] = self.means[side][:, 0, 0]
        return means

    def scores(self, pick: Pick, table: NDArray[Any] | None = None) -> NDArray[Any]:
        """The measure `[P]` (or another `table [P, M, N, S]`) of each puzzle in the cell that the other half chose."""
        values = self.part.values if table is None else table
        return np.where(self.is_first, values[:, *pick[1]], values[:, *pick[0]])

    def cells(self, choice: Choice, price: Price) -> dict[str, Any]:
        """The cell that the first half chose and, where it is another, that of the second, as JSON."""
        mean = price.of(choice.family, self.grid.widths)[0]
        first, second = (self._cell(cell, mean) for cell in choice.pick)
        share = float((~self.is_first).mean()) if self.is_first.size else 0.5
        return {
            **first,
            "other_half": second if second != first else None,
            "spent": share * first["price"] + (1 - share) * second["price"],
            "choice_changes": choice.changes,
        }

    def _cell(self, cell: Place, price: Floats) -> dict[str, Any]:
        m, n, s = cell
        return {
            "width": self.grid.widths[n],
            "depth": self.grid.depths[m],
            "selector": None if self.grid.widths[n] == 1 else self.part.selectors[s],
            "price": float(price[m, n]),
        }


def _choice(
    family: str, first: list[Place], one: NDArray[np.int64], second: list[Place], two: NDArray[np.int64]
) -> Choice | None:
    """From the cells of both halves and which of them each price pays for, `[1 + R]`; None where none fits."""
    if one[0] < 0 or two[0] < 0:
        return None
    codes = one * len(second) + two
    codes[(one < 0) | (two < 0)] = codes[0]
    found, place = np.unique(codes, return_inverse=True)
    order = np.argsort(found != codes[0], kind="stable")
    picks = [(first[code // len(second)], second[code % len(second)]) for code in found[order].tolist()]
    drawn = np.argsort(order, kind="stable")[place.reshape(-1)][1:]
    return Choice(family, tuple(picks), tuple(drawn.tolist()))


def halves(clusters: NDArray[np.int64], seed: int = 0) -> NDArray[np.bool_]:
    """Whether each puzzle `[P]` is of the first half. A cluster is never split; the halves differ by one cluster at
    most in number of clusters."""
    labels, of_puzzle = np.unique(clusters, return_inverse=True)
    is_first = np.zeros(labels.size, dtype=bool)
    is_first[np.random.default_rng(seed).permutation(labels.size)[: labels.size // 2]] = True
    halved: NDArray[np.bool_] = is_first[of_puzzle.reshape(-1)]
    return halved


def family_mask(grid: Grid, family: str) -> NDArray[np.bool_]:
    """Cells `[M, N]` of a family, or of `any`. Raises `ValueError` for an unknown one."""
    depth, width = np.array(grid.depths)[:, None], np.array(grid.widths)[None]
    masks: dict[str, NDArray[np.bool_]] = {
        "depth": (width == 1) & (depth > 0),
        "width": (width > 1) & (depth == grid.trained_depth),
        "mixed": (width > 1) & (depth != grid.trained_depth),
        "restarts": (width > 1) & (depth > 0),
        "any": (width > 0) & (depth > 0),
    }
    if family in masks:
        return masks[family]
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
