"""The pages: commands can be read, links lead somewhere, the site needs no network, the notebook runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest

from gram.cli.main import check_command
from gram.tasks.registry import get_task
from gram.training.recipe import load_recipe
from tests.browser import Browser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(page for page in DOCS.glob("*.md") if not page.is_symlink())
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"`((?:gram|evals|kernels|distributed|scripts|tests)/[\w/.-]+\.\w+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CENTRE = "(e, r = e.getBoundingClientRect()) => [r.x + r.width / 2, r.y + r.height / 2]"
FOUND = """new Promise((resolve) => {
    const look = () => {
        document.querySelector('.md-search__input').dispatchEvent(new Event('keyup'));
        const links = [...document.querySelectorAll('.md-search-result__link')].map((link) => link.href);
        links.length ? resolve(links) : setTimeout(look, 50);
    };
    look();
})"""
"""The links of a search's results, as soon as there are any."""
PLACEHOLDERS = {"RECIPE", "TASK", "NAME"}


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_commands_can_be_read(page: Path) -> None:
    for text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["gram"] and not PLACEHOLDERS & {*words}:
                check_command(words[1:])


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_puzzles_on_a_command_line_have_a_solution(page: Path) -> None:
    for text in blocks(page, "sh"):
        for task, puzzle in re.findall(r'^gram solve (\w+) "(.+)"', text, re.MULTILINE):
            get_task(task).parse(puzzle)


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = [urlparse(link) for link in LINK.findall(page.read_text())]
    assert [link.path for link in links if not link.scheme and not (page.parent / link.path).exists()] == []


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    assert [name for name in NAMED.findall(page.read_text()) if not (ROOT / name).is_file()] == []


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert text.count("\n") <= 130
    assert len(text.split()) <= 1000


@pytest.mark.slow
def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = blocks(README, "python")
    exec(compile(text, str(README), "exec"), {})
    assert "Q" in capsys.readouterr().out


def test_the_task_of_the_page_is_one(tmp_path: Path) -> None:
    text, *_ = blocks(DOCS / "tasks.md", "python")
    (tmp_path / "latin.py").write_text(text)
    task = get_task("latin3", tmp_path / "latin.py")
    some = task.split("test", limit=5)
    assert task.verify(some.puzzles, some.answers).all()
    (recipe,) = blocks(DOCS / "tasks.md", "toml")
    (tmp_path / "latin.toml").write_text(recipe)
    assert load_recipe(tmp_path / "latin.toml", task_module=tmp_path / "latin.py").model.output_tokens == 9


class Page(HTMLParser):
    """Links, anchors and what a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            self.loads.append(given["href"])
        self.loads += [given[name] for name in ("src", "srcset", "poster", "data") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `mkdocs build --strict` makes it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


@pytest.mark.slow
def test_every_page_of_the_site_is_reached_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 20
    reached, waiting, broken = set(), [site / "index.html"], []
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for link in pages[path].links:
            target = urlparse(urljoin(path.as_uri(), link))
            if target.scheme != "file":
                continue
            found = Path(unquote(target.path))
            found = found / "index.html" if found.is_dir() else found
            if not found.exists() or (target.fragment and target.fragment not in pages[found].anchors | {"__top"}):
                broken.append((str(path.relative_to(site)), link))
            elif found in pages:
                waiting.append(found)
    assert broken == []
    assert sorted(str(path.relative_to(site)) for path in set(pages) - reached) == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    outside = re.compile(r"^(?:https?:)?//")
    loads = {load for path in site.rglob("*.html") for load in Page(path.read_text()).loads}
    assert loads
    assert sorted(filter(outside.match, loads)) == []
    imported = re.compile(r"@import\s+[\"']?(?:url\()?[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//")
    assert [path.name for path in site.rglob("*.css") if imported.search(path.read_text())] == []


@pytest.mark.slow
def test_the_search_works_from_disk_without_a_network(site: Path) -> None:
    browser = Browser()
    try:
        browser.open(site / "index.html", width=1280)
        browser.tap(*browser.evaluate(f"(({CENTRE})(document.querySelector('.md-search__input')))"))
        browser.call("Input.insertText", text="self-consistency")
        found = browser.evaluate(FOUND)
        assert any("glossary.html" in link for link in found)
        assert browser.faults() == []
    finally:
        browser.close()


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    kept = [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(kept) > 0, "the page shows the outputs that the file holds"
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"] == kept
