"""What the sparsity of latent states tells of difficulty and of right answers.

    python scripts/sparsity_signal_study.py --runs runs/sparsity [--out FILE.md]

For each of three shipped checkpoints and three sampling seeds, held-out puzzles of the density of training and of
others (`PARTS`) are sampled with few supervision steps, so that trajectories still fail. A run that is there is kept,
a killed one goes on. Printed, as Markdown:

- Spearman's rank correlation of a puzzle's mean sparsity with the branches of an exact search, after the number of
  givens is taken out of both (partial, of ranks), beside those of halt logit, residual and margin;
- how well each tells puzzles of another density from those of training (AUROC);
- AUROC of telling right trajectories, by a logistic regression of halt logit, residual and margin, and of these with
  the six columns of sparsity; predictions are cross-validated, all trajectories of a cluster in one fold;
- accuracy of the selectors `sparsity`, `margin` and `vote`.

With `--sizes` the checkpoint `colouring` is sampled instead, which was trained on 6, 8, 10 and 11 nodes, on test graphs
of these and of other sizes, between them and beyond: the signal by size, how well it tells graphs of other sizes, and
its correlation with branches at each size.

    python scripts/sparsity_signal_study.py --sizes --runs runs/sparsity-sizes

Intervals are percentiles of a bootstrap over clusters of puzzles (those of one grid of Sudoku, and else those that
symmetries turn into each other), each figure the mean over seeds, and every seed resampled alike. Predictions are not
fitted anew in it. Seeds are of sampling: of each task there is one checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gram
from gram.api import Sampler
from gram.checkpoint import write_atomically
from gram.sampler.selectors import answer_labels, count_votes, select
from gram.sampler.sparsity import gaussian_null
from gram.sampler.trace import SIGNAL, SPARSITY, Traces
from gram.tasks.colouring import Colouring
from gram.tasks.nqueens import EMPTY, QUEEN, NQueens
from gram.tasks.protocol import Task, Tokens
from gram.tasks.sudoku import BLANK, FIRST_DIGIT, Sudoku

Floats = NDArray[np.float64]
WIDTH, SEEDS, FOLDS, DRAWS, RIDGE = 4, 3, 5, 1000, 1.0
CASES = {"nqueens8": (2, "test"), "colouring8": (3, "labelled-test"), "sudoku9": (6, "test")}
"""Checkpoint: supervision steps, and the split that it was not trained on."""
FAMILIAR, OTHER = 160, 80
"""Puzzles of the density of training, and of others."""
PARTS = {"sudoku9": (23, 44), "nqueens8": (4, 5), "colouring8": (0.25, 0.65)}
"""Densities outside training: givens (24 to 38 and 1 to 3 in training) and the probability of an edge (.5)."""
FLOOR = 0.02
"""AUROC that the columns must add on every task to become a default."""
BASE = ("halt", "residual", "margin")
ANY_SIZE, ANY_SIZE_STEPS = "colouring", 3
TRAINED = (6, 8, 10, 11)
"""Nodes that training showed."""
OTHERS = {"between": (7, 9), "beyond": (12, 14)}
GRAPHS = 80
"""Of each size."""
COLUMNS = (len(BASE) + SIGNAL, 0, 1, 2)


def count_branches(domains: list[int], removed: Callable[[int, int], Iterable[tuple[int, int]]]) -> int:
    """Branches of the whole search for solutions, as the Sudoku solver counts them: a choice among `c` values counts
    `c - 1`. Variables have the values of their bit masks; `removed(variable, value)` names other variables and the
    values that this takes from them. The variable with the fewest values comes first."""

    def go(masks: list[int], is_open: list[bool]) -> int:
        left = [(mask.bit_count(), place) for place, mask in enumerate(masks) if is_open[place]]
        if not left:
            return 0
        count, place = min(left)
        total = max(0, count - 1)
        for value in range(masks[place].bit_length()):
            if masks[place] >> value & 1:
                after = masks.copy()
                after[place] = 1 << value
                for other, taken in removed(place, value):
                    if is_open[other]:
                        after[other] &= ~taken
                total += go(after, [each and number != place for number, each in enumerate(is_open)])
        return total

    return go(domains, [True] * len(domains))


def queens_branches(board: NDArray[np.bool_]) -> int:
    """Branches of completing a board `[n, n]`, row by row."""
    n = len(board)

    def removed(row: int, column: int) -> Iterable[tuple[int, int]]:
        for other in range(n):
            if other != row:
                gap = other - row
                yield other, sum(1 << each for each in {column, column + gap, column - gap} if 0 <= each < n)

    return count_branches([1 << int(row.argmax()) if row.any() else (1 << n) - 1 for row in board], removed)


def colouring_branches(joined: NDArray[np.bool_]) -> int:
    """Branches of 3-colouring a graph `[n, n]`, the colour of its first node fixed."""
    near = [np.flatnonzero(row).tolist() for row in joined]
    return count_branches(
        [1, *[7] * (len(near) - 1)], lambda node, colour: ((each, 1 << colour) for each in near[node])
    )


def difficulty(task: Task, puzzles: Tokens) -> tuple[Floats, Floats]:
    """Branches of an exact search and number of givens (for a graph, edges) of each puzzle, `[P]`."""
    if isinstance(task, Sudoku):
        boards = np.where(puzzles == BLANK, 0, puzzles.astype(int) - FIRST_DIGIT + 1)
        return np.array([float(task.solver.rating(board.tolist())) for board in boards]), (boards > 0).sum(1) * 1.0
    if isinstance(task, NQueens):
        queens = puzzles == QUEEN
        found = [queens_branches(board.reshape(task.n, task.n)) for board in queens]
        return np.array(found, float), queens.sum(1) * 1.0
    assert isinstance(task, Colouring)
    joined = np.zeros((len(puzzles), task.n, task.n), bool)
    edges = puzzles[:, : task.output_start] == 2
    joined[:, task.pairs[:, 0], task.pairs[:, 1]] = joined[:, task.pairs[:, 1], task.pairs[:, 0]] = edges
    return np.array([colouring_branches(graph) for graph in joined], float), edges.sum(1) * 1.0


def other_puzzles(task: Task, familiar: Tokens, answers: Tokens, densities: tuple[Any, ...], count: int) -> Tokens:
    """Puzzles `[count, L]` of densities outside training, on held-out grids, boards or random graphs, from seed 0."""
    rng, made = np.random.default_rng(0), []
    while len(made) < count:
        density, place = densities[len(made) % len(densities)], int(rng.integers(len(familiar)))
        if isinstance(task, Sudoku):
            made += [dug] if (dug := _dug(task, answers[place], density, rng)) is not None else []
        elif isinstance(task, NQueens):
            solutions = task.solutions(familiar[place])
            queens = np.flatnonzero(solutions[rng.integers(len(solutions))] == QUEEN)
            puzzle = np.full(task.tokens, EMPTY, np.uint8)
            puzzle[rng.choice(queens, density, replace=False)] = QUEEN
            made.append(puzzle)
        else:
            assert isinstance(task, Colouring)
            puzzle = np.zeros(task.tokens, np.uint8)
            puzzle[: task.output_start] = 1 + (rng.random(task.output_start) < density)
            made += [puzzle] if task.count_solutions(puzzle) else []
    return np.array(made)


def _dug(task: Sudoku, answer: Tokens, givens: int, rng: np.random.Generator) -> Tokens | None:
    """A puzzle of one solution with so many givens; None where this order of cells does not reach it."""
    grid = (answer.astype(int) - FIRST_DIGIT + 1).tolist()
    board, left = list(grid), task.tokens
    for cell in rng.permutation(task.tokens).tolist():
        board[cell] = 0
        if left == givens or task.solver.has_other(board, cell, grid[cell]):
            board[cell] = grid[cell]
        else:
            left -= 1
    tokens = np.where(np.array(board) > 0, np.array(board) + FIRST_DIGIT - 1, BLANK).astype(np.uint8)
    return tokens if left == givens else None


def clusters_of(task: Task, puzzles: Tokens) -> NDArray[np.int64]:
    """Cluster of each puzzle, `[P]`: its grid in Sudoku, where puzzles of other densities are dug from grids of the
    familiar ones; else its class under the task's symmetries."""
    if isinstance(task, Sudoku):
        grids = np.array([task.solutions(puzzle)[0] for puzzle in puzzles])
        return np.unique(grids, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return task.classes(puzzles)


def ranks(values: Floats) -> Floats:
    """Ranks, the mean of those tied."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)]


def partial_rank_correlation(x: Floats, y: Floats, given: Floats) -> float:
    """Spearman's correlation of `x` and `y` after a line through the ranks of `given` is taken out of both; NaN where
    nothing is left."""
    columns = np.column_stack([np.ones(len(x)), ranks(given)])
    left = [ranks(each) - columns @ np.linalg.lstsq(columns, ranks(each), rcond=None)[0] for each in (x, y)]
    length = float(np.sqrt((left[0] ** 2).sum() * (left[1] ** 2).sum()))
    return float((left[0] * left[1]).sum()) / length if length > 1e-6 else float("nan")


def auroc(score: Floats, is_right: NDArray[np.bool_]) -> float:
    """Probability that a right one scores higher than a wrong one, ties half; NaN where there is but one kind."""
    good, bad = int(is_right.sum()), int((~is_right).sum())
    if not good or not bad:
        return float("nan")
    return float((ranks(score)[is_right].sum() - good * (good + 1) / 2) / (good * bad))


def fitted(x: Floats, y: NDArray[np.bool_], *, ridge: float = RIDGE, steps: int = 30) -> Floats:
    """Weights of a logistic regression on columns `[R, F]` and a constant, which comes last and is not held down, by
    Newton's method with a ridge."""
    table = np.column_stack([x, np.ones(len(x))])
    penalty = ridge * np.diag([*np.ones(x.shape[1]), 1e-6])
    weights = np.zeros(table.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(table @ weights, -30, 30)))
        slope = table.T @ (chance - y) + penalty @ weights
        curve = (table * (chance * (1 - chance))[:, None]).T @ table + penalty
        weights = weights - np.linalg.solve(curve, slope)
    return weights


