"""Canonical forms of graphs: equal exactly for isomorphic graphs, held against networkx."""

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.canonical_graphs import canonical, invariants


def adjacency(n, edges):
    joined = np.zeros((n, n), dtype=bool)
    for a, b in edges:
        joined[a, b] = joined[b, a] = True
    return joined


GRAPHS = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])),
        st.permutations(range(n)),
    )
)


@given(GRAPHS)
def test_renamed_graphs_have_one_form_that_is_theirs(graph):
    n, edges, names = graph
    joined = adjacency(n, edges)
    renamed = joined[np.ix_(names, names)]
    both = np.stack([joined, renamed])
    found = canonical(both)
    assert np.array_equal(found.forms[0], found.forms[1])
    assert invariants(both)[0] == invariants(both)[1]
    first, second = (one[np.ix_(order, order)] for one, order in zip(both, found.orders, strict=True))
    assert np.array_equal(first, second)
    assert sorted(found.orders[0].tolist()) == list(range(n))


@settings(max_examples=60)
@given(GRAPHS, st.lists(st.integers(0, 90), min_size=2, max_size=2))
def test_forms_tell_graphs_apart_as_networkx_does(graph, moved):
    """Against a graph that differs in one edge moved: as many edges, often isomorphic, often not."""
    n, edges, names = graph
    joined = adjacency(n, edges)
    pairs = np.argwhere(np.triu(np.ones((n, n), dtype=bool), 1))
    other = joined[np.ix_(names, names)]
    for place in moved if len(pairs) else []:
        a, b = pairs[place % len(pairs)]
        other[a, b] = other[b, a] = not other[a, b]
    same = nx.is_isomorphic(nx.from_numpy_array(joined), nx.from_numpy_array(other))
    forms = canonical(np.stack([joined, other])).forms
    assert np.array_equal(forms[0], forms[1]) == same


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 2), (3, 4), (4, 11), (5, 34), (6, 156)])
def test_as_many_forms_as_there_are_graphs(n, count):
    pairs = list(itertools.combinations(range(n), 2))
    bits = np.arange(2 ** len(pairs))[:, None] >> np.arange(len(pairs)) & 1
    every = np.zeros((len(bits), n, n), dtype=bool)
    for place, (a, b) in enumerate(pairs):
        every[:, a, b] = every[:, b, a] = bits[:, place]
    assert len(np.unique(canonical(every).forms, axis=0)) == count


@pytest.mark.parametrize(
    "graph",
    [
        nx.empty_graph(14), nx.complete_graph(14), nx.cycle_graph(14), nx.petersen_graph(),
        nx.complete_bipartite_graph(7, 7), nx.heawood_graph(), nx.icosahedral_graph(),
        nx.disjoint_union_all([nx.path_graph(2)] * 7), nx.hypercube_graph(3),
        nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)), nx.cycle_graph(6),
    ],
)  # fmt: skip
def test_graphs_with_many_symmetries_have_one_form_too(graph):
    joined = nx.to_numpy_array(graph).astype(bool)
    names = np.random.default_rng(0).permutation(len(joined))
    forms = canonical(np.stack([joined, joined[np.ix_(names, names)]])).forms
    assert np.array_equal(forms[0], forms[1])


def test_regular_graphs_of_one_degree_have_forms_of_their_own():
    """Refinement of colours alone cannot tell these apart; the search does."""
    pairs = [
        (nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))),
        (nx.cycle_graph(9), nx.disjoint_union(nx.cycle_graph(4), nx.cycle_graph(5))),
        (nx.circular_ladder_graph(5), nx.petersen_graph()),
    ]
    for one, other in pairs:
        forms = canonical(np.stack([nx.to_numpy_array(graph).astype(bool) for graph in (one, other)])).forms
        assert not np.array_equal(forms[0], forms[1])


def test_graphs_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match="at most 14 nodes for its canonical form, got 15"):
        canonical(np.zeros((1, 15, 15), dtype=bool))
    assert canonical(np.zeros((0, 5, 5), dtype=bool)).forms.shape == (0, 2)
