"""Choosing and comparing cells: halves never leak, restarts are paid one by one, every draw of the timings chooses
anew, the same two cells are one comparison."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.evals.frontier import verdict
from gram.evals.frontier.budgets import Question, budgets_of, corrected, matched_together, score
from gram.evals.frontier.choice import FAMILIES, Judge, Price, Slice, family_mask, halves
from gram.evals.frontier.grid import Grid
from tests.frontier_parts import matched

GRID = Grid(widths=(1, 2, 4), depths=(1, 2, 4), trained_depth=2)
COSTS = np.outer(GRID.depths, np.sqrt(GRID.widths)).astype(float)
PRICE = Price(COSTS, has_restarts=True)


def some_slice(rng, puzzles=60, groups=None, selectors=("vote", "lprm")):
    values = rng.random((puzzles, 3, 3, len(selectors))).astype(np.float32)
    groups = np.arange(puzzles) if groups is None else groups
    return Slice(values, values > 0.5, groups, selectors, "head")


def built(width_value, depth_value, *, puzzles=400, seed=0):
    """A slice in which the only wide cell and the only deep one have given accuracies."""
    rng = np.random.default_rng(seed)
    values = np.zeros((puzzles, 3, 3, 1), np.float32)
    values[:, 1, 2, 0] = rng.random(puzzles) < width_value
    values[:, 2, 0, 0] = rng.random(puzzles) < depth_value
    return Slice(values, values > 0, np.arange(puzzles), ("vote",), "head")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 5))
def test_halves_never_split_a_base(groups, seed):
    groups = np.array(groups)
    chooses = halves(groups, seed)
    assert not set(groups[chooses]) & set(groups[~chooses])
    count = len(set(groups.tolist()))
    assert len(set(groups[chooses].tolist())) == count // 2
    assert np.array_equal(chooses, halves(groups, seed))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([2.0, 4.0, 5.7, 8.0]))
def test_what_the_scoring_half_says_never_moves_the_choice(seed, budget):
    """And every puzzle is scored with the choice of the half it is not in."""
    rng = np.random.default_rng(seed)
    part = some_slice(rng, groups=rng.integers(0, 12, 60))
    judge = Judge(GRID, part)
    for side, choosing in enumerate((judge.is_first, ~judge.is_first)):
        changed = part.values.copy()
        changed[~choosing] = rng.random(changed[~choosing].shape)
        other = Judge(GRID, Slice(changed, part.direct, part.clusters, part.selectors, "head"))
        for family in FAMILIES:
            choice = judge.choose(family, PRICE, budget)
            if choice is None:  # two trajectories cost more than the smallest budget
                assert budget < 2 * 2**0.5 or family == "restarts"
                continue
            pick = choice.pick
            assert pick[side] == other.choose(family, PRICE, budget).pick[side]
            assert np.array_equal(judge.scores(pick)[~choosing], part.values[~choosing][:, *pick[side]])


def test_a_choice_is_the_best_that_fits():
    rng = np.random.default_rng(0)
    judge = Judge(GRID, some_slice(rng))
    for side, half in enumerate((judge.is_first, ~judge.is_first)):
        means = judge.part.values[half].mean(axis=0)
        m, n, _ = judge.choose("depth", PRICE, 2.0).pick[side]
        assert n == 0
        assert means[m, 0, 0] == max(means[0, 0, 0], means[1, 0, 0])
        for s in (0, 1):
            m, n, chosen_by = judge.choose("width", PRICE, 4.0, selector=s).pick[side]
            assert (m, chosen_by) == (1, s)
            assert n > 0
            assert means[m, n, s] == max(means[1, 1, s], means[1, 2, s])
        m, n, _ = judge.choose("mixed", PRICE, 99.0).pick[side]
        assert n > 0
        assert m != 1
    assert judge.choose("mixed", PRICE, 0.5) is None
    assert judge.choose("width", PRICE, 2.0) is None
    assert judge.choose("depth", Price(np.full_like(COSTS, np.nan)), 99.0) is None


def test_restarts_cost_as_many_times_one_trajectory():
    values = np.zeros((40, 3, 3, 1), np.float32)
    values[:, 1, 2] = 1  # four trajectories of two steps
    judge = Judge(GRID, Slice(values, values > 0, np.arange(40), ("vote",), "head"))
    at_once = judge.choose("width", PRICE, 4.0)
    assert judge.cells(at_once, PRICE)["price"] == 4.0  # 2 steps x root 4
    assert judge.choose("restarts", PRICE, 4.0).pick[0] != (1, 2, 0)
    serial = judge.choose("restarts", PRICE, 8.0)
    told = judge.cells(serial, PRICE)
    assert (told["width"], told["depth"], told["price"], told["spent"]) == (4, 2, 8.0, 8.0)
    assert judge.choose("restarts", Price(COSTS), 8.0) is None  # where at once and in turn cost the same
    row = matched(judge, PRICE, [4.0])[0]
    assert row["contrasts"]["width-restarts"]["verdict"] == "width"
    assert row["contrasts"]["width-restarts"]["difference"] == 1


@pytest.mark.parametrize("draws", [1, 7])
def test_every_draw_of_the_timings_chooses_anew(draws):
    """As a choice at that draw's prices alone would, one draw at a time; the budget moves with its unit."""
    rng = np.random.default_rng(draws)
    judge = Judge(GRID, some_slice(rng))
    drawn = COSTS * rng.uniform(0.5, 2, (draws, *COSTS.shape))
    scale = drawn[:, 1, 0] / COSTS[1, 0]
    for family in FAMILIES:
        for budget in (2.0, 4.0, 8.0):
            choice = judge.choose(family, PRICE._replace(draws=drawn), budget, scale=scale)
            mean = judge.choose(family, PRICE, budget)
            if mean is None:
                assert choice is None
                continue
            assert choice.pick == mean.pick
            assert len(choice.drawn) == draws
            assert len(set(choice.picks)) == len(choice.picks)
            for number in range(draws):
                # Ties go by the mean prices, and there are none here.
                alone = judge.choose(family, Price(drawn[number], has_restarts=True), budget * scale[number])
                assert choice.picks[choice.drawn[number]] == (mean if alone is None else alone).pick
            changed = sum(choice.picks[place] != choice.pick for place in choice.drawn)
            assert choice.changes == changed / draws


