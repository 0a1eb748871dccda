"""One optimiser step per supervision step, or per segment of several, in bf16 with an fp32 master; the state of a run.

Not the loop (`gram/training/run.py`). A run lives in one folder: `run.json` (its recipe), `log.jsonl`,
`state.safetensors` (to continue after a kill) and, from the first checkpoint on, the checkpoint files themselves with
the averaged weights. Files are moved into place whole, by the first rank where there are several
(`gram/training/data_parallel.py`).
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from gram import checkpoint
from gram.config import ModelConfig, SamplerConfig
from gram.kernels import reference
from gram.kernels.native import guide as native_guide
from gram.kernels.native import path as native
from gram.model import Model
from gram.sampler.run import sample
from gram.tasks.protocol import PuzzleSet, Task
from gram.training.cost import cost_of
from gram.training.data_parallel import Ranks
from gram.training.diagnosis import explain, recent_signs
from gram.training.elbo import elbo
from gram.training.guidance import Lead
from gram.training.lanes import Lane, open_lanes
from gram.training.objective import (
    Earlier,
    Loss,
    Replay,
    SlotBatch,
    earlier_transitions,
    head_loss,
    rows_ahead,
    step_loss,
)
from gram.training.optimiser import FlatWeights, kl_beta, learning_rate
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import Recipe
from gram.training.rollouts import Rollouts
from gram.training.run_folder import starting_rows, starting_weights
from gram.training.segment import SegmentStep, learn_segment, segment_step
from gram.training.slots import TrainingSlots

HEAD_STATES = 128
"""Replayed rollout states per optimiser step."""
LOG_EVERY_STEPS = 10
SHOWN = ("cross_entropy", "kl", "kl_first", "exact", "heads")
"""Fields of a loss that are shown as they are."""
IDENTITIES = "identities.rows"
"""Name of the table of task embeddings in a run's state."""


