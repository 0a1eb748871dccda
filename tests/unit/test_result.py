"""Results from Python: what one puzzle's result says, and how notebooks show it."""

import typing
from dataclasses import fields

import numpy as np
import pytest

from gram.api import Sampler, SamplerOptions
from gram.config import SamplerConfig
from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task
from tests.models import tiny_model
from tests.results import hand_made

TASK = get_task("nqueens6")


def solved(width=6):
    """A result with two valid answers, one of them given most often, and a wrong one."""
    puzzle = np.ones(TASK.tokens, np.uint8)
    first, second = TASK.solutions(puzzle)[:2]
    wrong = np.ones(TASK.output_tokens, np.uint8)
    candidates = np.stack([wrong, second, first, first, first, second])[None, :width]
    return hand_made(TASK, puzzle[None], candidates), first, second


def test_overrides_are_typed_as_the_settings_they_override():
    declared = {field.name: field.type for field in fields(SamplerConfig)}
    assert {name: str(kind.__forward_arg__) for name, kind in SamplerOptions.__annotations__.items()} == declared
    assert not SamplerOptions.__required_keys__
    typing.get_type_hints(SamplerOptions)


def test_a_puzzles_result_answers_for_itself():
    result, first, second = solved()
    found = result[0]
    assert found.text == TASK.format(found.puzzle, first)
    assert (found.votes, found.width, found.is_valid) == (3, 6, True)
    assert [each.text for each in found.solutions] == [TASK.format(found.puzzle, each) for each in (first, second)]
    assert [each.votes for each in found.answers] == [3, 2, 1]
    assert found.valid_trajectories == 5
    assert found.solution_count == TASK.count_solutions(found.puzzle) == 4
    assert found.answer_of(5).text == TASK.format(found.puzzle, second)
    assert not found.answer_of(0).is_valid
    assert found.to_json()["distinct_valid"] == 2


def test_a_result_is_a_sequence_of_its_puzzles():
    puzzles = TASK.split("test").puzzles[:3]
    result = hand_made(TASK, puzzles, np.ones((3, 2, TASK.output_tokens), np.uint8))
    assert len(result) == 3
    assert [found.index for found in result] == [0, 1, 2]
    assert [found.index for found in result[1:]] == [1, 2]
    assert result[-1].index == 2
    with pytest.raises(IndexError):
        result[3]
    for figure in ("3 puzzles", "width 2", "depth 8"):
        assert figure in repr(result)
    assert "2 of 2 votes, not valid" in repr(result[0])
    assert ", valid" in repr(solved()[0][0])
    assert "tokens" not in repr(result[0].answers)


def test_a_notebook_shows_boards_and_verdicts():
    result, first, _ = solved()
    shown = result._repr_html_()
    assert result[0]._repr_html_() in shown
    cells = sum(len(row) for row in TASK.board(result[0].puzzle, first))
    assert result[0]._repr_html_().count("<span") == 3 * cells + 1  # puzzle, answer, one other solution, the verdict
    assert "3 of 6 votes" in shown
    assert "2 of 4" in shown
    many = hand_made(TASK, np.repeat(result.puzzles, 9, axis=0), np.repeat(result.candidates, 9, axis=0))
    assert many._repr_html_().count("3 of 6 votes") == 6
    assert "3 more" in many._repr_html_()


def test_without_a_verifier_there_is_still_an_answer(monkeypatch):
    result, first, _ = solved()

    def refuse(*_):
        raise PuzzleError("no outputs are known")

    monkeypatch.setattr(type(TASK), "conflicts", refuse)
    assert result[0].text == TASK.format(result[0].puzzle, first)
    assert "3 of 6 votes" in result[0]._repr_html_()
    with pytest.raises(PuzzleError):
        result[0].is_valid  # noqa: B018


def test_generated_boards_are_judged_against_an_empty_one():
    task = get_task("nqueens4")
    result = Sampler(tiny_model(has_empty_condition=True), task, name="tiny").generate(5, launch=8)
    found = result[0]
    assert np.array_equal(found.puzzle, task.blank_puzzle())
    assert sum(each.votes for each in found.answers) == 5
    for index, board in enumerate(result.candidates[0]):
        assert found.answer_of(index).is_valid == bool(task.verify(found.puzzle[None], board[None])[0])
