"""The training loss of one supervision step (2605.19376, section 3).

    CE(dec(h_T), y) + beta * KL_balanced(q || p) at the last transition + head losses on prior rollouts

Gradients flow through the last transition only; the state is carried, detached. (Through several supervision steps:
`gram/training/segment.py`.) Watch the KL at the first noisy step:
every draw of the posterior that the KL does not penalise leaks the target into the state.

On-policy slots (`TrainConfig.prior_share`) follow the prior. They maximise the likelihood of any valid answer,
`log sum_s p(s)`, which pulls a state towards the nearest solution; with target `set` all slots do.
Best-of-many (`TrainConfig.best_of`) has no posterior: of several trajectories of a puzzle under the prior, `rows_ahead`
finds the one nearest to the target, and that one takes the loss. Models with fixed noise (EqR, 2605.21488) train with
the noise that they sample with.

Shapes: `B` rows (slots, or trajectories of slots), `L` tokens (registers included), `D` columns, `A` answer tokens, `S`
solutions, `H` replayed rollout states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from gram.config import ModelConfig
from gram.kernels.experts import Routing
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.reference import (
    Damping,
    Guide,
    Transition,
    Weights,
    add_noise,
    damp,
    decode,
    read_head,
    transition,
)
from gram.model import embed, embed_target
from gram.training.config import TrainConfig
from gram.training.guidance import Gaussian, Lead, balanced_kl, kl, posterior, prior


class SlotBatch(NamedTuple):
    """Puzzles in training, each at its own supervision step."""

    h: Tensor
    """`[B, L, D]`."""
    l: Tensor
    """`[B, L, D]`."""
    puzzles: Tensor
    """`[B, L - R]` int64."""
    targets: Tensor
    """`[B, A]` int64."""
    solutions: Tensor
    """Valid answers of each puzzle that count as targets, `[B, S, A]` int64; padding where there are fewer, and
    everywhere for a slot whose target alone counts."""
    is_empty: Tensor
    """Shown as the empty condition, `[B]`."""
    is_prior: Tensor
    """On-policy: follows the prior, and the nearest solution is its target, `[B]`."""
    puzzle_hash: Tensor
    """`[B]` int64."""
    trajectory: Tensor
    """Number of the sequence that the slot holds, `[B]` int64; keys its noise."""
    step: Tensor
    """Supervision steps taken, `[B]` int64."""
    registers: Tensor | None = None
    """Of a model with task embeddings: those of each puzzle's identity, `[B, R, D]`."""

    def key(self, seed: int) -> NoiseKey:
        """What names the slots' noise."""
        return NoiseKey(seed, self.puzzle_hash, self.trajectory, self.step)

    def take(self, rows: Tensor | slice) -> SlotBatch:
        """These rows alone."""
        fields: list[Any] = [None if field is None else field[rows] for field in self]
        return SlotBatch(*fields)


class Replay(NamedTuple):
    """States of finished prior rollouts, for the heads."""

    h: Tensor
    """`[H, L, D]`."""
    is_right: Tensor
    """1 where the answer decoded from this state is right, `[H]` fp32: the halt head's target."""
    final: Tensor
    """1 where the rollout's last answer was right, `[H]` fp32: LPRM's target."""
    share: Tensor
    """Weight of each state, `[H]` fp32: 0 where the replay is not filled yet."""


class Loss(NamedTuple):
    """The loss and the figures to log; scalars unless a shape stands there."""

    total: Tensor
    cross_entropy: Tensor
    """Mean over output tokens, nats; with target `set` that of the likelihood of any solution."""
    kl: Tensor
    """Of the last transition: mean over tokens of noisy slots, nats."""
    kl_first: Tensor
    """The same over slots at their first noisy step; NaN where there is none, and without a condition."""
    exact: Tensor
    """Share of slots whose decoded answer is the target (the posterior's view, not accuracy); with target `set` one of
    the solutions that the slot aims at."""
    heads: Tensor
    """Halt and LPRM losses together."""
    h: Tensor
    """State to carry, detached."""
    l: Tensor
    answers: Tensor
    """What the slots now answer, `[B, A]` int64."""
    dropped: Tensor | None = None
    """Share of the choices of experts, over all calls of the last transition, that found one full."""


