"""Where workers find the package and Ray its sockets, whatever lies in the working directory and `TMPDIR`."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gram.api import Sampler
from gram.config import SamplerConfig
from gram.distributed import cluster, jobs, socket_folder, sources
from gram.tasks.registry import get_task
from tests.models import tiny_model

ROOT = Path(__file__).parents[2]
FOREIGN = "raise SystemExit('of somebody else')\n"
LINKED = ("kernels", "distributed", "evals")


def copy_of_the_package(folder: Path) -> Path:
    """A copy as an installation has it: folders in place of links."""
    package = folder / "gram"
    kept = shutil.ignore_patterns("__pycache__", "weights", *LINKED)
    shutil.copytree(ROOT / "gram", package, ignore=kept)
    for name in LINKED:
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return package


def digest_at(folder: Path) -> str:
    """The digest that a process says which finds the package there."""
    code = "from gram.distributed import sources; print(sources.digest())"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_digest_tells_copies_apart_by_every_source_alone(tmp_path):
    package = copy_of_the_package(tmp_path)
    (package / "weights").mkdir()
    (package / "weights" / "card.json").write_text("{}")
    assert digest_at(tmp_path) == sources.digest()
    seen = {sources.digest()}
    for name in ("model.py", "kernels/philox.py", "distributed/pool.py", "evals/metrics.py"):
        with (package / name).open("a") as file:
            file.write("# another\n")
        seen.add(digest_at(tmp_path))
    (package / "more.py").touch()
    seen.add(digest_at(tmp_path))
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["gram.py", "gram/__init__.py", "nothing.py"])
def test_the_package_is_found_where_this_process_found_it(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    for own in (["", str(ROOT)], [str(ROOT), "."], [str(tmp_path)]):
        monkeypatch.setattr(sys, "path", [*own, *sys.path])
        path = sources.import_path()
        assert all(map(os.path.isabs, path))
        code = "import sys; sys.path[:] = sys.argv[1:]; import gram.config; print(gram.config.__file__)"
        command = [sys.executable, "-c", code, *path]
        said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert Path(said.strip()) == ROOT / "gram" / "config.py"


@pytest.mark.parametrize("names", [("gram.py", "torch.py"), ("gram/__init__.py", "safetensors.py")])
def test_a_worker_imports_nothing_from_the_drivers_working_directory(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FOREIGN)
    # As Ray leaves it: the driver's working directory goes before everything else.
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from gram.distributed import sources
made = sources.at_driver(sources.import_path(), {str(tmp_path)!r})
for module in [name for name in sys.modules if name.split(".")[0] == "gram"]:
    del sys.modules[module]
sys.path[:] = [{str(tmp_path)!r}] + sys.path[1:]
try:
    made(None)
except TypeError as error:  # of the parcel, which is none
    print(sys.modules["gram"].__file__, error)
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert run.stdout.split()[0] == str(ROOT / "gram" / "__init__.py")


@pytest.mark.parametrize("last", ["raise ValueError('two\\nlines')", "sys.exit('gone')", "import nonesuch"])
def test_a_worker_that_cannot_import_says_why_in_one_line(tmp_path, last):
    (tmp_path / "gram").mkdir()
    (tmp_path / "gram" / "__init__.py").write_text(f"import sys\n{last}\n")
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from gram.distributed import sources
made = sources.at_driver([{str(tmp_path)!r}], "")
for module in [name for name in sys.modules if name.split(".")[0] == "gram"]:
    del sys.modules[module]
made(None)
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True)
    said = run.stderr.splitlines()[-1]
    assert said.startswith("RuntimeError: gram cannot be imported: ")
    assert {"r": "two lines", "s": "gone", "i": "nonesuch"}[last[0]] in said


def test_a_job_on_this_machine_runs_this_package_from_any_folder(tmp_path, monkeypatch):
    folder = tmp_path / "it's here"
    folder.mkdir()
    (folder / "gram.py").write_text(FOREIGN)
    monkeypatch.chdir(folder)
    command = jobs.entrypoint(["--version"], is_here=True)
    run = subprocess.run(command, shell=True, cwd="/", check=True, capture_output=True, text=True)
    assert run.stdout.startswith("gram ")
    where = shlex.split(jobs.entrypoint([], is_here=True))
    assert where[:2] == ["cd", str(folder)]
    assert jobs.entrypoint(["tasks"], is_here=False) == "gram tasks"


class Died(Exception):
    """Text as Ray has it."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "An error raised in its creation task\n  import nonesuch\nModuleNotFoundError: No module named 'nonesuch'",
            "could not start: ModuleNotFoundError: No module named 'nonesuch'",
        ),
        ("The actor died unexpectedly.\n\tpid: 7\nWorker exits with an exit code boom.", "exit code boom"),
        ("The actor died unexpectedly.\n\tpid: 7\nWorker exits with an exit code 3.\nNo more", "exit code 3"),
        ("The actor died unexpectedly.\n\tpid: 7\nconnection error code 2. End of file.", "its process died"),
    ],
)
def test_the_reason_of_a_death_is_its_last_line(monkeypatch, text, reason):
    from gram.distributed import deaths

    monkeypatch.setattr(deaths, "ActorDiedError", Died)
    assert deaths.reason_of(Died(text)).endswith(reason)


