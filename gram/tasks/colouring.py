"""3-colouring of small random graphs; solutions are counted up to a renaming of the colours.

Shapes: `n` nodes, `E = n (n - 1) / 2` edge tokens (strict upper triangle, row by row: 0-1, 0-2, ... 1-2, ...), then `n`
output tokens whose input is padding: `L = E + n`, `A = n`. Tokens: 1 no edge, 2 edge, 3 to 5 colours. `P` puzzles,
`C` canonical colourings of n nodes. Splits: `gram/tasks/colouring_splits.py`.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gram.tasks import canonical_graphs, parsing
from gram.tasks.colouring_splits import MOST, TABLE_GRAPHS, TRAINING, GraphSplits, known_colourings
from gram.tasks.dimacs import is_dimacs, is_number, read_dimacs
from gram.tasks.protocol import Board, BoardCell, CellKind, Lookup, PuzzleError, PuzzleSet, Task, Tokens, training_split
from gram.tasks.puzzle_sets import PARTS
from gram.tasks.views import Views, permutations, same_values

NO_EDGE, EDGE, FIRST_COLOUR, COLOURS = 1, 2, 3, 3
SIZES = range(3, 15)
EDGE_PROBABILITY = {8: 0.5, 10: 0.4, 13: 0.3, 14: 0.3}
DEFAULT_EDGE_PROBABILITY = 0.5
FIRST_GRAPHS = 1000
"""Of an endless split, where no limit is given."""
LETTERS = "ABC"


class Colouring(Task):
    """The task `colouringN`."""

    family = "colouring"
    relations = ("graph", "all")
    vocabulary = 6
    has_comments = False
    splits = (*PARTS, "labelled-train", "labelled-test")

    def __init__(self, n: int) -> None:
        if n not in SIZES:
            raise ValueError(f"colouring graph must have {SIZES.start} to {SIZES.stop - 1} nodes, got {n}")
        self.n = n
        self.name = f"colouring{n}"
        self.output_start = n * (n - 1) // 2
        self.output_tokens = n
        self.tokens = self.output_start + n
        self.symmetry_words = n
        self.edge_probability = EDGE_PROBABILITY.get(n, DEFAULT_EDGE_PROBABILITY)
        self.pairs = np.array(np.triu_indices(n, 1)).T
        self.summary = f"3-colouring of G({n}, {self.edge_probability:g}) random graphs; colours may be renamed"

    @cached_property
    def _colourings(self) -> Tokens:
        """Every colouring of n nodes with at most three colours, colours in order of first use: `[C, n]`."""
        rows = np.full((1, 1), FIRST_COLOUR, dtype=np.uint8)
        for _ in range(self.n - 1):
            choices = np.minimum(rows.max(1) + 1, FIRST_COLOUR + COLOURS - 1).astype(np.int64) - FIRST_COLOUR + 1
            of_row = np.arange(choices.sum()) - np.repeat(choices.cumsum() - choices, choices)
            colours = (FIRST_COLOUR + of_row).astype(np.uint8)
            rows = np.concatenate([np.repeat(rows, choices, axis=0), colours[:, None]], axis=1)
        return rows

    @cached_property
    def _same_colour(self) -> NDArray[np.float32]:
        """Which pairs of nodes each colouring paints alike, `[E, C]`."""
        first, second = self._colourings[:, self.pairs[:, 0]], self._colourings[:, self.pairs[:, 1]]
        return np.ascontiguousarray((first == second).T.astype(np.float32))

    def _edges(self, puzzles: Tokens) -> NDArray[np.bool_]:
        """Edges `[P, E]` of puzzles `[P, L]`."""
        return np.asarray(puzzles[:, : self.output_start] == EDGE)

    def _puzzles(self, edges: NDArray[np.bool_]) -> Tokens:
        """Puzzles `[P, L]` of edges `[P, E]`."""
        puzzles = np.zeros((len(edges), self.tokens), dtype=np.uint8)
        puzzles[:, : self.output_start] = np.where(edges, EDGE, NO_EDGE)
        return puzzles

    def _proper(self, edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which colourings are proper for each graph `[P, E]`, `[P, C]`."""
        return np.asarray(edges.astype(np.float32) @ self._same_colour == 0)

    def _valid(self, puzzles: Tokens) -> NDArray[np.bool_]:
        """The same of puzzles `[P, L]`."""
        return self._proper(self._edges(puzzles))

    @cached_property
    def _graphs(self) -> GraphSplits:
        return GraphSplits(self.n, self.edge_probability, self._proper, self._most_rows)

    @property
    def _most_rows(self) -> int:
        """Graphs to hold against all colourings at once, so that 14 nodes fit in memory too."""
        return max(8, 2**24 // len(self._colourings))

    def _first_colourings(self, graphs: Tokens) -> Tokens:
        """The first proper colouring of each graph, `[P, n]`."""
        chunks = (graphs[start : start + self._most_rows] for start in range(0, max(1, len(graphs)), self._most_rows))
        first = np.concatenate([self._valid(chunk).argmax(1) for chunk in chunks])
        colourings: Tokens = self._colourings[first]
        return colourings

    def split_size(self, name: str = "test") -> int | None:
        self.check_split(name)
        return self._graphs.size(name)

    def split(self, name: str = "test", *, limit: int | None = None) -> PuzzleSet:
        """`test`, `validation`: different labelled graphs; `train` is endless, its first 1,000 where there is no limit.

        Groups are canonical graphs: isomorphic ones stand and fall together.
        """
        self.check_split(name)
        if name in MOST:
            edges = self._graphs.held_out(name)[:limit]
        else:
            edges = self._graphs.stream(name, FIRST_GRAPHS if limit is None else limit)
        graphs = self._puzzles(edges)
        return PuzzleSet(puzzles=graphs, answers=self._first_colourings(graphs), groups=self.classes(graphs))

    def classes(self, puzzles: Tokens) -> NDArray[np.int64]:
        """Class of isomorphic graphs of each puzzle `[P, L]`, numbered from 0 among these, `[P]`."""
        forms = canonical_graphs.canonical(self._graphs.joined(self._edges(puzzles))).forms
        return np.unique(forms, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def lookup(self, name: str = "test") -> Lookup:
        """Answers with the colouring of an isomorphic training graph, among the first that training draws."""
        self.check_split(name)
        training = training_split(name)
        edges = self._graphs.held_out(name)
        answers = known_colourings(self._graphs, edges, training, self._colourings)
        return Lookup(
            training=TABLE_GRAPHS,
            twins=float(answers.all(1).mean()),
            accuracy=float(self.verify(self._puzzles(edges), answers).mean()),
            rule="the colouring of an isomorphic training graph",
        )

    def training_batch(self, rng: np.random.Generator, count: int, *, split: str = "train") -> tuple[Tokens, Tokens]:
        self.check_split(split, TRAINING)
        edges, valid = self._graphs.draw(rng, count, split)
        target = np.where(valid, rng.random(valid.shape, dtype=np.float32), -1).argmax(1)
        return self._puzzles(edges), self._colourings[target]

    def symmetry(self, puzzles: Tokens, words: NDArray[np.uint32]) -> Views:
        """One word a node: nodes in the order of their words. Colours keep their names; `canonical` renames them."""
        nodes = permutations(words)
        edges = self._edge_of[nodes[:, self.pairs[:, 0]], nodes[:, self.pairs[:, 1]]]
        positions = np.concatenate([edges, self.output_start + nodes], axis=1)
        return Views(positions, same_values(len(puzzles), self.vocabulary), self.output_start)

    @cached_property
    def _edge_of(self) -> NDArray[np.int64]:
        """Place of the token of each pair of nodes, `[n, n]`; 0 on the diagonal."""
        places = np.zeros((self.n, self.n), dtype=np.int64)
        first, second = self.pairs.T
        places[first, second] = places[second, first] = np.arange(self.output_start)
        return places

    def conflicts(self, puzzles: Tokens, answers: Tokens) -> NDArray[np.int64]:
        """Edges whose ends have one colour, plus tokens that are no colour."""
        edges = puzzles[:, : self.output_start] == EDGE
        alike = answers[:, self.pairs[:, 0]] == answers[:, self.pairs[:, 1]]
        strange = (answers < FIRST_COLOUR) | (answers >= FIRST_COLOUR + COLOURS)
        return np.asarray((edges & alike).sum(1) + strange.sum(1), dtype=np.int64)

    def is_input(self, puzzles: Tokens) -> NDArray[np.bool_]:
        is_output = np.arange(self.tokens) >= self.output_start
        return np.where(is_output, puzzles == 0, np.isin(puzzles, (NO_EDGE, EDGE)))

    def canonical(self, answers: Tokens) -> Tokens:
        """Colours renamed in order of first use; tokens that are no colour stay."""
        flat = answers.reshape(-1, self.n)
        renamed = flat.copy()
        names = np.zeros((len(flat), COLOURS), dtype=np.uint8)
        used = np.zeros(len(flat), dtype=np.uint8)
        for node in range(self.n):
            is_colour = (flat[:, node] >= FIRST_COLOUR) & (flat[:, node] < FIRST_COLOUR + COLOURS)
            rows = np.flatnonzero(is_colour)
            colour = flat[rows, node] - FIRST_COLOUR
            new = names[rows, colour] == 0
            names[rows[new], colour[new]] = FIRST_COLOUR + used[rows[new]]
            used[rows[new]] += 1
            renamed[rows, node] = names[rows, colour]
        return renamed.reshape(answers.shape)

    def renamings(self, answers: Tokens) -> Tokens:
        """Colours under all permutations: six of each answer."""
        names = np.array(list(itertools.permutations(range(COLOURS))), dtype=np.uint8)
        colours = np.minimum(answers - np.uint8(FIRST_COLOUR), np.uint8(COLOURS - 1))
        is_colour = (answers >= FIRST_COLOUR) & (answers < FIRST_COLOUR + COLOURS)
        return np.where(is_colour, FIRST_COLOUR + names[:, colours], answers).astype(np.uint8)

    def solutions(self, puzzle: Tokens) -> Tokens:
        """All proper colourings of one graph, colours in order of first use, `[S, n]`; at most 797,162 (n = 14)."""
        proper: Tokens = self._colourings[self._valid(puzzle[None])[0]]
        return proper

    def count_solutions(self, puzzle: Tokens) -> int:
        return int(self._valid(puzzle[None]).sum())

    def parse(self, text: str) -> Tokens:
        """A graph: the strict upper triangle as `n (n - 1) / 2` symbols 0 and 1 (or `.` and `#`), `8: 0-1, 0-2, ...`,
        DIMACS text, or JSON `{"n": 8, "edges": [[0, 1], ...]}`."""
        return self._checked(self._dimacs(text) if is_dimacs(text) else self._parse_edges(text))

    def _checked(self, puzzle: Tokens) -> Tokens:
        if not self.count_solutions(puzzle):
            raise PuzzleError(f"{self.name} puzzle must be 3-colourable, got a graph that is not")
        return puzzle

    def _dimacs(self, text: str) -> Tokens:
        try:
            size, edges = read_dimacs(text)
        except PuzzleError as error:
            raise PuzzleError(f"{self.name} puzzle: {error}") from None
        return self._graph(size, edges, first=1)

    def _parse_edges(self, text: str) -> Tokens:
        text = text.strip()
        if text.startswith("{"):
            return self._parse_json(text)
        if ":" in text:
            size, _, edges = text.partition(":")
            pairs = [edge.split("-") for edge in re.split(r"[,\s]+", edges.strip()) if edge]
            if not is_number(size.strip()) or not all(len(pair) == 2 and all(map(is_number, pair)) for pair in pairs):
                raise PuzzleError(f"{self.name} puzzle must read like '{self.n}: 0-1, 0-2', got {text[:40]!r}")
            return self._graph(int(size), [(int(a), int(b)) for a, b in pairs])
        symbols = [symbol for symbol in text if not symbol.isspace()]
        if len(symbols) != self.output_start:
            raise PuzzleError(
                f"{self.name} puzzle must have {self.output_start} symbols 0 and 1, got {len(symbols)} "
                f"(or read like '{self.n}: 0-1, 0-2', be JSON or DIMACS)"
            )
        for place, symbol in enumerate(symbols):
            if symbol not in "01.#":
                raise PuzzleError(f"{self.name} puzzle must be of 0 and 1, got {symbol!r} at symbol {place + 1}")
        joined = [
            (int(pair[0]), int(pair[1]))
            for pair, symbol in zip(self.pairs.tolist(), symbols, strict=True)
            if symbol in "1#"
        ]
        return self._graph(self.n, joined)

    def _parse_json(self, text: str) -> Tokens:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        n = values.get("n") if isinstance(values, dict) else None
        edges = values.get("edges") if isinstance(values, dict) else None
        # Not isinstance: true is an int, and 8.9 nodes are none.
        if (
            type(n) is not int
            or not isinstance(edges, list)
            or not all(isinstance(edge, list) and [type(node) for node in edge] == [int, int] for edge in edges)
        ):
            raise PuzzleError(
                f"{self.name} puzzle must be JSON with n and edges of whole numbers, like "
                f'{{"n": {self.n}, "edges": [[0, 1]]}}, got {text[:40]!r}'
            )
        return self._graph(n, [(a, b) for a, b in edges])

    def _graph(self, size: int, edges: list[tuple[int, int]], first: int = 0) -> Tokens:
        """Tokens of a graph whose nodes are numbered from `first`."""
        if size != self.n:
            raise PuzzleError(f"{self.name} puzzle must have {self.n} nodes, got {size}")
        puzzle = np.zeros(self.tokens, dtype=np.uint8)
        puzzle[: self.output_start] = NO_EDGE
        place = {tuple(pair): index for index, pair in enumerate(self.pairs.tolist())}
        for a, b in edges:
            pair = (min(a, b) - first, max(a, b) - first)
            if pair not in place:
                raise PuzzleError(
                    f"{self.name} puzzle must join two nodes of {first} to {self.n - 1 + first}, got edge {a}-{b}"
                )
            puzzle[place[pair]] = EDGE
        return puzzle

    def parse_answer(self, text: str) -> Tokens:
        letters = [symbol for symbol in text.upper() if not symbol.isspace()]
        if len(letters) != self.n or not set(letters) <= set(LETTERS):
            raise PuzzleError(f"{self.name} answer must be {self.n} letters of {LETTERS}, got {text[:40]!r}")
        return np.array([FIRST_COLOUR + LETTERS.index(letter) for letter in letters], dtype=np.uint8)

    def load(self, path: Path | str) -> PuzzleSet:
        """Also DIMACS files, whatever they are called."""
        path = Path(path)
        text = parsing.read_text(path)
        if parsing.file_format(path) != ".col" and not is_dimacs(text):
            return parsing.load_puzzles(self, path, text)
        try:
            puzzle = self._checked(self._dimacs(text))
        except PuzzleError as error:
            raise PuzzleError(f"{path}: {error}") from None
        return PuzzleSet(puzzles=puzzle[None], groups=np.zeros(1, dtype=np.int64))

    def format(self, puzzle: Tokens, answer: Tokens | None = None) -> str:
        if answer is not None:
            return "".join(_letter(int(token)) for token in answer)
        return "".join("1" if token == EDGE else "0" for token in puzzle[: self.output_start])

    def position_features(self) -> NDArray[np.float32]:
        """Which nodes each token speaks of, and whether it is one: `[L, n + 1]`. Edges share their ends' features."""
        features = np.zeros((self.tokens, self.n + 1), dtype=np.float32)
        edge = np.arange(self.output_start)[:, None]
        features[edge, self.pairs] = 1
        features[self.output_start + np.arange(self.n), np.arange(self.n)] = 1
        features[self.output_start :, self.n] = 1
        return features

    def board(self, puzzle: Tokens, answer: Tokens | None = None) -> Board:
        """One row a node: its name, its colour, then its neighbours."""
        joined = np.zeros((self.n, self.n), dtype=bool)
        for (a, b), token in zip(self.pairs.tolist(), puzzle, strict=False):
            joined[a, b] = joined[b, a] = token == EDGE
        rows = []
        for node in range(self.n):
            neighbours = np.flatnonzero(joined[node])
            cell = BoardCell("·", "blank")
            if answer is not None:
                is_wrong = any(answer[other] == answer[node] for other in neighbours) or _letter(answer[node]) == "?"
                kind: CellKind = "conflict" if is_wrong else "filled"
                cell = BoardCell(_letter(int(answer[node])), kind)
            names = " ".join(str(other) for other in neighbours)
            rows.append([BoardCell(f"{node:>2}", "label"), cell, BoardCell(f"- {names}", "label")])
        return rows


def _letter(token: int) -> str:
    return LETTERS[token - FIRST_COLOUR] if FIRST_COLOUR <= token < FIRST_COLOUR + COLOURS else "?"
