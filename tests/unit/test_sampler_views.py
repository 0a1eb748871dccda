"""Views in the sampler: a trajectory runs on its turned puzzle, everything else sees its answer turned back."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram import checkpoint
from gram.api import Sampler, load
from gram.cli.main import main
from gram.config import ModelConfig, SamplerConfig, config_from_json, config_to_json
from gram.distributed.worker import Runner, pack
from gram.evals import ablation
from gram.evals.frontier.prefix_timing import time_prefix
from gram.kernels.philox import NoiseKey, Site, counter_word1, random_bits, random_words
from gram.sampler.engine import Engine, Observer, injection_of
from gram.sampler.record import Serialized
from gram.sampler.run import Job, make_plan, resolve, sample, shape_of, shards_of
from gram.sampler.trace import Traces
from gram.sampler.views import SlotViews, draw_views
from gram.tasks.protocol import Task, puzzle_hash
from gram.tasks.registry import get_task
from gram.tasks.views import Views
from gram.training.recipe import load_recipe
from tests.models import tiny_model

ROOT = Path(__file__).parents[2]
TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split(name).puzzles for name in ("train", "validation", "test")])
SHAPES = {
    "nqueens4": {},
    "sudoku4": {"task": "sudoku4", "vocabulary": 6},
    "colouring4": {
        "task": "colouring4",
        "vocabulary": 6,
        "tokens": 10,
        "output_start": 6,
        "output_tokens": 4,
        "registers": 2,
        "mixer": "attention",
    },
}
NAMES = ("candidates", "steps", "halt", "lprm", "residual", "margin", "votes", "lineage")


def run(model, puzzles=PUZZLES[:5], task=TASK, **settings_):
    values = {"width": 6, "halting": "fixed", "launch": 8, "kernel": "eager", "views": "random", **settings_}
    return sample(model, task, puzzles, SamplerConfig(**values))


def blind_model(**overrides):
    """A model without noise: a trajectory depends on nothing but its view. Its heads differ from state to state."""
    model = tiny_model(guidance="none", **overrides)
    model.halt.weight.mul_(20)
    model.halt.bias.fill_(-40)
    return model


def by_hand(model, task, puzzle, trajectory, config):
    """Answer and halt logit of one trajectory: the turned puzzle run with the noise of the puzzle as given."""
    key = np.array([puzzle_hash(task.name, puzzle)]), np.array([trajectory])
    words = random_words(task.symmetry_words, config.seed, *key, Site.VIEW) if trajectory else None
    view = task.symmetry(puzzle[None], np.zeros((1, task.symmetry_words), np.uint32) if words is None else words)
    rows = config.launch
    e_x = model.embed(torch.from_numpy(view.apply(puzzle[None]).astype(np.int64))).expand(rows, -1, -1)
    h, l = model.initial_state(rows)
    for step in range(config.depth):
        noise = NoiseKey(config.seed, *(torch.full((rows,), int(value)) for value in (key[0][0], trajectory, step)))
        h, l, halt, _ = model.step(h, l, e_x, noise, injection=injection_of(config), spec=model.spec, kernel="eager")
    answer = model.decode(h).argmax(-1).to(torch.uint8).numpy()[:1]
    return view.undo(answer)[0], float(halt[0])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("injector", ["prior", "gaussian"])
def test_a_trajectory_is_that_of_its_turned_puzzle_turned_back_bit_for_bit(name, injector):
    task, model = get_task(name), tiny_model(**SHAPES[name])
    puzzles = task.split("train", limit=3).puzzles
    result = run(model, puzzles, task, seed=2**40 + 3, injector=injector)
    plain = run(model, puzzles, task, seed=2**40 + 3, injector=injector, views="off")
    with torch.inference_mode():
        for row, puzzle in enumerate(puzzles):
            for trajectory in range(6):
                answer, halt = by_hand(model, task, puzzle, trajectory, result.config)
                assert np.array_equal(result.candidates[row, trajectory], answer)
                assert result.halt[row, trajectory] == np.float32(halt)
    for each in ("candidates", "halt", "lprm", "margin", "residual"):
        assert np.array_equal(getattr(result, each)[:, 0], getattr(plain, each)[:, 0]), "trajectory 0 is as without"
    assert not np.array_equal(result.halt[:, 1:], plain.halt[:, 1:])
    assert len(np.unique(run(blind_model(**SHAPES[name]), puzzles, task, width=20).halt)) > 6


@settings(max_examples=20)
@given(
    slots=st.integers(1, 100),
    order=st.permutations(range(4)),
    seed=st.integers(0, 3),
    policy=st.sampled_from(
        [
            {},
            {"halting": "head", "halt_threshold": 0.5, "depth": 6},
            {"halting": "unchanged", "halt_threshold": 1, "depth": 6},
            {"width_policy": "decided", "width_threshold": 0.8, "width": 9},
            {"width_policy": "staged", "width_threshold": 0.5, "width": 9},
            {"width_policy": "verified", "width": 9},
            {"resampler": "halt", "resample_threshold": 1.0},
            {"injector": "path", "sigma": 0.1},
        ]
    ),
)
def test_slots_and_order_change_no_trajectory(slots, order, seed, policy):
    model = tiny_model()
    model.halt.weight.mul_(20)
    one = run(model, PUZZLES[:4], seed=seed, slots=slots, **policy)
    other = run(model, PUZZLES[:4][list(order)], seed=seed, slots=64, **policy)
    back = np.argsort(order)
    for name in (*NAMES, "widths"):
        assert np.array_equal(getattr(one, name), getattr(other, name)[back]), name


def test_the_launch_changes_no_view():
    model = blind_model()
    answers = [run(model, launch=launch).candidates for launch in (4, 8, 16)]
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])


def test_an_adaptive_width_is_a_prefix_of_a_fixed_one():
    model = blind_model()
    fixed = run(model, PUZZLES, width=9)
    adaptive = run(model, PUZZLES, width=9, width_policy="decided", width_threshold=0.7)
    assert 1 <= adaptive.widths.min() < 9
    for row, width in enumerate(adaptive.widths):
        assert np.array_equal(adaptive.candidates[row, :width], fixed.candidates[row, :width])


@pytest.mark.parametrize("slots", [5, 64])
def test_a_state_keeps_its_view_when_it_is_copied_to_another_trajectory(slots):
    """Without noise a trajectory is what its view makes of the puzzle: a copy must end as its lineage does alone."""
    model = blind_model()
    alone = run(model, PUZZLES, width=8)
    copied = run(model, PUZZLES, width=8, resampler="halt", resample_threshold=1.0, slots=slots)
    is_copy = copied.lineage != np.arange(8)
    assert is_copy.mean() > 0.2
    row = np.arange(len(PUZZLES))[:, None]
    for name in ("candidates", "halt", "margin"):
        expected = getattr(alone, name)[row, copied.lineage]
        assert np.array_equal(getattr(copied, name), expected), name
    assert not np.array_equal(copied.candidates[is_copy], alone.candidates[is_copy]), "another view would be seen"


class Seen(Observer):
    """Answers by puzzle, trajectory and step."""

    def __init__(self):
        self.answers = {}

    def on_step(self, view):
        for row, answer in enumerate(view.answers):
            self.answers[int(view.puzzle[row]), int(view.trajectory[row]), int(view.step[row])] = answer


def test_traces_and_observers_see_answers_turned_back(tmp_path):
    model, seen = tiny_model(), Seen()
    config = SamplerConfig(width=6, depth=3, launch=8, kernel="eager", halting="fixed", views="random")
    sample(model, TASK, PUZZLES[:5], config, out=tmp_path / "trace", is_traced=True, observer=seen)
    by_depth = {depth: run(model, depth=depth).candidates for depth in (1, 2, 3)}
    with Traces.open(tmp_path / "trace") as traces:
        for block in traces.blocks():
            for place, puzzle in enumerate(block.puzzle):
                for trajectory in range(6):
                    for step in (1, 2, 3):
                        found = block.tables[place][block.answer[place, trajectory, step - 1]]
                        assert np.array_equal(found, by_depth[step][puzzle, trajectory])
                        assert np.array_equal(found, seen.answers[puzzle, trajectory, step])
                        verdict = TASK.verify(PUZZLES[puzzle][None], found[None])[0]
                        assert block.is_right[place, trajectory, step - 1] == verdict


def test_halting_counts_answers_that_are_turned_back():
    model, seen = blind_model(mixer="attention"), Seen()
    config = SamplerConfig(width=6, depth=8, launch=8, halting="unchanged", halt_threshold=1, views="random")
    result = sample(model, TASK, PUZZLES[:6], config, observer=seen)
    for (puzzle, trajectory, step), answer in seen.answers.items():
        last = int(result.steps[puzzle, trajectory])
        before = seen.answers.get((puzzle, trajectory, step - 1))
        is_still = before is not None and np.array_equal(before, answer)
        assert is_still == (step == last and bool(result.is_halted[puzzle, trajectory]))
        if step == last:
            assert np.array_equal(answer, result.candidates[puzzle, trajectory])
    assert 0.3 < result.is_halted.mean() < 1


def test_a_resumed_run_and_a_worker_give_what_a_local_run_gives(tmp_path):
    model = tiny_model()
    model.config = replace(model.config, views="random")
    for settings_ in ({}, {"resampler": "halt"}, {"views": "off"}):
        config = resolve(SamplerConfig(width=6, launch=8, kernel="eager", **settings_), model)
        assert config.views == settings_.get("views", "random")
        job = Job(model=model, task=TASK, puzzles=PUZZLES[:4], config=config, device=model.device)
        runner = Runner(pack(job, task_module=None))
        assert runner.job.config == config
        for shard in shards_of(4, config):
            theirs = Serialized.from_bytes(runner.run(shard).serialized)
            assert theirs.digest == Serialized.of(job.run_shard(shard).arrays()).digest
    folder = tmp_path / "run"
    settings_ = SamplerConfig(width=12, launch=8, kernel="eager")

    class Stop(Observer):
        def on_ended(self, count):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, TASK, PUZZLES[:4], settings_, out=folder, observer=Stop())
    resumed = sample(model, TASK, PUZZLES[:4], settings_, out=folder)
    assert resumed.trajectories_sha256 == sample(model, TASK, PUZZLES[:4], settings_).trajectories_sha256


def test_views_are_drawn_from_seed_puzzle_and_trajectory_alone():
    hashes, trajectories = np.array([7, 7, 9, 7, 2**32 - 1]), np.array([1, 2, 1, 1, 2**20])
    words = random_words(34, 5, hashes, trajectories, Site.VIEW)
    assert words.shape == (5, 34)
    assert words.dtype == np.uint32
    assert np.array_equal(words[0], words[3])
    assert len(np.unique(words)) == 4 * 34
    for row in range(5):
        alone = random_words(34, 5, hashes[row : row + 1], trajectories[row : row + 1], Site.VIEW)
        assert np.array_equal(alone[0], words[row])
    counters = counter_word1(torch.zeros(5, dtype=torch.int64), Site.VIEW)
    bits = random_bits(36, 5, counters, torch.from_numpy(trajectories), torch.from_numpy(hashes))
    assert np.array_equal(words >> 9, bits[:, :34].numpy()), "the noise contract's counters, at the site's own"
    assert not (random_words(34, 6, hashes, trajectories, Site.VIEW) == words).any()
    assert not (random_words(34, 5 + 2**32, hashes, trajectories, Site.VIEW) == words).any()
    assert len({int(site) for site in Site}) == len(Site)


class Blind(Task):
    """Knows no symmetry."""

    name, symbols, tokens = "blind", "?.Q", 16
    conflicts, is_input = TASK.conflicts, TASK.is_input

    def solutions(self, puzzle):
        return puzzle[None]


class Wrong(Blind):
    """Its symmetry is none."""

    symmetry_words = 1

    def __init__(self, positions, values=(0, 1, 2)):
        self.table = np.array(positions), np.array(values, np.uint8)

    def symmetry(self, puzzles, words):
        return Views(*(np.tile(each, (len(puzzles), 1)) for each in self.table))


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (Blind(), "views must be off for blind, which knows no symmetry, got random"),
        (Wrong([0] * 16), "symmetry of blind must move and rename tokens one to one, got tables that do not"),
        (Wrong(range(15, -1, -1)), "symmetry of blind must make puzzles, and leave them as they are by words of 0"),
        (Wrong(range(16), (1, 0, 2)), "symmetry of blind must make puzzles, and leave them as they are by words of 0"),
    ],
)
def test_a_task_without_symmetry_or_with_a_wrong_one_is_refused_in_one_line(task, line):
    with pytest.raises(ValueError) as refusal:
        run(tiny_model(), task=task)
    assert str(refusal.value) == line
    model = tiny_model()
    model.config = replace(model.config, views="random")
    with pytest.raises(ValueError) as refusal:
        run(model, task=task, views=None)
    assert str(refusal.value) == line
    assert run(model, task=task, views="off").votes.shape == (5, 6)


def test_unconditional_samples_and_unknown_values_are_refused_in_one_line(tmp_path):
    model, empty = tiny_model(has_empty_condition=True), np.zeros((1, 16), np.uint8)
    with pytest.raises(ValueError, match=r"^views must be off where no puzzle is shown \(unconditional samples\)"):
        sample(model, TASK, empty, SamplerConfig(width=2, launch=8, views="random"), is_unconditional=True)
    recipe = tmp_path / "blank.toml"
    recipe.write_text(
        "task = 'sudoku4'\ndescription = ''\n[model]\nviews = 'random'\nis_conditional = false\n"
        "has_empty_condition = true\n[training]\nsteps = 1\nempty_probability = 1.0\n"
    )
    with pytest.raises(ValueError, match=r"blank.toml: views must be off where no puzzle is shown"):
        load_recipe(recipe)
    recipe.write_text("task = 'sudoku4'\ndescription = ''\n[model]\nviews = 'random'\n[training]\nsteps = 1\n")
    assert load_recipe(recipe).model.views == "random"
    with pytest.raises(ValueError, match=r"^views must be one of off, random, got 'all'$"):
        SamplerConfig(views="all")
    with pytest.raises(ValueError, match=r"^views must be one of off, random, got 'all'$"):
        replace(model.config, views="all")


def test_without_views_a_plan_has_the_key_that_it_had_before_there_were_any():
    model = tiny_model()
    config = replace(resolve(SamplerConfig(), model), kernel="eager")
    some = {"is_unconditional": False, "is_traced": False}
    key = make_plan(model, TASK, PUZZLES, config, **some).key
    left_out = ("slots", "selector", "is_padded", "views")
    digest = hashlib.sha256()
    for part in (
        json.dumps(
            {name: value for name, value in config_to_json(config).items() if name not in left_out}, sort_keys=True
        ),
        json.dumps({n: v for n, v in config_to_json(model.config).items() if n != "selector"}, sort_keys=True),
        model.digest(),
        "nqueens4",
        hashlib.sha256(PUZZLES.tobytes()).hexdigest(),
        f"cpu torch.float32 eager False False {PUZZLES.shape}",
    ):
        digest.update(part.encode() + b"\0")
    assert key == digest.hexdigest()
    assert make_plan(model, TASK, PUZZLES, replace(config, views="random"), **some).key != key
    model.config = replace(model.config, views="random")
    assert make_plan(model, TASK, PUZZLES, config, **some).key == key, "what a checkpoint would have taken is no part"


def test_without_views_slots_hold_none():
    model = tiny_model()
    assert Engine(model, TASK, PUZZLES, resolve(SamplerConfig(), model)).slots.views is None
    assert isinstance(
        Engine(model, TASK, PUZZLES, resolve(SamplerConfig(views="random"), model)).slots.views, SlotViews
    )


def test_a_checkpoint_says_whether_trajectories_have_views(tmp_path):
    model = tiny_model()
    assert "views" not in config_to_json(model.config), "a checkpoint without is written as before"
    assert config_from_json(ModelConfig, config_to_json(model.config), where="c") == model.config
    assert resolve(SamplerConfig(), model).views == "off"
    model.config = replace(model.config, views="random")
    checkpoint.save(model, tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["views"] == "random"
    loaded = checkpoint.load(tmp_path / "c")
    assert resolve(SamplerConfig(), loaded).views == "random"
    assert resolve(SamplerConfig(views="off"), loaded).views == "off"
    assert shape_of(loaded) == shape_of(tiny_model())


def test_the_symmetry_of_the_page_on_tasks_is_one():
    """The example of a user's task, with the symmetry that the page adds to it."""
    whole, added = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL)[:2]
    made = {}
    exec(whole + added.replace("class Latin(Task)", "class Turned(Latin)"), made)
    task = made["Turned"]()
    puzzles, answers = task.draw(np.random.default_rng(0), 200)
    views = draw_views(task, 0, puzzles, np.arange(200), np.arange(200))
    turned = views.apply(puzzles)
    assert task.verify(turned, views.apply_to_answers(answers)).all()
    assert np.array_equal(views.undo(views.apply_to_answers(answers)), answers)
    assert (turned != puzzles).any(1).sum() > 150
    for row in range(20):
        assert len(task.solutions(turned[row])) == len(task.solutions(puzzles[row]))


