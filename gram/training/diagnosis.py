"""The leak diagnosis: does the noise carry a choice that the prior can make, or the target itself?

Training follows a posterior that sees the target, so its loss can look perfect while the model has learned nothing. Two
figures show it. The first is the KL per token at the first noisy step, over all its transitions, also those whose KL is
not in the loss. The second is the accuracy of rollouts of the prior, which sees no target. The second decides.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from gram.kernels.spec import Guidance

LEAKING_ABOVE = 0.2
"""Nats per token."""
COLLAPSED_BELOW = 0.004
"""Nats per token."""
FAILING_BELOW = 0.05
"""Share of right prior rollouts."""
SENSIBLE_FRACTION = 0.25
"""Part of a run after which some prior rollouts have to be right."""
RECENT_LINES = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What the diagnosis looks at: means over lines of a log; NaN where there is none."""

    kl_first: float
    """KL per token at the first noisy step, nats, summed over its transitions."""
    rollout_right: float = math.nan
    """Share of prior rollouts' answers that are right, on training puzzles."""
    exact: float = math.nan
    """Share of slots that decode their target under the posterior."""
    fraction: float = 0.0
    """Part of the run done, in [0, 1]."""


def recent_signs(path: Path) -> Signs:
    """Signs over the last `RECENT_LINES` lines of the log `path` that have each, since a single step's come of a few
    slots; of its later half alone, since a short run's first steps say nothing of its end."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def mean(name: str) -> float:
        later = lines[len(lines) // 2 :]
        recent = [line[name] for line in later if line.get(name) is not None][-RECENT_LINES:]
        return sum(recent) / len(recent) if recent else math.nan

    fraction = lines[-1].get("fraction", 0.0) if lines else 0.0
    return Signs(kl_first=mean("kl_first"), rollout_right=mean("rollout_right"), exact=mean("exact"), fraction=fraction)


def diagnose(signs: Signs) -> str:
    """The leak diagnosis in a word: `leaking`, `collapsed`, `failing`, `healthy`, or `undefined` without guidance."""
    if math.isnan(signs.kl_first):
        return "undefined"
    if signs.kl_first > LEAKING_ABOVE:
        return "leaking"
    if signs.kl_first < COLLAPSED_BELOW:
        return "collapsed"
    is_failing = signs.fraction >= SENSIBLE_FRACTION and signs.rollout_right < FAILING_BELOW
    return "failing" if is_failing else "healthy"


def explain(signs: Signs, *, guidance: Guidance = "full", is_multi_solution: bool = True) -> str:
    """The leak diagnosis as a sentence; empty where the model has no guidance."""
    word = "undefined" if guidance == "none" else diagnose(signs)
    if word == "undefined":
        return ""
    carrier = {"mean": "mean", "noise": "deviation"}.get(guidance, "noise")
    meaning = {
        "leaking": "leaking: the posterior tells the state more of the target than the prior can; expect good training "
        "loss and poor prior rollouts, and raise kl_beta",
        "healthy": f"healthy: the {carrier} carries a choice between solutions that the prior can make alone",
        "collapsed": "collapsed: the noise carries nothing and trajectories hardly differ; lower kl_beta",
        "failing": f"failing: the KL looks sound, yet prior rollouts are wrong after {signs.fraction:.0%} of the run",
    }[word]
    if word == "collapsed" and not is_multi_solution:
        meaning = f"collapsed: the {carrier} carries nothing, as it may where every puzzle has one solution"
    elif word == "collapsed" and guidance != "full":
        meaning = f"collapsed: the {carrier}, all that guides here, carries nothing of the target"
    text = f"KL per token at the first noisy step {signs.kl_first:.3f} nats, {meaning}"
    if math.isnan(signs.rollout_right):
        return text
    rollouts = f"{text}. Prior rollouts right {signs.rollout_right:.1%}"
    return rollouts if math.isnan(signs.exact) else f"{rollouts}, slots led by the posterior {signs.exact:.1%}"
