"""How `solve` draws what was found for a puzzle: boards, verdict, table of answers."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from gram.api import Sampler
from gram.cli.outcome import Answer, Outcome
from gram.cli.terminal import framed, is_plain, legend, number, plural, side_by_side, table
from gram.config import SamplerConfig
from gram.kernels import dispatch
from gram.sampler.result import SampleResult
from gram.tasks.protocol import Task

SPACE = 3
"""Columns between boards and figures."""
TABLE_ROWS = 6
"""Distinct answers listed; the others are counted."""


def show_run(console: Console, sampler: Sampler, settings: SamplerConfig) -> None:
    """Task, checkpoint, how it samples, and the legend of the boards."""
    how = f"{plural(settings.width, 'trajectory', 'trajectories')}, at most {plural(settings.depth or 0, 'step')}"
    console.print(Text.assemble((sampler.task.name, "bold"), f"  checkpoint {sampler.name}"))
    console.print(Text(f"{how}, selector {settings.selector}, seed {settings.seed}", "dim"))
    console.print(legend(marks=is_plain(console)))
    console.print()


def show_timings(console: Console, timings: dict[str, Any], sampler: Sampler, result: SampleResult) -> None:
    """How long it took and on what."""
    model = sampler.model
    path = dispatch.choose(model.device, model.spec, model.dtype, "auto" if result.kernel == "eager" else result.kernel)
    speed = f", {number(timings['trajectories_per_s'], 0)} trajectories/s"
    console.print(Text.assemble((f"{number(timings['ms_per_puzzle'], 1)} ms per puzzle", "bold"), speed))
    console.print(Text(f"{result.device}, {result.dtype}, kernel {path.kernel}: {path.reason}", "dim"))


def show_outcome(console: Console, task: Task, found: Outcome, title: str) -> None:
    """Draws one puzzle: its board, the selected answer, other solutions that fit, verdict and distinct answers."""
    figures = Group(_verdict(found), _answers(found))
    figures_width = Measurement.get(console, console.options, figures).maximum
    puzzle, answer, *others = _boards(task, found, marks=is_plain(console))
    boards_width = _width(puzzle) + _width(answer)
    is_wide = boards_width + SPACE + figures_width <= console.width
    room = console.width - boards_width - (SPACE + figures_width if is_wide else 0)
    shown = [puzzle, answer]
    for panel in others:
        room -= _width(panel)
        if room < 0:
            break
        shown.append(panel)
    console.print(Rule(Text(title), align="left", style="dim"))
    if is_wide:
        layout = Table.grid(padding=(0, SPACE, 0, 0))
        layout.add_row(side_by_side(shown), figures)
        console.print(layout)
    else:
        console.print(side_by_side(shown))
        console.print(figures)
    console.print()


def _width(panel: Panel) -> int:
    """Columns of a panel and the gap after it."""
    return (panel.width or 0) + 1


def _boards(task: Task, found: Outcome, *, marks: bool) -> list[Panel]:
    """Puzzle, selected answer, then the other distinct valid solutions."""
    selected = found.selected
    style = "green" if selected.is_valid else "red"
    drawn = [
        framed(task.board(found.puzzle), "puzzle", marks=marks),
        framed(task.board(found.puzzle, selected.tokens), f"answer, {_votes(selected)}", marks=marks, style=style),
    ]
    others = [answer for answer in found.answers[1:] if answer.is_valid]
    drawn += [framed(task.board(found.puzzle, other.tokens), f"also, {_votes(other)}", marks=marks) for other in others]
    return drawn


def _votes(answer: Answer) -> str:
    return plural(answer.votes, "vote")


def _verdict(found: Outcome) -> Text:
    selected = found.selected
    width = sum(answer.votes for answer in found.answers)
    every = "very many solutions" if found.solutions is None else plural(found.solutions, "solution")
    return Text.assemble(
        (selected.verdict, "bold green" if selected.is_valid else "bold red"),
        f", {found.distinct_valid} of {every} found\n",
        (f"{found.valid_trajectories} of {plural(width, 'trajectory', 'trajectories')} valid", "dim"),
    )


def _answers(found: Outcome) -> Group:
    """The distinct answers with votes, verdict and what the heads said."""
    made = table("", "distinct answers", "votes", "LPRM", "halt", "steps", left=2)
    for answer in found.answers[:TABLE_ROWS]:
        made.add_row(
            ">" if answer.is_selected else "",
            Text(answer.verdict, style="green" if answer.is_valid else "red"),
            str(answer.votes),
            number(answer.lprm),
            number(answer.halt_probability),
            number(answer.steps, 1),
        )
    left = len(found.answers) - TABLE_ROWS
    return Group(made, Text(f"   and {left} more", style="dim")) if left > 0 else Group(made)
