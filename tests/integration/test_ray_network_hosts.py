"""Clusters over hosts with addresses of their own, one of which is cut off in mid-run: the result of a local run.

`gram cluster up --host` on the first host, on the others the line that it prints.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gram.distributed import processes
from tests.integration.test_ray_faults import payloads
from tests.network_hosts import ROOT, Host, Network, network, read_command, until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.network]
EVALUATION = ("eval", "nqueens8", "--limit", "16", "--width", "64", "--kernel", "eager", "--json")
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
}
"""Ray asks its nodes whether they live. A starved one must have time to answer, so it takes some seconds to notice."""
NOTICED = HEALTH | {"RAY_health_check_failure_threshold": "3"}
UNNOTICED = HEALTH | {"RAY_health_check_failure_threshold": "1000"}


class Local(NamedTuple):
    """What the evaluation gives without a cluster."""

    summary: dict[str, Any]
    payloads: dict[int, bytes]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("local") / "out"
    line = [sys.executable, "-m", "gram", *EVALUATION, "--out", str(out)]
    ran = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
    return Local(json.loads(ran.stdout), payloads(out))


@contextmanager
def cluster(hosts: int, environment: dict[str, str]) -> Iterator[Network]:
    """A node with room for one worker on each host, and the head on the first; in the end nothing is left of them."""
    with network(hosts) as made:
        head, *others = made.hosts
        up = ("cluster", "up", "--host", head.address, "--nodes", "1", "--cpus-per-node", "1")
        variables, join = read_command(head.run(*up, **environment).splitlines()[-1])
        for host in others:
            told = host.run(*join, "--cpus-per-node", "1", **variables, **environment)
            assert told.startswith(f"joined the cluster at {head.address}:6379: 1 node, 1 CPU each")
        yield made
        with ThreadPoolExecutor() as together:
            list(together.map(lambda host: host.run("cluster", "down"), made.hosts))
        assert not any(host.processes() for host in made.hosts)


class Driver:
    """The evaluation on a host, in the course of its run."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.out, self.told = folder / "out", folder / "told"
        self.printed = folder / "printed"
        line = host.gram(*EVALUATION, "--out", str(self.out), "--ray", f"{host.address}:6379")
        with self.told.open("w") as told, self.printed.open("w") as printed:
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=printed, stderr=told)

    def until(self, claim: Any) -> None:
        """Waits until a claim holds of the run."""
        until(lambda: claim() or self.process.poll() is not None, 300)
        assert self.process.poll() is None, f"the run is over: {self.told.read_text()}"

    def has_told(self, what: str) -> bool:
        return what in self.told.read_text()

    def summary(self) -> dict[str, Any]:
        """What the run prints in the end."""
        assert self.process.wait(600) == 0, self.told.read_text()
        return dict(json.loads(self.printed.read_text()))


def assert_same(driver: Driver, local: Local) -> dict[str, Any]:
    """Every trajectory and every byte of the stored results; the run's summary."""
    summary = driver.summary()
    for key in ("trajectories_sha256", "accuracy", "coverage", "mean_steps"):
        assert summary[key] == local.summary[key]
    assert payloads(driver.out) == local.payloads
    return summary


def test_nothing_stays_of_hosts_whose_maker_is_killed():
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    make = "from tests.network_hosts import network\nwith network(2) as made:\n"
    make += "    print(made.switch, *(host.holder for host in made.hosts), flush=True)\n    input()"
    maker = subprocess.Popen(
        [sys.executable, "-c", make], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with maker:
        assert maker.stdout is not None
        holders = [processes.find(int(number)) for number in maker.stdout.readline().split()]
        assert len(holders) == 3
        assert all(holder is not None and holder.is_alive for holder in holders)
        maker.kill()
    until(lambda: not any(holder is not None and holder.is_alive for holder in holders))


def test_a_host_is_cut_off_and_the_others_do_its_work(local, tmp_path):
    """The workers of the others are held up until Ray has noticed: what the lost one held is run again for certain."""
    with cluster(3, NOTICED) as made:
        head, second, third = made.hosts
        members = json.loads(second.run("cluster", "status", "--json"))["members"]
        assert sorted(row["address"] for row in members) == [head.address, *(host.address for host in made.hosts)]
        assert all(row["is_alive"] for row in members)

        driver = Driver(head, tmp_path)
        for host in made.hosts:
            driver.until(host.is_at_work)
        assert [host.signal_workers(signal.SIGSTOP) for host in (head, second)] == [1, 1]
        made.pull(third)
        driver.until(lambda: driver.has_told("its node is gone"))
        assert [host.signal_workers(signal.SIGCONT) for host in (head, second)] == [1, 1]
        summary = assert_same(driver, local)
        assert (summary["workers"], summary["nodes"]) == (3, 3)
        assert summary["retries"] in (1, 2), "the shard that the lost worker ran, and the one behind it"
        members = json.loads(head.run("cluster", "status", "--json"))["members"]
        assert [row["address"] for row in members if not row["is_alive"]] == [third.address]


def test_a_host_that_is_cut_off_unnoticed_holds_up_nothing(local, tmp_path):
    """Nobody tells the driver: in the end idle workers run what the silent one has, and the run ends without it."""
    with cluster(2, UNNOTICED) as made:
        head, second = made.hosts
        driver = Driver(head, tmp_path)
        for host in made.hosts:
            driver.until(host.is_at_work)
        made.pull(second)
        summary = assert_same(driver, local)
        assert (summary["workers"], summary["nodes"], summary["retries"]) == (2, 2, 0)
        assert not driver.has_told("gone")
