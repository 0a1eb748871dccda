"""`report.html`: one self-contained page of a frontier. No network, no library: style, script and pictures are inside.

It is made from `frontier.json` alone, so `gram report DIR` renders it again without running anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gram import __version__
from gram.evals import figures
from gram.evals.figures import count, milliseconds, percent

PAGE = Path(__file__).parent / "page"
Frontier = Mapping[str, Any]
Column = tuple[str, str]
"""Heading and kind: `text` or `number`."""


def render(frontier: Frontier) -> str:
    """The page. Raises `ValueError` for a frontier of another version."""
    if frontier.get("version") != 1:
        raise ValueError(f"frontier must be of version 1, got {frontier.get('version')!r}")
    about, verdict = frontier["about"], frontier["verdict"]
    measure, halting = verdict["measure"], verdict["halting"]
    title = f"{about.get('task', '')}: width against depth"
    command = about.get("command", "")
    trained = frontier["grid"]["trained_depth"]
    sections = [
        section(
            f"What {measure} each millisecond buys",
            "",
            figures.family_curves(frontier, measure, halting),
            f"{measure.capitalize()} of the best selector against median latency, one puzzle at a time, halting "
            f"{halting}. Bands: 95 % intervals. Width-only cells have the trained depth of {trained} steps.",
            command,
        ),
        section(
            "Matched budgets",
            "Each budget is spent by the best cell of each family that fits it, chosen on one half of the puzzles and "
            "scored on the other, both ways. Cells are width x depth, two where the halves chose differently. "
            "Differences are paired by puzzle; bases are kept together.",
            budget_table(frontier, measure, halting, "latency interactive"),
            "Intervals: bootstrap of 10,000 resamples; a difference counts where its interval leaves out zero and its "
            "p-value, corrected over the budgets by Holm's method, is below .05.",
            command,
        ),
        section(
            "Matched arithmetic",
            "The same choice where a budget is a number of multiply-accumulates instead of measured time: what an "
            "ideal machine would see.",
            budget_table(frontier, measure, halting, "macs"),
            "Counted from the model's shape and the supervision steps that trajectories took.",
            command,
        ),
        section(
            "Every width and depth",
            "",
            figures.heat(frontier, measure, halting),
            f"{measure.capitalize()} in per cent. Dashed: cells of equal latency, at the budgets above.",
            command,
        ),
        section(
            "Which cells are worth their time",
            "",
            figures.pareto(frontier, measure, halting),
            "Every cell by latency; the line joins those that no cheaper cell reaches.",
            command,
        ),
        section(
            "What a better selector could win",
            "",
            figures.selector_gap(frontier, halting),
            f"Accuracy of each selector at {trained} steps below pass@N, the share of puzzles with at least one right "
            "trajectory.",
            command,
        ),
        section(
            "When trajectories halt",
            "",
            figures.stop_histogram(frontier),
            f"First step at which the halt head says more than {frontier['heads']['threshold']:g}.",
            command,
        ),
        section(
            "Whether the halt head can be believed",
            "",
            figures.calibration(frontier),
            "Left: share of right answers against the predicted one, after some steps. Right: how well the logit "
            "ranks right trajectories above wrong ones (all puzzles together), and the mean gap of both.",
            command,
        ),
        section("By difficulty", "", figures.difficulty(frontier), "Bars: 95 % intervals.", command),
        section("All cells", "", cell_table(frontier), "", command),
        provenance(about, frontier["latency"]),
    ]
    body = "".join(sections)
    return page(title, f"{_head(frontier, title)}<main>{body}</main>")


def page(title: str, body: str) -> str:
    """A self-contained page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{(PAGE / 'report.css').read_text()}</style></head><body>{body}"
        f'<footer>Made by gram {escape(__version__)}.</footer><div id="tip" role="status"></div>'
        f"<script>{(PAGE / 'report.js').read_text()}</script></body></html>\n"
    )


