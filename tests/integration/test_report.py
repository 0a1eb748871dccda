"""The page: what it says, that it needs nothing from outside, and that a browser draws all of it."""

import json
import math
import re
import xml.etree.ElementTree as ET

import pytest

from gram.evals.frontier.grid import Grid
from gram.evals.pages import charts, figures, pictures
from gram.evals.pages.report import render
from gram.formatting import amount, count, milliseconds, number, percent, signed, span
from tests.browser import Browser, chromium
from tests.unit.test_frontier import fake_timings, made

GRID = Grid(widths=(1, 2, 4, 8), depths=(1, 2, 4), selectors=("vote", "lprm", "halt"), trained_depth=1)

PICTURES = 10
"""Curves (of the verdict, without halting, of coverage), heat map, Pareto, selectors, halting, calibration (2),
difficulty."""


@pytest.fixture(scope="module")
def frontier():
    return made(grid=GRID)


@pytest.fixture(scope="module")
def page(frontier, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(frontier))
    return path


@pytest.fixture(scope="module")
def browser():
    chromium()
    opened = Browser()
    yield opened
    opened.close()


def test_the_verdict_comes_first(frontier):
    html = render(frontier)
    sentence = frontier["verdict"]["sentence"].replace("'", "&#x27;")
    assert html.index(sentence) < html.index("<h2>")
    assert html.count(frontier["about"]["command"]) >= 10


def test_the_page_needs_nothing_from_outside(frontier):
    html = render(frontier)
    assert not re.search(r"(src|href)=|url\(|@import|https?://", html)
    for picture in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ET.fromstring(picture)
    assert html.count("<svg") == PICTURES


def test_every_figure_has_the_command_that_made_it(frontier):
    figures_ = re.findall(r"<figure>.*?</figure>", render(frontier), flags=re.DOTALL)
    assert len(figures_) >= 15
    assert all(f'<span class="command">{frontier["about"]["command"]}</span>' in each for each in figures_)


def rows_under(html, heading):
    """Texts of the cells of a section's table, row by row."""
    (part,) = re.findall(rf"<h2>{re.escape(heading)}</h2>.*?</section>", html, flags=re.DOTALL)
    body = part.split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL) for row in body.split("</tr>")[:-1]]


def test_halting_on_and_off_are_different_rows_in_both_modes(frontier):
    html = render(frontier)
    rows = rows_under(html, "Latency of every cell")
    assert len(rows) == 2 * len(GRID.widths) * len(GRID.depths)
    assert {row[0] for row in rows} == {"head", "fixed"}
    wide = next(row for row in rows if row[:3] == ["fixed", "4", "2"])
    assert wide[3:5] == ["4 ms<br><small>p95 4 ms</small>", "2.83 ms<br><small>p95 2.83 ms</small>"]
    assert wide[5] == "354"
    for heading in ("Matched budgets", "Matched budgets in full batches", "Matched arithmetic"):
        assert {row[0] for row in rows_under(html, heading)} == {"head", "fixed"}


def test_every_verdict_has_a_row(frontier):
    rows = rows_under(render(frontier), "Halting, batches and arithmetic")
    ways = {(row[0], row[1], row[2]) for row in rows}
    assert len(ways) == len(rows) == 2 * 2 * 3
    first = frontier["verdict"]
    assert rows[0][:3] == ["accuracy", "head", "latency, one puzzle"]
    assert f"{100 * first['difference']:+.1f}" in rows[0][6]


def test_every_selector_has_a_row_with_what_both_arms_spend(frontier):
    rows = rows_under(render(frontier), "Every selector")
    assert [row[0] for row in rows] == list(GRID.selectors)
    first = frontier["verdict"]
    for place, family in enumerate(("depth", "width", "restarts"), start=1):
        assert rows[0][place].startswith(f"{100 * first[family]['value']:.1f} %")
        assert milliseconds(first[family]["spent"]) in rows[0][place]


def test_coverage_comes_second_with_its_ceiling(frontier):
    html = render(frontier)
    assert html.index("What accuracy each millisecond buys") < html.index("Coverage: how many")
    assert html.index(frontier["coverage"]["sentence"].replace("'", "&#x27;")) < html.index("<h2>")
    (part,) = re.findall(r"<h2>Coverage: how many.*?</section>", html, flags=re.DOTALL)
    assert "reaches 50.0 % at most" in part
    assert "single " in part
    assert 'class="line neutral dashed"' in part


def test_what_stands_beside_the_verdict_stands_above_all_figures(frontier):
    head = render(frontier).split("<h2>")[0]
    for words in ("At matched arithmetic, depth gives", "with halting fixed, depth gives"):
        assert words in head
    assert frontier["verdict"]["restarts_sentence"] in head


