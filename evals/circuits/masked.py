"""A model whose nodes can be ablated: its forward pass with a visit at every node, without noise.

Nodes are the channels of the state (`state`), and the hidden units of each block's mixer and channel SwiGLU
(`low.0.mixer`, `low.0.channel` ...) and of the prior. `h`, `l` and what flows between the blocks of a core share their
channels, since the sums of the recursion keep a channel in its place. An ablated node has its mean over the task's
puzzles and tokens instead of its value (2511.13653, section 2.2), at each call of the unrolled recursion that call's
mean. A core is called many times, so a node stands for all its calls.

With all nodes kept it is the supervision step of `kernels/reference.py` at temperature 0, which a test holds it to.

Shapes: `B` rows, `L` tokens, `D` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from gram.kernels.reference import damp, decode, hear, keep_largest, rmsnorm
from gram.model import Model, embed

STATE, PRIOR = "state", "prior"
Masks = Mapping[str, Tensor]
"""Share of each node of a site that is kept, 0 or 1: `[size]` of each."""
Visit = Callable[[str, Tensor, int], Tensor]
"""What a node's activation becomes, given its site, the activation and its axis of nodes."""


class MaskedModel:
    """A model in fp32, its nodes, and their means."""

    def __init__(self, model: Model, *, depth: int | None = None) -> None:
        """`depth`: supervision steps until the answer is read; None: those that the model was trained to take.

        Raises `ValueError` in one line for a model of a kind whose nodes are not known.
        """
        config = model.config
        for name, value in (
            *(("latent", "continuous"), ("demonstrations", 0), ("identities", 0)),
            *(("experts", 0), ("lookup", ())),
        ):
            if getattr(config, name) != value:
                raise ValueError(f"{name} must be {value or 'none'} to find circuits, got {getattr(config, name)}")
        if config.mixer == "attention" or config.has_graph or not config.is_conditional:
            what = "attention" if config.mixer == "attention" else "relation graph or none as condition"
            raise ValueError(f"circuits are found in models that mix tokens or relations, got {what}")
        self.config, self.spec = config, config.spec
        self.depth = depth or config.trained_depth or config.depth
        self.weights = {name: weight.detach().float() for name, weight in model.weights().items()}
        self.cores = ["low"] if config.is_core_shared else ["low", "high"]
        self.means: list[Tensor] = []

    @property
    def has_prior(self) -> bool:
        """Whether the prior's mean moves the state."""
        return self.spec.guidance in ("full", "mean")

    @property
    def sizes(self) -> dict[str, int]:
        """Nodes of every site."""
        found = {STATE: self.config.dim}
        for core in self.cores:
            for block in range(self.spec.blocks):
                for part in ("mixer", "channel"):
                    found[f"{core}.{block}.{part}"] = self.weights[f"{core}.{block}.{part}.down"].shape[1]
        return found | ({PRIOR: self.weights["prior.down"].shape[1]} if self.has_prior else {})

    @torch.no_grad()
    def learn_means(self, puzzles_BL: Tensor) -> None:
        """Takes the mean of every node at every call, over puzzles and tokens."""
        means: list[Tensor] = []

        def visit(site: str, x: Tensor, axis: int) -> Tensor:
            means.append(x.mean([at for at in range(x.ndim) if at != axis]))
            return x

        self._forward(puzzles_BL, visit)
        self.means = means

    def logits(self, puzzles_BL: Tensor, masks: Masks | None = None) -> Tensor:
        """Logits `[B, A, V]` with the nodes that `masks` keep, others at their means; None: the whole model."""
        if masks is None:
            return self._forward(puzzles_BL, lambda site, x, axis: x)
        means = iter(self.means)

        def visit(site: str, x: Tensor, axis: int) -> Tensor:
            shape = [-1 if at == axis else 1 for at in range(x.ndim)]
            mask, mean = masks[site].view(shape), next(means).view(shape)
            return mask * x + (1 - mask) * mean

        return self._forward(puzzles_BL, visit)

    def _forward(self, puzzles_BL: Tensor, visit: Visit) -> Tensor:
        spec = self.spec
        e_x = embed(self.weights, self.config, puzzles_BL)
        shape = (len(puzzles_BL), spec.length, spec.dim)
        h, l = (self.weights[name].expand(shape) for name in ("z0_h", "z0_l"))
        for step in range(self.depth):
            is_guided = self.has_prior and step >= spec.noise_free_steps
            for _ in range(spec.transitions):
                if is_guided and spec.noise_order == "before":
                    h = self._guided(h, visit)
                injection = h + e_x if spec.low_level_updates else l
                for _ in range(spec.low_level_updates):
                    l = damp(l, self._core("low", l + injection, visit), spec.path_keep, None)
                h = damp(h, self._core(self.cores[-1], h + l, visit), spec.path_keep, None)
                if is_guided and spec.noise_order == "after":
                    h = self._guided(h, visit)
        return decode(self.weights, spec, h)

    def _core(self, core: str, x_BLD: Tensor, visit: Visit) -> Tensor:
        spec, x = self.spec, visit(STATE, x_BLD, 2)
        for block in range(spec.blocks):
            site = f"{core}.{block}.mixer"
            gate_up, down = self.weights[site + ".gate_up"], self.weights[site + ".down"]
            if spec.mixer == "token":
                gate, up = (gate_up @ x).chunk(2, dim=1)
                mixed = down @ visit(site, keep_largest(silu(gate) * up, spec.active_share, 1), 1)
            else:
                gate, up = linear(x, gate_up).chunk(2, dim=-1)
                heard = keep_largest(silu(gate) * hear(up, spec), spec.active_share)
                mixed = linear(visit(site, heard, 2), down)
            x = visit(STATE, rmsnorm(x + mixed, spec.norm_eps, 1 if spec.mixer_norm == "tokens" else -1), 2)
            site = f"{core}.{block}.channel"
            gate, up = linear(x, self.weights[site + ".gate_up"]).chunk(2, dim=-1)
            written = keep_largest(silu(gate) * up, spec.active_share)
            written = linear(visit(site, written, 2), self.weights[site + ".down"])
            x = visit(STATE, rmsnorm(x + written, spec.norm_eps), 2)
        return x

    def _guided(self, h: Tensor, visit: Visit) -> Tensor:
        """`h` with the prior's mean."""
        gate, up = linear(h, self.weights["prior.gate_up"]).chunk(2, dim=-1)
        return h + linear(visit(PRIOR, silu(gate) * up, 2), self.weights["prior.down"]).chunk(2, -1)[0]
