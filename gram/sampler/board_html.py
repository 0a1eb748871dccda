"""Boards as HTML, for results in a notebook. Text takes the page's own colour, so it is readable on light and dark."""

from __future__ import annotations

from html import escape

from gram.tasks.protocol import Board, BoardCell

CELLS = {
    "given": "font-weight:700",
    "filled": "background:rgba(56,139,253,.28)",
    "blank": "opacity:.35",
    "conflict": "background:rgba(248,81,73,.5);font-weight:700",
    "label": "opacity:.6",
}
CELL = "display:table-cell;min-width:1.35em;padding:.08em .1em;text-align:center;white-space:pre;line-height:1.25"
FRAME = "display:inline-block;vertical-align:top;margin:0 1.2em .6em 0"
GRID = "display:table;border:1px solid rgba(128,128,128,.55);border-radius:4px;padding:.2em;font-family:monospace"
GOOD, BAD = "rgba(46,160,67,.3)", "rgba(248,81,73,.4)"


def board_html(board: Board, title: str) -> str:
    """A board under its title."""
    rows = "".join(
        '<div style="display:table-row">'
        + "".join(f'<span style="{_style(cell)}">{escape(cell.text)}</span>' for cell in row)
        + "</div>"
        for row in board
    )
    return f'<div style="{FRAME}"><div style="opacity:.7">{escape(title)}</div><div style="{GRID}">{rows}</div></div>'


def _style(cell: BoardCell) -> str:
    return f"{CELL};{CELLS[cell.kind]}" + (";text-align:left" if len(cell.text) > 1 else "")


def verdict_html(conflicts: int) -> str:
    """A chip that says whether an answer is valid."""
    text, colour = ("valid", GOOD) if conflicts == 0 else (f"conflicts: {conflicts}", BAD)
    return f'<span style="background:{colour};border-radius:4px;padding:.05em .45em">{text}</span>'
