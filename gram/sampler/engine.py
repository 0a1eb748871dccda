"""The sampler, first version: rectangular launches of trajectories, halted one by one.

Every launch has one fixed trajectory count, its tail padded, so that a GEMM never changes shape and a trajectory is the
same bit for bit in any batch (`kernels/philox.py` says what its noise depends on). `e_x` is computed once per puzzle
and shared by its trajectories and all steps. A launch ends when all its trajectories have halted.

Shapes: `P` puzzles, `N` width, `B` trajectories of a launch, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gram.config import SamplerConfig
from gram.kernels import dispatch
from gram.model import Model
from gram.sampler.result import SampleResult
from gram.sampler.selectors import count_votes, select
from gram.tasks.identity import puzzle_hash
from gram.tasks.protocol import Task, Tokens


@dataclass(frozen=True, slots=True)
class StepView:
    """What `on_step` is shown: the real trajectories of one launch after one supervision step."""

    step: int
    """Supervision steps taken, from 1."""
    puzzle: np.ndarray
    """Index of each trajectory's puzzle, `[B]`."""
    trajectory: np.ndarray
    """Trajectory ids `[B]`."""
    answers: Tokens
    """Decoded answers `[B, A]`; a halted trajectory keeps the answer it halted with."""
    is_halted: np.ndarray
    """`[B]`."""
    halt: np.ndarray
    """Halt logits `[B]`."""
    lprm: np.ndarray
    """Predicted final accuracies `[B]`."""


def resolve(config: SamplerConfig, model: Model) -> SamplerConfig:
    """`config` with what it leaves open filled in from the model: depth and launch."""
    return replace(
        config,
        depth=config.depth if config.depth is not None else model.config.depth,
        launch=config.launch if config.launch is not None else dispatch.launch_size(model.spec),
    )


@torch.inference_mode()
def sample(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: SamplerConfig,
    *,
    is_unconditional: bool = False,
    on_launch: Callable[[int], None] | None = None,
    on_step: Callable[[StepView], None] | None = None,
) -> SampleResult:
    """Samples `config.width` trajectories of each puzzle `[P, L]` and selects an answer.

    `is_unconditional` shows the model the empty condition in place of the puzzles. `on_launch` is told how many
    trajectories have just ended; `on_step` sees every step. Same seed, puzzles and launch size: the same trajectories,
    whatever the batch. Raises `ValueError` for puzzles of another length or an untrained empty condition.
    """
    config = resolve(config, model)
    assert config.launch is not None
    if puzzles.ndim != 2 or puzzles.shape[1] != model.config.tokens:
        raise ValueError(f"puzzles must be [P, {model.config.tokens}] tokens, got {list(puzzles.shape)}")
    started = time.perf_counter()
    count, width = puzzles.shape[0], config.width
    candidates = np.zeros((count * width, model.config.output_tokens), dtype=np.uint8)
    steps = np.zeros(count * width, dtype=np.int64)
    halt = np.zeros(count * width, dtype=np.float32)
    lprm = np.zeros(count * width, dtype=np.float32)

    hashes = np.array([puzzle_hash(task.name, puzzle) for puzzle in puzzles], dtype=np.int64)
    for rows, e_x in _launches(model, puzzles, config, is_unconditional):
        real = slice(rows[0], min(rows[0] + config.launch, count * width))
        done = _run_launch(model, rows, hashes, e_x, config, real.stop - real.start, on_step)
        candidates[real], steps[real], halt[real], lprm[real] = done
        if on_launch is not None:
            on_launch(real.stop - real.start)

    by_puzzle = candidates.reshape(count, width, model.config.output_tokens)
    votes = count_votes(task.canonical(by_puzzle))
    halt, lprm = halt.reshape(count, width), lprm.reshape(count, width)
    return SampleResult(
        puzzles=puzzles,
        candidates=by_puzzle,
        steps=steps.reshape(count, width),
        halt=halt,
        lprm=lprm,
        selected=select(config.selector, votes=votes, halt=halt, lprm=lprm),
        votes=votes,
        config=config,
        elapsed_s=time.perf_counter() - started,
        kernel=dispatch.choose(model.device).kernel,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _launches(
    model: Model, puzzles: Tokens, config: SamplerConfig, is_unconditional: bool
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows (puzzle * width + trajectory) of each launch, padded by repeating its first, and their `e_x`."""
    assert config.launch is not None
    total = puzzles.shape[0] * config.width
    embedded: dict[int, Tensor] = {}
    for first in range(0, total, config.launch):
        rows = np.arange(first, first + config.launch)
        rows[rows >= total] = first
        wanted = sorted(set((rows // config.width).tolist()))
        new = [index for index in wanted if index not in embedded]
        if new:
            if is_unconditional:
                e_x = model.embed_empty(len(new))
            else:
                e_x = model.embed(torch.from_numpy(puzzles[new].astype(np.int64)).to(model.device))
            embedded |= dict(zip(new, e_x, strict=True))
        embedded = {index: embedded[index] for index in wanted}
        yield rows, torch.stack([embedded[index] for index in (rows // config.width).tolist()])


def _run_launch(
    model: Model,
    rows: np.ndarray,
    hashes: np.ndarray,
    e_x: Tensor,
    config: SamplerConfig,
    real: int,
    on_step: Callable[[StepView], None] | None,
) -> tuple[Tokens, np.ndarray, np.ndarray, np.ndarray]:
    """One launch to its end: answers `[real, A]`, steps taken, halt logits and LPRM `[real]` of its real rows."""
    assert config.depth is not None
    puzzle, trajectory = rows // config.width, rows % config.width
    hash_B = torch.from_numpy(hashes[puzzle]).to(model.device)
    trajectory_B = torch.from_numpy(trajectory).to(model.device)
    h, l = model.initial_state(len(rows))
    is_halted = np.zeros(len(rows), dtype=bool)
    is_halted[real:] = True
    answers = np.zeros((len(rows), model.config.output_tokens), dtype=np.uint8)
    taken = np.zeros(len(rows), dtype=np.int64)
    halt, lprm = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    threshold = config.halt_threshold or 0.95
    gate = float(np.log(threshold / (1 - threshold)))
    # Before the first noisy step all trajectories are one: halting there would make width worthless.
    first_halt = 1 + (model.config.noise_free_steps if model.config.is_stochastic else 0)

    for step in range(1, config.depth + 1):
        state = model.step(
            h,
            l,
            e_x,
            seed=config.seed,
            puzzle_hash_B=hash_B,
            trajectory_B=trajectory_B,
            step_B=torch.full_like(trajectory_B, step - 1),
            injection=dispatch.Injection(temperature=config.temperature),
        )
        h, l = state.h, state.l
        halt_now = state.halt.cpu().numpy()
        stops = (halt_now > gate) if config.halting == "head" and step >= first_halt else np.zeros_like(is_halted)
        running = ~is_halted
        if on_step is not None or step == config.depth or (stops & running).any():
            decoded = model.decode(h).argmax(-1).to(torch.uint8).cpu().numpy()
            answers[running], taken[running] = decoded[running], step
            halt[running], lprm[running] = halt_now[running], state.lprm.cpu().numpy()[running]
        is_halted |= stops
        if on_step is not None:
            shown = slice(0, real)
            on_step(
                StepView(
                    step,
                    puzzle[shown],
                    trajectory[shown],
                    answers[shown].copy(),
                    is_halted[shown].copy(),
                    halt[shown].copy(),
                    lprm[shown].copy(),
                )
            )
        if is_halted.all():
            break
    return answers[:real], taken[:real], halt[:real], lprm[:real]
