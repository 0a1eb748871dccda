"""Width policies: how many trajectories of a puzzle are enough. Each is a sequential test, one small class.

A policy looks at the trajectories in the order of their ids, never in that of their arrival. It decides at the smallest
`n` at which trajectories `0 .. n-1` are enough, so the decision is the same for any number of slots or workers. It also
names the next `n` at which a decision is possible: trajectories beyond are not needed yet.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

from gram.config import ResolvedConfig

FIRST_STAGE, STAGE_FACTOR = 1, 4
THRESHOLDS = {"staged": 0.9, "trusted": 0.5, "decided": 0.95}
"""Where nobody names one."""


class SequentialTest:
    """One puzzle's test so far: what its first trajectories answered, in order."""

    def __init__(self) -> None:
        self.votes: Counter[bytes] = Counter()
        """Trajectories that gave each canonical answer; in order of first appearance."""
        self.trust: dict[bytes, float] = {}
        """Highest predicted accuracy of a trajectory that gave the answer."""
        self.is_any_valid = False
        """Whether the verifier accepts one of them (only where a policy asks it)."""

    def add(self, answer: bytes, trust: float, is_valid: bool) -> None:
        """The next trajectory."""
        self.votes[answer] += 1
        self.trust[answer] = max(trust, self.trust.get(answer, trust))
        self.is_any_valid |= is_valid

    @property
    def width(self) -> int:
        return self.votes.total()

    @property
    def leader(self) -> bytes:
        """The answer that the selector `vote` would pick: most votes, ties to the first to appear."""
        return max(self.votes, key=self.votes.__getitem__)

    @property
    def lead(self) -> tuple[int, int]:
        """Votes of the leading answer and of the next one."""
        counts = sorted(self.votes.values(), reverse=True)
        return (counts[0] if counts else 0, counts[1] if len(counts) > 1 else 0)


class WidthPolicy(Protocol):
    """When a puzzle has enough trajectories."""

    needs_verifier: bool

    def decides(self, test: SequentialTest) -> bool:
        """Whether these trajectories decide; asked at every width that `next_look` names."""
        ...

    def next_look(self, test: SequentialTest) -> int:
        """The smallest greater width at which a decision is possible."""
        ...


class Staged:
    """1, 4, 16, ... trajectories, until the leading answer has one whose predicted accuracy is trusted."""

    needs_verifier = False

    def __init__(self, trusted: float) -> None:
        self.trusted = trusted

    def decides(self, test: SequentialTest) -> bool:
        return test.trust[test.leader] >= self.trusted

    def next_look(self, test: SequentialTest) -> int:
        stage = FIRST_STAGE
        while stage <= test.width:
            stage *= STAGE_FACTOR
        return stage


class Trusted(Staged):
    """1, 4, 16, ... trajectories, until one of them is trusted, whatever the others say: for a lattice, whose
    trajectories are either solved or worth nothing."""

    def decides(self, test: SequentialTest) -> bool:
        return max(test.trust.values()) >= self.trusted


class Decided:
    """Until the majority vote is decided: the leading answer probably has the larger share of the first two.

    With votes `a >= b` and a uniform prior on the leader's share of the two, that probability is
    `P(Binomial(a + b + 1, 1/2) <= a)` (adaptive consistency, 2305.11860). The test looks after every trajectory, so its
    error is larger than that of a single look: `error_rate` is exact for two answers of given shares.
    """

    needs_verifier = False

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def decides(self, test: SequentialTest) -> bool:
        return ahead_probability(*test.lead) >= self.probability

    def next_look(self, test: SequentialTest) -> int:
        first, second = test.lead
        more = 1
        while ahead_probability(first + more, second) < self.probability:
            more += 1
        return test.width + more


class Verified:
    """Until the verifier accepts one: an upper bound (pass@N) for tasks whose answers can be checked."""

    needs_verifier = True

    def decides(self, test: SequentialTest) -> bool:
        return test.is_any_valid

    def next_look(self, test: SequentialTest) -> int:
        return test.width + 1


def ahead_probability(first: int, second: int) -> float:
    """Probability that the answer with `first` votes has the larger share than that with `second <= first`."""
    trials = first + second + 1
    return sum(math.comb(trials, count) for count in range(first + 1)) / float(2**trials)


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
    threshold = config.width_threshold or 0.0
    policies: dict[str, WidthPolicy] = {
        "staged": Staged(threshold),
        "trusted": Trusted(threshold),
        "decided": Decided(threshold),
        "verified": Verified(),
    }
    return policies.get(config.width_policy)
