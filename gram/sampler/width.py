"""Width policies: how many trajectories of a puzzle are enough. Each is a sequential test, one small class.

A policy looks at the trajectories in the order of their ids, never in that of their arrival. It decides at the smallest
`n` at which trajectories `0 .. n-1` are enough, so the decision is the same for any number of slots or workers. It also
names the next `n` at which a decision is possible: trajectories beyond are not needed yet. How the puzzles' tests
stand is kept by `gram/sampler/sequential_tests.py`.

`FirstHalt` also cuts in depth: its trajectories run side by side, a round each at a time, and all stop at the first
that halts.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from gram.config import ResolvedConfig

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
STAGES = 4 ** np.arange(12)
"""Widths at which a staged policy looks; the last is above any width."""
Criterion = Literal["lead", "leader_trust", "most_trust", "valid"]
"""What decides: the votes of the leading answer beside those of the second, the trust in it or in any trajectory at a
threshold, or the verifier."""
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
THRESHOLDS = {"staged": 0.9, "trusted": 0.5, "decided": 0.95}
"""Where nobody names one."""


class Standing(NamedTuple):
    """How the sequential tests of some puzzles stand, `[k]` each, or `[k, W]` at several widths."""

    width: Rows
    """Trajectories seen."""
    first: Rows
    """Votes of the leading answer: the one that the selector `vote` would pick, so that ties go to the first to
    appear."""
    second: Rows
    """Votes of the next one."""
    leader_trust: Floats
    """Highest trust in a trajectory that gave the leading answer: its predicted accuracy, or less its sparsity, or
    whether it has halted."""
    most_trust: Floats
    """Highest trust in any."""
    is_any_valid: Bools
    """Whether the verifier accepts one of them (only where a policy asks it)."""


_ZERO, _EVERYWHERE = np.zeros(1, np.int64), np.ones((1, 1), bool)
NOTHING = Standing(_ZERO, _ZERO, _ZERO, np.zeros(1), np.zeros(1), _ZERO > 0)
"""A puzzle without any trajectory."""


class WidthPolicy(Protocol):
    """When a puzzle has enough trajectories. Asked for many puzzles at once."""

    reads_votes: bool
    """Whether it reads votes, or the trust in a leading answer."""
    reads_trust: bool
    """Whether it reads trust."""
    needs_verifier: bool
    reads_sparsity: bool
    """Whether the trust that it reads is how little sparse `h` is, in place of a predicted accuracy."""
    stops_at_halt: bool
    """Whether a puzzle's trajectories between two looks start together and all stop at the first that halts, which then
    is the trust that it reads."""

    criterion: Criterion
    threshold: float = 0.0
    """Of a criterion of trust."""

    def looks(self, width: Rows) -> Bools:
        """Whether it decides at such a width at all."""
        ...

    def decides(self, now: Standing) -> Bools:
        """Whether these trajectories decide, where it looks."""
        ...

    def next_look(self, now: Standing) -> Rows:
        """The smallest greater width at which a decision is possible. Follows from the width alone but where the
        criterion is the lead."""
        ...

    def enough(self, second: Rows) -> Rows:
        """Votes with which the leading answer is decided where the next one has `second`; 0 of another criterion."""
        return np.zeros_like(second)


class Staged(WidthPolicy):
    """1, 4, 16, ... trajectories, until the leading answer has one whose predicted accuracy is trusted."""

    criterion: Criterion = "leader_trust"
    reads_votes = reads_trust = True
    needs_verifier = reads_sparsity = stops_at_halt = False

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def looks(self, width: Rows) -> Bools:
        return np.isin(width, STAGES)

    def decides(self, now: Standing) -> Bools:
        return np.asarray(now.leader_trust >= self.threshold)

    def next_look(self, now: Standing) -> Rows:
        return np.asarray(STAGES[np.searchsorted(STAGES, now.width, side="right")])


class Trusted(Staged):
    """1, 4, 16, ... trajectories, until one of them is trusted, whatever the others say: for a lattice, whose
    trajectories are either solved or worth nothing."""

    criterion: Criterion = "most_trust"
    reads_votes = False

    def decides(self, now: Standing) -> Bools:
        return np.asarray(now.most_trust >= self.threshold)


class NotSparse(Trusted):
    """1, 4, 16, ... trajectories, until one of them has a state that is no sparser than a threshold."""

    reads_sparsity = True

    def __init__(self, most: float) -> None:
        super().__init__(-most)


class FirstHalt(Trusted):
    """`stage` trajectories side by side, all of which stop as soon as one halts; the next ones where none does.

    Of a stage whose first halt comes after `s` supervision steps, every trajectory counts with `s` steps and what it
    holds then; several may halt there. First Finish Search (2505.18149), short-1@k (2505.17813).
    """

    stops_at_halt = True

    def __init__(self, stage: int) -> None:
        super().__init__(1.0)
        self.stage = stage

    def looks(self, width: Rows) -> Bools:
        return np.asarray(width % self.stage == 0)

    def next_look(self, now: Standing) -> Rows:
        return np.asarray((now.width // self.stage + 1) * self.stage)


class Decided(WidthPolicy):
    """Until the majority vote is decided: the leading answer probably has the larger share of the first two.

    With votes `a >= b` and a uniform prior on the leader's share of the two, that probability is
    `P(Binomial(a + b + 1, 1/2) <= a)` (adaptive consistency, 2305.11860). The test looks after every trajectory, so its
    error is larger than that of a single look: `error_rate` is exact for two answers of given shares.
    """

    criterion: Criterion = "lead"
    reads_votes = True
    reads_trust = needs_verifier = reads_sparsity = stops_at_halt = False

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.table = votes_enough(probability, 16)
        """`enough` of the first numbers of votes."""

    def looks(self, width: Rows) -> Bools:
        return _EVERYWHERE

    def decides(self, now: Standing) -> Bools:
        return np.asarray(now.first >= self.enough(now.second))

    def next_look(self, now: Standing) -> Rows:
        return np.asarray(now.width + np.maximum(1, self.enough(now.second) - now.first))

    def enough(self, second: Rows) -> Rows:
        try:
            return self.table[second]
        except IndexError:
            self.table = votes_enough(self.probability, 2 * int(second.max()))
            return self.table[second]


class Verified(WidthPolicy):
    """Until the verifier accepts one: an upper bound (pass@N) for tasks whose answers can be checked."""

    criterion: Criterion = "valid"
    needs_verifier = True
    reads_votes = reads_trust = reads_sparsity = stops_at_halt = False

    def looks(self, width: Rows) -> Bools:
        return _EVERYWHERE

    def decides(self, now: Standing) -> Bools:
        return now.is_any_valid

    def next_look(self, now: Standing) -> Rows:
        return np.asarray(now.width + 1)


def ahead_probability(first: int, second: int) -> float:
    """Probability that the answer with `first` votes has the larger share than that with `second <= first`."""
    trials = first + second + 1
    return sum(math.comb(trials, count) for count in range(first + 1)) / float(2**trials)


@cache
def votes_enough(probability: float, count: int) -> Rows:
    """Fewest votes with which an answer leads with `probability`, where the next one has 0, 1, ... of fewer than
    `count`."""
    enough, first = [], 0
    for second in range(count):
        first = max(first, second)
        while ahead_probability(first, second) < probability:
            first += 1
        enough.append(first)
    return np.array(enough)


def error_rate(probability: float, larger_share: float, width: int) -> float:
    """Probability that `Decided` stops at the answer of smaller share, where two answers of shares `larger_share` and
    `1 - larger_share` alone occur and at most `width` trajectories are drawn. Exact."""
    undecided, wrong = {(0, 0): 1.0}, 0.0
    for _ in range(width):
        reached: dict[tuple[int, int], float] = {}
        for (right, other), mass in undecided.items():
            for after, share in (((right + 1, other), larger_share), ((right, other + 1), 1 - larger_share)):
                if ahead_probability(max(after), min(after)) >= probability:
                    wrong += mass * share if after[1] > after[0] else 0.0
                else:
                    reached[after] = reached.get(after, 0.0) + mass * share
        undecided = reached
    return wrong


def width_policy_of(config: ResolvedConfig) -> WidthPolicy | None:
    """The policy of resolved settings; None is the fixed width."""
    return _policy(config.width_policy, config.width_threshold, config.stage)


def _policy(name: str, threshold: float | None, stage: int) -> WidthPolicy | None:
    policies: dict[str, WidthPolicy] = {
        "staged": Staged(threshold or 0.0),
        "trusted": Trusted(threshold or 0.0),
        "sparse": NotSparse(threshold or 0.0),
        "decided": Decided(threshold or 0.0),
        "verified": Verified(),
        "first-halt": FirstHalt(stage),
    }
    return policies.get(name)


def first_look(name: str, threshold: float | None, width: int, stage: int | None = None) -> int:
    """Trajectories of a puzzle that run to their own end whatever is found: those before a policy's first look, of
    `width` at most. None do where several stop at the first halt; `stage` is the settings' `width_stage`.

    Later ones run only where the earlier ones were not enough, so that a mean over them favours puzzles that were
    decided early.
    """
    stage = width if stage is None else stage
    if (policy := _policy(name, threshold, stage)) is None:
        return width
    if policy.stops_at_halt and stage > 1:
        return 0
    return min(width, int(policy.next_look(NOTHING)[0]))
