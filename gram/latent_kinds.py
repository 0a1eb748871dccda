"""What a model of another kind may be: a lattice's values, a graph's nodes, a table of identities, a memory of
demonstrations, tables of n-grams, experts; and how many trajectories stop together, which a lattice names. Called by
`ModelConfig`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

from gram.kernels.spec import LINES, Pattern, box_shape

if TYPE_CHECKING:
    from gram.config import ModelConfig

Search = Literal["restart", "backtrack", "repair"]

LATTICE: dict[str, Any] = {
    "value_tokens": 1,
    "values": [],
    "are_values_alike": False,
    "drop_below": 0.1,
    "conflict_above": 0.5,
    "commitment_temperature": 1.0,
    "commitment_focus": 0.0,
    "search": "restart",
    "is_warm_started": False,
    "notes": False,
}
"""Settings that only a lattice has, as others have them."""
DEMONSTRATED: dict[str, Any] = {
    "demonstrations": 0,
    "memory": "none",
    "memory_keys": 96,
    "memory_values": 32,
    "memory_chunk": 16,
    "memory_heard": 0,
    "encoder_blocks": 2,
}
"""Settings that only a model has that reads demonstrations, as others have them."""
LOOKUP: dict[str, Any] = {"lookup": [], "lookup_heads": 2, "lookup_rows": 256, "lookup_channels": 8}
"""Settings that only a model has that looks n-grams up, as others have them."""
EXPERTS: dict[str, Any] = {"experts": 0, "experts_kept": 2, "expert_hidden": 32, "expert_capacity": 1.25}
"""Settings that only a model with routed experts has, as others have them."""
PATTERN: dict[str, Any] = {"pattern": "full", "pattern_radius": 2, "pattern_block": 16, "pattern_kept": 2}
"""Settings that only attention along a pattern has, as others have them."""
SPARSE: dict[str, Any] = {**LOOKUP, **EXPERTS, "active_share": 1.0, **PATTERN}
"""These, and the share of hidden units that stay."""
SPARSE_SIZES = (
    *("lookup_heads", "lookup_rows", "lookup_channels", "experts", "experts_kept", "expert_hidden"),
    *("pattern_radius", "pattern_block", "pattern_kept"),
)
OWN_PATTERN = {"pattern_radius": "window", "pattern_block": "block-topk", "pattern_kept": "block-topk"}
"""The pattern that each of its settings is of."""
MOST_SYMBOLS = 255
"""No symbol of a lattice is larger: symbols are bytes."""
MOST_EXPERTS, MOST_CAPACITY = 4096, 4096
MOST_ROWS = 10_000_000
"""No table has more rows, and no model more tables or channels of a row."""
MEMORY_SIZES = ("demonstrations", "memory_keys", "memory_values", "memory_chunk", "memory_heard")
MOST_MEMORY = 4096
"""No memory has more channels or tokens of a chunk, and no encoder more blocks."""


def check_lattice(config: ModelConfig) -> None:
    """Raises `ValueError` where a lattice is given what only continuous states have, or values that cannot be."""
    for name, least, most in (
        ("drop_below", 0, 1),
        ("conflict_above", 0, 1),
        ("commitment_temperature", 0, 100),
        ("commitment_focus", -100, 100),
    ):
        if not least <= getattr(config, name) <= most:
            raise ValueError(f"{name} must be within {least} and {most}, got {getattr(config, name)}")
    if config.search not in get_args(Search):
        raise ValueError(f"search must be one of {', '.join(get_args(Search))}, got {config.search!r}")
    values = config.values
    count, named, most = config.value_tokens, " (value_tokens)", config.vocabulary - 1
    if config.notes:
        check_notes(config)
        count, named, most = len(values), "", MOST_SYMBOLS
    elif config.search == "repair":
        raise ValueError("search must be restart or backtrack without notes, got 'repair'")
    if not values or len(values) != count or len(set(values)) != count:
        raise ValueError(f"values must be {count} different tokens{named}, got {list(values)}")
    if not 0 < min(values) <= max(values) <= most:
        raise ValueError(f"values must be tokens from 1 to {most}, got {list(values)}")
    if config.output_start or config.output_tokens != config.tokens:
        raise ValueError(f"answers must stand on the puzzle's own grid with a lattice, got {config.task}")
    needed = {
        "guidance": "none",
        "low_level_updates": 0,
        "is_core_shared": True,
        "is_conditional": True,
        "has_empty_condition": False,
        "registers": 0,
        "path_keep": 0.0,
        "path_noise": 0.0,
        "initial_std": 0.0,
    }
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} with a lattice, got {getattr(config, name)!r}")


def check_notes(config: ModelConfig) -> None:
    """Raises `ValueError` where a lattice with notes is given what only others have."""
    for name, value in (("search", "repair"), ("value_tokens", 1), ("are_values_alike", False)):
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} with notes, got {getattr(config, name)!r}")


def check_identities(config: ModelConfig) -> None:
    """Raises `ValueError` where a table of task embeddings has no width, or contradicts the model."""
    if not 1 <= config.identity_dim <= config.registers * config.dim:
        raise ValueError(
            f"identity_dim must be within 1 and registers times dim ({config.registers * config.dim:,}), got "
            f"{config.identity_dim:,}"
        )
    if config.views != "off":
        raise ValueError(f"views must be off where an identity names the view, got {config.views}")
    if not config.is_conditional or config.has_empty_condition:
        raise ValueError("identities must come with puzzles as the condition, got an empty one")


def check_graph(config: ModelConfig) -> None:
    """Raises `ValueError` where nodes are no graph's, or have relations of a grid."""
    nodes = config.output_tokens
    pairs = nodes * (nodes - 1) // 2
    if config.output_start != pairs or config.tokens != pairs + nodes or config.registers:
        raise ValueError(
            f"relations with graph must be of a graph's pairs and then its nodes, without registers, got "
            f"{config.tokens} tokens, {nodes} of them nodes, and {config.registers} registers"
        )
    if strange := [name for name in config.relations if name not in ("graph", "all")]:
        raise ValueError(f"relations with graph must be graph and all, got {', '.join(strange)}")


