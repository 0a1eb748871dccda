"""`gram tasks`: what can be solved, and with which shipped checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.options import Json, TaskModule

if TYPE_CHECKING:
    from gram.tasks.protocol import Task

SPLITS = ("train", "validation", "test")
CARD_KEYS = ("optimiser_steps", "minutes", "figures")
HEADLINES = {"accuracy": "answer", "single_accuracy": "single", "coverage_pooled": "coverage"}
"""Figures of a card shown on screen, and their headers; all of them are in the JSON."""


def tasks(
    task_module: TaskModule = None,
    has_lookup: Annotated[
        bool, typer.Option("--lookup", help="What a table of training puzzles knows of each test set (minutes).")
    ] = False,
    as_json: Json = False,
) -> None:
    """List tasks with their set sizes, and shipped checkpoints with their figures."""
    from gram.cli.terminal import print_json
    from gram.tasks.registry import get_task, load_task_module, task_names

    known = [*([] if task_module is None else load_task_module(task_module)), *map(get_task, task_names())]
    described = [_describe(task, has_lookup=has_lookup) for task in known]
    listed = {"tasks": described, "checkpoints": _checkpoints()}
    if as_json:
        print_json(listed)
    else:
        _show(listed)


def _describe(task: Task, *, has_lookup: bool) -> dict[str, Any]:
    orbits = {name: task.split_orbits(name) for name in task.splits}
    tables = {name: task.lookup(name) for name in task.splits if has_lookup and "test" in name}
    lookups = {name: asdict(table) for name, table in tables.items() if table is not None}
    return {
        "task": task.name,
        "summary": task.summary,
        "tokens": task.tokens,
        "vocabulary": task.vocabulary,
        "is_multi_solution": task.is_multi_solution,
        "splits": {name: task.split_size(name) for name in task.splits},
        "orbits": None if None in orbits.values() else orbits,
        "lookup": lookups or None,
    }


def _checkpoints() -> list[dict[str, Any]]:
    from gram import checkpoint
    from gram.evals.puzzle_choice import trained_split

    listed = []
    for name in checkpoint.shipped_names():
        directory = checkpoint.find(name)
        card, fault = _card(directory)
        recipe = card.get("recipe")
        known = {"recipe": recipe.get("name") if isinstance(recipe, dict) else recipe, "card_fault": fault}
        known |= {key: card.get(key) for key in CARD_KEYS}
        known |= {"split": trained_split(card), "is_old_split": bool(card.get("split_note"))}
        own, others = checkpoint.read_config(directory).task, card.get("tasks", {})
        listed.append({"checkpoint": name, "task": own, "tasks": [*dict.fromkeys((own, *others))], **known})
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
    found = terminal.table("task", "solutions", *SPLITS, "about", left=2, wraps=5)
    found.columns[5].justify = "left"
    for task in listed["tasks"]:
        sizes = [_size(task["splits"], name) for name in SPLITS]
        solutions = "several" if task["is_multi_solution"] else "one"
        found.add_row(Text(task["task"], "bold"), solutions, *sizes, task["summary"])
    console.print(found)
    for task in listed["tasks"]:
        if task["orbits"]:
            counts = ", ".join(f"{name} {count}" for name, count in task["orbits"].items())
            console.print(Text(f"{task['task']}, orbits of solutions: {counts}", style="dim"))
    console.print()
    if any(task["lookup"] for task in listed["tasks"]):
        known = terminal.table("task", "split", "training", "twins", "look-up", left=2)
        for task in listed["tasks"]:
            for name, row in (task["lookup"] or {}).items():
                shares = (terminal.percent(row[key]) for key in ("twins", "accuracy"))
                known.add_row(Text(task["task"], "bold"), name, f"{row['training']:,}", *shares)
        console.print(known)
        note = "twins: share of inputs with a turned or renamed one in training; look-up: right by a table of training"
        console.print(Text(note, style="dim"))
        console.print()
    if not listed["checkpoints"]:
        console.print(Text("no checkpoint is shipped; train one with `gram train`", style="dim"))
        return
    shipped = terminal.table("checkpoint", "task", "steps", "minutes", *HEADLINES.values(), left=2)
    for entry in listed["checkpoints"]:
        figures = entry["figures"] or {}
        shipped.add_row(
            Text(entry["checkpoint"], "bold"),
            ", ".join(entry["tasks"]),
            terminal.number(entry["optimiser_steps"], 0),
            terminal.number(entry["minutes"], 1),
            *(terminal.percent(figures.get(key)) for key in HEADLINES),
        )
    console.print(shipped)
    for fault in filter(None, (entry["card_fault"] for entry in listed["checkpoints"])):
        console.print(Text(fault, style="bold yellow"), soft_wrap=True)  # a path is not broken
    note = (
        "held-out accuracy of the answer and of one trajectory, pooled coverage; "
        "steps and minutes of the last run, earlier ones are on the card"
    )
    console.print(Text(note, style="dim"))
    if old := [entry["checkpoint"] for entry in listed["checkpoints"] if entry["is_old_split"]]:
        note = f"trained and measured on an old split, whose test puzzles have twins in training: {', '.join(old)}"
        console.print(Text(note, style="dim"))


def _size(splits: dict[str, int | None], name: str) -> str:
    size = splits.get(name, "-")
    return size if isinstance(size, str) else "endless" if size is None else f"{size:,}"
