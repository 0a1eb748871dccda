"""A behaviour's circuit in a model: found, measured, and shown to be needed and to be enough.

`gram circuit` is its client. Shares of right choices are over pairs that the circuit was not found on, with intervals
that resample pairs together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gram.evals.circuits.behaviour import Behaviour
from gram.evals.circuits.graph import Graph, count_edges, graph_of
from gram.evals.circuits.masked import MaskedModel, Masks
from gram.evals.circuits.pruning import STEPS, BehaviourJudge, Circuit, prune
from gram.evals.statistics import clustered_interval
from gram.model import Model

TARGET = 0.15
"""Loss of a circuit in nats where none is asked for, as the paper's; a model that cannot tell has .69."""
MEAN_PUZZLES = 256
"""Puzzles of the task's training split over which means are taken."""
DRAWS = 8
"""Random circuits of the same size that a circuit is held against."""
VERSION = 1


def open_model(model: Model, behaviour: Behaviour, *, depth: int | None = None) -> MaskedModel:
    """A model with the means of its nodes. Raises `ValueError` where it is of another task or kind."""
    if model.config.task != behaviour.task.name:
        raise ValueError(f"behaviour must be of the model's task {model.config.task}, got {behaviour.task.name}")
    masked = MaskedModel(model, depth=depth)
    puzzles = behaviour.task.split("train", limit=MEAN_PUZZLES).puzzles
    masked.learn_means(torch.from_numpy(puzzles.astype("int64")))
    return masked


def check_target(model: MaskedModel, behaviour: Behaviour, target: float, name: str = "") -> None:
    """Raises `ValueError` for a target that no model misses, or that the whole model does not reach on the pairs that
    circuits are found on; `name` is then the model's in the message."""
    if not 0 < target < np.log(2):
        raise ValueError(f"target must be above 0 and below log 2 (a model that cannot tell), got {target:g}")
    found_on, _ = behaviour.halves()
    with torch.no_grad():
        own = float(BehaviourJudge(model, found_on).loss(None))
    if own > target:
        of = f" ({name})" if name else ""
        raise ValueError(f"target must be at least the whole model's loss, {own:.3f}{of}, got {target:g}")


def study(
    model: MaskedModel,
    behaviour: Behaviour,
    *,
    target: float = TARGET,
    steps: int = STEPS,
    has_control: bool = False,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[dict[str, Any], Graph]:
    """The circuit's figures and its graph. `has_control` prunes for shuffled labels too.

    Raises `ValueError` as `check_target`.
    """
    check_target(model, behaviour, target)
    found_on, judged_on = behaviour.halves()
    circuit = prune(model, found_on, target, steps=steps, on_step=on_step)
    everything = {site: torch.ones(size) for site, size in model.sizes.items()}
    figures = {
        "version": VERSION,
        "behaviour": behaviour.name,
        "description": behaviour.description,
        "task": behaviour.task.name,
        "depth": model.depth,
        "target": target,
        "steps": steps,
        "pairs_found_on": len(found_on.puzzles) // 2,
        "pairs_judged_on": len(judged_on.puzzles) // 2,
        **_size(model, behaviour, circuit),
        "nodes_of": sum(model.sizes.values()),
        "edges_of": count_edges(model, behaviour, everything),
        "nodes_by_site": {site: int(mask.sum()) for site, mask in circuit.masks.items()},
        "whole": _judged(model, judged_on, None),
        "circuit": _judged(model, judged_on, circuit.masks),
        "ablated": _judged(model, judged_on, {site: 1 - mask for site, mask in circuit.masks.items()}),
        "random": _random(model, judged_on, circuit, seed),
        "control": None,
    }
    if has_control:
        control = prune(model, found_on.shuffled(seed), target, steps=steps, on_step=on_step)
        figures["control"] = _size(model, behaviour, control)
    return figures, graph_of(model, behaviour, circuit.masks)


def _size(model: MaskedModel, behaviour: Behaviour, circuit: Circuit) -> dict[str, Any]:
    return {
        "is_reached": circuit.is_reached,
        "loss": circuit.loss,
        "nodes": circuit.nodes,
        "edges": count_edges(model, behaviour, circuit.masks),
    }


@torch.no_grad()
def _judged(model: MaskedModel, behaviour: Behaviour, masks: Masks | None) -> dict[str, float]:
    """Loss, and share of puzzles where the right value is ahead of the wrong one."""
    margins = BehaviourJudge(model, behaviour).margins(masks)
    is_right = (margins > 0).numpy().astype(float)
    low, high = clustered_interval(is_right, behaviour.pairs)
    loss = float(torch.nn.functional.softplus(-margins).mean())
    return {"loss": loss, "accuracy": float(is_right.mean()), "low": low, "high": high}


def _random(model: MaskedModel, behaviour: Behaviour, circuit: Circuit, seed: int) -> dict[str, float]:
    """The mean over circuits of as many nodes of each site, drawn at random."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        masks = {site: mask[torch.from_numpy(rng.permutation(len(mask)))] for site, mask in circuit.masks.items()}
        drawn.append(_judged(model, behaviour, masks))
    return {name: float(np.mean([each[name] for each in drawn])) for name in ("loss", "accuracy")}
