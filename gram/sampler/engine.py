"""The sampler's engine: slots that are refilled as soon as their trajectory ends.

Every supervision step it advances all slots, reads the heads, retires what halts, and fills the free slots from the
queue, all puzzles' first trajectories first. Launches have one fixed number of rows (`slots.py`), and noise is keyed by
puzzle and trajectory (`kernels/philox.py`), so a trajectory is the same bit for bit in any company: the number of
slots, the order of puzzles and what was cancelled beside it change nothing (but rounding, where `is_padded` is off).

Shapes: `P` puzzles, `N` width, `M` depth, `B` rows of a launch, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gram.config import SamplerConfig
from gram.model import Model
from gram.sampler.halting import Readings, halting_of
from gram.sampler.particles import Particles
from gram.sampler.plan import Shard
from gram.sampler.resamplers import resampler_of
from gram.sampler.result import ShardResult
from gram.sampler.settings import first_halt
from gram.sampler.slots import Readout, Rows, Slots
from gram.sampler.tracker import Ended, Tracker
from gram.sampler.width import width_policy_of
from gram.sampler.work import Queue, Work
from gram.tasks.protocol import Task, Tokens


@dataclass(frozen=True, slots=True)
class StepView:
    """What `on_step` is shown: the trajectories that have just taken a supervision step."""

    step: np.ndarray
    """Supervision steps each has taken, from 1, `[B]`."""
    puzzle: np.ndarray
    """Index of each trajectory's puzzle, `[B]`."""
    trajectory: np.ndarray
    """Trajectory ids `[B]`."""
    answers: Tokens
    """Decoded answers `[B, A]`."""
    is_halted: np.ndarray
    """Whether it stops here, `[B]`."""
    halt: np.ndarray
    """Halt logits `[B]`."""
    lprm: np.ndarray
    """Predicted final accuracies `[B]`."""


