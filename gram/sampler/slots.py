"""Slots: the latent states of trajectories, their puzzles, and the counters that key their noise.

Shapes: `S` slots (a whole number of launches), `B` rows of a launch, `L` tokens (registers included), `D` model, `A`
answer tokens, `k` some slots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.config import ResolvedConfig
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Injection, Spec
from gram.model import Model
from gram.sampler.views import SlotViews
from gram.tasks.protocol import Task, Tokens

Rows = NDArray[np.int64]


class Readout(NamedTuple):
    """What a state says, `[k]` each."""

    answers: Tokens
    """Decoded answers `[k, A]`."""
    margin: NDArray[np.float32]
    residual: NDArray[np.float32]


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


class SlotStates:
    """Latent states, their puzzles, the views they see these under and the counters that key their noise."""

    def __init__(self, model: Model, config: ResolvedConfig, *, task: Task, is_unconditional: bool) -> None:
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
        puzzles, hashes, trajectories, lineages = places
        if self.views is not None:
            puzzles = self.views.place(rows, puzzles, hashes, lineages)
        if self.is_unconditional:
            self.e_x[index] = self.model.embed_empty(len(rows))
        else:
            tokens = torch.from_numpy(puzzles.astype(np.int64)).to(self.h.device)
            self.e_x[index] = self.model.embed(tokens)
        self.hash[rows], self.trajectory[rows] = hashes, trajectories

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
