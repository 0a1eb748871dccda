"""The sampler's engine: continuous batching of trajectories in slots.

After every supervision step the engine reads the heads, ends the trajectories that halt, and gives their slots to
waiting ones at once. Launches have one fixed number of rows, and noise is keyed by puzzle and trajectory
(`kernels/philox.py`). So a trajectory is the same bit for bit in any company: the number of slots, the order of puzzles
and what was cancelled beside it change nothing (but rounding, where `is_padded` is off).

The first `n` slots are the occupied ones, so the number of launches follows the number of trajectories. The last launch
is padded with rows that nobody reads, or cut where a run is not padded.

Shapes: `S` slots (a whole number of launches), `B` rows of a launch, `L` tokens (registers included), `D` model, `A`
answer tokens, `M` depth, `k` some slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ResolvedConfig
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Injection, Spec
from gram.model import Model
from gram.sampler import halting
from gram.sampler.halting import Readings
from gram.sampler.particle_filter import ParticleFilter, resampler_of
from gram.sampler.scheduler import Final, Scheduler, Shard, ShardResult, ShardState, Trajectory
from gram.sampler.views import SlotViews
from gram.sampler.width import width_policy_of
from gram.tasks.protocol import Task, Tokens

Rows = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Readout(NamedTuple):
    """What a state says, `[k]` each."""

    answers: Tokens
    """Decoded answers `[k, A]`."""
    margin: NDArray[np.float32]
    residual: NDArray[np.float32]


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

    def on_ended(self, count: int) -> None:
        """`count` trajectories have just come to their end."""

    def on_step(self, view: StepView) -> None:
        """Some trajectories have taken a supervision step. Overriding this decodes every step, which costs time."""

    def on_advanced(self, engine: Engine) -> None:
        """The slots have taken a supervision step and are not filled again yet. Costs no decoding."""


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
        self.config, self.depth = config, config.depth
        self.observer = observer or Observer()
        self.is_traced, self.is_static = is_traced, is_static
        self.slots = (kind_of_slots or SlotStates)(model, config, task=task, is_unconditional=is_unconditional)
        self.rule, self.first_halt = halting.RULES[config.halting], first_halt(config, model)
        is_adaptive, is_filtered = config.width_policy != "fixed", config.resampler != "none"
        policy = width_policy_of(config) if is_adaptive else None
        trusts_halt_head = not bool(model.lprm.weight.any())

        def open_shard(shard: Shard) -> ShardState:
            return ShardState(
                task,
                puzzles,
                shard,
                config,
                policy,
                identities=identities,
                answer_tokens=model.config.output_tokens,
                trusts_halt_head=trusts_halt_head,
                is_traced=is_traced,
            )

        self.task = task
        self.scheduler = Scheduler(open_shard, is_by_puzzle=is_filtered)
        self.filter = ParticleFilter(resampler_of(config), config.seed) if is_filtered else None
        self.occupants: list[Trajectory | None] = [None] * self.slots.count
        """The trajectory in each slot."""
        self.has_ended = np.zeros(self.slots.count, bool)
        """Slots whose trajectory has ended but cannot leave yet (static batching only)."""
        self.occupied = 0
        """The first so many slots are taken."""
        rows = self.slots.count
        self.last_answers = np.zeros((rows, model.config.output_tokens), np.uint8)
        """Canonical ones, of a halting rule that compares them."""
        self.unchanged = np.zeros(rows, np.int64)
        self.steps_run = 0
        """Supervision steps of trajectories advanced so far; padding not counted."""
        self.is_watched = type(self.observer).on_step is not Observer.on_step
        self.reads_every_step = is_traced or self.is_watched or self.rule.needs_answers or self.rule.needs_residual
        """Whether answers are decoded at every step, not only where a trajectory ends."""

    @torch.inference_mode()
    def run(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, ShardResult]]:
        """Runs shards, filling slots across their borders. Yields each when all its puzzles are decided."""
        self.scheduler.add(shards)
        self._fill()
        while self.occupied:
            finished = self._step()
            self.observer.on_advanced(self)
            for state in finished:
                self.scheduler.close(state)
                yield state.shard, state.result()
            self._compact()
            self._fill()

    def _step(self) -> list[ShardState]:
        """One supervision step of every slot. Returns the shards that it finished."""
        count = self.occupied
        halt, lprm = self.slots.advance(count)
        self.steps_run += count
        rows = np.flatnonzero(~self.has_ended[:count])
        seen = self.slots.read(rows) if self.reads_every_step else None
        taken = self.slots.step[rows]
        if seen is not None and self.rule.needs_answers:
            answers = self.task.canonical(seen.answers)
            is_same = (answers == self.last_answers[rows]).all(1) & (taken > 1)
            self.unchanged[rows] = halting.count_unchanged(is_same, self.unchanged[rows])
            self.last_answers[rows] = answers
        now = Readings(
            step=taken,
            halt=halt[rows],
            residual=np.full(len(rows), np.nan, np.float32) if seen is None else seen.residual,
            unchanged=self.unchanged[rows],
        )
        stops = halting.stops(self.config.halting, self.config.halt_threshold, self.first_halt, now)
        if seen is not None:
            self._show(rows, seen, stops, halt, lprm)
        leaving = stops | (taken >= self.depth)
        finished = self._end(rows[leaving], stops[leaving], seen, leaving, halt, lprm)
        if self.filter is not None:
            self._wait_at_barrier(self.filter, rows[~leaving], halt, lprm)
        return finished

    def _show(self, rows: Rows, seen: Readout, stops: Bools, halt: np.ndarray, lprm: np.ndarray) -> None:
        """Records the step for a trace and shows it to the observer."""
        shown = [self._occupant(row) for row in rows]
        if self.is_traced:
            for place, (row, each) in enumerate(zip(rows, shown, strict=True)):
                values = {
                    "halt": halt[row],
                    "lprm": lprm[row],
                    "residual": seen.residual[place],
                    "margin": seen.margin[place],
                }
                step = int(self.slots.step[row])
                each.shard.record_step(each.puzzle, each.column, step, seen.answers[place], values)
        if self.is_watched:
            self.observer.on_step(
                StepView(
                    step=self.slots.step[rows].copy(),
                    puzzle=np.array([each.shard.shard.first_puzzle + each.puzzle for each in shown]),
                    trajectory=self.slots.trajectory[rows].copy(),
                    answers=seen.answers.copy(),
                    is_halted=stops.copy(),
                    halt=halt[rows].copy(),
                    lprm=lprm[rows].copy(),
                )
            )

    def _end(
        self, rows: Rows, stops: Bools, seen: Readout | None, leaving: Bools, halt: np.ndarray, lprm: np.ndarray
    ) -> list[ShardState]:
        """Ends the trajectories in `rows`. Returns the shards that this finishes."""
        if not len(rows):
            return []
        if seen is None:
            read = self.slots.read(rows)
        else:
            read = Readout(seen.answers[leaving], seen.margin[leaving], seen.residual[leaving])
        finished, ended = [], 0
        for place, row in enumerate(rows):
            each = self.occupants[int(row)]
            if each is None:
                continue  # its puzzle was decided by another of these rows
            state, puzzle = each.shard, each.puzzle
            self._leave(row)
            final = Final(
                answer=read.answers[place],
                steps=int(self.slots.step[row]),
                halt=float(halt[row]),
                lprm=float(lprm[row]),
                residual=float(read.residual[place]),
                margin=float(read.margin[place]),
                is_halted=bool(stops[place]),
                lineage=each.lineage,
            )
            if self.filter is not None:
                self.filter.end(each)
            is_decided = state.end(puzzle, each.column, final)
            ended += 1 if state.policy is None else is_decided * state.shard.trajectories
            if is_decided:
                self._cancel(state, puzzle)
                if not state.undecided:
                    finished.append(state)
            else:
                self.scheduler.requeue(state, puzzle)
        if ended:
            self.observer.on_ended(ended)
        return finished

    def _wait_at_barrier(self, particles: ParticleFilter, rows: Rows, halt: np.ndarray, lprm: np.ndarray) -> None:
        """Takes running trajectories out until all of their puzzle have come this far, and resumes complete puzzles."""
        for row in rows:
            each = self._occupant(row)
            memory = self.last_answers[row].copy(), int(self.unchanged[row])
            state, step = self.slots.take_out(int(row)), int(self.slots.step[row])
            waiting = replace(each, state=state, step=step, memory=memory)
            particles.wait(waiting, float(halt[row]), float(lprm[row]))
            self._leave(row)
        self.scheduler.resume(particles.released())

    def _cancel(self, state: ShardState, puzzle: int) -> None:
        """Frees the slots of a decided puzzle's other trajectories."""
        if state.policy is None:
            return  # none is left
        for row, each in enumerate(self.occupants[: self.occupied]):
            if each is not None and each.shard is state and each.puzzle == puzzle and not self.has_ended[row]:
                self._leave(row)

    def _occupant(self, row: int | np.integer) -> Trajectory:
        found = self.occupants[int(row)]
        assert found is not None
        return found

    def _leave(self, row: int | np.integer) -> None:
        if self.is_static:
            self.has_ended[row] = True
        else:
            self.occupants[int(row)] = None

    def _fill(self) -> None:
        """Puts waiting trajectories into the free slots, which are the last ones."""
        if self.is_static and self.occupied:
            return
        free = self.slots.count - self.occupied
        coming = self.scheduler.next_needed(free)
        if not self.is_static:
            # Rows that would be padding cost nothing, so they may run what is not certainly needed.
            padding = -(self.occupied + len(coming)) % self.slots.launch if self.slots.is_padded else 0
            coming += self.scheduler.next_speculative(min(padding, free - len(coming)))
        if not coming:
            return
        rows = np.arange(self.occupied, self.occupied + len(coming))
        for row, each in zip(rows, coming, strict=True):
            self.occupants[row] = each
            self.unchanged[row] = 0
            if each.memory is not None:
                self.last_answers[row], self.unchanged[row] = each.memory
        self.occupied += len(coming)
        is_new = np.array([each.state is None for each in coming])
        if is_new.any():
            self.slots.start(rows[is_new], _places([each for each in coming if each.state is None]))
        if not is_new.all():
            back = [each for each in coming if each.state is not None]
            states: list[Tensor] = [each.state for each in back if each.state is not None]
            self.slots.resume(rows[~is_new], _places(back), np.array([each.step for each in back]), states)

    def _compact(self) -> None:
        """Moves the last trajectories into the holes, so that the occupied slots are the first ones."""
        if self.is_static:
            if self.has_ended[: self.occupied].all():
                self.occupants[: self.occupied] = [None] * self.occupied
                self.has_ended[:], self.occupied = False, 0
            return
        taken = [row for row in range(self.occupied) if self.occupants[row] is not None]
        holes = [row for row in range(len(taken)) if self.occupants[row] is None]
        movers = [row for row in taken if row >= len(taken)]
        if holes:
            source, target = np.array(movers), np.array(holes)
            self.slots.move(source, target)
            self.last_answers[target], self.unchanged[target] = self.last_answers[source], self.unchanged[source]
            for mover, hole in zip(movers, holes, strict=True):
                self.occupants[hole], self.occupants[mover] = self.occupants[mover], None
        self.occupied = len(taken)