def test_the_heads_have_a_row_for_every_step(frontier):
    html = render(frontier)
    rows = rows_under(html, "Whether the halt head can be believed")
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    trained = frontier["heads"]["steps"][GRID.trained_depth - 1]
    assert rows[GRID.trained_depth - 1][2] == f"{trained['ece']:.3f}"
    assert f"{100 * trained['ece']:.1f} points<small>mean gap of predicted and right share, step 1" in html


def test_few_rounds_are_told(frontier):
    assert "Fewer than 20 rounds" not in render(frontier)
    assert "Fewer than 20 rounds" in render(frontier | {"latency": {**frontier["latency"], "rounds": 5}})


def test_a_path_of_a_family_follows_its_parameter(frontier):
    """Latency's noise would else turn the lines into a zigzag."""
    noisy = {**frontier, "cells": [dict(cell) for cell in frontier["cells"]]}
    for cell in noisy["cells"]:
        if cell["depth"] == GRID.trained_depth and cell["width"] == 4:
            cell["latency_ms"] *= 0.5
    svg = str(figures.family_curves(noisy, "coverage", "head"))
    (line,) = re.findall(r'<polyline class="line width" points="([^"]*)"', svg)
    places = [float(point.split(",")[0]) for point in line.split()]
    assert len(places) == len(GRID.widths) - 1
    assert places[1] == min(places)


def test_noise_is_told(frontier):
    assert "too noisy" not in render(frontier)
    noisy = made(grid=GRID, timings={**fake_timings(GRID), "is_noisy": True, "control_spread": 0.5})
    assert "spread by 50 %" in render(noisy).split("<h2>")[0]


def test_missing_numbers_leave_figures_out():
    html = render(made(timings={}, is_multi_solution=False, ratings=False, grid=GRID))
    assert "Matched budgets" not in html
    assert "By difficulty" not in html
    assert "Matched arithmetic" in html
    body = html.split("<script>")[0]
    assert "nan" not in body.lower().split("</style>")[1]
    assert ">None" not in body


def test_text_is_escaped(frontier):
    about = frontier["about"] | {"task": "<b>x</b>", "command": 'gram "<i>"'}
    html = render(frontier | {"about": about})
    assert "<b>x" not in html
    assert "<i>" not in html.replace('<i class="block">', "").replace("<i></i>", "")


def test_another_version_is_refused(frontier):
    with pytest.raises(ValueError, match="frontier must be of version 2, got 1"):
        render(frontier | {"version": 1})


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [390, 900])
def test_a_browser_draws_it(browser, page, width, is_dark):
    browser.events.clear()
    browser.open(page, width=width, is_dark=is_dark, is_phone=width == 390)
    assert browser.faults() == []
    sizes = browser.evaluate(
        "[...document.querySelectorAll('svg')].map(s => { const b = s.getBoundingClientRect();"
        "return [b.width, b.height, s.querySelectorAll('polyline, rect, circle').length]; })"
    )
    assert len(sizes) == PICTURES
    assert all(wide > 100 and high > 100 and marks for wide, high, marks in sizes)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text:not(.note)')].filter(t => t.getClientRects().length)"
        ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().d || 99))"
    )
    assert smallest > 8.5
    page_ink = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page_ink == "rgb(22, 22, 20)") == is_dark


