"""Experts: the channel SwiGLU as one dense expert for every token, and `E` routed ones of which a token takes `k`.

    p = softmax(router x);   y = swiglu(x) + sum over the k likeliest e of  w_e swiglu_e(x)

`w` is `p` over the sum of the kept ones (GShard, 2006.16668), or `p` itself where one is kept (Switch, 2101.03961). An
expert takes at most its capacity of one state's tokens, those that want it most; a token over capacity is dropped by
that expert, and counted. Capacity is of one state, so a trajectory never depends on its company. In training the
balance loss `E sum_e f_e p_e` pulls towards equal loads (Switch, eq. 4): 1 where they are.

Shapes: `B` rows, `L` tokens, `D` channels, `E` experts, `k` kept, `C` capacity, `F` hidden channels of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableSequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from gram.kernels.spec import Spec


class Routing(NamedTuple):
    """What one block of a core call routed."""

    balance: Tensor
    """Balance loss, fp32; 1 where loads and probabilities are equal, up to `E`."""
    dropped: Tensor
    """Share of the choices that found an expert full, fp32."""


def capacity(spec: Spec) -> int:
    """`C`: tokens of one state that an expert takes at most; without a limit all."""
    if not spec.expert_capacity:
        return spec.length
    return min(spec.length, math.ceil(spec.expert_capacity * spec.experts_kept * spec.length / spec.experts))


def choose(logits_BLE: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Probabilities of all experts and weights of the kept ones, 0 for the others; fp32 `[B, L, E]`."""
    likely = logits_BLE.to(torch.float32).softmax(-1)
    best, which = likely.topk(spec.experts_kept, -1)
    share = best / best.sum(-1, keepdim=True) if spec.experts_kept > 1 else best
    return likely, torch.zeros_like(likely).scatter(-1, which, share)


def route(
    x_BLD: Tensor,
    weights: Mapping[str, Tensor],
    name: str,
    spec: Spec,
    routed: MutableSequence[Routing] | None = None,
) -> Tensor:
    """What the routed experts say of each token, `[B, L, D]`; the dense one is left out. `name` is that of the weights
    `router [E, D]`, `gate_up [E, 2 F, D]` and `down [E, D, F]`; `routed` takes the loss and the count of drops."""
    likely, wanted = choose(linear(x_BLD, weights[name + "router"]), spec)
    share, who = wanted.mT.topk(capacity(spec), -1)  # [B, E, C]: of each expert the tokens that want it most
    if routed is not None:
        asked = (wanted > 0).to(torch.float32)
        taken = (share > 0).sum().to(torch.float32)
        load = asked.mean((0, 1)) / spec.experts_kept
        routed.append(Routing(spec.experts * (load * likely.mean((0, 1))).sum(), 1 - taken / asked.sum()))
    index = who.flatten(1)[..., None].expand(-1, -1, x_BLD.shape[-1])
    tokens = x_BLD.gather(1, index).unflatten(1, who.shape[1:])  # [B, E, C, D]
    gate, up = torch.einsum("becd,efd->becf", tokens, weights[name + "gate_up"]).chunk(2, -1)
    said = torch.einsum("becf,edf->becd", silu(gate) * up, weights[name + "down"]) * share[..., None].to(x_BLD.dtype)
    return torch.zeros_like(x_BLD).scatter_add(1, index, said.flatten(1, 2))


def block_macs(spec: Spec) -> int:
    """Multiply-accumulates of one block of a core call of one trajectory: the router, and every expert at capacity."""
    places = spec.experts * capacity(spec)
    return spec.dim * (spec.experts * spec.length + 3 * spec.expert_hidden * places)