def check_demonstrations(config: ModelConfig) -> None:
    """Raises `ValueError` where a memory of demonstrations has no tokens to be written, or more than it may."""
    cells, pairs = config.output_tokens, config.demonstrations
    for name in ("memory_keys", "memory_values", "memory_chunk", "encoder_blocks"):
        if not 1 <= getattr(config, name) <= MOST_MEMORY:
            raise ValueError(f"{name} must be within 1 and {MOST_MEMORY}, got {getattr(config, name)}")
    if config.output_start != 2 * pairs * cells or config.tokens != config.output_start + cells:
        raise ValueError(
            f"demonstrations must be {pairs} pairs of {cells} tokens before the test input, got {config.tokens} tokens"
        )
    heard, parts = config.memory_heard, max(1, len(config.relations))
    if not 0 <= heard <= MOST_MEMORY or heard % parts or (heard and not config.relations):
        raise ValueError(
            f"memory_heard must share out among relations, got {heard} and {len(config.relations)} relations"
        )
    if cells % config.memory_chunk:
        raise ValueError(f"memory_chunk must divide the {cells} cells of a grid, got {config.memory_chunk}")
    for name, value in (("registers", 0), ("latent", "continuous"), ("is_conditional", True)):
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} with demonstrations, got {getattr(config, name)!r}")
    if config.has_empty_condition:
        raise ValueError("has_empty_condition must be false with demonstrations, got true")


def check_sparse(config: ModelConfig) -> None:
    """Raises `ValueError` where tables of n-grams, experts, a share of hidden units or a pattern cannot be."""
    if not 0 < config.active_share <= 1:
        raise ValueError(f"active_share must be above 0 and at most 1, got {config.active_share:g}")
    if any(getattr(config, name) != value for name, value in PATTERN.items()):
        check_pattern(config)
    if all(getattr(config, name) in (value, ()) for name, value in {**LOOKUP, **EXPERTS}.items()):
        return
    for name, value in (("latent", "continuous"), ("demonstrations", 0), ("has_graph", False)):
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} with a lookup or experts, got {getattr(config, name)!r}")
    if any(getattr(config, name) not in (LOOKUP[name], ()) for name in LOOKUP):
        check_lookup(config)
    if any(getattr(config, name) != EXPERTS[name] for name in EXPERTS):
        check_experts(config)