def _head(frontier: Frontier, title: str) -> str:
    """Title, verdict and the four figures that explain it."""
    about, verdict = frontier["about"], frontier["verdict"]
    where = ", ".join(str(about[name]) for name in ("device", "dtype") if about.get(name))
    bases = f" of {about['bases']:,} bases" if about["bases"] < about["puzzles"] else ""
    meta = (
        f"Checkpoint {about.get('checkpoint')} · {about['puzzles']:,} puzzles{bases} · "
        f"{about['seeds']} sampling seed{'s' if about['seeds'] != 1 else ''} · {where}"
    )
    beside = [
        each["sentence"]
        for each in frontier["verdicts_beside"]
        if (each["measure"], each["halting"], each["matched_by"]) == (verdict["measure"], verdict["halting"], "macs")
    ]
    also = f"<p>At matched arithmetic: {escape(_lower(beside[0]))}</p>" if beside else ""
    noise = ""
    if frontier["latency"].get("is_noisy"):
        spread = frontier["latency"]["control_spread"]
        noise = (
            '<p class="warn">The machine was too noisy to tell cells of similar latency apart: a control timed '
            f"every round spread by {100 * spread:.0f} % (p95 less p5, over the median). "
            "Run it again on an idle machine.</p>"
        )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(words)}</small></dd></div>"
        for name, value, words in _facts(frontier)
    )
    return (
        f'<header><p class="kicker">Width against depth at matched latency</p><h1>{escape(title.split(":")[0])}</h1>'
        f'<p class="meta">{escape(meta)}</p><div class="verdict {verdict["winner"] or ""}">'
        f'<p>{escape(verdict["sentence"])}</p>{also}</div>{noise}<dl class="facts">{facts}</dl></header>'
    )


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _facts(frontier: Frontier) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the figures under the verdict."""
    verdict, grid = frontier["verdict"], frontier["grid"]
    trained = grid["trained_depth"]
    even = verdict["break_even"]
    rates = [rate for rate in verdict["exchange_rates"] if rate["depth"] == trained] or verdict["exchange_rates"][-1:]
    gaps = [gap for gap in verdict["gaps"] if gap["width"] == grid["widths"][-1]]
    widest = min(gaps, key=lambda gap: math.inf if gap["gap"] is None else float(gap["gap"])) if gaps else None
    saturation = verdict["saturation_width"]
    timed = any(cell["latency_ms_p50"] is not None for cell in frontier["cells"])
    return [
        (
            "Break-even latency",
            milliseconds(even) if even is not None else "none",
            "from here on width is ahead" if even is not None else "no budget from which on width stays ahead",
        ),
        ("Exchange rate", *_exchange(rates[0] if rates else None)),
        (
            "Saturation width",
            f"{saturation:.1f}" if saturation is not None else (f"> {grid['widths'][-1]}" if timed else "-"),
            "trajectories that take twice the latency of one",
        ),
        (
            "Selector gap",
            "-" if widest is None or widest["gap"] is None else f"{100 * widest['gap']:.1f} points",
            "" if widest is None else f"pass@{widest['width']} less {widest['selector']}, {trained} steps",
        ),
    ]


def _exchange(rate: Mapping[str, Any] | None) -> tuple[str, str]:
    if rate is None:
        return "-", "the grid has no width 2"
    start = f"from 1 x {rate['depth']}"
    if rate["doublings"] is None:
        return "∞", f"no depth of the grid buys what one doubling of width does, {start}"
    if rate["doublings"] == 0:
        return "0", f"one doubling of width buys nothing, {start}"
    return f"{rate['doublings']:.1f}", f"doublings of depth for one of width, {start}"


def section(heading: str, lead: str, content: str, caption: str, command: str) -> str:
    """A heading with a figure, its caption and the command that made it; nothing where there is no content."""
    if not content:
        return ""
    first = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    made = f'<span class="command">{escape(command)}</span>' if command else ""
    return (
        f"<section><h2>{escape(heading)}</h2>{first}<figure>{content}"
        f"<figcaption>{escape(caption)}{made}</figcaption></figure></section>"
    )


def table(columns: Sequence[Column], rows: Sequence[Sequence[tuple[str, Any, str]]], *, is_tall: bool = False) -> str:
    """A sortable table; a cell is its HTML, the value to sort by (None: its text) and a class."""
    head = "".join(
        f'<th scope="col" class="{"text" if kind == "text" else ""}"><button type="button">{escape(name)}</button></th>'
        for name, kind in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{style}"' + ("" if value is None else f' data-value="{escape(str(value))}"') + f">{text}</td>"
            for text, value, style in row
        )
        + "</tr>"
        for row in rows
    )
    tall = " tall" if is_tall else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll{tall}"><table class="sortable">{inner}</table></div>'


def budget_table(frontier: Frontier, measure: str, halting: str, by: str) -> str:
    """Best cells of each family at each budget, and width less depth."""
    wanted = (by, measure, halting)
    rows = [row for row in frontier["budgets"] if (row["matched_by"], row["measure"], row["halting"]) == wanted]
    if not rows:
        return ""
    form = count if by == "macs" else milliseconds
    made = []
    for row in rows:
        line: list[tuple[str, Any, str]] = [(form(row["budget"]), row["budget"], "")]
        for family in ("depth", "width", "mixed"):
            cell = row[family]
            if cell is None:
                line.append(("-", "", ""))
                continue
            sizes = [_size(each) for each in (cell, cell.get("other_half")) if each is not None]
            size = " / ".join(map(escape, sizes))
            line.append((f"{percent(cell['value'])}<br><small>{size}</small>", cell["value"], family))
        found = row["contrasts"]["width-depth"]
        if found.get("difference") is None or found["is_same_cell"]:
            line += [("-", "", ""), ("-", "", "")]
        else:
            interval = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
            points = f"{100 * found['difference']:+.1f}<br><small>{interval}</small>"
            p_value = found["p_holm"]
            line += [
                (points, found["difference"], ""),
                ("-" if p_value is None else f"{p_value:.3f}" if p_value >= 0.001 else "&lt; .001", p_value, ""),
            ]
        winner = found["verdict"]
        line.append((escape(winner), winner, f"text {winner} win" if winner in figures.FAMILY_WORDS else "text"))
        made.append(line)
    unit = "MACs" if by == "macs" else "budget"
    heads = [(unit, ""), ("depth only", ""), ("width only", ""), ("mixed", ""), ("width less depth, points", "")]
    return table([*heads, ("p (Holm)", ""), ("ahead", "text")], made)


def _size(cell: Mapping[str, Any]) -> str:
    chosen = f", {cell['selector']}" if cell["selector"] else ""
    return f"{cell['width']} x {cell['depth']}{chosen}"


def cell_table(frontier: Frontier) -> str:
    """Every cell of the grid."""
    is_multi = "coverage" in frontier["grid"]["measures"]
    columns = [("width", ""), ("depth", ""), ("halting", "text"), ("selector", "text"), ("accuracy", "")]
    columns += [("95 % interval", ""), ("pass@N", "")] + ([("coverage", "")] if is_multi else [])
    columns += [("latency", ""), ("throughput, a puzzle", ""), ("MACs", ""), ("steps", "")]
    rows = []
    for cell in frontier["cells"]:
        if cell["width"] == 1 and cell["selector"] != frontier["grid"]["selectors"][0]:
            continue
        row: list[tuple[str, Any, str]] = [
            (str(cell["width"]), None, ""),
            (str(cell["depth"]), None, ""),
            (cell["halting"], None, "text"),
            ("-" if cell["width"] == 1 else cell["selector"], None, "text"),
            (percent(cell["accuracy"]), _key(cell["accuracy"]), ""),
            (
                "-" if cell["low"] is None else f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}",
                _key(cell["low"]),
                "",
            ),
            (percent(cell["pass_at_width"]), _key(cell["pass_at_width"]), ""),
        ]
        if is_multi:
            row.append((percent(cell["coverage"]), _key(cell["coverage"]), ""))
        for name in ("latency_ms_p50", "throughput_ms_p50"):
            row += [(milliseconds(cell[name]), _key(cell[name]), "")]
        row += [(count(cell["macs"]), _key(cell["macs"]), "")]
        row += [("-" if cell["steps"] is None else f"{cell['steps']:.1f}", _key(cell["steps"]), "")]
        rows.append(row)
    return table(columns, rows, is_tall=True)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def _key(value: float | None) -> Any:
    return "" if value is None else value


def provenance(about: Mapping[str, Any], latency: Mapping[str, Any]) -> str:
    """Where every figure comes from."""
    facts = {name: value for name, value in about.items() if name not in ("versions", "command", "bases")}
    facts |= {f"{name} version": value for name, value in (about.get("versions") or {}).items()}
    facts |= {f"latency: {name}": value for name, value in latency.items() if name != "is_noisy"}
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    )
    command = f"<p><code>{escape(about.get('command', ''))}</code></p>"
    return f'<section><h2>How these figures were made</h2>{command}<dl class="about">{rows}</dl></section>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " to ".join(_plain(item) for item in value) if len(value) == 2 else ", ".join(map(_plain, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
