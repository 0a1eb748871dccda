"""The project's own rules: who imports whom, names, sizes, links. `CONTRIBUTING.md` says why.

The checkers are functions over source text; the tests at the end show that each of them can fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("kernels", "distributed", "evals")
"""Top-level folders whose import names are `gram.<folder>`, by links in `gram/`."""
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
LONGEST_FILE_LINES = 600
ONE_HOME = {
    "ray": ("gram.distributed",),
    "triton": ("gram.kernels",),
    "transformers": ("gram.hub",),
    "huggingface_hub": ("gram.hub_files",),
    "rich": ("gram.cli",),
    "scipy": ("gram.evals.statistics", "gram.evals.paired"),
}
"""Packages that only these modules may import."""
CLOSED = {
    "gram.kernels": ("gram", ("gram.kernels",)),
    "gram.tasks": ("gram", ("gram.tasks",)),
    "gram.distributed": ("gram.evals", ()),
    "gram.evals": ("gram.distributed", ()),
}
"""Modules of a package, and what they may not import: the first, except for the others."""
KNOWN_CIRCLES = [{"gram.distributed.sources", "gram.distributed.worker"}]
"""Import circles that are still to be ended; an entry without its circle is a fault too."""
KNOWN_TWICE = {"Worker"}
"""Class names that are still defined more than once; a name that no longer is must go from here."""
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home)/")


def is_in(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def imports(source: str, module: str) -> Iterator[str]:
    """Dotted names that a module imports, wherever in its text; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join(above + ([node.module] if node.module else []))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def import_faults(source: str, module: str) -> list[str]:
    """Imports that break a rule, one line each."""
    faults = []
    for name in imports(source, module):
        top = name.split(".")[0]
        if top in LINKED:
            faults.append(f"{module}: import gram.{top}, not {top}, which is also a published package")
        if top in ONE_HOME and not is_in(module, *ONE_HOME[top]):
            faults.append(f"{module}: {top} may be imported only in {', '.join(ONE_HOME[top])}")
        if is_in(name, "gram.cli") and not is_in(module, "gram.cli", "gram.__main__"):
            faults.append(f"{module}: nothing imports the command line, got {name}")
        if is_in(module, "gram.tasks") and top == "torch":
            faults.append(f"{module}: tasks are plain numpy, got {name}")
        for package, (closed, allowed) in CLOSED.items():
            if is_in(module, package) and is_in(name, closed) and not is_in(name, *allowed):
                faults.append(f"{module}: {package} may not import {name}")
        if top in ("pickle", "cloudpickle", "dill"):
            faults.append(f"{module}: no pickle: loading one runs its code")
    return faults