def keep_memory() -> None:
    """Keeps glibc from returning freed memory: large activations are otherwise mapped anew at every step."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        for parameter, value in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**30), (arena_max, 1)):
            libc.mallopt(parameter, value)


log = logging.getLogger(__name__)


class Trainer:
    """One run: its weights, slots and folder."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        is_compiled: bool = True,
        start: Path | None = None,
        puzzles: TrainingPuzzles | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.recipe, self.out, self.device, self.dtype = recipe, out, device, dtype
        self.task, self.training, self.ranks = recipe.task, recipe.training, ranks or Ranks()
        self.puzzles = puzzles or TrainingPuzzles(recipe.task, recipe.model, recipe.training)
        keep_memory()
        self.model = Model(recipe.model, seed=self.training.seed).to(device)
        if (features := self.task.position_features()) is not None and hasattr(self.model, "positions"):
            self.model.start_positions(torch.from_numpy(features))
        if start is not None:
            self.model.load_state_dict(starting_weights(recipe, start))
        if (table := self.model.identities) is not None:
            table.names = getattr(self.puzzles, "names", None)
            if start is not None:
                table.rows = starting_rows(start, table.names)
        self.spec = self.model.spec
        self.flat = FlatWeights(self.model, self.training, self.dtype, self.ranks)
        self.step, self.elapsed_s = 0, 0.0
        self.figures: dict[str, float] = {}
        self._open(is_compiled)

    def _open(self, is_compiled: bool) -> None:
        """Makes what an optimiser step works on, and compiles its functions."""
        self.lanes = open_lanes(self.recipe, self.puzzles, self.dtype, self.device, self.ranks)
        self.costs = [cost_of(replace(self.recipe, task=lane.task, model=lane.config)) for lane in self.lanes]
        weights = torch.ones(self.recipe.model.vocabulary)
        for token, weight in self.training.token_weights:
            weights[int(token)] = weight
        self.token_weights = weights.to(self.device)
        # Each number of tokens is compiled for itself: code for any number is slower.
        options: dict[str, Any] = {"dynamic": False} if len(self.lanes) > 1 else {}
        compiled: Callable[..., Any] = partial(torch.compile, **options) if is_compiled else (lambda function: function)
        self._loss = compiled(self._loss_of_flat)
        self._ahead = compiled(self._rows_ahead)
        self._transition = self._choose_transition() if is_compiled else reference.transition
        self._lead = self._choose_lead()
        plain = partial(reference.supervision_step, advance=self._transition)
        self._advance = compiled(plain if self._lead is None else native_guide.supervision_step)
        self._late = plain  # not compiled: rows leave one by one, and each number of rows would be compiled anew
        self._segment_step, self._heads = compiled(self._step_of_master), compiled(self._heads_of_master)

    def _choose_transition(self) -> reference.Transition:
        """The native core where this model, type and processor have it, else the reference, which is compiled."""
        weights = self.flat.views(self.flat.compute.detach())
        training, path_noise = self.training, self.recipe.model.path_noise
        asked = {"gradient_calls": training.gradient_calls, "gradient_steps": training.gradient_steps}
        if native.unsupported_reason(weights, self.spec, path_noise=path_noise, **asked):
            return reference.transition
        try:
            native.prepare(weights, self.spec)
        except RuntimeError as error:
            log.warning("training without the native core: %s", error)
            return reference.transition
        return native.transition

    def _choose_lead(self) -> Lead | None:
        """The native noise beside the native core where this model has it."""
        weights = self.flat.views(self.flat.compute.detach())
        if self._transition is not native.transition or native_guide.unsupported_reason(weights, self.spec):
            return None
        try:
            native_guide.prepare(weights, self.spec)
        except RuntimeError as error:
            log.warning("training without native noise: %s", error)
            return None
        return native_guide.led

    @property
    def slots(self) -> TrainingSlots:
        """Those of the recipe's own task."""
        return self.lanes[0].slots

    @property
    def rollouts(self) -> Rollouts:
        """Those of the recipe's own task."""
        return self.lanes[0].rollouts

    def _loss_of_flat(
        self,
        flat: Tensor,
        slots: SlotBatch,
        replay: Replay,
        beta: Tensor,
        h: Tensor,
        l: Tensor,
        config: ModelConfig | None = None,
    ) -> Loss:
        config = config or self.recipe.model
        weights, paths = self.flat.views(flat), (self._transition, self._lead)
        return step_loss(weights, config, self.training, slots, replay, beta, self.token_weights, h, l, *paths)

    def _rows_ahead(
        self, flat: Tensor, slots: SlotBatch, h: Tensor, l: Tensor, config: ModelConfig | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = config or self.recipe.model
        weights, advance = self.flat.views(flat), self._transition
        return rows_ahead(weights, config, self.training, slots, self.token_weights, h, l, advance)

    def _step_of_master(
        self, master: Tensor, slots: SlotBatch, h: Tensor, l: Tensor, config: ModelConfig
    ) -> SegmentStep:
        weights, advance = self.flat.views(master.to(self.dtype)), self._transition
        return segment_step(weights, config, self.training, slots, self.token_weights, h, l, advance)

    def _heads_of_master(self, master: Tensor, replay: Replay, config: ModelConfig) -> Tensor:
        return head_loss(self.flat.views(master.to(self.dtype)), config, replay)

    def _learn_segment(self, lane: Lane, slots: SlotBatch, replay: Replay, beta: Tensor) -> tuple[Loss, Earlier]:
        """Adds the gradient of several supervision steps, and of the heads, to the master's."""
        master, config = self.flat.master, lane.config
        master.grad = None

        def step(slots: SlotBatch, h: Tensor, l: Tensor) -> SegmentStep:
            made: SegmentStep = self._segment_step(master, slots, h, l, config)
            return made

        loss, earlier = learn_segment(step, config, self.training, slots, beta)
        heads = self._heads(master, replay, config)
        heads.backward()
        return loss._replace(heads=heads.detach(), total=loss.total + heads.detach()), earlier

    @property
    def flops(self) -> float:
        """Floating-point operations of the run so far, counted as `cost_of` does; late starts by what they drew."""
        counted = 0.0
        for number, (lane, cost) in enumerate(zip(self.lanes, self.costs, strict=True)):
            steps = (self.step - number + len(self.lanes) - 1) // len(self.lanes)
            counted += steps * (cost.step_flops - cost.late_flops) + float(lane.slots.ran_late[0]) * cost.row_flops
        return counted

    @property
    def fraction(self) -> float:
        """Part of the run done: by steps or by minutes, whichever is further."""
        by_steps = self.step / self.training.steps if self.training.steps else 0.0
        by_time = self.elapsed_s / (60 * self.training.minutes) if self.training.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    @property
    def fraction_after(self) -> float:
        """`fraction` after the optimiser step that comes, as far as steps tell."""
        return min(1.0, max(self.fraction, (self.step + 1) / self.training.steps if self.training.steps else 0.0))

    @property
    def is_watched(self) -> bool:
        """Whether the step that comes is logged, so that every transition's KL is measured in it."""
        step = self.step + 1
        is_last = step == self.training.steps
        return is_last or step % LOG_EVERY_STEPS == 0 or step % self.training.evaluate_every_steps == 0

    def advance(self) -> dict[str, Any]:
        """One optimiser step; returns the figures of `TrainProgress` that it made."""
        # A generator per step: a resumed run draws the same puzzles as one that was never stopped.
        lane = self.lanes[self.step % len(self.lanes)]
        rng = np.random.default_rng([self.training.seed, self.step])
        weights = self.flat.views(self.flat.compute.detach())
        lane.slots.refill(weights, rng, self.step, self.fraction)
        lane.slots.run_late(self._late, weights, lane.rollouts.injection, self.model.identities)
        if not self.ranks.is_first:
            rng = np.random.default_rng([self.training.seed, self.step, self.ranks.rank])  # rollouts of its own
        rollout_right = lane.rollouts.advance(self._advance, weights, rng, self.model.identities)
        slots, rows = self._identified(lane.slots)
        is_watched = self.is_watched
        beta = kl_beta(self.training, self.fraction)
        level = torch.tensor(beta, device=self.device)
        replay = lane.rollouts.draw(rng, max(1, HEAD_STATES // self.ranks.size))
        carried = None
        if self.training.gradient_steps > 1:
            loss, earlier = self._learn_segment(lane, slots, replay, level)
            is_watched = True
        else:
            earlier = earlier_transitions(
                weights, lane.config, self.training, slots, is_watched=is_watched, advance=self._transition
            )
            h, l = earlier.h, earlier.l
            if not self.training.has_posterior:
                *carried, nearest = self._ahead(self.flat.compute.detach(), slots, h, l, lane.config)
                slots, h, l = slots.take(nearest), h[nearest], l[nearest]
            loss = self._loss(self.flat.compute, slots, replay, level, h, l, lane.config)
            loss.total.backward()
        rate = learning_rate(self.training, self.step, self.fraction)
        norm = self.flat.update(rate, self.fraction_after)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm must be finite, got {norm} at optimiser step {self.step}")
        if rows is not None:
            self._learn_identities(lane.slots, rows, rate / self.training.learning_rate)
        lane.slots.carry(*(carried or (loss.h, loss.l)))
        lane.slots.aim(loss.answers)
        self.step += 1
        everyone = self.ranks.gather(shown(loss, earlier)[None]).nanmean(0).tolist()
        return {
            **self._named(everyone, is_watched=is_watched),
            "rollout_right": rollout_right,
            "gradient_norm": norm,
            "learning_rate": rate,
            "kl_beta": beta,
            "flops": self.flops,
            **(
                {} if loss.dropped is None else {"experts_dropped": float(self.ranks.gather(loss.dropped[None]).mean())}
            ),
        }

    def _named(self, everyone: list[float], *, is_watched: bool) -> dict[str, Any]:
        """The figures of `shown` by their names; the KL of earlier transitions only where it was measured."""
        figures: dict[str, Any] = dict(zip(SHOWN, everyone, strict=False))
        has_kl = self.training.has_posterior and self.spec.guidance != "none"
        is_whole = is_watched or self.spec.transitions == 1
        first, *kls = everyone[len(SHOWN) :]
        figures["kl_first"] = figures["kl_first"] + first if is_whole else math.nan
        figures["kl_transitions"] = [*kls, figures["kl"]] if has_kl and is_whole else []
        return figures

    def read(self) -> dict[str, Any]:
        """The figures of the last step where `advance` has left them on the device, and gave none."""
        return {}

    def _identified(self, slots: TrainingSlots) -> tuple[SlotBatch, Tensor | None]:
        """This rank's slots, with registers from the rows of their identities; these rows `[B, E]`, which take their
        gradient."""
        if (table := self.model.identities) is None:
            return slots.view(), None
        rows = table.take(torch.from_numpy(slots.identities[slots.own])).to(self.device, self.dtype).requires_grad_()
        return slots.view()._replace(registers=table.fill(rows)), rows

    def _learn_identities(self, slots: TrainingSlots, rows: Tensor, schedule: float) -> None:
        """A step of the table's own optimiser on the rows that the slots of all ranks had."""
        table, training = self.model.identities, self.training
        assert table is not None
        assert rows.grad is not None
        identities = torch.from_numpy(slots.identities[slots.own]).to(rows.device)
        everyone, gradient = self.ranks.gather(identities), self.ranks.gather(rows.grad)
        table.learn(everyone, gradient, schedule * training.identity_learning_rate, training.identity_weight_decay)

    def averaged(self, config: ModelConfig | None = None) -> Model:
        """The model with the averaged weights, in the training dtype, and the table of identities as it is; `config` is
        that of another lane."""
        model = self.flat.averaged_model(Model(self.recipe.model).to(self.device), self.dtype)
        model.resize(config or self.recipe.model)
        model.identities = self.model.identities
        return model

    def evaluate(self) -> dict[str, float]:
        """Prior rollouts on held-out puzzles: single accuracy and, with several solutions, pooled coverage. Of a model
        without condition: shares of valid and of distinct boards. Of several tasks: the means, and each under its
        task's name."""
        return self._of_lanes([(lane.task.name, self._evaluate(lane)) for lane in self.lanes])

    @staticmethod
    def _of_lanes(found: list[tuple[str, dict[str, float]]]) -> dict[str, float]:
        """The only task's figures, or the means over several and each under its task's name."""
        if len(found) == 1:
            return found[0][1]
        figures = {key: sum(each[key] for _, each in found) / len(found) for key in found[0][1]}
        for name, each in found:
            figures |= {f"{name}/{key}": value for key, value in each.items()}
        return figures

    def _evaluate(self, lane: Lane) -> dict[str, float]:
        """`evaluate` of one lane."""
        task, puzzles, model = lane.task, lane.puzzles, self.averaged(lane.config)
        config = SamplerConfig(width=self.training.evaluate_width, halting="fixed", seed=self.training.seed)
        held_out, width = puzzles.held_out, config.width
        if puzzles.blank is not None:
            many = replace(config, width=width * self.training.evaluate_puzzles)
            boards = sample(model, task, held_out.puzzles[:1], many, is_unconditional=True).candidates[0]
            is_valid = task.verify(np.repeat(puzzles.blank[None], len(boards), axis=0), boards)
            distinct = len(np.unique(task.canonical(boards), axis=0))
            return {"valid": float(is_valid.mean()), "distinct": distinct / len(boards)}
        identities = None if model.identities is None else held_out.identities
        result = sample(model, task, held_out.puzzles, config, identities=identities)
        flat = result.candidates.reshape(-1, result.candidates.shape[-1])
        is_right = task.verify(np.repeat(held_out.puzzles, width, axis=0), flat).reshape(-1, width)
        figures = {"single_accuracy": float(is_right.mean())}
        if self.training.has_posterior and self.spec.guidance != "none" and held_out.answers is not None:
            figures |= elbo(model, self.training, held_out.puzzles, held_out.answers, identities)
        if task.is_multi_solution:
            figures["coverage_pooled"] = _coverage(task, held_out, result.candidates, is_right)
        return figures

    def _parts(self) -> dict[str, Any]:
        """What holds the lanes' states, by the name under which each is kept; the first lane's have no number."""
        parts: dict[str, Any] = {}
        for number, lane in enumerate(self.lanes):
            parts |= {f"slots{number or ''}": lane.slots, f"rollouts{number or ''}": lane.rollouts}
        return parts

    def save_state(self) -> None:
        """Writes what a resumed run needs, in one file that is whole or absent; every rank must call.

        It holds all that the next steps read, so that a run that was killed ends with the weights of one that never
        was, bit for bit, on one type of machine and with one number of threads and ranks.
        """
        tensors = {f"flat.{name}": tensor for name, tensor in self.flat.state().items()}
        if self.model.identities is not None:
            tensors[IDENTITIES] = self.model.identities.rows
        for name, part in self._parts().items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in part.state().items()}
        metadata = {
            "step": str(self.step),
            "elapsed_s": repr(self.elapsed_s),
            "figures": json.dumps(self.figures),
        }
        if self.ranks.is_first:
            checkpoint.write_tensors(self.out / "state.safetensors", tensors, metadata)

    def load_state(self) -> bool:
        """Continues from the folder's state, where it has one."""
        path = self.out / "state.safetensors"
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.flat.load_state(part("flat."))
        if self.model.identities is not None:
            # Read anew into memory: the table is written at every step, the file is not.
            self.model.identities.rows = tensors[IDENTITIES].clone()
        for name, holder in self._parts().items():
            holder.load_state(part(f"{name}."))
        self.step, self.elapsed_s = int(metadata["step"]), float(metadata["elapsed_s"])
        self.figures = json.loads(metadata["figures"])
        return True

    def save(self, command: str) -> dict[str, Any]:
        """Writes the state to continue from, and the averaged weights as a checkpoint with its card, which it
        returns; every rank must call. The leak diagnosis is on the first rank's card, which alone is written."""
        card: dict[str, Any] = {
            "task": self.task.name,
            "description": self.recipe.description,
            "recipe": self.recipe.to_json(),
            "command": command,
            "optimiser_steps": self.step,
            "minutes": round(self.elapsed_s / 60, 2),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "held_out_while_training": self.figures,
        }
        if self.training.weight_share < 1:
            self.flat.keep(self.fraction)  # by the clock the share may have fallen since the last step
        self.save_state()
        if self.ranks.is_first:
            # The log is the first rank's: another would read it half written.
            card["leak_diagnosis"] = explain(
                recent_signs(self.out / "log.jsonl"),
                guidance=self.recipe.model.guidance,
                is_multi_solution=self.task.is_multi_solution,
            )
            checkpoint.save(
                self.averaged(), self.out, card=card, dtype=torch.bfloat16, is_sparse=self.training.weight_share < 1
            )
        return card


def shown(loss: Loss, earlier: Earlier) -> Tensor:
    """The figures of a step, fp32: `SHOWN`; of the earlier transitions the KL at first noisy steps; the KL of each."""
    figures = [getattr(loss, name).detach().float() for name in SHOWN]
    return torch.stack([*figures, earlier.kl_first, *earlier.kl])


def _coverage(task: Task, held_out: PuzzleSet, candidates: np.ndarray, is_right: np.ndarray) -> float:
    """Distinct solutions that were found, of all solutions of all puzzles."""
    found = sum(
        len(np.unique(task.canonical(answers[right]), axis=0)) if right.any() else 0
        for answers, right in zip(candidates, is_right, strict=True)
    )
    return found / sum(task.count_solutions(puzzle) for puzzle in held_out.puzzles)