def cross_validated(x: Floats, y: NDArray[np.bool_], clusters: NDArray[np.int64]) -> Floats:
    """Logits `[R]` of rows `[R, F]` by regressions on the folds of other clusters; columns are standardised there."""
    _, number = np.unique(clusters, return_inverse=True)
    fold = np.random.default_rng(0).permutation(number.max() + 1)[number] % FOLDS
    logits = np.zeros(len(x))
    for each in range(FOLDS):
        seen = fold != each
        middle, scale = x[seen].mean(0), x[seen].std(0) + 1e-12
        weights = fitted((x[seen] - middle) / scale, y[seen])
        logits[~seen] = (x[~seen] - middle) / scale @ weights[:-1] + weights[-1]
    return logits


@dataclass
class Sampled:
    """One case: what is known of its puzzles, and what every seed's trajectories showed at their last step."""

    branches: Floats
    givens: Floats
    is_other: NDArray[np.bool_]
    clusters: NDArray[np.int64]
    scores: Floats
    """`[S, P, N, 9]`: `BASE`, then `SPARSITY`."""
    is_right: NDArray[np.bool_]
    """`[S, P, N]`."""
    picked: dict[str, Floats]
    """Whether the answer of each selector is right, `[S, P]`."""
    numbers: int
    """Of a state."""


