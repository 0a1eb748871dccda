"""Notes: what a lattice of mazes writes beside the path follows from neighbours, and drops out of every answer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gram import checkpoint
from gram.config import ModelConfig, SamplerConfig
from gram.kernels.reference import core
from gram.model import Model, embed_sets, read_values
from gram.sampler.lattice import Opinion, Round, play_round
from gram.sampler.run import sample
from gram.sizes import lattice_shape, misfit, resized
from gram.tasks.maze import GOAL, OPEN, PATH, START, WALL
from gram.tasks.notes import NEVER
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.cost import cost_of
from gram.training.lattice_loss import KEEP_WEIGHT, loop
from gram.training.lattice_trainer import LatticeTrainer
from gram.training.notes_pool import NotesPool
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import Recipe, RecipeError, load_recipe
from gram.training.run_folder import starting_weights
from tests.unit.test_lattice import key, lattice_config, rules

CPU = torch.device("cpu")
TASK = get_task("maze7")
NOTES = TASK.notes
assert NOTES is not None
OFF, ON, REACHED_GOAL = 6, 9, 12
"""First symbols off the path, on it, and of the goal."""


def noted_config(**changes: object) -> ModelConfig:
    shape = lattice_shape("lattice", TASK, has_notes=True)
    lines = ("up", "down", "left", "right")
    made = {**shape, "notes": True, "search": "repair", "relations": lines, "mixer_hidden": 16}
    return lattice_config(TASK.name, **{**made, **changes})


def recipe(**training) -> Recipe:
    given_settings = {"steps": 8, "batch": 8, "rows_at_once": 4, "evaluate_puzzles": 4, "warmup_steps": 1, **training}
    return Recipe("tiny", "", TASK, noted_config(), TrainConfig(**given_settings))


def pool(**training) -> NotesPool:
    own = recipe(**training)
    made = NotesPool(TrainingPuzzles(TASK, own.model, own.training), own.model, own.training, CPU)
    made.refill(np.random.default_rng(0))
    return made


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 400))
def test_notes_follow_from_those_of_neighbours(first):
    puzzles = TASK.split("validation").puzzles[first % 190 : first % 190 + 4]
    noted = NOTES.write(puzzles)
    assert (TASK.conflicts(puzzles, NOTES.plain[noted]) == 0).all()
    assert (NOTES.candidates(puzzles) & (noted[:, :, None] == np.arange(len(NOTES.plain)))).any(2).all()
    for puzzle, symbols in zip(puzzles.reshape(-1, 7, 7), noted.reshape(-1, 7, 7), strict=True):
        symbols = symbols.astype(int)
        far = np.where(symbols >= OFF, symbols % 3, -1)
        far[puzzle == START] = 0
        for y, x in zip(*np.nonzero(far >= 0), strict=True):
            near = [(y + dy, x + dx) for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0))]
            near = [at for at in near if min(at) >= 0 and max(at) < 7 and puzzle[at] != WALL]
            assert all(far[at] >= 0 and far[at] != far[y, x] for at in near), "neighbours differ by one step"
            if puzzle[y, x] != START:
                nearer = [at for at in near if (far[y, x] - far[at]) % 3 == 1]
                assert nearer
                if symbols[y, x] >= ON:
                    assert puzzle[nearer[0]] == START or ON <= symbols[nearer[0]] < REACHED_GOAL
        unreached = (puzzle == OPEN) & (symbols == OPEN)
        assert not (unreached[1:] & (far[:-1] >= 0)).any()
        assert not (unreached[:, 1:] & (far[:, :-1] >= 0)).any()


def opinion_of(count: int, *, sound: float = 5.0) -> Opinion:
    return Opinion(torch.full((count, 6, 4), 5.0), torch.zeros(count, 6, 4), torch.full((count,), sound))


NONE_GIVEN = torch.zeros(2, 6, dtype=torch.bool)
FIRST = torch.ones(2, 6, 4, dtype=torch.bool)


def test_a_token_is_committed_only_where_nothing_was_removed():
    said = opinion_of(2)
    said.keep[0, 2, 1] = -9.0
    played = play_round(FIRST, NONE_GIVEN, said, rules(repairs=True), key(2), None, FIRST)
    assert (played.choice >= 0).tolist() == [False, True]
    assert played.sets[0].sum() == 23
    assert not played.is_conflict.any()


def test_a_token_without_a_value_gets_all_of_them_back():
    sets, said = FIRST.clone(), opinion_of(2, sound=-5.0)
    sets[:, 3, 1:] = False
    said.keep[0, 3, 0] = -9.0
    first = FIRST.clone()
    first[:, 3, 2] = False
    played = play_round(sets, NONE_GIVEN, said, rules(repairs=True), key(2), None, first)
    assert torch.equal(played.sets[0, 3], first[0, 3])
    assert played.sets[0].sum() == 5 * 4 + 3
    assert not played.is_conflict.any(), "an unfinished state is not judged"


@pytest.mark.parametrize(("sound", "is_solved"), [(5.0, True), (-5.0, False)])
def test_an_answer_is_judged_when_nothing_more_is_removed_from_it(sound, is_solved):
    sets = torch.nn.functional.one_hot(torch.arange(12).view(2, 6) % 4, 4).bool()
    said = opinion_of(2, sound=sound)
    said.keep[0, 2, sets[0, 2]] = -9.0
    played = play_round(sets, NONE_GIVEN, said, rules(repairs=True, accept_above=0.5), key(2), None, FIRST)
    assert played.is_solved.tolist() == [False, is_solved]
    assert played.is_conflict.tolist() == [False, not is_solved]
    assert played.sets[0, 2].all()


def test_a_state_teaches_its_next_step_and_its_mistakes():
    states = pool(batch=32)
    seen = states.view()
    after = states.gone_at > states.step[:, None, None] + 1
    np.testing.assert_array_equal(seen.survivors.numpy(), after[..., list(NOTES.values)])
    one = states.answers[:, :, None] == np.arange(len(NOTES.plain))
    stands = states.is_astray[:, None, None] & after.any(2)[..., None]
    known = np.where(stands, states.sets, one)
    np.testing.assert_array_equal(seen.shares.numpy(), known[..., list(NOTES.values)])
    has_mistake = ~(states.sets & one).any(2).all(1)
    np.testing.assert_array_equal(seen.is_lost.numpy(), has_mistake)
    assert 0 < has_mistake.sum() < 32
    assert ((states.sets & ~after).any((1, 2)) >= has_mistake).all(), "what is wrong is to be removed"
    ideal = states.gone_at > states.step[:, None, None]
    np.testing.assert_array_equal(states.sets[~has_mistake], ideal[~has_mistake])
    is_one = has_mistake & ~states.is_astray
    assert ((states.sets != ideal).any(2).sum(1) == is_one).all(), "one token at most"
    assert 0 < states.is_astray.sum() < has_mistake.sum()
    assert (states.sets[states.is_astray].sum(2) == 1).all(), "a whole answer"


def test_states_go_on_step_by_step_and_those_with_a_mistake_leave():
    states = pool(batch=32, longest_life=100)
    before, lost = states.step.copy(), states.view().is_lost.numpy()
    nothing = torch.zeros(32, dtype=torch.bool)
    sets = torch.from_numpy(states.sets)
    states.carry(Round(sets, nothing, nothing, sets, torch.full((32,), -1)), np.random.default_rng(0))
    assert states.is_free[lost].all()
    stays = ~states.is_free
    assert (states.step[stays] > before[stays]).all()
    np.testing.assert_array_equal(states.sets[stays], (states.gone_at > states.step[:, None, None])[stays])
    assert not states.view().is_lost[torch.from_numpy(stays)].any()


def test_the_loss_with_notes_weighs_what_goes_as_what_stays():
    states, config = pool(), noted_config()
    model = Model(config, seed=1).requires_grad_(False)
    seen, weights = states.view(), model.weights()
    shown = embed_sets(weights, config, seen.puzzles, seen.sets)
    start = model.initial_state(8)[0]
    _, losses = loop(weights, config, start, shown, seen)
    keep, _ = read_values(weights, config, core(weights, "low", start + shown, model.spec))
    target = (seen.sets & seen.survivors).float()
    errors = torch.nn.functional.binary_cross_entropy_with_logits(keep, target, reduction="none")
    counted = errors * (seen.sets & ~seen.given[..., None])
    assert float(losses.keep) == pytest.approx(KEEP_WEIGHT * float(counted.sum()) / (49 * len(NOTES.values)), rel=1e-4)


def test_a_model_with_notes_sees_each_set_in_one_token():
    model = Model(noted_config(), seed=1).requires_grad_(False)
    assert model.spec.length == 49
    puzzles = TASK.split("validation", limit=2).puzzles
    sets = torch.from_numpy(NOTES.candidates(puzzles))[..., list(NOTES.values)]
    tokens = torch.from_numpy(puzzles).long()
    shown = embed_sets(model.weights(), model.config, tokens, sets)
    assert shown.shape == (2, 49, 16)
    cell = int((puzzles[0] == OPEN).argmax())
    for value in range(1, 7):
        fewer = sets.clone()
        fewer[0, cell, value] = False
        changed = (embed_sets(model.weights(), model.config, tokens, fewer) != shown).any(2)
        assert changed.nonzero().tolist() == [[0, cell]]
    keep, value = read_values(model.weights(), model.config, shown)
    assert keep.shape == value.shape == (2, 49, len(NOTES.values))
    assert not torch.equal(keep, value)


@pytest.mark.parametrize("name", ["maze7", "maze12"])
def test_answers_have_no_notes_whatever_the_size(name):
    task = get_task(name)
    model = Model(noted_config(), seed=1).requires_grad_(False)
    model.resize(resized(model.config, task))
    puzzles = task.split("validation", limit=3).puzzles
    found = sample(model, task, puzzles, SamplerConfig(width=2, depth=6, seed=3))
    assert found.candidates.shape == (3, 2, task.tokens)
    for puzzle, answers in zip(puzzles, found.candidates, strict=True):
        assert (answers[:, puzzle != OPEN] == puzzle[puzzle != OPEN]).all()
        assert np.isin(answers[:, puzzle == OPEN], (OPEN, PATH)).all()
    assert (puzzles == GOAL).sum() == 3


def test_a_run_with_notes_goes_on_as_it_was_and_its_checkpoint_samples(tmp_path: Path):
    def trainer(out: Path) -> LatticeTrainer:
        return LatticeTrainer(recipe(judge_weight=0.1), out, device=CPU, dtype=torch.float32, is_compiled=False)

    whole, first = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    for _ in range(3):
        whole.advance(), first.advance()
    first.save_state()
    second = trainer(tmp_path / "b")
    second.load_state()
    for _ in range(2):
        whole.advance(), second.advance()
    assert torch.equal(whole.flat.master, second.flat.master)
    second.save("gram train")
    loaded = checkpoint.load(tmp_path / "b")
    assert loaded.config == second.averaged().config
    puzzles = TASK.split("validation", limit=2).puzzles
    assert sample(loaded, TASK, puzzles, SamplerConfig(width=1, depth=4)).candidates.max() <= PATH


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_tokens": 10}, "value_tokens must be 1 with notes, got 10"),
        ({"are_values_alike": True}, "are_values_alike must be False with notes, got True"),
        ({"values": (2, 300)}, "values must be tokens from 1 to 255, got"),
        ({"values": (2, 2)}, "values must be 2 different tokens"),
        ({"search": "backtrack"}, "search must be 'repair' with notes, got 'backtrack'"),
        ({"notes": False, "value_tokens": 10, "vocabulary": 15}, "search must be restart or backtrack without notes"),
    ],
)
def test_notes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        noted_config(**changes)


def test_a_task_without_notes_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="notes must be of a task that has some, got sudoku4"):
        lattice_shape("lattice", get_task("sudoku4"), has_notes=True)
    assert misfit(noted_config(), get_task("maze9")) is None
    path = tmp_path / "own.toml"
    path.write_text('task = "sudoku4"\n[model]\nlatent = "lattice"\nnotes = true\n[training]\nsteps = 1\n')
    with pytest.raises(RecipeError, match="notes must be of a task that has some, got sudoku4"):
        load_recipe(path)


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 400), seed=st.integers(0, 99))
def test_deductions_begin_at_the_puzzle_and_end_at_the_solution(first, seed):
    puzzles = TASK.split("validation").puzzles[first % 190 : first % 190 + 2]
    noted = NOTES.write(puzzles)
    gone_at = NOTES.deductions(puzzles, noted, np.random.default_rng(seed))
    one = noted[:, :, None] == np.arange(len(NOTES.plain))
    np.testing.assert_array_equal(gone_at > 0, NOTES.candidates(puzzles))
    np.testing.assert_array_equal(gone_at == NEVER, one)


@pytest.mark.parametrize("split", ["validation", "validation-anywhere"])
def test_each_step_follows_from_the_step_before_within_two_cells(split):
    """The same surroundings are never taught two things, but where a guess is needed: then nothing. Answers gone astray
    are taught no other thing either."""
    rng = np.random.default_rng(0)
    puzzles = TASK.split(split, limit=120).puzzles
    noted = NOTES.write(puzzles)
    every = np.arange(len(NOTES.plain))
    taught: dict[bytes, bytes] = {}

    def teach(puzzle: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        framed, cells = np.pad(before.reshape(7, 7, -1), ((2, 2), (2, 2), (0, 0))), np.pad(puzzle.reshape(7, 7), 2)
        for (y, x), kept in zip(np.ndindex(7, 7), after, strict=True):
            if cells[y + 2, x + 2] == OPEN:
                around = framed[y : y + 5, x : x + 5].tobytes() + cells[y : y + 5, x : x + 5].tobytes()
                assert taught.setdefault(around, kept.tobytes()) == kept.tobytes()

    astray = 0
    for puzzle, symbols, gone in zip(puzzles, noted, NOTES.deductions(puzzles, noted, rng), strict=True):
        steps = np.unique(gone)
        for step in steps[steps < NEVER]:
            teach(puzzle, gone > step, gone > step + 1)
        if (found := NOTES.astray(puzzle, symbols, rng)) is not None:
            wrong, faults = found
            astray += 1
            before = wrong[:, None] == every
            after = before.copy()
            after[faults] = False
            teach(puzzle, before, after)
    assert len(taught) > 5_000
    assert astray > 10


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 189), seed=st.integers(0, 99))
def test_an_answer_gone_astray_is_a_path_that_forks_or_breaks_off(number, seed):
    puzzles = TASK.split("validation-anywhere").puzzles[number : number + 1]
    noted = NOTES.write(puzzles)[0]
    found = NOTES.astray(puzzles[0], noted, np.random.default_rng(seed))
    solutions = TASK.solutions(puzzles[0])
    if found is None:
        assert len(solutions) == 1
        assert not (NOTES.plain[noted] == PATH).any()
        return
    symbols, faults = found
    changed = symbols != noted
    assert changed[faults].all()
    # Without the change the path is whole, so with it the answer is wrong, all of it within shortest paths.
    answers = np.stack([NOTES.plain[noted], NOTES.plain[symbols]])
    assert TASK.verify(np.repeat(puzzles, 2, axis=0), answers).tolist() == [True, False]
    assert (solutions[:, changed] == PATH).any(0).all()
    if (noted[changed] < ON).all():
        assert np.array_equal(symbols[changed], noted[changed] + 3)
        assert len(solutions) > 1
    else:
        assert np.array_equal(symbols[changed] + 3, noted[changed])
        far = answers[1] == PATH
        assert not far[faults].any()
        assert far.sum() + changed.sum() == (answers[0] == PATH).sum()


def test_paths_fork_and_break_off_equally_often_where_they_can_do_both():
    puzzles = TASK.split("validation-anywhere", limit=150).puzzles
    rng, grown = np.random.default_rng(0), []
    for puzzle, noted in zip(puzzles, NOTES.write(puzzles), strict=True):
        if TASK.count_solutions(puzzle) > 1 and (found := NOTES.astray(puzzle, noted, rng)) is not None:
            grown.append((NOTES.plain[found[0]] == PATH).sum() > (NOTES.plain[noted] == PATH).sum())
    assert len(grown) > 50
    assert 0.35 < np.mean(grown) < 0.65


def test_a_run_may_start_from_a_checkpoint_of_another_size(tmp_path: Path):
    first = LatticeTrainer(recipe(), tmp_path / "a", device=CPU, dtype=torch.float32, is_compiled=False)
    first.save("gram train")
    task = get_task("maze9")
    larger = Recipe("larger", "", task, resized(noted_config(), task), recipe().training)
    weights = starting_weights(larger, tmp_path / "a")
    own = checkpoint.load(tmp_path / "a", dtype=torch.float32).weights()
    assert all(torch.equal(weights[name], tensor) for name, tensor in own.items())
    other = Recipe("other", "", task, resized(noted_config(dim=20), task), recipe().training)
    with pytest.raises(RecipeError, match="start must be a checkpoint of the recipe's model, got dim 16"):
        starting_weights(other, tmp_path / "a")


def test_a_run_may_start_from_a_shipped_checkpoint():
    """Its depth and its other defaults of sampling were chosen after training, and no weight depends on them."""
    shipped = checkpoint.find("maze")
    first = load_recipe("maze-last")
    assert checkpoint.read_config(shipped).views != first.model.views
    weights = starting_weights(first, shipped)
    assert weights.keys() == checkpoint.load(shipped, dtype=torch.float32).weights().keys()


def test_the_counted_cost_of_a_step_is_what_it_multiplies():
    """Against PyTorch's counter; what the core hears along relations is no product of matrices."""
    own = recipe()
    step = LatticeTrainer(own, Path("unused"), device=CPU, dtype=torch.float32, is_compiled=False)
    with FlopCounterMode(display=False) as counter:
        step.advance()
    assert cost_of(own).step_flops == pytest.approx(counter.get_total_flops(), rel=0.06)
