"""Kernel A: a whole supervision step in one launch, for `D <= 128` and up to 128 tokens. The launch, not the body.

One program owns one trajectory, so its result depends on neither batch nor slot. Rows may differ in puzzle, trajectory,
step and in whether they are active: an inactive one keeps its state bit for bit, and its heads say NaN.

Shapes: `B` trajectories, `L` tokens (registers included), `D` columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from gram.kernels.fused.kernel import supervision_step_kernel
from gram.kernels.fused.pack import Layout, Packed
from gram.kernels.reference import LEARNED, Injection, Spec, Step

WARPS = 8


def constants(spec: Spec, layout: Layout, injection: Injection, *, has_active: bool) -> dict[str, Any]:
    """What one model and one kind of noise compile into the kernel, by its parameters' names."""
    is_token = spec.mixer == "token"
    return {
        "L": spec.tokens,
        "LP": layout.token_rows,
        "D": spec.dim,
        "W": head_width(spec),
        "BLOCKS": spec.blocks,
        "T": spec.transitions,
        "K": spec.low_level_updates,
        "F": layout.hidden,
        "HM": layout.mixer_hidden,
        "G": layout.guidance_hidden,
        "HH": layout.head_hidden,
        "TILE": layout.tile,
        "TT": layout.token_tile,
        "CORE_ROWS": layout.core_rows,
        "HIGH_ROW": layout.high_row,
        "HIGH_TOKEN_ROW": layout.high_token_row,
        "PRIOR_ROW": layout.prior_row,
        "HEAD_ROW": layout.head_row,
        "IS_TOKEN": is_token,
        "IS_ROTARY": spec.is_rotary and not is_token,
        "EPS": spec.norm_eps,
        **noise_constants(spec, injection),
        "IS_BEFORE": spec.noise_order == "before",
        "READS_REGISTER": spec.head_readout != "mean",
        "HAS_ACTIVE": has_active,
    }


def noise_constants(spec: Spec, injection: Injection) -> dict[str, Any]:
    """What the kind of noise compiles into a kernel; its scales stay numbers of the launch."""
    is_gaussian = injection.injector == "gaussian" and injection.sigma != 0
    return {
        "GUIDANCE": spec.guidance,
        "NOISE_FREE": spec.noise_free_steps,
        "IS_WARM": injection.injector == "prior" and injection.temperature != 0,
        "CENTER": spec.log_sigma_center,
        "RANGE": spec.log_sigma_range,
        "DISTURBS_H": is_gaussian and injection.site in ("h", "both"),
        "DISTURBS_L": is_gaussian and injection.site in ("l", "both"),
        "KEEP": spec.path_keep,
        "HAS_PATH": injection.injector == "path" and injection.sigma != 0,
    }


def head_width(spec: Spec) -> int:
    """`W`: columns of a head; the token mixer has none and takes a placeholder."""
    return spec.dim // spec.heads if spec.mixer == "attention" else 16


def block_shapes(spec: Spec, layout: Layout) -> dict[str, list[int]]:
    """Tiles that the kernel's descriptors read, by their parameters' names."""
    return {
        "matrix": [layout.tile, spec.dim],
        "heads": [head_width(spec), spec.dim],
        "tokens": [layout.token_tile, layout.token_rows],
    }


def word(value: int) -> int:
    """32 bits as a signed number, which is how a kernel takes them."""
    return value - (1 << 32) if value >= 1 << 31 else value


def check_states(dtype: torch.dtype, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor) -> None:
    """Raises `ValueError` where a state's type or shape is not what the packed weights take."""
    for name, state in (("h", h), ("l", l), ("e_x", e_x)):
        if state.dtype != dtype:
            raise ValueError(f"{name} must be of the packed weights' type {dtype}, got {state.dtype}")
        if tuple(state.shape) != (h.shape[0], spec.tokens, spec.dim):
            raise ValueError(f"{name} must be {[h.shape[0], spec.tokens, spec.dim]}, got {list(state.shape)}")


def empty_results(spec: Spec, h: Tensor) -> tuple[Tensor, Tensor]:
    """Room for states `[2, B, L, D]` and heads `[2, B]` (fp32)."""
    return (
        torch.empty(2, h.shape[0], spec.tokens, spec.dim, dtype=h.dtype, device=h.device),
        torch.empty(2, h.shape[0], dtype=torch.float32, device=h.device),
    )


def supervision_step(
    packed: Packed,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    *,
    seed: int,
    puzzle_hash_B: Tensor,
    trajectory_B: Tensor,
    step_B: Tensor,
    injection: Injection = LEARNED,
    active_B: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """`reference.supervision_step` in one launch; `h, l, e_x` in the packed type, possibly expanded along `B`.

    `active_B` (bool) names the rows to advance; all of them without it. `out` receives the states `[2, B, L, D]` and
    heads `[2, B]` (fp32). Raises `ValueError` where a state's type is not that of the weights.
    """
    check_states(packed.matrix.dtype, spec, h, l, e_x)
    count = h.shape[0]
    h, l = (x if x.stride(-1) == 1 else x.contiguous() for x in (h, l))
    e_x = e_x if e_x[:1].is_contiguous() else e_x.contiguous()
    state, score = out or empty_results(spec, h)
    source = {"matrix": packed.matrix, "heads": packed.matrix, "tokens": packed.tokens}
    shapes = block_shapes(spec, packed.layout)
    if count:
        supervision_step_kernel[(count,)](
            h,
            l,
            e_x,
            state,
            score,
            puzzle_hash_B.contiguous(),
            trajectory_B.contiguous(),
            step_B.contiguous(),
            None if active_B is None else active_B.to(torch.int8),
            *(TensorDescriptor.from_tensor(source[name], shapes[name]) for name in source),
            packed.vector,
            packed.cos,
            packed.sin,
            *h.stride()[:2],
            *l.stride()[:2],
            e_x.stride(0),
            word(seed & 0xFFFFFFFF),
            word(seed >> 32),
            count,
            float(injection.temperature),
            float(injection.sigma),
            **constants(spec, packed.layout, injection, has_active=active_B is not None),
            num_warps=WARPS,
            num_stages=1,
        )
    return Step(state[0], state[1], score[0], score[1])
