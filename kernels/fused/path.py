"""Kernel A: a whole supervision step in one launch, for `D <= 128` and up to 128 tokens. `kernel.py` is its body.

One program computes one trajectory or, up to 64 tokens, two or three, so that 128 rows fill its matrix products. Each
trajectory's sums have the same terms in the same order wherever it stands in its program, so a result depends on
neither batch nor slot. Rows may differ in puzzle, trajectory and step. An inactive row keeps its state bit for bit, and
its heads are NaN.

Shapes: `B` trajectories, `L` tokens (registers included), `D` channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from gram.kernels.fused.kernel import supervision_step_kernel
from gram.kernels.fused.pack import ALONE, Layout, Packed, Tuning
from gram.kernels.fused.tuning import column_excess, precision, target_of
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step
from gram.kernels.spec import LEARNED, Injection, Spec


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, whose stream kernels are launched on; nothing elsewhere."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def constants(spec: Spec, layout: Layout, injection: Injection, *, has_active: bool, precision: str) -> dict[str, Any]:
    """Constants that one packed model, one kind of noise and `tuning.precision` compile into the kernel, by
    parameter."""
    is_token = spec.mixer == "token"
    return {
        "L": spec.length,
        "LP": layout.token_rows,
        "GROUP": layout.tuning.group,
        "D": spec.dim,
        "W": head_width(spec),
        "BLOCKS": spec.blocks,
        "T": spec.transitions,
        "K": spec.low_level_updates,
        "F": layout.hidden,
        "HM": layout.mixer_hidden,
        "G": layout.guidance_hidden,
        "HH": layout.head_hidden,
        "TILE": layout.tuning.tile,
        "TT": layout.tuning.token_tile,
        "PART": part_width(spec),
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
        "OUTPUT_LAG": layout.tuning.output_lag,
        "STAGES": layout.tuning.stages,
        "PRECISION": precision,
    }


def noise_constants(spec: Spec, injection: Injection) -> dict[str, Any]:
    """Constants that the kind of noise compiles into a kernel; its scales stay arguments."""
    is_gaussian = injection.injector == "gaussian" and injection.sigma != 0
    return {
        "GUIDANCE": spec.guidance,
        "NOISE_FREE": spec.noise_free_steps,
        "IS_WARM": injection.injector == "prior" and injection.temperature != 0,
        "CENTER": spec.log_sigma_center,
        "RANGE": spec.log_sigma_range,
        "PERTURBS_H": is_gaussian and injection.site in ("h", "both"),
        "PERTURBS_L": is_gaussian and injection.site in ("l", "both"),
        "KEEP": spec.path_keep,
        "HAS_PATH": injection.injector == "path" and injection.sigma != 0,
    }


def head_width(spec: Spec) -> int:
    """`W`: channels of a head; the token mixer has none and takes a placeholder."""
    return spec.dim // spec.heads if spec.mixer == "attention" else 16


def part_width(spec: Spec) -> int:
    """Channels of the prior that a program of several trajectories works on at once."""
    return max(16, spec.dim // 4)


def block_shapes(spec: Spec, layout: Layout) -> dict[str, list[int]]:
    """Tiles that the kernel's descriptors read, by their parameters' names."""
    return {
        "matrix": [layout.tuning.tile, spec.dim],
        "prior": [layout.prior_tile, spec.dim],
        "parts": [layout.prior_tile, part_width(spec)],
        "heads": [head_width(spec), spec.dim],
        "tokens": [layout.tuning.token_tile, layout.token_rows],
    }


def to_int32(value: int) -> int:
    """32 bits as the signed number that a kernel takes."""
    return value - (1 << 32) if value >= 1 << 31 else value


def check_states(dtype: torch.dtype, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor) -> None:
    """Raises `ValueError` where a state's type or shape is not what the packed weights take."""
    for name, state in (("h", h), ("l", l), ("e_x", e_x)):
        if state.dtype != dtype:
            raise ValueError(f"{name} must be of the packed weights' type {dtype}, got {state.dtype}")
        if tuple(state.shape) != (h.shape[0], spec.length, spec.dim):
            raise ValueError(f"{name} must be {[h.shape[0], spec.length, spec.dim]}, got {list(state.shape)}")