def test_noise_that_decides_the_choice_widens_the_interval():
    """Half of the draws compare cells that are equal: the interval reaches from there to the others' difference."""
    rng = np.random.default_rng(3)
    part = built(0.9, 0.5)
    part.values[:, 1, 1, 0] = rng.random(400) < 0.5  # a cheaper wide cell, no better than one trajectory
    judge = Judge(GRID, part)
    calm = Price(COSTS, np.repeat(COSTS[None], 200, 0))
    shaken = np.repeat(COSTS[None], 200, 0)
    shaken[::2, 1, 2] = 9.0  # the best cell no longer fits
    still, moved = (
        matched(judge, price, [4.0])[0]["contrasts"]["width-depth"] for price in (calm, Price(COSTS, shaken))
    )
    assert (still["choice_changes"], moved["choice_changes"]) == (0, 0.5)
    assert still["low"] > 0.3
    assert -0.1 < moved["low"] < 0.1
    assert moved["high"] >= still["high"]
    assert still["difference"] == moved["difference"]


def test_the_same_two_cells_at_several_budgets_are_one_comparison():
    judge = Judge(GRID, built(0.9, 0.5))
    rows = matched(judge, PRICE, [8.0, 16.0, 32.0, 64.0])
    found = [row["contrasts"]["width-depth"] for row in rows]
    assert {each["comparison"] for each in found} == {0}
    assert all(each["p_holm"] == each["p_value"] for each in found)  # nothing to correct for
    counts = verdict.count_comparisons(rows)
    assert (counts["width"], counts["depth"], sum(counts.values())) == (1, 0, 1)
    assert (
        "Of 1 different comparison at 4 budgets: width is ahead in 1"
        in verdict.verdict(rows, measure="accuracy", unit="ms")["sentence"]
    )


