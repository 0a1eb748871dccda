"""Width policy `first-halt`: every trajectory of a stage stops at the first that halts, whatever ran where and when."""

import functools
import json
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram import checkpoint
from gram.cli.main import main
from gram.config import SamplerConfig, config_to_json
from gram.distributed.worker import Runner, pack
from gram.evals.comparison import compare, read
from gram.evals.evaluate import judge
from gram.sampler.engine import Engine, Observer, Progress
from gram.sampler.record import Serialized
from gram.sampler.run import Job, resolve, sample, shards_of
from gram.sampler.store import Store
from gram.sampler.trace import FLOATS, Traces
from gram.tasks.registry import get_task
from tests.models import tiny_model
from tests.unit.test_lattice import lattice_model

WIDTH, COUNT = 6, 4
KEPT = ("candidates", "steps", "halt", "lprm", "residual", "margin", "is_halted")


def continuous():
    """Halts anywhere within the depth, some trajectories never."""
    model = tiny_model()
    model.halt.weight.mul_(20)
    model.halt.bias.fill_(-6.0)
    return model


MODELS = {
    "head": (continuous, "nqueens4", {"depth": 6, "halt_threshold": 0.5}),
    "unchanged": (
        continuous,
        "nqueens4",
        {"depth": 10, "halting": "unchanged", "halt_threshold": 1, "temperature": 0.3},
    ),
    "residual": (continuous, "nqueens4", {"depth": 6, "halting": "residual", "halt_threshold": 0.5}),
    "views": (continuous, "nqueens4", {"depth": 6, "halt_threshold": 0.5, "views": "random"}),
    "backtrack": (
        lambda: lattice_model(search="backtrack", drop_below=0.4, halt_threshold=0.86),
        "sudoku4",
        {"depth": 20},
    ),
    "restart": (
        lambda: lattice_model(search="restart", drop_below=0.2, halt_threshold=0.86),
        "sudoku4",
        {"depth": 20},
    ),
}


@functools.cache
def parts(name):
    make, task, own = MODELS[name]
    return make(), get_task(task), get_task(task).split("train", limit=COUNT).puzzles, own


class Answers(Observer):
    """Keeps every answer, `[P, N, M, A]`."""

    def __init__(self, shape):
        self.answers = np.zeros(shape, np.uint8)

    def on_step(self, view):
        self.answers[view.puzzle, view.trajectory, view.step - 1] = view.answers


@functools.cache
def full_run(name, launch, seed):
    """A run of fixed width, and what its trajectories held after every step: arrays `[P, N, M, ...]`."""
    model, task, puzzles, own = parts(name)
    config = SamplerConfig(width=WIDTH, kernel="eager", launch=launch, seed=seed, width_policy="fixed", **own)
    seen = Answers((COUNT, WIDTH, own["depth"], model.config.output_tokens))
    with tempfile.TemporaryDirectory() as folder:
        whole = sample(model, task, puzzles, config, out=folder, is_traced=True, observer=seen)
        with Traces.open(folder) as traces:
            (block,) = traces.blocks()
    return whole, {"candidates": seen.answers, **{each: getattr(block, each) for each in FLOATS}}


def expected(name, launch, seed, width, stage):
    """Widths, arrays `[P, width, ...]` and winners by the definition, from a full run alone."""
    whole, steps = full_run(name, launch, seed)
    depth = steps["halt"].shape[2]
    halts = np.where(whole.is_halted, whole.steps, depth + 1)
    widths, winners = np.zeros(COUNT, int), np.zeros(COUNT, int)
    arrays = {each: np.zeros_like(getattr(whole, each)[:, :width]) for each in KEPT}
    for puzzle in range(COUNT):
        for start in range(0, width, stage):
            members = range(start, min(start + stage, width))
            first = min(halts[puzzle, member] for member in members)
            for member in members:
                for each, values in steps.items():
                    arrays[each][puzzle, member] = values[puzzle, member, min(first, depth) - 1]
                arrays["steps"][puzzle, member] = min(first, depth)
                arrays["is_halted"][puzzle, member] = halts[puzzle, member] == first <= depth
            widths[puzzle] = members[-1] + 1
            if first <= depth:
                winners[puzzle] = min(member for member in members if halts[puzzle, member] == first)
                break
    return widths, arrays, winners


def run(name, **changes):
    model, task, puzzles, own = parts(name)
    given_ = {"width": WIDTH, "kernel": "eager", "launch": 4, "width_policy": "first-halt", **own, **changes}
    return sample(model, task, puzzles, SamplerConfig(**given_))


