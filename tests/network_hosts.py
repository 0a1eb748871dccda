"""Hosts on a network of their own, made of Linux namespaces: what stands for several machines, on one.

Each has its own address, processes and shared memory, and one cable to a switch that is a namespace as well, so nothing
of this machine's own network changes. Files are shared. All of it is held by processes that die with the one that made
it, so that nothing stays however that one ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
NETWORK = "192.0.2"
"""Reserved for documentation (RFC 5737): no real host has such an address."""
DISK = "/dev/shm"
"""Of each host alone, in memory. Also for its state and temporary files: Ray's sockets need short paths."""
FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
"""Variables that may speak of another cluster."""
HOLD = f"mount -t tmpfs none {DISK} && echo up && exec sleep infinity"
LOOK_EVERY_S = 0.02


def why_not() -> str | None:
    """Why this machine cannot have such hosts; None where it can."""
    if missing := [name for name in TOOLS if shutil.which(name) is None]:
        return f"network namespaces need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {(error.stderr or '').strip()}"


@dataclass(frozen=True)
class Host:
    """One machine."""

    address: str
    holder: int
    """Its first process, which all others end with."""

    def command(self, *arguments: str, **environment: str) -> list[str]:
        """A command as it is started on this host, in the folder of the project."""
        given = {"TMPDIR": DISK, "XDG_STATE_HOME": DISK, **environment}
        unset = [part for name in FOREIGN if name not in given for part in ("--unset", name)]
        pairs = [f"{name}={value}" for name, value in given.items()]
        return [*_inside(self.holder), "env", "--chdir", str(ROOT), *unset, *pairs, *arguments]

    def gram(self, *arguments: str, **environment: str) -> list[str]:
        """A command of ours on this host."""
        return self.command(sys.executable, "-m", "gram", *arguments, **environment)

    def run(self, *arguments: str, **environment: str) -> str:
        """What a command of ours prints on this host. Fails with what it says on stderr."""
        ran = subprocess.run(
            self.gram(*arguments, **environment), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert ran.returncode == 0, f"{shlex.join(arguments)}: {ran.stderr}{ran.stdout}"
        return ran.stdout

    def processes(self) -> dict[int, str]:
        """Title of each process but the first, by this machine's own number of it; those that have ended left out."""
        mine, found = os.readlink(f"/proc/{self.holder}/ns/pid"), {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == self.holder:
                continue
            try:
                if os.readlink(folder / "ns" / "pid") == mine:
                    title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if title:
                        found[int(folder.name)] = title
            except OSError:
                continue  # it has ended meanwhile
        return found

    def signal_workers(self, number: signal.Signals) -> int:
        """Sends a signal to the workers of runs; how many there were."""
        workers = [pid for pid, title in self.processes().items() if title.startswith("ray::Worker")]
        for pid in workers:
            os.kill(pid, number)
        return len(workers)

    def is_at_work(self) -> bool:
        """Whether a worker here runs a shard now."""
        return any(title.startswith("ray::Worker.run") for title in self.processes().values())


@dataclass(frozen=True)
class Network:
    """Hosts on one switch."""

    hosts: tuple[Host, ...]
    switch: int

    def pull(self, host: Host) -> None:
        """Pulls a host's cable: nothing of it says goodbye."""
        self._set(host, "down")

    def plug(self, host: Host) -> None:
        """Puts the cable back."""
        self._set(host, "up")

    def _set(self, host: Host, state: str) -> None:
        _do([*_inside(self.switch), "ip", "link", "set", f"port{self.hosts.index(host) + 1}", state])


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """So many hosts that reach each other. Raises `CalledProcessError` where namespaces are not allowed."""
    with ExitStack() as stack:
        switch = stack.enter_context(_namespaces())
        _do([*_inside(switch), "ip", "link", "add", "switch", "type", "bridge"])
        _do([*_inside(switch), "ip", "link", "set", "switch", "up"])
        made = []
        for number in range(1, hosts + 1):
            host = Host(f"{NETWORK}.{number}", stack.enter_context(_namespaces()))
            port = f"port{number}"
            ends = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.holder)]
            # Two processes with one view of process numbers: the switch must know the host by this machine's number.
            _do(["nsenter", "--target", str(switch), "--net", *ends])
            _do([*_inside(switch), "ip", "link", "set", port, "master", "switch", "up"])
            for line in ("link set lo up", f"address add {host.address}/24 dev eth0", "link set eth0 up"):
                _do([*_inside(host.holder), "ip", *line.split()])
            made.append(host)
        yield Network(tuple(made), switch)


@contextmanager
def _namespaces() -> Iterator[int]:
    """A process that holds namespaces of network, processes, mounts and shared memory; its number."""
    line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount", "--ipc", "--mount-proc"]
    line += ["--fork", "--kill-child", "sh", "-c", HOLD]
    made = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stderr is not None
    holder = 0
    try:
        if made.stdout.readline() != "up\n":
            raise subprocess.CalledProcessError(made.wait(), line, stderr=made.stderr.read())
        holder = int(Path(f"/proc/{made.pid}/task/{made.pid}/children").read_text())
        yield holder
    finally:
        made.kill()
        made.wait()
        until(lambda: not Path(f"/proc/{holder}").exists() or not holder)
        made.stdout.close()
        made.stderr.close()


def until(claim: Any, seconds: float = 120.0) -> None:
    """Waits until a claim holds."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(LOOK_EVERY_S)


def read_command(line: str) -> tuple[Mapping[str, str], list[str]]:
    """A printed command line `NAME=VALUE ... gram ARGUMENTS` as variables and arguments."""
    parts = shlex.split(line)
    at = parts.index("gram")
    return dict(part.split("=", 1) for part in parts[:at]), parts[at + 1 :]


def _inside(holder: int) -> list[str]:
    return ["nsenter", "--target", str(holder), "--net", "--pid", "--mount", "--ipc"]


def _do(line: list[str]) -> None:
    subprocess.run(line, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
