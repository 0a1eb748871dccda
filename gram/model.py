"""The model: encoder -> transition -> decoder and heads (GRAM, 2605.19376). Read `gram/minimal.py` first.

The encoder embeds a puzzle once: `e_x`. A trajectory is a latent state `z = (h, l)` that starts at the stored `z0`. A
supervision step refines it, given `e_x` and learned noise. After any step, `h` can be decoded to an answer; the halt
head estimates whether it is right, and the LPRM how accurate the last one will be. This module holds the parameters;
`kernels/dispatch.py` is the way to the mathematics (`kernels/reference.py`).

Shapes: `P` puzzles, `B` trajectories, `L` puzzle tokens, `R` registers, `D` channels, `A` answer tokens, `V` symbols.
"""

from __future__ import annotations

import hashlib
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from gram.config import ModelConfig
from gram.identities import IdentityTable
from gram.kernels import dispatch, lookup
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step, Weights
from gram.kernels.relations import graphs
from gram.kernels.spec import LEARNED, Injection, Spec

OPINIONS = 2
"""What a lattice's decoder says of each value: whether it belongs to a solution, and how likely it is (logits)."""


NOTED_SCALE = 0.5
"""Of the sum that shows a lattice's set with notes, whose many values would drown the state."""


def init_parameter(
    shape: tuple[int, ...], generator: torch.Generator, *, fan_in: int | None = None, scale: float = 1.0
) -> nn.Parameter:
    """A parameter of `shape` drawn for `fan_in` inputs (default: its last axis): normal, what lies beyond two standard
    deviations drawn again.

    As `nn.init.trunc_normal_` of torch 2.13 does. That of 2.8 draws otherwise: one seed would be two models.
    """
    deviation = scale * (fan_in or shape[-1]) ** -0.5
    weight = torch.empty(shape)
    if has_no_values():
        return nn.Parameter(weight)
    weight.normal_(0.0, deviation, generator=generator)
    limit = float(torch.tensor(2 * deviation))
    while bool((is_beyond := weight.abs() > limit).any()):
        again = torch.empty_like(weight).normal_(0.0, deviation, generator=generator)
        weight = torch.where(is_beyond, again, weight)
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


class RoutedExperts(nn.Module):
    """Experts beside a channel SwiGLU: `router [E, D]`, `gate_up [E, 2*F, D]`, `down [E, D, F]`."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        experts, hidden, dim = config.experts, config.expert_hidden, config.dim
        self.router = init_parameter((experts, dim), generator)
        self.gate_up = init_parameter((experts, 2 * hidden, dim), generator)
        self.down = init_parameter((experts, dim, hidden), generator)


class CoreBlock(nn.Module):
    """One post-norm block of a core: a mixer of tokens, then the channel SwiGLU, with routed experts where there are
    some."""

    def __init__(self, mixer: nn.Module, channel: nn.Module, experts: RoutedExperts | None) -> None:
        super().__init__()
        self.mixer = mixer
        self.channel = channel
        if experts is not None:
            self.experts = experts


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


class LookupTables(nn.Module):
    """Tables of n-grams and what reads them (`kernels/lookup.py`): `table [rows, C]`, `key [D, E]`, `value [D, E]`,
    `scale [D]`, `taps [D, 4]`. The convolution starts at zero, as in the paper."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        dim, width = config.dim, config.lookup_width
        rows = sum(lookup.table_sizes(config))
        self.table = init_parameter((rows, config.lookup_channels), generator, fan_in=width)
        self.key = init_parameter((dim, width), generator)
        self.value = init_parameter((dim, width), generator)
        self.scale = nn.Parameter(torch.ones(dim))
        self.taps = nn.Parameter(torch.zeros(dim, lookup.TAPS))


