"""Packs weights once for the fused kernel: the place, order and type of each tile.

One matrix, of rows of length `D`, holds everything that multiplies the `D` channels of a state, so that one descriptor
reads every tile of it. A second one holds what multiplies the `L` tokens. Hidden widths are padded with zeros to whole
tiles (a SwiGLU of zeros adds nothing), tokens to `token_rows`.

    matrix [rows, D]   per core and block: attention (per head: query, key, value, output, `W` rows each), then the
                       channel SwiGLU (per tile: gate, up, down transposed); then the prior (per tile: gate, up, and
                       `mu` and raw log sigma transposed); then the heads' SwiGLUs (per tile: gate, up), halt first
    tokens [rows, Lp]  per core and block: the token SwiGLU (per tile: gate, up, down transposed)
    vector [2, Hh + 1] last layer and bias of halt head and LPRM, fp32
    cos, sin [L, W/2]  rotary tables, fp32

Rotary pairs are adjacent: rows of queries and keys are permuted alike, which changes no score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gram.kernels.reference import Weights, rotary_tables
from gram.kernels.spec import Spec

TOKEN_TILE = 32
"""Hidden units of the token SwiGLU worked on at once, where nothing else is said."""
GROUP_PRIOR = 128
"""Hidden units of the prior, at most, where a program takes several trajectories: it keeps them all."""
LONGEST = 128
"""Token rows that the fused kernel may hold."""
HEADS = ("halt", "lprm")
"""Heads in the order of their scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """One way to cut the fused kernel. Results of two ways agree within rounding."""

    warps: int = 8
    """Of a program."""
    stages: int = 1
    """Tiles of weights on their way at once, the one multiplied included."""
    tile: int = 32
    """Hidden units of the channel SwiGLU, prior and heads worked on at once."""
    token_tile: int = TOKEN_TILE
    group: int = 1
    """Trajectories of one program."""
    output_lag: int = 0
    """Heads by which attention's output product comes later than the head's others, 0 or 1; results are the same."""


ALONE = Tuning()
"""One trajectory a program, nothing loaded ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Sizes of a packed model: what the kernel is compiled for, beside the spec."""

    token_rows: int
    """`Lp`: tokens padded to 16, 32, 64 or 128."""
    hidden: int
    """Channel SwiGLU, padded; so are the three below."""
    mixer_hidden: int
    guidance_hidden: int
    head_hidden: int
    """0 where the heads are one linear map."""
    tuning: Tuning
    prior_tile: int
    """The tile of the prior: all of it where a program takes several trajectories."""
    core_rows: int
    """Rows of one block in `matrix`."""
    high_row: int
    """First row of `f_H` in `matrix`; `f_L` starts at 0, and so does a shared core."""
    high_token_row: int
    """The same in `tokens`."""
    prior_row: int
    head_row: int


class Packed(NamedTuple):
    """Weights as the fused kernel reads them."""

    matrix: Tensor
    tokens: Tensor
    vector: Tensor
    cos: Tensor
    sin: Tensor
    layout: Layout


def unsupported_reason(spec: Spec) -> str | None:
    """Why the fused kernel cannot take a spec, or None where it can."""
    if spec.head_readout == "max":
        return "the fused kernel reads heads at the mean or one token, got max"
    if spec.mixer == "relations":
        return "the fused kernel mixes by token or attention, got relations"
    if spec.pattern != "full":
        return f"the fused kernel attends to all tokens, got pattern {spec.pattern}"
    if spec.dim not in (16, 32, 64, 128):
        return f"the fused kernel holds dim 16, 32, 64 or 128, got {spec.dim}"
    if spec.length > LONGEST:
        return f"the fused kernel holds at most {LONGEST} tokens, registers included, got {spec.length}"
    if spec.mixer_norm != "columns":
        return f"the fused kernel norms over channels after the mixer, got {spec.mixer_norm}"
    width = spec.dim // spec.heads
    if spec.mixer == "attention" and (width < 16 or width & (width - 1)):
        return f"the fused kernel holds heads of 16, 32, 64 or 128 channels, got {width}"
    return None