def step_loss(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    replay: Replay,
    beta: Tensor,
    token_weights_V: Tensor,
    h: Tensor,
    l: Tensor,
    advance: Transition = transition,
    lead: Lead | None = None,
) -> Loss:
    """Loss of one supervision step of every slot; `h, l` are the state after the step's earlier transitions, `advance`
    takes the last one, `lead` its noise (None: as `guidance.py` defines it).

    `weights` require gradients; `beta` and `token_weights_V` are tensors so that a compiled step serves all of
    training.
    """
    last = config.transitions - 1
    step = supervise(weights, config, training, slots, token_weights_V, h, l, advance, lead, first=last)
    led_B = ~slots.is_prior
    # Without a condition the noise decides everything: there the KL is no leak.
    has_leak = bool(step.divergences) and config.is_conditional
    noisy, first = charged_slots(config, slots)
    led = led_B.to(torch.float32)
    heads = head_loss(weights, config, replay)
    divergence = step.divergences[0] if step.divergences else torch.zeros(len(noisy), config.length, device=h.device)
    per_slot = divergence.mean(1)
    total = step.error + beta * step.charge + heads
    if step.routed:
        total = total + training.expert_balance * torch.stack([each.balance for each in step.routed]).mean()
    return Loss(
        total=total,
        cross_entropy=((step.logged * led).sum() / led.sum()).detach(),
        kl=(per_slot * noisy).sum() / noisy.sum().clamp(min=1),
        kl_first=(per_slot * first).sum() / first.sum() if has_leak else per_slot.sum() * torch.nan,
        exact=(step.is_exact * led).sum() / led.sum(),
        heads=heads.detach(),
        h=step.h.detach(),
        l=step.l.detach(),
        answers=step.answers,
        dropped=torch.stack([each.dropped for each in step.routed]).mean().detach() if step.routed else None,
    )


class Supervised(NamedTuple):
    """A supervision step's loss without the heads', and what is shown of it. Means over slots."""

    error: Tensor
    """Loss of the answers, nats a token."""
    charge: Tensor
    """KL with balanced gradient, summed over the transitions that have a gradient."""
    divergences: list[Tensor]
    """`KL(q || p)` of each of them, `[B, L]`; empty without a posterior."""
    logged: Tensor
    """The answers' loss as it is shown, `[B]`."""
    is_exact: Tensor
    """`[B]`."""
    answers: Tensor
    """`[B, A]`."""
    routed: list[Routing] | None
    """Of a model with routed experts: what they were asked."""
    h: Tensor
    l: Tensor


def supervise(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    token_weights_V: Tensor,
    h: Tensor,
    l: Tensor,
    advance: Transition = transition,
    lead: Lead | None = None,
    *,
    first: int,
) -> Supervised:
    """The transitions of a supervision step from number `first` on, and the loss of its answer; `h, l` are the state
    before them, and keep their history."""
    noisy_B = slots.step >= config.noise_free_steps
    routed: list[Routing] | None = [] if config.experts else None
    h, l, seen = _charged_transitions(weights, config, training, slots, h, l, first, routed, advance, lead)
    none = torch.zeros(noisy_B.shape[0], config.length, device=h.device)
    balanced = functools.reduce(torch.add, [each for each, _ in seen]) if seen else none

    logits = decode(weights, config, h)
    entropy, per_puzzle = _entropy(logits, slots.targets, token_weights_V)
    answers = logits.argmax(-1)
    is_exact = _equal(answers, slots.targets, token_weights_V)
    logged = entropy.mean(1)
    if training.target == "set":
        is_listed = slots.solutions[..., 0] > 0
        has_listed = is_listed.any(1)
        per_puzzle = torch.where(has_listed, set_loss(logits, slots.solutions, token_weights_V), per_puzzle)
        is_any = (_equal(answers[:, None], slots.solutions, token_weights_V) & is_listed).any(1)
        is_exact, logged = torch.where(has_listed, is_any, is_exact), per_puzzle.detach()
    elif training.prior_share:
        nearest = set_loss(logits, slots.solutions, token_weights_V)
        per_puzzle = torch.where(slots.is_prior & (noisy_B | slots.is_empty), nearest, per_puzzle)
    noisy, _ = charged_slots(config, slots)
    charge = (balanced.mean(1) * noisy).mean()
    divergences = [each for _, each in seen]
    return Supervised(per_puzzle.mean(), charge, divergences, logged, is_exact, answers, routed, h, l)


