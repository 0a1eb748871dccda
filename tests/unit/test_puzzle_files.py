"""Files of puzzles as users have them: what is read, what is refused in one line, what is told aloud."""

import gzip
import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.tasks.colouring import Colouring
from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task

SUDOKU = get_task("sudoku4")
SOME = SUDOKU.split("test", limit=3)
TEXTS = [(SUDOKU.format(p), SUDOKU.format(p, a)) for p, a in zip(SOME.puzzles, SOME.answers, strict=True)]
GRAPH = "8: 0-1, 1-2, 2-3"
WRONG = "1" * 16


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(task, path):
    with pytest.raises(PuzzleError) as error:
        task.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def table(mark=",", header="question,answer", blank=""):
    rows = [(mark + blank).join(pair) for pair in TEXTS]
    return "\n".join([header.replace(",", mark + blank), *rows]) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", table()),
        ("a.csv", table(blank=" ")),
        ("a.csv", table(header="Question,ANSWER")),
        ("a.csv", table(header=" question ,\tanswer ")),
        ("a.csv", table(header='"question","answer"')),
        ("a.csv", "# made by hand\n\n" + table()),
        ("a.csv", table() + "# the end\n"),
        ("a.csv", table("\t")),
        ("a.csv", table(";")),
        ("a.tsv", table("\t")),
        ("a.TSV.GZ", gzip.compress(table("\t").encode(), mtime=0)),
        ("a.txt", table()),
        ("a", table("|")),
        ("a", gzip.compress(table().encode(), mtime=0)),
        ("a.json", json.dumps([{"question": q, "answer": a} for q, a in TEXTS])),
        ("a.json", json.dumps([{"Question ": q, " ANSWER": a} for q, a in TEXTS], indent=2)),
        ("a.jsonl", "# a note\n" + "\n".join(json.dumps({"question": q, "answer": a}) for q, a in TEXTS)),
        ("a", "\n".join(json.dumps({"question": q, "answer": a}) for q, a in TEXTS)),
        ("a", json.dumps([{"question": q, "answer": a} for q, a in TEXTS])),
    ],
)
def test_the_same_puzzles_in_every_dress(tmp_path, name, content):
    loaded = SUDOKU.load(written(tmp_path, name, content))
    assert np.array_equal(loaded.puzzles, SOME.puzzles)
    assert np.array_equal(loaded.answers, SOME.answers)


@pytest.mark.parametrize("content", ["\n".join(q for q, _ in TEXTS), json.dumps([q for q, _ in TEXTS])])
@pytest.mark.parametrize("note", ["", "# a note\n", "#\n  # two\n"])
def test_bare_puzzles_and_comments(tmp_path, content, note):
    if content.startswith("[") and note:
        content, note = content, "\n"
    loaded = SUDOKU.load(written(tmp_path, "a.txt", note + content))
    assert np.array_equal(loaded.puzzles, SOME.puzzles)
    assert loaded.answers is None


@pytest.mark.parametrize(
    ("task", "content", "puzzles"),
    [
        ("colouring8", f'question,answer\n"{GRAPH}",ABABAAAA\n', 1),
        ("colouring8", f"{GRAPH}\n{GRAPH}\n", 2),
        ("colouring8", "p edge 8 2\ne 1 2\ne 2 3\n", 1),
        ("sudoku4", table("\t"), 3),
        ("sudoku4", json.dumps([q for q, _ in TEXTS]), 3),
    ],
)
def test_pipes_are_judged_by_content(tmp_path, task, content, puzzles):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(content,))
    writer.start()
    loaded = get_task(task).load(path)
    writer.join()
    assert len(loaded) == puzzles


@pytest.mark.parametrize(
    ("task", "name", "content", "words"),
    [
        (
            "colouring8",
            "a.txt",
            "# a note\n" + GRAPH,
            ":1: colouring8 puzzle must have 28 symbols 0 and 1, got 6 (or read",
        ),
        ("colouring8", "a.csv", f"question\n{GRAPH}\n", "row must have the 1 fields of its header, got 3"),
        ("colouring8", "a.csv", f"question,answer\n{GRAPH},ABABAAAA\n", "needs quotes"),
        ("colouring8", "a.csv", f"question;answer\n{GRAPH};ABABAAAA;x\n", "row must have the 2 fields"),
        ("sudoku4", "a.txt", "quizzes,solutions\n" + "." * 16, "a header with a column 'question'"),
        ("sudoku4", "a.tsv", "puzzle\tanswer\n", "a.tsv:1: header must have a column 'question'"),
        ("sudoku4", "a.csv", "question,Question\n" + "." * 16 + "," + "." * 16, "'question' must stand once"),
        ("sudoku4", "a.csv", "question,answer, Answer \n" + "." * 16 + ",,", "'answer' must stand once"),
        ("sudoku4", "a.json", '{"question": "' + "." * 16 + '", "answer": 0}', "answer must be text, got '0'"),
        (
            "sudoku4",
            "a.json",
            '[{"question": "' + "." * 16 + '"}, 3]',
            "a.json: item 2: must be a JSON object, got '3'",
        ),
        ("sudoku4", "a.json", '["' + "." * 16 + '", "..."]', "a.json: item 2: sudoku4 puzzle must have 16 symbols"),
        ("sudoku4", "a.json", "[]", "must hold at least one puzzle"),
        ("sudoku4", "a.csv", "", "must hold at least one puzzle"),
        ("maze4", "a.txt", "# two mazes\nS..............G\n", "maze4 puzzle must have 16 symbols, got 11"),
    ],
)
def test_other_forms_are_named(tmp_path, task, name, content, words):
    assert words in refusal(get_task(task), written(tmp_path, name, content))


