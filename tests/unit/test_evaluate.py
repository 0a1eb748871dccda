"""An evaluation by hand on a tiny task, and on real ones against a plain recount."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from gram.config import config_to_json
from gram.evals.evaluate import (
    Evaluation,
    evaluate_result,
    figure_table,
    judge,
    predictions,
    single_accuracy_of,
    solution_counts,
    to_json,
)
from gram.evals.metrics import coverage_at_k
from gram.tasks.protocol import PuzzleSet, Task
from gram.tasks.registry import get_task
from tests.results import hand_made

VERSIONS = {"gram": "0", "torch": None}


class Total(Task):
    """Two digits (tokens 1 to 6 for 0 to 5) that add up to the puzzle's one; their order does not matter."""

    name = "total"
    summary = "two digits with a given sum"
    vocabulary = 7
    tokens = 3
    output_start = 1
    output_tokens = 2
    is_multi_solution = True
    splits = ("train", "test")

    def __init__(self):
        self.counted = 0

    def conflicts(self, puzzles, answers):
        digits = answers.astype(np.int64) - 1
        return np.abs(digits.sum(1) - (puzzles[:, 0].astype(np.int64) - 1)) + 9 * (digits < 0).any(1)

    def canonical(self, answers):
        return np.sort(answers, axis=1)

    def solutions(self, puzzle):
        total = int(puzzle[0]) - 1
        return np.array([[low + 1, total - low + 1] for low in range(total // 2 + 1)], dtype=np.uint8)

    def count_solutions(self, puzzle):
        self.counted += 1
        return len(self.solutions(puzzle))

    def format(self, puzzle, answer=None):
        return str(puzzle[0] - 1) if answer is None else "+".join(str(token - 1) for token in answer)


class OneSolution(Total):
    is_multi_solution = False


def score(task, puzzles, result):
    return evaluate_result(task, puzzles, result, checkpoint="tiny", versions=VERSIONS)


def run(task, puzzles, candidates, **known):
    """A sampling result with these candidates `[P, N, A]`."""
    known = {name: value for name, value in known.items() if value is not None}
    return hand_made(task, puzzles, np.asarray(candidates, dtype=np.uint8), launch=8, seed=5, **known)


def puzzle_set(*totals, **known):
    puzzles = np.array([[total + 1, 1, 1] for total in totals], dtype=np.uint8).reshape(-1, 3)
    return PuzzleSet(puzzles=puzzles, **known)


def digits(*pairs):
    return np.array(pairs, dtype=np.uint8) + 1


def by_hand():
    """Sums 1 (one solution), 4 and 5 (three each), four trajectories each."""
    puzzles = puzzle_set(1, 4, 5)
    candidates = [
        digits((0, 1), (1, 0), (1, 1), (2, 2)),  # right twice by one solution, which the vote selects
        digits((1, 3), (4, 0), (2, 2), (3, 1)),  # right four times by all three solutions
        digits((1, 1), (1, 1), (5, 0), (3, 3)),  # right once, the vote selects a wrong one
    ]
    scores = [[3, 2, 1, 0], [0, 0, 0, 0], [1, 2, 2, 0]]
    steps = [[1, 2, 3, 4], [8, 8, 8, 8], [2, 2, 2, 2]]
    return puzzles, run(Total(), puzzles.puzzles, candidates, lprm=scores, halt=-np.array(scores), steps=steps)


def test_figures_by_hand():
    puzzles, result = by_hand()
    got = score(Total(), puzzles, result)
    assert (got.task, got.checkpoint, got.puzzles, got.width, got.depth) == ("total", "tiny", 3, 4, 8)
    assert got.accuracy == pytest.approx(2 / 3)
    assert got.single_accuracy == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert got.pass_at_width == 1
    assert got.coverage == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert got.coverage_pooled == pytest.approx(5 / 7)
    assert got.coverage_multi == pytest.approx((1 + 1 / 3) / 2)
    missed = (2 / 3) ** 4
    assert got.coverage_ceiling == pytest.approx((1 + 2 * (1 - missed)) / 3)
    assert got.coverage_pooled_ceiling == pytest.approx((1 + 6 * (1 - missed)) / 7)
    assert got.coverage_multi_ceiling == pytest.approx(1 - missed)
    assert got.coverage_pooled_of_ceiling == pytest.approx(5 / (1 + 6 * (1 - missed)))
    assert (got.solutions_found, got.solutions_all) == (5, 7)
    assert got.conflicts == 1  # 0, 0 and |2 - 5|
    assert got.mean_steps == pytest.approx((10 + 32 + 8) / 12)
    # Pairs of puzzle 1: all four in order; of puzzle 3: right one at 2 against 1, 2 and 0.
    assert got.lprm_auroc == pytest.approx((4 + 2.5) / 7)
    assert got.halt_auroc == pytest.approx(1 - (4 + 2.5) / 7)
    assert got.auroc_puzzles == 2
    assert got.trajectories_per_s == 6
    assert got.trajectories_sha256 == result.trajectories_sha256
    for figure in ("accuracy", "single_accuracy", "coverage", "coverage_pooled", "coverage_pooled_of_ceiling"):
        low, value, high = (getattr(got, f"{figure}{end}") for end in ("_low", "", "_high"))
        assert low < value < high, figure
    assert 0 < got.pass_at_width_low < got.pass_at_width_high == 1
    assert got.single_accuracy_low < got.single_accuracy < got.single_accuracy_high
    assert (got.config.seed, got.config.launch, got.selector, got.by_rating) == (5, 8, "vote", None)
    assert (got.mean_width, got.supervision_steps, got.steps_run) == (4, 50, 50)
    assert got.unique_solutions == pytest.approx(5 / 3)


def test_only_the_trajectories_of_an_adaptive_width_count():
    """The same trajectories, of which the first two, four and one count."""
    puzzles, full = by_hand()
    scores = {name: getattr(full, name) for name in ("halt", "lprm", "steps")}
    result = run(Total(), puzzles.puzzles, full.candidates, widths=[2, 4, 1], **scores)
    got = score(Total(), puzzles, result)
    assert got.accuracy == pytest.approx(2 / 3)
    assert got.single_accuracy == pytest.approx((1 + 1 + 0) / 3)
    assert got.pass_at_width == pytest.approx(2 / 3)
    assert (got.solutions_found, got.solutions_all) == (4, 7)
    assert got.coverage == pytest.approx((1 + 1 + 0) / 3)
    assert got.mean_steps == pytest.approx((1 + 2 + 32 + 2) / 7)
    assert got.mean_width == pytest.approx(7 / 3)
    assert got.auroc_puzzles == 0
    assert got.trajectories_per_s == 3.5
    assert [len(line["candidates"]) for line in predictions(Total(), puzzles, result)] == [2, 4, 1]
    assert got.trajectories_sha256 != full.trajectories_sha256


@pytest.mark.parametrize(
    ("policy", "sure"), [("fixed", 8), ("verified", 1), ("trusted", 1), ("staged", 1), ("decided", 4)]
)
def test_stopping_at_success_does_not_lift_single_accuracy(policy, sure):
    """Trajectories that are right with probability .3, each puzzle run until one is: the mean of shares would say .5,
    the first trajectories, which run whatever they find, say .3."""
    right = np.random.default_rng(0).random((4000, 8)) < 0.3
    stopped = np.where(right.any(1), right.argmax(1) + 1, 8)
    widths = np.maximum(stopped, sure) if policy != "fixed" else np.full(4000, 8)
    threshold = {"decided": 0.95, "staged": 0.9, "trusted": 0.5}.get(policy)
    config = replace(by_hand()[1].config, width=8, width_policy=policy, width_threshold=threshold)
    share = single_accuracy_of(right & (np.arange(8) < widths[:, None]), widths, config)
    assert share.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(share, right[:, :sure].mean(1))
    if policy == "verified":
        assert (right & (np.arange(8) < widths[:, None])).sum(1).mean() / widths.mean() < 0.4
        assert ((right & (np.arange(8) < widths[:, None])).sum(1) / widths).mean() > 0.45


def test_puzzles_that_show_several_solutions_are_counted_whatever_the_task_expects():
    puzzles, result = by_hand()
    got, expected = score(OneSolution(), puzzles, result), score(Total(), puzzles, result)
    assert got.coverage_pooled == expected.coverage_pooled == pytest.approx(5 / 7)
    assert got.solutions_all == 7


def test_json_is_strict_and_in_the_fields_order():
    task, puzzles = OneSolution(), puzzle_set(1, 1)
    result = run(task, puzzles.puzzles, [digits((0, 1), (1, 1)), digits((1, 0), (0, 1))])
    got = to_json(score(task, puzzles, result))
    own = [field.name for field in fields(Evaluation) if field.name != "config"]
    settings = config_to_json(result.config)
    assert list(got) == own + [name for name in settings if name not in own]
    assert {name: got[name] for name in settings} == settings
    assert list(json.loads(json.dumps(got, allow_nan=False))) == list(got)
    undefined = {name for name in got if name.startswith(("coverage", "solutions"))} | {"by_rating", "flops_of_answer"}
    assert {name for name in own if got[name] is None} == undefined
    assert len(undefined) == 17
    assert task.counted == 0
    assert got["versions"] == VERSIONS


def test_all_right_and_all_wrong():
    puzzles = puzzle_set(2, 3)
    right = run(Total(), puzzles.puzzles, [digits((1, 1), (0, 2)), digits((0, 3), (1, 2))])
    got = score(Total(), puzzles, right)
    assert got.accuracy == got.single_accuracy == got.coverage == got.coverage_pooled == got.pass_at_width == 1
    assert got.accuracy_high == 1 > got.accuracy_low > 0
    assert math.isnan(got.lprm_auroc)
    wrong = run(Total(), puzzles.puzzles, np.full((2, 2, 2), 6))
    got = score(Total(), puzzles, wrong)
    assert got.accuracy == got.single_accuracy == got.coverage == got.coverage_pooled == got.pass_at_width == 0
    assert got.accuracy_low == 0 < got.accuracy_high < 1
    assert to_json(got)["lprm_auroc"] is None


def test_a_table_of_figures_has_no_empty_column():
    puzzles, task = puzzle_set(1), OneSolution()
    several = to_json(score(Total(), *by_hand()))
    one = to_json(score(task, puzzles, run(task, puzzles.puzzles, [digits((0, 1))])))
    assert figure_table(several)[0] == ("", "value", "95 % interval", "uniform")
    assert figure_table(one)[0] == ("", "value", "95 % interval")
    assert all(len(row) == 3 for row in figure_table(one))


def test_an_empty_set_has_no_figures():
    puzzles = puzzle_set()
    result = run(Total(), puzzles.puzzles, np.zeros((0, 4, 2)), elapsed_s=0.0)
    got = to_json(score(Total(), puzzles, result))
    json.dumps(got, allow_nan=False)
    assert (got["puzzles"], got["width"], got["solutions_all"]) == (0, 4, 0)
    undefined = ("accuracy", "accuracy_low", "single_accuracy", "pass_at_width", "coverage", "conflicts", "mean_steps")
    assert [got[name] for name in (*undefined, "trajectories_per_s")] == [None] * 8
    assert list(predictions(Total(), puzzles, result)) == []


def test_padding_never_counts():
    puzzles, result = by_hand()
    padded = PuzzleSet(puzzles=np.concatenate([puzzles.puzzles[:1], np.zeros((2, 3), np.uint8), puzzles.puzzles[1:]]))
    place = np.array([0, 1, 1, 1, 2])
    long = replace(
        result,
        **{
            name: getattr(result, name)[place]
            for name in (
                "candidates",
                "steps",
                "halt",
                "lprm",
                "residual",
                "margin",
                "is_halted",
                "lineage",
                "selected",
                "votes",
                "widths",
            )
        },
        puzzles=padded.puzzles,
    )
    got = score(Total(), padded, long)
    expected = score(Total(), puzzles, result)
    assert replace(got, trajectories_sha256="") == replace(expected, trajectories_sha256="")
    assert [line["index"] for line in predictions(Total(), padded, long)] == [0, 3, 4]


def test_equal_puzzles_are_counted_once_and_are_one_group():
    task, once = Total(), puzzle_set(*range(6))
    twice = puzzle_set(*[total for total in range(6) for _ in range(10)])
    answers = [[(0, total), (0, 0)] for total in range(6)]
    single = score(task, once, run(task, once.puzzles, digits(*answers)))
    assert task.counted == 6
    repeated = np.repeat(digits(*answers), 10, axis=0)
    double = score(task, twice, run(task, twice.puzzles, repeated))
    assert task.counted == 12
    assert double.single_accuracy == pytest.approx(single.single_accuracy)
    assert double.coverage == pytest.approx(single.coverage)
    spread = double.single_accuracy_high - double.single_accuracy_low
    apart = score(task, replace(twice, groups=np.arange(60)), run(task, twice.puzzles, repeated))
    assert spread > 1.5 * (apart.single_accuracy_high - apart.single_accuracy_low)


def test_solution_counts_feed_coverage():
    _, result = by_hand()
    right = judge(Total(), result.puzzles, result.candidates)
    counts = solution_counts(Total(), result.candidates, right)
    assert sorted(counts[1].tolist()) == [0, 1, 1, 2]
    # Of two of four trajectories: solutions given by 2, 1 and 1 of them.
    expected = ((1 - 1 / 6) + 0.5 + 0.5) / 3
    assert float(coverage_at_k(counts[1], 4, 3, 2)) == pytest.approx(expected)


def test_accuracy_by_rating():
    puzzles = puzzle_set(*[2] * 9, ratings=np.array([0, 0, 0, 0, 0, 1, 2, 9, np.nan]))
    answers = np.repeat(digits((1, 1))[None], 9, axis=0)
    answers[7] = 6
    got = score(Total(), puzzles, run(Total(), puzzles.puzzles, answers))
    assert got.by_rating == [
        {"low": 0.0, "high": 0.0, "puzzles": 5, "accuracy": 1.0},
        {"low": 1.0, "high": 1.0, "puzzles": 1, "accuracy": 1.0},
        {"low": 2.0, "high": 9.0, "puzzles": 2, "accuracy": 0.5},
    ]
    unrated = replace(puzzles, ratings=np.full(9, np.nan))
    run_again = run(Total(), puzzles.puzzles, answers)
    assert score(Total(), unrated, run_again).by_rating is None


def test_predictions_tell_every_trajectory():
    puzzles, result = by_hand()
    lines = list(predictions(Total(), puzzles, result))
    assert [line["is_right"] for line in lines] == [True, True, False]
    assert [line["distinct_valid"] for line in lines] == [1, 3, 1]
    assert [line["votes"] for line in lines] == [2, 2, 2]
    assert [lines[0][key] for key in ("index", "puzzle", "answer")] == [0, "1", "0+1"]
    second = {"trajectory": 1, "answer": "1+0", "steps": 2, "halt": -2.0, "lprm": 2.0, "votes": 2, "is_right": True}
    scores = {"residual": 0.0, "margin": 0.0, "is_halted": True, "lineage": 1}
    assert lines[0]["candidates"][1] == second | scores
    json.dumps(lines, allow_nan=False)


def test_a_score_that_is_no_number_is_null():
    puzzles, result = by_hand()
    broken = replace(result, lprm=np.full((3, 4), np.nan, np.float32))
    assert next(predictions(Total(), puzzles, broken))["candidates"][0]["lprm"] is None
    assert math.isnan(score(Total(), puzzles, broken).lprm_auroc)


def test_refusals():
    puzzles, result = by_hand()
    with pytest.raises(ValueError, match="result must be of the same 3 puzzles"):
        score(Total(), puzzle_set(1, 4, 3), result)

    class Undercounting(Total):
        def count_solutions(self, puzzle):
            return 2

    with pytest.raises(ValueError, match="at most all solutions"):
        score(Undercounting(), puzzles, result)


def test_nqueens_against_a_plain_recount():
    """Random completions, half of them real ones, on a real task with its groups."""
    task = get_task("nqueens6")
    puzzles, rng = task.split("test", limit=40), np.random.default_rng(0)
    every = [task.solutions(puzzle) for puzzle in puzzles.puzzles]
    candidates = np.stack([solutions[rng.integers(0, len(solutions), 8)] for solutions in every])
    broken = rng.random(candidates.shape[:2]) < 0.5
    candidates[broken, 0] = 3 - candidates[broken, 0]
    result = run(task, puzzles.puzzles, candidates)
    got = score(task, puzzles, result)
    found, exist, right = [], [], []
    for own, answers in zip(every, candidates, strict=True):
        solutions = {bytes(solution) for solution in own}
        found.append(len(solutions & {bytes(answer) for answer in answers}))
        exist.append(len(solutions))
        right.append([bytes(answer) in solutions for answer in answers])
    assert np.array_equal(right, ~broken)
    assert got.single_accuracy == pytest.approx(np.mean(right))
    assert (got.solutions_found, got.solutions_all) == (sum(found), sum(exist))
    assert got.coverage_pooled == pytest.approx(sum(found) / sum(exist))
    assert got.coverage == pytest.approx(np.mean(np.array(found) / exist))
    assert got.pass_at_width == pytest.approx(np.mean(np.any(right, axis=1)))
