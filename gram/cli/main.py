"""The command `gram`: finds a command and imports only that one, so that `gram --help` stays fast.

A command is a function in a module of its own, or a group of some; the table below is all that the top-level help needs
to know of it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gram import __version__
from gram.cli.errors import (
    BAD_INPUT,
    NOTICES,
    Interrupted,
    flush_output,
    is_bad_input,
    one_line,
    raise_on_signals,
    received,
    report,
    show_what_fits,
    stopped_by,
)
from gram.extras import missing_package

if TYPE_CHECKING:
    Context = Any
    Formatter = Any

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
"""Help without boxes: importing rich for it would cost as much as everything else of `gram --help`."""


ADVANCED = "Advanced options"
"""Panel (`rich_help_panel`) of the options that few people need; help shows them last."""
COMMANDS = {
    "tasks": ("gram.cli.tasks:tasks", "Tasks, set sizes, shipped checkpoints and their figures."),
    "solve": ("gram.cli.solve:solve", "Solve puzzles: boards, votes, distinct solutions; --watch is live."),
    "generate": ("gram.cli.generate:generate", "Sample boards from nothing (unconditional generation)."),
    "sample": ("gram.cli.sample:sample", "Sample trajectories into a folder; --trace keeps every supervision step."),
    "eval": ("gram.cli.eval:evaluate_task", "Accuracy, coverage and speed on many puzzles, with intervals."),
    "frontier": (
        "gram.cli.frontier:frontier",
        "Width against depth at matched, measured latency: a verdict.",
    ),
    "report": ("gram.cli.report:report", "Render the page of a frontier, an ablation or a GPU's benchmarks again."),
    "ablate": ("gram.cli.ablate:ablate", "A grid over any setting, cells cached; a page with a sortable table."),
    "compare": ("gram.cli.compare:compare", "Two runs puzzle by puzzle: difference, interval, test."),
    "circuit": ("gram.cli.circuit:circuit", "The smallest part of a model that does one thing, as a graph."),
    "plan": ("gram.cli.plan:plan", "Predict time, memory, network and limits of a run on many nodes."),
    "cluster": ("gram.cli.cluster:cluster", "A Ray cluster on this machine: up, status, down; others can join it."),
    "job": ("gram.cli.job:job", "Run a command on a cluster: submit, logs, status, stop, list."),
    "data": (
        "gram.cli.data:data",
        "Files of published puzzles without twins between them; ARC tasks under many views.",
    ),
    "train": ("gram.cli.train:train", "Train a checkpoint from a recipe; repeat the command to continue."),
    "bench": ("gram.cli.bench:bench", "Benchmarks: what the engine saves, paired in one run."),
    "import": ("gram.cli.import_checkpoint:import_foreign", "Convert a checkpoint of TRM, EqR or HRM to ours."),
    "push": ("gram.cli.push:push", "Upload a checkpoint to the Hugging Face hub."),
    "doctor": ("gram.cli.doctor:doctor", "What is installed, which device and kernel path, and why."),
}
"""Name of each command: its function or group, as `module:name`, and its line of help."""


class Command(TyperCommand):
    """A command whose help has one section for each panel of options, common ones first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], ADVANCED: []}
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            is_argument = parameter.param_type_name == "argument"
            if (record := parameter.get_help_record(ctx)) is not None:
                sections["Arguments" if is_argument else panel].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """A group that names its commands where it is given another."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"command must be one of {', '.join(known)}, got {name!r}{hint}")
        return super().resolve_command(ctx, args)


def import_command(name: str) -> Any:
    """The command as typer's object, from its module."""
    module, attribute = COMMANDS[name][0].split(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(**PLAIN)
        alone.command(name, cls=Command)(found)
        found = alone
    return typer.main.get_command(found)


def check_command(arguments: Sequence[str]) -> None:
    """Sees that a command line can be read, without running it. Raises `ValueError` and `typer.TyperException`."""
    group = typer.main.get_command(app)
    context = group.make_context("gram", ["--", *arguments])
    name, command, rest = group.resolve_command(context, list(arguments))  # type: ignore[attr-defined]
    command.make_context(name, rest, parent=context)


class LazyGroup(Group):
    """A group whose commands' modules are imported when one of them is invoked, not to list them."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Any:
        return import_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Context, formatter: Formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, **{**PLAIN, "add_completion": True}
)


@app.callback(invoke_without_command=True)
def top(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Solve puzzles by sampling many latent trajectories of a small recurrent model at once."""
    if version:
        print(f"gram {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; the console script `gram`."""
    show_what_fits()
    if arguments is None:
        raise_on_signals()
    logging.getLogger("gram").addHandler(NOTICES)
    try:
        group = typer.main.get_command(app)
        code = int(group.main(arguments, prog_name="gram", standalone_mode=False) or 0)
        flush_output()
        return code
    except Interrupted as error:
        report(str(error))
        return error.exit_code
    except typer.TyperException as error:
        report(one_line(error))
        return BAD_INPUT
    except ModuleNotFoundError as error:
        if (line := missing_package(error)) is None:
            raise
        report(line)
        return BAD_INPUT
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            error = _of_stdout(error)
        if (stop := stopped_by(error, received())) is not None:
            report(str(stop))
            return stop.exit_code
        if not is_bad_input(error):
            raise
        report(one_line(error))
        return BAD_INPUT


def _of_stdout(error: OSError) -> OSError:
    """The error of stdout where that is what cannot be written, else `error` itself."""
    try:
        flush_output("\n")  # what failed before may no longer be in its buffer
    except OSError as found:
        return found
    return error


if __name__ == "__main__":
    sys.exit(main())
