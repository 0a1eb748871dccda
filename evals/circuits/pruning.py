"""The smallest part of a model that does a behaviour: learned masks of nodes at a target loss (2511.13653, sec. 2.2).

Each node has a number, and is kept where that is above 0. The forward pass takes the step function of it, the backward
pass the slope of a sigmoid (straight-through). The loss is the behaviour's plus a price on the share of nodes kept. The
price rises while the behaviour's loss is under its target, and falls while it is above. Then the nodes with the highest
numbers are kept, as few as reach the target (bisection). Of these every one is dropped that is not needed, lowest
number first (ours).

Nothing here is random. Shapes: `P` puzzles, of a behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gram.evals.circuits.behaviour import Behaviour
from gram.evals.circuits.masked import MaskedModel, Masks

STEPS, RATE = 120, 0.05
SLOPE = 0.25
"""Width of the sigmoid whose slope stands for that of the step function."""
FACTOR = 1.1
"""By which the price changes at every step."""
FIRST_PRICE = 0.1


@dataclass(frozen=True)
class Circuit:
    """The nodes that were kept."""

    masks: dict[str, Tensor]
    """1 where a node is kept, 0 elsewhere, by site."""
    loss: float
    """Of the behaviour with these nodes alone, nats, on the pairs that it was found on."""
    target: float
    is_reached: bool
    """Whether the loss is at most the target; else these are all nodes."""

    @property
    def nodes(self) -> int:
        """Nodes kept."""
        return int(sum(float(mask.sum()) for mask in self.masks.values()))


class BehaviourJudge:
    """A behaviour's loss and accuracy under masks."""

    def __init__(self, model: MaskedModel, behaviour: Behaviour) -> None:
        self.model = model
        self.puzzles = torch.from_numpy(behaviour.puzzles.astype("int64"))
        self.places = torch.from_numpy(behaviour.positions)
        self.right, self.wrong = torch.from_numpy(behaviour.right), torch.from_numpy(behaviour.wrong)

    def margins(self, masks: Masks | None) -> Tensor:
        """How far the right value's logit is above the wrong one's, `[P]`."""
        logits = self.model.logits(self.puzzles, masks)[torch.arange(len(self.places)), self.places]
        right, wrong = (logits.gather(1, value[:, None]).squeeze(1) for value in (self.right, self.wrong))
        return right - wrong

    def loss(self, masks: Masks | None) -> Tensor:
        """Cross-entropy of the right value against the wrong one, nats: log 2 where the model cannot tell."""
        return softplus(-self.margins(masks)).mean()


def prune(
    model: MaskedModel,
    behaviour: Behaviour,
    target: float,
    *,
    steps: int = STEPS,
    on_step: Callable[[int], None] = lambda step: None,
) -> Circuit:
    """The circuit of a behaviour. `model` has its means. `on_step` hears of every step."""
    judge, sizes = BehaviourJudge(model, behaviour), model.sizes
    numbers = torch.full((sum(sizes.values()),), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([numbers], lr=RATE, betas=(0.9, 0.95))
    price, best = FIRST_PRICE, torch.ones(len(numbers))
    is_reached = False

    def split(flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(sizes, flat.split(list(sizes.values())), strict=True))

    for step in range(steps):
        on_step(step)
        soft, hard = torch.sigmoid(numbers / SLOPE), (numbers > 0).float()
        mask = hard + soft - soft.detach()
        loss = judge.loss(split(mask))
        is_under = loss.item() <= target
        if is_under and float(hard.sum()) <= float(best.sum()):
            best, is_reached = hard.detach(), True
        price *= FACTOR if is_under else 1 / FACTOR
        optimiser.zero_grad()
        (loss + price * mask.mean()).backward()
        optimiser.step()
        with torch.no_grad():
            numbers.clamp_(-1, 1)

    @torch.no_grad()
    def is_enough(mask: Tensor) -> bool:
        return float(judge.loss(split(mask))) <= target

    order = numbers.detach().argsort(descending=True, stable=True)

    def first(count: int) -> Tensor:
        return torch.zeros(len(order)).scatter(0, order[:count], 1.0)

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(first(middle)) else (middle, high)
    if is_enough(first(high)):
        best, is_reached = (first(high) if not is_reached or high < float(best.sum()) else best), True
    if is_reached:
        best = best.clone()
        for node in order.flip(0).tolist():
            if best[node]:
                on_step(steps)
                best[node] = 0
                if not is_enough(best):
                    best[node] = 1
    masks = split(best)
    with torch.no_grad():
        return Circuit(masks, float(judge.loss(masks)), target, is_reached)
