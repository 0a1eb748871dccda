"""A circuit as a graph: kept nodes, and the nonzero weights between them.

Beside the nodes that were pruned (`masked.py`) stand those that are not: the symbols of the behaviour's puzzles, which
the embedding reads (`token.3`), the values that the decoder writes (`value.3`), and places where positions are learned
or a SwiGLU mixes tokens (`place.0`). An edge is one weight; gate and up of a hidden unit are two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals.circuits.behaviour import Behaviour
from gram.evals.circuits.masked import PRIOR, STATE, MaskedModel, Masks
from gram.tasks.protocol import BLANK


@dataclass(frozen=True)
class Edge:
    """One weight, by which its target reads its source."""

    source: str
    target: str
    weight: float
    matrix: str


@dataclass(frozen=True)
class Graph:
    """Nodes in order, and edges."""

    nodes: list[dict[str, Any]]
    """`id`, `kind` (token, place, state, mixer, channel, prior, value), `words`, `reads` and `writes` (how many edges
    end and start there)."""
    edges: list[Edge]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"nodes": self.nodes, "edges": [asdict(edge) for edge in self.edges]}


class Joint(NamedTuple):
    """The weights between two groups of kept nodes."""

    matrix: str
    table: NDArray[np.float32]
    """`[targets, sources]`."""
    sources: list[str]
    targets: list[str]


def joints(model: MaskedModel, behaviour: Behaviour, masks: Masks) -> Iterator[Joint]:
    """All weights between the nodes that `masks` keep, matrix by matrix."""
    spec = model.spec
    weights = {name: weight.numpy() for name, weight in model.weights.items()}
    kept = {site: np.flatnonzero(mask.numpy() > 0) for site, mask in masks.items()}
    channels = kept[STATE]
    states = _names(STATE, channels)
    places = _names("place", np.arange(spec.length))
    tokens, values = np.unique(behaviour.puzzles), np.unique([behaviour.right, behaviour.wrong])
    read = [f"token.{_symbol(behaviour, token)}" for token in tokens]
    yield Joint("embedding", weights["embedding.weight"][tokens][:, channels].T, read, states)
    if "positions" in weights:
        yield Joint("positions", weights["positions"][:, channels].T, places, states)
    for site, units in kept.items():
        if site == STATE:
            continue
        names, (gate, up) = _names(site, units), np.split(weights[site + ".gate_up"], 2)
        is_over_places = site.endswith("mixer") and spec.mixer == "token"
        ends, at = (places, np.arange(spec.length)) if is_over_places else (states, channels)
        yield Joint(site + ".gate", gate[units][:, at], ends, names)
        yield Joint(site + ".up", up[units][:, at], ends, names)
        yield Joint(site + ".down", weights[site + ".down"][at][:, units], names, ends)
    written = [f"value.{_symbol(behaviour, value)}" for value in values]
    yield Joint("decoder", weights["decoder.weight"][values][:, channels], states, written)


def count_edges(model: MaskedModel, behaviour: Behaviour, masks: Masks) -> int:
    """Nonzero weights between the nodes that `masks` keep."""
    return sum(int(np.count_nonzero(joint.table)) for joint in joints(model, behaviour, masks))


def graph_of(model: MaskedModel, behaviour: Behaviour, masks: Masks) -> Graph:
    """The graph of the nodes that `masks` keep."""
    edges: list[Edge] = []
    ids: dict[str, None] = {}
    for joint in joints(model, behaviour, masks):
        ids |= dict.fromkeys(name for name in (*joint.sources, *joint.targets) if not name.startswith("place."))
        for row, column in np.argwhere(joint.table).tolist():
            edges.append(Edge(joint.sources[column], joint.targets[row], float(joint.table[row, column]), joint.matrix))
    reads, writes = Counter(edge.target for edge in edges), Counter(edge.source for edge in edges)
    ids |= dict.fromkeys(name for name in (*writes, *reads) if name.startswith("place."))
    nodes = [
        {
            "id": name,
            "kind": _kind(name),
            "words": _words(model, name),
            "reads": reads[name],
            "writes": writes[name],
        }
        for name in ids
    ]
    return Graph(nodes, edges)


def _names(site: str, numbers: NDArray[np.int64]) -> list[str]:
    return [f"{site}.{number}" for number in numbers.tolist()]


def _symbol(behaviour: Behaviour, token: int) -> str:
    return "blank" if token == BLANK else behaviour.task.symbols[token]


def _kind(name: str) -> str:
    site = name.rpartition(".")[0]
    return site.rpartition(".")[2] if site.count(".") else site


def _words(model: MaskedModel, name: str) -> str:
    """What a node is, as far as its place says."""
    site, _, number = name.rpartition(".")
    kind = _kind(name)
    if kind == "mixer":
        if model.spec.mixer == "token":
            return "carries from place to place"
        relations = model.spec.relations
        return f"sums over {relations[int(number) * len(relations) // model.sizes[site]]}"
    known = {PRIOR: "moves the state at the start of a transition", "channel": "works within a token"}
    return known.get(kind, {STATE: "channel of the state", "token": "symbol of a puzzle"}.get(kind, kind))
