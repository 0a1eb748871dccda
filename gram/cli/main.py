"""The command `gram`: finds a command and imports only that one, so that `gram --help` stays fast.

A command is a function in a module of its own; the table below is all that the top-level help needs to know of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gram import __version__
from gram.cli.errors import BAD_INPUT, Interrupted, is_bad_input, one_line, raise_on_signals, report

if TYPE_CHECKING:
    Context = Any
    Formatter = Any

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
    "report": ("gram.cli.report:report", "Render a frontier's or an ablation's page again, without running anything."),
    "ablate": ("gram.cli.ablate:ablate", "A grid over any setting, cells cached; a page with a sortable table."),
    "compare": ("gram.cli.compare:compare", "Two runs puzzle by puzzle: difference, interval, McNemar's test."),
    "plan": ("gram.cli.plan:plan", "Predict time, memory, network and limits of a run on many nodes."),
    "train": ("gram.cli.train:train", "Train a checkpoint from a recipe; repeat the command to continue."),
    "bench": ("gram.cli.bench:bench", "Benchmarks: what the engine saves, paired in one run."),
    "import": ("gram.cli.import_checkpoint:import_foreign", "Convert a checkpoint of TRM, EqR or HRM to ours."),
    "doctor": ("gram.cli.doctor:doctor", "What is installed, which device and kernel path, and why."),
}
"""Name of each command: its function, as `module:function`, and its line of help."""

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
"""Help without boxes: importing rich for it would cost as much as everything else of `gram --help`."""


def import_command(name: str) -> Any:
    """The command as typer's object, from its module."""
    module, function = COMMANDS[name][0].split(":")
    alone = typer.Typer(**PLAIN)
    alone.command(name)(getattr(import_module(module), function))
    return typer.main.get_command(alone)


class LazyGroup(TyperGroup):
    """A group whose commands' modules are imported when one of them is invoked, not to list them."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Any:
        return import_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Context, formatter: Formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: Context, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {name!r}{hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, **PLAIN)


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
    if arguments is None:
        raise_on_signals()
    try:
        group = typer.main.get_command(app)
        return int(group.main(arguments, prog_name="gram", standalone_mode=False) or 0)
    except Interrupted as stop:
        report(str(stop))
        return stop.exit_code
    except typer.TyperException as error:
        report(one_line(error))
        return BAD_INPUT
    except Exception as error:
        if not is_bad_input(error):
            raise
        report(one_line(error))
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