@torch.no_grad()
def rows_ahead(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    token_weights_V: Tensor,
    h: Tensor,
    l: Tensor,
    advance: Transition = transition,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best-of-many: every row's state after the step's last transition under the prior, and the rows `[B / best_of]`
    nearest to their targets, one of each slot. `h, l` are the state after the earlier transitions."""
    last = config.transitions - 1
    h, l, _ = _charged_transitions(weights, config, training, slots, h, l, last, advance=advance)
    _, per_row = _entropy(decode(weights, config, h), slots.targets, token_weights_V)
    nearest = per_row.view(-1, training.best_of).argmin(1)
    return h, l, nearest + training.best_of * torch.arange(len(nearest), device=h.device)


def _entropy(logits: Tensor, targets: Tensor, token_weights_V: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every answer token, `[B, A]`, and its weighted mean, `[B]`."""
    share = token_weights_V[targets]
    entropy = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(share)
    return entropy, (entropy * share).sum(1) / share.sum(1)


def _equal(answers: Tensor, targets: Tensor, token_weights_V: Tensor) -> Tensor:
    """Whether answers `[..., A]` are the targets at every token that has a weight, `[...]`."""
    return ((answers == targets) | (token_weights_V[targets] == 0)).all(-1)


def _charged_transitions(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    h: Tensor,
    l: Tensor,
    first: int,
    routed: list[Routing] | None = None,
    advance: Transition = transition,
    lead: Lead | None = None,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """State after the transitions from number `first` on, and of each the KL where there is one, `[B, L]`: with
    balanced gradient, and as a figure."""
    has_posterior = training.has_posterior and config.guidance != "none"
    calls, seed = training.gradient_calls, training.seed
    seen: list[tuple[Tensor, Tensor]] = []
    e_y = embed_target(weights, config, slots.targets) if has_posterior and lead is None else None

    def charge(u: Tensor, q: Gaussian, p: Gaussian) -> None:
        assert e_y is not None
        if u.requires_grad:
            # The KL must not pull on the state: it reads both Gaussians at the detached one.
            q, p = posterior(weights, config, u.detach(), e_y), prior(weights, config, u.detach())
        seen.append((balanced_kl(q, p, training.kl_balance), kl(q, p).detach()))

    def moved(u: Tensor, index: int) -> Tensor:
        assert lead is not None
        noisy_B, key, at_B = slots.step >= config.noise_free_steps, slots.key(seed), slots.step * config.transitions
        given = slots.targets, noisy_B, slots.is_prior, key, at_B + index
        u, divergence = lead(weights, config, u, *given, training.kl_balance)
        seen.append((divergence, divergence.detach()))
        return u

    for index in range(first, config.transitions):
        if lead is not None and has_posterior:
            guide = functools.partial(moved, index=index)
            h, l = _guided(weights, config, slots, guide, index, seed, h, l, calls, routed, advance)
        else:
            h, l = _transition(weights, config, slots, e_y, index, seed, h, l, charge, calls, routed, advance)
    return h, l, seen


def _transition(
    weights: Weights,
    config: ModelConfig,
    slots: SlotBatch,
    e_y: Tensor | None,
    index: int,
    seed: int,
    h: Tensor,
    l: Tensor,
    charge: Callable[[Tensor, Gaussian, Gaussian], None] = lambda u, q, p: None,
    gradient_calls: int = 0,
    routed: list[Routing] | None = None,
    advance: Transition = transition,
) -> tuple[Tensor, Tensor]:
    """State after transition `index`, with the posterior's noise, or the prior's in rows that follow it and where there
    is no target `e_y`."""
    noisy_B = slots.step >= config.noise_free_steps

    def guide(u: Tensor) -> Tensor:
        normal = _normals(slots, config, Site.POSTERIOR, slots.step * config.transitions + index, seed)
        p = prior(weights, config, u)
        if e_y is None:
            return add_noise(u, *p, normal, noisy_B, config, 1.0)
        q = posterior(weights, config, u, e_y)
        charge(u, q, p)
        is_prior = slots.is_prior[:, None, None]
        mean, log_sigma = (torch.where(is_prior, ours, theirs) for ours, theirs in zip(p, q, strict=True))
        return add_noise(u, mean, log_sigma, normal, noisy_B, config, 1.0)

    return _guided(weights, config, slots, guide, index, seed, h, l, gradient_calls, routed, advance)


def _guided(
    weights: Weights,
    config: ModelConfig,
    slots: SlotBatch,
    guide: Guide,
    index: int,
    seed: int,
    h: Tensor,
    l: Tensor,
    gradient_calls: int,
    routed: list[Routing] | None,
    advance: Transition,
) -> tuple[Tensor, Tensor]:
    """State after transition `index`, in which `guide` adds the noise."""
    is_empty = slots.is_empty if "empty" in weights else None
    e_x = embed(weights, config, slots.puzzles, is_empty_P=is_empty, registers_PRD=slots.registers)
    damping = _damping(config, slots, index, seed, gradient_calls)
    return advance(weights, config, h, l, e_x, None if config.guidance == "none" else guide, damping, routed)


def _damping(config: ModelConfig, slots: SlotBatch, index: int, seed: int, gradient_calls: int) -> Damping | None:
    """What core calls of transition `index` leave: with EqR's damping and noise, and without a history where no
    gradient shall flow through the call."""
    calls = config.low_level_updates + 1
    first = calls - gradient_calls if gradient_calls else 0
    if not (config.path_keep or config.path_noise or first > 0):
        return None

    def damping(old: Tensor, new: Tensor, call: int) -> Tensor:
        eps = None
        if config.path_noise:
            call_B = (slots.step * config.transitions + index) * calls + call
            eps = config.path_noise * _normals(slots, config, Site.PATH, call_B, seed)
        new = damp(old, new, config.path_keep, eps)
        return new.detach() if call < first else new

    return damping


def set_loss(logits: Tensor, solutions: Tensor, token_weights_V: Tensor) -> Tensor:
    """`-log sum_s p(s)` over the valid answers `[B, S, A]` under `logits [B, A, V]`, per (weighted) token: `[B]`.

    Padding solutions do not count; 0 where there is no other.
    """
    places = torch.arange(logits.shape[1], device=logits.device)
    spelled = logits.log_softmax(-1)[torch.arange(len(logits), device=logits.device)[:, None, None], places, solutions]
    share = token_weights_V[solutions]
    is_padding = solutions[..., 0] == 0
    is_aimless = is_padding.all(1)
    likelihood = (spelled * share).sum(-1).masked_fill(is_padding & ~is_aimless[:, None], -torch.inf)
    return torch.where(is_aimless, 0.0, -likelihood.logsumexp(1) / share[:, 0].sum(-1))


def head_loss(weights: Weights, config: ModelConfig, replay: Replay) -> Tensor:
    """Binary cross-entropy of the halt head plus squared error of LPRM on replayed states; no gradient to the core."""
    halt = read_head(weights, "halt", replay.h, config)
    lprm = read_head(weights, "lprm", replay.h, config)
    errors = binary_cross_entropy_with_logits(halt, replay.is_right, reduction="none") + (lprm - replay.final).square()
    return (errors * replay.share).sum() / replay.share.sum().clamp(min=1)


class Earlier(NamedTuple):
    """What a supervision step's transitions before the last one leave."""

    h: Tensor
    l: Tensor
    kl: list[Tensor]
    """KL of each transition in nats, mean over tokens of noisy slots led by the posterior; empty unless asked for."""
    kl_first: Tensor
    """Sum of the transitions' KL over slots at their first noisy step, as `Loss.kl_first`."""


@torch.no_grad()
def earlier_transitions(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    *,
    is_watched: bool = False,
    advance: Transition = transition,
) -> Earlier:
    """State after all but the last transition of a supervision step, without gradients; `is_watched` asks for the KL of
    each, which no loss charges."""
    h, l = slots.h, slots.l
    first = torch.zeros((), device=h.device)
    kls: list[Tensor] = []
    has_posterior = training.has_posterior and config.guidance != "none"
    for index in range(config.transitions - 1):
        if has_posterior and is_watched:
            h, l, divergence = transition_under_posterior(weights, config, training, slots, index, h, l, advance)
            noisy, at_first = charged_slots(config, slots)
            per_slot = divergence.mean(1)
            kls.append((per_slot * noisy).sum() / noisy.sum().clamp(min=1))
            first = first + (per_slot * at_first).sum() / at_first.sum()
            continue
        e_y = embed_target(weights, config, slots.targets) if has_posterior else None
        h, l = _transition(weights, config, slots, e_y, index, training.seed, h, l, advance=advance)
    return Earlier(h, l, kls, first)


def transition_under_posterior(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    slots: SlotBatch,
    index: int,
    h: Tensor,
    l: Tensor,
    advance: Transition = transition,
) -> tuple[Tensor, Tensor, Tensor]:
    """State after transition `index` of a supervision step, and its `KL(q || p)` in nats, summed over columns,
    `[B, L]`; also where a slot takes no noise or follows the prior."""
    seen: list[Tensor] = []
    e_y = embed_target(weights, config, slots.targets)

    def charge(u: Tensor, q: Gaussian, p: Gaussian) -> None:
        seen.append(kl(q, p))

    h, l = _transition(weights, config, slots, e_y, index, training.seed, h, l, charge, advance=advance)
    return h, l, seen[0]


def charged_slots(config: ModelConfig, slots: SlotBatch) -> tuple[Tensor, Tensor]:
    """1 for slots led by the posterior that take noise, and for those of them at their first noisy step: `[B]`."""
    led_B = ~slots.is_prior
    noisy = (slots.step >= config.noise_free_steps) & led_B
    first = (slots.step == config.noise_free_steps) & led_B
    return noisy.to(torch.float32), first.to(torch.float32)


def _normals(slots: SlotBatch, config: ModelConfig, site: Site, transition_B: Tensor, seed: int) -> Tensor:
    return noise((config.length, config.dim), slots.key(seed), site, transition_B)