def empty_results(spec: Spec, h: Tensor) -> tuple[Tensor, Tensor]:
    """Room for states `[2, B, L, D]` and heads `[2, B]` (fp32)."""
    return (
        torch.empty(2, h.shape[0], spec.length, spec.dim, dtype=h.dtype, device=h.device),
        torch.empty(2, h.shape[0], dtype=torch.float32, device=h.device),
    )


def arguments(
    packed: Packed,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    injection: Injection,
    active_B: Tensor | None,
    out: tuple[Tensor, Tensor] | None,
) -> dict[str, Any]:
    """Arguments of the kernels of this path and of `blocks`, by parameter; see `supervision_step`."""
    check_states(packed.matrix.dtype, spec, h, l, e_x)
    h, l = (x if x.stride(-1) == 1 else x.contiguous() for x in (h, l))
    e_x = e_x if e_x[:1].is_contiguous() else e_x.contiguous()
    state, score = out or empty_results(spec, h)
    source = {
        "matrix": packed.matrix,
        "prior": packed.matrix,
        "parts": packed.matrix,
        "heads": packed.matrix,
        "tokens": packed.tokens,
    }
    tiles = block_shapes(spec, packed.layout)
    return {
        "h_ptr": h,
        "l_ptr": l,
        "e_ptr": e_x,
        "state_ptr": state,
        "score_ptr": score,
        "hash_ptr": key.puzzle_hash.contiguous(),
        "trajectory_ptr": key.trajectory.contiguous(),
        "step_ptr": key.step.contiguous(),
        "active_ptr": None if active_B is None else active_B.to(torch.int8),
        **{name: TensorDescriptor.from_tensor(source[name], tiles[name]) for name in source},
        "vector_ptr": packed.vector,
        "cos_ptr": packed.cos,
        "sin_ptr": packed.sin,
        "h_stride_b": h.stride(0),
        "h_stride_l": h.stride(1),
        "l_stride_b": l.stride(0),
        "l_stride_l": l.stride(1),
        "e_stride_b": e_x.stride(0),
        "k0": to_int32(key.seed & 0xFFFFFFFF),
        "k1": to_int32(key.seed >> 32),
        "rows": h.shape[0],
        "temperature": float(injection.temperature),
        "sigma": float(injection.sigma),
    }


def launch(
    kernel: Any,
    given: dict[str, Any],
    compiled_in: dict[str, Any],
    tuning: Tuning = ALONE,
    *,
    only_compiles: bool = False,
) -> Any:
    """Launches a kernel, one program for each group of trajectories, with those of the arguments `given` that it
    takes; or compiles what that would launch. Gives what Triton compiled."""
    named = {name: given[name] for name in kernel.arg_names if name not in compiled_in}
    grid = (-(-given["rows"] // tuning.group),)
    run = partial(kernel.warmup, grid=grid) if only_compiles else kernel[grid]
    return run(**named, **compiled_in, num_warps=tuning.warps, num_stages=1)


def supervision_step(
    packed: Packed,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
    active_B: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """`reference.supervision_step` in one launch; `h, l, e_x` in the packed type, possibly expanded along `B`.

    `active_B` (bool) names the rows to advance; all of them without it. `out` receives the states `[2, B, L, D]` and
    heads `[2, B]` (fp32). Raises `ValueError` where a state's type is not that of the weights.
    """
    with on_device(h.device):
        given = arguments(packed, spec, h, l, e_x, key, injection, active_B, out)
        if given["rows"]:
            multiplied = precision(target_of(h.device), h.dtype)
            fixed = constants(spec, packed.layout, injection, has_active=active_B is not None, precision=multiplied)
            launch(supervision_step_kernel, given, fixed, packed.layout.tuning)
    return Step(*given["state_ptr"], *given["score_ptr"])


def compile_step(packed: Packed, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor, key: NoiseKey, *, target: str) -> None:
    """Compiles what `supervision_step` launches on a target, with these arguments and no others, into Triton's
    cache. Raises `RuntimeError` where it does not fit tensor memory."""
    given = arguments(packed, spec, h, l, e_x, key, LEARNED, None, None)
    fixed = constants(spec, packed.layout, LEARNED, has_active=False, precision=precision(target, h.dtype))
    made = launch(supervision_step_kernel, given, fixed, packed.layout.tuning, only_compiles=True)
    if excess := column_excess(made.metadata):
        raise RuntimeError(f"supervision step {excess}")