@pytest.mark.parametrize("wrong_row", [0, 1, 2])
@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_every_answer_that_is_there_is_checked(tmp_path, wrong_row, form, blank):
    rows = [(q, WRONG if row == wrong_row else blank) for row, (q, _) in enumerate(TEXTS)]
    content = {
        "csv": "question,answer\n" + "".join(f"{q},{a}\n" for q, a in rows),
        "jsonl": "\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows),
        "json": json.dumps([{"question": q, "answer": a or None} for q, a in rows]),
    }[form]
    place = {"csv": f":{wrong_row + 2}:", "jsonl": f":{wrong_row + 1}:", "json": f": item {wrong_row + 1}:"}[form]
    path = written(tmp_path, f"a.{form}", content)
    assert f"{path}{place} answer must solve its question" in refusal(SUDOKU, path)


@pytest.mark.parametrize(
    ("kept", "words"), [(0, "no puzzle has an answer"), (1, "2 of 3 puzzles have no answer"), (2, "1 of 3"), (3, "")]
)
def test_missing_answers_are_told_aloud(tmp_path, caplog, kept, words):
    rows = "".join(f"x,{q},{a if row < kept else ''}\n" for row, (q, a) in enumerate(TEXTS))
    loaded = SUDOKU.load(written(tmp_path, "a.csv", "source,question,answer\n" + rows))
    assert (loaded.answers is None) == (kept < 3)
    assert len(caplog.messages) == (kept < 3)
    assert words in "".join(caplog.messages)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table(header="question,solution"), "columns passed over: solution"),
        (table(header="question,answers"), "columns passed over: answers"),
        ("question,rating\n" + f"{TEXTS[0][0]},1\n{TEXTS[1][0]},\n", "1 of 2 puzzles have no rating"),
    ],
)
def test_what_is_passed_over_is_told_aloud(tmp_path, caplog, content, words):
    assert SUDOKU.load(written(tmp_path, "a.csv", content)).answers is None
    assert words in "".join(caplog.messages)


def test_puzzles_without_an_answer_are_still_checked_for_one(tmp_path):
    board = list("." * 16)
    board[0:3], board[7] = "123", "4"
    content = f"question,answer\n{TEXTS[0][0]},{TEXTS[0][1]}\n{''.join(board)},\n"
    assert "must have a solution" in refusal(SUDOKU, written(tmp_path, "a.csv", content))


