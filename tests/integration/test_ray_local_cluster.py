"""`gram cluster` and `gram job`: what is refused, and one cluster from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gram.cli.main import main
from gram.distributed import access, cluster, jobs, local_cluster, processes, ray_start

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    for name in (access.TOKEN, access.TOKEN_PATH, access.MODE, cluster.ADDRESS, jobs.API_ADDRESS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = dict(os.environ)
    yield tmp_path / "gram"
    for name in set(os.environ) - set(before):  # what the commands set for this process
        del os.environ[name]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["cluster", "upp"], "command must be one of up, status, down, got 'upp' (did you mean up?)"),
        (["cluster", "up", "--nodes", "0"], "nodes must be at least 1, got 0"),
        (["cluster", "up", "--cpus-per-node", "0"], "cpus per node must be at least 1, got 0"),
        (["cluster", "up", "--gpus-per-node", "-1"], "gpus per node must be at least 0, got -1"),
        (["cluster", "up", "--port", "70000"], "port must be within 0 and 65535, got 70000"),
        (["cluster", "up", "--client-port", "80"], "client port must be within 1024 and 65535, got 80"),
        (["cluster", "up", "--join", "there"], "ray must be off, new, auto or an address as host:port, got 'there'"),
        (["cluster", "up", "--join", "192.0.2.1:6379"], "ray address 192.0.2.1:6379 must come with a token"),
        (["job", "submit", "--", "evil", "nqueens8"], "command must be one of tasks, "),
        (["job", "submit", "--", "eval", "nqueens8", "--nonsense"], "No such option: --nonsense"),
        (["job", "list"], "jobs must go to a dashboard: --address URL, or gram cluster up --dashboard; got no cluster"),
        (["job", "list", "--address", "ftp://x:1"], "address must be a dashboard's as http://host:port, got 'ftp://x"),
        (["job", "list", "--address", "http://192.0.2.1:8265"], "ray address http://192.0.2.1:8265 must come with a"),
    ],
)
def test_wrong_input_is_one_line(arguments, line, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "require_dashboard", lambda: None)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gram: {line}")
    assert err.count("\n") == 1


def test_what_the_dashboard_lacks_is_named(monkeypatch):
    monkeypatch.setattr(local_cluster, "find_spec", lambda name: None if name == "aiohttp" else name)
    with pytest.raises(ValueError, match=r"must have ray\[default\] \(pip install .*, got no aiohttp$"):
        local_cluster.require_dashboard()


def test_without_a_cluster(capsys):
    assert main(["cluster", "status"]) == 0
    assert main(["cluster", "down"]) == 0
    assert capsys.readouterr().out == "no cluster runs here\n" * 2
    with pytest.raises(ValueError, match="ray auto must find a cluster, got none"):
        cluster.running()


def test_a_broken_state_file_is_named(state, capsys):
    state.mkdir()
    (state / local_cluster.STATE_FILE).write_text("{")
    assert main(["cluster", "status"]) == 2
    assert "cluster.json must be one that gram cluster up wrote" in capsys.readouterr().err


def test_only_marked_processes_and_their_sessions_end():
    mine = [subprocess.Popen(["sleep", "60"], env={**os.environ, "MARK": value}) for value in ("yes", "no")]
    try:
        marked = subprocess.Popen(
            ["sh", "-c", "env -i sleep 60 & wait"], env={**os.environ, "MARK": "a"}, start_new_session=True
        )
        while len(processes.marked("MARK", "a")) < 2:
            time.sleep(0.05)
        assert processes.end("MARK", "a") == 2
        assert marked.wait() == -signal.SIGTERM
        assert [one.poll() for one in mine] == [None, None]
    finally:
        for one in mine:
            one.kill()
            one.wait()


def test_the_address_that_others_reach_this_machine_at():
    assert ray_start.own_address("127.0.0.1:6379") == "127.0.0.1"
    assert ray_start.own_address("localhost:6379") == "127.0.0.1"
    with pytest.raises(ValueError, match=r"ray address 300\.0\.0\.1:6379 must be within reach, got "):
        ray_start.own_address("300.0.0.1:6379")


@pytest.mark.parametrize(
    ("said", "error", "line"),
    [
        ("AuthenticationError: RPC error: InvalidAuthToken: it is", ValueError, "token must be that of the cluster"),
        ("OSError: no room", ray_start.StartError, "ray must start, got OSError: no room"),
    ],
)
def test_a_start_that_fails_for_its_token_is_not_tried_again(said, error, line, tmp_path, monkeypatch):
    node, starts = tmp_path / "node.py", tmp_path / "starts"
    node.write_text(f"import sys\nopen({str(starts)!r}, 'a').write('x')\nsys.exit({said!r})\n")
    monkeypatch.setattr(ray_start.ray_node, "__file__", str(node))
    with pytest.raises(ValueError, match=f"^{line}") as raised:
        ray_start.nodes({}, temp_dir=str(tmp_path), address="127.0.0.1:1", host="127.0.0.1", count=1, cpus=1, gpus=0)
    assert type(raised.value) is error
    assert len(starts.read_text()) == (1 if error is ValueError else access.STARTS)


def test_a_log_told_twice_is_written_once():
    parts: list[str] = []
    written = jobs._Written(parts.append)
    head = ["12:00 INFO job -- Runtime env is setting up.", "\n", "Running entrypoint for job x: y\na"]
    for log in (head, [*head, "\nb", "\nc"]):
        written.restart()
        for part in log:
            written.take(part)
    assert "".join(parts) == "a\nb\n"
    written.finish("".join(head) + "\nb\nc")
    assert parts == ["a\n", "b\n", "c"]


def test_exit_codes_of_jobs():
    def code(status: str, exit_code: int | None) -> int:
        return jobs.JobState(
            job="j", status=status, command="", message="", exit_code=exit_code, started_at=None, elapsed_s=None
        ).code

    assert (code("SUCCEEDED", 0), code("FAILED", 2), code("FAILED", -9)) == (0, 2, 137)
    assert (code("FAILED", None), code("STOPPED", None)) == (1, 143)


def gram(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gram", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


@pytest.fixture
def up(state: Path) -> Iterator[dict[str, Any]]:
    try:
        local_cluster.require_dashboard()
    except ValueError as error:
        pytest.skip(str(error))
    made = gram("cluster", "up", "--dashboard", "--port", "0", "--dashboard-port", "0", "--json")
    assert made.returncode == 0, made.stderr
    yield json.loads(made.stdout)
    gram("cluster", "down")


@pytest.mark.slow
@pytest.mark.alone
def test_a_cluster_and_its_jobs(up: dict[str, Any], state: Path) -> None:
    """Same figures as here, exit codes of jobs, files for their owner alone, and nothing left in the end."""
    for name in (local_cluster.STATE_FILE, local_cluster.TOKEN_FILE):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    again = gram("cluster", "up")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert f"got one at {up['address']}" in again.stderr
    seen = json.loads(gram("cluster", "status", "--json").stdout)
    assert [(row["is_head"], row["cpus"]) for row in seen["members"]] == [(True, 0), (False, 1), (False, 1)]

    command = ["eval", "nqueens8", "--limit", "4", "--width", "4", "--quiet", "--json"]
    here = json.loads(gram(*command).stdout)
    ran = gram("job", "submit", "--", *command, "--ray", "auto")
    assert ran.returncode == 0, ran.stderr + ran.stdout
    there = json.loads(ran.stdout)
    for key in ("trajectories_sha256", "accuracy", "coverage", "mean_steps"):
        assert there[key] == here[key]
    assert there["workers"] >= 1
    refused = gram("job", "submit", "--", *command, "--width", "0")
    assert refused.returncode == 2
    assert "width must be at least 1, got 0" in refused.stdout

    ended = gram("cluster", "down")
    assert ended.returncode == 0, ended.stderr
    assert not [pid for pid in up["processes"] if (found := processes.find(pid)) and "ray" in found.name]
    assert not Path(up["logs"]).exists()
    assert not (state / local_cluster.TOKEN_FILE).exists()
    assert json.loads(gram("cluster", "status", "--json").stdout) == {"is_running": False}
