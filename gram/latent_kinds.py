"""What a model of another kind may be: a lattice's values, a graph's nodes, a table of identities. Called by
`ModelConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gram.config import ModelConfig


def check_lattice(config: ModelConfig) -> None:
    """Raises `ValueError` where a lattice is given what only continuous states have, or values that cannot be."""
    for name, most in (
        ("drop_below", 1),
        ("conflict_above", 1),
        ("commitment_temperature", 100),
        ("commitment_focus", 100),
    ):
        if not 0 <= getattr(config, name) <= most:
            raise ValueError(f"{name} must be within 0 and {most}, got {getattr(config, name)}")
    if not config.values or len(config.values) != config.value_tokens or len(set(config.values)) != len(config.values):
        raise ValueError(
            f"values must be {config.value_tokens} different tokens (value_tokens), got {list(config.values)}"
        )
    if not 0 < min(config.values) <= max(config.values) < config.vocabulary:
        raise ValueError(f"values must be tokens from 1 to {config.vocabulary - 1}, got {list(config.values)}")
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
