"""Pictures as SVG files: those of a page with their legend and colours inside, for documents and papers.

Files have the light page's colours, written out: readers of SVG other than browsers know no variables of CSS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gram.checkpoint import write_atomically
from gram.evals.pages.charts import Picture
from gram.evals.pages.figures import FIGURES, checkpoint_curves

Frontier = Mapping[str, Any]
STYLE = Path(__file__).parent / "page" / "report.css"
LETTER, LINE, EDGE = 7.2, 22, 12
"""Width of a letter of the legend and height of its lines, about, and the margin at both sides."""
COLOURED = "".join(
    f".line.{name},.whisker.{name},.key.{name}{{stroke:var(--{hue})}}"
    f".dot.{name},.bar.{name},.band.{name},.block.{name}{{fill:var(--{hue})}}"
    for name, hue in (
        *((name, name) for name in ("depth", "width", "mixed", "restarts", "neutral", "right", "wrong")),
        ("pass", "ink"),
        *((f"s{number}", f"s{number}") for number in range(1, 8)),
    )
)
RULES = (
    "text{font:13px system-ui,sans-serif;fill:var(--soft)}.middle{text-anchor:middle}.end{text-anchor:end}"
    ".cell{font-weight:600}.note{font-size:11px}.ink-high{fill:var(--ink-high)}.ink-low{fill:var(--ink-low)}"
    ".contour-label{fill:var(--ink);font-size:12px}.grid{stroke:var(--grid)}.axis{stroke:var(--faint)}"
    ".line,.key{fill:none;stroke-width:2.2}.dashed{stroke-dasharray:2 5}.dotted{stroke-dasharray:8 4}"
    ".thick{stroke-width:4}.band{opacity:.16}.hit{fill:none}.dot{stroke:var(--page);stroke-width:1.5}"
    ".contour{stroke:var(--contour);stroke-width:1.4;stroke-dasharray:5 4;opacity:.5}.whisker{stroke-width:1.6}"
)


def svg(pictures: Sequence[Picture]) -> str:
    """One file of pictures side by side, under the legend of them all."""
    style = STYLE.read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", style[: style.index("@media")]))
    rules = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], RULES + COLOURED)
    width = sum(picture.width for picture in pictures) + 2 * EDGE
    key, top = _key({entry: picture.is_block_key for picture in pictures for entry in picture.key}, width)
    drawn, left = "", float(EDGE)
    for picture in pictures:
        size = f'x="{left:.0f}" y="{top}" width="{picture.width:.0f}" height="{picture.height:.0f}"'
        drawn += f'<svg {size} overflow="visible"><title>{escape(picture.title)}</title>{"".join(picture.parts)}</svg>'
        left += picture.width
    # What only a page's script reads.
    drawn = re.sub(r' (?:tabindex|data-tip)="[^"]*"', "", drawn)
    height = top + max(picture.height for picture in pictures)
    ground = f'<rect width="100%" height="100%" fill="{colours["page"]}"/>'
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{rules}</style>{ground}{key}{drawn}</svg>\n'


def _key(entries: Mapping[tuple[str, str], bool], width: float) -> tuple[str, int]:
    """The legend, broken into lines, and its height."""
    drawn, x, y = "", 16.0, 20
    for (kind, words), is_block in entries.items():
        needed = 44 + LETTER * len(words)
        if x > 16 and x + needed > width:
            x, y = 16.0, y + LINE
        if is_block:
            drawn += f'<rect class="block {kind}" x="{x + 7:.0f}" y="{y - 10}" width="11" height="11"/>'
        else:
            drawn += f'<line class="key {kind}" x1="{x:.0f}" x2="{x + 20:.0f}" y1="{y - 4}" y2="{y - 4}"/>'
        drawn += f'<text x="{x + 26:.0f}" y="{y}">{escape(words)}</text>'
        x += needed
    return drawn, y + 10 if entries else 6


def write(folder: Path, pictures: Mapping[str, Picture | None]) -> list[Path]:
    """Writes each picture that has numbers as `<name>.svg`, moved into place once complete; returns the files."""
    files = {folder / f"{name}.svg": picture for name, picture in pictures.items() if picture is not None}
    for path, picture in files.items():
        write_atomically(path, svg([picture]).encode())
    return list(files)


def draw(frontier: Frontier, folder: Path) -> list[Path]:
    """The figures of a frontier's report as files."""
    verdict = frontier["verdict"]
    drawn = {name: make(frontier, verdict["measure"], verdict["halting"]) for name, make in FIGURES.items()}
    return write(folder, drawn)


def draw_multi_checkpoint(frontiers: Mapping[str, Frontier], folder: Path) -> list[Path]:
    """One figure for each task of several checkpoints, by name."""
    drawn: dict[str, Picture | None] = {}
    for task in dict.fromkeys(str(each["about"].get("task")) for each in frontiers.values()):
        some = {label: each for label, each in frontiers.items() if str(each["about"].get("task")) == task}
        measure = next(iter(some.values()))["verdict"]["measure"]
        drawn[f"{task}_checkpoints"] = checkpoint_curves(some, measure)
    return write(folder, drawn)
