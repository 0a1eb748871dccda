"""Kernel B: a supervision step in one launch per block, for `D <= 128`. `kernel.py` holds the bodies.

It takes the packed weights and arguments of `fused/path.py`, so that each path checks the other: where results differ,
the fault lies in what they do not share. It loads nothing ahead and takes one trajectory a program: what these may do
wrong must not be shared. Both states are copied once; then each core call is a mixer launch and a
channel launch per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gram.kernels.blocks import kernel as bodies
from gram.kernels.fused import path as fused
from gram.kernels.fused.pack import Packed
from gram.kernels.fused.tuning import precision, target_of
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step
from gram.kernels.spec import LEARNED, Injection, Spec


class BlockLaunch(NamedTuple):
    """One launch: its kernel, the constants that differ from the model's own, and its scalars."""

    kernel: Any
    constants: dict[str, Any]
    scalars: dict[str, int]


def launches(spec: Spec, fixed: dict[str, Any]) -> Iterator[BlockLaunch]:
    """A supervision step's launches in order; `fixed` is `fused.constants`."""
    calls = spec.low_level_updates + 1
    prior = bodies.prior_kernel
    yield BlockLaunch(bodies.begin_kernel, {}, {})
    for index in range(spec.transitions):
        if spec.guidance != "none" and spec.noise_order == "before":
            yield BlockLaunch(prior, {}, {"index": index})
        for call in range(calls):
            is_low = call < spec.low_level_updates
            row = 0 if is_low else fixed["HIGH_ROW"]
            token_row = 0 if is_low else fixed["HIGH_TOKEN_ROW"]
            for block in range(spec.blocks):
                sums = 0 if block else (2 if is_low else 1)
                yield BlockLaunch(bodies.mixer_kernel, {"SUMS": sums}, {"row": row, "token_row": token_row})
                is_last = block == spec.blocks - 1
                damping = {} if is_last else {"KEEP": 0.0, "HAS_PATH": False}
                channel_row = row if fixed["IS_TOKEN"] else row + 4 * spec.dim
                place = (2 if is_low else 1) if is_last else 0
                scalars = {"row": channel_row, "call": index * calls + call, "place": place}
                yield BlockLaunch(bodies.channel_kernel, damping, scalars)
                row += fixed["CORE_ROWS"]
                token_row += 3 * fixed["HM"]
        if spec.guidance != "none" and spec.noise_order == "after":
            yield BlockLaunch(prior, {}, {"index": index})
    yield BlockLaunch(bodies.readout_kernel, {}, {})


def constants(spec: Spec, fixed: dict[str, Any], launch: BlockLaunch) -> dict[str, Any]:
    """Constants of a launch: those of `fixed` that its kernel takes, and its own."""
    everything = fixed | {"CALLS": spec.transitions * (spec.low_level_updates + 1)} | launch.constants
    return {name: everything[name] for name in launch.kernel.arg_names if name in everything}


def name_of(launch: BlockLaunch) -> str:
    """The name of a launch in tables of resources."""
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
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
    active_B: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """See `fused.supervision_step`: the same arguments, results and errors, in one launch per block."""
    cut = packed.layout.tuning
    if cut.group > 1 or cut.stages > 1:
        raise ValueError(f"kernel blocks takes weights packed for one trajectory, one stage, got {cut}")
    with fused.on_device(h.device):
        given = fused.arguments(packed, spec, h, l, e_x, key, injection, active_B, out)
        state = given["state_ptr"]
        x = torch.empty_like(state[0])
        multiplied = precision(target_of(h.device), h.dtype)
        fixed = fused.constants(spec, packed.layout, injection, has_active=active_B is not None, precision=multiplied)
        for launch in launches(spec, fixed) if len(x) else ():
            place = (x, *state)[launch.scalars.get("place", 0)]
            values = given | {"x_ptr": x, "out_ptr": place} | launch.scalars
            fused.launch(launch.kernel, values, constants(spec, fixed, launch))
    return Step(*state, *given["score_ptr"])
