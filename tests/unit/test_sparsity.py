"""How sparse states are: the measures, their Gaussian null, the trace's columns, the selector and the width policy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gram
from gram.cli.main import main
from gram.config import SamplerConfig, config_to_json
from gram.evals.frontier.grid import Grid
from gram.sampler import run as runs
from gram.sampler import scheduler
from gram.sampler.engine import Engine, Observer
from gram.sampler.run import resolve, sample, shards_of, supported_selectors
from gram.sampler.selectors import RECORDED, Scores, select
from gram.sampler.sparsity import gaussian_null, measures, measures_of_states, top_count
from gram.sampler.store import StoreError
from gram.sampler.trace import FLOATS, SIGNAL, SPARSITY, Traces
from gram.sampler.width import Standing, first_look, width_policy_of
from gram.tasks.protocol import puzzle_hash
from gram.tasks.registry import get_task
from tests.models import tiny_config, tiny_model

TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split(name).puzzles for name in ("train", "validation", "test")])[:5]
COUNT = 40
"""Numbers of the small states here: the largest 5 % are two."""


def state(*values: float) -> torch.Tensor:
    """One trajectory's state `[1, 5, 8]` that begins with `values`; the rest are zeros."""
    return torch.tensor([*values, *[0.0] * (COUNT - len(values))]).reshape(1, 5, 8)


def settings_of(**overrides):
    return resolve(SamplerConfig(**{"width": 4, "halting": "fixed", **overrides}), tiny_model())


def test_by_hand() -> None:
    # Energies 9, 16, 0 ... of 25: the two largest have all; |x|_1 = 7, |x|_2 = 5.
    root = COUNT**0.5
    top, hoyer, participation = measures(state(3, -4))[0].tolist()
    assert (top, hoyer) == (1, pytest.approx((root - 7 / 5) / (root - 1)))
    assert participation == pytest.approx(625 / (81 + 256))
    # Three numbers of 1, 2, 2: the two largest have 8 of 9.
    assert measures(state(2, 1, -2))[0].tolist() == pytest.approx([8 / 9, (root - 5 / 3) / (root - 1), 81 / 33])
    assert top_count(COUNT) == 2
    assert top_count(41) == 3
    assert top_count(3) == 1


@pytest.mark.parametrize("place", [0, 17, COUNT - 1])
def test_one_number_has_everything_and_equal_ones_share_it(place: int) -> None:
    one_hot = torch.zeros(COUNT)
    one_hot[place] = -3
    assert measures(one_hot.reshape(1, 5, 8))[0].tolist() == pytest.approx([1, 1, 1])
    assert measures(torch.full((1, 5, 8), -0.5))[0].tolist() == pytest.approx([2 / COUNT, 0, COUNT], abs=1e-6)


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=COUNT, max_size=COUNT),
    scale=st.floats(1e-3, 1e3),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_bounds_and_what_changes_nothing(values: list[float], scale: float, order) -> None:
    x = torch.tensor(values)
    if x.abs().amax() < 1e-3:
        x[0] = 1.0
    found = measures(x.reshape(1, 5, 8))[0]
    assert top_count(COUNT) / COUNT - 1e-6 <= found[0] <= 1
    assert 0 <= found[1] <= 1
    assert 1 <= found[2] <= COUNT
    places = list(range(COUNT))
    order.shuffle(places)
    signs = torch.tensor([order.choice([-1.0, 1.0]) for _ in places])
    other = measures((scale * x * signs)[places].reshape(1, 5, 8))[0]
    assert other.tolist() == pytest.approx(found.tolist(), rel=1e-4, abs=1e-4)


def test_extreme_scales_and_a_state_of_zeros() -> None:
    plain = measures(state(3, -4))[0].tolist()
    for scale in (1e-30, 1e30):
        assert measures(state(3 * scale, -4 * scale))[0].tolist() == pytest.approx(plain)
    assert measures(state()).isnan().all(), "of a state of zeros nothing is known"
    assert measures(torch.zeros(0, 5, 8)).shape == (0, 3)
    assert measures(state(3, -4).to(torch.bfloat16))[0].tolist() == pytest.approx(plain)