OVERLAPS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent && t.getClientRects().length)
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  const wide = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const high = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return texts.flatMap(([one, a], n) => texts.slice(n + 1).filter(([, b]) => wide(a, b) > 1 && high(a, b) > 3)
    .map(([two]) => `${svg.getAttribute('aria-label')}: ${one} | ${two}`));
})
"""


@pytest.mark.parametrize("width", [390, 1000])
def test_no_words_of_a_picture_lie_on_others(browser, page, width):
    browser.open(page, width=width, is_phone=width == 390)
    assert browser.evaluate(OVERLAPS) == []


def test_a_printed_page_is_light_and_nothing_is_cut_off(browser, page):
    browser.open(page, width=718, is_dark=True)  # A4 less its margins
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=media)
    try:
        assert browser.evaluate("document.documentElement.scrollWidth") <= 718
        widest = browser.evaluate(
            "Math.max(...[...document.querySelectorAll('table, svg')].map(t => t.getBoundingClientRect().right))"
        )
        assert widest <= 718
        clipped = browser.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(s => getComputedStyle(s).overflowY !== 'visible').length"
        )
        assert clipped == 0
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=media)


def place(browser, selector):
    return browser.evaluate(
        f"(() => {{ const m = document.querySelector('{selector}'); m.scrollIntoView({{block: 'center'}});"
        "const b = m.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )


@pytest.mark.parametrize("how", ["hover", "tap", "focus"])
def test_a_mark_shows_its_figures(browser, page, how):
    browser.open(page)
    x, y = place(browser, ".heat")
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    if how == "focus":
        browser.evaluate("document.querySelector('.heat').closest('.mark').focus()")
    else:
        getattr(browser, how)(x, y)
    assert browser.evaluate("document.getElementById('tip').className") == "is-shown"
    shown = browser.evaluate("document.getElementById('tip').textContent")
    assert shown.startswith("1 trajectory x 1 step\n")
    assert "latency" in shown
    assert "MACs" in shown
    box = browser.evaluate(
        "(() => { const b = document.getElementById('tip').getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom]; })()"
    )
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= 900
    assert box[3] <= 900
    if how == "hover":
        browser.hover(2, 2)
        assert browser.evaluate("document.getElementById('tip').className") == ""


def test_tables_sort_by_number(browser, page):
    browser.open(page)
    script = (
        "(() => { const t = [...document.querySelectorAll('table.sortable')].at(-1);"
        "const c = [...t.tHead.rows[0].cells].findIndex(h => h.textContent === 'accuracy');"
        "t.tHead.rows[0].cells[c].querySelector('button').click();"
        "return [...t.tBodies[0].rows].map(r => Number(r.cells[c].dataset.value)); })()"
    )
    falling = browser.evaluate(script)
    assert falling == sorted(falling, reverse=True)
    assert browser.evaluate(script) == sorted(falling)


def test_pictures_as_files(frontier, tmp_path):
    files = pictures.draw(frontier, tmp_path)
    assert {path.name for path in files} == {f"{name}.svg" for name in figures.FIGURES}
    content = {path.name: path.read_bytes() for path in files}
    for text in content.values():
        root = ET.fromstring(text)
        assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 3
        assert b"var(" not in text  # readers of SVG other than browsers know no variables
    pictures.draw(frontier, tmp_path)
    assert content == {name: (tmp_path / name).read_bytes() for name in content}


def test_pictures_without_numbers_are_not_drawn(tmp_path):
    files = pictures.draw(made(timings={}, ratings=False, is_multi_solution=False, grid=GRID), tmp_path)
    without = {"curves", "pareto", "difficulty"}
    assert {path.stem for path in files} == set(figures.FIGURES) - without


def test_a_picture_as_a_file_shows_its_legend_and_nothing_beyond_its_edges(browser, frontier, tmp_path):
    for path in pictures.draw(frontier, tmp_path):
        browser.open(path)
        assert browser.faults() == []
        wide, most = browser.evaluate(
            "[document.documentElement.width.baseVal.value,"
            "Math.max(...[...document.querySelectorAll('text')].map(t => t.getBoundingClientRect().right))]"
        )
        assert most <= wide
        assert browser.evaluate(OVERLAPS.replace("'svg'", "':root'")) == []


def test_contours_cross_where_the_level_is():
    grid = [[1.0, 4.0], [4.0, 16.0]]
    ((start, end),) = charts.contour_segments(grid, 2.0)
    assert {start, end} == {(0.5, 0), (0, 0.5)}
    assert charts.contour_segments(grid, 99.0) == []
    assert charts.contour_segments([[1.0, None], [4.0, 16.0]], 2.0) == []


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.2), (2.7, 97.0), (0.001, 5000.0), (3.1, 3.2)])
def test_ticks_lie_within_the_range(low, high):
    ticks = charts.log_ticks(low, high)
    assert 1 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    assert charts.linear_ticks(0, 0.013)
    assert len(charts.linear_ticks(low, high)) <= 7


def test_figures_as_text():
    assert milliseconds(12.34) == "12.3 ms"
    assert milliseconds(12345.0) == "12.3 s"
    assert count(1.5e9) == "1.5 G"
    assert [amount(2e9, by) for by in ("macs", "latency interactive", "energy")] == ["2 GMACs", "2e+06 s", "2e+09 J"]
    assert [signed(each) for each in (-0.0004, 0.0, 0.012, -0.1)] == ["+0.0", "+0.0", "+1.2", "-10.0"]
    assert (span(0.1, 0.25), span(-0.1, 0.25, is_signed=True), span(None, 1.0)) == (
        "10.0 to 25.0",
        "-10.0 to +25.0",
        "",
    )
    for undefined in (None, math.nan, math.inf):
        assert {form(undefined) for form in (percent, number, milliseconds, count)} == {"-"}


def test_json_of_a_frontier_is_what_the_page_reads(frontier):
    assert render(json.loads(json.dumps(frontier))) == render(frontier)
