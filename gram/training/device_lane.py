"""What a lane of training holds on the device, so that the host sends one packed copy before a step and waits for
nothing (`device_trainer.py`).

The host decides every row's puzzle, target and name (`slots.py`, `rollouts.py`) and sends the rows that are new. Their
states, and the steps that they have taken, never leave the device. Answers of rollouts go back behind each step; the
host judges them two steps later, when they have long arrived.

Shapes: `B` rows of slots, `S` rollouts, `L` puzzle tokens, `A` answer tokens, `W` words of a row, `H` replayed states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step, Weights, decode, initial_noise
from gram.model import embed
from gram.tasks.protocol import Tokens
from gram.training.lanes import Lane
from gram.training.objective import Replay, SlotBatch
from gram.training.slots import put

LATE = 2
"""Steps after which answers are judged: while the device is at work on one step, the next already waits for it."""
NAMES = 3
"""Words that a row begins with: hash, trajectory and steps taken."""

Words = NDArray[np.int64]


class Packet:
    """Words for the device, in one copy from memory that it reads by itself."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.there = torch.zeros(size, dtype=torch.int64, device=device)
        is_pinned = device.type == "cuda"
        # One is written while the copies out of the others may still be going on.
        self.here = [torch.zeros(size, dtype=torch.int64, pin_memory=is_pinned) for _ in range(LATE + 1)]
        self.sent = 0

    def send(self, parts: list[Words]) -> list[Tensor]:
        """Copies arrays, and returns each as the device has it."""
        here = self.here[self.sent % len(self.here)]
        self.sent += 1
        sizes = [part.size for part in parts]
        np.concatenate([part.reshape(-1) for part in parts], out=here.numpy()[: sum(sizes)])
        self.copy(self.there[: sum(sizes)], here[: sum(sizes)])
        pieces = self.there[: sum(sizes)].split(sizes)
        return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]

    def copy(self, to: Tensor, source: Tensor) -> None:
        """One copy, which the host does not wait for."""
        to.copy_(source, non_blocking=True)


