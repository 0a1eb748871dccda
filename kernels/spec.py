"""What a supervision step takes beside weights and states: the model's shape, and where noise enters. No torch.

`Spec` is the part of a model's configuration (`gram/config.py`) that the mathematics reads; its defaults are those of
every model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Mixer = Literal["token", "attention", "relations"]
MixerNorm = Literal["columns", "tokens"]
Positions = Literal["learned", "rotary", "both", "none"]
Guidance = Literal["full", "mean", "noise", "none"]
NoiseOrder = Literal["before", "after"]
HeadReadout = Literal["mean", "register", "first", "max"]
Pattern = Literal["full", "window", "axial", "block-topk"]
Memory = Literal["titans", "no-momentum", "no-forgetting", "delta", "sum", "mean", "none"]
LINES = ("text", "row", "column", "diagonal", "antidiagonal", "box")
"""Lines along which n-grams are looked up."""
NGRAMS = (2, 3)
"""Tokens of an n-gram."""
MANY_TOKENS = 512
"""A state of more is work enough for a CPU with few trajectories at once."""
DENSE_TOKENS = 150
"""Up to here a matrix product is faster on a CPU than sums by line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The numbers that shape a supervision step (2605.19376, section 3); the weights hold the rest."""

    tokens: int = 64
    """`L`: tokens of a puzzle, output tokens included, registers not."""
    output_start: int = 0
    """Position of the first output token in `[0, L)`."""
    output_tokens: int = 64
    """`A`: tokens the decoder is asked for."""
    registers: int = 0
    """`R`: learned tokens in front of the puzzle (the paper prepends 16)."""
    value_tokens: int = 1
    """Tokens of the state for each puzzle token, value by value: a lattice has one for every value of an answer token,
    so that its parameters know neither the number of values nor that of tokens."""
    dim: int = 128
    """`D`: channels of a token's state; a multiple of 4 (one noise counter gives four channels)."""
    blocks: int = 2
    """Post-norm blocks in one core (`f_L` or `f_H`)."""
    mixer: Mixer = "token"
    """What mixes tokens: `token` (SwiGLU over the token axis), `attention` (non-causal) or `relations` (gated sums
    along the lines of a square grid, whose parameters do not depend on the number of tokens)."""
    relations: tuple[str, ...] = ()
    """What the mixer `relations` sums along: some of `row`, `column`, `diagonal`, `antidiagonal`, `box` (of Sudoku),
    `up`, `down`, `left`, `right` (one neighbour each) and `all` (every token); `random-row` and the like have the
    links of one among tokens in a random order. With a lattice these relate tokens of one value, and `value` relates
    the values of one answer token. With `graph` (each puzzle's own) a state has the answer's tokens alone, the nodes;
    the puzzle's other tokens say which of them are joined."""
    mixer_norm: MixerNorm = "columns"
    """Axis of the RMSNorm after the mixer: the channels of each token (`columns`), or the tokens of each channel
    (`tokens`: TRM and EqR where a SwiGLU mixes tokens, since their code norms the transposed state)."""
    heads: int = 4
    """Attention heads; unused by the token mixer."""
    pattern: Pattern = "full"
    """Which tokens attention shows a token (2504.17768, `kernels/patterns.py`), registers apart, which see all and are
    seen by all: `full`, all; `window`, those within `pattern_radius` rows and columns of a square grid, or places of
    another; `axial`, those of its row and column; `block-topk`, those of the `pattern_kept` blocks of `pattern_block`
    tokens in order whose mean key has the largest product with its query."""
    pattern_radius: int = 2
    """Of `window`: rows, columns or places to each side."""
    pattern_block: int = 16
    """Of `block-topk`: tokens of a block."""
    pattern_kept: int = 2
    """Of `block-topk`: blocks that each token of each head attends to."""
    positions: Positions = "learned"
    """Where positions enter: added to the embedding, rotary in attention, both or nowhere."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm (without weight)."""
    is_core_shared: bool = True
    """Whether `f_L` and `f_H` share one set of weights (TRM) or have two (HRM)."""
    transitions: int = 1
    """`T`: transitions of a supervision step."""
    low_level_updates: int = 2
    """`K`: low-level updates of a transition."""
    guidance: Guidance = "full"
    """Learned noise: `full` N(mu, sigma^2), `mean` only, `noise` only (mu = 0), or `none` (deterministic, TRM)."""
    noise_order: NoiseOrder = "before"
    """`after` f_H (the paper: decode the noisy h) or `before` the low-level updates (decode f_H's output)."""
    noise_free_steps: int = 1
    """First supervision steps of a trajectory that take no noise."""
    path_keep: float = 0.0
    """Damping of every core call, `z <- keep z + (1 - keep) f(z)`, in [0, 1) (EqR, 2605.21488)."""
    log_sigma_center: float = -1.0
    """`log sigma = center + range * tanh(raw / range)`."""
    log_sigma_range: float = 1.25
    """Half-width of the interval that bounds `log sigma`."""
    head_readout: HeadReadout = "mean"
    """What halt head and LPRM read: the mean over tokens, the first register, the first of all tokens (EqR), or of each
    channel the token where it is largest (a lattice: one token shows a conflict)."""

    demonstrations: int = 0
    """Pairs of an input and an output that stand before the test input in a puzzle. A state has the answer's tokens
    alone; the pairs reach it through the memory."""
    memory: Memory = "none"
    """How demonstrations are remembered: `titans` (momentum, forgetting and surprise), an ablation of it
    (`no-momentum`, `no-forgetting`, `delta` without both, `sum` without surprise), `mean` (the average of their
    embeddings) or `none` (`kernels/memory.py`)."""
    memory_keys: int = 96
    """Channels of a key of the memory."""
    memory_values: int = 32
    """Channels of a value of the memory."""

    lookup: tuple[str, ...] = ()
    """Lines along which n-grams of the puzzle's tokens are looked up in hashed tables (Engram, 2601.07372,
    `kernels/lookup.py`): some of `text` (row-major order), `row`, `column`, `diagonal`, `antidiagonal` and `box`."""
    lookup_heads: int = 2
    """Tables of each line and each length of an n-gram."""
    lookup_rows: int = 256
    """Rows of a table at least; tables take the next primes."""
    lookup_channels: int = 8
    """Channels of a row."""
    experts: int = 0
    """`E`: routed experts of every channel SwiGLU, beside the dense one that all tokens take (`kernels/experts.py`)."""
    experts_kept: int = 2
    """`k`: experts that a token is routed to."""
    expert_hidden: int = 32
    """Hidden width of a routed expert."""
    expert_capacity: float = 1.25
    """Tokens of a state that an expert takes at most, as a multiple of its equal share; 0: no limit."""
    active_share: float = 1.0
    """Share of the hidden units of each mixer and channel SwiGLU of a core that stay, those largest in size; the others
    are zero (AbsTopK, 2511.13653)."""

    @property
    def length(self) -> int:
        """Tokens of a state, registers included."""
        if self.has_graph or self.demonstrations:
            return self.output_tokens
        return self.registers + self.tokens * self.value_tokens

    @property
    def has_graph(self) -> bool:
        """Whether each puzzle brings a relation of its own, and a state is of its nodes."""
        return "graph" in self.relations

    @property
    def answer_start(self) -> int:
        """Place in a state of the first answer token."""
        return 0 if self.has_graph or self.demonstrations else self.registers + self.output_start

    @property
    def embedded_dim(self) -> int:
        """Channels of `e_x`: where each puzzle has a graph, each node's row of its matrix stands behind its own; where
        it has a memory, that stands there in equal parts; where n-grams are looked up, their keys and values."""
        found = 2 * self.dim if self.lookup else 0
        return self.dim + (self.length if self.has_graph else self.memory_channels) + found

    @property
    def lookup_width(self) -> int:
        """Channels of all rows that a token looks up."""
        return len(self.lookup) * len(NGRAMS) * self.lookup_heads * self.lookup_channels

    @property
    def memory_size(self) -> int:
        """Numbers of a task's memory."""
        if not self.demonstrations or self.memory == "none":
            return 0
        return self.dim if self.memory == "mean" else self.memory_keys * self.memory_values

    @property
    def memory_channels(self) -> int:
        """Channels of each token that hold the memory together, and its own key."""
        own = self.memory_keys if self.memory_size and self.memory != "mean" else 0
        return own + -(-self.memory_size // self.length)

    @property
    def are_sums_products(self) -> bool:
        """Whether relations are summed as matrix products, and not line by line; a lattice's never are."""
        return self.value_tokens == 1 and self.length <= DENSE_TOKENS

    @property
    def pairs(self) -> int:
        """Products of two heads' channels that one attention computes, in pairs of tokens: query and key, weight and
        value, and of `block-topk` query and mean key. A pattern by mask computes all that `full` does."""
        if self.pattern == "axial" and not self.registers:
            return 4 * self.length * math.isqrt(self.length)
        blocks = -(-(self.length - self.registers) // self.pattern_block)
        return 2 * self.length**2 + (self.length * blocks if self.pattern == "block-topk" else 0)

    @property
    def additions(self) -> int:
        """Multiply-accumulates of one hidden channel of every relation together."""
        return len(self.relations) * self.length * (self.length if self.are_sums_products else 2)

    def check_grid(self) -> None:
        """Raises `ValueError` where relations of places have no square grid."""
        tokens = self.output_tokens if self.demonstrations else self.tokens
        if math.isqrt(tokens) ** 2 != tokens or self.registers:
            raise ValueError(
                f"relations must be of a square grid without registers, got {tokens} tokens and "
                f"{self.registers} registers"
            )
        if "box" in self.relations:
            box_shape(math.isqrt(tokens))

    @property
    def is_rotary(self) -> bool:
        """Whether attention rotates queries and keys by their positions."""
        return self.positions in ("rotary", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class Injection:
    """Where noise enters the steps of one run, and how much of it. Part of a trajectory's identity."""

    injector: str = "prior"
    """`prior`: the learned noise of the weights (GRAM). `gaussian`: fixed scale, before each supervision step (PTRM,
    2605.19943). `path`: fixed scale, after every core call (EqR, 2605.21488). `none`."""
    temperature: float = 1.0
    """Factor on the prior's deviation. Under another injector the prior's mean alone is added."""
    sigma: float = 0.0
    """Scale of `gaussian`, relative to each token's RMS, or of `path`, absolute."""
    site: str = "h"
    """State that `gaussian` perturbs: `h`, `l` or `both`."""


LEARNED = Injection()
"""GRAM's own noise at temperature 1."""


def box_shape(side: int) -> tuple[int, int]:
    """Height and width of the boxes of a board: the widest that are not wider than one and a half times their height,
    2 x 2 at side 4, 2 x 3 at 6, 3 x 3 at 9.

    Raises `ValueError` for a side without.
    """
    height = max(height for height in range(1, math.isqrt(side) + 1) if side % height == 0)
    if height == 1:
        raise ValueError(f"relations must have box only where a board's side has two factors, got side {side}")
    return height, side // height


def check_limits(name: str, threshold: float | None, rule: Any) -> None:
    """Raises `ValueError` where a threshold is not between the rule's `above` and `below`, or not whole where it must
    be; None is the rule's own."""
    if threshold is None or (rule.above < threshold < rule.below and not (rule.is_whole and threshold % 1)):
        return
    raise ValueError(f"{name} must be {rule.expected}, got {threshold}")
