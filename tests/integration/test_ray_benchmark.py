"""The benchmark of a new cluster's start: what its row says. No speed is judged here."""

import pytest

from gram.evals.benchmarks import ray_benchmark


def test_the_row_holds_the_rounds_differences(monkeypatch):
    ran = []

    def digest(*options):
        ran.append(options)
        return "same"

    monkeypatch.setattr(ray_benchmark, "digest", digest)
    row = ray_benchmark.start_row(3)
    seconds = row.facts["seconds"]
    differences = sorted(new - off for new, off in zip(seconds["new"], seconds["off"], strict=True))
    assert [row.low, row.ratio, row.high] == differences
    assert row.is_met, "nothing was run"
    assert sorted(ran) == [("--ray", "new")] * 4 + [("--ray", "off")] * 4, "a round to warm up, then three"


def test_no_time_is_given_where_results_differ(monkeypatch):
    monkeypatch.setattr(ray_benchmark, "digest", lambda *options: options[-1])
    with pytest.raises(ValueError, match="--ray new must give the trajectories of --ray off, got others"):
        ray_benchmark.start_row(1)


@pytest.mark.slow
@pytest.mark.alone
def test_a_command_that_fails_is_named():
    with pytest.raises(
        ValueError, match=r"gram eval nqueens8 .* --ray nowhere must succeed, got gram: ray must be off"
    ):
        ray_benchmark.digest("--ray", "nowhere")
    assert len(ray_benchmark.digest("--ray", "off")) == 64