@pytest.mark.parametrize("name", MODELS)
def test_the_models_halt_early_late_and_never(name):
    """Otherwise the definition would have nothing to decide."""
    whole = full_run(name, 4, 0)[0]
    first = np.where(whole.is_halted, whole.steps, whole.steps.max() + 1).min(axis=1)
    assert len(np.unique(np.where(whole.is_halted, whole.steps, 99))) > 2
    assert (first[:, None] < whole.steps).any()
    assert not whole.is_halted.all()


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(list(MODELS)),
    width=st.integers(1, WIDTH),
    stage=st.integers(1, WIDTH) | st.none(),
    more=st.integers(0, 30),
    launch=st.sampled_from([4, 8]),
    seed=st.integers(0, 1),
    order=st.permutations(range(COUNT)),
)
def test_it_is_what_full_runs_say_whatever_the_slots_and_order(name, width, stage, more, launch, seed, order):
    stage = stage if stage is None or stage <= width else width
    model, task, puzzles, own = parts(name)
    order, slots = np.array(order), (stage or width) + more
    given_ = {"width": width, "width_stage": stage, "launch": launch, "slots": slots, "seed": seed, **own}
    config = SamplerConfig(**given_, width_policy="first-halt", kernel="eager")
    found = sample(model, task, puzzles[order], config)
    widths, arrays, winners = expected(name, launch, seed, width, stage or width)
    assert found.widths.tolist() == widths[order].tolist()
    assert found.selected.tolist() == winners[order].tolist()
    for each in KEPT:
        np.testing.assert_array_equal(getattr(found, each), arrays[each][order], err_msg=each)
    assert found.steps_run == found.steps.sum(), "nothing runs that does not count"


def test_the_compiled_path_says_the_same():
    eager, compiled = (run("backtrack", width_stage=3, kernel=kernel) for kernel in ("eager", "compiled"))
    assert np.array_equal(eager.steps, compiled.steps)
    assert np.array_equal(eager.candidates, compiled.candidates)


def test_one_at_a_time_is_trusted_one_at_a_time():
    """Of a stage of 1 each trajectory runs to its own end, and the first to halt by id is the answer."""
    whole, found = full_run("head", 4, 0)[0], run("head", width_stage=1)
    for puzzle, width in enumerate(found.widths):
        assert np.array_equal(found.candidates[puzzle, :width], whole.candidates[puzzle, :width])
        assert not whole.is_halted[puzzle, : width - 1].any()
        assert whole.is_halted[puzzle, width - 1] or width == WIDTH


def test_unpadded_launches_and_static_batches_stop_at_the_same_step():
    model, task, puzzles, own = parts("head")
    padded = run("head", width_stage=3)
    unpadded = run("head", width_stage=3, is_padded=False)
    assert np.array_equal(unpadded.steps, padded.steps)
    config = SamplerConfig(width=WIDTH, launch=4, width_policy="first-halt", width_stage=3, kernel="eager", **own)
    config = resolve(config, model)
    engine = Engine(model, task, puzzles, config, is_static=True)
    ((_, static),) = engine.run(shards_of(COUNT, config))
    assert np.array_equal(static.steps, padded.steps)
    assert np.array_equal(static.candidates, padded.candidates)


def test_traces_end_where_it_stops_and_hold_no_state_at_rest(tmp_path):
    model, task, puzzles, own = parts("backtrack")
    config = SamplerConfig(width=WIDTH, launch=4, width_policy="first-halt", width_stage=3, kernel="eager", **own)
    found = sample(model, task, puzzles, config, out=tmp_path, is_traced=True)
    assert found.trajectories_sha256 == run("backtrack", width_stage=3).trajectories_sha256
    with Traces.open(tmp_path) as traces:
        (block,) = traces.blocks()
    assert np.array_equal(block.steps, found.steps)
    last = np.maximum(block.steps - 1, 0)[..., None]
    counted = found.is_counted
    np.testing.assert_array_equal(np.take_along_axis(block.residual, last, 2)[..., 0][counted], found.residual[counted])
    np.testing.assert_array_equal(block.residual[..., -1][counted], found.residual[counted])
    right = judge(task, puzzles, found.candidates, counted)
    assert np.array_equal(block.is_right[..., -1], right)


def test_a_worker_and_a_store_give_the_same_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    """A puzzle a shard: what is finished when it is interrupted is kept, and nothing else."""
    model, task, puzzles, own = parts("head")
    monkeypatch.setattr("gram.sampler.run.TRAJECTORIES_PER_SHARD", WIDTH)
    config = SamplerConfig(width=WIDTH, launch=4, width_policy="first-halt", width_stage=2, kernel="eager", **own)
    resolved = resolve(config, model)
    job = Job(model=model, task=task, puzzles=puzzles, config=resolved, device=model.device)
    shards = shards_of(COUNT, resolved)
    assert len(shards) == COUNT
    runner = Runner(pack(job, task_module=None))
    assert runner.job.config == resolved
    whole = sample(model, task, puzzles, config)
    for shard in shards:
        theirs = Serialized.from_bytes(runner.run(shard).serialized)
        assert theirs.digest == Serialized.of(job.run_shard(shard).arrays()).digest

    class Stop(Observer):
        ended = 0

        def on_ended(self, count):
            self.ended += count
            if self.ended > 2 * WIDTH:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, task, puzzles, config, out=tmp_path, observer=Stop())
    with Store.read_only(tmp_path) as store:
        kept = {index: store.read(index)["steps"] for index in store.done()}
    assert 0 < len(kept) < COUNT
    for index, steps in kept.items():
        first = shards[index].first_puzzle
        assert np.array_equal(steps, whole.steps[first : first + len(steps)])
    ended = []
    resumed = sample(model, task, puzzles, config, out=tmp_path, observer=Progress(ended.append))
    assert resumed.trajectories_sha256 == whole.trajectories_sha256
    assert sum(ended) == COUNT * WIDTH