def sampled(name: str, folder: Path, sizes: tuple[int, int]) -> Sampled:
    """Samples a case, or takes it from `folder`."""
    sampler: Sampler = gram.load(name)
    task, (depth, split) = sampler.task, CASES[name]
    known = task.split(split, limit=sizes[0])
    assert known.answers is not None
    puzzles = np.concatenate([known.puzzles, other_puzzles(task, known.puzzles, known.answers, PARTS[name], sizes[1])])
    branches, givens = difficulty(task, puzzles)
    scores, right, picked = _scores(sampler, puzzles, depth, [folder / f"{name}-{seed}" for seed in range(SEEDS)])
    return Sampled(
        branches=branches,
        givens=givens,
        is_other=np.arange(len(puzzles)) >= len(known),
        clusters=clusters_of(task, puzzles),
        scores=scores,
        is_right=right,
        picked=picked,
        numbers=sampler.model.spec.length * sampler.model.spec.dim,
    )


def sampled_size(nodes: int, folder: Path, count: int) -> Sampled:
    """The same of graphs of one size; `is_other` says whether training showed none of that size."""
    sampler = gram.load(ANY_SIZE, task=f"colouring{nodes}")
    puzzles = sampler.task.split("test", limit=count).puzzles
    branches, edges = difficulty(sampler.task, puzzles)
    folders = [folder / f"{nodes}-{seed}" for seed in range(SEEDS)]
    scores, right, picked = _scores(sampler, puzzles, ANY_SIZE_STEPS, folders)
    return Sampled(
        branches=branches,
        givens=edges,
        is_other=np.full(len(puzzles), nodes not in TRAINED),
        clusters=1_000_000 * nodes + clusters_of(sampler.task, puzzles),
        scores=scores,
        is_right=right,
        picked=picked,
        numbers=sampler.model.spec.length * sampler.model.spec.dim,
    )


