"""`gram tasks`: what can be solved, and with which shipped checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gram.cli.options import Json, TaskModule

if TYPE_CHECKING:
    from gram.tasks.protocol import Task

CARD_KEYS = ("optimiser_steps", "minutes", "figures")
HEADLINES = {"accuracy": "answer", "single_accuracy": "single", "coverage_pooled": "coverage"}
"""Figures of a card shown on screen, and their headers; all of them are in the JSON."""


def tasks(task_module: TaskModule = None, as_json: Json = False) -> None:
    """List tasks with their set sizes, and shipped checkpoints with their figures."""
    listed = {"tasks": _tasks(task_module), "checkpoints": _checkpoints()}
    if as_json:
        from gram.cli.terminal import print_json

        print_json(listed)
    else:
        _show(listed)


def _tasks(module: Path | None) -> list[dict[str, Any]]:
    from gram.tasks.registry import get_task, load_task_module, task_names

    own = [] if module is None else load_task_module(module)
    return [_describe(task) for task in (*own, *(get_task(name) for name in task_names()))]


def _describe(task: Task) -> dict[str, Any]:
    return {
        "task": task.name,
        "summary": task.summary,
        "tokens": task.tokens,
        "vocabulary": task.vocabulary,
        "is_multi_solution": task.is_multi_solution,
        "splits": {name: task.split_size(name) for name in task.splits},
    }


def _checkpoints() -> list[dict[str, Any]]:
    from gram import checkpoint

    listed = []
    for name in checkpoint.shipped_names():
        directory = checkpoint.find(name)
        card, fault = _card(directory)
        recipe = card.get("recipe")
        known = {"recipe": recipe.get("name") if isinstance(recipe, dict) else recipe, "card_fault": fault}
        known |= {key: card.get(key) for key in CARD_KEYS}
        listed.append({"checkpoint": name, "task": checkpoint.read_config(directory).task, **known})
    return listed


def _card(directory: Path) -> tuple[dict[str, Any], str | None]:
    """A checkpoint's card, and what is wrong with it: an unreadable one does not hide the rest of the list."""
    from gram import checkpoint

    try:
        card = checkpoint.read_card(directory)
    except (checkpoint.CheckpointError, OSError) as error:
        return {}, str(error)
    wrong = [
        key for key in CARD_KEYS if card.get(key) is not None and isinstance(card[key], dict) != (key == "figures")
    ]
    return (card, None) if not wrong else ({}, f"{directory / checkpoint.CARD_FILE}: {wrong[0]} is not a card's")


def _show(listed: dict[str, Any]) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console = terminal.output()
    found = terminal.table("task", "solutions", "train", "test", "about", left=2, wraps=4)
    found.columns[4].justify = "left"
    for task in listed["tasks"]:
        sizes = (
            "endless" if task["splits"][name] is None else f"{task['splits'][name]:,}" for name in ("train", "test")
        )
        solutions = "several" if task["is_multi_solution"] else "one"
        found.add_row(Text(task["task"], "bold"), solutions, *sizes, task["summary"])
    console.print(found)
    console.print()
    if not listed["checkpoints"]:
        console.print(Text("no checkpoint is shipped; train one with `gram train`", style="dim"))
        return
    shipped = terminal.table("checkpoint", "task", "steps", "minutes", *HEADLINES.values(), left=2)
    for entry in listed["checkpoints"]:
        figures = entry["figures"] or {}
        shipped.add_row(
            Text(entry["checkpoint"], "bold"),
            entry["task"],
            terminal.number(entry["optimiser_steps"], 0),
            terminal.number(entry["minutes"], 1),
            *(terminal.percent(figures.get(key)) for key in HEADLINES),
        )
    console.print(shipped)
    for entry in listed["checkpoints"]:
        if entry["card_fault"]:
            console.print(Text(entry["card_fault"], style="bold yellow"))
    note = (
        "held-out accuracy of the answer and of one trajectory, pooled coverage; "
        "steps and minutes of the last run, earlier ones are on the card"
    )
    console.print(Text(note, style="dim"))
