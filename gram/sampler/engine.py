"""The sampler's engine: continuous batching of trajectories in slots.

After every supervision step the engine reads the heads, ends the trajectories that halt, and gives their slots to
waiting ones at once. Launches have one fixed number of rows, and noise is keyed by puzzle and trajectory
(`kernels/philox.py`). So a trajectory is the same bit for bit in any company: the number of slots, the order of puzzles
and what was cancelled beside it change nothing (but rounding, where `is_padded` is off).

Slots are launched from the first to the last that is taken. A slot that nothing waits for is run on as padding, which
nobody reads; once the trajectories fit in fewer launches, the last ones move to the free slots before them.

All bookkeeping is in arrays: over slots here, over trajectories in `gram/sampler/scheduler.py`. Where the states are in
another memory, each direction is one copy a step: what it shows comes in one piece, and so goes what is to be started
or moved.

Shapes: `S` slots (a whole number of launches), `B` trajectories that have taken a step, `L` tokens (registers
included), `A` answer tokens, `k` some slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from gram.config import ResolvedConfig
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Injection, Spec
from gram.model import Model
from gram.sampler import device_loop, halting
from gram.sampler.exchange import Moved, Places, Readout, StepReading, read_together, relative_movement
from gram.sampler.halting import Readings
from gram.sampler.particle_filter import ParticleFilter, resampler_of
from gram.sampler.scheduler import Final, OpenShard, Rows, Scheduler, Shard, ShardResult, Trajectories
from gram.sampler.sequential_tests import SequentialTests
from gram.sampler.sparsity import measures_of_states
from gram.sampler.trace import SIGNAL
from gram.sampler.views import SlotViews
from gram.sampler.width import width_policy_of
from gram.tasks.protocol import Task, Tokens

Bools = NDArray[np.bool_]
Launch = tuple[Tensor, Tensor, Tensor, Tensor, NoiseKey]
FREE = -1
"""Stands for a trajectory where a slot has none."""
NOTHING_MOVED = Moved(*[np.zeros(0, np.int64)] * 3)


@dataclass(frozen=True, slots=True)
class StepView:
    """What an observer sees of a supervision step: the trajectories that have just taken it."""

    step: Rows
    """Supervision steps each has taken, from 1, `[B]`."""
    puzzle: Rows
    """Index of each trajectory's puzzle, `[B]`."""
    trajectory: Rows
    """Trajectory ids `[B]`."""
    answers: Tokens
    """Decoded answers `[B, A]`."""
    is_halted: Bools
    """Whether it stops here, `[B]`."""
    halt: NDArray[np.float32]
    """Halt logits `[B]`."""
    lprm: NDArray[np.float32]
    """Predicted final accuracies `[B]`."""


class Observer:
    """Watches a run and changes nothing in it. Override what you need; an exception ends the run."""

    needs_every_step = False
    """Whether `on_advanced` must be called after each supervision step, so that the host drives a GPU step by step."""

    def on_ended(self, count: int) -> None:
        """`count` trajectories have just come to their end."""

    def on_step(self, view: StepView) -> None:
        """Some trajectories have taken a supervision step. Overriding this decodes every step, which costs time."""

    def on_advanced(self, engine: Engine) -> None:
        """The slots have taken a supervision step, or on a GPU several, and are not filled again yet. Costs no
        decoding."""


class Progress(Observer):
    """Reports to a function how many more trajectories have ended."""

    def __init__(self, report: Callable[[int], object]) -> None:
        self.report = report

    def on_ended(self, count: int) -> None:
        self.report(count)


def injection_of(config: ResolvedConfig) -> Injection:
    """Where noise enters."""
    return Injection(
        injector=config.injector,
        temperature=config.temperature,
        sigma=config.sigma or 0.0,
        site=config.noise_site,
    )


def spec_of(config: ResolvedConfig, model: Model) -> Spec:
    """The model's spec with the run's own `T` and `K`."""
    return replace(model.spec, transitions=config.transitions, low_level_updates=config.low_level_updates)


def first_halt(config: ResolvedConfig, model: Model) -> int:
    """First supervision step after which a trajectory may halt.

    Before the prior's first noise all trajectories of a puzzle are one: halting there would make width worthless.
    """
    is_random_later = config.injector == "prior" and model.config.guidance in ("full", "noise")
    return 1 + (model.config.noise_free_steps if is_random_later else 0)


