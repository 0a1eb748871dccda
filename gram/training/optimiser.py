"""Mixed-precision weights for training: one flat fp32 master, one flat bf16 copy, the optimiser and a running average.

One buffer each keeps the optimiser to a few operations; the compiled step sees bf16 views of the copy.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gram.model import Model
from gram.training.config import TrainConfig
from gram.training.data_parallel import Ranks
from gram.training.weight_sparsity import kept, weight_share

ALIGN = 64
"""Elements that every tensor's place in the flat buffer is a multiple of: whole cache lines for vector loads."""


class FlatWeights:
    """All parameters of a model in one buffer, with their names and shapes."""

    rate: Tensor | None = None
    """The learning rate where the device holds it (`keep_rate`)."""

    def __init__(self, model: Model, training: TrainConfig, dtype: torch.dtype, ranks: Ranks | None = None) -> None:
        self.training, self.ranks = training, ranks or Ranks()
        parameters = dict(model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.sizes = [math.ceil(shape.numel() / ALIGN) * ALIGN for shape in self.shapes.values()]
        device = model.device
        self.buffers = {name: buffer.to(dtype) for name, buffer in model.named_buffers()}
        master = torch.zeros(sum(self.sizes), device=device)
        for piece, parameter in zip(master.split(self.sizes), parameters.values(), strict=True):
            piece[: parameter.numel()] = parameter.detach().flatten()
        self.master = torch.nn.Parameter(master)
        self.average = master.clone()
        self.compute = master.to(dtype).requires_grad_()
        self.adam = torch.optim.AdamW(
            [self.master],
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            weight_decay=training.weight_decay,
            fused=True,
        )

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named weights as views of a flat buffer; differentiable."""
        pieces = flat.split(self.sizes)
        named = {
            name: piece[: shape.numel()].view(shape)
            for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)
        }
        return named | self.buffers

    def update(self, learning_rate: float, fraction: float = 1.0) -> float:
        """One AdamW step from the gradient of the master or else of the compute copy, averaged over ranks; returns its
        norm before clipping. `fraction` of training is done after it, which says what share of weights is kept."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        return float(self.descend(fraction))

    def keep_rate(self) -> Tensor:
        """Lets AdamW read its rate from a scalar on the device, which it returns, so that a captured step serves all of
        training."""
        # The fused kernel reads fp32 on a GPU, and fp64 on a CPU.
        kind = torch.float64 if self.master.device.type == "cpu" else torch.float32
        self.rate = torch.zeros((), dtype=kind, device=self.master.device)
        for group in self.adam.param_groups:
            group["lr"], group["capturable"] = self.rate, True
        # Some steps are taken before one is captured, of which PyTorch would warn.
        self.adam._warned_capturable_if_run_uncaptured = True
        return self.rate

    def descend(self, fraction: float = 1.0) -> Tensor:
        """`update` at the rate that is set; nothing in it waits for the device."""
        if self.compute.grad is not None:
            self.master.grad = self.compute.grad.to(torch.float32)
        assert self.master.grad is not None
        self.ranks.average(self.master.grad)
        norm = torch.nn.utils.clip_grad_norm_([self.master], self.training.clip)
        self.adam.step()
        with torch.no_grad():
            self.average.lerp_(self.master, 1 - self.training.ema)
            if self.training.weight_share < 1:
                self.keep(fraction)
            self.compute.copy_(self.master)
        self.compute.grad = None
        return norm

    @torch.no_grad()
    def keep(self, fraction: float) -> None:
        """Zeroes the weights that are not kept at a fraction of training: of every matrix, in master and average
        alike, so that both have the same places."""
        share = weight_share(self.training, fraction)
        averages = self.views(self.average)
        for name, weight in self.views(self.master.detach()).items():
            if name in self.shapes and weight.ndim >= 2:
                dropped = ~kept(name, weight, share, self.training.weight_least)
                weight.masked_fill_(dropped, 0)
                averages[name].masked_fill_(dropped, 0)

    def averaged_model(self, model: Model, dtype: torch.dtype) -> Model:
        """`model` with the averaged weights, in `dtype`: what is evaluated and shipped."""
        named = {name: value.to(dtype) for name, value in self.views(self.average).items()}
        model.load_state_dict(named, assign=True)
        return model.requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        adam = {f"adam.{name}": value for name, value in self.adam.state[self.master].items()}
        return {"master": self.master.detach(), "average": self.average, **adam}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            self.master.copy_(tensors["master"])
            self.average.copy_(tensors["average"])
            self.compute.copy_(self.master)
        self.adam.state[self.master] = {
            name.removeprefix("adam."): value.to(self.master.device, copy=True)
            for name, value in tensors.items()
            if name.startswith("adam.")
        }


def learning_rate(training: TrainConfig, step: int, fraction: float) -> float:
    """Linear warm-up over steps, then a cosine over the fraction of training done."""
    low = training.final_learning_rate
    cosine = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
    return training.learning_rate * cosine * min(1.0, (step + 1) / max(1, training.warmup_steps))


def kl_beta(training: TrainConfig, fraction: float) -> float:
    """Weight of the KL at a fraction of training: piecewise linear, constant beyond its ends."""
    points = training.kl_beta
    if fraction <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if fraction <= right:
            return low + (high - low) * (fraction - left) / (right - left) if right > left else high
    return points[-1][1]