def check_pattern(config: ModelConfig) -> None:
    """Raises `ValueError` where attention has no such pattern, or the model no attention."""
    if config.pattern not in (known := get_args(Pattern)):
        raise ValueError(f"pattern must be one of {', '.join(known)}, got {config.pattern!r}")
    for name, own in OWN_PATTERN.items():
        if getattr(config, name) != PATTERN[name] and config.pattern != own:
            raise ValueError(f"{name} must come with the pattern {own}, got pattern {config.pattern}")
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.mixer != "attention":
        raise ValueError(f"pattern must come with the mixer attention, got mixer {config.mixer}")
    for name, value in (("latent", "continuous"), ("demonstrations", 0)):
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} with a pattern of attention, got {getattr(config, name)!r}")
    if config.pattern == "axial" and math.isqrt(config.tokens) ** 2 != config.tokens:
        raise ValueError(f"pattern must be axial on a square grid alone, got {config.tokens} tokens")
    blocks = -(-config.tokens // config.pattern_block)
    if config.pattern == "block-topk" and config.pattern_kept > blocks:
        raise ValueError(f"pattern_kept must be at most the {blocks} blocks, got {config.pattern_kept}")


def check_experts(config: ModelConfig) -> None:
    """Raises `ValueError` where a token would be routed to more experts than there are, or they have no width."""
    if not 1 <= config.experts <= MOST_EXPERTS:
        raise ValueError(f"experts must be within 1 and {MOST_EXPERTS:,}, got {config.experts:,}")
    if not 1 <= config.experts_kept <= config.experts:
        raise ValueError(f"experts_kept must be within 1 and the {config.experts} experts, got {config.experts_kept}")
    if not 1 <= config.expert_hidden <= MOST_ROWS:
        raise ValueError(f"expert_hidden must be within 1 and {MOST_ROWS:,}, got {config.expert_hidden:,}")
    if config.expert_capacity and not 1 <= config.expert_capacity <= MOST_CAPACITY:
        raise ValueError(f"expert_capacity must be 0 or within 1 and {MOST_CAPACITY:,}, got {config.expert_capacity:g}")


def check_lookup(config: ModelConfig) -> None:
    """Raises `ValueError` where n-grams have no lines, or tables no rows."""
    lines = config.lookup
    if not lines:
        named = next(name for name in LOOKUP if getattr(config, name) not in (LOOKUP[name], ()))
        raise ValueError(f"{named} must come with lookup, got lookup of no lines")
    if len(set(lines)) != len(lines) or set(lines) - {*LINES}:
        raise ValueError(f"lookup must be different and some of {', '.join(LINES)}, got {list(lines)}")
    for name in ("lookup_heads", "lookup_rows", "lookup_channels"):
        if not 1 <= getattr(config, name) <= MOST_ROWS:
            raise ValueError(f"{name} must be within 1 and {MOST_ROWS:,}, got {getattr(config, name):,}")
    if not config.is_conditional or config.has_empty_condition:
        raise ValueError("lookup must come with puzzles as the condition, got an empty one")
    if (side := math.isqrt(config.tokens)) ** 2 != config.tokens and set(lines) - {"text"}:
        raise ValueError(f"lookup must be along text where tokens are no square grid, got {config.tokens} tokens")
    if "box" in lines:
        box_shape(side)


def check_stage(stage: int, policy: str, width: int) -> None:
    """Raises `ValueError` where so many trajectories cannot run side by side."""
    if policy != "first-halt":
        raise ValueError(f"width_stage must come with first-halt, got {policy}")
    if not 1 <= stage <= width:
        raise ValueError(f"width_stage must be within 1 and the width, {width}, got {stage}")
