"""What training aims at: a solution drawn anew, any of all solutions, or one stored solution of every puzzle."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gram
from gram.tasks.registry import get_task
from gram.training.objective import Replay, set_loss, step_loss
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import RecipeError, load_recipe
from gram.training.trainer import Trainer
from tests.unit.test_training import recipe, run, trainer

NONE = {"guidance": "none"}
WIDER = {"dim": 32, "hidden": 64, "mixer_hidden": 32, **NONE}


def eight(target: str, **training) -> Trainer:
    """8x8 N-Queens: most puzzles have one solution, some up to a dozen."""
    model = {"task": "nqueens8", "tokens": 64, "output_tokens": 64, **training.pop("model", NONE)}
    made = recipe(model=model, target=target, batch=64, **training)
    return Trainer(made, None, device=torch.device("cpu"), dtype=torch.float32, is_compiled=False)  # type: ignore[arg-type]


def loss_of(made: Trainer, slots):
    tokens, dim = made.spec.length, made.recipe.model.dim
    replay = Replay(torch.randn(2, tokens, dim), torch.ones(2), torch.ones(2), torch.zeros(2))
    weights = {name: value.detach().requires_grad_() for name, value in made.model.weights().items()}
    loss = step_loss(
        weights, made.recipe.model, made.training, slots, replay, torch.tensor(1.0), made.token_weights,
        slots.h, slots.l,
    )  # fmt: skip
    return loss, weights


def filled(made: Trainer):
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    return made.slots.view()


def targets_of(source: TrainingPuzzles, seeds: range) -> dict[bytes, set[bytes]]:
    """Every target that a puzzle was given."""
    told: dict[bytes, set[bytes]] = {}
    for seed in seeds:
        for puzzle, target in zip(*source.draw(np.random.default_rng(seed), 64), strict=True):
            told.setdefault(puzzle.tobytes(), set()).add(target.tobytes())
    return told


def test_a_stored_target_is_a_valid_solution_and_always_the_same():
    stored, drawn = eight("stored").puzzles, eight("drawn").puzzles
    again = targets_of(eight("stored", seed=7).puzzles, range(10, 20))
    told = targets_of(stored, range(10))
    assert all(len(targets) == 1 for targets in told.values())
    assert all(told[puzzle] == again[puzzle] for puzzle in told.keys() & again.keys())
    assert any(len(targets) > 1 for targets in targets_of(drawn, range(10)).values())
    for puzzle, targets in told.items():
        board = np.frombuffer(puzzle, np.uint8)[None]
        assert stored.task.verify(board, np.frombuffer(next(iter(targets)), np.uint8)[None]).all()


def test_stored_targets_favour_no_place_in_the_list_of_solutions():
    """Half of the puzzles with two solutions take the second."""
    source = eight("stored").puzzles
    places = []
    for puzzle, targets in targets_of(source, range(30)).items():
        solutions = source.task.solutions(np.frombuffer(puzzle, np.uint8))
        if len(solutions) == 2:
            places.append([solution.tobytes() for solution in solutions].index(next(iter(targets))))
    assert len(places) > 30
    assert 0.25 < np.mean(places) < 0.75


def test_puzzles_are_the_same_for_every_target():
    drawn = [eight(target).puzzles.draw(np.random.default_rng(3), 20)[0] for target in ("drawn", "set", "stored")]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


def test_the_loss_of_the_set_is_that_of_all_solutions_in_every_slot():
    made = eight("set")
    slots = filled(made)
    for slot in range(64):
        listed = slots.solutions[slot][slots.solutions[slot, :, 0] > 0]
        assert len(listed) == made.task.count_solutions(made.slots.puzzles[slot].astype(np.uint8))
    loss, weights = loss_of(made, slots)
    logits = made.model.decode(loss.h)
    expected = set_loss(logits, slots.solutions, made.token_weights)
    assert loss.total.item() == pytest.approx(expected.mean().item(), abs=1e-5)
    assert float(loss.cross_entropy) == pytest.approx(float(expected.mean()), abs=1e-5)
    loss.total.backward()
    assert weights["decoder.weight"].grad.abs().sum() > 0


def test_the_target_of_the_pair_does_not_matter_to_the_set():
    made = eight("set")
    slots = filled(made)
    first = slots.solutions[:, 0]
    ours, theirs = loss_of(made, slots)[0], loss_of(made, slots._replace(targets=first))[0]
    assert torch.equal(ours.total, theirs.total)
    assert torch.equal(ours.exact, theirs.exact)
    plain = eight("drawn")
    assert not torch.equal(loss_of(plain, slots)[0].total, loss_of(plain, slots._replace(targets=first))[0].total)


@pytest.mark.parametrize(("target", "expected"), [("drawn", 0.0), ("stored", 0.0), ("set", 1.0)])
def test_exact_counts_any_solution_for_the_set_and_the_target_otherwise(target, expected, monkeypatch):
    """The decoder spells the last solution of the list; slots' targets are the first."""
    made = eight(target)
    slots = filled(eight("set"))
    has_several = slots.solutions[:, 1, 0] > 0
    slots = slots.take(has_several.nonzero()[:, 0])
    count = (slots.solutions[..., 0] > 0).sum(1)
    last = slots.solutions[torch.arange(len(count)), count - 1]
    slots = slots._replace(targets=slots.solutions[:, 0])
    spelled = 20 * torch.nn.functional.one_hot(last, made.recipe.model.vocabulary).float()
    monkeypatch.setattr("gram.training.objective.decode", lambda weights, spec, h: spelled + 0 * h.sum())
    assert float(loss_of(made, slots)[0].exact) == expected


