"""Parameters of the model's layers and their initialisation; `kernels/reference.py` holds what they compute.

Weights are `[out, in]`. Every map is drawn from a normal truncated at two deviations, with deviation `1 / sqrt(in)`
(LeCun); the output layers of the Gaussian heads are ten times smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def init_parameter(
    shape: tuple[int, ...], generator: torch.Generator, *, fan_in: int | None = None, scale: float = 1.0
) -> nn.Parameter:
    """A parameter of `shape` drawn for `fan_in` inputs (default: its last axis)."""
    deviation = scale * (fan_in or shape[-1]) ** -0.5
    if has_no_values():
        return nn.Parameter(torch.empty(shape))
    weight = nn.init.trunc_normal_(
        torch.empty(shape), std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
    )
    return nn.Parameter(weight)


def has_no_values() -> bool:
    """Whether new tensors have shapes alone (under `torch.device("meta")`), because their values will be loaded.
    Drawing values would be slow and useless."""
    return torch.get_default_device().type == "meta"


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`: `gate_up [2*hidden, inputs]`, `down [outputs, hidden]`."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, generator: torch.Generator, *, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.gate_up = init_parameter((2 * hidden, inputs), generator)
        self.down = init_parameter((outputs, hidden), generator, scale=output_scale)


class Attention(nn.Module):
    """Non-causal attention: `qkv [3*dim, dim]`, `out [dim, dim]`."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.qkv = init_parameter((3 * dim, dim), generator)
        self.out = init_parameter((dim, dim), generator)


class CoreBlock(nn.Module):
    """One post-norm block of a core: a mixer of tokens, then the channel SwiGLU."""

    def __init__(self, mixer: nn.Module, channel: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.channel = channel


class Head(nn.Module):
    """Halt head or LPRM: one number from the readout of `h`, optionally after a position-wise SwiGLU gate."""

    bias: Tensor

    def __init__(self, dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        if hidden:
            self.gate_up = init_parameter((2 * hidden, dim), generator)
        self.weight = nn.Parameter(torch.zeros(1, hidden or dim))
        self.bias = nn.Parameter(torch.zeros(1))


class Embedding(nn.Module):
    """Rows looked up by token: `weight [rows, dim]`, scaled by `sqrt(dim)` where it is read."""

    def __init__(self, rows: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = init_parameter((rows, dim), generator)
