"""The random graphs of colouring, and which train, which choose and which test: no held-out graph is isomorphic to a
training graph.

Shapes: `n` nodes, `E = n (n - 1) / 2` pairs of nodes, `P` graphs as edges `[P, E]`, `C` canonical colourings.

A graph belongs to a part by a number that isomorphic graphs share (`canonical_graphs.invariants`), so the endless
stream of training needs no list of what is held out. `labelled-train` and `labelled-test` are the older splits, which
differ as labelled graphs alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.tasks import canonical_graphs
from gram.tasks.puzzle_sets import PARTS, TEST_PER_CENT, VALIDATION_PER_CENT, dealt

Edges = NDArray[np.bool_]
Keep = Callable[[Edges], NDArray[np.bool_]]

TRAINING = ("train", "labelled-train")
"""Endless splits."""
MOST = {"test": 1000, "validation": 300, "labelled-test": 1000}
"""Graphs of the splits that end."""
STREAMS: dict[str, tuple[int, ...]] = {
    "labelled-test": (), "labelled-train": (1,), "train": (2,), "validation": (3,), "test": (4,)
}  # fmt: skip
"""Random numbers of each split."""
FEW_VALIDATION_PER_CENT = 10
"""Of the few classes of up to 5 nodes."""
TABLE_GRAPHS = 200_000
"""Training graphs of the table, drawn as training draws them: about as many as a run of ten minutes sees."""
TABLE_SEED = 1
TABLE_BLOCK = 2000
SMALL_PAIRS = 10
"""Up to 5 nodes there are at most 1,024 labelled graphs."""
LABELLED_TEST_SHARE = 0.15
"""Of those few graphs."""
BLOCK = 200
"""Graphs made at once for an endless split."""
SEED = 0


class GraphSplits:
    """Random 3-colourable graphs of one size, split."""

    def __init__(
        self, n: int, edge_probability: float, proper: Callable[[Edges], NDArray[np.bool_]], most: int
    ) -> None:
        """`proper` says which colourings each graph `[P, E]` has, `[P, C]`, of at most `most` graphs at once."""
        self.n, self.edge_probability, self.proper, self.most = n, edge_probability, proper, most
        self.pairs = np.array(np.triu_indices(n, 1)).T
        self._held_out: dict[str, Edges] = {}

    def joined(self, edges: Edges) -> NDArray[np.bool_]:
        """Adjacency of each graph, `[P, n, n]`."""
        joined = np.zeros((len(edges), self.n, self.n), dtype=bool)
        joined[:, self.pairs[:, 0], self.pairs[:, 1]] = edges
        return joined | joined.transpose(0, 2, 1)

    @cached_property
    def _fours(self) -> NDArray[np.float32]:
        """Which pairs of nodes lie within each four nodes, `[E, Q]`."""
        fours = [set(nodes) for nodes in itertools.combinations(range(self.n), 4)]
        return np.array([[set(pair) <= four for four in fours] for pair in self.pairs.tolist()], dtype=np.float32)

    def _may_be_colourable(self, edges: Edges) -> NDArray[np.bool_]:
        """False where four nodes are all joined, `[P]`: a cheap test to spare most of the dear one."""
        return np.asarray(~(edges.astype(np.float32) @ self._fours == 6).any(1))

    def draw(self, rng: np.random.Generator, count: int, name: str) -> tuple[Edges, NDArray[np.bool_]]:
        """`count` graphs of a split and their proper colourings, from `rng` alone."""
        keep = self._keep(name)
        graphs, valid = [], []
        missing = count
        while missing > 0:
            rows = min(max(8, missing * 2), self.most)
            drawn = rng.random((rows, len(self.pairs))) < self.edge_probability
            drawn = drawn[self._may_be_colourable(drawn)]
            if keep is not None:
                drawn = drawn[keep(drawn)]
            proper = self.proper(drawn)
            kept = np.flatnonzero(proper.any(1))[:missing]
            graphs.append(drawn[kept])
            valid.append(proper[kept])
            missing -= len(kept)
        return np.concatenate(graphs), np.concatenate(valid)

    def _keep(self, name: str) -> Keep | None:
        """What tells the graphs of a split from others; None where all belong to it."""
        if name == "labelled-test":
            return None
        if name == "labelled-train":
            return lambda edges: ~np.isin(_keys(edges), self._labelled_test_keys)
        return lambda edges: self._parts_of(edges) == PARTS.index(name)

    def _parts_of(self, edges: Edges) -> NDArray[np.int64]:
        """Index in `PARTS` of each graph, by a hash of its invariant, or dealt out where there are few classes."""
        number = canonical_graphs.invariants(self.joined(edges))
        if len(self.pairs) <= SMALL_PAIRS:
            classes, parts = self._few_parts
            return np.asarray(parts[np.searchsorted(classes, number).clip(max=len(parts) - 1)], dtype=np.int64)
        share = number % np.uint64(100)
        return np.where(share < TEST_PER_CENT, 2, np.where(share < TEST_PER_CENT + VALIDATION_PER_CENT, 1, 0))

    @cached_property
    def _few_parts(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Invariants of all classes, and the part of each: at least one for every part."""
        classes = np.unique(canonical_graphs.invariants(self.joined(self._every)))
        return classes, dealt(len(classes), SEED, TEST_PER_CENT / 100, FEW_VALIDATION_PER_CENT / 100)

    @cached_property
    def _every(self) -> Edges:
        """All 3-colourable labelled graphs, where there are few."""
        edges = (np.arange(2 ** len(self.pairs))[:, None] >> np.arange(len(self.pairs)) & 1).astype(bool)
        colourable: Edges = edges[self.proper(edges).any(1)]
        return colourable

    @cached_property
    def _labelled_test_keys(self) -> NDArray[Any]:
        return np.unique(_keys(self.held_out("labelled-test")))

    def size(self, name: str) -> int | None:
        """Graphs of a split, None where it is endless. Up to 5 nodes a share of the few there are."""
        most = MOST.get(name)
        if most is None or len(self.pairs) > SMALL_PAIRS:
            return most
        keep = self._keep(name)
        share = LABELLED_TEST_SHARE * len(self._every) if keep is None else keep(self._every).sum()
        return min(most, max(1, int(share)))

    def held_out(self, name: str) -> Edges:
        """The graphs of a split that ends, all different as labelled graphs."""
        if name not in self._held_out:
            rng, size = np.random.default_rng([SEED, self.n, *STREAMS[name]]), self.size(name)
            assert size is not None
            graphs = np.zeros((0, len(self.pairs)), dtype=bool)
            while len(graphs) < size:
                graphs = np.concatenate([graphs, self.draw(rng, size, name)[0]])
                graphs = graphs[np.sort(np.unique(graphs, axis=0, return_index=True)[1])]
            self._held_out[name] = graphs[:size]
        return self._held_out[name]

    def stream(self, name: str, count: int) -> Edges:
        """The first `count` graphs of an endless split: in blocks, so that a smaller count gives the first of these."""
        rng = np.random.default_rng([SEED, self.n, *STREAMS[name]])
        blocks = [self.draw(rng, BLOCK, name)[0] for _ in range(-(-count // BLOCK))]
        return np.concatenate([np.zeros((0, len(self.pairs)), dtype=bool), *blocks])[:count]


def _keys(edges: Edges) -> NDArray[Any]:
    """The edges of each labelled graph as bits, for comparing whole graphs."""
    bits = np.packbits(edges, axis=1)
    return np.ascontiguousarray(bits).view(f"V{bits.shape[1]}").ravel()


def known_colourings(
    splits: GraphSplits, asked: Edges, training: str, colourings: NDArray[np.uint8], *, most: int = TABLE_GRAPHS
) -> NDArray[np.uint8]:
    """What a table of training graphs knows of held-out ones: a proper colouring `[P, n]` of each graph `asked`.

    It is that of an isomorphic graph, nodes renamed, among the first `most` of the split `training`; 0 where there is
    none. `colourings` is the list `[C, n]` that `splits.proper` speaks of.
    """
    joined = splits.joined(asked)
    numbers = canonical_graphs.invariants(joined)
    forms = canonical_graphs.canonical(joined)
    open_by_form: dict[bytes, list[int]] = {}
    for place, form in enumerate(forms.forms):
        open_by_form.setdefault(form.tobytes(), []).append(place)
    found = np.zeros((len(asked), splits.n), dtype=np.uint8)
    rng = np.random.default_rng([TABLE_SEED, splits.n])
    for first in range(0, most, TABLE_BLOCK):
        drawn, proper = splits.draw(rng, min(TABLE_BLOCK, most - first), training)
        seen = splits.joined(drawn)
        # Canonical forms only of those that may be isomorphic at all.
        near = np.flatnonzero(np.isin(canonical_graphs.invariants(seen), numbers))
        theirs = canonical_graphs.canonical(seen[near])
        for form, order, row in zip(theirs.forms, theirs.orders, near.tolist(), strict=True):
            for mine in open_by_form.pop(form.tobytes(), ()):
                found[mine, forms.orders[mine]] = colourings[proper[row].argmax()][order]
    return found
