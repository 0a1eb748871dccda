"""The training loss of one supervision step (2605.19376, section 3).

    CE(dec(h_T), y) + beta * KL_balanced(q || p) at the last transition + head losses on prior rollouts

Gradients flow through the last transition only; the state is carried, detached. What to watch is the KL at the first
noisy step: every draw of the posterior that the KL does not charge leaks the target into the state.

Slots may instead follow the prior (`TrainConfig.prior_share`); these maximise the likelihood of any valid answer,
`log sum_s p(s)`, which pulls a state towards the solution it is nearest to.

Shapes: `B` slots, `L` tokens (registers included), `D` columns, `A` answer tokens, `S` solutions, `H` replayed
rollout states.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from gram.config import ModelConfig, TrainConfig
from gram.guidance import Gaussian, balanced_kl, kl, posterior, prior
from gram.kernels.philox import Site, noise
from gram.kernels.reference import Spec, Weights, add_noise, decode, read_head, transition
from gram.model import embed, embed_target


class Slots(NamedTuple):
    """Puzzles being thought about in training, each at its own supervision step."""

    h: Tensor
    """`[B, L, D]`."""
    l: Tensor
    """`[B, L, D]`."""
    puzzles: Tensor
    """`[B, L - R]` int64."""
    targets: Tensor
    """`[B, A]` int64."""
    solutions: Tensor
    """Some or all valid answers of each puzzle, `[B, S, A]` int64; padding tokens where there are fewer."""
    is_empty: Tensor
    """Shown as the empty condition, `[B]`."""
    is_prior: Tensor
    """Follows the prior and aims at the nearest solutions, `[B]`."""
    puzzle_hash: Tensor
    """`[B]` int64."""
    trajectory: Tensor
    """Number of the sequence that the slot holds, `[B]` int64; keys its noise."""
    step: Tensor
    """Supervision steps taken, `[B]` int64."""


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
    """The loss and what to log of it; all scalars unless said otherwise."""

    total: Tensor
    cross_entropy: Tensor
    """Mean over output tokens, nats."""
    kl: Tensor
    """Mean over tokens of noisy slots, nats."""
    kl_first: Tensor
    """The same over slots at their first noisy step; NaN where there is none."""
    exact: Tensor
    """Share of slots whose decoded answer is the target (the posterior's view, not accuracy)."""
    heads: Tensor
    """Halt and LPRM losses together."""
    h: Tensor
    """State to carry, detached."""
    l: Tensor


def step_loss(
    weights: Weights,
    config: ModelConfig,
    training: TrainConfig,
    spec: Spec,
    slots: Slots,
    replay: Replay,
    beta: Tensor,
    token_weights_V: Tensor,
    h: Tensor,
    l: Tensor,
) -> Loss:
    """Loss of one supervision step of every slot; `h, l` are the state after the step's earlier transitions.

    `weights` require gradients; `beta` and `token_weights_V` are tensors so that a compiled step serves all of
    training.
    """
    e_x = embed(weights, config, slots.puzzles, is_empty_P=slots.is_empty if "empty" in weights else None)
    noisy_B = slots.step >= spec.noise_free_steps
    divergence = torch.zeros(noisy_B.shape[0], spec.tokens, device=h.device)
    balanced = divergence
    if spec.guidance == "none":
        h, l = transition(weights, spec, h, l, e_x, None)
    else:
        e_y = embed_target(weights, config, slots.targets)
        seen: list[Tensor] = []

        def guide(u: Tensor) -> Tensor:
            q, p = posterior(weights, spec, u, e_y), prior(weights, spec, u)
            led, led_by = (q, p)
            if u.requires_grad:
                # The KL must not pull on the state: it reads both Gaussians at the detached one.
                led, led_by = posterior(weights, spec, u.detach(), e_y), prior(weights, spec, u.detach())
            seen.extend((balanced_kl(led, led_by, training.kl_balance), kl(led, led_by).detach()))
            normal = _posterior_noise(slots, spec, spec.transitions - 1, training.seed)
            return add_noise(u, *_followed(slots, q, p), normal, noisy_B, spec, 1.0)

        h, l = transition(weights, spec, h, l, e_x, guide)
        balanced, divergence = seen

    logits = decode(weights, spec, h)
    share = token_weights_V[slots.targets]
    entropy = cross_entropy(logits.flatten(0, 1), slots.targets.flatten(), reduction="none").view_as(share)
    per_puzzle = (entropy * share).sum(1) / share.sum(1)
    if training.prior_share:
        nearest = set_loss(logits, slots.solutions, token_weights_V)
        per_puzzle = torch.where(slots.is_prior & noisy_B, nearest, per_puzzle)
    led_B = ~slots.is_prior
    noisy = (noisy_B & led_B).to(torch.float32)
    led = led_B.to(torch.float32)
    balanced_mean = (balanced.mean(1) * noisy).mean()
    heads = head_loss(weights, spec, replay)
    first = ((slots.step == spec.noise_free_steps) & led_B).to(torch.float32)
    per_slot = divergence.mean(1)
    return Loss(
        total=per_puzzle.mean() + beta * balanced_mean + heads,
        cross_entropy=((entropy.mean(1) * led).sum() / led.sum()).detach(),
        kl=(per_slot * noisy).sum() / noisy.sum().clamp(min=1),
        kl_first=(per_slot * first).sum() / first.sum() if spec.guidance != "none" else per_slot.sum() * torch.nan,
        exact=((logits.argmax(-1) == slots.targets).all(1) * led).sum() / led.sum(),
        heads=heads.detach(),
        h=h.detach(),
        l=l.detach(),
    )


def set_loss(logits: Tensor, solutions: Tensor, token_weights_V: Tensor) -> Tensor:
    """`-log sum_s p(s)` over the valid answers `[B, S, A]` under `logits [B, A, V]`, per (weighted) token: `[B]`.

    Padding solutions do not count; a puzzle has at least one.
    """
    places = torch.arange(logits.shape[1], device=logits.device)
    spelled = logits.log_softmax(-1)[torch.arange(len(logits), device=logits.device)[:, None, None], places, solutions]
    share = token_weights_V[solutions]
    likelihood = (spelled * share).sum(-1).masked_fill(solutions[..., 0] == 0, -torch.inf)
    return -likelihood.logsumexp(1) / share[:, 0].sum(-1)


def _followed(slots: Slots, q: Gaussian, p: Gaussian) -> Gaussian:
    """The Gaussian that each slot draws its noise from."""
    is_prior = slots.is_prior[:, None, None]
    return Gaussian(torch.where(is_prior, p.mean, q.mean), torch.where(is_prior, p.log_sigma, q.log_sigma))


def head_loss(weights: Weights, spec: Spec, replay: Replay) -> Tensor:
    """Binary cross-entropy of the halt head plus squared error of LPRM on replayed states; no gradient to the core."""
    halt = read_head(weights, "halt", replay.h, spec)
    lprm = read_head(weights, "lprm", replay.h, spec)
    errors = binary_cross_entropy_with_logits(halt, replay.is_right, reduction="none") + (lprm - replay.final).square()
    return (errors * replay.share).sum() / replay.share.sum().clamp(min=1)


@torch.no_grad()
def earlier_transitions(
    weights: Weights, config: ModelConfig, seed: int, spec: Spec, slots: Slots
) -> tuple[Tensor, Tensor]:
    """State after all but the last transition of a supervision step, under the posterior, without gradients."""
    h, l = slots.h, slots.l
    if spec.transitions == 1:
        return h, l
    e_x = embed(weights, config, slots.puzzles, is_empty_P=slots.is_empty if "empty" in weights else None)
    noisy_B = slots.step >= spec.noise_free_steps
    e_y = None if spec.guidance == "none" else embed_target(weights, config, slots.targets)
    for index in range(spec.transitions - 1):

        def guide(u: Tensor, index: int = index) -> Tensor:
            assert e_y is not None
            normal = _posterior_noise(slots, spec, index, seed)
            q = posterior(weights, spec, u, e_y)
            return add_noise(u, *_followed(slots, q, prior(weights, spec, u)), normal, noisy_B, spec, 1.0)

        h, l = transition(weights, spec, h, l, e_x, None if e_y is None else guide)
    return h, l


def _posterior_noise(slots: Slots, spec: Spec, index: int, seed: int) -> Tensor:
    return noise(
        (spec.tokens, spec.dim),
        seed=seed,
        site=Site.POSTERIOR,
        transition_B=slots.step * spec.transitions + index,
        trajectory_B=slots.trajectory,
        puzzle_hash_B=slots.puzzle_hash,
    )


LEAKING_ABOVE = 0.2
COLLAPSED_BELOW = 0.004


def diagnose(kl_first: float) -> str:
    """The leak diagnosis in a word, from the KL per token at the first noisy step."""
    if math.isnan(kl_first):
        return "undefined"
    if kl_first > LEAKING_ABOVE:
        return "leaking"
    return "collapsed" if kl_first < COLLAPSED_BELOW else "healthy"


def explain(kl_first: float, *, is_multi_solution: bool = True) -> str:
    """The leak diagnosis as a sentence; empty where the model has no guidance."""
    meaning = {
        "leaking": "leaking: the posterior tells the state more of the target than the prior can; expect good training "
        "loss and poor prior rollouts, and raise kl_beta",
        "healthy": "healthy: the noise carries a choice between solutions that the prior can make alone",
        "collapsed": "collapsed: the noise carries nothing and trajectories hardly differ; lower kl_beta",
    }
    word = diagnose(kl_first)
    if word == "collapsed" and not is_multi_solution:
        meaning[word] = "collapsed: the noise carries nothing, as it may where every puzzle has one solution"
    return f"KL per token at the first noisy step {kl_first:.3f} nats, {meaning[word]}" if word in meaning else ""