def _whole(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def next_power_of_2(size: int) -> int:
    """The least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def token_rows(spec: Spec) -> int:
    """`Lp`: tokens padded to a power of two, at least the 16 rows that a product takes."""
    return max(16, next_power_of_2(spec.length))


def group_obstacle(spec: Spec, group: int, guidance_hidden: int) -> str | None:
    """Why one program cannot take `group` trajectories, or None; `guidance_hidden` is the prior's hidden width.

    Three stand in the rows of two: the first half of each one's token rows, then its others, 8 rows each.
    """
    rows = token_rows(spec)
    if group == 1:
        return None
    if group == 3 and (rows != 64 or spec.length > 40):
        return f"three trajectories of a program must have 33 to 40 tokens each, got {spec.length}"
    if group == 2 and rows > 64:
        return f"two trajectories of a program must have at most 64 tokens each, got {spec.length}"
    if group not in (2, 3):
        return f"a program takes one, two or three trajectories, got {group}"
    if spec.guidance != "none" and (guidance_hidden > GROUP_PRIOR or guidance_hidden & (guidance_hidden - 1)):
        return (
            f"a program of several trajectories takes a prior whose hidden width is a power of two, at most "
            f"{GROUP_PRIOR}, got {guidance_hidden}"
        )
    return None


def layout_of(weights: Weights, spec: Spec, tuning: Tuning = ALONE) -> Layout:
    """Sizes that a model packs to. Raises `ValueError` where the fused kernel cannot take it."""
    if reason := unsupported_reason(spec):
        raise ValueError(reason)
    tile, token_tile = tuning.tile, tuning.token_tile
    hidden = _whole(weights["low.0.channel.down"].shape[1], tile)
    is_token = spec.mixer == "token"
    mixer_hidden = _whole(weights["low.0.mixer.down"].shape[1], token_tile) if is_token else 0
    guidance_hidden = _whole(weights["prior.down"].shape[1], tile) if spec.guidance != "none" else 0
    head_hidden = _whole(weights["halt.weight"].shape[1], tile) if "halt.gate_up" in weights else 0
    if reason := group_obstacle(spec, tuning.group, guidance_hidden):
        raise ValueError(reason)
    if tuning.output_lag and (is_token or tuning.group == 1):
        raise ValueError("output_lag must be 0 but for attention of several trajectories a program, got 1")
    core_rows = (0 if is_token else 4 * spec.dim) + 3 * hidden
    cores = 1 if spec.is_core_shared else 2
    prior_row = cores * spec.blocks * core_rows
    return Layout(
        token_rows=token_rows(spec),
        hidden=hidden,
        mixer_hidden=mixer_hidden,
        guidance_hidden=guidance_hidden,
        head_hidden=head_hidden,
        tuning=tuning,
        prior_tile=guidance_hidden if guidance_hidden and tuning.group > 1 else tile,
        core_rows=core_rows,
        high_row=(cores - 1) * spec.blocks * core_rows,
        high_token_row=(cores - 1) * spec.blocks * 3 * mixer_hidden,
        prior_row=prior_row,
        head_row=prior_row + 4 * guidance_hidden,
    )


def tiled(parts: list[Tensor], hidden: int, tile: int, dim: int) -> Tensor:
    """Matrices `[hidden, dim]`, padded with zeros, tile by tile: all parts' first tile, then their second ..."""
    padded = torch.zeros(len(parts), hidden, dim, dtype=parts[0].dtype, device=parts[0].device)
    for index, part in enumerate(parts):
        padded[index, : part.shape[0], : part.shape[1]] = part
    tiles: Tensor = padded.unflatten(1, (-1, tile)).transpose(0, 1).reshape(-1, dim)
    return tiles


def interleaved(rows_WD: Tensor) -> Tensor:
    """Rows of one head with each rotary pair, `i` and `i + W/2`, side by side."""
    paired: Tensor = rows_WD.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
    return paired


def _attention(qkv: Tensor, out: Tensor, spec: Spec) -> Tensor:
    """Query, key, value and output rows `[4D, D]`, head by head."""
    width = spec.dim // spec.heads
    query, key, value = qkv.unflatten(0, (3, spec.heads, width))
    rows = []
    for head in range(spec.heads):
        q, k = query[head], key[head]
        if spec.is_rotary:
            q, k = interleaved(q), interleaved(k)
        rows += [q, k, value[head], out[:, head * width : (head + 1) * width].T]
    return torch.cat(rows)


def last_layers(weights: Weights, width: int) -> Tensor:
    """Last layer, padded to `width`, and bias of halt head and LPRM: `[2, width + 1]`, fp32."""
    device = weights["halt.weight"].device
    vector = torch.zeros(2, width + 1, dtype=torch.float32, device=device)
    for index, name in enumerate(HEADS):
        last = weights[name + ".weight"][0]
        vector[index, : len(last)] = last.to(torch.float32)
        vector[index, width] = weights[name + ".bias"][0].to(torch.float32)
    return vector


def rotary_halves(spec: Spec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[L, W/2]`, fp32; placeholders where nothing is rotated."""
    if spec.mixer != "attention" or not spec.is_rotary:
        blank = torch.zeros(1, 1, device=device)
        return blank, blank
    width = spec.dim // spec.heads
    cos, sin = rotary_tables(spec.length, width, spec.rope_theta, device)
    return cos[:, : width // 2].contiguous(), sin[:, : width // 2].contiguous()


@torch.no_grad()
def pack(weights: Weights, spec: Spec, dtype: torch.dtype, tuning: Tuning = ALONE) -> Packed:
    """Packs weights for a spec in the type that the kernel multiplies in.

    Raises `ValueError` where the fused kernel cannot take the spec.
    """
    layout = layout_of(weights, spec, tuning)
    tile, token_tile = tuning.tile, tuning.token_tile
    matrix: list[Tensor] = []
    tokens: list[Tensor] = []
    for name in ("low",) if spec.is_core_shared else ("low", "high"):
        for block in range(spec.blocks):
            mixer, channel = f"{name}.{block}.mixer.", f"{name}.{block}.channel."
            if spec.mixer == "token":
                gate, up = weights[mixer + "gate_up"].chunk(2)
                parts = [gate, up, weights[mixer + "down"].T]
                tokens.append(tiled(parts, layout.mixer_hidden, token_tile, layout.token_rows))
            else:
                matrix.append(_attention(weights[mixer + "qkv"], weights[mixer + "out"], spec))
            gate, up = weights[channel + "gate_up"].chunk(2)
            matrix.append(tiled([gate, up, weights[channel + "down"].T], layout.hidden, tile, spec.dim))
    if spec.guidance != "none":
        parts = [*weights["prior.gate_up"].chunk(2), *(part.T for part in weights["prior.down"].chunk(2))]
        matrix.append(tiled(parts, layout.guidance_hidden, layout.prior_tile, spec.dim))
    if layout.head_hidden:
        gates = ([*weights[name + ".gate_up"].chunk(2)] for name in HEADS)
        matrix += [tiled(parts, layout.head_hidden, tile, spec.dim) for parts in gates]
    vector = last_layers(weights, layout.head_hidden or spec.dim)
    cos, sin = rotary_halves(spec, vector.device)
    together = torch.cat(tokens) if tokens else torch.zeros(token_tile, layout.token_rows, device=vector.device)
    return Packed(torch.cat(matrix).to(dtype).contiguous(), together.to(dtype).contiguous(), vector, cos, sin, layout)