class Engine:
    """One run's slots and scheduler. Single use: iterate `run` once."""

    kind_of_loop = device_loop.DeviceLoop

    def __init__(
        self,
        model: Model,
        task: Task,
        puzzles: Tokens,
        config: ResolvedConfig,
        *,
        identities: Rows | None = None,
        is_unconditional: bool = False,
        is_traced: bool = False,
        is_static: bool = False,
        observer: Observer | None = None,
        kind_of_slots: type[SlotStates] | None = None,
    ) -> None:
        """`identities [P]` are rows of the model's table. `kind_of_slots` holds the model's kind of latent states
        (`gram.sampler.run.slots_of`; None: continuous ones).
        `is_static` is static batching: no slot is filled again before all have ended. Other samplers batch so; it is
        here for comparison."""
        self.config, self.depth, self.task, self.identities = config, config.depth, task, identities
        self.observer = observer or Observer()
        self.is_traced, self.is_static = is_traced, is_static
        self.slots = (kind_of_slots or SlotStates)(model, config, task=task, is_unconditional=is_unconditional)
        self.rule, self.first_halt = halting.RULES[config.halting], first_halt(config, model)
        answer_tokens = model.config.output_tokens
        depth = config.depth if is_traced else 0
        self.table = Trajectories(
            task, puzzles, answer_tokens=answer_tokens, depth=depth, measures_sparsity=config.measures_sparsity
        )
        self.table.room = min(len(puzzles) * config.width, 2 * config.slots)
        policy, tests = width_policy_of(config) if config.width_policy != "fixed" else None, None
        if policy is not None:
            trusts_halt_head = not bool(model.lprm.weight.any())
            tests = SequentialTests(policy, answer_tokens=answer_tokens, trusts_halt_head=trusts_halt_head)
        is_filtered = config.resampler != "none"
        self.scheduler = Scheduler(self.table, is_by_puzzle=is_filtered, tests=tests)
        self.filter: ParticleFilter | None = None
        if is_filtered:
            self.filter = ParticleFilter(resampler_of(config), config.seed, self.table)
            self.scheduler.on_open.append(self.filter.open)
        rows = self.slots.rows
        self.occupants = np.full(rows, FREE)
        """The trajectory in each slot, by its row in the table."""
        self.occupied = 0
        """Slots behind the first so many are free."""
        self.active = 0
        """Slots that have a trajectory."""
        self.last_answers = np.zeros((rows, answer_tokens), np.uint8)
        """Canonical ones, of a halting rule that compares them."""
        self.unchanged = np.zeros(rows, np.int64)
        self.unread = np.full(rows, np.nan, np.float32)
        """Residuals where nobody asks for them."""
        self.steps_run = 0
        """Supervision steps of trajectories advanced so far; padding not counted, but what a static batch runs on."""
        self.is_watched = type(self.observer).on_step is not Observer.on_step
        self.reads_every_step = (
            is_traced or self.is_watched or self.rule.needs_answers or self.rule.needs_residual or self.slots.is_remote
        )
        """Whether answers are decoded at every step, not only where a trajectory ends: a second copy from a device
        would wait once more."""
        self.is_on_device = (
            self.slots.is_remote
            and not (self.is_watched or self.observer.needs_every_step or is_static or identities is not None)
            and device_loop.can_run(config, self.slots)
        )
        """Whether the device halts and refills by itself (`gram/sampler/device_loop.py`)."""
        self.loop: device_loop.DeviceLoop | None = None  # of a device that does

    @torch.inference_mode()
    def run(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardResult]]:
        """Runs shards, filling slots across their borders. Yields each when all its puzzles are decided."""
        self.scheduler.add(shards)
        if self.is_on_device:
            yield from self._run_on_device()
            return
        self._fill()
        while self.active:
            finished = self._step()
            self.observer.on_advanced(self)
            for opened in finished:
                yield opened.shard, self.scheduler.close(opened)
            self._fill()

    def _run_on_device(self) -> Iterator[tuple[Shard, ShardResult]]:
        """`run`, where the device needs no decision at once. Observers hear of it once in several steps."""
        loop = self.kind_of_loop(self.slots, self.scheduler, first_halt=self.first_halt, depth=self.depth)
        self.loop = loop
        for finished, ended, self.steps_run in loop.run():
            if ended:
                self.observer.on_ended(ended)
            self.observer.on_advanced(self)
            for opened in finished:
                yield opened.shard, self.scheduler.close(opened)

    def _step(self) -> list[OpenShard]:
        """One supervision step of every slot. Returns the shards that it finished."""
        count = self.occupied
        self.slots.advance(count)
        self.steps_run += count if self.is_static else self.active
        shown = self.slots.show(count, is_read=self.reads_every_step)
        taken, is_active = self.slots.step[:count], self.occupants[:count] != FREE
        stops = halting.stops(
            self.config.halting, self.config.halt_threshold, self.first_halt, self._readings(count, shown)
        )
        if self.is_traced or self.is_watched:
            self._show(np.flatnonzero(is_active), shown, stops)
        is_leaving = (stops | (taken >= self.depth)) & is_active
        if self.scheduler.is_side_by_side:
            occupants = self.occupants[:count]
            is_leaving |= self.scheduler.stops_with(occupants, occupants[stops & is_active]) & is_active
        finished = self._end(is_leaving.nonzero()[0], shown, stops)
        if self.filter is not None:
            staying = np.flatnonzero(is_active & ~is_leaving)
            self.filter.wait(self.occupants[staying], staying, taken[staying], shown.halt[staying], shown.lprm[staying])
        return finished

    def _readings(self, count: int, shown: StepReading) -> Readings:
        """What halting rules read, of the first `count` slots."""
        taken, read = self.slots.step[:count], shown.readout
        if read is not None and self.rule.needs_answers:
            answers = self.task.canonical(read.answers)
            is_same = (answers == self.last_answers[:count]).all(1) & (taken > 1)
            self.unchanged[:count] = halting.count_unchanged(is_same, self.unchanged[:count])
            self.last_answers[:count] = answers
        residual = self.unread[:count] if read is None else read.residual
        return Readings(step=taken, halt=shown.halt, residual=residual, unchanged=self.unchanged[:count])

    def _show(self, slots: Rows, shown: StepReading, stops: Bools) -> None:
        """Records the step for a trace and shows it to the observer."""
        read, rows = shown.readout, self.occupants[slots]
        assert read is not None
        steps, halt, lprm = self.slots.step[slots], shown.halt[slots], shown.lprm[slots]
        answers = read.answers[slots]
        if self.is_traced:
            measured = () if read.sparsity is None else read.sparsity[slots].T
            floats = halt, lprm, read.residual[slots], read.margin[slots], *measured
            self.table.record_step(rows, steps, answers, floats)
        if self.is_watched:
            self.observer.on_step(
                StepView(
                    step=steps,
                    puzzle=self.table.puzzle[rows],
                    trajectory=self.table.id[rows],
                    answers=answers,
                    is_halted=stops[slots],
                    halt=halt,
                    lprm=lprm,
                )
            )

    def _end(self, slots: Rows, shown: StepReading, stops: Bools) -> list[OpenShard]:
        """Ends the trajectories in `slots`. Returns the shards that this finishes."""
        if not len(slots):
            return []
        rows = self.occupants[slots]
        whole = shown.readout
        read = self.slots.read(slots) if whole is None else whole.at(slots)
        final = Final(
            answers=read.answers,
            steps=self.slots.step[slots],
            halt=shown.halt[slots],
            lprm=shown.lprm[slots],
            residual=read.residual,
            margin=read.margin,
            is_halted=stops[slots],
            sparsity=None if read.sparsity is None else read.sparsity[:, SIGNAL],
        )
        self.occupants[slots] = FREE
        finished, ended = self.scheduler.end(rows, final)
        if self.filter is not None:
            self.filter.end(rows)
        if ended and self.scheduler.tests is not None:
            others = self.occupants[: self.occupied]
            others[self.scheduler.is_decided(others) & (others != FREE)] = FREE
        if ended:
            self.observer.on_ended(ended)
        return finished

    def _fill(self) -> None:
        """Puts waiting trajectories into free slots, and closes the gaps that are left where that saves a launch."""
        free = self._free()
        self.active = self.slots.count - len(free)
        if self.is_static and self.active:
            return
        self.occupied = self.occupied if self.active else 0
        moved = NOTHING_MOVED
        if self.filter is not None:
            moved, free = self._take_back(self.filter), self._free()
        elif not self.slots.is_padded:
            moved, free = self._compact(), self._free()  # rounding may follow the order of the slots
        coming = self.scheduler.next_needed(len(free))
        if not self.is_static and self.slots.is_padded:
            # Rows that would be padding cost nothing, so they may run what is not certainly needed.
            padding = -(self.active + len(coming)) % self.slots.launch
            spare = self.scheduler.next_speculative(min(padding, len(free) - len(coming)))
            coming = np.concatenate([coming, spare]) if len(spare) else coming
        slots = free[: len(coming)]
        if len(coming):
            self.occupants[slots] = coming
            if self.rule.needs_answers:
                self.unchanged[slots] = 0
            self.active += len(coming)
            self.occupied = max(self.occupied, int(slots[-1]) + 1)
        moved = moved if len(moved.source) else self._compact()
        if len(moved.source) or len(coming):
            puzzles = self.table.puzzle[coming]
            own = None if self.identities is None else self.identities[puzzles]
            new = Places(self.table.puzzles.take(puzzles, 0), self.table.hashes[puzzles], self.table.id[coming], own)
            self.slots.change(moved, slots, new)

    def _free(self) -> Rows:
        """The slots that a trajectory may take."""
        return np.asarray((self.occupants[: self.slots.count] == FREE).nonzero()[0])

    def _compact(self) -> Moved:
        """Gives the last trajectories the free slots before them, where that saves a launch."""
        launch = self.slots.launch if self.slots.is_padded else 1
        if -(-self.active // launch) == -(-self.occupied // launch):
            return NOTHING_MOVED
        holes = np.flatnonzero(self.occupants[: self.active] == FREE)
        last = np.flatnonzero(self.occupants[self.active : self.occupied] != FREE) + self.active
        self.occupants[holes], self.occupants[last] = self.occupants[last], FREE
        self.occupied = self.active
        return self._moved(last, holes)

    def _take_back(self, particles: ParticleFilter) -> Moved:
        """Gives the first slots to resampled particles; the states of those that wait stand behind all launches."""
        rows, source, running = particles.move(self.slots.count)
        target = np.arange(len(rows))
        target[running:] += self.slots.rows - running
        self._reserve(int(target.max(initial=0)) + 1)
        particles.slot[rows] = target
        self.occupants[:] = FREE
        self.occupants[target] = rows
        self.occupied = self.active = running
        # A state that stays where it is may go on as another trajectory.
        is_moved = (source != target) | (self.slots.trajectory[target] != self.table.id[rows])
        return self._moved(source[is_moved], target[is_moved])

    def _moved(self, source: Rows, target: Rows) -> Moved:
        """Slots whose states go to others; what halting rules remember of them goes at once."""
        if self.rule.needs_answers:
            self.last_answers[target], self.unchanged[target] = self.last_answers[source], self.unchanged[source]
        return Moved(source, target, self.table.id[self.occupants[target]])

    def _reserve(self, count: int) -> None:
        """Makes room for `count` slots, more than are launched."""
        more = count - len(self.occupants)
        if more > 0:
            self.slots.reserve(count)
            self.occupants = np.pad(self.occupants, (0, more), constant_values=FREE)
            self.last_answers = np.pad(self.last_answers, ((0, more), (0, 0)))
            self.unchanged = np.pad(self.unchanged, (0, more))


class SlotStates:
    """Latent states, their puzzles, the views they see these under and the counters that key their noise."""

    latent = "continuous"
    """The kind of states that they hold."""

    def __init__(self, model: Model, config: ResolvedConfig, *, task: Task, is_unconditional: bool) -> None:
        if model.config.latent != self.latent:
            raise ValueError(f"slots must be of latent {model.config.latent}, got {self.latent}")
        self.model, self.config, self.is_unconditional = model, config, is_unconditional
        self.weights = model.weights()
        self.injection, self.spec = injection_of(config), spec_of(config, model)
        self.is_random_start = config.injector == "path" and model.config.initial_std > 0
        self.launch, self.count, self.is_padded = config.launch, config.slots, config.is_padded
        self.is_remote = model.device.type != "cpu"
        """Whether the states are in another memory than the bookkeeping."""
        self.rows = -(-self.count // self.launch) * self.launch
        shape = (self.rows, self.spec.length, self.spec.dim)
        shapes = shape, shape, shape, (self.rows, self.spec.length, self.spec.embedded_dim)
        self.h, self.h_before, self.l, self.e_x = (
            torch.zeros(each, dtype=model.dtype, device=model.device) for each in shapes
        )
        # `h_before` is `h` before the last supervision step.
        self._name(np.zeros((3, self.rows), np.int64))
        self.device_names = torch.from_numpy(self.names).to(model.device)
        """The same on the device; on a CPU it is the same memory."""
        self.halt = self.lprm = torch.zeros(0)
        self.views = SlotViews(task, config.seed, self.rows) if config.views == "random" else None
        self._launches: list[list[Launch]] = []
        """Rows of every launch, `h` being where it is and, behind them, where it is after an odd number of steps."""

    def _name(self, names: NDArray[np.int64]) -> None:
        """Takes arrays of what names the slots' noise, `[3, S]`."""
        self.names = names
        self.hash: Rows = names[0]
        """Puzzle hash of each slot."""
        self.trajectory: Rows = names[1]
        """Trajectory id of each slot."""
        self.step: Rows = names[2]
        """Supervision steps that each slot has taken."""

    def change(self, moved: Moved, rows: Rows, places: Places) -> None:
        """Copies slots over others, all at once, then puts new trajectories at their start into slots `rows`."""
        puzzles, hashes, trajectories, own = places
        if self.views is not None:
            if len(moved.source):
                self.views.move(moved.source, moved.target)
            if len(rows):
                puzzles = self.views.place(rows, puzzles, hashes, trajectories)
        going: list[NDArray[Any]] = []
        coming: list[NDArray[Any]] = []
        if len(moved.source):
            names = self.names.take(moved.source, 1)
            names[1] = moved.trajectories
            self.hash[moved.target], self.trajectory[moved.target], self.step[moved.target] = names
            going = [moved.source, moved.target, names]
        if len(rows):
            self.hash[rows], self.trajectory[rows], self.step[rows] = hashes, trajectories, 0
            coming = [rows, self.names.take(rows, 1), puzzles]
        sent = self.send(*going, *coming)
        if going:
            take, put, names_put = sent[:3]
            if self.is_remote:
                self.device_names[:, put] = names_put
            for tensor in self._of_trajectories():
                tensor.index_copy_(0, put, tensor.index_select(0, take))
        if coming:
            index, names_new, tokens = sent[-3:]
            if self.is_remote:
                self.device_names[:, index] = names_new
            identities = None if own is None else torch.from_numpy(own)
            self._start(index, tokens, identities, names_new)

    def _start(self, index: Tensor, tokens: Tensor, identities: Tensor | None, names: Tensor) -> None:
        """Initial states of slots `index`, which see the puzzles `tokens [k, L]`; `names [3, k]` key their noise."""
        for state, start in zip((self.h, self.l, self.e_x), self.initial(tokens, identities, names), strict=True):
            state.index_copy_(0, index, start)

    def initial(self, tokens: Tensor, identities: Tensor | None, names: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`h`, `l` and `e_x` of new trajectories that see the puzzles `tokens [k, L]`; `names [3, k]` key their
        noise."""
        count, model = len(tokens), self.model
        if self.is_random_start:
            h, l = model.random_state(NoiseKey(self.config.seed, *names))
        else:
            h, l = model.initial_state(count)
        e_x = model.embed_empty(count) if self.is_unconditional else self._embedded(tokens, identities)
        return h.to(self.h.dtype), l.to(self.l.dtype), e_x.to(self.e_x.dtype)

    def _embedded(self, tokens: Tensor, identities: Tensor | None) -> Tensor:
        """`e_x [k, L, D]` of puzzles `[k, L]` as the slots show them."""
        return self.model.embed(tokens, identities, weights=self.weights)

    def _of_trajectories(self) -> tuple[Tensor, ...]:
        """What of a slot is its trajectory's, beside its names and view."""
        return self.h, self.l, self.e_x

    def advance(self, occupied: int) -> None:
        """One supervision step of the first `occupied` slots."""
        heads = []
        for number in range(-(-occupied // self.launch)):
            first = number * self.launch
            cut = None if self.is_padded or first + self.launch <= occupied else occupied - first
            heads.append(self._advance_launch(number, cut))
        self.halt, self.lprm = heads[0] if len(heads) == 1 else (torch.cat(parts) for parts in zip(*heads, strict=True))
        self._launches.reverse()
        if self.h.shape[0] > self.rows:  # some wait behind all launches
            self.h_before[self.rows :] = self.h[self.rows :]
        self.h, self.h_before = self.h_before, self.h
        self.step[:occupied] += 1
        if self.is_remote:
            self.device_names[2, :occupied] += 1

    def _advance_launch(self, number: int, cut: int | None) -> tuple[Tensor, Tensor]:
        """A supervision step of one launch, or of its first `cut` rows; returns its halt logits and LPRM."""
        h, l, e_x, after, key = self._launch(number)
        if cut:
            h, l, e_x, after, key = h[:cut], l[:cut], e_x[:cut], after[:cut], key.at(slice(cut))
        state = self.model.step(
            h,
            l,
            e_x,
            key,
            injection=self.injection,
            spec=self.spec,
            kernel=self.config.kernel,
            weights=self.weights,
        )
        after.copy_(state.h)
        l.copy_(state.l)
        return state.halt, state.lprm

    def _launch(self, number: int) -> Launch:
        """Rows of one launch: `h`, `l`, `e_x`, where `h` goes, and what names their noise. Made once."""
        if not self._launches:
            tensors = (self.h, self.l, self.e_x, self.h_before, *self.device_names)
            parts = zip(*(each.split(self.launch) for each in tensors), strict=True)
            made = [(*part[:4], NoiseKey(self.config.seed, *part[4:])) for part in parts]
            self._launches = [made, [(after, l, e_x, h, key) for h, l, e_x, after, key in made]]
        return self._launches[0][number]

    def show(self, occupied: int, *, is_read: bool) -> StepReading:
        """What the last step shows of the first `occupied` slots; `is_read` decodes their states, too."""
        halt, lprm, *read = self.fetch(self.halt, self.lprm, *(self.read_states(slice(0, occupied)) if is_read else ()))
        readout = self._readout(np.arange(occupied), read) if is_read else None
        return StepReading(halt[:occupied], lprm[:occupied], readout)

    def read(self, rows: Rows) -> Readout:
        """What slots `rows` say, computed in launches as `advance` makes them."""
        (index,) = self.send(rows)
        return self._readout(rows, self.fetch(*self.read_states(index)))

    def read_states(self, index: Tensor | slice) -> list[Tensor]:
        """Margins `[k]`, residuals `[k]` and answers `[k, A]`, uint8, of slots; before the answers what is measured of
        sparsity, `[k, 6]`, where it is."""
        parts = []
        for rows, count in self._launches_of(index):
            tokens, margin = self._decoded(rows)
            residual = relative_movement(self.h[rows], self.h_before[rows])
            measured = [measures_of_states(self.h[rows], self.l[rows])] if self.config.measures_sparsity else []
            parts.append(tuple(each[:count] for each in (margin, residual, *measured, tokens.to(torch.uint8))))
        return list(parts[0]) if len(parts) == 1 else [torch.cat(each) for each in zip(*parts, strict=True)]

    def _launches_of(self, index: Tensor | slice) -> Iterator[tuple[Tensor | slice, int]]:
        """Slots in launches, and how many rows of each are asked for; padded by rows that nobody reads."""
        total = index.stop if isinstance(index, slice) else len(index)
        for first in range(0, total, self.launch):
            last = min(first + self.launch, total)
            missing = first + self.launch - last if self.is_padded else 0
            if isinstance(index, slice):
                yield slice(first, last + missing), last - first
            else:
                part = index[first:last]
                yield torch.cat([part, part[:1].expand(missing)]) if missing else part, last - first

    def _readout(self, rows: Rows, read: list[NDArray[Any]]) -> Readout:
        margin, residual, *measured, answers = read
        if self.views is not None:
            answers = self.views.undo(rows, answers)
        return Readout(answers, margin, residual, *measured)

    def _decoded(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Answers of slots `index`, `[k, A]`, and by how much probability the likeliest token leads, `[k]`."""
        logits = self.model.decode(self.h[index])
        likeliest = logits.softmax(-1).topk(2, dim=-1).values
        return logits.argmax(-1), (likeliest[..., 0] - likeliest[..., 1]).mean(1)

    def send(self, *arrays: NDArray[Any]) -> list[Tensor]:
        """Whole numbers for the device, int64, in one copy."""
        if not self.is_remote:
            return [torch.from_numpy(array.astype(np.int64, copy=False)) for array in arrays]
        whole = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays], dtype=np.int64))
        if self.h.is_cuda:
            whole = whole.pin_memory()
        parts = whole.to(self.h.device, non_blocking=True).split([array.size for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def fetch(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Tensors from the device, in one copy; the widest type first."""
        return read_together(tensors) if self.is_remote else [tensor.numpy() for tensor in tensors]

    def reserve(self, rows: int) -> None:
        """Makes room for `rows` slots, of which `advance` takes the first ones alone."""
        more = rows - len(self.h)
        if more <= 0:
            return

        def longer(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])

        self.h, self.h_before, self.l, self.e_x = map(longer, (self.h, self.h_before, self.l, self.e_x))
        self._name(np.pad(self.names, ((0, 0), (0, more))))
        self.device_names = pad(self.device_names, (0, more)) if self.is_remote else torch.from_numpy(self.names)
        if self.views is not None:
            self.views.reserve(rows)
        self._launches = []