class Answers:
    """Answers on their way to the host."""

    def __init__(self, like: Tensor) -> None:
        self.is_remote = like.device.type == "cuda"
        self.here = torch.zeros(like.shape, dtype=like.dtype, pin_memory=self.is_remote)
        self.arrived = torch.cuda.Event() if self.is_remote else None

    def fetch(self, there: Tensor) -> None:
        """Begins the copy, behind all that the device has been given so far."""
        self.here.copy_(there, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def __call__(self) -> Tokens:
        if self.arrived is not None:
            self.arrived.synchronize()
        kept: Tokens = self.here.numpy().copy()
        return kept


class Given(NamedTuple):
    """What a step reads of its packet: always the same places, so that a captured step finds it."""

    numbers: Tensor
    """Learning rate and weight of the KL, fp64 `[2]`."""
    place: Tensor
    """Row of the figures that the step writes, `[1]`."""
    replayed: Tensor
    """Places of the replayed states, whether each and its last answer were right, and its weight: `[4, H]`."""


def _packed(columns: list[NDArray[Any]]) -> Words:
    """Columns side by side."""
    return np.concatenate(columns, 1, dtype=np.int64)


class DeviceLane:
    """One lane's rows on the device, and what the host does before and behind a step."""

    def __init__(self, lane: Lane, states: int, figures: int) -> None:
        """`states` are replayed each step; `figures` rows of figures are kept."""
        self.lane, self.states, self.figures = lane, states, figures
        slots, rollouts = lane.slots, lane.rollouts
        rollouts.late = LATE
        device = slots.h.device
        slot_words, rollout_words = self._slot_rows(np.arange(0)).shape[1], NAMES + lane.config.tokens
        self.rows = torch.zeros(len(slots.h), slot_words, dtype=torch.int64, device=device)
        """Names, `is_empty`, `is_prior`, puzzle, target and solutions of every slot, `[B, W]`."""
        self.rollout_rows = torch.zeros(rollouts.slots, rollout_words, dtype=torch.int64, device=device)
        """Names and puzzle of every rollout."""
        first = [np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros((4, states), np.int64)]
        moves = 2 * rollouts.slots * lane.config.depth
        size = sum(part.size for part in first) + moves + len(slots.h) * (1 + slot_words)
        self.packet = Packet(size + rollouts.slots * (1 + rollout_words), device)
        numbers, place, replayed = self.packet.send(first)
        self.given = Given(numbers.view(torch.float64), place, replayed)
        self.answers_SA = torch.zeros(rollouts.slots, lane.config.output_tokens, dtype=torch.uint8, device=device)
        self.arrivals = [Answers(self.answers_SA) for _ in range(LATE + 1)]
        self.stepped = 0
        """Steps of this lane."""
        self.is_stale = True
        """Whether the device has none of the rows: at the start, and after a state was loaded."""
        self.moves = torch.zeros(2, 0, dtype=torch.int64, device=device)

    def _slot_rows(self, index: Words) -> Words:
        slots = self.lane.slots
        names = (slots.hashes, slots.trajectory, slots.taken, slots.is_empty, slots.is_prior)
        tokens = (slots.puzzles, slots.targets, slots.solutions.reshape(len(slots.taken), -1))
        return _packed([*(name[index, None] for name in names), *(each[index] for each in tokens)])

    def _rollout_rows(self, index: Words) -> Words:
        rollouts = self.lane.rollouts
        names = (rollouts.hashes, rollouts.trajectory, rollouts.taken)
        return _packed([*(name[index, None] for name in names), rollouts.puzzles[index]])

    def prepare(
        self, weights: Weights, rng: np.random.Generator, step: int, fraction: float, rate: float, beta: float
    ) -> None:
        """Draws what optimiser step `step` needs, in the order of `Trainer.advance`, and sends it."""
        slots, rollouts = self.lane.slots, self.lane.rollouts
        new = slots.replace(rng, step, fraction)
        new_rollouts = rollouts.replace(rng)
        rows, rollout_rows = self._changed(new, len(slots.taken)), self._changed(new_rollouts, rollouts.slots)
        packed, packed_rollouts = self._slot_rows(rows), self._rollout_rows(rollout_rows)
        moves = rollouts.count(self._arrival())
        rollouts.judge()
        places, share = rollouts.choose(rng, self.states)
        kept = rollouts.kept_right[places], rollouts.kept_final[places]
        replayed = np.stack([places, *kept, np.full(self.states, share)]).astype(np.int64)
        depth = self.lane.config.depth
        moved = [np.stack([slot * depth + np.arange(len(to)), to]) for slot, to in moves]
        numbers, place = np.array([rate, beta]).view(np.int64), np.array([step % self.figures])
        parts = [numbers, place, replayed, np.concatenate([np.zeros((2, 0), np.int64), *moved], 1)]
        parts += [rows, packed, rollout_rows, packed_rollouts]
        *_, self.moves, index, words, rollout_index, rollout_words = self.packet.send(parts)
        self.is_stale = False
        slots.count()
        if len(rows):
            self.rows[index] = words
            self._begin(slots.h, slots.l, index[: len(new)], words, weights)
        if len(rollout_rows):
            self.rollout_rows[rollout_index] = rollout_words
            self._begin(rollouts.h, rollouts.l, rollout_index[: len(new_rollouts)], rollout_words, weights)

    def _changed(self, new: Words, count: int) -> Words:
        """The rows to send, of which `new` stand first."""
        return np.concatenate([new, np.setdiff1d(np.arange(count), new)]) if self.is_stale else new

    def _begin(self, h: Tensor, l: Tensor, index: Tensor, words: Tensor, weights: Weights) -> None:
        """Puts initial states into the rows `index`, whose words stand first."""
        config, new = self.lane.config, (weights["z0_h"], weights["z0_l"])
        if config.initial_std:
            new = initial_noise(config, self._key(words[: len(index)]), config.initial_std)
        put(h, l, index, new)

    def _key(self, rows: Tensor) -> NoiseKey:
        return NoiseKey(self.lane.slots.training.seed, *rows[:, :NAMES].T)

    def slot_batch(self) -> SlotBatch:
        """The slots as the loss takes them."""
        slots, config = self.lane.slots, self.lane.config
        flags = self.rows[:, NAMES : NAMES + 2] != 0
        tokens = self.rows[:, NAMES + 2 :].split([config.tokens, config.output_tokens, slots.solutions[0].size], 1)
        puzzles, targets, solutions = tokens
        solutions = solutions.unflatten(1, slots.solutions.shape[1:])
        return SlotBatch(slots.h, slots.l, puzzles, targets, solutions, *flags.T, *self.rows[:, :NAMES].T)

    def roll(self, weights: Weights, step_function: Callable[..., Step]) -> None:
        """One supervision step of every rollout."""
        rollouts, config = self.lane.rollouts, self.lane.config
        puzzles = self.rollout_rows[:, NAMES:]
        e_x = embed(weights, config, puzzles, is_empty_P=rollouts.is_empty)
        names = rollouts.h, rollouts.l, e_x, self._key(self.rollout_rows)
        state = step_function(weights, rollouts.spec, *names, injection=rollouts.injection)
        rollouts.h.copy_(state.h)
        rollouts.l.copy_(state.l)
        self.answers_SA.copy_(decode(weights, rollouts.spec, rollouts.h).argmax(-1))
        every = torch.arange(rollouts.slots, device=rollouts.h.device)
        rollouts.past_h[every, self.rollout_rows[:, 2]] = rollouts.h
        self.rollout_rows[:, 2] += 1

    def replay(self) -> Replay:
        """The states that the heads learn from."""
        place, *others = self.given.replayed
        return Replay(self.lane.rollouts.kept_h[place], *(other.to(torch.float32) for other in others))

    def carry(self, h: Tensor, l: Tensor) -> None:
        """Takes the slots' state after the step."""
        self.lane.slots.h.copy_(h)
        self.lane.slots.l.copy_(l)
        self.rows[:, 2] += 1

    def _arrival(self) -> Answers:
        """Where the answers of the lane's next step go."""
        return self.arrivals[self.stepped % len(self.arrivals)]

    def follow(self) -> None:
        """Behind a step: keeps the states of the rollouts that it ended, and sends its answers to the host."""
        rollouts = self.lane.rollouts
        if self.moves.shape[1]:
            sources, places = self.moves
            rollouts.kept_h[places] = rollouts.past_h.flatten(0, 1)[sources]
        self._arrival().fetch(self.answers_SA)
        self.stepped += 1