def test_a_wrong_answer_is_exact_for_no_target(monkeypatch):
    """Also where it equals the padding behind the list."""
    for target in ("drawn", "set", "stored"):
        made, slots = eight(target), filled(eight("set"))
        for token in range(3):
            answer = torch.full_like(slots.targets, token)
            spelled = 20 * torch.nn.functional.one_hot(answer, 3).float()
            monkeypatch.setattr(
                "gram.training.objective.decode", lambda weights, spec, h, told=spelled: told + 0 * h.sum()
            )
            assert float(loss_of(made, slots)[0].exact) == 0


@pytest.mark.slow
def test_a_deterministic_model_learns_an_answer_where_there_are_two(tmp_path):
    """5x5 N-Queens: 12 training puzzles have two solutions. Towards one drawn anew these stay undecided; towards the
    set, or one that is stored, every puzzle has an answer."""
    task = get_task("nqueens5")
    puzzles = task.split("train").puzzles
    puzzles = puzzles[[task.count_solutions(puzzle) == 2 for puzzle in puzzles]]
    assert len(puzzles) == 12
    model = {**WIDER, "task": task.name, "tokens": 25, "output_tokens": 25}
    told = {}
    for target in ("drawn", "set", "stored"):
        made = recipe(model=model, steps=250, batch=64, learning_rate=3e-3, target=target)
        run(tmp_path / target, made)
        sampler = gram.load(tmp_path / target, device="cpu", dtype="float32")
        told[target] = task.verify(puzzles, sampler.sample(puzzles, width=1).candidates[:, 0]).mean()
    assert told["set"] > 0.9
    assert told["stored"] > 0.9
    assert told["drawn"] < 0.7


def test_targets_of_a_task_with_one_solution_are_all_the_same():
    model = {"task": "sudoku4", "vocabulary": 6, **NONE}
    losses = []
    for target in ("drawn", "set", "stored"):
        made = recipe(model=model, target=target)
        built = Trainer(made, None, device=torch.device("cpu"), dtype=torch.float32, is_compiled=False)  # type: ignore[arg-type]
        losses.append(float(loss_of(built, filled(built))[0].total))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_slots_without_a_condition_keep_their_target():
    made = eight("set", empty_probability=0.5, model={**NONE, "has_empty_condition": True})
    slots = filled(made)
    assert 10 < int(slots.is_empty.sum()) < 54
    assert not slots.solutions[slots.is_empty].any()
    assert (slots.solutions[~slots.is_empty][:, 0, 0] > 0).all()
    assert torch.isfinite(loss_of(made, slots)[0].total)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "base = 'nqueens8'\n[training]\ntarget = 'set'\nprior_share = 0",
            "guidance must be none with target set, got 'full'",
        ),
        (
            "base = 'nqueens8'\n[training]\ntarget = 'set'\nprior_share = 0.4",
            "prior_share must be 0 with target set, got 0.4",
        ),
        (
            "base = 'nqueens8-mean-only'\n[training]\ntarget = 'set'",
            "guidance must be none with target set, got 'mean'",
        ),
        ("base = 'nqueens8-best-of-many'\n[training]\ntarget = 'set'", "guidance must be none with target set"),
        ("base = 'nqueens8'\n[training]\ntarget = 'any'", "target must be one of drawn, set, stored, got 'any'"),
        ("base = 'nqueens8-trm-set'\n[training]\nprior_share = 0.5", "prior_share must be 0 with target set, got 0.5"),
        (
            "base = 'sudoku6-unconditional'\n[model]\nguidance = 'none'\n[training]\nprior_share = 0\ntarget = 'set'",
            "target must be drawn without a condition",
        ),
    ],
)
def test_bad_targets_are_one_line(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_guided_models_train_towards_a_stored_solution(tmp_path):
    made = trainer(tmp_path, target="stored")
    assert made.puzzles.is_stored
    assert np.isfinite(made.advance()["cross_entropy"])
    assert replace(load_recipe("nqueens8").training, target="stored").has_posterior
