"""The evidence lower bound of a guided model, an evaluation figure; the training loss is another (2605.19376, 3.2).

    log p(y | x) >= E_q [log p(y | h_MT)] - sum_m sum_t KL(q(eps_mt | u_mt, y) || p(eps_mt | u_mt))

over all `M` supervision steps and all `T` transitions of each, every token and column, with one draw of the posterior's
noise per puzzle. Where a puzzle has `S` solutions and the target is any of them alike, no model's expected `-log p`
is below `log S`.

Shapes: `P` puzzles, `L` tokens, `A` answer tokens, `M` depth, `T` transitions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from gram.model import Model
from gram.tasks.protocol import Tokens, puzzle_hash
from gram.training.config import TrainConfig
from gram.training.objective import SlotBatch, transition_under_posterior


@torch.no_grad()
def elbo(
    model: Model,
    training: TrainConfig,
    puzzles: Tokens,
    targets: Tokens,
    identities: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Bounds in nats per puzzle, means over puzzles `[P, L]` with targets `[P, A]`: `nelbo`, the negative bound, and
    its part `nelbo_kl`, the KL of all transitions. `identities [P]` are rows of the model's table.

    Raises `ValueError` for a model without guidance, which has no posterior.
    """
    config, weights = model.config, model.weights()
    if config.guidance == "none":
        raise ValueError("the model must have guidance to have a bound, got guidance 'none'")
    count = len(puzzles)

    def tensor(values: Tokens) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(model.device)

    h, l = model.initial_state(count)
    no = torch.zeros(count, dtype=torch.bool, device=model.device)
    registers = None
    if model.identities is not None and identities is not None:
        rows = model.identities.take(torch.from_numpy(identities))
        registers = model.identities.fill(rows).to(model.device, model.dtype)
    hashes = [puzzle_hash(config.task, puzzle) for puzzle in puzzles]
    slots = SlotBatch(
        h=h,
        l=l,
        puzzles=tensor(puzzles),
        targets=tensor(targets),
        solutions=tensor(targets)[:, None],
        is_empty=no,
        is_prior=no,
        puzzle_hash=torch.tensor(hashes, device=model.device),
        trajectory=torch.arange(count, device=model.device),
        step=torch.zeros(count, dtype=torch.int64, device=model.device),
        registers=registers,
    )
    total = torch.zeros(count, device=model.device)
    for step in range(config.depth):
        slots = slots._replace(step=torch.full_like(slots.step, step))
        for index in range(config.transitions):
            h, l, divergence = transition_under_posterior(weights, config, training, slots, index, h, l)
            if step >= config.noise_free_steps:
                total += divergence.sum(1)
    logits = model.decode(h).float()
    entropy = cross_entropy(logits.flatten(0, 1), slots.targets.flatten(), reduction="none").view(count, -1).sum(1)
    return {"nelbo": float((total + entropy).mean()), "nelbo_kl": float(total.mean())}
