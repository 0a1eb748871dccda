"""`gram data SET --out DIR`: files of published puzzles to train, validate and test on, without twins between them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram.cli.options import Json, Quiet, real, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from gram.training.published import PublishedFiles

SETS = ("sudoku-extreme", "maze-hard")
"""As the help names them: the module that knows the sets is not imported for it."""


def data(
    name: Annotated[str, typer.Argument(metavar="|".join(SETS), help="Published set.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder of the files.")],
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="CSV or TSV (.gz) with question, answer. [default: train.csv on the hub]"),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="Test rows, of the same form; their twins do not train. [default: the hub's; with a --source: none]",
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
    seed: Annotated[int, typer.Option(parser=whole, metavar="S", help="Chooses the validation puzzles.")] = 0,
    as_json: Json = False,
    is_quiet: Quiet = False,
) -> None:
    """Write train, validation and test files of published puzzles, for --puzzles; no two share a puzzle or its twin.

    FILE may be hf://owner/dataset/path/file.
    """
    from dataclasses import asdict

    from gram.cli import terminal
    from gram.training import published

    def show(total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        return terminal.progress(total, unit, is_quiet=is_quiet)

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


def _left_out(what: str, rows: int, left_out: dict[str, int]) -> str:
    return f"{what}: {rows:,} rows; left out: " + ", ".join(f"{count:,} {name}" for name, count in left_out.items())
