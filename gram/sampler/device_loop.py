"""Continuous batching that runs on the device: it halts, keeps what leaves and refills without asking the host.

The same loop as the engine's, for what needs no decision of the host: a fixed width without resampling, a halting rule
that reads no answers, nobody who watches. Every operation is on tensors of fixed shapes and none waits for the device,
so that the host hands over several supervision steps at a time and then reads once which trajectories have ended. The
order of refill is the scheduler's, and noise is by name: every trajectory is the engine's, bit for bit. On a CPU the
same code runs, for its test.

Shapes: `S` slots, `Q` places of the queue, `R` rows of the table of trajectories (and one behind, for what nobody
keeps), `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gram.config import ResolvedConfig
from gram.sampler import halting
from gram.sampler.halting import Readings
from gram.sampler.scheduler import Final, OpenShard, Scheduler

if TYPE_CHECKING:
    from gram.sampler.engine import SlotStates

STEPS_A_READBACK = 8
"""Supervision steps that the host hands over at a time."""


def can_run(config: ResolvedConfig, slots: SlotStates) -> bool:
    """Whether a run that nobody watches needs no decision of the host."""
    return (
        slots.latent == "continuous"
        and not slots.model.config.demonstrations
        and slots.is_padded
        and slots.views is None
        and not config.measures_sparsity
        and config.width_policy == "fixed"
        and config.resampler == "none"
        and not halting.RULES[config.halting].needs_answers
    )


class Found(NamedTuple):
    """What trajectories left, by row of the table, on the device: `[R + 1]` each."""

    margin: Tensor
    residual: Tensor
    halt: Tensor
    lprm: Tensor
    steps: Tensor
    is_halted: Tensor
    has_ended: Tensor
    answers: Tensor
    """`[R + 1, A]`, uint8."""

    @classmethod
    def blank(cls, rows: int, answer_tokens: int, device: torch.device) -> Found:
        """Room for so many rows."""

        def zeros(kind: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=kind, device=device)

        return cls(
            margin=zeros(torch.float32),
            residual=zeros(torch.float32),
            halt=zeros(torch.float32),
            lprm=zeros(torch.float32),
            steps=zeros(torch.int32),
            is_halted=zeros(torch.bool),
            has_ended=zeros(torch.bool),
            answers=zeros(torch.uint8, answer_tokens),
        )


class DeviceLoop:
    """One run. `step` asks nothing of the host; `give` and `take` are one copy each."""

    def __init__(
        self, slots: SlotStates, scheduler: Scheduler, config: ResolvedConfig, *, first_halt: int, depth: int
    ) -> None:
        self.slots, self.scheduler, self.config = slots, scheduler, config
        self.first_halt, self.depth = first_halt, depth
        device = slots.h.device
        self.size = slots.count * (1 + STEPS_A_READBACK)
        """Trajectories that may wait on the device: one for each slot and step until the next readback."""
        tokens = slots.model.config.tokens
        self.queue = torch.zeros(3 + tokens, self.size, dtype=torch.int64, device=device)
        """Row in the table, puzzle hash, id and puzzle of each waiting trajectory; a ring."""
        self.first = torch.zeros((), dtype=torch.int64, device=device)
        """How many trajectories have left the queue."""
        self.last = torch.zeros((), dtype=torch.int64, device=device)
        """How many have come to it."""
        self.given = self.taken = 0
        """The same, as the host knows them: what has come, and what had certainly left at the last readback."""
        self.row = torch.full((slots.rows,), -1, dtype=torch.int64, device=device)
        """The trajectory in each slot, by its row in the table; -1 for none."""
        self.is_slot = torch.arange(slots.rows, device=device) < slots.count
        self.steps_run = torch.zeros((), dtype=torch.int64, device=device)
        self.found = Found.blank(1, slots.model.config.output_tokens, device)
        self.ended = np.zeros(0, bool)
        """Trajectories whose end the host knows, by row."""

    def run(self) -> Iterator[tuple[list[OpenShard], int, int]]:
        """After every readback: the shards that are finished, trajectories that have ended since, and supervision
        steps taken so far."""
        while self.give() or self.scheduler.open:
            for _ in range(STEPS_A_READBACK):
                self.step()
            yield self.take()

    def give(self) -> int:
        """Tops up the queue, and gives every row of the table its place among the results. Returns how many came."""
        rows = self.scheduler.next_needed(self.size - (self.given - self.taken))
        table, slots = self.scheduler.table, self.slots
        if len(table.id) >= len(self.found.steps):
            more = Found.blank(len(table.id) + 1, slots.model.config.output_tokens, slots.h.device)
            for old, new in zip(self.found, more, strict=True):
                new[: len(old) - 1] = old[:-1]
            self.found = more
            self.ended = np.pad(self.ended, (0, len(table.id) - len(self.ended)))
        if not len(rows):
            return 0
        puzzles = table.puzzle[rows]
        place = (self.given + np.arange(len(rows))) % self.size
        named = np.stack([rows, table.hashes[puzzles], table.id[rows]])
        index, names, tokens = slots.send(place, named, table.puzzles[puzzles].T)
        self.queue[:3, index], self.queue[3:, index] = names, tokens
        self.found.has_ended[names[0]] = False
        self.ended[rows] = False
        self.given += len(rows)
        self.last += len(rows)
        return len(rows)

    def step(self) -> None:
        """Fills free slots, takes one supervision step of every slot, and keeps what leaves."""
        slots = self.slots
        self._fill()
        is_active = self.row >= 0
        self.steps_run += is_active.sum()
        slots.advance(slots.rows)
        margin, residual, answers = slots.read_states(slice(0, slots.rows))
        taken = slots.device_names[2]
        # Rules compare, which they do on tensors as they do on arrays.
        now = Readings(step=taken, halt=slots.halt, residual=residual, unchanged=taken)  # type: ignore[arg-type]
        stops: Any = halting.stops(self.config.halting, self.config.halt_threshold, self.first_halt, now)
        is_leaving: Tensor = is_active & (stops | (taken >= self.depth))
        row = torch.where(is_leaving, self.row, len(self.found.steps) - 1)
        left = Found(margin, residual, slots.halt, slots.lprm, taken.int(), stops, is_leaving, answers)
        for kept, new in zip(self.found, left, strict=True):
            kept[row] = new
        self.row = torch.where(is_leaving, -1, self.row)

    def _fill(self) -> None:
        """Gives the next waiting trajectories to the free slots, in the order of both."""
        slots = self.slots
        wants = (self.row < 0) & self.is_slot
        next_ = self.first + wants.cumsum(0) - 1
        is_new = wants & (next_ < self.last)
        self.first += is_new.sum()
        row, hash_, trajectory, *_ = coming = self.queue[:, next_.clamp(min=0) % self.size]
        self.row = torch.where(is_new, row, self.row)
        names = torch.stack([hash_, trajectory, torch.zeros_like(hash_)])
        slots.device_names.copy_(torch.where(is_new, names, slots.device_names))
        h, l, e_x = slots.initial(coming[3:].T, None, names)
        for state, start in ((slots.h, h), (slots.l, l), (slots.e_x, e_x)):
            state.copy_(torch.where(is_new[:, None, None], start, state))

    def take(self) -> tuple[list[OpenShard], int, int]:
        """Reads which trajectories have ended. Their answers follow once a shard is finished."""
        first, steps, has_ended = self.slots.fetch(self.first[None], self.steps_run[None], self.found.has_ended[:-1])
        self.taken = int(first[0])
        new = np.flatnonzero(has_ended & ~self.ended)
        self.ended[new] = True
        finished = self.scheduler.count(self.scheduler.table.shard[new])
        for opened in finished:
            self._keep(opened)
        return finished, len(new), int(steps[0])

    def _keep(self, opened: OpenShard) -> None:
        """Copies the results of a finished shard into the table."""
        margin, residual, halt, lprm, steps, is_halted, _, answers = self.slots.fetch(
            *(each[opened.rows] for each in self.found)
        )
        rows = np.arange(opened.start, opened.start + opened.size)
        self.scheduler.table.end(rows, Final(answers, steps, halt, lprm, residual, margin, is_halted))
