"""Several frontiers on one page: pairs by hand, what is not comparable is not compared, and the page needs nothing."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.cli.main import main
from gram.evals.frontier import files, outcomes
from gram.evals.frontier.analysis import analyse
from gram.evals.frontier.beside import beside_sentences
from gram.evals.frontier.budgets import shared_budgets
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.multi_checkpoint import Member, join, price_of, shared
from gram.evals.pages import pictures
from gram.evals.pages.multi_checkpoint_page import render
from gram.formatting import plain
from gram.tasks.protocol import PuzzleSet
from tests.browser import Browser, chromium
from tests.models import tiny_config
from tests.traces import random_traces
from tests.unit.test_frontier import fake_task, fake_timings

GRID = Grid(widths=(1, 2, 4), depths=(1, 2, 4), selectors=("vote", "lprm"), trained_depth=2)
OTHER = Grid(widths=(1, 2, 4, 8), depths=(2, 4), selectors=("vote",), trained_depth=4)


def member(
    label, *, seed=0, skill=0.4, grid=GRID, task="synthetic", puzzles=60, kept=None, device="cpu", is_multi=False
):
    """A frontier with its outcomes; `kept` names the puzzles that were asked."""
    traces = random_traces(seed, puzzles=puzzles, width=8, depth=4, skill=skill)
    traces.puzzles = (np.arange(puzzles)[:, None] // 4 ** np.arange(6) % 4 + 1).astype(np.uint8)  # all different
    if kept is not None:
        traces.puzzles, traces.tables = traces.puzzles[kept], [traces.tables[place] for place in kept]
        traces.arrays = {name: array[kept] for name, array in traces.arrays.items()}
    found = []
    made = analyse(
        fake_task(is_multi),
        PuzzleSet(puzzles=traces.puzzles),
        [traces],
        grid,
        tiny_config(depth=grid.trained_depth),
        timings=fake_timings(grid),
        about={"task": task, "checkpoint": label, "command": f"gram frontier {task}", "device": device},
        on_outcomes=found.append,
    )
    return Member(label, made, found[0])


@pytest.fixture(scope="module")
def members():
    return [
        member("weak", skill=0.0),
        member("strong", skill=0.9, seed=1),
        member("other", task="apart", is_multi=True),
    ]


@given(st.lists(st.integers(0, 12), max_size=20), st.lists(st.integers(0, 12), max_size=20))
def test_shared_puzzles_are_every_row_of_the_first_that_the_second_has(first, second):
    a, b = (np.array(each, np.uint8).reshape(-1, 1) for each in (first, second))
    rows, others = shared(a, b)
    assert a[rows].tolist() == b[others].tolist()
    assert rows.tolist() == [place for place, value in enumerate(first) if value in second]


def test_the_better_checkpoint_is_ahead_whichever_comes_first(members):
    weak, strong, _ = members
    (pair,), (mirror,) = (join(each)["pairs"] for each in ([weak, strong], [strong, weak]))
    assert {row["matched_by"] for row in pair["budgets"]} == {"latency interactive", "latency throughput", "macs"}
    assert (pair["puzzles"], pair["why"]) == (60, None)
    for row, other in zip(pair["budgets"], mirror["budgets"], strict=True):
        assert row["contrast"]["difference"] == pytest.approx(-other["contrast"]["difference"])
        assert row["a"]["value"] - row["b"]["value"] == pytest.approx(row["contrast"]["difference"], abs=1e-6)
        assert row["contrast"]["p_holm"] >= row["contrast"]["p_value"]
        assert row["contrast"]["only_first"] <= row["contrast"]["only_second"]
    last = pair["budgets"][2]["contrast"]
    assert last["verdict"] == "b"
    sentence = pair["sentences"]["latency interactive"]
    assert "strong gives" in sentence
    assert "points more accuracy than weak" in sentence
    assert sentence.endswith(".")


def test_a_checkpoint_is_not_told_apart_from_itself(members):
    strong = members[1]
    (pair,) = join([strong, Member("twin", strong.frontier, strong.outcomes)])["pairs"]
    assert all(row["contrast"]["difference"] == 0 for row in pair["budgets"])
    assert {row["contrast"]["verdict"] for row in pair["budgets"]} == {"not told apart"}
    assert "strong and twin do not differ significantly" in pair["sentences"]["macs"]


def test_only_puzzles_of_both_count():
    rng = np.random.default_rng(0)
    first, second = np.sort(rng.permutation(60)[:40]), rng.permutation(60)[:30]
    a, b = member("a", kept=first), member("b", kept=second, skill=0.6)
    (pair,) = join([a, b])["pairs"]
    assert pair["puzzles"] == len(shared(a.outcomes["puzzles"], b.outcomes["puzzles"])[0]) < 30
    for side, each in (("a", a), ("b", b)):
        rows = shared(a.outcomes["puzzles"], b.outcomes["puzzles"])["ab".index(side)]
        cell = next(row for row in pair["budgets"] if row[side]["other_half"] is None)[side]
        place = GRID.depths.index(cell["depth"]), GRID.widths.index(cell["width"])
        selector = 0 if cell["selector"] is None else GRID.selectors.index(cell["selector"])
        values = each.outcomes["accuracy"][rows][:, 0, *place, selector]
        assert cell["value"] == pytest.approx(float(values.mean(dtype=np.float64)))


def test_checkpoints_of_other_grids_are_compared_at_budgets_that_both_can_afford():
    a, b = member("a"), member("b", grid=OTHER)
    (pair,) = join([a, b])["pairs"]
    budgets = [row["budget"] for row in pair["budgets"] if row["matched_by"] == "latency interactive"]
    start = float(price_of(b.frontier, "latency interactive")[OTHER.depths.index(OTHER.trained_depth), 0])
    assert budgets == pytest.approx([start, 2 * start, 4 * start])  # b's one trajectory costs more than a's
    assert start <= 4.0
    for row in pair["budgets"]:
        assert max(row["a"]["price"], row["b"]["price"]) <= row["budget"] * 1.05
    assert price_of(b.frontier, "latency interactive").shape == (2, 4)


def test_nothing_to_afford_is_no_budget():
    unknown = np.full((2, 2), np.nan)
    assert shared_budgets([unknown, unknown], [1.0, 1.0]) == []
    assert shared_budgets([np.ones((2, 2)), np.ones((2, 2))], [float("nan"), 1.0]) == []


@pytest.mark.parametrize(
    ("second", "why", "ways"),
    [
        ({"device": "cuda"}, "different machines, so only arithmetic", {"macs"}),
        ({"task": "apart"}, None, None),
    ],
)
def test_what_is_not_comparable_is_not_compared(second, why, ways):
    made = join([member("a"), member("b", **second)])
    if ways is None:
        assert made["pairs"] == []
        return
    assert why in made["pairs"][0]["why"]
    assert {row["matched_by"] for row in made["pairs"][0]["budgets"]} == ways


def test_without_outcomes_or_common_puzzles_a_pair_says_why(members):
    weak, strong, _ = members
    (pair,) = join([weak, Member("bare", strong.frontier, None)])["pairs"]
    assert pair["budgets"] == []
    assert "not kept for bare" in pair["why"]
    strangers = {**strong.outcomes, "puzzles": strong.outcomes["puzzles"] + 100}
    (pair,) = join([weak, Member("stranger", strong.frontier, strangers)])["pairs"]
    assert pair["why"] == "they were not asked the same puzzles"
    joint = plain(join([weak, Member("bare", strong.frontier, None)]))
    html = render(joint, {"weak": weak.frontier, "bare": strong.frontier})
    assert "Not compared: outcomes by puzzle are not kept for bare" in html


def test_one_base_cannot_be_compared(members):
    together = {"groups": np.zeros(60, np.int64)}
    some = [Member(each.label, each.frontier, {**each.outcomes, **together}) for each in members[:2]]
    joint = join(some)
    assert joint["pairs"][0]["budgets"] == []
    assert joint["pairs"][0]["why"].startswith("all puzzles are of one cluster")
    assert "Not compared: all puzzles are of one cluster" in render(plain(joint), {e.label: e.frontier for e in some})


def test_p_values_are_corrected_over_all_pairs():
    three = [member("a", skill=0.2), member("b", seed=1), member("c", seed=2, skill=0.5)]
    one = join(three[:2])["pairs"][0]["budgets"]
    of_three = next(pair for pair in join(three)["pairs"] if (pair["a"], pair["b"]) == ("a", "b"))["budgets"]
    assert [row["contrast"]["p_value"] for row in one] == [row["contrast"]["p_value"] for row in of_three]
    assert all(few["contrast"]["p_holm"] <= many["contrast"]["p_holm"] for few, many in zip(one, of_three, strict=True))
    assert any(few["contrast"]["p_holm"] < many["contrast"]["p_holm"] for few, many in zip(one, of_three, strict=True))


def stored(root, members):
    """A folder of frontiers, as `gram frontier` leaves it."""
    for each in members:
        folder = root / each.label
        folder.mkdir(parents=True)
        (folder / "frontier.json").write_text(json.dumps(each.frontier))
        (folder / "outcomes.npz").write_bytes(outcomes.to_bytes(each.outcomes))
    return root


@pytest.fixture(scope="module")
def root(members, tmp_path_factory):
    folder = stored(tmp_path_factory.mktemp("joint"), members)
    files.write_multi_checkpoint(folder, files.members(folder))
    return folder


def test_the_page_says_every_verdict_and_links_to_every_page(members, root):
    html = (root / "report.html").read_text()
    for each in members:
        assert html.index(each.frontier["verdict"]["sentence"].replace("'", "&#x27;")) < html.index("<h2>")
        assert f'href="{each.label}/report.html"' in html
        for line in (*beside_sentences(each.frontier), *each.frontier["verdict"]["warnings"]):
            assert line.replace("'", "&#x27;") in html
    links = set(re.findall(r'href="([^"]*)"', html))
    assert links == {f"{each.label}/report.html" for each in members}
    assert not re.search(r"src=|url\(|@import|https?://", html)
    drawn = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawn) == 1 + 2  # accuracy of one task; coverage and accuracy of the other
    for picture in drawn:
        ET.fromstring(picture)
    assert html.count("gram frontier synthetic") >= 2


def test_names_are_escaped():
    a, b = member("a <b>&", skill=0.1), member("b'\"", skill=0.9)
    html = render(plain(join([a, b])), {a.label: a.frontier, b.label: b.frontier})
    assert "<b>" not in html
    assert 'href="a%20%3Cb%3E%26/report.html"' in html


def test_json_and_page_are_the_same_from_the_files_alone(root, capsys):
    before = {name: (root / name).read_bytes() for name in ("joint.json", "report.html")}
    json.loads(before["joint.json"])
    for name in before:
        (root / name).unlink()
    assert main(["report", str(root)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert before == {name: (root / name).read_bytes() for name in before}
    assert (root / "weak" / "report.html").is_file()
    names = {path.name for path in (root / "pictures").iterdir()}
    assert names == {"synthetic_checkpoints.svg", "apart_checkpoints.svg"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no archive", "must hold arrays of a frontier"),
        (outcomes.to_bytes({"puzzles": np.zeros((2, 2), np.uint8)}), "must hold puzzles, groups, accuracy, direct"),
        ("other grid", "accuracy must have the frontier's shape"),
    ],
)
def test_damaged_outcomes_are_one_line(members, tmp_path, capsys, content, told):
    weak, strong, _ = members
    root = stored(tmp_path / "root", [weak, strong])
    if isinstance(content, str):
        content = outcomes.to_bytes({**weak.outcomes, "accuracy": weak.outcomes["accuracy"][:, :1]})
    (root / "weak" / "outcomes.npz").write_bytes(content)
    assert main(["report", str(root)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "weak" in error
    assert error.count("\n") == 1
    assert not list(root.rglob("report.html"))


def test_another_version_is_refused_by_name(members, tmp_path, capsys):
    root = stored(tmp_path / "root", members[:1])
    (root / "weak" / "frontier.json").write_text(json.dumps({**members[0].frontier, "version": 9}))
    assert main(["report", str(root)]) == 2
    assert "must be of version 2, got 9" in capsys.readouterr().err


def test_pictures_of_checkpoints_without_latencies_are_not_drawn(members, tmp_path):
    bare = {**members[0].frontier, "cells": [{**c, "latency_ms": None} for c in members[0].frontier["cells"]]}
    assert pictures.draw_multi_checkpoint({"bare": bare}, tmp_path) == []


@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (1000, True)])
def test_a_browser_draws_it(root, width, is_dark):
    chromium()
    browser = Browser()
    try:
        browser.open(root / "report.html", width=width, is_dark=is_dark, is_phone=width == 390)
        assert browser.faults() == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        marks = browser.evaluate("[...document.querySelectorAll('svg')].map(s => s.querySelectorAll('.mark').length)")
        assert len(marks) == 3
        assert all(marks)
        point = browser.evaluate(
            "(() => { const m = document.querySelector('.mark .dot'); m.scrollIntoView({block: 'center'});"
            "const b = m.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        browser.evaluate("new Promise(done => setTimeout(done, 200))")
        browser.tap(*point)
        shown = browser.evaluate("document.getElementById('tip').textContent")
        assert shown.split("\n")[0] in {"weak", "strong", "other"}
        assert "latency" in shown
    finally:
        browser.close()
