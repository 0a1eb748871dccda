"""Noise of puzzles and timings makes no winner of equal arms, and hides none of unequal ones: a small version of
`scripts/simulate_choice.py`."""

import numpy as np

from scripts.simulate_choice import study


def told_apart(found, name="width-depth"):
    """Sign of a difference whose interval leaves out zero; 0 where it holds it."""
    return int(found[name]["low"] > 0) - int(found[name]["high"] < 0)


def test_equal_arms_seldom_have_a_winner():
    """At most 7 of 100 in 500 studies; of 40, a share of .05 exceeds 6 in one of 70 tries."""
    found = [study(seed) for seed in range(40)]
    for name in ("width-depth", "width-restarts"):
        assert sum(told_apart(each, name) != 0 for each in found) <= 6
    changes = np.array([each["width-depth"]["choice_changes"] for each in found])
    assert 0 < changes.mean() < 0.5, "the noise must decide some choices, or nothing is tried"
    assert all((each["width-depth"]["p_value"] < 0.05) == (told_apart(each) != 0) for each in found)


def test_a_real_difference_is_told_either_way():
    for sign in (1, -1):
        assert [told_apart(study(seed, wide_less_deep=0.15 * sign)) for seed in range(8)] == [sign] * 8


def test_without_noise_of_timings_no_draw_changes_the_choice():
    assert all(study(seed, spread=0.0)["width-depth"]["choice_changes"] == 0 for seed in range(3))
