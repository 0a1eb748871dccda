"""Gradients through several supervision steps at once (`TrainConfig.gradient_steps`).

A segment is `K` supervision steps of every slot. Each has its loss, and gradients flow through all of them and through
all their transitions; the state is detached where the segment ends. Step `k` answers with what all draws of the segment
up to it have told, so its loss is the bound of its own answer: the KL of all of them is charged to it.

    1/K sum_k [ CE(dec(h_k), y) + beta * sum_{j <= k} sum_t KL_balanced(q || p at step j, transition t) ] + heads

A draw that only its own step paid for would be worth up to `K` answers at the price of one, and the target would leak
through it. With `K = 1` and one transition this is the loss of `gram/training/objective.py`.

Each supervision step is a function of the fp32 master, so that gradients of all steps and rows are summed in fp32.

Shapes: `B` slots of one backward pass, `T` transitions, `L` tokens, `D` columns, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gram.config import ModelConfig
from gram.kernels.reference import Transition, Weights, transition
from gram.model import Model
from gram.sampler.run import check_bytes, device_bytes
from gram.training.config import TrainConfig
from gram.training.objective import Earlier, Loss, SlotBatch, charged_slots, supervise


class SegmentStep(NamedTuple):
    """One supervision step of a segment."""

    error: Tensor
    """Loss of the answers, mean over slots."""
    charge: Tensor
    """Balanced KL of its transitions, mean over slots."""
    balance: Tensor
    """Loss of the experts' loads; 0 without experts."""
    dropped: Tensor
    """Share of their choices that found one full."""
    shown: Tensor
    """Sums over slots: of the shown loss, of exact answers, each of the slots led by the posterior; of these slots; of
    those of them that take noise, and that take it for the first time. `[5]`."""
    kl: Tensor
    """Sums of the KL of each transition: over slots that take noise, and over those that do so first. `[2, T]`."""
    answers: Tensor
    """`[B, A]`."""
    h: Tensor
    """State after the step, with its history."""
    l: Tensor


StepFunction = Callable[[SlotBatch, Tensor, Tensor], SegmentStep]
"""A step from slots and the state before it; the weights are the caller's."""


def segment_step(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    token_weights_V: Tensor,
    h: Tensor,
    l: Tensor,
    advance: Transition = transition,
) -> SegmentStep:
    """A supervision step with gradients through all its transitions; `slots.step` is its own."""
    step = supervise(weights, config, training, slots, token_weights_V, h, l, advance, first=0)
    noisy, first = charged_slots(config, slots)
    led = (~slots.is_prior).to(torch.float32)
    none = torch.zeros((), device=h.device)
    shown = [(step.logged.detach() * led).sum(), (step.is_exact * led).sum(), led.sum(), noisy.sum(), first.sum()]
    kl = torch.zeros(2, config.transitions, device=h.device)
    if step.divergences:
        per_slot = torch.stack([each.mean(1) for each in step.divergences], 1)
        kl = torch.stack([noisy, first]) @ per_slot
    return SegmentStep(
        step.error,
        step.charge,
        torch.stack([each.balance for each in step.routed]).mean() if step.routed else none,
        torch.stack([each.dropped for each in step.routed]).mean().detach() if step.routed else none,
        torch.stack(shown),
        kl,
        step.answers,
        step.h,
        step.l,
    )


def segment_loss(training: TrainConfig, beta: Tensor, steps: list[SegmentStep]) -> Tensor:
    """The loss of a segment's steps, in their order, without the heads'."""
    total = torch.zeros((), device=beta.device)
    for number, step in enumerate(steps):
        # The draws of this step tell its answer and all later ones.
        total = total + step.error + beta * (len(steps) - number) * step.charge + training.expert_balance * step.balance
    return total / len(steps)


