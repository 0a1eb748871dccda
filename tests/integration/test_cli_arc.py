"""ARC on the command line: what cannot be judged is refused before anything is sampled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gram.sampler import engine
from tests.integration.test_cli import Command, tiny

CHALLENGE = {"x": {"train": [], "test": [{"input": [[1]]}, {"input": [[2]]}]}}


@pytest.fixture
def gram(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    shape = {"task": "arc", "tokens": 900, "output_tokens": 900, "vocabulary": 12, "mixer": "attention", "heads": 2}
    return Command(capsys, tiny(tmp_path / "model", **shape))


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval",),
        ("solve",),
        ("frontier", "--out", "{}"),
        ("sample", "--trace", "{}"),
        ("sample", "--out", "{}", "--width-policy", "verified"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("known", [0, 1])
def test_outputs_that_are_not_there_are_told_before_sampling(
    gram: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], known: int
) -> None:
    values = json.loads(json.dumps(CHALLENGE))
    for test in values["x"]["test"][:known]:
        test["output"] = [[3]]
    path = tmp_path / "a_challenges.json"
    path.write_text(json.dumps(values))
    monkeypatch.setattr(engine.Engine, "run", lambda *_: pytest.fail("sampled"))
    command, *rest = (argument.format(tmp_path / "out") for argument in arguments)
    code, out, err = gram(command, "arc", "--checkpoint", gram.directory, "--puzzles", str(path), *rest)
    assert (code, out) == (2, "")
    assert f"{path}: arc puzzle must be of the file loaded last and have its output there" in err.splitlines()[-1]
    told = [f"gram: {path}: 1 of 2 puzzles have no output"] if known else []
    assert err.splitlines()[:-1] == told
    assert not (tmp_path / "out").exists()


def test_a_puzzle_without_a_file_is_refused_before_sampling(gram: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.Engine, "run", lambda *_: pytest.fail("sampled"))
    code, _, err = gram("solve", "arc", "12/34", "--checkpoint", gram.directory)
    assert code == 2
    assert err.startswith("gram: arc puzzle must be of the file loaded last")


def test_the_file_is_known_to_whoever_judges(gram: Command, tmp_path: Path) -> None:
    (tmp_path / "a_challenges.json").write_text(json.dumps(CHALLENGE))
    (tmp_path / "a_solutions.json").write_text(json.dumps({"x": [[[3]], [[4]]]}))
    few = ("--puzzles", str(tmp_path / "a_challenges.json"), "--checkpoint", gram.directory, "--depth", "1", "--json")
    code, out, err = gram("solve", "arc", *few, "--width", "1", "--launch", "8")
    assert code == 0, err
    assert len(json.loads(out)["puzzles"]) == 2