def run_time_imports(source: str, module: str) -> Iterator[str]:
    """`imports`, those of functions included, without what stands under `if TYPE_CHECKING`."""

    class Pruned(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST:
            return ast.Pass() if "TYPE_CHECKING" in ast.unparse(node.test) else node

    yield from imports(ast.unparse(Pruned().visit(ast.parse(source))), module)


def circles(sources: dict[str, str]) -> list[set[str]]:
    """Sets of modules that import each other, by source of each module. `gram/__init__.py` resolves names lazily, so
    what it imports counts for nothing."""

    def module_of(name: str) -> str:
        while name not in sources and "." in name:
            name = name.rpartition(".")[0]
        return name

    uses = {
        module: {module_of(name) for name in run_time_imports(source, module)} & sources.keys()
        for module, source in sources.items()
        if module != "gram"
    }
    reached: dict[str, set[str]] = {}
    for module in uses:
        ahead, reached[module] = [module], set()
        while ahead:
            new = uses.get(ahead.pop(), set()) - reached[module]
            reached[module] |= new
            ahead += new
    found: list[set[str]] = []
    for module in uses:
        circle = {other for other in reached[module] if module in reached.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def names_twice(sources: dict[str, str]) -> dict[str, list[str]]:
    """Class names that several classes have, and the files of these."""
    places: dict[str, list[str]] = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def load_faults(source: str, module: str) -> list[str]:
    """Calls of `torch.load` without `weights_only=True`."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("weights_only") != "True":
                faults.append(f"{module}:{node.lineno}: torch.load must have weights_only=True")
    return faults


def file_faults(source: str, path: str) -> list[str]:
    """Faults of a Python file's name and size."""
    faults = []
    if Path(path).stem in BANNED_NAMES:
        faults.append(f"{path}: a name that says nothing; name the file after what it holds")
    if (lines := source.count("\n")) > LONGEST_FILE_LINES:
        faults.append(f"{path}: must have at most {LONGEST_FILE_LINES} lines, got {lines}")
    if Path(path).name == "__init__.py" and Path(path).parts[0] in LINKED:
        faults.append(f"{path}: {Path(path).parts[0]} has no __init__.py, so that it is no package of its own")
    return faults


def path_faults(text: str, path: str) -> list[str]:
    """Lines that name a folder of somebody's machine."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"{path}:{number}: names a folder of one machine" for number, line in lines if MACHINE_PATH.search(line)]


def link_faults(root: Path) -> list[str]:
    """Links in `gram/` that are not what they must be."""
    faults = []
    for name in LINKED:
        link, wanted = root / "gram" / name, f"../{name}"
        if not link.is_symlink():
            found = "a text file" if link.is_file() else "a folder" if link.is_dir() else "nothing"
            faults.append(
                f"gram/{name} must be a symbolic link to {wanted}, got {found}: clone again with "
                "`git clone -c core.symlinks=true` (on Windows with developer mode switched on)"
            )
        elif str(link.readlink()) != wanted:
            faults.append(f"gram/{name} must point to {wanted}, got {link.readlink()}")
        elif not link.is_dir():
            faults.append(f"gram/{name} must lead to a folder, got nothing at {name}/")
    return faults


def python_files(*folders: str) -> dict[str, str]:
    """Source by path from the root; the links in `gram/` are not followed."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in found
        if not any(parent.is_symlink() for parent in path.parents if parent != ROOT)
    }


def module_name(path: str) -> str:
    """Import name of a source file."""
    dotted = ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")
    return f"gram.{dotted}" if is_in(dotted, *LINKED) else dotted


PACKAGES = python_files("gram", *LINKED)
ALL_PYTHON = PACKAGES | python_files("tests", "scripts")


def test_imports_follow_the_rules() -> None:
    assert PACKAGES
    assert [fault for path, source in PACKAGES.items() for fault in import_faults(source, module_name(path))] == []


def test_tests_and_scripts_import_by_the_projects_names() -> None:
    tops = {(path, name.split(".")[0]) for path, source in ALL_PYTHON.items() for name in imports(source, path)}
    assert sorted((path, top) for path, top in tops if top in LINKED) == []


def test_no_modules_import_each_other() -> None:
    found = circles({module_name(path): source for path, source in PACKAGES.items()})
    assert [sorted(circle) for circle in found if circle not in KNOWN_CIRCLES] == []
    assert [sorted(circle) for circle in KNOWN_CIRCLES if circle not in found] == [], "ended: delete these entries"


def test_no_class_name_is_defined_twice() -> None:
    page = "gram/minimal.py"  # says in small what the other files hold
    found = names_twice({path: source for path, source in PACKAGES.items() if path != page})
    assert {name: paths for name, paths in found.items() if name not in KNOWN_TWICE} == {}
    assert KNOWN_TWICE - found.keys() == set(), "ended: delete these entries"


def test_nothing_unpickles() -> None:
    assert [fault for path, source in PACKAGES.items() for fault in load_faults(source, path)] == []


def test_names_and_sizes_of_files() -> None:
    assert [fault for path, source in ALL_PYTHON.items() for fault in file_faults(source, path)] == []


def test_links() -> None:
    faults = link_faults(ROOT)
    assert not faults, "\n".join(faults)


def test_no_machine_paths_in_tracked_files() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: cannot tell which files belong to the project")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    faults = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            faults += path_faults(path.read_bytes().decode(errors="ignore"), name)
    assert faults == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gram.kernels.dispatch", "from gram import config"),
        ("gram.kernels.dispatch", "from gram.config import ModelConfig"),
        ("gram.kernels.dispatch", "from .. import model"),
        ("gram.distributed.pool", "import gram.evals.metrics"),
        ("gram.evals.pages.report", "from gram import distributed"),
        ("gram.api", "def f():\n    from gram.cli.main import main"),
        ("gram.api", "import ray"),
        ("gram.model", "import triton.language as tl"),
        ("gram.checkpoint", "from transformers import AutoModel"),
        ("gram.evals.pages.report", "from rich.table import Table"),
        ("gram.evals.metrics", "from scipy import stats"),
        ("gram.tasks.sudoku", "import torch"),
        ("gram.tasks.sudoku", "from gram.config import ModelConfig"),
        ("gram.model", "import kernels.dispatch"),
        ("gram.model", "from evals import metrics"),
        ("gram.training.trainer", "import pickle"),
    ],
)
def test_the_import_checker_can_fail(module: str, source: str) -> None:
    assert len(import_faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gram.kernels.dispatch", "from gram.kernels import reference\nimport triton"),
        ("gram.distributed.pool", "import ray\nfrom gram.sampler import plan"),
        ("gram.evals.statistics", "import scipy.stats\nfrom gram.evals import metrics"),
        ("gram.cli.terminal", "import rich"),
        ("gram.tasks.sudoku", "import numpy as np\nfrom gram.tasks.protocol import Task"),
        ("gram.cli.eval", "from gram.cli import terminal\nfrom gram import evals"),
        ("gram.evals.pages.report", "import gram.evals_of_others"),
    ],
)
def test_the_import_checker_can_pass(module: str, source: str) -> None:
    assert import_faults(source, module) == []