@pytest.mark.parametrize("maze", ["  S            G", "S            G  ", " S            G ", "            S  G"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_outer_blanks_of_a_maze_stay(tmp_path, maze, end):
    task = get_task("maze4")
    for name, content in (
        ("a.txt", end.join([maze, maze, ""])),
        ("b.csv", end.join(["question", maze, maze, ""])),
        ("c.jsonl", end.join([json.dumps({"question": maze})] * 2)),
    ):
        loaded = task.load(written(tmp_path, name, content))
        assert [task.format(puzzle) for puzzle in loaded.puzzles] == [maze.replace(" ", ".")] * 2


GRAPHS = st.sets(st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda edge: edge[0] < edge[1]), max_size=9)


@given(
    GRAPHS, st.randoms(use_true_random=False), st.sampled_from(["edge", "edges", "col"]), st.booleans(), st.booleans()
)
def test_dimacs_round_trip(edges, random, word, is_listed_twice, is_counted_twice):
    task = Colouring(8)
    lines = [random.choice([edge, edge[::-1]]) for edge in edges]
    lines += [edge[::-1] for edge in lines] if is_listed_twice else []
    random.shuffle(lines)
    stated = len(edges) * (2 if is_counted_twice else 1)
    text = f"c by hand\n\np {word} 8 {stated}\n" + "".join(f"e {a} {b}\n" for a, b in lines)
    plain = "8: " + ", ".join(f"{a - 1}-{b - 1}" for a, b in edges)
    try:
        wanted = task.parse(plain)
    except PuzzleError as error:
        with pytest.raises(PuzzleError, match=str(error)):
            task.parse(text)
    else:
        assert np.array_equal(task.parse(text), wanted)


@given(GRAPHS, st.integers(0, 40))
def test_dimacs_counts_must_agree(edges, stated):
    text = f"p edge 8 {stated}\n" + "".join(f"e {a} {b}\n" for a, b in edges)
    if stated not in (len(edges), 2 * len(edges)):
        with pytest.raises(PuzzleError, match=f"the {stated} edges of its 'p' line, got {len(edges)}"):
            Colouring(8).parse(text)


@pytest.mark.parametrize("name", ["g.col", "g.COL", "g.col.gz", "g.txt", "g"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p edge 8 9\ne 1 2\ne 2 3\n", "must have the 9 edges of its 'p' line, got 2"),
        ("p edge 8 3\ne 1 2\ne 2 1\ne 1 2\ne 1 2\n", "must have the 3 edges"),
        ("p edge 8 2\nE 1 2\ne 2 3\n", "DIMACS line 2 must be"),
        ("p edge 8 2\na 1 2\ne 2 3\n", "DIMACS line 2 must be"),
        ("p edge 8 1\ne 1 2\nd 2\n", "DIMACS line 3 must be"),
        ("p edge 8 1\nn 1 3\ne 1 2\n", "DIMACS line 2 must be"),
        ("p edge 8 1\nx 1 3\ne 1 2\n", "DIMACS line 2 must be"),
        ("p edge 8 1\ne 1 2 5\n", "DIMACS line 2 must be"),
        ("p edge 8 1\ne 1 2.0\n", "DIMACS line 2 must be"),
        ("p edge 8 1\ne +1 2\n", "DIMACS line 2 must be"),
        ("p edge 8 1\ne 1_0 2\n", "DIMACS line 2 must be"),
        ("p edge 8\ne 1 2\n", "DIMACS line 1 must be"),
        ("p sp 8 1\ne 1 2\n", "DIMACS line 1 must be"),
        ("P edge 8 1\ne 1 2\n", "DIMACS line 1 must be"),
        ("p edge 8 1\np edge 8 1\ne 1 2\n", "must not be a second 'p' line"),
        ("c only\ne 1 2\n", "must have a line 'p edge N M', got none"),
        ("e 1 2\n", "must have a line 'p edge N M', got none"),
        ("p edge 9 1\ne 1 2\n", "must have 8 nodes, got 9"),
        ("p edge 8 1\ne 0 1\n", "of 1 to 8, got edge 0-1"),
        ("p edge 8 1\ne 1 9\n", "of 1 to 8, got edge 1-9"),
        ("p edge 8 1\ne 3 3\n", "got edge 3-3"),
    ],
)
def test_dimacs_faults_are_one_line(tmp_path, name, text, words):
    content = gzip.compress(text.encode()) if name.endswith(".gz") else text
    assert words in refusal(Colouring(8), written(tmp_path, name, content))


@pytest.mark.parametrize("text", ["", "c nothing\n", "1 2\n", GRAPH])
def test_a_col_file_must_be_dimacs(tmp_path, text):
    assert "DIMACS" in refusal(Colouring(8), written(tmp_path, "g.col", text))


@pytest.mark.parametrize(
    "values",
    [
        {"n": 8.9, "edges": [[0, 1]]},
        {"n": 8.0, "edges": [[0, 1]]},
        {"n": "8", "edges": [[0, 1]]},
        {"n": True, "edges": []},
        {"n": None, "edges": []},
        {"n": 8, "edges": [[0.9, 1]]},
        {"n": 8, "edges": [[True, 2]]},
        {"n": 8, "edges": [["3", 1]]},
        {"n": 8, "edges": [[0, 1, 2]]},
        {"n": 8, "edges": [[0]]},
        {"n": 8, "edges": ["01"]},
        {"n": 8, "edges": {"0": 1}},
        {"n": 8, "edges": "01"},
        {"n": 8, "edges": None},
        {"edges": [[0, 1]]},
        {"n": [8], "edges": []},
    ],
)
def test_graphs_have_whole_numbers_only(tmp_path, values):
    with pytest.raises(PuzzleError, match="must be JSON with n and edges of whole numbers") as error:
        Colouring(8).parse(json.dumps(values))
    assert "\n" not in str(error.value)
    for name, content in (("a.jsonl", json.dumps(values)), ("a.json", json.dumps([values], indent=1))):
        assert "n and edges" in refusal(Colouring(8), written(tmp_path, name, content))
