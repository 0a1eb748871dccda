"""The settings of a training run and their defaults; recipes (TOML) use these field names under `[training]`.

Field strings say meaning, unit and range; `__post_init__` refuses what is out of range in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from gram.config import MOST, at_least, at_most, make_plain, one_of, within

Target = Literal["drawn", "set", "stored"]
ValueTarget = Literal["any", "share"]
SPARSE: dict[str, Any] = {"weight_share": 1.0, "weight_share_end": 0.5, "weight_least": 4}
"""Settings of weight-sparse training, as a dense one has them; at these values they stand not in a run's JSON."""
LATER: dict[str, Any] = {
    "play_averaged": False,
    "judge_weight": 1.0,
    "identity_learning_rate": 1e-2,
    "identity_weight_decay": 0.1,
    **SPARSE,
    "expert_balance": 0.01,
    "value_target": "any",
    "gradient_steps": 1,
    "late_share": 0.0,
    "late_steps": [32, 512],
    "reveal_until": 0.0,
}
"""Settings that came after the first runs, which lack them in their JSON, with the value by which all is as before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run (2605.19376, section 3; the schedules are ours, see docs/training.md)."""

    steps: int | None = None
    """Optimiser steps of the whole run; the schedules follow whichever of `steps` and `minutes` is nearer its end."""
    minutes: float | None = None
    """Wall-clock minutes of the whole run, resumed parts included. The weights then depend on the clock; with `steps`
    alone they do not."""
    batch: int = 256
    """Slots (puzzles in training at once) of all processes together. One optimiser step advances each by one
    supervision step."""
    split: str = "train"
    """Split of the task that training draws from."""
    target: Target = "drawn"
    """The target of a puzzle with several solutions. `drawn`: a random one each time. `set`: all of them,
    `-log sum_s p(s)`, which favours the nearest (for models without guidance). `stored`: one fixed solution, chosen by
    the puzzle's hash."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    warmup_steps: int = 100
    """Optimiser steps of linear warm-up."""
    final_learning_rate: float = 0.1
    """Final rate of the cosine, as a fraction of the peak."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay."""
    weight_decay: float = 0.2
    """Decoupled weight decay; embeddings, positions and biases included."""
    clip: float = 1.0
    """Largest global gradient norm."""
    ema: float = 0.99
    """Decay of the averaged weights that are shipped."""
    kl_beta: tuple[tuple[float, float], ...] = ((0.0, 1.5), (0.15, 1.5), (0.25, 6.0))
    """Piecewise linear weight of the KL: (fraction of training, value)."""
    kl_balance: float = 0.8
    """Share of the KL's gradient that moves the prior; the rest moves the posterior."""
    token_weights: tuple[tuple[int, float], ...] = ()
    """Weight of a target token in the cross-entropy where it is not 1: (token, weight)."""
    empty_probability: float = 0.0
    """Share of training puzzles shown as the empty condition (unconditional generation)."""
    prior_share: float = 0.0
    """On-policy fraction (ours): the share of slots whose trajectories follow the prior, as in sampling, and not the
    posterior. Their target is the nearest solution. They train the states that sampling visits, which off-policy slots
    never reach. Without a condition their target is a board near to their last answer."""
    best_of: int = 1
    """Best-of-many (ours): trajectories of each puzzle under the prior. The one nearest to the target takes the loss of
    a supervision step; there is no posterior and no KL. 1 trains by the posterior."""
    gradient_calls: int = 0
    """Gradients flow through this many core calls at the end of the last transition, its high-level update included.
    2 is HRM's one-step gradient (2506.21734), 0 the whole transition (TRM, GRAM)."""
    gradient_steps: int = 1
    """Supervision steps of one optimiser step. Each has its loss, and gradients flow through all of them and all their
    transitions; the state is detached where such a segment ends. It must divide the model's depth."""
    late_share: float = 0.0
    """Share of new slots that first run for `late_steps` as in sampling, without gradient: they train the states of
    great depths (after Sotaku)."""
    late_steps: tuple[int, ...] = (32, 512)
    """Fewest and most supervision steps of a late start. Each draws its own, as often below as above their geometric
    mean."""
    reveal_share: float = 0.5
    """Share of new states that reveal a random part of the solution; of continuous ones before `reveal_until` alone."""
    reveal_until: float = 0.0
    """Of continuous states: fraction of training before which new ones may reveal. The part that they reveal falls to
    nothing on a line. 0: none reveals."""
    longest_life: int = 60
    """Of a lattice: rounds after which a state is replaced."""
    rows_at_once: int = 16
    """States of one backward pass, of a lattice and of `gradient_steps` above 1; few stay in cache. Gradients of all of
    the batch are summed."""
    play_averaged: bool = False
    """Of a lattice: states are advanced by the averaged weights, as in sampling, for one more forward pass. The raw
    weights' judge swings from step to step, so that they lose states that the average would solve."""
    value_target: ValueTarget = "any"
    """Of a lattice: what it learns of the value of a token where several solutions are left. `any`: some value that one
    of them takes. `share`: each value in the share of the solutions that take it, by which commitments at temperature 1
    draw every solution equally often."""
    gradient_loops: int = 0
    """Of a lattice: loops of the core that a backward pass learns from; 0: all (`transitions`). Fewer must divide it:
    passes take the first ones, the next ... by turns, and run those before without gradient."""
    judge_weight: float = 1.0
    """Of a lattice: weight of the judge's loss. It is one number a state, the others are means over tokens: where
    states have many tokens and few are lost, its gradient alone would fill `clip`."""
    identity_learning_rate: float = 1e-2
    """Rate of SignSGD on the rows of a table of task embeddings; its schedule is that of `learning_rate`."""
    identity_weight_decay: float = 0.1
    """Decoupled weight decay of these rows, each time that one is learned."""
    weight_share: float = 1.0
    """Share of the weights of every matrix that is kept after each optimiser step, the largest of them, in (0, 1]; the
    others are zero, in the averaged weights too (2511.13653, `gram/training/weight_sparsity.py`). 1: all."""
    weight_share_end: float = 0.5
    """Fraction of training at which the share, which falls from 1 on a line, has reached `weight_share`."""
    weight_least: int = 4
    """Weights that each neuron (a row that reads, a column that writes) keeps at least where a share is dropped."""
    expert_balance: float = 0.01
    """Of a model with routed experts: weight of the loss that balances their loads (Switch, 2101.03961)."""
    rollout_slots: int = 48
    """Prior rollouts advanced beside each optimiser step; halt head and LPRM learn from them."""
    seed: int = 0
    """Seed of weights, data and noise."""
    evaluate_every_steps: int = 500
    """Optimiser steps between prior-rollout evaluations on held-out puzzles."""
    evaluate_puzzles: int = 96
    """Held-out puzzles of such an evaluation."""
    evaluate_width: int = 8
    """Trajectories per puzzle of such an evaluation."""
    checkpoint_every_steps: int = 250
    """Optimiser steps between checkpoints of the run."""

    def __post_init__(self) -> None:
        make_plain(self)
        if self.steps is None and self.minutes is None:
            raise ValueError("steps or minutes must be set, got neither")
        for name in ("batch", "best_of", "rollout_slots", "evaluate_puzzles", "evaluate_width"):
            at_least(name, getattr(self, name), 1)
        for name in ("evaluate_every_steps", "checkpoint_every_steps", "longest_life", "rows_at_once"):
            at_least(name, getattr(self, name), 1)
        one_of("target", self.target, get_args(Target))
        one_of("value_target", self.value_target, get_args(ValueTarget))
        at_least("gradient_calls", self.gradient_calls, 0)
        at_least("gradient_loops", self.gradient_loops, 0)
        if self.steps is not None:
            at_least("steps", self.steps, 1)
        within("seed", self.seed, 0, 2**63 - 1)
        for name in ("identity_learning_rate", "identity_weight_decay", "expert_balance", "judge_weight"):
            at_least(name, getattr(self, name), 0)
        if not 0 < self.weight_share <= 1:
            raise ValueError(f"weight_share must be above 0 and at most 1, got {self.weight_share:g}")
        at_least("weight_least", self.weight_least, 0)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        for name in (
            "kl_balance",
            "ema",
            "empty_probability",
            "prior_share",
            "beta1",
            "beta2",
            "final_learning_rate",
            "reveal_share",
            "reveal_until",
            "late_share",
            "weight_share_end",
        ):
            within(name, getattr(self, name), 0, 1)
        fractions = [point[0] for point in self.kl_beta]
        if not fractions or fractions != sorted(fractions):
            raise ValueError(f"kl_beta must list rising fractions of training, got {self.kl_beta}")
        if self.target == "set" and self.prior_share:
            raise ValueError(f"prior_share must be 0 with target set, got {self.prior_share:g}")
        if self.best_of > 1 and self.prior_share:
            raise ValueError(f"prior_share must be 0 with best_of {self.best_of}, got {self.prior_share:g}")
        self._check_depths()

    def _check_depths(self) -> None:
        """Raises `ValueError` where the settings of segments and late starts contradict each other."""
        at_least("gradient_steps", self.gradient_steps, 1)
        at_most("gradient_steps", self.gradient_steps, MOST["depth"])
        if self.gradient_steps > 1 and self.gradient_calls:
            raise ValueError(f"gradient_calls must be 0 with gradient_steps above 1, got {self.gradient_calls}")
        if self.gradient_steps > 1 and self.best_of > 1:
            raise ValueError(f"best_of must be 1 with gradient_steps above 1, got {self.best_of}")
        is_range = len(self.late_steps) == 2 and 1 <= self.late_steps[0] <= self.late_steps[1] <= MOST["depth"]
        if not is_range:
            expected = f"two numbers that rise within 1 and {MOST['depth']:,}"
            raise ValueError(f"late_steps must be {expected}, got {list(self.late_steps)}")

    def check_rows_at_once(self) -> None:
        """Raises `ValueError` where the batch is no whole number of backward passes."""
        if self.batch % self.rows_at_once:
            raise ValueError(f"batch must be a multiple of rows_at_once {self.rows_at_once}, got {self.batch}")

    def loops_with_gradient(self, transitions: int) -> int:
        """Loops of one backward pass of a lattice of so many. Raises `ValueError` where they do not divide these."""
        loops = self.gradient_loops or transitions
        if transitions % loops:
            raise ValueError(f"gradient_loops must divide the {transitions} transitions, got {loops}")
        return loops

    def segments(self, depth: int) -> int:
        """Segments of `gradient_steps` that a sequence of `depth` supervision steps has. Raises `ValueError` where they
        do not fill it."""
        if depth % self.gradient_steps:
            raise ValueError(f"gradient_steps must divide the model's depth {depth}, got {self.gradient_steps}")
        return depth // self.gradient_steps

    @property
    def has_posterior(self) -> bool:
        """Whether trajectories follow the posterior where the model has learned noise."""
        return self.best_of == 1

    @property
    def rows(self) -> int:
        """Trajectories of all slots."""
        return self.batch * self.best_of


class TrainOverrides(TypedDict, total=False):
    """Fields of `TrainConfig` that replace a recipe's (`gram.train`)."""

    steps: int | None
    minutes: float | None
    batch: int
    split: str
    target: Target
    learning_rate: float
    warmup_steps: int
    final_learning_rate: float
    beta1: float
    beta2: float
    weight_decay: float
    clip: float
    ema: float
    kl_beta: tuple[tuple[float, float], ...]
    kl_balance: float
    token_weights: tuple[tuple[int, float], ...]
    empty_probability: float
    prior_share: float
    best_of: int
    gradient_calls: int
    gradient_steps: int
    late_share: float
    late_steps: tuple[int, ...]
    reveal_share: float
    reveal_until: float
    longest_life: int
    rows_at_once: int
    play_averaged: bool
    value_target: ValueTarget
    gradient_loops: int
    judge_weight: float
    identity_learning_rate: float
    identity_weight_decay: float
    weight_share: float
    weight_share_end: float
    weight_least: int
    expert_balance: float
    rollout_slots: int
    seed: int
    evaluate_every_steps: int
    evaluate_puzzles: int
    evaluate_width: int
    checkpoint_every_steps: int