@pytest.mark.parametrize(("tokens", "dim"), [(5, 8), (36, 32), (17, 129)])
def test_the_null_is_what_normal_states_have(tokens: int, dim: int) -> None:
    count, draws = tokens * dim, 400
    drawn = np.random.default_rng(0).standard_normal((draws, tokens, dim)).astype(np.float32)
    found = measures(torch.from_numpy(drawn)).double()
    null = gaussian_null(count)
    error = found.std(0) / draws**0.5
    assert abs(found[:, 1].mean() - null.hoyer) < 4 * error[1], "exact"
    assert abs(found[:, 0].mean() - null.top_share) < 4 * error[0] + 1 / count, "a limit"
    harmonic = 1 / (1 / found[:, 2]).mean()
    assert abs(harmonic - null.participation) < 4 * error[2], "exact as a harmonic mean"
    assert gaussian_null(count) is null, "computed once for a shape"


def test_the_null_of_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 2, got 1"):
        gaussian_null(1)


class States(Observer):
    """Measures the states themselves after every step, by puzzle, trajectory and step."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], np.ndarray] = {}

    def on_advanced(self, engine: Engine) -> None:
        slots = engine.slots
        measured = measures_of_states(slots.h, slots.l).numpy()
        for row in range(engine.occupied):  # what lies behind is stale
            names = int(slots.hash[row]), int(slots.trajectory[row]), int(slots.step[row])
            self.found[names] = measured[row]


def test_columns_of_the_trace_are_those_of_the_states(tmp_path) -> None:
    states = States()
    config = settings_of(measures_sparsity=True, halting="head", slots=3, launch=2)
    result = sample(tiny_model(), TASK, PUZZLES, config, is_traced=True, out=tmp_path, observer=states)
    with Traces.open(tmp_path) as traces:
        assert traces.measures_sparsity
        (block,) = traces.blocks()
    assert block.sparsity is not None
    assert block.sparsity.shape == (len(PUZZLES), 4, config.depth, len(SPARSITY))
    for place, puzzle in enumerate(PUZZLES):
        for trajectory in range(4):
            taken = int(result.steps[place, trajectory])
            for step in range(config.depth):
                names = puzzle_hash(TASK.name, puzzle), trajectory, min(step + 1, taken)
                assert block.sparsity[place, trajectory, step] == pytest.approx(states.found[names], rel=1e-6)
    assert result.sparsity is not None
    assert np.array_equal(result.sparsity, block.sparsity[:, :, -1, SIGNAL])


def test_what_is_measured_changes_nothing_else(tmp_path) -> None:
    plain = sample(tiny_model(), TASK, PUZZLES, settings_of(), is_traced=True, out=tmp_path / "plain")
    with_it = sample(
        tiny_model(), TASK, PUZZLES, settings_of(measures_sparsity=True), is_traced=True, out=tmp_path / "measured"
    )
    assert plain.sparsity is None
    assert with_it.trajectories_sha256 == plain.trajectories_sha256
    with runs.Store.read_only(tmp_path / "plain") as one, runs.Store.read_only(tmp_path / "measured") as other:
        for index in one.done():
            before, after = one.read(index), other.read(index)
            assert after.keys() - before.keys() == {"sparsity", *(f"trace_{name}" for name in SPARSITY)}
            assert all(before[name].tobytes() == after[name].tobytes() for name in before)
        assert "measures_sparsity" not in one.metadata["config"]
        assert other.metadata["config"]["measures_sparsity"]
    with Traces.open(tmp_path / "plain") as traces:
        assert not traces.measures_sparsity
        assert all(block.sparsity is None for block in traces.blocks())


def test_a_run_that_does_not_ask_measures_nothing(tmp_path, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("measured unasked")

    monkeypatch.setattr("gram.sampler.engine.measures_of_states", refuse)
    monkeypatch.setattr("gram.sampler.run.gaussian_null", refuse)
    result = sample(tiny_model(), TASK, PUZZLES, settings_of(), is_traced=True, out=tmp_path)
    assert set(result.arrays()) == {*scheduler.BY_TRAJECTORY, "puzzles", "widths"}
    with runs.Store.read_only(tmp_path) as store:
        assert {name for name in store.read(0) if name.startswith("trace_")} == {
            *(f"trace_{name}" for name in FLOATS),
            *("trace_answer", "trace_table", "trace_table_size", "trace_right"),
        }


def test_a_run_continues_and_a_folder_of_another_is_refused(tmp_path) -> None:
    measured = settings_of(measures_sparsity=True)
    first = sample(tiny_model(), TASK, PUZZLES, measured, out=tmp_path)
    again = sample(tiny_model(), TASK, PUZZLES, measured, out=tmp_path)
    assert np.array_equal(first.sparsity, again.sparsity)
    with pytest.raises(StoreError):
        sample(tiny_model(), TASK, PUZZLES, settings_of(), out=tmp_path)


def test_a_trace_that_lacks_a_column_is_refused(tmp_path) -> None:
    config = settings_of()
    sample(tiny_model(), TASK, PUZZLES, config, is_traced=True, out=tmp_path)
    with Traces.open(tmp_path) as traces:
        traces.measures_sparsity = True
        with pytest.raises(StoreError, match="must hold trace_h_top_share"):
            list(traces.blocks())


def test_the_selector_picks_the_least_sparse_state() -> None:
    result = sample(tiny_model(), TASK, PUZZLES, settings_of(selector="sparsity", width=6))
    assert result.sparsity is not None
    assert result.config.measures_sparsity
    assert np.array_equal(result.selected, result.sparsity.argmin(1))
    nothing = np.zeros((1, 4), np.float32)
    scores = Scores(
        np.array([[1, 1, 0, 1]]), nothing, nothing, nothing, nothing, np.ones((1, 4), np.int64), nothing > 0
    )
    sparsity = np.array([[np.nan, 0.3, 0.1, 0.2]], np.float32)
    assert select("sparsity", scores._replace(sparsity=sparsity))[0] == 3, "NaN ranks last, and 2 does not count"
    with pytest.raises(ValueError, match="selector sparsity must have a run with measures_sparsity, got one without"):
        select("sparsity", scores)
    assert "sparsity" not in RECORDED
    assert "sparsity" not in supported_selectors(tiny_model())


def test_the_width_policy_stops_at_a_state_that_is_not_sparse() -> None:
    every = sample(tiny_model(), TASK, PUZZLES, settings_of(measures_sparsity=True, width=16)).sparsity
    assert every is not None
    threshold = float(np.median(every[:, :4].min(1)))
    config = settings_of(width_policy="sparse", width_threshold=threshold, width=16)
    for slots in (1, 7):
        result = sample(tiny_model(), TASK, PUZZLES, replace(config, slots=slots))
        expected = [next((n for n in (1, 4, 16) if row[:n].min() <= threshold), 16) for row in every]
        assert result.widths.tolist() == expected
        assert len(set(expected)) > 1
    policy = width_policy_of(config)
    assert policy is not None
    assert first_look("sparse", threshold, 16) == 1
    trust = np.array([-threshold, -threshold - 1e-3])
    ones = np.ones(2, np.int64)
    assert policy.decides(Standing(ones, ones, ones, trust, trust, ones > 2)).tolist() == [True, False]


def test_the_width_policy_trusts_a_gaussian_state_where_nobody_names_a_threshold() -> None:
    config = settings_of(width_policy="sparse")
    assert config.measures_sparsity
    assert config.width_threshold == gaussian_null(16 * 16).hoyer
    assert config_to_json(config)["measures_sparsity"]
    assert resolve(config, tiny_model()) == config
    assert "measures_sparsity" not in config_to_json(settings_of())
    assert runs.identity_json(config, without=()).get("measures_sparsity") is True
    assert shards_of(5, config)[0].trajectories == config.width, "a puzzle's trajectories stay together"


@pytest.mark.parametrize(
    "asked", [{"selector": "sparsity"}, {"width_policy": "sparse"}, {"measures_sparsity": True, "injector": None}]
)
def test_a_lattice_is_refused(asked) -> None:
    with pytest.raises(ValueError, match="sparsity must be measured of continuous states, got a lattice"):
        gram.load("sudoku-lattice").settings(**asked)


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="width_threshold must be between 0 and 1, got 1"):
        SamplerConfig(width_policy="sparse", width_threshold=1.0)
    with pytest.raises(ValueError, match="width_policy must be fixed with a resampler, got sparse"):
        SamplerConfig(width_policy="sparse", resampler="lprm")
    with pytest.raises(ValueError, match="selectors must be some of"):
        Grid(widths=(1,), depths=(8,), selectors=("sparsity",))
    assert tiny_config(selector="sparsity").selector == "sparsity"


def test_the_command_line(tmp_path, capsys) -> None:
    command = ["sample", "nqueens8", "--limit", "2", "--width", "2", "--depth", "2", "--json", "--quiet"]
    assert main([*command, "--trace", str(tmp_path / "t"), "--measures-sparsity"]) == 0
    assert json.loads(capsys.readouterr().out)["measures_sparsity"] is True
    with Traces.open(tmp_path / "t") as traces:
        (block,) = traces.blocks()
    assert block.sparsity is not None
    assert np.isfinite(block.sparsity).all()
    assert main([*command, "--out", str(tmp_path / "o"), "--width-policy", "sparse", "--width-threshold", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "o").exists()
