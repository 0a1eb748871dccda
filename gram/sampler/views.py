"""Views: each trajectory sees its puzzle under a symmetry of its own, and its answer is turned back.

A view belongs to a state. It follows from the seed, the puzzle and the trajectory that the state descends from (its
lineage), and from nothing else. So a state keeps its view when resampling copies it to another trajectory, and when it
waits or moves. Noise is keyed by the puzzle as given and by the trajectory, so views change no noise. Trajectory 0 sees
the puzzle as it is.

Shapes: `k` some slots, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gram.kernels.philox import Site, random_words
from gram.tasks.protocol import Task, Tokens, Views

Rows = NDArray[np.int64]


def check_views(task: Task, *, is_unconditional: bool) -> None:
    """Refuses random views of what has none, before anything is sampled or trained. Raises `ValueError`."""
    if is_unconditional:
        raise ValueError("views must be off where no puzzle is shown (unconditional samples), got random")
    if not task.symmetry_words:
        raise ValueError(f"views must be off for {task.name}, which knows no symmetry, got random")


def draw_views(task: Task, seed: int, puzzles: Tokens, hashes: Rows, lineages: Rows) -> Views:
    """The views of states on puzzles `[k, L]` of these hashes that descend from trajectories `lineages [k]`.

    Raises `ValueError` where a user's task turns puzzles into what are none.
    """
    words = random_words(task.symmetry_words, seed, hashes, lineages, Site.VIEW)
    words[lineages == 0] = 0
    views = task.symmetry(puzzles, words)
    if not views.is_consistent(task.output_tokens):
        raise ValueError(f"symmetry of {task.name} must move and rename tokens one to one, got tables that do not")
    turned = views.apply(puzzles)
    if not task.is_input(turned).all() or not np.array_equal(turned[lineages == 0], puzzles[lineages == 0]):
        raise ValueError(f"symmetry of {task.name} must make puzzles, and leave them as they are by words of 0")
    return views


class SlotViews:
    """The views of the states in all slots."""

    def __init__(self, task: Task, seed: int, count: int) -> None:
        self.task, self.seed, self.count = task, seed, count
        self.views: Views | None = None
        """One for each slot, from the first states on."""

    def place(self, rows: Rows, puzzles: Tokens, hashes: Rows, lineages: Rows) -> Tokens:
        """Gives slots `rows` the views of states on puzzles `[k, L]`; returns the puzzles as these see them."""
        views = draw_views(self.task, self.seed, puzzles, hashes, lineages)
        if self.views is None:
            self.views = views.at(np.zeros(self.count, np.int64))
        self.views.put(rows, views)
        return views.apply(puzzles)

    def reserve(self, count: int) -> None:
        """Makes room for `count` slots."""
        if self.views is not None:
            self.views = self.views.at(np.minimum(np.arange(count), self.count - 1))
        self.count = count

    def move(self, source: Rows, target: Rows) -> None:
        """Copies the views of slots `source` over those of slots `target`."""
        assert self.views is not None
        self.views.put(target, self.views.at(source))

    def undo(self, rows: Rows, answers: Tokens) -> Tokens:
        """Decoded answers `[k, A]` of slots `rows`, turned back to the puzzles as given."""
        assert self.views is not None
        return self.views.at(rows).undo(answers)
