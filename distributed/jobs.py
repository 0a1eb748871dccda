"""Commands that run on a cluster's head, by Ray's job API. Knows nothing of sampling, and nothing of a terminal.

A job is a command line; it goes on when whoever submitted it has gone. Ray's dashboard takes jobs, over HTTP, with the
cluster's token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gram.distributed import access, cluster, sources
from gram.distributed.local_cluster import DASHBOARD_PORT, current, require_dashboard

API_ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Ray's variable for the dashboard's address."""
HEADERS = "Running entrypoint for job ", " -- Runtime env is setting up."
"""In Ray's own first lines of a job's log, where their beginning is."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOOK_EVERY_S = 0.3
STOPPED_EXIT_CODE = 143
"""As of a process that SIGTERM ended."""
FAILED_EXIT_CODE = 1
"""Of a job that failed before its command ran."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """What is known of a job."""

    job: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    message: str
    exit_code: int | None
    """Of its command; None where that has not ended."""
    started_at: float | None
    """Seconds since 1970."""
    elapsed_s: float | None

    @property
    def is_over(self) -> bool:
        return self.status in ENDED

    @property
    def code(self) -> int:
        """Exit code for a command that followed the job to its end."""
        if self.status == "SUCCEEDED":
            return 0
        if self.exit_code:
            return self.exit_code if self.exit_code > 0 else 128 - self.exit_code
        return STOPPED_EXIT_CODE if self.status == "STOPPED" else FAILED_EXIT_CODE


class Jobs:
    """Jobs of one cluster."""

    def __init__(self, address: str | None = None) -> None:
        """`address` is that of a dashboard, as `http://host:port`, `https://host:port` or `host:port`; None takes
        `API_ADDRESS`, else the cluster that `gram cluster up --dashboard` started here.

        Raises `ValueError` for an address that is none, that nobody answers, or that comes without a token.
        """
        require_dashboard()
        self.url, self.is_here = find_dashboard(address or os.environ.get(API_ADDRESS))
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or DASHBOARD_PORT
        cluster.take_local_token(self.url)
        access.check_token(self.url, host)
        access.check_reachable(self.url, host, port)
        os.environ.update(access.QUIET)
        for name in (API_ADDRESS, cluster.ADDRESS):  # they would go before the address
            os.environ.pop(name, None)
        from ray.job_submission import JobSubmissionClient

        for name in ("sdk", "utils"):
            logging.getLogger(f"ray.dashboard.modules.job.{name}").setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(self.url)
        except (RuntimeError, ConnectionError) as error:
            raise ValueError(f"{self.url} must be a Ray dashboard that accepts the token, got {_line(error)}") from None

    def submit(self, arguments: Sequence[str], *, working_dir: Path | None = None) -> str:
        """Starts `gram` with `arguments` on the head; the job's name.

        On the cluster of this machine it is this Python's `gram`, in this folder. Elsewhere it is the head's own, in a
        copy of `working_dir`, or in no folder of yours. Raises `ValueError` where the cluster refuses.
        """
        runtime_env = None if working_dir is None else {"working_dir": str(working_dir)}
        command = entrypoint(arguments, is_here=self.is_here and working_dir is None)
        try:
            return str(self._client.submit_job(entrypoint=command, runtime_env=runtime_env))
        except (RuntimeError, ConnectionError) as error:
            raise ValueError(f"{self.url} must accept the job, got {_line(error)}") from None

    def state(self, job: str) -> JobState:
        """What is known of a job. Raises `ValueError` for one that is not there."""
        return _state(self._asked(job, self._client.get_job_info))

    def all(self) -> list[JobState]:
        """Jobs that were submitted, the latest first; those of drivers that merely connected are left out."""
        found = [_state(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: -(job.started_at or 0))

    def logs(self, job: str) -> str:
        """What the job has said so far. Raises `ValueError` for one that is not there."""
        return _without_header(str(self._asked(job, self._client.get_job_logs)))

    def stop(self, job: str) -> bool:
        """Ends a job with SIGTERM; whether it still ran. Raises `ValueError` for one that is not there."""
        return bool(self._asked(job, self._client.stop_job))

    def follow(self, job: str, write: Callable[[str], object]) -> JobState:
        """Gives `write` what the job says, as it comes, and returns when the job has ended.

        Raises `ValueError` for a job that is not there. An interrupt leaves the job as it is.
        """
        state, written = self.state(job), _Written(write)
        while not state.is_over:
            asyncio.run(self._tail(job, written))
            time.sleep(LOOK_EVERY_S)
            state = self.state(job)
        written.finish(str(self._asked(job, self._client.get_job_logs)))
        return state

    async def _tail(self, job: str, written: _Written) -> None:
        """One connection to the log, which is told from its start."""
        written.restart()
        lines: AsyncIterator[str] = self._client.tail_job_logs(job)
        async with aclosing(lines) as parts:  # type: ignore[type-var]
            try:
                async for part in parts:
                    written.take(part)
            except (RuntimeError, OSError):
                return  # the connection broke; the caller makes another

    def _asked(self, job: str, ask: Callable[[str], Any]) -> Any:
        try:
            return ask(job)
        except (RuntimeError, ConnectionError) as error:
            if "does not exist" in str(error):
                raise ValueError(f"job must be one that {self.url} has, got {job!r}") from None
            raise ValueError(f"{self.url} must answer, got {_line(error)}") from None


class _Written:
    """The part of a log that has been written, so that a log told from its start again is not written twice."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write, self.length, self._told = write, 0, ""

    def restart(self) -> None:
        self._told = ""

    def take(self, part: str) -> None:
        """The next part of the log since `restart`."""
        self._told += part
        self.finish(self._told[: self._told.rfind("\n") + 1])

    def finish(self, log: str) -> None:
        """The log from its start."""
        text = _without_header(log)
        if len(text) > self.length:
            self.write(text[self.length :])
            self.length = len(text)


