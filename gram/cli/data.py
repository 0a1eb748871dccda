"""`gram data SET --out DIR`: files of published puzzles to train, validate and test on, without twins between them;
`gram data arc JSON... --out DIR`: a folder of ARC tasks under many views."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram.cli.errors import keeping
from gram.cli.options import Json, Quiet, real, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from gram.training.arc_builder import ArcFiles
    from gram.training.published import PublishedFiles

SETS = ("sudoku-extreme", "maze-hard", "arc")
"""As the help names them: the module that knows the sets is not imported for it."""


def data(
    name: Annotated[str, typer.Argument(metavar="|".join(SETS), help="Published set.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder of the files.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="JSON", help="Of arc: files or folders of tasks (Kaggle's, or one task a file)."),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            parser=whole, metavar="K", help="Of arc: views of each task beside the plain one. [default: 1000]"
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="CSV or TSV (.gz) with question, answer. [default: train.csv on the hub]"),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="Test rows, of the same form; their twins do not train. [default: the hub's; with a --source: none] "
            "Of arc: tasks whose tests are to be solved. [default: those of all files]",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Leave these puzzles and all twins of them out; may be given repeatedly."),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            parser=real,
            metavar="K|SHARE",
            help="Puzzles held out of the source, or their share. [default: 500, a tenth at most]",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(parser=whole, metavar="K", help="First K rows of each source alone.")
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=whole, metavar="S", help="Chooses the validation puzzles; of arc: views and moves.")
    ] = 0,
    as_json: Json = False,
    is_quiet: Quiet = False,
) -> None:
    """Write train, validation and test files of published puzzles, for --puzzles; no two share a puzzle or its twin.

    FILE may be hf://owner/dataset/path/file. `gram data arc JSON... --out DIR` writes a folder of ARC tasks under many
    views, for gram train --puzzles DIR, gram import --data DIR and gram eval arc --data DIR; a killed one goes on.
    """
    from dataclasses import asdict

    from gram.cli import terminal
    from gram.training import published
    from gram.training.arc_builder import build, building_folder

    def show(total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        return terminal.progress(total, unit, is_quiet=is_quiet)

    given = {"--source": source, "--exclude": exclude, "--validation": validation, "--limit": limit}
    if name == "arc":
        if strange := [flag for flag, value in given.items() if value]:
            raise ValueError(f"{strange[0]} must be of a set other than arc, which takes JSON files")
        with keeping(building_folder(out)):
            built = build(files or [], out, tests=test, views=1000 if views is None else views, seed=seed, show=show)
        if as_json:
            terminal.print_json(asdict(built))
        else:
            _print_arc(built, out)
        return
    if files or views is not None:
        raise ValueError(f"files and --views must be of arc, got {files[0] if files else views} with {name}")
    report = published.data(
        name,
        out,
        source=source,
        test=test,
        exclude=exclude or (),
        validation=validation,
        limit=limit,
        seed=seed,
        show=show,
    )
    if as_json:
        terminal.print_json(asdict(report))
    else:
        _print(report, out)


def _print(report: PublishedFiles, out: Path) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console = terminal.output()
    files = terminal.table("split", "rows", "classes", "file", wraps=3)
    files.columns[3].justify = "left"
    for split, file in report.splits.items():
        files.add_row(Text(split, "bold"), f"{file.rows:,}", f"{file.classes:,}", str(out / file.file))
    console.print(files)
    left_out = {"twins of excluded puzzles": report.excluded_rows, "twins of test puzzles": report.test_twins}
    console.print(_left_out("source", report.source.rows, left_out), soft_wrap=True)
    if report.test_source is not None:
        rows = {"twins of excluded puzzles": report.excluded_test_rows or 0}
        console.print(_left_out("test", report.test_source.rows, rows), soft_wrap=True)
    console.print("in what was written, read again:")
    console.print(f"  twins of excluded puzzles: {report.excluded_twins_written:,}")
    console.print(f"  classes in two splits: {report.classes_in_two_splits:,}")


def _print_arc(built: ArcFiles, out: Path) -> None:
    from gram.cli import terminal

    console = terminal.output()
    examples = ", ".join(f"{count:,} {split}" for split, count in built.examples.items())
    tasks = terminal.plural(built.tasks, "task")
    console.print(f"{out}: {tasks} under {built.views:,} views and as they are, {examples} examples", soft_wrap=True)
    console.print(f"  identities: {built.identities:,}")
    console.print(f"  tasks with fewer different views: {built.tasks_with_fewer_views:,}")
    console.print(f"  tests to be solved: {built.tests:,}, without output: {built.tests_without_output:,}")


def _left_out(what: str, rows: int, left_out: dict[str, int]) -> str:
    return f"{what}: {rows:,} rows; left out: " + ", ".join(f"{count:,} {name}" for name, count in left_out.items())
