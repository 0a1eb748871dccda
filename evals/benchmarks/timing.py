"""Timing versions of the same work against each other: paired in one process, as ratios.

The versions are timed in turn, in random order, for some rounds; a measurement is the median of the rounds' ratios with
the least and the greatest.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import gram

ROOT = Path(gram.__file__).absolute().parent.parent
"""The folder that holds the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One line of a benchmark."""

    name: str
    ratio: float
    """The worse version over the better one: above 1 is a gain. Where nothing is compared, the value itself."""
    low: float
    high: float
    floor: float | None = None
    """What is asked for; None where nothing is."""
    is_ceiling: bool = False
    """Whether the value must stay below `floor`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was measured, by name."""
    error: str | None = None
    """Why nothing could be measured; the numbers are NaN then."""

    @property
    def is_met(self) -> bool | None:
        """Whether the value holds its floor; None without one or without a value."""
        if self.floor is None or self.error is not None:
            return None
        return self.ratio <= self.floor if self.is_ceiling else self.ratio >= self.floor

    @classmethod
    def failed(cls, name: str, error: Exception, **facts: Any) -> Measurement:
        """A row without numbers, that says what was raised, in its first line."""
        said = (str(error).strip().splitlines() or [""])[0]
        nan = float("nan")
        return cls(name=name, ratio=nan, low=nan, high=nan, facts=facts, error=f"{type(error).__name__}: {said}")

    @classmethod
    def of(cls, name: str, values: Sequence[float], floor: float | None = None, **more: Any) -> Measurement:
        """The median of values, with the least and the greatest."""
        return cls(name=name, ratio=statistics.median(values), low=min(values), high=max(values), floor=floor, **more)

    @classmethod
    def of_ratios(
        cls, name: str, slow: Sequence[float], fast: Sequence[float], floor: float | None = None, **more: Any
    ) -> Measurement:
        """The rounds' ratios of two versions' seconds."""
        return cls.of(name, [a / b for a, b in zip(slow, fast, strict=True)], floor, **more)


def paired(versions: dict[str, Callable[[], object]], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of each version in each round, after one round to warm up; their order in a round is random."""
    order, rng = list(versions), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for round_ in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            began = time.perf_counter()
            versions[name]()
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def to_json(measured: Iterable[Measurement]) -> dict[str, Any]:
    """The benchmark as JSON values."""
    rows = [{**asdict(each), "is_met": each.is_met} for each in measured]
    return {"rows": rows, "threads": torch.get_num_threads()}
