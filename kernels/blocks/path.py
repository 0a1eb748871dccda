"""Kernel B: a supervision step as one launch per block, for `D <= 128`. The launches, not their bodies.

The same packed weights, contract and arguments as `fused/path.py`, so that each checks the other: where the fused
kernel and this one differ, the fault lies in what they do not share. Every launch names a place of the step: both
states are copied once, then each core call is a mixer and a channel launch per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from gram.kernels.blocks import kernel as blocks_triton
from gram.kernels.fused import path as transition
from gram.kernels.fused.pack import Packed
from gram.kernels.reference import LEARNED, Injection, Spec, Step

WARPS = 8


class Launch(NamedTuple):
    """One launch: its kernel, the constants that differ from the model's own, and its scalars."""

    kernel: Any
    constants: dict[str, Any]
    scalars: dict[str, int]


def launches(spec: Spec, fixed: dict[str, Any]) -> Iterator[Launch]:
    """A supervision step's launches in order; `fixed` is `transition.constants`."""
    calls = spec.low_level_updates + 1
    prior = blocks_triton.prior_kernel
    yield Launch(blocks_triton.begin_kernel, {}, {})
    for index in range(spec.transitions):
        if spec.guidance != "none" and spec.noise_order == "before":
            yield Launch(prior, {}, {"index": index})
        for call in range(calls):
            is_low = call < spec.low_level_updates
            row = 0 if is_low else fixed["HIGH_ROW"]
            token_row = 0 if is_low else fixed["HIGH_TOKEN_ROW"]
            for block in range(spec.blocks):
                sums = 0 if block else (2 if is_low else 1)
                yield Launch(blocks_triton.mixer_kernel, {"SUMS": sums}, {"row": row, "token_row": token_row})
                is_last = block == spec.blocks - 1
                settles = {} if is_last else {"KEEP": 0.0, "HAS_PATH": False}
                channel_row = row if fixed["IS_TOKEN"] else row + 4 * spec.dim
                place = (2 if is_low else 1) if is_last else 0
                scalars = {"row": channel_row, "call": index * calls + call, "place": place}
                yield Launch(blocks_triton.channel_kernel, settles, scalars)
                row += fixed["CORE_ROWS"]
                token_row += 3 * fixed["HM"]
        if spec.guidance != "none" and spec.noise_order == "after":
            yield Launch(prior, {}, {"index": index})
    yield Launch(blocks_triton.readout_kernel, {}, {})


def constants(spec: Spec, fixed: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """What a launch compiles in: those of `fixed` that its kernel names, and its own."""
    everything = fixed | {"CALLS": spec.transitions * (spec.low_level_updates + 1)} | launch.constants
    return {name: everything[name] for name in launch.kernel.arg_names if name in everything}


def name_of(launch: Launch) -> str:
    """What a launch is called in tables of resources."""
    name: str = launch.kernel.__name__.removesuffix("_kernel")
    if name == "mixer":
        return name + (" of x", " of h + l", " of h + e_x + l")[launch.constants["SUMS"]]
    return name + ", last block" if name == "channel" and not launch.constants else name


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
    """See `transition.supervision_step`: the same arguments, results and errors, in one launch per block."""
    transition.check_states(packed.matrix.dtype, spec, h, l, e_x)
    count = h.shape[0]
    h, l = (x if x.stride(-1) == 1 else x.contiguous() for x in (h, l))
    e_x = e_x if e_x[:1].is_contiguous() else e_x.contiguous()
    state, score = out or transition.empty_results(spec, h)
    x = torch.empty(count, spec.tokens, spec.dim, dtype=h.dtype, device=h.device)
    fixed = transition.constants(spec, packed.layout, injection, has_active=active_B is not None)
    shapes = transition.block_shapes(spec, packed.layout)
    source = {"matrix": packed.matrix, "heads": packed.matrix, "tokens": packed.tokens}
    given: dict[str, Any] = {
        "h_ptr": h,
        "l_ptr": l,
        "e_ptr": e_x,
        "x_ptr": x,
        "state_ptr": state,
        "score_ptr": score,
        "hash_ptr": puzzle_hash_B.contiguous(),
        "trajectory_ptr": trajectory_B.contiguous(),
        "step_ptr": step_B.contiguous(),
        "active_ptr": None if active_B is None else active_B.to(torch.int8),
        **{name: TensorDescriptor.from_tensor(source[name], shapes[name]) for name in source},
        "vector_ptr": packed.vector,
        "cos_ptr": packed.cos,
        "sin_ptr": packed.sin,
        **dict(zip(("h_stride_b", "h_stride_l"), h.stride(), strict=False)),
        **dict(zip(("l_stride_b", "l_stride_l"), l.stride(), strict=False)),
        "e_stride_b": e_x.stride(0),
        "k0": transition.word(seed & 0xFFFFFFFF),
        "k1": transition.word(seed >> 32),
        "rows": count,
        "temperature": float(injection.temperature),
        "sigma": float(injection.sigma),
    }
    places = (x, state[0], state[1])
    for launch in launches(spec, fixed) if count else ():
        values = given | launch.scalars | {"out_ptr": places[launch.scalars.get("place", 0)]}
        compiled_in = constants(spec, fixed, launch)
        arguments = {name: values[name] for name in launch.kernel.arg_names if name not in compiled_in}
        launch.kernel[(count,)](**arguments, **compiled_in, num_warps=WARPS, num_stages=1)
    return Step(state[0], state[1], score[0], score[1])
