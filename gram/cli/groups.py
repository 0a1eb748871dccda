"""Commands and groups of commands: help that shows what most people need first, and answers to wrong names."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand, TyperGroup

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
"""Help without boxes: importing rich for it would cost as much as everything else of `gram --help`."""


ADVANCED = "Advanced options"
"""Panel (`rich_help_panel`) of the options that few people need; help shows them last."""


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