def test_a_killed_process_tells_the_end_of_its_log(tmp_path, monkeypatch):
    from gram.distributed import deaths

    class Node:
        def get_logs_dir_path(self) -> str:
            return str(tmp_path)

    monkeypatch.setattr(deaths, "ActorDiedError", Died)
    monkeypatch.setattr("ray._private.worker._global_node", Node())
    (tmp_path / "worker-0ab-01000000-7.err").write_text(
        ":job_id:1\nfirst\nFatal Python error: Aborted\n\n:actor_name:A\n"
    )
    (tmp_path / "worker-0ab-01000000-77.err").write_text("another's\n")
    text = "The actor died unexpectedly.\n\tpid: {}\nEnd of file."
    assert deaths.reason_of(Died(text.format(7))) == "its process died: Fatal Python error: Aborted"
    assert deaths.reason_of(Died(text.format(8))) == "its process died"


def longest_that_fits() -> int:
    return socket_folder.LONGEST_SOCKET_BYTES - socket_folder.BELOW_BYTES - len("/ray")


@pytest.mark.parametrize(
    ("name", "is_left_alone"),
    [
        ("x" * 10, True),
        ("x" * 18, False),
        ("x" * 200, False),
        ("x" * 254 + "/" + "x" * 254, False),
        ("\u00e4" * 20, False),  # 40 bytes of 20 characters
        ("deep/" * 12 + "end", False),
    ],
)
@pytest.mark.parametrize("variable", socket_folder.VARIABLES)
def test_a_long_folder_of_temporary_files_is_replaced_by_a_short_private_one(
    monkeypatch, variable, name, is_left_alone
):
    short = Path(socket_folder.make())
    try:
        there = short / name
        there.mkdir(parents=True)
        for other in socket_folder.VARIABLES:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(variable, str(there))
        assert (len(os.fsencode(there)) <= longest_that_fits()) == is_left_alone
        with socket_folder.for_new_cluster() as folder:
            if is_left_alone:
                assert folder is None
                return
            assert folder is not None
            made = Path(folder)
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
            assert len(os.fsencode(made)) + socket_folder.BELOW_BYTES <= socket_folder.LONGEST_SOCKET_BYTES
        assert not made.exists()
    finally:
        shutil.rmtree(short)


@pytest.mark.parametrize("value", ["", "relative", "/proc/nothing/can/be/made/here"])
def test_a_folder_of_temporary_files_that_is_none_is_replaced_too(monkeypatch, value):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", value)
    with socket_folder.for_new_cluster() as folder:
        assert (folder is None) == value.startswith("/proc")  # for root, everything can be written


def test_without_any_short_folder_the_variable_is_named(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(socket_folder.tempfile, "tempdir", str(long))
    monkeypatch.setattr(socket_folder, "SHORT", (str(long / "a"), str(long / "b")))
    with pytest.raises(ValueError, match=r"^TMPDIR must be a folder .* at most \d+ bytes.* got .*xxx"):
        socket_folder.make()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("foreign", ["gram.py", "gram/"])
def test_a_run_on_a_new_cluster_from_a_folder_that_holds_another_gram(tmp_path, monkeypatch, foreign):
    """With a long folder of temporary files, too: both were refused, or the workers ran the copy."""
    from gram.distributed.pool import Pool

    if foreign == "gram.py":
        (tmp_path / foreign).write_text(FOREIGN)
    else:
        with (copy_of_the_package(tmp_path) / "sampler" / "engine.py").open("a") as file:
            file.write(FOREIGN)
    (tmp_path / "json.py").write_text(FOREIGN)
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.chdir(tmp_path)
    task = get_task("nqueens4")
    sampler, config = Sampler(tiny_model(), task, name="tiny"), SamplerConfig(width=4, launch=8)
    puzzles, told = task.split("test", limit=4).puzzles, list[str]()
    with cluster.connected("new"):
        result = sampler.sample(puzzles, config, backend=Pool(workers=1, report=told.append))
    assert told == []
    assert result.trajectories_sha256 == sampler.sample(puzzles, config).trajectories_sha256