def test_bad_settings_are_told_in_a_line():
    for settings_, line in (
        ({"width_stage": 2, "width_policy": "trusted"}, "width_stage must come with first-halt, got trusted"),
        ({"width_stage": 0, "width_policy": "first-halt"}, "width_stage must be within 1 and the width, 20, got 0"),
        ({"width_stage": 21, "width_policy": "first-halt"}, "width_stage must be within 1 and the width, 20, got 21"),
        ({"width_threshold": 0.5, "width_policy": "first-halt"}, "width_threshold must come with staged, trusted"),
        ({"halting": "fixed", "width_policy": "first-halt"}, "halting must be a rule that halts for width_policy"),
        ({"resampler": "halt", "width_policy": "first-halt"}, "width_policy must be fixed with a resampler"),
    ):
        with pytest.raises(ValueError, match=line):
            SamplerConfig(**settings_)
    with pytest.raises(ValueError, match="slots must be at least the 5 trajectories that first-halt runs side by side"):
        run("head", width=5, slots=4)
    with pytest.raises(ValueError, match="slots must be at least the 3 trajectories"):
        run("head", width_stage=3, slots=2)


def test_slots_and_selector_follow_it_where_nobody_names_them():
    model = tiny_model(width_policy="first-halt", selector="halt")
    own = resolve(SamplerConfig(width=300), model)
    assert (own.width_policy, own.slots, own.selector, own.stage) == ("first-halt", 300, "first-halt", 300)
    assert "width_stage" not in config_to_json(own)
    staged = resolve(SamplerConfig(width=300, width_policy="first-halt", width_stage=2, selector="vote"), model)
    assert (staged.slots, staged.selector, staged.stage) == (resolve(SamplerConfig(), tiny_model()).slots, "vote", 2)
    assert resolve(replace(own, width=3), model).stage == 3
    assert resolve(SamplerConfig(width_policy="fixed"), model).selector == "halt"


def test_an_evaluation_tells_no_accuracy_of_trajectories_that_were_cut(tmp_path, capsys):
    folder = tmp_path / "model"
    checkpoint.save(continuous(), folder)
    command = ["eval", "nqueens4", "--checkpoint", str(folder), "--split", "train", "--limit", "4", "--quiet", "--json"]
    command += ["--width", "6", "--depth", "6", "--launch", "4", "--kernel", "eager", "--halt-threshold", ".5"]
    first_halt, told = ["--width-policy", "first-halt"], {}
    for name, more in (
        ("fixed", ["--width-policy", "fixed"]),
        ("one", [*first_halt, "--width-stage", "1"]),
        ("two", [*first_halt, "--width-stage", "2"]),
        ("all", first_halt),
    ):
        assert main([*command, *more, "--out", str(tmp_path / name)]) == 0
        told[name] = json.loads(capsys.readouterr().out)
    assert told["two"]["single_accuracy"] is told["all"]["single_accuracy"] is None
    assert told["one"]["single_accuracy"] is not None
    assert (told["two"]["width_stage"], told["two"]["selector"]) == (2, "first-halt")
    assert told["all"]["mean_width"] == 6
    for each in told.values():
        assert each["steps_run"] == each["supervision_steps"] or each is told["one"]
        per_step = told["fixed"]["flops_of_answer"] / told["fixed"]["supervision_steps"]
        assert each["flops_of_answer"] == pytest.approx(per_step * each["supervision_steps"])
    differences = compare(read(tmp_path / "two"), read(tmp_path / "fixed"))["differences"]
    assert [row["measure"] for row in differences] == ["accuracy", "single_accuracy"]
    assert np.isfinite(differences[0]["low"])
    assert np.isnan(differences[1]["difference"])
    assert not differences[1]["is_told_apart"]
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "two"), str(tmp_path / "fixed")]) == 0
    shown = capsys.readouterr().out
    assert "the answer" in shown
    assert "one trajectory" not in shown
    assert main(["compare", str(tmp_path / "two"), str(tmp_path / "fixed"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][1]["difference"] is None
