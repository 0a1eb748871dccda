"""A user's new task: six members, and what the base class makes of them."""

import itertools

import numpy as np
import pytest

from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task

LATIN = '''
"""Latin squares of 3x3 with some cells blanked."""

import itertools

import numpy as np

from gram.tasks.protocol import Task

SQUARES = np.array(
    [rows for rows in itertools.product(itertools.permutations((2, 3, 4)), repeat=3)
     if all(len(set(column)) == 3 for column in zip(*rows))], dtype=np.uint8,
).reshape(-1, 9)


class Latin(Task):
    """3x3 Latin squares, 4 cells blanked."""

    name = "latin3"
    symbols = "?.123"
    tokens = 9

    def draw(self, rng, count):
        answers = SQUARES[rng.integers(len(SQUARES), size=count)]
        return np.where(rng.random((count, 9)).argsort(1) < 4, np.uint8(1), answers), answers

    def conflicts(self, puzzles, answers):
        squares = answers.reshape(-1, 3, 3)
        held = [(squares == digit).any(axis).sum(1) for digit in (2, 3, 4) for axis in (1, 2)]
        return 18 - np.sum(held, axis=0) + ((puzzles > 1) & (puzzles != answers)).sum(1)

    def solutions(self, puzzle):
        return SQUARES[((puzzle == 1) | (SQUARES == puzzle)).all(1)]


task = Latin()
'''


class TestNewTask:
    """A task that writes `draw`, `conflicts`, `solutions` and three values; `Task` has the rest."""

    @pytest.fixture
    def task(self, tmp_path):
        (tmp_path / "latin.py").write_text(LATIN)
        return get_task("latin3", tmp_path / "latin.py")

    def test_must_write_the_symmetry_that_it_claims_words_for(self, tmp_path):
        claims = LATIN.replace("    tokens = 9\n", "    tokens = 9\n    symmetry_words = 3\n")
        (tmp_path / "latin.py").write_text(claims)
        with pytest.raises(ValueError, match="must write symmetry, got Latin without"):
            get_task("latin3", tmp_path / "latin.py")
        (tmp_path / "latin.py").write_text(claims.replace("    def draw(", "    symmetry = None\n\n    def draw("))
        assert get_task("latin3", tmp_path / "latin.py").unwritten() == []

    def test_keeps_what_tasks_promise(self, task, tmp_path):
        written = [name for name in vars(type(task)) if not name.startswith("__")]
        assert len(written) <= 8
        assert (task.vocabulary, task.output_tokens, task.summary) == (5, 9, "3x3 Latin squares, 4 cells blanked.")
        sets = {name: task.split(name) for name in task.splits}
        texts = [{bytes(puzzle) for puzzle in found.puzzles} for found in sets.values()]
        assert all(texts)
        assert not any(a & b for a, b in itertools.combinations(texts, 2))
        some = task.split("test", limit=10)
        assert np.array_equal(some.puzzles, sets["test"].puzzles[:10])
        assert task.verify(some.puzzles, some.answers).all()
        puzzles, targets = task.training_batch(np.random.default_rng(0), 30)
        assert {bytes(puzzle) for puzzle in puzzles} <= texts[0]
        assert task.verify(puzzles, targets).all()
        for puzzle in some.puzzles:
            assert np.array_equal(task.parse(task.format(puzzle)), puzzle)
            assert task.count_solutions(puzzle) == len(task.solutions(puzzle)) >= 1
        rows = zip(some.puzzles, some.answers, strict=True)
        lines = [f"{task.format(puzzle)},{task.format(puzzle, answer)}" for puzzle, answer in rows]
        (tmp_path / "a.csv").write_text("\n".join(["question,answer", *lines]))
        assert np.array_equal(task.load(tmp_path / "a.csv").answers, some.answers)
        kinds = [[cell.kind for cell in row] for row in task.board(some.puzzles[0])]
        assert [len(row) for row in kinds] == [3, 3, 3]
        assert sum(row.count("blank") for row in kinds) == 4
        replaced = np.where(some.puzzles[0] == 2, np.uint8(3), some.puzzles[0])
        drawn = np.array([cell.kind for row in task.board(some.puzzles[0], replaced) for cell in row])
        assert np.array_equal(drawn == "filled", some.puzzles[0] == 2)
        for text, words in (("12", "must have 9 symbols"), ("11.......", "with none"), ("5........", "got '5'")):
            with pytest.raises(PuzzleError, match=words):
                task.parse(text)
        with pytest.raises(ValueError, match="split must be one of"):
            task.training_batch(np.random.default_rng(0), 1, split="test")

    def test_is_sampled_and_evaluated(self, task):
        from gram.api import Sampler
        from gram.evals.evaluate import evaluate_result
        from gram.model import Model
        from tests.models import tiny_config

        shape = {name: getattr(task, name) for name in ("vocabulary", "tokens", "output_start", "output_tokens")}
        sampler = Sampler(Model(tiny_config(task=task.name, **shape)), task, name="tiny")
        some = task.split("test", limit=6)
        found = evaluate_result(task, some, sampler.sample(some, width=4), checkpoint="tiny", versions={})
        assert found.puzzles == 6
        assert 0 <= found.accuracy <= 1

    @pytest.mark.parametrize("member", ["draw", "conflicts", "solutions", "tokens", "symbols"])
    def test_a_missing_member_is_named(self, tmp_path, member):
        (tmp_path / "latin.py").write_text(
            LATIN.replace(f"def {member}(", "def other(").replace(f"{member} =", "other =")
        )
        with pytest.raises(ValueError, match="vocabulary" if member == "symbols" else member):
            get_task("latin3", tmp_path / "latin.py")