def test_the_circle_checker_can_fail() -> None:
    there, back = "from gram.b import x", "def f():\n    from gram import a"
    assert circles({"gram.a": there, "gram.b": back}) == [{"gram.a", "gram.b"}]
    assert circles({"gram.a": there, "gram.b": "import gram.c", "gram.c": "import gram.a"}) == [
        {"gram.a", "gram.b", "gram.c"}
    ]
    typed = "if TYPE_CHECKING:\n    from gram.a import X"
    assert circles({"gram.a": there, "gram.b": typed}) == []
    assert circles({"gram": "from gram.a import load", "gram.a": "from gram import __version__"}) == []
    assert names_twice({"a.py": "class A: ...", "b.py": "class A: ...\nclass B: ..."}) == {"A": ["a.py", "b.py"]}


def test_the_other_checkers_can_fail(tmp_path: Path) -> None:
    assert load_faults("torch.load(path)", "m")
    assert load_faults("torch.load(path, weights_only=False)", "m")
    assert not load_faults("torch.load(path, weights_only=True)", "m")
    assert file_faults("", "gram/utils.py")
    assert file_faults("", "kernels/__init__.py")
    assert file_faults("\n" * (LONGEST_FILE_LINES + 1), "gram/model.py")
    assert not file_faults("\n" * LONGEST_FILE_LINES, "gram/__init__.py")
    for folder in ("work", "root", "home"):
        assert path_faults(f"see /{folder}/x", "README.md")
        assert not path_faults(f"see docs/{folder}/x", "README.md")
    (tmp_path / "gram").mkdir()
    (tmp_path / "gram" / "kernels").write_text("../kernels")
    (tmp_path / "gram" / "evals").symlink_to("../kernels")
    text, nothing, elsewhere = link_faults(tmp_path)
    assert "got a text file" in text
    assert "got nothing" in nothing
    assert "must point to" in elsewhere
