"""Mixed-precision weights for training: one flat fp32 master, one flat bf16 copy, the optimiser and a running average.

The compiled step sees bf16 views of the copy. AdamW, or Muon on the matrices of cores and Gaussian heads (Jordan 2024,
with the step sizes of Liu et al., 2502.16982, so that one learning rate serves both) and AdamW on the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gram.config import TrainConfig
from gram.model import Model

ALIGN = 64
"""Elements that every tensor's place in the flat buffer is a multiple of: whole cache lines for vector loads."""


class FlatWeights:
    """All parameters of a model in one buffer, with their names and shapes."""

    def __init__(self, model: Model, training: TrainConfig, dtype: torch.dtype) -> None:
        self.training = training
        parameters = dict(model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.sizes = [math.ceil(shape.numel() / ALIGN) * ALIGN for shape in self.shapes.values()]
        device = model.device
        self.buffers = {name: buffer.to(dtype) for name, buffer in model.named_buffers()}
        master = torch.zeros(sum(self.sizes), device=device)
        for piece, parameter in zip(master.split(self.sizes), parameters.values(), strict=True):
            piece[: parameter.numel()] = parameter.detach().flatten()
        self.master = master
        self.gradient = torch.zeros_like(master)
        self.average = master.clone()
        self.compute = master.to(dtype).requires_grad_()
        self.parameters = {name: torch.nn.Parameter(view) for name, view in self._named(master).items()}
        for name, view in self._named(self.gradient).items():
            self.parameters[name].grad = view
        self.optimisers = self._optimisers()

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        training = self.training
        by_muon = [name for name in self.shapes if training.optimiser == "muon" and _is_matrix_of_core(name)]
        optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [parameter for name, parameter in self.parameters.items() if name not in by_muon],
                lr=training.learning_rate,
                betas=(training.beta1, training.beta2),
                weight_decay=training.weight_decay,
                fused=True,
            )
        ]
        if by_muon:
            optimisers.append(
                torch.optim.Muon(
                    [self.parameters[name] for name in by_muon],
                    lr=training.learning_rate,
                    momentum=training.beta2,
                    weight_decay=training.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        return optimisers

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split(self.sizes)
        return {
            name: piece[: shape.numel()].view(shape)
            for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)
        }

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named weights as views of a flat buffer; differentiable."""
        return self._named(flat) | self.buffers

    @torch.no_grad()
    def update(self, learning_rate: float) -> float:
        """One optimiser step from the compute copy's gradient; returns the gradient's norm before clipping."""
        assert self.compute.grad is not None
        self.gradient.copy_(self.compute.grad)
        norm = float(self.gradient.norm())
        self.gradient.mul_(min(1.0, self.training.clip / (norm + 1e-6)))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            optimiser.step()
        self.average.lerp_(self.master, 1 - self.training.ema)
        self.compute.copy_(self.master)
        self.compute.grad = None
        return norm

    def averaged_model(self, model: Model, dtype: torch.dtype) -> Model:
        """`model` with the averaged weights, in `dtype`: what is evaluated and shipped."""
        named = {name: value.to(dtype) for name, value in self.views(self.average).items()}
        model.load_state_dict(named, assign=True)
        return model.requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        tensors = {"master": self.master, "average": self.average}
        for name, parameter in self.parameters.items():
            for optimiser in self.optimisers:
                for key, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"{key}:{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            self.master.copy_(tensors["master"])
            self.average.copy_(tensors["average"])
            self.compute.copy_(self.master)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    name = next(name for name, mine in self.parameters.items() if mine is parameter)
                    optimiser.state[parameter] = {
                        key.removesuffix(f":{name}"): value.clone()
                        for key, value in tensors.items()
                        if key.endswith(f":{name}")
                    }


def _is_matrix_of_core(name: str) -> bool:
    return name.startswith(("low.", "high.", "prior.", "posterior."))


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
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if fraction <= right:
            return low + (high - low) * (fraction - left) / (right - left) if right > left else high
    return points[-1][1]