def _scores(
    sampler: Sampler, puzzles: Tokens, depth: int, folders: list[Path]
) -> tuple[Floats, NDArray[np.bool_], dict[str, Floats]]:
    """What the trajectories of every seed show at their last step, and which are right; a folder is a seed's run."""
    scores, right, picked = [], [], {each: [] for each in ("vote", "margin", "sparsity")}
    for seed, out in enumerate(folders):
        config = {"width": WIDTH, "depth": depth, "halting": "fixed", "measures_sparsity": True, "seed": seed}
        result = sampler.sample(puzzles, out=out, is_traced=True, **config)  # type: ignore[arg-type]
        with Traces.open(out) as traces:
            blocks = list(traces.blocks())
        last = [np.stack([getattr(each, one)[:, :, -1] for one in BASE], -1) for each in blocks]
        states = [each.sparsity[:, :, -1] for each in blocks if each.sparsity is not None]
        scores.append(np.concatenate([np.concatenate(last), np.concatenate(states)], -1).astype(float))
        right.append(np.concatenate([each.is_right[:, :, -1] for each in blocks]))
        votes = count_votes(answer_labels(sampler.task.canonical(result.candidates)))
        for each, found in picked.items():
            chosen = select(each, result.scores(votes))
            found.append(right[-1][np.arange(len(puzzles)), chosen].astype(float))
        print(f"{out.name}: {right[-1].mean():.1%} of trajectories right", file=sys.stderr, flush=True)
    return np.array(scores), np.array(right), {each: np.array(found) for each, found in picked.items()}


def interval(
    figure: Callable[[NDArray[np.int64]], float], clusters: NDArray[np.int64], draws: int
) -> tuple[float, float, float]:
    """A figure of puzzles (by their places `[k]`), and the 2.5 and 97.5 percentiles over resampled clusters."""
    _, number = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(number == each) for each in range(number.max() + 1)]
    rng = np.random.default_rng(0)
    drawn = [
        figure(np.concatenate([members[each] for each in rng.integers(0, len(members), len(members))]))
        for _ in range(draws)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return figure(np.arange(len(clusters))), float(low), float(high)


def shown(found: tuple[float, float, float]) -> str:
    """A figure with its interval."""
    return "n/a" if np.isnan(found[0]) else f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})"


