"""The driver's real queue at sizes that no test machine has."""

from __future__ import annotations

import pytest

from gram.distributed.simulation import DRIVER_S, simulate


@pytest.mark.slow
def test_a_thousand_workers_of_one_second_shards_are_busy_where_the_driver_keeps_up():
    run = simulate(workers=1000, shards=50_000, driver_s=0.0005)
    assert run.busy >= 0.95


def test_the_driver_is_what_saturates():
    """More workers than shard time over driver time cannot all be busy, and the share says how many are."""
    few = simulate(workers=100, shards=5000)
    many = simulate(workers=2000, shards=20_000)
    assert few.busy > 0.95
    assert few.driver_busy < 0.2
    assert many.driver_busy > 0.95
    assert many.busy == pytest.approx(1 / (2000 * DRIVER_S), rel=0.15)


def test_deaths_and_slow_workers_cost_little():
    calm = simulate(workers=50, shards=2500)
    rough = simulate(workers=50, shards=2500, deaths=10, slow_workers=2)
    assert rough.retries >= 10
    assert rough.reissues >= 2
    assert rough.elapsed_s < 1.25 * calm.elapsed_s


def test_same_seed_same_run():
    assert simulate(workers=9, shards=99, deaths=3) == simulate(workers=9, shards=99, deaths=3)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        simulate(workers=0, shards=1)
    with pytest.raises(ValueError, match="spread must be within 0 and 1, got 1"):
        simulate(workers=1, shards=1, spread=1.0)