class Places(NamedTuple):
    """What waiting trajectories bring into their slots, `[k]` each."""

    puzzles: Tokens
    """`[k, L]`."""
    hashes: Rows
    """Of the puzzles."""
    trajectories: Rows
    """Ids, which key the noise."""
    lineages: Rows
    """Trajectories that the states descend from, which key the views."""
    identities: Rows | None
    """Rows of the model's table of task embeddings, where it has one."""


def _places(trajectories: list[Trajectory]) -> Places:
    own = [each.shard.identities[each.puzzle] for each in trajectories if each.shard.identities is not None]
    return Places(
        np.stack([each.shard.puzzles[each.puzzle] for each in trajectories]),
        np.array([each.shard.hashes[each.puzzle] for each in trajectories], dtype=np.int64),
        np.array([each.id for each in trajectories], dtype=np.int64),
        np.array([each.lineage for each in trajectories], dtype=np.int64),
        np.array(own, dtype=np.int64) if own else None,
    )


class SlotStates:
    """Latent states, their puzzles, the views they see these under and the counters that key their noise."""

    latent = "continuous"
    """The kind of states that they hold."""

    def __init__(self, model: Model, config: ResolvedConfig, *, task: Task, is_unconditional: bool) -> None:
        if model.config.latent != self.latent:
            raise ValueError(f"slots must be of latent {model.config.latent}, got {self.latent}")
        self.model, self.config, self.is_unconditional = model, config, is_unconditional
        self.injection, self.spec = injection_of(config), spec_of(config, model)
        self.is_random_start = config.injector == "path" and model.config.initial_std > 0
        self.launch, self.count, self.is_padded = config.launch, config.slots, config.is_padded
        rows = -(-self.count // self.launch) * self.launch
        shape = (rows, self.spec.length, self.spec.dim)
        shapes = shape, shape, (rows, self.spec.length, self.spec.embedded_dim)
        self.h, self.l, self.e_x = (torch.zeros(each, dtype=model.dtype, device=model.device) for each in shapes)
        self.h_before = torch.zeros_like(self.h)
        """`h` before the last supervision step."""
        self.hash, self.trajectory, self.step = (np.zeros(rows, dtype=np.int64) for _ in range(3))
        """Puzzle hash, trajectory id and supervision steps taken of each slot."""
        self.views = SlotViews(task, config.seed, rows) if config.views == "random" else None

    def start(self, rows: Rows, places: Places) -> None:
        """Puts new trajectories at their initial state into slots `rows`."""
        index = torch.from_numpy(rows).to(self.h.device)
        self._place(index, rows, places)
        self.step[rows] = 0
        if self.is_random_start:
            h, l = self.model.random_state(self._key(rows))
        else:
            h, l = self.model.initial_state(len(rows))
        self.h[index], self.l[index] = h.to(self.h.dtype), l.to(self.l.dtype)

    def resume(self, rows: Rows, places: Places, steps: Rows, states: list[Tensor]) -> None:
        """Puts trajectories back that were taken out: `states` are what `take_out` gave, one each."""
        index = torch.from_numpy(rows).to(self.h.device)
        self._place(index, rows, places)
        self.step[rows] = steps
        both = torch.stack(states)
        self.h[index], self.l[index] = both[:, 0], both[:, 1]

    def _place(self, index: Tensor, rows: Rows, places: Places) -> None:
        puzzles, hashes, trajectories, lineages, own = places
        if self.views is not None:
            puzzles = self.views.place(rows, puzzles, hashes, lineages)
        if self.is_unconditional:
            self.e_x[index] = self.model.embed_empty(len(rows))
        else:
            tokens = torch.from_numpy(puzzles.astype(np.int64)).to(self.h.device)
            self.e_x[index] = self._embedded(tokens, None if own is None else torch.from_numpy(own))
        self.hash[rows], self.trajectory[rows] = hashes, trajectories

    def _embedded(self, tokens: Tensor, identities: Tensor | None) -> Tensor:
        """`e_x [k, L, D]` of puzzles `[k, L]` as the slots show them."""
        return self.model.embed(tokens, identities)

    def _key(self, rows: Rows | slice) -> NoiseKey:
        arrays = self.hash[rows], self.trajectory[rows], self.step[rows]
        return NoiseKey.of_arrays(self.config.seed, *arrays, self.h.device)

    def take_out(self, row: int) -> Tensor:
        """A copy of one slot's state, `[2, L, D]`."""
        return torch.stack([self.h[row], self.l[row]])

    def move(self, source: Rows, target: Rows) -> None:
        """Copies slots `source` over slots `target`."""
        take, put = (torch.from_numpy(rows).to(self.h.device) for rows in (source, target))
        for tensor in (self.h, self.h_before, self.l, self.e_x):
            tensor[put] = tensor[take]
        for array in (self.hash, self.trajectory, self.step):
            array[target] = array[source]
        if self.views is not None:
            self.views.move(source, target)

    def advance(self, occupied: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One supervision step of the first `occupied` slots; their halt logits and LPRM, `[occupied]` each."""
        halts, lprms = [], []
        for first in range(0, occupied, self.launch):
            rows = slice(first, first + self.launch if self.is_padded else min(first + self.launch, occupied))
            state = self.model.step(
                self.h[rows],
                self.l[rows],
                self.e_x[rows],
                self._key(rows),
                injection=self.injection,
                spec=self.spec,
                kernel=self.config.kernel,
            )
            self.h_before[rows], self.l[rows] = state.h, state.l
            halts.append(state.halt)
            lprms.append(state.lprm)
        self.h, self.h_before = self.h_before, self.h
        self.step[:occupied] += 1
        halt, lprm = (torch.cat(parts)[:occupied].cpu().numpy() for parts in (halts, lprms))
        return halt, lprm

    def read(self, rows: Rows) -> Readout:
        """Answers (of the puzzles as given), margins and residuals of slots `rows`, computed in launches as `advance`
        makes them."""
        answers = np.empty((len(rows), self.model.config.output_tokens), dtype=np.uint8)
        margin, residual = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
        for first in range(0, len(rows), self.launch):
            part = rows[first : first + self.launch]
            missing = self.launch - len(part) if self.is_padded else 0
            index = torch.from_numpy(np.concatenate([part, np.repeat(part[:1], missing)])).to(self.h.device)
            here = slice(first, first + len(part))
            tokens, lead = self._decoded(index)
            answers[here] = tokens.to(torch.uint8).cpu().numpy()[: len(part)]
            margin[here] = lead.cpu().numpy()[: len(part)]
            residual[here] = relative_movement(self.h[index], self.h_before[index]).cpu().numpy()[: len(part)]
        if self.views is not None:
            answers = self.views.undo(rows, answers)
        return Readout(answers, margin, residual)

    def _decoded(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of slots `index`, `[k, A]`, and by how much probability the likeliest token leads, `[k]`."""
        logits = self.model.decode(self.h[index])
        likeliest = logits.softmax(-1).topk(2, dim=-1).values
        return logits.argmax(-1), (likeliest[..., 0] - likeliest[..., 1]).mean(1)


def relative_movement(h: Tensor, before: Tensor) -> Tensor:
    """Length of `h - before` over that of `h`, each over a trajectory's whole state: `[B]`, fp32."""
    wide = h.to(torch.float32)
    moved = (wide - before.to(torch.float32)).square().sum((1, 2))
    return (moved / wide.square().sum((1, 2))).sqrt()
