"""What a table of training graphs knows of held-out ones: the colouring of an isomorphic training graph, nodes renamed.

Shapes: `n` nodes, `P` graphs as edges `[P, E]`, `C` canonical colourings of n nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gram.tasks import canonical_graphs
from gram.tasks.colouring_splits import Edges, GraphSplits

GRAPHS = 200_000
"""Training graphs of the table, drawn as training draws them: about as many as a run of ten minutes sees."""
SEED = 1
BLOCK = 2000


def known_colourings(
    splits: GraphSplits, asked: Edges, training: str, colourings: NDArray[np.uint8], *, most: int = GRAPHS
) -> NDArray[np.uint8]:
    """A proper colouring `[P, n]` of each graph `asked` that has an isomorphic one among the first `most` of the split
    `training`; 0 where it has none. `colourings` is the list `[C, n]` that `splits.proper` speaks of."""
    joined = splits.joined(asked)
    numbers = canonical_graphs.invariants(joined)
    forms = canonical_graphs.canonical(joined)
    open_by_form: dict[bytes, list[int]] = {}
    for place, form in enumerate(forms.forms):
        open_by_form.setdefault(form.tobytes(), []).append(place)
    found = np.zeros((len(asked), splits.n), dtype=np.uint8)
    rng = np.random.default_rng([SEED, splits.n])
    for first in range(0, most, BLOCK):
        drawn, proper = splits.draw(rng, min(BLOCK, most - first), training)
        seen = splits.joined(drawn)
        # Canonical forms only of those that may be isomorphic at all.
        near = np.flatnonzero(np.isin(canonical_graphs.invariants(seen), numbers))
        theirs = canonical_graphs.canonical(seen[near])
        for form, order, row in zip(theirs.forms, theirs.orders, near.tolist(), strict=True):
            for mine in open_by_form.pop(form.tobytes(), ()):
                found[mine, forms.orders[mine]] = colourings[proper[row].argmax()][order]
    return found
