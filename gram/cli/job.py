"""`gram job`: run a command on a cluster and come back later; a thin client of Ray's job API."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram.cli.errors import Interrupted
from gram.cli.main import PLAIN, Group
from gram.cli.options import Json

if TYPE_CHECKING:
    from gram.distributed.jobs import Jobs, JobState

job = typer.Typer(cls=Group, help="Run a command on a cluster: submit, logs, status, stop, list.", **PLAIN)
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ray's dashboard. [default: RAY_API_SERVER_ADDRESS, or `gram cluster up`'s]"),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="As `gram job list` shows it.")]


@job.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND ...", help="Of gram, as `eval nqueens8`.")],
    address: Address = None,
    working_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy this folder to the cluster and run there.")
    ] = None,
    is_detached: Annotated[bool, typer.Option("--detach", help="Print the job's name and leave it.")] = False,
) -> None:
    """Run a gram command on the cluster's head and follow what it says; ends with the command's exit code."""
    from gram.cli.main import check_command

    check_command(command)
    if working_dir is not None and not working_dir.is_dir():
        raise ValueError(f"--working-dir must be a folder, got {working_dir}")
    jobs = _jobs(address)
    name = jobs.submit(command, working_dir=working_dir)
    if is_detached:
        print(name)
        return
    print(f"gram: job {name}", file=sys.stderr)
    _follow(jobs, name, address)


@job.command()
def logs(
    name: JobName,
    address: Address = None,
    is_followed: Annotated[bool, typer.Option("--follow", help="Until the job ends, with its exit code.")] = False,
) -> None:
    """Print what a job has said."""
    jobs = _jobs(address)
    if is_followed:
        _follow(jobs, name, address)
    else:
        print(jobs.logs(name), end="")


@job.command()
def status(name: JobName, address: Address = None, as_json: Json = False) -> None:
    """Show one job."""
    from gram.cli import terminal

    found = _jobs(address).state(name)
    if as_json:
        terminal.print_json(asdict(found))
        return
    console = terminal.output()
    rows = terminal.table("", "", left=2, wraps=1)
    rows.show_header = False
    for label, value in (
        ("job", found.job),
        ("status", found.status.lower()),
        ("exit code", "-" if found.exit_code is None else str(found.exit_code)),
        ("started", _clock(found.started_at)),
        ("time", f"{terminal.number(found.elapsed_s, 1)} s"),
        ("command", found.command),
        ("message", found.message),
    ):
        rows.add_row(label, value)
    console.print(rows)


@job.command()
def stop(name: JobName, address: Address = None) -> None:
    """End a job; what its command kept is kept."""
    print(f"job {name} {'is told to stop' if _jobs(address).stop(name) else 'had ended already'}")


@job.command(name="list")
def list_jobs(address: Address = None, as_json: Json = False) -> None:
    """Show the cluster's jobs, the latest first."""
    from gram.cli import terminal

    found = _jobs(address).all()
    if as_json:
        terminal.print_json({"jobs": [asdict(one) for one in found]})
        return
    rows = terminal.table("job", "status", "started", "command", left=4, wraps=3)
    for one in found:
        rows.add_row(one.job, one.status.lower(), _clock(one.started_at), _short(one))
    terminal.output().print(rows)


def _jobs(address: str | None) -> Jobs:
    from gram.distributed.jobs import Jobs

    return Jobs(address)


def _follow(jobs: Jobs, name: str, address: str | None) -> None:
    """Prints a job's log until it ends, then ends with its exit code; Ctrl-C leaves the job to itself."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        ended = jobs.follow(name, write)
    except Interrupted as stop:
        where = "" if address is None else f" --address {shlex.quote(address)}"
        stop.kept = (
            f"job {name} goes on; gram job logs {name} --follow{where} follows it, gram job stop {name}{where} ends it"
        )
        raise
    if ended.code:
        if ended.exit_code is None:
            print(f"gram: job {name} {ended.status.lower()}: {ended.message}", file=sys.stderr)
        raise typer.Exit(ended.code)


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _short(one: JobState) -> str:
    """The command without the folder and interpreter that it runs in."""
    _, found, arguments = one.command.partition(" -m gram ")
    return f"gram {arguments}" if found else one.command