def test_holm_counts_each_comparison_once_and_takes_the_more_doubtful_of_equals():
    def found(comparison, p, low=0.1):
        return {"comparison": comparison, "p_value": p, "low": low, "high": 0.5, "is_same_cell": False}

    first, again, other, nothing = corrected([found(7, 0.01), found(7, 0.02, low=-0.1), found(9, 0.03), None])
    assert nothing is None
    assert first["p_holm"] == again["p_holm"] == pytest.approx(0.04)  # 2 x .02
    assert other["p_holm"] == pytest.approx(0.04)
    assert first["low"] == again["low"] == -0.1
    assert (first["comparison"], again["comparison"], other["comparison"]) == (0, 0, 1)


def test_every_selector_is_its_own_question():
    rng = np.random.default_rng(4)
    judge = Judge(GRID, some_slice(rng))
    together = matched_together([Question(judge, PRICE, [4.0, 8.0], s) for s in (0, 1)])
    for s, rows in enumerate(together):
        for row in rows:
            assert row["width"]["selector"] == ("vote", "lprm")[s]
            assert row["depth"]["selector"] is None
    assert together[0][0]["depth"] == together[1][0]["depth"]


def test_halves_that_choose_differently_are_both_told():
    values = np.zeros((40, 3, 3, 1), np.float32)
    part = Slice(values, values > 0, np.arange(40), ("vote",), "head")
    first = Judge(GRID, part).is_first
    values[first, 1, 1], values[~first, 1, 2] = 1, 1
    judge = Judge(GRID, Slice(values, values > 0, np.arange(40), ("vote",), "head"))
    choice = judge.choose("width", PRICE, 99.0)
    assert choice.pick == ((1, 1, 0), (1, 2, 0))
    told = judge.cells(choice, PRICE) | score([(judge, choice)])[0]
    assert (told["width"], told["other_half"]["width"]) == GRID.widths[1:]
    assert told["value"] == 0
    assert told["spent"] == pytest.approx((told["price"] + told["other_half"]["price"]) / 2)
    rows = matched(judge, PRICE)
    assert "or, on the other half," in verdict.verdict(rows, measure="accuracy", unit="ms")["sentence"]


def test_ties_go_to_the_cheaper_cell():
    part = Slice(np.ones((10, 3, 3, 1), np.float32), None, np.arange(10), (None,), "head")
    assert Judge(GRID, part).choose("width", PRICE, 99.0).pick == ((1, 1, 0),) * 2
    assert Judge(GRID, part).choose("depth", PRICE, 99.0).pick == ((0, 0, 0),) * 2


def test_one_base_cannot_be_halved():
    part = some_slice(np.random.default_rng(0), groups=np.zeros(60, int))
    rows = matched(Judge(GRID, part), PRICE)
    assert all(row["contrasts"]["width-depth"]["verdict"] == "nothing to compare" for row in rows)


def test_families():
    assert family_mask(GRID, "depth").sum() == 3
    assert family_mask(GRID, "width").sum() == 2
    assert family_mask(GRID, "restarts").sum() == 6
    assert family_mask(GRID, "mixed").sum() == 4
    assert not (family_mask(GRID, "mixed") & (family_mask(GRID, "depth") | family_mask(GRID, "width"))).any()
    with pytest.raises(ValueError, match="family must be one of"):
        family_mask(GRID, "best")


def test_budgets_double_from_one_trajectory_at_the_trained_depth():
    assert budgets_of(GRID, COSTS) == [2.0, 4.0, 8.0]
    assert budgets_of(GRID, np.full((3, 3), np.nan)) == []


def test_budgets_reach_the_headline_where_no_cell_does():
    assert budgets_of(GRID, np.ones((3, 3))) == [1.0, 2.0, 4.0]


def test_holm_over_budgets_is_stricter_than_one_test():
    rows = matched(Judge(GRID, built(0.75, 0.65, seed=3)), PRICE)
    assert any("p_holm" in row["contrasts"]["width-depth"] for row in rows)
    for row in rows:
        found = row["contrasts"]["width-depth"]
        if found["verdict"] not in ("nothing to compare", "same cell"):
            assert found["p_holm"] >= found["p_value"]