def test_a_timed_run_of_a_frontier_has_the_views_of_its_settings(monkeypatch):
    sampler, placed = Sampler(tiny_model(), TASK, name="tiny"), []
    real = SlotViews.place
    monkeypatch.setattr(
        SlotViews, "place", lambda self, rows, *given: placed.append(len(rows)) or real(self, rows, *given)
    )
    config = sampler.settings(width=4, depth=4, slots=8, launch=8, is_padded=False, halting="fixed", views="random")
    time_prefix(sampler, PUZZLES[:1], config)
    assert placed == [4]
    time_prefix(sampler, PUZZLES[:1], replace(config, views="off"))
    assert placed == [4]


def test_the_command_line_has_views(capsys):
    arguments = ["solve", "nqueens8", "--limit", "2", "--width", "4", "--depth", "3", "--launch", "8", "--json"]
    found = {}
    for views in ("off", "random"):
        assert main([*arguments, "--views", views, "--kernel", "eager", "--dtype", "float32"]) == 0
        found[views] = json.loads(capsys.readouterr().out)
        assert found[views]["views"] == views
    sampler = load("nqueens8", device="cpu", dtype="float32")
    puzzles = sampler.task.split("test", limit=2)
    same = sampler.sample(puzzles, width=4, depth=3, launch=8, kernel="eager", views="random")
    assert found["random"]["trajectories_sha256"] == same.trajectories_sha256
    assert found["off"]["trajectories_sha256"] != same.trajectories_sha256


def test_the_shipped_study_has_cells_with_and_without_views():
    cells = ablation.read(ablation.find("views")).cells
    assert {cell.config.views for cell in cells} == {"off", "random"}


def test_a_view_of_a_user_s_puzzles_depends_on_no_other_puzzle():
    hashes, lineages = np.arange(5), np.arange(5)
    together = draw_views(TASK, 3, PUZZLES[:5], hashes, lineages)
    for row in range(5):
        at = slice(row, row + 1)
        alone = draw_views(TASK, 3, PUZZLES[at], hashes[at], lineages[at])
        assert np.array_equal(alone.positions[0], together.positions[row])