def learn_segment(
    step_function: StepFunction, config: ModelConfig, training: TrainConfig, slots: SlotBatch, beta: Tensor
) -> tuple[Loss, Earlier]:
    """Adds the gradient of a segment of all slots, `rows_at_once` of them in a backward pass, to whatever
    `step_function` reads. Returns its loss and figures, without those of heads, and what the transitions before the
    last one tell."""
    rows, count = training.rows_at_once, len(slots.h)
    registers = slots.registers
    if registers is not None:
        slots = slots._replace(registers=registers.detach().requires_grad_())
    seen: list[list[SegmentStep]] = []
    total = torch.zeros((), device=slots.h.device)
    for first in range(0, count, rows):
        part = slots.take(slice(first, first + rows))
        h, l, steps = part.h, part.l, []
        for number in range(training.gradient_steps):
            step = step_function(part._replace(step=part.step + number), h, l)
            h, l = step.h, step.l
            steps.append(step)
        loss = segment_loss(training, beta, steps) * (len(part.h) / count)
        loss.backward()
        total += loss.detach()
        seen.append([step._replace(h=step.h.detach(), l=step.l.detach()) for step in steps])
    if registers is not None:
        assert slots.registers is not None
        registers.backward(slots.registers.grad)
    return _told(config, training, seen, total)


def _told(
    config: ModelConfig, training: TrainConfig, seen: list[list[SegmentStep]], total: Tensor
) -> tuple[Loss, Earlier]:
    """The figures of a segment: means over all its steps; state and answers are those that it ends with."""
    every = [step for steps in seen for step in steps]
    logged, exact, led, noisy, first = torch.stack([step.shown for step in every]).sum(0)
    kl, at_first = torch.stack([step.kl for step in every]).sum(0)
    means, firsts = kl / noisy.clamp(min=1), at_first / first
    has_posterior = training.has_posterior and config.guidance != "none"
    has_leak = has_posterior and config.is_conditional
    ends = [steps[-1] for steps in seen]
    loss = Loss(
        total=total,
        cross_entropy=logged / led,
        kl=means[-1],
        kl_first=firsts[-1] if has_leak else means[-1] * torch.nan,
        exact=exact / led,
        heads=torch.zeros_like(total),
        h=torch.cat([step.h for step in ends]),
        l=torch.cat([step.l for step in ends]),
        answers=torch.cat([step.answers for step in ends]),
        dropped=torch.stack([step.dropped for step in every]).mean() if config.experts else None,
    )
    before = means[:-1].unbind() if has_posterior else ()
    return loss, Earlier(loss.h, loss.l, list(before), firsts[:-1].sum() if has_leak else torch.zeros_like(total))


def check_memory(
    config: ModelConfig, training: TrainConfig, *, device: torch.device, dtype: torch.dtype, ranks: int = 1
) -> None:
    """Refuses a segment whose backward pass cannot fit in the device's memory, before anything is written. Raises
    `ValueError` in one line with the count."""
    steps, rows = training.gradient_steps, min(training.rows_at_once, training.batch // ranks)
    if steps > 1:
        what = f"gradient_steps {steps} for {rows} rows_at_once"
        check_bytes(steps * rows * saved_bytes(config, training, dtype), device_bytes(device), device, what)


def saved_bytes(config: ModelConfig, training: TrainConfig, dtype: torch.dtype) -> int:
    """Bytes of one supervision step of one slot that the backward pass reads, as eager execution keeps them (compiled
    code keeps less). Counted on shapes alone."""
    with torch.device("meta"):
        model = Model(config)
        weights = {
            name: value.detach().to(dtype).requires_grad_(name in dict(model.named_parameters()))
            for name, value in model.weights().items()
        }
        one, two = (_kept(weights, config, training, dtype, count) for count in (1, 2))
    return two - one


def _kept(weights: Weights, config: ModelConfig, training: TrainConfig, dtype: torch.dtype, count: int) -> int:
    """Bytes of all storages that a step of so many slots keeps, on the device `meta`."""
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other takes its place
        return tensor

    state = torch.zeros(count, config.length, config.dim, dtype=dtype, requires_grad=True)
    number, no = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    targets = torch.zeros(count, config.output_tokens, dtype=torch.int64)
    slots = SlotBatch(
        h=state,
        l=state,
        puzzles=torch.zeros(count, config.tokens, dtype=torch.int64),
        targets=targets,
        solutions=targets[:, None],
        is_empty=no,
        is_prior=no,
        puzzle_hash=number,
        trajectory=number,
        step=number,
        registers=torch.zeros(count, config.registers, config.dim, dtype=dtype) if config.identity_dim else None,
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = segment_step(weights, config, training, slots, torch.ones(config.vocabulary), state, state)
    del held
    return sum(storage.nbytes() for storage in kept.values())
