"""Groups of commands: a wrong name is answered with the right ones."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from typer.core import TyperGroup

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
"""Help without boxes: importing rich for it would cost as much as everything else of `gram --help`."""


class Group(TyperGroup):
    """A group that names its commands where it is given another."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"command must be one of {', '.join(known)}, got {name!r}{hint}")
        return super().resolve_command(ctx, args)
