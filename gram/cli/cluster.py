"""`gram cluster`: a Ray cluster on this machine that stays until it is told to go; other machines can join it."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.main import PLAIN, Group
from gram.cli.options import Json, whole

if TYPE_CHECKING:
    from gram.distributed.local_cluster import LocalCluster

cluster = typer.Typer(cls=Group, help="A Ray cluster on this machine: up, status, down; others can join it.", **PLAIN)


@cluster.command()
def up(
    nodes: Annotated[int, typer.Option(parser=whole, metavar="N", help="Nodes with workers.")] = 2,
    cpus_per_node: Annotated[
        int | None, typer.Option(parser=whole, metavar="C", help="CPUs of each. [default: its share of the cores]")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(parser=whole, metavar="G", help="GPUs of each.")] = 0,
    port: Annotated[int, typer.Option(parser=whole, metavar="P", help="Of the head; 0 takes a free one.")] = 6379,
    host: Annotated[
        str, typer.Option(metavar="IP", help="Address of this machine to listen on, for others to join.")
    ] = "127.0.0.1",
    dashboard: Annotated[bool, typer.Option("--dashboard", help="With Ray's dashboard, which takes jobs.")] = False,
    dashboard_port: Annotated[int, typer.Option(parser=whole, metavar="P", help="Of it; 0 takes a free one.")] = 8265,
    client_port: Annotated[
        int | None, typer.Option(parser=whole, metavar="P", help="Of Ray's client protocol. [default: off]")
    ] = None,
    join: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Start no head: join the cluster there, with its token.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a head and some nodes here; they stay until `gram cluster down`."""
    from gram.cli import terminal
    from gram.distributed import access, local_cluster

    plan = local_cluster.ClusterRequest(
        nodes=nodes,
        cpus_per_node=max(1, (os.cpu_count() or 1) // max(1, nodes)) if cpus_per_node is None else cpus_per_node,
        gpus_per_node=gpus_per_node,
        port=port,
        host=host,
        dashboard_port=dashboard_port if dashboard else None,
        client_port=client_port,
    )
    if join is not None:
        where, there = access.split_address(join)
        for name, is_given in (("--dashboard", dashboard), ("--client-port", client_port is not None)):
            if is_given:
                raise ValueError(f"{name} must be given where the head starts, got it with --join")
        access.given_token(join, where)
        access.check_reachable(join, where, there)
    made = local_cluster.up(plan, join=join, report=terminal.log)
    if as_json:
        terminal.print_json(_summary(made))
        return
    what = f"{terminal.plural(made.nodes, 'node')}, {terminal.plural(made.cpus_per_node, 'CPU')}"
    what += f" and {terminal.plural(made.gpus_per_node, 'GPU')} each" if made.gpus_per_node else " each"
    print(f"{'joined the cluster' if made.is_joined else 'cluster'} at {made.address}: {what}")
    if made.is_joined:
        print("gram cluster down takes them away again")
        return
    print("gram eval nqueens8 --ray auto    runs on it; so does --ray " + made.address)
    if made.dashboard:
        print("gram job submit -- eval nqueens8 --ray auto    goes on when you log out; dashboard " + made.dashboard)
    print("gram cluster down    ends it")
    if not access.is_loopback(host):
        print("on another machine (the line holds the token: whoever has it can run code on every node):")
        print(f"  {join_command(made)}")


@cluster.command()
def status(as_json: Json = False) -> None:
    """Show the cluster that was started here: address, nodes, what they have."""
    from gram.cli import terminal
    from gram.distributed import local_cluster

    found = local_cluster.current()
    if found is None:
        terminal.print_json({"is_running": False}) if as_json else print("no cluster runs here")
        return
    from gram.distributed.cluster import nodes_at

    rows = nodes_at(found.address)
    if as_json:
        terminal.print_json({"is_running": True, **_summary(found), "members": rows})
        return
    console = terminal.output()
    console.print(f"cluster at {found.address}, since {found.started_at}")
    if found.dashboard:
        console.print(f"dashboard {found.dashboard}")
    console.print(f"token in {found.token_file}\n")
    table = terminal.table("node", "address", "", "CPUs", "GPUs", left=3)
    for row in rows:
        state = ("head" if row["is_head"] else "") if row["is_alive"] else "gone"
        table.add_row(row["node"][:12], row["address"], state, f"{row['cpus']:g}", f"{row['gpus']:g}")
    console.print(table)


@cluster.command()
def down(as_json: Json = False) -> None:
    """End what `gram cluster up` started here, and nothing else."""
    from gram.cli import terminal
    from gram.distributed import local_cluster

    ended = local_cluster.down()
    if as_json:
        terminal.print_json({"is_running": False, "processes_ended": ended[1] if ended else 0})
    elif ended is None:
        print("no cluster runs here")
    else:
        print(f"cluster at {ended[0].address} is down: {terminal.plural(ended[1], 'process', 'processes')} ended")


def join_command(made: LocalCluster) -> str:
    """The one line that another machine with gram joins a cluster by; it holds the token."""
    from pathlib import Path

    token = Path(made.token_file).read_text().strip()
    return f"RAY_AUTH_TOKEN={token} gram cluster up --nodes 1 --join {shlex.quote(made.address)}"


def _summary(made: LocalCluster) -> dict[str, Any]:
    """A cluster for JSON, without the token."""
    names = ("address", "dashboard", "is_joined", "nodes", "cpus_per_node", "gpus_per_node", "token_file")
    known = {name: getattr(made, name) for name in names}
    processes = [process.pid for process in made.processes]
    return known | {"logs": made.temp_dir, "started_at": made.started_at, "processes": processes}