class Engine:
    """One run's slots and queue. Single use: iterate `run` once."""

    def __init__(
        self,
        model: Model,
        task: Task,
        puzzles: Tokens,
        config: SamplerConfig,
        *,
        is_unconditional: bool = False,
        is_traced: bool = False,
        is_rectangular: bool = False,
        on_ended: Callable[[int], None] | None = None,
        on_step: Callable[[StepView], None] | None = None,
        on_advanced: Callable[[Engine], None] | None = None,
    ) -> None:
        """`config` is resolved (`settings.py`). `is_rectangular` never refills before a whole launch has ended: the
        sampler that everybody else has, for comparison. `on_ended` is told how many trajectories have just ended;
        `on_advanced` is shown the engine after every supervision step of its slots, before they are filled again."""
        assert config.depth is not None
        self.config, self.depth = config, config.depth
        self.on_ended, self.on_step, self.on_advanced = on_ended, on_step, on_advanced
        self.is_traced, self.is_rectangular = is_traced, is_rectangular
        self.slots = Slots(model, config, is_unconditional=is_unconditional)
        self.halting, self.first_halt = halting_of(config), first_halt(config, model)
        policy, resampler = width_policy_of(config), resampler_of(config)
        is_trust_halt = not bool(model.lprm.weight.any())

        def track(shard: Shard) -> Tracker:
            return Tracker(
                task,
                puzzles,
                shard,
                config,
                policy,
                answer_tokens=model.config.output_tokens,
                is_trust_halt=is_trust_halt,
                is_traced=is_traced,
            )

        self.queue = Queue(track, is_by_puzzle=resampler is not None)
        self.particles = None if resampler is None else Particles(resampler, config.seed)
        self.seats: list[Work | None] = [None] * self.slots.count
        """Whose trajectory sits in each slot."""
        self.over = np.zeros(self.slots.count, bool)
        """Slots whose trajectory has ended but cannot leave yet (rectangular only)."""
        self.occupied = 0
        """The first so many slots are taken."""
        rows = self.slots.count
        self.last_answers = np.zeros((rows, model.config.output_tokens), np.uint8)
        self.unchanged = np.zeros(rows, np.int64)
        self.steps_run = 0
        """Supervision steps of trajectories advanced so far; padding not counted."""
        is_shown = is_traced or on_step is not None
        self.reads_every_step = is_shown or self.halting.needs_answers or self.halting.needs_residual
        """Whether answers are decoded at every step, not only where a trajectory ends."""

    @torch.inference_mode()
    def run(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardResult]]:
        """Runs shards, refilling across their borders, and yields each when all its puzzles are decided."""
        self.queue.feed(shards)
        self._fill()
        while self.occupied:
            finished = self._step()
            if self.on_advanced is not None:
                self.on_advanced(self)
            for tracker in finished:
                self.queue.close(tracker)
                yield tracker.shard, tracker.result()
            self._compact()
            self._fill()

    def _step(self) -> list[Tracker]:
        """One supervision step of every slot; the shards that it finished."""
        count = self.occupied
        halt, lprm = self.slots.advance(count)
        self.steps_run += count
        rows = np.flatnonzero(~self.over[:count])
        seen = self.slots.read(rows) if self.reads_every_step else None
        if seen is not None:
            is_same = (seen.answers == self.last_answers[rows]).all(1) & (self.slots.step[rows] > 1)
            self.unchanged[rows] = np.where(is_same, self.unchanged[rows] + 1, 0)
            self.last_answers[rows] = seen.answers
        taken = self.slots.step[rows]
        now = Readings(
            step=taken,
            halt=halt[rows],
            residual=np.full(len(rows), np.nan, np.float32) if seen is None else seen.residual,
            unchanged=self.unchanged[rows],
        )
        stops = self.halting.stops(now) & (taken >= self.first_halt)
        if seen is not None:
            self._show(rows, seen, stops, halt, lprm)
        leaving = stops | (taken >= self.depth)
        finished = self._retire(rows[leaving], stops[leaving], seen, leaving, halt, lprm)
        if self.particles is not None:
            self._wait(rows[~leaving], halt, lprm)
        return finished

    def running(self) -> Rows:
        """Slots whose trajectory goes on."""
        is_seated = np.array([work is not None for work in self.seats[: self.occupied]], bool)
        return np.flatnonzero(is_seated & ~self.over[: self.occupied])

    def _show(self, rows: Rows, seen: Readout, stops: np.ndarray, halt: np.ndarray, lprm: np.ndarray) -> None:
        """Notes the step for a trace and tells whoever watches."""
        works = [self._seated(row) for row in rows]
        if self.is_traced:
            for place, (row, work) in enumerate(zip(rows, works, strict=True)):
                values = {
                    "halt": halt[row],
                    "lprm": lprm[row],
                    "residual": seen.residual[place],
                    "margin": seen.margin[place],
                }
                step = int(self.slots.step[row])
                work.tracker.note(work.puzzle, work.column, step, seen.answers[place], values)
        if self.on_step is not None:
            self.on_step(
                StepView(
                    step=self.slots.step[rows].copy(),
                    puzzle=np.array([work.tracker.shard.first_puzzle + work.puzzle for work in works]),
                    trajectory=self.slots.trajectory[rows].copy(),
                    answers=seen.answers.copy(),
                    is_halted=stops.copy(),
                    halt=halt[rows].copy(),
                    lprm=lprm[rows].copy(),
                )
            )

    def _retire(
        self,
        rows: Rows,
        stops: np.ndarray,
        seen: Readout | None,
        leaving: np.ndarray,
        halt: np.ndarray,
        lprm: np.ndarray,
    ) -> list[Tracker]:
        """Ends the trajectories in `rows`; the shards that are finished by it."""
        if not len(rows):
            return []
        read = self.slots.read(rows) if seen is None else Readout(*(part[leaving] for part in seen))
        finished, done = [], 0
        for place, row in enumerate(rows):
            work = self.seats[int(row)]
            if work is None:
                continue  # its puzzle was decided by another of these rows
            tracker, puzzle = work.tracker, work.puzzle
            self._leave(row)
            ended = Ended(
                answer=read.answers[place],
                steps=int(self.slots.step[row]),
                halt=float(halt[row]),
                lprm=float(lprm[row]),
                residual=float(read.residual[place]),
                margin=float(read.margin[place]),
                is_halted=bool(stops[place]),
                lineage=work.lineage,
            )
            if self.particles is not None:
                self.particles.leave(work)
            is_decided = tracker.end(puzzle, work.column, ended)
            done += 1 if tracker.policy is None else is_decided * tracker.shard.trajectories
            if is_decided:
                self._cancel(tracker, puzzle)
                if not tracker.undecided:
                    finished.append(tracker)
            else:
                self.queue.reopen(tracker, puzzle)
        if self.on_ended is not None and done:
            self.on_ended(done)
        return finished

    def _wait(self, rows: Rows, halt: np.ndarray, lprm: np.ndarray) -> None:
        """Takes running particles out until all of their puzzle have come this far; sends complete puzzles back."""
        assert self.particles is not None
        for row in rows:
            work = self._seated(row)
            memory = self.last_answers[row].copy(), int(self.unchanged[row])
            state, step = self.slots.take_out(int(row)), int(self.slots.step[row])
            self.particles.park(work, state, step, float(halt[row]), float(lprm[row]), memory)
            self._leave(row)
        self.queue.put_back(self.particles.ready())

    def _cancel(self, tracker: Tracker, puzzle: int) -> None:
        """Frees the slots of a decided puzzle's other trajectories."""
        if tracker.policy is None:
            return  # none is left
        for row, work in enumerate(self.seats[: self.occupied]):
            if work is not None and work.tracker is tracker and work.puzzle == puzzle and not self.over[row]:
                self._leave(row)

    def _seated(self, row: int | np.integer) -> Work:
        work = self.seats[int(row)]
        assert work is not None
        return work

    def _leave(self, row: int | np.integer) -> None:
        if self.is_rectangular:
            self.over[row] = True
        else:
            self.seats[int(row)] = None

    def _fill(self) -> None:
        """Seats waiting trajectories in the free slots, which are the last ones."""
        if self.is_rectangular and self.occupied:
            return
        free = self.slots.count - self.occupied
        works = self.queue.take(free)
        if not self.is_rectangular:
            # Rows that would be padding may run ahead of what is certainly needed: they cost nothing.
            padding = -(self.occupied + len(works)) % self.slots.launch if self.slots.is_padded else 0
            works += self.queue.take_spare(min(padding, free - len(works)))
        if not works:
            return
        rows = np.arange(self.occupied, self.occupied + len(works))
        for row, work in zip(rows, works, strict=True):
            self.seats[row] = work
            self.unchanged[row] = 0
            if work.memory is not None:
                self.last_answers[row], self.unchanged[row] = work.memory
        self.occupied += len(works)
        is_new = np.array([work.state is None for work in works])
        if is_new.any():
            self.slots.start(rows[is_new], *_who([work for work in works if work.state is None]))
        if not is_new.all():
            back = [work for work in works if work.state is not None]
            states: list[Tensor] = [work.state for work in back if work.state is not None]
            self.slots.resume(rows[~is_new], *_who(back), np.array([work.step for work in back]), states)

    def _compact(self) -> None:
        """Moves the last trajectories into the holes, so that the occupied slots are the first ones."""
        if self.is_rectangular:
            if self.over[: self.occupied].all():
                self.seats[: self.occupied] = [None] * self.occupied
                self.over[:], self.occupied = False, 0
            return
        taken = [row for row in range(self.occupied) if self.seats[row] is not None]
        holes = [row for row in range(len(taken)) if self.seats[row] is None]
        movers = [row for row in taken if row >= len(taken)]
        if holes:
            source, target = np.array(movers), np.array(holes)
            self.slots.move(source, target)
            self.last_answers[target], self.unchanged[target] = self.last_answers[source], self.unchanged[source]
            for mover, hole in zip(movers, holes, strict=True):
                self.seats[hole], self.seats[mover] = self.seats[mover], None
        self.occupied = len(taken)


def _who(works: list[Work]) -> tuple[Tokens, Rows, Rows]:
    """Puzzles `[k, L]`, their hashes and trajectory ids `[k]` of waiting trajectories."""
    return (
        np.stack([work.tracker.puzzles[work.puzzle] for work in works]),
        np.array([work.tracker.hashes[work.puzzle] for work in works], dtype=np.int64),
        np.array([work.trajectory for work in works], dtype=np.int64),
    )
