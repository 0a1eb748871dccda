"""How `solve` draws what was found for a puzzle: boards, verdict, table of answers."""

from __future__ import annotations

from rich.console import Console, Group
from rich.measure import Measurement
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from gram.api import Sampler
from gram.cli.terminal import framed, is_plain, legend, number, plural, rate, side_by_side, table, trajectories
from gram.config import ResolvedConfig
from gram.kernels import dispatch
from gram.sampler.result import Answer, PuzzleResult, SampleResult

SPACE = 3
"""Columns between boards and figures."""
TABLE_ROWS = 6
"""Distinct answers listed; the others are counted."""


def show_run(console: Console, sampler: Sampler, settings: ResolvedConfig) -> None:
    """Task, checkpoint, how it samples, and the legend of the boards."""
    how = f"{trajectories(settings.width, settings.width_policy)}, at most {plural(settings.depth, 'step')}"
    console.print(Text.assemble((sampler.task.name, "bold"), f"  checkpoint {sampler.name}"))
    how += f", views {settings.views}" if settings.views != "off" else ""
    console.print(Text(f"{how}, selector {settings.selector}, seed {settings.seed}", "dim"))
    console.print(legend(marks=is_plain(console)))
    console.print()


def show_timings(console: Console, sampler: Sampler, result: SampleResult) -> None:
    """How long it took and on what."""
    model, timings = sampler.model, result.timings
    path = dispatch.choose(model.device, model.spec, model.dtype, "auto" if result.kernel == "eager" else result.kernel)
    speed = f", {rate(timings['trajectories_per_s'])} trajectories/s"
    console.print(Text.assemble((f"{number(timings['ms_per_puzzle'], 1)} ms per puzzle", "bold"), speed))
    console.print(Text(f"{result.device}, {result.dtype}, kernel {path.kernel}: {path.reason}", "dim"))


def show_puzzle(console: Console, found: PuzzleResult, title: str) -> None:
    """Draws one puzzle: its board, the selected answer, other solutions that fit, verdict and distinct answers."""
    figures = Group(_verdict(found), _answers(found))
    figures_width = Measurement.get(console, console.options, figures).maximum
    puzzle, answer, *others = _boards(found, marks=is_plain(console))
    boards_width = _width(puzzle) + _width(answer)
    is_wide = boards_width + SPACE + figures_width <= console.width
    room = console.width - boards_width - (SPACE + figures_width if is_wide else 0)
    # Where two boards have no room, the answer shows the puzzle too.
    shown = [puzzle, answer] if boards_width <= console.width else [answer]
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


def _boards(found: PuzzleResult, *, marks: bool) -> list[Panel]:
    """Puzzle, selected answer, then the other distinct valid solutions."""
    selected, board = found.answers[0], found.task.board
    style = "green" if selected.is_valid else "red"
    drawn = [
        framed(board(found.puzzle), "puzzle", marks=marks),
        framed(board(found.puzzle, selected.tokens), f"answer, {_votes(selected)}", marks=marks, style=style),
    ]
    others = [answer for answer in found.answers[1:] if answer.is_valid]
    return drawn + [framed(board(found.puzzle, each.tokens), f"also, {_votes(each)}", marks=marks) for each in others]


def _votes(answer: Answer) -> str:
    return plural(answer.votes, "vote")


def _verdict(found: PuzzleResult) -> Text:
    selected = found.answers[0]
    every = "very many solutions" if found.solution_count is None else plural(found.solution_count, "solution")
    stopped = found.stopped_trajectories
    ended = f", {stopped} stopped when the first halted" if stopped else ""
    return Text.assemble(
        (_judgement(selected), "bold green" if selected.is_valid else "bold red"),
        f", {len(found.solutions)} of {every} found\n",
        (f"{found.valid_trajectories} of {plural(found.width, 'trajectory', 'trajectories')} valid{ended}", "dim"),
    )


def _judgement(answer: Answer) -> str:
    return "valid" if answer.is_valid else plural(answer.conflicts, "conflict")


def _answers(found: PuzzleResult) -> Group:
    """The distinct answers with votes, verdict and what the heads said."""
    # A head that was never trained, as a lattice's, says 0 of everything.
    has_lprm = any(answer.lprm for answer in found.answers)
    made = table("", "distinct answers", "votes", *["LPRM"] * has_lprm, "halt", "steps", left=2)
    for answer in found.answers[:TABLE_ROWS]:
        made.add_row(
            ">" if answer.is_selected else "",
            Text(_judgement(answer), style="green" if answer.is_valid else "red"),
            str(answer.votes),
            *[number(answer.lprm)] * has_lprm,
            number(answer.halt_probability),
            number(answer.steps, 1),
        )
    left = len(found.answers) - TABLE_ROWS
    return Group(made, Text(f"   and {left} more", style="dim")) if left > 0 else Group(made)
