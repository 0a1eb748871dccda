"""A Ray cluster that outlives the command that starts it: `gram cluster up`. Ray is started, never imported.

Its nodes are processes of this machine. A file in the user's state folder says what was started; every process bears
the cluster's mark in its environment, so that exactly those are ended. Like every cluster of ours it listens on the
loopback address unless told otherwise and asks for a token; dashboard and client port are off.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from gram.atomic_files import lock, replacing
from gram.distributed import processes, ray_start, socket_folder
from gram.distributed.access import LOOPBACK, MODE, QUIET, RAYLET, STARTS, TOKEN_PATH, given_token, split_address
from gram.distributed.processes import Process

MARK = "GRAM_CLUSTER"
"""Variable whose value tells the processes of one cluster."""
STATE_FILE, LOCK_FILE, TOKEN_FILE = "cluster.json", "cluster.lock", "cluster.token"
PORT, DASHBOARD_PORT = 6379, 8265
DASHBOARD_NEEDS = ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "opentelemetry", "prometheus_client", "pydantic")
"""What of `ray[default]` its dashboard, which takes jobs, cannot do without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterRequest:
    """What to start."""

    nodes: int = 2
    """Nodes with workers; a head without room for any comes in addition, unless they join a cluster."""
    cpus_per_node: int = 1
    gpus_per_node: int = 0
    port: int = PORT
    """Of the head; 0 takes a free one."""
    host: str = LOOPBACK
    """Address to listen on."""
    dashboard_port: int | None = None
    """None: no dashboard, so no jobs; 0 takes a free one."""
    client_port: int | None = None
    """Of Ray's client protocol; None: off."""

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("cpus_per_node", 1), ("gpus_per_node", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', ' ')} must be at least {least}, got {getattr(self, name)}")
        for name, least in (("port", 0), ("dashboard_port", 0), ("client_port", 1024)):
            port = getattr(self, name)
            if port is not None and not least <= port < 65536:
                raise ValueError(f"{name.replace('_', ' ')} must be within {least} and 65535, got {port}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCluster:
    """What was started here."""

    mark: str
    address: str
    """Of the head, as `host:port`."""
    is_joined: bool
    """Whether the nodes here belong to a cluster whose head was started elsewhere."""
    dashboard: str | None
    """URL; None where it is off."""
    token_file: str
    temp_dir: str
    """Ray's files, logs among them; removed with the cluster."""
    nodes: int
    cpus_per_node: int
    gpus_per_node: int
    started_at: str
    processes: tuple[Process, ...] = field(default=())

    @property
    def is_alive(self) -> bool:
        """Whether a process of it runs."""
        return any(process.is_alive for process in self.processes) or bool(processes.marked(MARK, self.mark))

    def environment(self) -> dict[str, str]:
        """Variables with which Ray finds the token."""
        return QUIET | {MODE: "token", TOKEN_PATH: self.token_file}


def state_folder() -> Path:
    """Where the state file and the token are: `gram` in the user's state folder (`XDG_STATE_HOME`).

    Raises `ValueError` where nothing says which that is.
    """
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "gram"
    try:
        return Path.home() / ".local" / "state" / "gram"
    except RuntimeError:
        raise ValueError("XDG_STATE_HOME or HOME must name a folder for a cluster's state, got neither") from None


def has_state_folder() -> bool:
    """Whether a cluster can have been started here."""
    try:
        return bool(state_folder())
    except ValueError:
        return False


def current() -> LocalCluster | None:
    """The cluster that was started here and has not been stopped; None where none runs (after a reboot, say).

    Raises `ValueError` for a state file that cannot be read, or where no folder can hold one.
    """
    found = _recorded()
    return found if found is not None and found.is_alive else None


def up(
    plan: ClusterRequest, *, join: str | None = None, report: Callable[[str], None] = lambda line: None
) -> LocalCluster:
    """Starts a cluster, or nodes that join the one at `join` with the token in `TOKEN` or the file of `TOKEN_PATH`.

    `report` receives a line where a start is tried again. Raises `ValueError` where a cluster runs already, a port is
    taken, or Ray does not start.
    """
    if not (processes.PROC / "self" / "environ").is_file():
        raise ValueError(f"a local cluster must have {processes.PROC} (Linux), got none")
    with _lock():
        if (there := current()) is not None:
            raise ValueError(
                f"cluster must be down before another comes up, got one at {there.address} (gram cluster down ends it)"
            )
        _clean(_recorded())
        for attempt in range(1, STARTS + 1):
            cluster = _prepared(plan, join)
            _write(cluster)
            try:
                cluster = _started(cluster, plan)
                _write(cluster)
                return cluster
            except BaseException as error:
                _clean(cluster)
                if attempt == STARTS or not isinstance(error, ray_start.StartError):
                    raise
                report(f"trying again: {error}")
    raise AssertionError("the last attempt returns or raises")


def down() -> tuple[LocalCluster, int] | None:
    """Ends what `up` started and removes its files; the cluster and how many processes it had, None where none runs.

    Raises `ValueError` where a process stays.
    """
    with _lock():
        if (cluster := _recorded()) is None:
            return None
        ended = _clean(cluster)
        return (cluster, ended) if ended else None


def require_dashboard() -> None:
    """Sees that Ray's dashboard can run. Raises `ValueError`."""
    if missing := [name for name in DASHBOARD_NEEDS if find_spec(name) is None]:
        raise ValueError(
            "jobs and the dashboard must have ray[default] (pip install 'gram-sampler[dashboard]'), "
            f"got no {', '.join(missing)}"
        )


def _prepared(plan: ClusterRequest, join: str | None) -> LocalCluster:
    """The cluster as it will be: ports chosen, token written."""
    dashboard = None
    if join is not None:
        address, token = join, given_token(join, split_address(join)[0])
    else:
        address, token = f"{plan.host}:{ray_start.free_port('port', plan.host, plan.port)}", secrets.token_hex(32)
        if plan.dashboard_port is not None:
            require_dashboard()
            dashboard = f"http://{plan.host}:{ray_start.free_port('dashboard port', plan.host, plan.dashboard_port)}"
    return LocalCluster(
        mark=secrets.token_hex(8),
        address=address,
        is_joined=join is not None,
        dashboard=dashboard,
        token_file=str(_write_private(state_folder() / TOKEN_FILE, token)),
        temp_dir=socket_folder.make(),
        nodes=plan.nodes,
        cpus_per_node=plan.cpus_per_node,
        gpus_per_node=plan.gpus_per_node,
        started_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def _started(cluster: LocalCluster, plan: ClusterRequest) -> LocalCluster:
    """Starts it, and notes the processes that there are then. Raises `StartError`."""
    environment = cluster.environment() | {MARK: cluster.mark}
    if not cluster.is_joined:
        ray_start.head(
            environment,
            temp_dir=cluster.temp_dir,
            host=plan.host,
            port=_port(cluster.address),
            dashboard_port=None if cluster.dashboard is None else _port(cluster.dashboard),
            client_port=plan.client_port,
        )
    ray_start.nodes(
        environment,
        temp_dir=cluster.temp_dir,
        address=cluster.address,
        host=ray_start.own_address(cluster.address) if cluster.is_joined and plan.host == LOOPBACK else plan.host,
        count=plan.nodes,
        cpus=plan.cpus_per_node,
        gpus=plan.gpus_per_node,
    )
    found = tuple(sorted(processes.marked(MARK, cluster.mark)))
    wanted, raylets = plan.nodes + (not cluster.is_joined), sum(process.name == RAYLET for process in found)
    if raylets != wanted:
        raise ray_start.StartError(f"every node must stay up, got {raylets} of {wanted}")
    return replace(cluster, processes=found)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _clean(cluster: LocalCluster | None) -> int:
    """Ends a cluster's processes and removes its files, the record of it last; how many processes there were."""
    if cluster is None:
        return 0
    ended = processes.end(MARK, cluster.mark, cluster.processes)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    for name in (TOKEN_FILE, STATE_FILE):
        (state_folder() / name).unlink(missing_ok=True)
    return ended


def _recorded() -> LocalCluster | None:
    """What the state file says; None without one. Raises `ValueError`."""
    file = state_folder() / STATE_FILE
    try:
        values = json.loads(file.read_text())
        values["processes"] = tuple(Process(**process) for process in values["processes"])
        return LocalCluster(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"state file {file} must be one that gram cluster up wrote, got another; remove it") from None


def _write(cluster: LocalCluster) -> None:
    values = asdict(cluster) | {"processes": [process._asdict() for process in cluster.processes]}
    _write_private(state_folder() / STATE_FILE, json.dumps(values, indent=2))


def _write_private(path: Path, text: str) -> Path:
    """Writes a file that its owner alone can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path, mode=0o600) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _lock() -> Iterator[None]:
    """One command at a time. Raises `ValueError` where another has it."""
    path = state_folder() / LOCK_FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a") as file:
        lock(file.fileno(), path, ValueError, "another gram cluster up or down must be over, got one that runs")
        yield
