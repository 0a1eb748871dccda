"""Training on a GPU: an optimiser step that waits for nothing and is launched as one CUDA graph.

The losses are those of `trainer.py`, compiled. Around them nothing asks the host: puzzles and states live on the
device (`device_lane.py`), the schedules' numbers arrive with the step's one packed copy, AdamW reads its rate from the
device, and figures stay there until somebody reads them. So the whole step (rollouts, transitions, loss, gradients,
clipping, AdamW, averages, carried state) is captured once and then launched as it is. The host prepares the next step
meanwhile.

A run's course is that of `trainer.py` but for two things: answers of rollouts are judged `LATE` steps later, so that
the heads learn from states that are this much older, and a norm that is not finite is noticed when figures are read,
which they are before anything is written to disk. On a CPU the same code runs without a graph, for its tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gram.config import ModelConfig
from gram.kernels import graphs, reference
from gram.training.data_parallel import Ranks
from gram.training.device_lane import DeviceLane
from gram.training.guidance import Lead
from gram.training.objective import Earlier, SlotBatch, earlier_transitions
from gram.training.optimiser import kl_beta, learning_rate
from gram.training.recipe import Recipe
from gram.training.trainer import HEAD_STATES, LOG_EVERY_STEPS, SHOWN, Trainer, shown

PLAIN_STEPS = 3
"""Steps that are launched operation by operation before one is captured: they compile, and make what lasts."""
BESIDE = 2
"""Figures in front of `shown`: the gradient's norm, and the share of experts' choices that found one full."""


def unsupported_reason(recipe: Recipe, ranks: Ranks) -> str | None:
    """Why a recipe is trained step by step with the host; None where it is not."""
    model, training = recipe.model, recipe.training
    if ranks.size > 1:
        return "several processes average their gradients"
    if model.identity_dim:
        return "the table of identities stays on the host"
    if training.gradient_steps > 1 or training.late_share:
        return "gradient_steps and late_share take a number of launches that changes"
    if training.weight_share < 1:
        return "the share of weights that is kept changes from step to step"
    if training.prior_share and not model.is_conditional:
        return "boards near to the last answers are found on the host"
    return None


class Recorded:
    """A function without arguments that a GPU is given as one CUDA graph once it has run some times."""

    def __init__(
        self, function: Callable[[], None], record: Callable[[Callable[[], None]], Callable[[], None]] | None
    ) -> None:
        """`record` captures a function, without running it, and returns what launches it; None never captures."""
        self.function, self.record, self.calls = function, record, 0
        self.launch = function

    def __call__(self) -> None:
        if self.calls == PLAIN_STEPS and self.record is not None:
            self.launch = self.record(self.function)
        self.calls += 1
        self.launch()


class DeviceTrainer(Trainer):
    """One run of one process: its weights, slots and folder."""

    is_captured = True
    """Whether a GPU is given steps as graphs; `GRAM_GRAPHS=off` gives it none."""

    def _open(self, is_compiled: bool) -> None:
        super()._open(is_compiled)
        dynamic = False if len(self.lanes) > 1 else None  # as the losses are compiled
        self._earlier: Callable[..., Any] = self._earlier_of_flat
        if is_compiled:
            self._earlier = torch.compile(self._earlier_of_flat, dynamic=dynamic)
        self.width = BESIDE + len(SHOWN) + self.recipe.model.transitions
        self.seen = torch.zeros(LOG_EVERY_STEPS, self.width, device=self.device)
        """Figures of the last steps, a row each."""
        self.unread: list[bool] = []
        """Of the steps whose figures nobody has read: whether each measured every transition's KL."""
        self.schedule: dict[str, float] = {}
        """Learning rate and weight of the KL at the last step."""
        self.sides = [DeviceLane(lane, HEAD_STATES, LOG_EVERY_STEPS) for lane in self.lanes]
        self.rate = self.flat.keep_rate()
        self.stream = torch.cuda.Stream(device=self.device) if self.device.type == "cuda" else None
        self.pool: Any = None
        self.recorded: dict[tuple[int, bool], Recorded] = {}

    def _choose_transition(self) -> reference.Transition:
        return reference.transition

    def _choose_lead(self) -> Lead | None:
        return None

    def _earlier_of_flat(self, flat: Tensor, slots: SlotBatch, config: ModelConfig, is_watched: bool) -> Earlier:
        weights, advance = self.flat.views(flat), self._transition
        return earlier_transitions(weights, config, self.training, slots, is_watched=is_watched, advance=advance)

    def advance(self) -> dict[str, Any]:
        """One optimiser step, without waiting for the device; its figures stay there (`read`)."""
        number = self.step % len(self.lanes)
        side, is_watched = self.sides[number], self.is_watched
        rng = np.random.default_rng([self.training.seed, self.step])
        rate, beta = learning_rate(self.training, self.step, self.fraction), kl_beta(self.training, self.fraction)
        weights = self.flat.views(self.flat.compute.detach())
        if len(self.unread) == len(self.seen):
            self.read()
        with self._queued(), torch.no_grad():
            side.prepare(weights, rng, self.step, self.fraction, rate, beta)
            with torch.enable_grad():
                self._recorded(number, is_watched)()
            side.follow()
        self.step += 1
        self.unread.append(is_watched)
        self.schedule = {"learning_rate": rate, "kl_beta": beta}
        return {}

    def _recorded(self, number: int, is_watched: bool) -> Recorded:
        """The step of a lane; one that measures every transition's KL is another."""
        key = number, is_watched and self.spec.transitions > 1
        if key not in self.recorded:
            is_captured = self.stream is not None and self.is_captured and graphs.are_on()
            self.recorded[key] = Recorded(partial(self._step, *key), self._record if is_captured else None)
        return self.recorded[key]

    def _step(self, number: int, is_watched: bool) -> None:
        """All that the device does of a step once its rows are there; reads and writes the same places every time."""
        lane, side, flat = self.lanes[number], self.sides[number], self.flat
        config, fixed = lane.config, flat.compute.detach()
        self.rate.copy_(side.given.numbers[0])
        with torch.no_grad():
            side.roll(flat.views(fixed), self._advance)
        slots, replay = side.slot_batch(), side.replay()
        earlier = self._earlier(fixed, slots, config, is_watched)
        h, l, carried = earlier.h, earlier.l, None
        if not self.training.has_posterior:
            *carried, nearest = self._ahead(fixed, slots, h, l, config)
            slots, h, l = slots.take(nearest), h[nearest], l[nearest]
        beta = side.given.numbers[1].to(torch.float32)
        loss = self._loss(flat.compute, slots, replay, beta, h, l, config)
        loss.total.backward()
        norm = flat.descend()
        flat.master.grad = None
        with torch.no_grad():
            side.carry(*(carried or (loss.h, loss.l)))
            dropped = torch.zeros_like(norm) if loss.dropped is None else loss.dropped.float()
            row = torch.cat([torch.stack([norm, dropped]), shown(loss, earlier)])
            row = pad(row, (0, self.width - len(row)))
            self.seen.index_copy_(0, side.given.place, row[None])

    def read(self) -> dict[str, Any]:
        """The figures of the last step; `kl_first` is the mean over the steps since they were last read. Waits for the
        device. Raises `FloatingPointError` where a step since then had a gradient that is not finite."""
        rows = self._rows()
        named = [self._named(row[BESIDE:], is_watched=each) for row, each in zip(rows, self.unread, strict=True)]
        self.unread = []
        firsts = [figures["kl_first"] for figures in named if math.isfinite(figures["kl_first"])]
        lane = self.lanes[(self.step - 1) % len(self.lanes)]
        norm, dropped = rows[-1][:BESIDE]
        return {
            **named[-1],
            "kl_first": sum(firsts) / len(firsts) if firsts else math.nan,
            "rollout_right": lane.rollouts.share_right,
            "gradient_norm": norm,
            **self.schedule,
            "flops": self.flops,
            **({"experts_dropped": dropped} if lane.config.experts else {}),
        }

    def _rows(self) -> list[list[float]]:
        """The rows of figures that nobody has read, first to last. Raises as `read`."""
        with self._queued():
            seen = self.seen.tolist()
        steps = range(self.step - len(self.unread), self.step)
        rows = [seen[step % len(seen)] for step in steps]
        for step, (norm, *_) in zip(steps, rows, strict=True):
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient norm must be finite, got {norm} at optimiser step {step}")
        return rows

    def evaluate(self) -> dict[str, float]:
        self._settle()
        return super().evaluate()

    def save(self, command: str) -> dict[str, Any]:
        """As `Trainer.save`; nothing is written where a step since the last reading had a gradient that is not finite.
        Raises `FloatingPointError` then."""
        self._rows()
        return super().save(command)

    def save_state(self) -> None:
        self._settle()
        super().save_state()

    def load_state(self) -> bool:
        self._settle()
        was_loaded = super().load_state()
        self.recorded = {}  # a graph would go on with the moments that AdamW had before
        for side in self.sides:
            side.is_stale = True
        return was_loaded

    # A GPU's queue of work.

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """What is done inside goes into this run's queue, behind what the process has given the device so far."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield

    def _settle(self) -> None:
        """Waits until the queue is empty: what follows is done outside of it."""
        if self.stream is not None:
            self.stream.synchronize()

    def _record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Captures a step. All graphs share one pool of memory: no step leaves anything in it for another."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        assert self.stream is not None
        launch: Callable[[], None] = graphs.capture(
            function, stream=self.stream, pool=self.pool, what="a step of training"
        ).replay
        return launch
