"""Packs weights once for kernel C (`path.py`): the matrices as its products read them.

A model's tensors keep their names and their order `[out, in]`, in the type multiplied in, with these changes:

    hidden widths          padded with zeros to whole multiples of `WHOLE` (a SwiGLU of zeros adds nothing)
    ...mixer.qkv           rotary pairs of every query and key head are adjacent, as in `fused/pack.py`
    ...mixer.tiles         the token mixer for up to `LONGEST` tokens: `[3*Hm, Lp]`, tile by tile as in `fused/pack.py`
    ...mixer.gate_up       the token mixer for more: transposed, `[L, 2*Hm]`, so that no row has an odd length in memory
    heads.gate_up          both heads' SwiGLUs, halt first: `[4*Hh, D]`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gram.kernels.fused.pack import (
    HEADS,
    LONGEST,
    TOKEN_TILE,
    interleaved,
    last_layers,
    rotary_halves,
    tiled,
    token_rows,
)
from gram.kernels.reference import Weights
from gram.kernels.spec import Spec

WHOLE = 8
"""Numbers that a row's length must be a multiple of for the matrix units: 16 bytes of bf16."""
WIDEST = 4096
"""Channels that a program of the row kernels may hold."""


@dataclass(kw_only=True, slots=True)
class Matrices:
    """Weights as products read them, and the graphs that were captured with them."""

    layers: dict[str, Tensor]
    vector: Tensor
    """Last layer and bias of halt head and LPRM, `[2, Hh + 1]` or `[2, D + 1]`, fp32."""
    cos: Tensor
    """Rotary tables `[L, W/2]`, fp32, as is `sin`."""
    sin: Tensor
    captured: dict[Any, Any] = field(default_factory=dict)
    """`path.Captured` by launch shape, the last one used last; they hold these matrices' addresses, so they go when the
    matrices go."""

    @property
    def dtype(self) -> torch.dtype:
        """Type multiplied in."""
        return self.layers["low.0.channel.down"].dtype


def unsupported_reason(spec: Spec) -> str | None:
    """Why kernel C cannot take a spec, or None where it can."""
    if spec.head_readout == "max":
        return "kernel gemm reads heads at the mean or one token, got max"
    if spec.mixer == "relations":
        return "kernel gemm mixes by token or attention, got relations"
    if spec.pattern != "full":
        return f"kernel gemm attends to all tokens, got pattern {spec.pattern}"
    if spec.dim % WHOLE or spec.dim > WIDEST:
        return f"kernel gemm holds a dim that is a multiple of {WHOLE}, up to {WIDEST}, got {spec.dim}"
    width = spec.dim // spec.heads
    if spec.mixer == "attention" and (width not in (16, 32, 64, 128) or width * spec.heads != spec.dim):
        return f"kernel gemm holds heads of 16, 32, 64 or 128 channels, got {spec.dim / spec.heads:g}"
    return None


def _wide(parts: list[Tensor]) -> Tensor:
    """Matrices `[hidden, in]` stacked, each padded to whole hidden units."""
    return torch.cat([pad(part, (0, 0, 0, -part.shape[0] % WHOLE)) for part in parts])


def _narrow(down: Tensor) -> Tensor:
    """A matrix `[out, hidden]`, padded to whole hidden units."""
    return pad(down, (0, -down.shape[1] % WHOLE))


def _qkv(qkv: Tensor, spec: Spec) -> Tensor:
    """Query, key and value rows, the rotary pairs of the first two side by side."""
    if not spec.is_rotary:
        return qkv
    parts = qkv.unflatten(0, (3, spec.heads, spec.dim // spec.heads))
    turned = [torch.stack([interleaved(head) for head in part]) for part in parts[:2]]
    return torch.stack([*turned, parts[2]]).flatten(0, 2)


def _token_mixer(name: str, gate_up: Tensor, down: Tensor, spec: Spec) -> dict[str, Tensor]:
    """One token mixer: tiles for one kernel or, for many tokens, two matrices."""
    if spec.length > LONGEST:
        return {name + "gate_up": _wide([*gate_up.chunk(2)]).T, name + "down": _narrow(down)}
    hidden = down.shape[1] + -down.shape[1] % TOKEN_TILE
    return {name + "tiles": tiled([*gate_up.chunk(2), down.T], hidden, TOKEN_TILE, token_rows(spec))}


@torch.no_grad()
def pack(weights: Weights, spec: Spec, dtype: torch.dtype) -> Matrices:
    """Packs weights for a spec in the type multiplied in. Raises `ValueError` where kernel C cannot take the spec."""
    if reason := unsupported_reason(spec):
        raise ValueError(reason)
    layers: dict[str, Tensor] = {}
    for core in ("low",) if spec.is_core_shared else ("low", "high"):
        for block in range(spec.blocks):
            mixer, channel = f"{core}.{block}.mixer.", f"{core}.{block}.channel."
            if spec.mixer == "token":
                layers |= _token_mixer(mixer, weights[mixer + "gate_up"], weights[mixer + "down"], spec)
            else:
                layers[mixer + "qkv"] = _qkv(weights[mixer + "qkv"], spec)
                layers[mixer + "out"] = weights[mixer + "out"]
            layers[channel + "gate_up"] = _wide([*weights[channel + "gate_up"].chunk(2)])
            layers[channel + "down"] = _narrow(weights[channel + "down"])
    if spec.guidance != "none":
        layers["prior.gate_up"] = _wide([*weights["prior.gate_up"].chunk(2)])
        layers["prior.down"] = _narrow(weights["prior.down"])
    width = spec.dim
    if "halt.gate_up" in weights:
        layers["heads.gate_up"] = _wide([part for name in HEADS for part in weights[name + ".gate_up"].chunk(2)])
        width = len(layers["heads.gate_up"]) // 4
    vector = last_layers(weights, width)
    cos, sin = rotary_halves(spec, vector.device)
    packed = {name: layer.detach().to(dtype).contiguous() for name, layer in layers.items()}
    return Matrices(layers=packed, vector=vector, cos=cos, sin=sin)