class Model(nn.Module):
    """All parameters of one model, and its three operations: `embed`, `step`, `decode`."""

    z0_h: Tensor
    z0_l: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.spec = config.spec
        generator = torch.Generator().manual_seed(seed)
        dim, length = config.dim, config.length

        self.embedding = Embedding(config.vocabulary, dim, generator)
        self.identities = IdentityTable.zeros(config) if config.identities else None
        """Task embeddings; no parameter, and no part of `weights`."""
        if config.registers and not config.identity_dim:
            self.registers = init_parameter((config.registers, dim), generator)
        if config.positions in ("learned", "both"):
            self.positions = init_parameter((length, dim), generator)
        if config.has_empty_condition or not config.is_conditional:
            self.empty = init_parameter((dim,), generator)

        self.low = self._core(generator)
        if not config.is_core_shared:
            self.high = self._core(generator)
        if config.demonstrations:
            from gram.demonstrations import Memory  # other models know none

            self.encoder = self._core(generator, config.encoder_blocks)
            if config.memory != "none":
                self.memory = Memory(config, partial(init_parameter, generator=generator))
        if config.lookup:
            self.lookup = LookupTables(config, generator)
        if config.guidance != "none":
            hidden = config.guidance_hidden
            self.prior = SwiGLU(dim, hidden, 2 * dim, generator, output_scale=0.1)
            self.posterior = SwiGLU(2 * dim, hidden, 2 * dim, generator, output_scale=0.1)
            self.target_embedding = Embedding(config.vocabulary, dim, generator)

        is_lattice = config.latent == "lattice"
        if is_lattice:
            self.possible = Embedding(len(config.values) if config.notes else 3, dim, generator)
            if not config.are_values_alike:
                self.values = Embedding(len(config.values), dim, generator)
        said = OPINIONS * (len(config.values) if config.notes else 1) if is_lattice else config.vocabulary
        self.decoder = Embedding(said, dim, generator)
        self.halt = Head(dim, config.head_hidden, generator)
        self.lprm = Head(dim, config.head_hidden, generator)
        for name in ("z0_h", "z0_l"):
            start = torch.empty(dim) if has_no_values() else torch.randn(dim, generator=generator)
            self.register_buffer(name, start)

    def _core(self, generator: torch.Generator, blocks: int | None = None) -> nn.ModuleList:
        config, length = self.config, self.config.length

        def mixer() -> nn.Module:
            if config.mixer == "attention":
                return Attention(config.dim, generator)
            if config.mixer == "relations":
                return SwiGLU(config.dim, config.mixer_hidden, config.dim, generator)
            return SwiGLU(length, config.mixer_hidden, length, generator)

        return nn.ModuleList(
            CoreBlock(
                mixer(),
                SwiGLU(config.dim, config.hidden, config.dim, generator),
                RoutedExperts(config, generator) if config.experts else None,
            )
            for _ in range(blocks or config.blocks)
        )

    @torch.no_grad()
    def start_positions(self, features: Tensor) -> None:
        """Starts the learned positions as sums of random vectors, one per feature: `features [L, F]`, 0 or 1.

        Tokens that share features then have similar positions, which attention finds from the first step on.
        Raises `ValueError` where the model has no learned positions.
        """
        if not hasattr(self, "positions"):
            raise ValueError("the model must have learned positions to start them, got none")
        generator = torch.Generator().manual_seed(features.shape[1])
        vectors = init_parameter((features.shape[1], self.config.dim), generator)
        scaled = features / features.sum(1, keepdim=True).clamp(min=1).sqrt()
        self.positions[self.config.registers :] = (scaled @ vectors).to(self.positions)

    def resize(self, config: ModelConfig) -> None:
        """Takes another configuration of the same weights: that of a task of another size (`gram.sizes.resized`)."""
        self.config, self.spec = config, config.spec

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of the model by name: what `embed`, `step` and `decode` read, and what kernels pack."""
        return dict(self.state_dict(keep_vars=True))

    def digest(self) -> str:
        """Hex SHA-256 over names and values of all weights, in their own type: the identity of the model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights().items()):
            digest.update(
                name.encode() + b"\0" + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    @property
    def dtype(self) -> torch.dtype:
        """Type that the weights are kept in; activations follow it."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def embed(
        self, puzzles_PL: Tensor, identities_P: Tensor | None = None, *, weights: Weights | None = None
    ) -> Tensor:
        """`e_x [P, R + L, D]` (`embed`) of puzzles `[P, L]`; computed once and shared by all trajectories and steps.

        A model with task embeddings is told each puzzle's row. Raises `ValueError` where these do not go together.
        """
        registers = None
        if (table := self.identities) is not None and identities_P is not None:
            registers = table.fill(table.take(identities_P)).to(self.device, self.dtype)
        elif table is not None or identities_P is not None:
            raise ValueError(f"identities must be given to a model with a table of them alone, got {identities_P}")
        return embed(weights or self.weights(), self.config, puzzles_PL, registers_PRD=registers)

    def embed_empty(self, count: int) -> Tensor:
        """The empty condition, `[count, R + L, D]`: the model then samples `p(x)`.

        Raises `ValueError` where the model was not trained with it.
        """
        if not hasattr(self, "empty"):
            raise ValueError("the model must have an empty condition to generate, got one trained without")
        blank = torch.zeros(count, self.config.tokens, dtype=torch.long, device=self.device)
        every = torch.ones(count, dtype=torch.bool, device=self.device)
        return embed(self.weights(), self.config, blank, is_empty_P=every)

    def initial_state(self, count: int) -> tuple[Tensor, Tensor]:
        """`z0` for `count` trajectories: `h` and `l`, `[count, R + L, D]`; the same for every run."""
        shape = (count, self.spec.length, self.config.dim)
        return self.z0_h.expand(shape), self.z0_l.expand(shape)

    def random_state(self, key: NoiseKey) -> tuple[Tensor, Tensor]:
        """A random initial state for every trajectory, of deviation `initial_std`: `h` and `l`, `[B, R + L, D]`."""
        h, l = dispatch.initial_noise(self.spec, key, self.config.initial_std)
        return h.to(self.dtype), l.to(self.dtype)

    def step(
        self,
        h: Tensor,
        l: Tensor,
        e_x: Tensor,
        key: NoiseKey,
        *,
        injection: Injection = LEARNED,
        spec: Spec | None = None,
        kernel: str = "eager",
        weights: Weights | None = None,
    ) -> Step:
        """One supervision step of `B` trajectories; see `kernels/reference.py`. `spec` replaces the model's own, to
        take another number of transitions or updates; `kernel` is the path; `weights` are the model's own, collected
        once for many steps."""
        return dispatch.supervision_step(
            weights or self.weights(), spec or self.spec, h, l, e_x, key, injection=injection, kernel=kernel
        )

    def decode(self, h: Tensor) -> Tensor:
        """Logits `[B, A, V]` of the answer tokens."""
        return dispatch.decode(self.weights(), self.spec, h)


def embed(
    weights: Weights,
    config: ModelConfig,
    puzzles_PL: Tensor,
    *,
    is_empty_P: Tensor | None = None,
    registers_PRD: Tensor | None = None,
) -> Tensor:
    """`e_x`: token embedding, registers in front (each puzzle's own, or those that all share), learned positions,
    scaled by `sqrt(D)`; empty rows take the empty embedding at every token. Where each puzzle is a graph, its nodes
    alone, each with its row of the graph's matrix behind (`Spec.embedded_dim`). Where it has
    demonstrations, its test input alone, with their memory behind. Where
    n-grams are looked up, all tokens with their keys and values behind."""
    if config.demonstrations:
        from gram.demonstrations import embed_demonstrations  # other models know none

        return embed_demonstrations(weights, config, puzzles_PL)
    table = weights["embedding.weight"]
    e_x = table[puzzles_PL]
    if config.has_graph:
        e_x = e_x[:, config.output_start :]
    if is_empty_P is not None:
        e_x = torch.where(is_empty_P[:, None, None], weights["empty"], e_x)
    if config.registers:
        registers = weights["registers"] if registers_PRD is None else registers_PRD
        e_x = torch.cat([registers.expand(e_x.shape[0], -1, -1), e_x], dim=1)
    if "positions" in weights:
        e_x = e_x + weights["positions"]
    scaled: Tensor = e_x * config.dim**0.5
    if config.lookup:
        scaled = torch.cat([scaled, lookup.look_up(weights, config, config.vocabulary, puzzles_PL)], -1)
    if config.has_graph:
        graph = graphs(puzzles_PL, config.output_tokens).to(scaled.dtype)
        scaled = torch.cat([scaled, graph if is_empty_P is None else graph * ~is_empty_P[:, None, None]], -1)
    return scaled


def embed_sets(weights: Weights, config: ModelConfig, puzzles_BA: Tensor, sets_BAv: Tensor) -> Tensor:
    """A lattice's states as tokens, `[B, v * A, D]`: for each of the `v` values of each answer token whether it is
    ruled out, possible or the only one left, with the puzzle's token, and which value it is where that matters. With
    notes one token for each answer token, `[B, A, D]`, which shows its possible values and the only one left."""
    is_only = sets_BAv & (sets_BAv.sum(-1, keepdim=True) == 1)
    if config.notes:
        shares = (sets_BAv, "possible.weight"), (is_only, "values.weight")
        summed = sum(sets.to(weights[name].dtype) @ weights[name] for sets, name in shares)
        noted: Tensor = (weights["embedding.weight"][puzzles_BA] + summed) * (NOTED_SCALE * config.dim**0.5)
        return noted
    made = weights["possible.weight"][(sets_BAv.long() + is_only.long()).transpose(1, 2)]
    # Of alike values the model sees that a token is given, never which.
    shown = puzzles_BA.clamp(max=2) if config.are_values_alike else puzzles_BA
    made = made + weights["embedding.weight"][shown][:, None]
    if not config.are_values_alike:
        made = made + weights["values.weight"][:, None, :]
    shown_states: Tensor = made.flatten(1, 2) * config.dim**0.5
    return shown_states


def read_values(weights: Weights, config: ModelConfig, h: Tensor) -> tuple[Tensor, Tensor]:
    """What a lattice's core says of each value of each answer token, fp32 `[B, A, v]` each: the logit of belonging to a
    solution, and that of being the token's value."""
    said = linear(h, weights["decoder.weight"]).to(torch.float32)
    if config.notes:
        keep, value = said.chunk(OPINIONS, -1)
        return keep, value
    keep, value = said.unflatten(1, (config.value_tokens, config.tokens)).permute(3, 0, 2, 1)
    return keep, value


def over_symbols(config: ModelConfig, values_BAv: Tensor) -> Tensor:
    """Logits of a lattice's values as logits of all symbols, `[B, A, V]`: -inf of those that are no values."""
    wide = torch.full((*values_BAv.shape[:2], config.symbols), -torch.inf, device=values_BAv.device)
    wide[..., list(config.values)] = values_BAv
    return wide


def embed_target(weights: Weights, config: ModelConfig, targets_BA: Tensor) -> Tensor:
    """`e_y [B, R + L, D]`: the target's embedding at the output positions, zero elsewhere."""
    before = config.answer_start
    after = config.length - before - config.output_tokens
    return pad(weights["target_embedding.weight"][targets_BA] * config.dim**0.5, (0, 0, before, after))
