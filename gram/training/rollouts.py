"""Prior rollouts beside training: what the halt head and LPRM learn from.

Every optimiser step advances a few trajectories under the prior, on training puzzles, without gradients. Each ends at a
random depth, mostly a small one: early answers often fail, and the heads must see such final answers too. The states of
a finished rollout go to a replay buffer with two targets: whether the state's own answer is right, and whether the last
one was.

Shapes: `S` rollout slots, `M` depth, `L` tokens (registers included), `D` columns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ModelConfig
from gram.identities import IdentityTable
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step, Weights, decode
from gram.kernels.spec import LEARNED, Injection
from gram.model import embed
from gram.tasks.protocol import Tokens, puzzle_hash
from gram.training.config import TrainConfig
from gram.training.data_parallel import Ranks
from gram.training.objective import Replay
from gram.training.puzzles import TrainingPuzzles
from gram.training.slots import begin

CAPACITY = 2048
"""States kept for replay, on all ranks together; at 48 rollouts they are at most about 45 optimiser steps old."""
FIRST_TRAJECTORY = 1 << 31
"""Trajectory ids of rollouts start here, apart from those of training slots."""

_ARRAYS = ("puzzles", "targets", "hashes", "trajectory", "taken", "last", "past_right", "kept_right", "kept_final")
_COUNTS = ("started", "written")
_TENSORS = ("h", "l", "past_h", "kept_h")
_WAITING = "waiting."


class Unjudged(NamedTuple):
    """Answers of one step of every rollout, before anybody has looked whether they are right."""

    answers: Callable[[], Tokens]
    """`[S, A]`; waits for the device where that has not given them yet."""
    puzzles: Tokens
    targets: Tokens
    taken: NDArray[np.int64]
    """Steps taken before this one."""
    last: NDArray[np.int64]


class Rollouts:
    """Slots of prior rollouts and the replay of their states."""

    def __init__(
        self,
        puzzles: TrainingPuzzles,
        config: ModelConfig,
        training: TrainConfig,
        dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.source, self.config, self.spec, self.seed, self.ranks = puzzles, config, config.spec, training.seed, ranks
        self.slots = slots = max(1, training.rollout_slots // ranks.size)
        # As sampling would: a model that was trained with fixed noise meets it here too.
        is_path = config.injector == "path"
        self.injection = Injection(injector="path", sigma=config.path_noise) if is_path else LEARNED
        state = (slots, config.length, config.dim)
        self.h = torch.zeros(state, dtype=dtype, device=device)
        self.l = torch.zeros(state, dtype=dtype, device=device)
        self.puzzles = np.zeros((slots, config.tokens), np.uint8)
        self.targets = np.zeros((slots, config.output_tokens), np.uint8)
        self.identities = np.zeros(slots, np.int64)
        self.hashes = np.zeros(slots, np.int64)
        self.trajectory = np.zeros(slots, np.int64)
        self.taken = np.zeros(slots, np.int64)
        self.last = np.zeros(slots, np.int64)
        self.started = 0
        self.is_empty = None if config.is_conditional else torch.ones(slots, dtype=torch.bool, device=device)
        self.past_h = torch.zeros((slots, config.depth, *state[1:]), dtype=dtype, device=device)
        self.past_right = np.zeros((slots, config.depth), np.uint8)
        self.capacity = max(1, CAPACITY // ranks.size)
        self.kept_h = torch.zeros((self.capacity, *state[1:]), dtype=dtype, device=device)
        self.kept_right = np.zeros(self.capacity, np.float32)
        self.kept_final = np.zeros(self.capacity, np.float32)
        self.written = 0
        self.judged = 0
        """States in the replay whose rightness is known: all but those of `waiting`."""
        self.late = 0
        """Steps after which answers are judged. A device then need not be waited for: it is at work on these steps."""
        self.waiting: deque[Unjudged] = deque()
        self.share_right = math.nan
        """Share of right answers of the step judged last."""

    def replace(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draws new puzzles where rollouts have ended, and returns these slots, whose states are to begin anew."""
        free = np.flatnonzero(self.taken == self.last)
        if not len(free):
            return free
        puzzles, targets, identities = self.source.draw_identified(rng, len(free))
        self.puzzles[free], self.targets[free], self.identities[free] = puzzles, targets, identities
        self.hashes[free] = [puzzle_hash(self.source.task.name, puzzle) for puzzle in puzzles]
        number = (self.started + np.arange(len(free))) * self.ranks.size + self.ranks.rank
        self.trajectory[free] = FIRST_TRAJECTORY + number
        self.started += len(free)
        self.taken[free] = 0
        # Mostly short: late answers are nearly always right and teach the heads nothing.
        self.last[free] = np.minimum(
            rng.integers(1, self.config.depth + 1, len(free)), rng.integers(1, self.config.depth + 3, len(free))
        )
        return free

    def _key(self, slots: NDArray[np.int64] | slice) -> NoiseKey:
        arrays = self.hashes[slots], self.trajectory[slots], self.taken[slots]
        return NoiseKey.of_arrays(self.seed, *arrays, self.h.device)

    @torch.no_grad()
    def advance(
        self,
        step_function: Callable[..., Step],
        weights: Weights,
        rng: np.random.Generator,
        table: IdentityTable | None = None,
    ) -> float:
        """One supervision step of every rollout, with the model's `table` where it has one; returns the share of
        answers now right."""
        if len(free := self.replace(rng)):
            begin(self.h, self.l, free, self.config, weights, self._key(free))
        device = self.h.device
        registers = None
        if table is not None:
            registers = table.fill(table.take(torch.from_numpy(self.identities))).to(device, self.h.dtype)
        puzzles = torch.from_numpy(self.puzzles.astype(np.int64)).to(device)
        state = step_function(
            weights,
            self.spec,
            self.h,
            self.l,
            embed(weights, self.config, puzzles, is_empty_P=self.is_empty, registers_PRD=registers),
            self._key(slice(None)),
            injection=self.injection,
        )
        self.h, self.l = state.h.clone(), state.l.clone()
        answers = decode(weights, self.spec, self.h).argmax(-1).to(torch.uint8).cpu().numpy()
        every = torch.arange(self.slots, device=device)
        self.past_h[every, torch.from_numpy(self.taken).to(device)] = self.h
        for slot, places in self.count(lambda: answers):
            self.kept_h[torch.from_numpy(places).to(device)] = self.past_h[slot, : len(places)]
        self.judge()
        return self.share_right

    def count(self, answers: Callable[[], Tokens]) -> list[tuple[int, NDArray[np.int64]]]:
        """Counts a step of every rollout, which gave `answers`. Returns the slots of those that it ends, with the
        places of their states in the replay."""
        arrays = self.puzzles.copy(), self.targets.copy(), self.taken.copy(), self.last.copy()
        self.waiting.append(Unjudged(answers, *arrays))
        self.taken += 1
        moves = list(self._places(self.taken, self.last, self.written))
        self.written += sum(len(places) for _, places in moves)
        return moves

    def _places(
        self, taken: NDArray[np.int64], last: NDArray[np.int64], first: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The slots that have taken their last step, and their places in the replay behind `first` others."""
        for slot in np.flatnonzero(taken == last):
            count = int(last[slot])
            yield int(slot), (first + np.arange(count)) % self.capacity
            first += count

    def judge(self) -> None:
        """Looks which answers are right, of all steps but the last `late`."""
        every = np.arange(self.slots)
        while len(self.waiting) > self.late:
            step = self.waiting.popleft()
            is_right = self.source.are_right(step.puzzles, step.targets, step.answers())
            self.past_right[every, step.taken] = is_right
            for slot, places in self._places(step.taken + 1, step.last, self.judged):
                self.kept_right[places] = self.past_right[slot, : len(places)]
                self.kept_final[places] = self.past_right[slot, len(places) - 1]
                self.judged += len(places)
            self.share_right = float(is_right.mean())

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, of all ranks one after another; each must ask."""
        device = self.h.device
        arrays = {name: torch.from_numpy(getattr(self, name).copy()).to(device) for name in self._arrays()}
        counts = {name: torch.tensor([getattr(self, name)], device=device) for name in _COUNTS}
        tensors = {name: getattr(self, name) for name in _TENSORS}
        waiting = {}
        if self.waiting:
            every = zip(*((step.answers(), *step[1:]) for step in self.waiting), strict=True)
            named = zip(Unjudged._fields, map(np.stack, every), strict=True)
            waiting = {_WAITING + name: torch.from_numpy(each).to(device) for name, each in named}
        held = {**arrays, **counts, **tensors, **waiting}
        return {name: self.ranks.gather(value) for name, value in held.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Saved by another number of ranks, the rollouts begin anew: no rank had these."""
        if len(tensors["started"]) != self.ranks.size:
            return
        own = {name: value.chunk(self.ranks.size)[self.ranks.rank] for name, value in tensors.items()}
        for name in self._arrays():
            setattr(self, name, own[name].numpy().copy())
        for name in _COUNTS:
            setattr(self, name, int(own[name]))
        for name in _TENSORS:
            getattr(self, name).copy_(own[name])
        self.waiting.clear()
        kept = [own[_WAITING + name].numpy().copy() for name in Unjudged._fields if _WAITING + name in own]
        for answers, *arrays in zip(*kept, strict=True):
            self.waiting.append(Unjudged(partial(np.asarray, answers), *arrays))
        ended = (step.last[step.taken + 1 == step.last].sum() for step in self.waiting)
        self.judged = self.written - int(sum(ended))

    def _arrays(self) -> tuple[str, ...]:
        """What a state holds of each slot beside the latent ones."""
        return (*_ARRAYS, "identities") if self.config.identity_dim else _ARRAYS

    def draw(self, rng: np.random.Generator, count: int) -> Replay:
        """`count` states of finished rollouts, with weight 0 while there are none."""
        index, share = self.choose(rng, count)
        device = self.h.device
        return Replay(
            h=self.kept_h[torch.from_numpy(index).to(device)],
            is_right=torch.from_numpy(self.kept_right[index]).to(device),
            final=torch.from_numpy(self.kept_final[index]).to(device),
            share=torch.full((count,), share, device=device),
        )

    def choose(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], float]:
        """The places of `count` judged states `[count]`, and the weight of each: 0 while there are none."""
        filled = min(self.written, self.capacity)
        places = np.delete(np.arange(filled), np.arange(self.judged, self.written) % self.capacity)
        drawn = rng.integers(0, max(1, len(places)), count)
        return (places[drawn], 1.0) if len(places) else (drawn, 0.0)