def tables(cases: dict[str, Sampled], draws: int) -> str:
    """The study as Markdown."""
    names = (*BASE, *SPARSITY)
    lines = ["| checkpoint | puzzles (clusters) | steps | trajectories right, familiar / other density |"]
    lines += ["|---|---|---|---|"]
    for name, case in cases.items():
        shares = [f"{case.is_right[:, which].mean():.1%}" for which in (~case.is_other, case.is_other)]
        lines.append(
            f"| `{name}` | {len(case.givens)} ({len(np.unique(case.clusters))}) | {CASES[name][0]} "
            f"| {' / '.join(shares)} |"
        )
    lines += ["", "Sparsity after the last step, mean over trajectories (right, wrong), beside a Gaussian state:", ""]
    lines += ["| checkpoint | column | right | wrong | Gaussian |", "|---|---|---|---|---|"]
    for name, case in cases.items():
        null = [*gaussian_null(case.numbers)] * 2
        for place, column in enumerate(SPARSITY):
            values = case.scores[..., len(BASE) + place]
            means = (values[case.is_right].mean(), values[~case.is_right].mean(), null[place])
            lines.append(f"| `{name}` | `{column}` | " + " | ".join(f"{each:.4g}" for each in means) + " |")
    signal = len(BASE) + SIGNAL
    lines += ["", "Partial rank correlation with branches, the number of givens taken out:", ""]
    lines += [f"| checkpoint | puzzles | {' | '.join(f'`{names[each]}`' for each in (signal, 0, 1, 2))} |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, case in cases.items():
        for label, which in (("familiar", ~case.is_other), ("all", np.ones_like(case.is_other))):
            lines.append(
                f"| `{name}` | {label} | " + " | ".join(_correlations(case, which, (signal, 0, 1, 2), draws)) + " |"
            )
    lines += [
        "",
        "AUROC of telling puzzles of another density (the density itself is not taken out: it is what differs):",
        "",
    ]
    lines += [
        f"| checkpoint | {' | '.join(f'`{names[each]}`' for each in (signal, 0, 1, 2))} |",
        "|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        cells = []
        for column in (signal, 0, 1, 2):
            means = case.scores[..., column].mean(2)
            cells.append(shown(interval(_mean_auroc(means, case.is_other), case.clusters, draws)).replace("+", ""))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "AUROC of telling right trajectories, cross-validated:", ""]
    lines += [
        "| checkpoint | `h_hoyer` alone (less is right) | halt, residual, margin | and sparsity | added | by seed |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    added = []
    for name, case in cases.items():
        cells, gain = _predictions(case, signal, draws)
        added.append(gain)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    is_added = len(cases) == len(CASES) and all(gain >= FLOOR for gain in added)
    verdict = "becomes a default" if is_added else "is reported only, and no default"
    lines += ["", f"The least that it adds is {min(added):+.3f}; the floor is {FLOOR}: the signal {verdict}."]
    lines += ["", "Right answers by selector, mean over seeds, and less the vote's:", ""]
    lines += [
        "| checkpoint | vote | margin | sparsity | sparsity less vote | sparsity less margin |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        cells = [f"{case.picked[each].mean():.1%}" for each in ("vote", "margin", "sparsity")]
        for other in ("vote", "margin"):
            gap = (case.picked["sparsity"] - case.picked[other]).mean(0)
            cells.append(shown(interval(lambda at, gap=gap: float(gap[at].mean()), case.clusters, draws)))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def size_tables(cases: dict[int, Sampled], draws: int) -> str:
    """The study of sizes as Markdown."""
    signal = COLUMNS[0]
    lines = [
        f"| nodes | in training | graphs | right | `{SPARSITY[SIGNAL]}` | Gaussian | correlation with branches |",
        "|---|---|---|---|---|---|---|",
    ]
    for nodes, case in sorted(cases.items()):
        null = gaussian_null(case.numbers)[SIGNAL]
        (found,) = _correlations(case, np.ones_like(case.is_other), (signal,), draws)
        lines.append(
            f"| {nodes} | {'yes' if nodes in TRAINED else 'no'} | {len(case.branches)} | {case.is_right.mean():.1%} "
            f"| {case.scores[..., signal].mean():.4f} | {null:.4f} | {found} |"
        )
    lines += ["", "AUROC of telling graphs of other sizes from those of training:", ""]
    names = (*BASE, *SPARSITY)
    lines += [f"| other sizes | {' | '.join(f'`{names[each]}`' for each in COLUMNS)} |", "|---|---|---|---|---|"]
    for label, sizes in OTHERS.items():
        some = [cases[nodes] for nodes in (*TRAINED, *sizes)]
        is_other, clusters = (np.concatenate([getattr(each, n) for each in some]) for n in ("is_other", "clusters"))
        cells = []
        for column in COLUMNS:
            means = np.concatenate([each.scores[..., column].mean(2) for each in some], axis=1)
            cells.append(shown(interval(_mean_auroc(means, is_other), clusters, draws)).replace("+", ""))
        lines.append(f"| {label}: {' and '.join(map(str, sizes))} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _correlations(case: Sampled, which: NDArray[np.bool_], columns: tuple[int, ...], draws: int) -> list[str]:
    cells = []
    for column in columns:
        means = case.scores[..., column][:, which].mean(2)

        def figure(at: NDArray[np.int64], means: Floats = means) -> float:
            branches, givens = case.branches[which][at], case.givens[which][at]
            return float(np.mean([partial_rank_correlation(seed[at], branches, givens) for seed in means]))

        cells.append(shown(interval(figure, case.clusters[which], draws)))
    return cells


def _mean_auroc(means: Floats, is_other: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], float]:
    return lambda at: float(np.mean([auroc(seed[at], is_other[at]) for seed in means]))


def _predictions(case: Sampled, signal: int, draws: int) -> tuple[list[str], float]:
    """Cells of a row, and what sparsity adds."""
    scores = case.scores.copy()
    scores[..., 1] = np.log(scores[..., 1] + 1e-9)  # a residual spans decades
    seeds, count, width, _ = scores.shape
    owner = np.repeat(case.clusters, width)
    logits = {
        last: np.array(
            [
                cross_validated(scores[seed].reshape(-1, scores.shape[-1])[:, :last], right.reshape(-1), owner)
                for seed, right in enumerate(case.is_right)
            ]
        ).reshape(seeds, count, width)
        for last in (len(BASE), scores.shape[-1])
    }
    base, both, alone = logits[len(BASE)], logits[scores.shape[-1]], -case.scores[..., signal]

    def mean(values: Floats, at: NDArray[np.int64]) -> float:
        each = [
            auroc(seed[at].reshape(-1), right[at].reshape(-1))
            for seed, right in zip(values, case.is_right, strict=True)
        ]
        return float(np.mean(each))

    cells = [
        shown(interval(lambda at, v=v: mean(v, at), case.clusters, draws)).replace("+", "") for v in (alone, base, both)
    ]
    gain = interval(lambda at: mean(both, at) - mean(base, at), case.clusters, draws)
    flat = [[auroc(one[seed].ravel(), case.is_right[seed].ravel()) for one in (base, both)] for seed in range(seeds)]
    by_seed = ", ".join(f"{after - before:+.3f}" for before, after in flat)
    return [*cells, shown(gain), by_seed], gain[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/sparsity"), help="folder of the trajectories")
    parser.add_argument("--checkpoints", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--puzzles", type=int, nargs=2, default=[FAMILIAR, OTHER], metavar=("FAMILIAR", "OTHER"))
    parser.add_argument("--sizes", action="store_true", help="the study of sizes")
    parser.add_argument("--graphs", type=int, default=GRAPHS, help="graphs of each size in it")
    parser.add_argument("--draws", type=int, default=DRAWS, help="resamples of the bootstrap")
    parser.add_argument("--out", type=Path, help="write the tables there, too")
    given = parser.parse_args()
    if min(*given.puzzles, given.graphs, given.draws) < 1:
        parser.error(
            f"puzzles, graphs and draws must be at least 1, got {given.puzzles}, {given.graphs}, {given.draws}"
        )
    if given.runs.exists() and not given.runs.is_dir():
        parser.error(f"runs must be a folder, got the file {given.runs}")
    if given.sizes:
        sizes = sorted({*TRAINED, *(nodes for some in OTHERS.values() for nodes in some)})
        text = size_tables({nodes: sampled_size(nodes, given.runs, given.graphs) for nodes in sizes}, given.draws)
    else:
        cases = {name: sampled(name, given.runs, tuple(given.puzzles)) for name in given.checkpoints}
        text = tables(cases, given.draws)
    if given.out is not None:
        write_atomically(given.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
