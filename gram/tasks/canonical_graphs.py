"""Canonical forms of small graphs: two graphs have one form exactly where one is the other with its nodes renamed.

Shapes: `P` graphs, `n` nodes (up to 14), `S` states of the search. A graph is its symmetric adjacency `[n, n]`.

The search refines colours of nodes (a node's colour and those of its neighbours) until they stay, then makes one node
of the first class with several members special and refines again, once for each such node. Of the discrete colourings
at the end, the one with the least adjacency gives the form. Nodes of a class that have the same other neighbours are
interchangeable: one of them is enough. All states of all graphs advance together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_NODES = 14
"""Pairs of 14 nodes are 91 bits of the two words of a form; a node's colour takes four bits of a key."""
BLOCK = 2048
"""Graphs searched at once."""
ROUNDS = 3
"""Refinements of `invariants`; more tell hardly more graphs of 12 nodes apart."""

Words = NDArray[np.uint64]


class Canonical(NamedTuple):
    """Canonical forms of `P` graphs."""

    forms: Words
    """Adjacency of the form as bits, `[P, 2]`."""
    orders: NDArray[np.int64]
    """Node of the graph that stands at each place of the form, `[P, n]`."""


def mixed(values: Words) -> Words:
    """A hash of each number (the finaliser of splitmix64); sums of them tell multisets apart."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def invariants(joined: NDArray[np.bool_]) -> Words:
    """A number for each graph `[P, n, n]` that isomorphic graphs share, `[P]`; few others do. Cheap: no search."""
    edges = joined.astype(np.float32)
    degree = edges.sum(2)
    triangles = ((edges @ edges) * edges).sum(2)
    colours = mixed((degree * np.float32(256) + triangles).astype(np.uint64) + np.uint64(1))
    near = joined.astype(np.uint64)
    for _ in range(ROUNDS):
        around = (near @ mixed(colours + np.uint64(1))[:, :, None])[:, :, 0]
        colours = mixed(colours * np.uint64(3) + around)
    return mixed(colours.sum(1, dtype=np.uint64))


def canonical(joined: NDArray[np.bool_]) -> Canonical:
    """Canonical form of each graph `[P, n, n]`. Raises `ValueError` above 14 nodes."""
    n = joined.shape[1]
    if n > MOST_NODES:
        raise ValueError(f"graph must have at most {MOST_NODES} nodes for its canonical form, got {n}")
    found = [_search(joined[first : first + BLOCK]) for first in range(0, len(joined), BLOCK)]
    if not found:
        return Canonical(np.zeros((0, 2), np.uint64), np.zeros((0, n), np.int64))
    return Canonical(np.concatenate([one.forms for one in found]), np.concatenate([one.orders for one in found]))


def _search(joined: NDArray[np.bool_]) -> Canonical:
    count, n, _ = joined.shape
    near = joined.astype(np.uint64)
    twins = _twins(joined)
    owner = np.arange(count)
    colours = _refined(near, np.zeros((count, n), dtype=np.int64))
    leaves: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    while len(owner):
        is_done = colours.max(1) == n - 1
        leaves.append((owner[is_done], colours[is_done]))
        owner, colours = owner[~is_done], colours[~is_done]
        if len(owner):
            owner, colours = _branched(near, twins, owner, colours)
    owner = np.concatenate([one for one, _ in leaves])
    orders = np.concatenate([found for _, found in leaves]).argsort(1)
    forms = _words(joined[owner[:, None, None], orders[:, :, None], orders[:, None, :]])
    best = np.lexsort((forms[:, 1], forms[:, 0], owner))
    first = np.searchsorted(owner[best], np.arange(count))
    return Canonical(forms[best[first]], orders[best[first]])


def _twins(joined: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether an earlier node `v` has the same neighbours as `u`, apart from these two: `[P, u, v]`."""
    edges = joined.astype(np.float32)
    degree = edges.sum(2)
    differ = degree[:, :, None] + degree[:, None, :] - 2 * (edges @ edges)
    n = joined.shape[1]
    return np.asarray((differ == 2 * edges) & np.tri(n, k=-1, dtype=bool))


def _branched(
    near: Words, twins: NDArray[np.bool_], owner: NDArray[np.int64], colours: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every state once for each node of its first class with several members that no earlier twin there stands for."""
    n = colours.shape[1]
    same = colours[:, :, None] == colours[:, None, :]
    size = same.sum(2)
    cell = np.where(size > 1, colours, n).min(1)
    is_open = colours == cell[:, None]
    is_open &= ~(twins[owner] & is_open[:, None, :]).any(2)
    state, node = np.nonzero(is_open)
    chosen = 2 * colours[state] + 1
    chosen[np.arange(len(state)), node] -= 1
    return owner[state], _refined(near[owner[state]], _ranked(chosen))


def _refined(near: Words, colours: NDArray[np.int64]) -> NDArray[np.int64]:
    """The coarsest finer colouring `[S, n]` in which nodes of a colour have as many neighbours of every colour."""
    colours = colours.copy()
    rows = np.arange(len(colours))
    while len(rows):
        old = colours[rows]
        around = (near[rows] @ mixed(old.astype(np.uint64) + np.uint64(1))[:, :, None])[:, :, 0]
        # The colour leads, so that classes only ever part; a clash of hashes would merge the same in isomorphic graphs.
        new = _ranked(old.astype(np.uint64) << np.uint64(60) | around >> np.uint64(4))
        colours[rows] = new
        rows = rows[new.max(1) > old.max(1)]
    return colours


def _ranked(keys: NDArray[np.uint64] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each key among the different ones of its row, `[S, n]`."""
    order = keys.argsort(1, kind="stable")
    ordered = np.take_along_axis(keys, order, 1)
    place = np.zeros(keys.shape, dtype=np.int64)
    place[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    ranks = np.empty_like(place)
    np.put_along_axis(ranks, order, place, 1)
    return ranks


def _words(joined: NDArray[np.bool_]) -> Words:
    """The strict upper triangles of graphs `[S, n, n]` as bits, `[S, 2]`."""
    bits = joined[:, *np.triu_indices(joined.shape[1], 1)]
    padded = np.zeros((len(bits), 128), dtype=bool)
    padded[:, : bits.shape[1]] = bits
    return np.packbits(padded, axis=1).view(">u8").astype(np.uint64)