def find_dashboard(address: str | None) -> tuple[str, bool]:
    """URL of a dashboard, and whether it is that of the cluster started here. Raises `ValueError`."""
    here = current()
    mine = None if here is None else here.dashboard
    if address is None:
        if mine is None:
            got = "no cluster here" if here is None else f"a cluster at {here.address} without one"
            raise ValueError(f"jobs must go to a dashboard: --address URL, or gram cluster up --dashboard; got {got}")
        return mine, True
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise ValueError(f"address must be a dashboard's as http://host:port, got {address!r}")
    url = f"{parts.scheme}://{parts.netloc}" + ("" if parts.port else f":{DASHBOARD_PORT}")
    return url, url == mine


def entrypoint(arguments: Sequence[str], *, is_here: bool) -> str:
    """The shell command of a job. On this machine it runs this very package, whatever the folder holds."""
    if not is_here:
        return shlex.join(["gram", *arguments])
    command = shlex.join([sys.executable, "-P", "-m", "gram", *arguments])
    if (root := sources.python_path()) is not None:
        command = f"env PYTHONPATH={shlex.quote(root)}${{PYTHONPATH:+:$PYTHONPATH}} {command}"
    return f"cd {shlex.quote(os.getcwd())} && exec {command}"


def _state(job: Any) -> JobState:
    began, ended = (None if ms is None else ms / 1000 for ms in (job.start_time, job.end_time))
    return JobState(
        job=job.submission_id or job.job_id,
        status=job.status.value,
        command=job.entrypoint,
        message=" ".join((job.message or "").split()),
        exit_code=job.driver_exit_code,
        started_at=began or None,
        elapsed_s=None if not began else (ended or time.time()) - began,
    )


def _without_header(log: str) -> str:
    """A log behind Ray's own first lines."""
    first, newline, rest = log.partition("\n")
    is_header = bool(newline) and any(words in first for words in HEADERS)
    return _without_header(rest) if is_header else log


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
