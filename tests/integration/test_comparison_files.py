"""Files of an evaluation that are cut off or are none: one line that names the file."""

import json

import pytest

from gram.cli.main import main
from gram.evals.comparison import read

LINE = {"puzzle": "Q...", "index": 0, "is_right": True, "candidates": [{"is_right": True}], "distinct_valid": 1}
WHOLE = json.dumps(LINE).encode() + b"\n"
RESULTS = {"task": "nqueens4", "puzzles": 1, "accuracy": 1.0}
WHOLE_RESULTS = json.dumps(RESULTS).encode()


def evaluation(folder, results=WHOLE_RESULTS, lines=WHOLE):
    folder.mkdir()
    (folder / "results.json").write_bytes(results)
    (folder / "predictions.jsonl").write_bytes(lines)
    return folder


def test_lines_are_read(tmp_path):
    lines = (json.dumps(LINE) + "\r\n\n" + json.dumps(LINE)).encode()
    found = read(evaluation(tmp_path / "a", json.dumps({**RESULTS, "puzzles": 2}).encode(), lines))
    assert (found.puzzles, found.single.tolist()) == (["Q...", "Q..."], [1.0, 1.0])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (json.dumps(LINE).encode() + b'\n{"puzzle": "Q.', "line 2 is not JSON"),
        (b"\xff\xfe\xff", "line 1 is not JSON"),
        (b"[]", "line 1 must be a JSON object, got []"),
        (b"3\n", "line 1 must be a JSON object, got 3"),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_broken_predictions_name_file_and_line(tmp_path, lines, words, capsys):
    good, bad = evaluation(tmp_path / "good"), evaluation(tmp_path / "bad", lines=lines)
    assert main(["compare", str(good), str(bad)]) == 2
    told = capsys.readouterr().err
    assert f"{bad / 'predictions.jsonl'}: {words}" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("results", [b"", b"{", b"\xff", b"[]", b"null", b"[" * 100_000])
def test_broken_results_name_their_file(tmp_path, results):
    with pytest.raises(ValueError, match=r"results\.json: "):
        read(evaluation(tmp_path / "a", results))
