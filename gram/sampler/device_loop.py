"""Continuous batching that runs on the device: it halts and refills without asking the host.

The same loop as the engine's, for what needs no decision of the host within a few supervision steps: no resampling, a
halting rule that reads no answers, trajectories that do not stop each other, nobody who watches. Every operation of a
step is on tensors of fixed shapes and addresses and none waits for the device, so several steps are one CUDA graph
(`stretches.py`). The host keeps a queue on the device filled and reads what trajectories have left one stretch late:
results, traces, and votes that decide an adaptive width. What ran beyond a decision is discarded, as the width policy's
prefix rule allows. The order of refill is the scheduler's, and noise is by name: every trajectory is the engine's, bit
for bit. On a CPU the same code runs, for its test.

Shapes: `S` slots (those in use, a whole number of launches), `K` steps of a stretch, `Q` places of the queue, `P`
puzzles of the run, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gram.config import ResolvedConfig
from gram.kernels import dispatch, graphs
from gram.sampler import halting, trace
from gram.sampler.halting import Readings
from gram.sampler.scheduler import Final, OpenShard, Scheduler
from gram.sampler.stretches import AHEAD, CalledStretches, CapturedStretches, Fields, Reports, Stretches

if TYPE_CHECKING:
    from gram.sampler.engine import SlotStates

STEPS_A_READBACK = 8
"""Supervision steps of a stretch. An even number: slots swap two buffers at every step, and a graph must leave them as
it found them."""
MOST_LAUNCHES = 4
"""Launches of a step of kernel `eager` that a graph takes: each is hundreds of operations or thousands."""
WIDTH_POLICIES = ("fixed", "staged", "trusted", "decided", "verified")
"""Those that can be decided late: they stop no trajectory that they have asked for."""
ROW, HASH, ID, PUZZLE = range(4)
"""What waits in the queue of each trajectory: its row in the table, the puzzle's hash, its id and the puzzle's place in
the run."""


def can_run(config: ResolvedConfig, slots: SlotStates) -> bool:
    """Whether a run that nobody watches needs no decision of the host within a stretch."""
    return (
        slots.latent == "continuous"
        and not slots.model.config.demonstrations
        and slots.is_padded
        and slots.views is None
        and not config.measures_sparsity
        and config.width_policy in WIDTH_POLICIES
        and config.resampler == "none"
        and not halting.RULES[config.halting].needs_answers
    )


def stretches_of(slots: SlotStates) -> Stretches:
    """How a run's stretches are run: as CUDA graphs on a GPU.

    Those of kernel `gemm` are called: its step is a graph of its own, and long enough for the host to keep ahead. So
    are those of `eager` in many launches, whose graph would be too large. Weights that do not count their changes are
    packed anew in every step, which no graph can hold.
    """
    kernel, weights = slots.config.kernel, slots.weights
    is_packed = kernel in dispatch.LAUNCHED
    if (
        not slots.h.is_cuda
        or kernel == "gemm"
        or (kernel == "eager" and slots.rows > MOST_LAUNCHES * slots.launch)
        or (is_packed and any(each.is_inference() for each in weights.values()))
        or not graphs.are_on()
    ):
        return CalledStretches()

    def keeps() -> Any:
        return dispatch.packed(weights, slots.spec, slots.h.dtype, kernel) if is_packed else weights

    return CapturedStretches(slots.h.device, keeps)


class DeviceLoop:
    """One run. `step` asks nothing of the host; `give` and `take` are a copy each way, without waiting in `give`."""

    def __init__(self, slots: SlotStates, scheduler: Scheduler, *, first_halt: int, depth: int) -> None:
        self.slots, self.scheduler, self.config = slots, scheduler, slots.config
        self.first_halt, self.depth = first_halt, depth
        self.stretches = stretches_of(slots)
        device = slots.h.device
        self.stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        puzzles = scheduler.table.puzzles
        launches = -(-min(slots.count, max(1, len(puzzles) * self.config.width)) // slots.launch)
        self.rows = launches * slots.launch
        """`S`: slots that the run's trajectories could never fill are left out."""
        self.used = min(slots.count, self.rows)
        """Those of them that trajectories may take; the others pad the last launch."""

        def whole(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int64, device=device)

        # Trajectories that a slot can end while the host knows nothing of it. What is decided late or traced takes
        # memory of the host for each trajectory that waits, so there they are as many as last eight steps on average.
        turns = -(-AHEAD * STEPS_A_READBACK // max(1, min(first_halt, depth)))
        if scheduler.table.depth or scheduler.tests is not None:
            turns = min(turns, AHEAD)
        self.size = turns * self.used
        """`Q`: a ring of what may start before the next but one report."""
        self.queue = whole(self.size, 4)
        self.mirror = torch.empty(self.size, 4, dtype=torch.int64, pin_memory=device.type == "cuda")
        """The queue on the host. A place is written again only when its trajectory is known to have started, so what
        is copied from it is never written meanwhile."""
        self.last = whole()
        """How many trajectories have come to the queue."""
        self.given = self.taken = 0
        """The same, as the host knows it: what has come, and what had left at the last report."""
        self.row = whole(self.rows, fill=-1)
        """The trajectory in each slot, by its row in the table; -1 for none."""
        self.puzzle = whole(self.rows)
        """Its puzzle, by its place in the run."""
        self.is_slot = torch.arange(self.rows, device=device) < self.used
        self.puzzles = torch.tensor(puzzles, device=device)
        """`[P, L]`, uint8."""
        self.is_decided = torch.zeros(len(puzzles), dtype=torch.bool, device=device)
        """Puzzles whose trajectories may leave."""
        self.decided = torch.zeros(len(puzzles), dtype=torch.bool, pin_memory=device.type == "cuda")
        """The same on the host, which only ever adds to it."""
        self.reports = Reports(device, fields_of(self.rows, slots.model.config.output_tokens))
        shown = self.reports.arrays
        self.first, self.steps_run = shown["first"].zero_(), shown["steps_run"].zero_()
        """Trajectories that have left the queue; supervision steps taken."""
        self.is_out = np.zeros(0, bool)
        """Trajectories that were given and that the host waits for, by row of the table."""
        self.alive = 0
        """How many these are."""
        self.since = 0
        """Stretches launched since something was given."""

    def run(self) -> Iterator[tuple[list[OpenShard], int, int]]:
        """After every report: the shards that are finished, trajectories that need no slot any more since the last one,
        and supervision steps taken so far."""
        try:
            while True:
                self.give()
                has_launched = self.is_needed()
                if has_launched:
                    self.launch()
                elif not self.reports.ahead:
                    return
                if self.reports.ahead == AHEAD or not has_launched:
                    yield self.take()
        finally:
            while self.reports.ahead:  # nothing may be freed that the device still uses
                self.reports.take()

    def on_stream(self) -> AbstractContextManager[Any]:
        """Makes the run's stream and device the current ones, whatever is done between two reports."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def is_needed(self) -> bool:
        """Whether another stretch may be of use: not where all trajectories will have ended in those on their way,
        however long each takes."""
        longest = -(-self.alive // self.used) * self.depth
        is_over = self.reports.ahead and min(self.reports.ahead, self.since) * STEPS_A_READBACK >= longest
        return bool(self.scheduler.open) and not is_over

    def give(self) -> None:
        """Tops up the queue, with what may come to be needed where slots would stand empty. That is so only once every
        shard is open, so that the row of what runs beyond a decision is never another trajectory's by then."""
        room = self.size - (self.given - self.taken)
        rows = self.scheduler.next_needed(room)
        if self.scheduler.tests is not None:
            idle = self.used - self.alive - len(rows)
            spare = self.scheduler.next_speculative(min(idle, room - len(rows)))
            rows = np.concatenate([rows, spare])
        if not len(rows):
            return
        table = self.scheduler.table
        puzzles = table.puzzle[rows]
        place = (self.given + np.arange(len(rows))) % self.size
        self.mirror.numpy()[place] = np.stack([rows, table.hashes[puzzles], table.id[rows], puzzles], 1)
        first, end = int(place[0]), int(place[0]) + len(rows)
        with self.on_stream():
            for part in (slice(first, min(end, self.size)), slice(0, max(0, end - self.size))):
                if part.stop > part.start:
                    self.queue[part].copy_(self.mirror[part], non_blocking=True)
            self.given += len(rows)
            self.last.fill_(self.given)
        if len(table.id) > len(self.is_out):
            self.is_out = np.pad(self.is_out, (0, len(table.id) - len(self.is_out)))
        self.is_out[rows] = True
        self.alive += len(rows)
        self.since = 0

    def launch(self) -> None:
        """Hands a stretch over."""
        with self.on_stream():
            self.stretches.run(self.stretch)
            self.reports.send()
        self.since += 1

    def stretch(self) -> None:
        """Some supervision steps. Nothing here may wait for the device, copy from the host or keep a new tensor."""
        for number in range(STEPS_A_READBACK):
            self._fill()
            self._step(number)

    def _fill(self) -> None:
        """Gives the next waiting trajectories to the free slots, in the order of both."""
        slots, rows = self.slots, slice(0, self.rows)
        if self.scheduler.tests is not None:
            self.row.masked_fill_(self.is_decided[self.puzzle], -1)
        wants = (self.row < 0) & self.is_slot
        next_ = self.first + wants.cumsum(0) - 1
        is_new = wants & (next_ < self.last)
        self.first += is_new.sum()
        coming = self.queue[next_ % self.size]
        self.row.copy_(torch.where(is_new, coming[:, ROW], self.row))
        self.puzzle.copy_(torch.where(is_new, coming[:, PUZZLE], self.puzzle))
        names = torch.stack([coming[:, HASH], coming[:, ID], torch.zeros_like(self.row)])
        slots.device_names[:, rows].copy_(torch.where(is_new, names, slots.device_names[:, rows]))
        starts = slots.initial(self.puzzles[coming[:, PUZZLE]].long(), None, names)
        for state, start in zip((slots.h[rows], slots.l[rows], slots.e_x[rows]), starts, strict=True):
            torch.where(is_new[:, None, None], start, state, out=state)

    def _step(self, number: int) -> None:
        """Takes one supervision step of every slot, and reports it as the stretch's step `number`."""
        slots, shown = self.slots, self.reports.arrays
        is_active = self.row >= 0
        self.steps_run += is_active.sum()
        slots.advance(self.rows)
        margin, residual, answers = slots.read_states(slice(0, self.rows))
        taken = slots.device_names[2, : self.rows]
        # Rules compare, which they do on tensors as they do on arrays.
        now = Readings(step=taken, halt=slots.halt, residual=residual, unchanged=taken)  # type: ignore[arg-type]
        stops: Any = halting.stops(self.config.halting, self.config.halt_threshold, self.first_halt, now)
        is_leaving = is_active & (stops | (taken >= self.depth))
        for name, value in {
            "row": self.row,
            "halt": slots.halt,
            "lprm": slots.lprm,
            "residual": residual,
            "margin": margin,
            "steps": taken,
            "is_halted": stops,
            "is_leaving": is_leaving,
            "answers": answers,
        }.items():
            shown[name][number].copy_(value)
        self.row.masked_fill_(is_leaving, -1)

    def take(self) -> tuple[list[OpenShard], int, int]:
        """Reads the oldest report: keeps what trajectories have left, and decides widths by it."""
        found = self.reports.take()
        self.taken = int(found["first"])
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in found.items() if array.ndim > 1}
        if self.scheduler.table.depth:
            running = np.flatnonzero(flat["row"] >= 0)
            floats = tuple(flat[name][running] for name in trace.FLOATS)
            rows, steps, answers = (flat[name][running] for name in ("row", "steps", "answers"))
            self.scheduler.table.record_step(rows, steps, answers, floats)
        left = np.flatnonzero(flat["is_leaving"])
        if self.scheduler.tests is not None:
            left = left[~self.scheduler.is_decided(flat["row"][left])]
        finished: list[OpenShard] = []
        ended = 0
        if len(left):
            rows = flat["row"][left]
            self.is_out[rows] = False
            self.alive -= len(rows)
            final = Final(**{name: flat[name][left] for name in Final._fields if name in flat})
            finished, ended = self.scheduler.end(rows, final)
            if self.scheduler.tests is not None:
                self._dismiss()
        return finished, ended, int(found["steps_run"])

    def _dismiss(self) -> None:
        """Has the trajectories of decided puzzles leave, from the next stretch on."""
        out = np.flatnonzero(self.is_out)
        unneeded = out[self.scheduler.is_decided(out)]
        if not len(unneeded):
            return
        self.is_out[unneeded] = False
        self.alive -= len(unneeded)
        self.decided.numpy()[self.scheduler.table.puzzle[unneeded]] = True
        with self.on_stream():
            self.is_decided.copy_(self.decided, non_blocking=True)


def fields_of(rows: int, answer_tokens: int) -> Fields:
    """What a stretch reports: how many trajectories have left the queue, how many supervision steps were taken, and of
    every step of each slot, `[K, S]`, what stands in the slot."""
    shape = (STEPS_A_READBACK, rows)
    return {
        "first": (torch.int64, ()),
        "steps_run": (torch.int64, ()),
        "row": (torch.int64, shape),
        "halt": (torch.float32, shape),
        "lprm": (torch.float32, shape),
        "residual": (torch.float32, shape),
        "margin": (torch.float32, shape),
        "steps": (torch.int32, shape),
        "is_halted": (torch.bool, shape),
        "is_leaving": (torch.bool, shape),
        "answers": (torch.uint8, (*shape, answer_tokens)),
    }
