"""`report.html`: one self-contained page of a frontier. No network, no library: style, script and pictures are inside.

It is made from `frontier.json` alone, so `gram report DIR` renders it again without running anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from gram import __version__
from gram.config import read_toml
from gram.evals.frontier.analysis import VERSION
from gram.evals.frontier.beside import beside_sentences
from gram.evals.frontier.latency import ROUNDS
from gram.evals.frontier.launch_check import launch_words
from gram.evals.pages import figures, tables
from gram.evals.pages.charts import Picture
from gram.formatting import milliseconds, percent, plural

PAGE = Path(__file__).parent / "page"
Frontier = Mapping[str, Any]


def render(frontier: Frontier) -> str:
    """The page. Raises `ValueError` for a frontier of another version."""
    if frontier.get("version") != VERSION:
        raise ValueError(f"frontier must be of version {VERSION}, got {frontier.get('version')!r}")
    about = frontier["about"]
    title = f"{about.get('task', '')}: width against depth"
    body = "".join(_sections(frontier)) + provenance(about, frontier["latency"])
    return page(title, f"{_head(frontier, title)}<main>{body}</main>")


def _sections(frontier: Frontier) -> Iterator[str]:
    """Everything between the verdict and the provenance; the words stand in `page/sections.toml`."""
    verdict, grid, command = frontier["verdict"], frontier["grid"], frontier["about"].get("command", "")
    measure, halting = verdict["measure"], verdict["halting"]
    facts = {
        "measure": measure,
        "Measure": measure.capitalize(),
        "halting": halting,
        "selector": verdict["selector"],
        "trained": grid["trained_depth"],
        "threshold": f"{frontier['heads']['threshold']:g}",
        "fewest": figures.FEWEST,
        "changes": _choice_words(frontier),
        "timing": _timing_words(frontier["latency"]),
    }

    def budgets(of: str, by: str) -> str:
        return tables.budget_table(frontier, of, by)

    contents: dict[str, Picture | str | None] = {
        "buys": figures.family_curves(frontier, measure, halting),
        "selectors": tables.selector_table(frontier),
        "budgets": budgets(measure, "latency interactive"),
        "coverage": None,
        "cells": figures.heat(frontier, measure, halting),
        "pareto": figures.pareto(frontier, measure, halting),
        "verdicts": tables.verdict_table(frontier),
        **{f"rule {rule}": figures.family_curves(frontier, measure, rule) for rule in grid["haltings"]},
        "batches": budgets(measure, "latency throughput"),
        "arithmetic": budgets(measure, "macs"),
        "energy": budgets(measure, "energy"),
        "gap": figures.selector_gap(frontier, halting),
        "halts": figures.stop_histogram(frontier),
        "calibration": _calibration(frontier),
        "difficulty": figures.difficulty(frontier),
        "latency": tables.latency_table(frontier),
        "all": tables.cell_table(frontier),
    }
    del contents[f"rule {halting}"]  # the first figure shows it
    if (covered := frontier["coverage"]) is not None:
        curves = figures.family_curves(frontier, "coverage", halting)
        contents["coverage"] = f"{curves or ''}{budgets('coverage', 'latency interactive')}"
        facts["ceiling"] = percent(covered["one_answer_ceiling"])
    texts = read_toml(PAGE / "sections.toml")
    for key, content in contents.items():
        name, _, rule = key.partition(" ")
        text = {part: Template(words).safe_substitute(facts, rule=rule) for part, words in texts[name].items()}
        yield section(content=content, command=command, **text)


def _calibration(frontier: Frontier) -> str:
    """The halt head's two pictures side by side, and its table."""
    left, right = figures.calibration(frontier), figures.calibration_by_step(frontier)
    if left is None or right is None:
        return ""
    pictures = f'<div class="pair"><div>{left}</div><div>{right}</div></div>'
    return pictures + tables.calibration_table(frontier)


def _choice_words(frontier: Frontier) -> str:
    """How often the noise of the timings changes what is compared."""
    changes = frontier["verdict"].get("choice_changes")
    if changes is None:
        return ""
    return (
        " Cells are chosen anew at every draw of the timings, and the interval includes this: "
        f"{100 * changes:.0f} % of the draws choose others at the headline's budget."
    )


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
    where = ", ".join(str(about[name]) for name in ("device", "processor", "dtype") if about.get(name))
    bases = f" of {about['bases']:,} clusters" if about["bases"] < about["puzzles"] else ""
    meta = (
        f"Checkpoint {about.get('checkpoint')} · {about['puzzles']:,} puzzles{bases} · "
        f"{plural(about['seeds'], 'sampling seed')}{where and f' · {where}'}"
    )
    also = "".join(f"<p>{escape(sentence)}</p>" for sentence in beside_sentences(frontier))
    noise = "".join(f'<p class="warn">{escape(line)}</p>' for line in verdict["warnings"])
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(words)}</small></dd></div>"
        for name, value, words in _facts(frontier)
    )
    return (
        f'<header><p class="kicker">Width against depth at matched latency</p><h1>{escape(title.split(":")[0])}</h1>'
        f'<p class="meta">{escape(meta)}</p><div class="verdict {verdict["winner"] or ""}">'
        f'<p>{escape(verdict["sentence"])}</p>{also}</div>{noise}<dl class="facts">{facts}</dl></header>'
    )


def _facts(frontier: Frontier) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the figures under the verdict."""
    verdict, grid = frontier["verdict"], frontier["grid"]
    trained = grid["trained_depth"]
    even = verdict["break_even"]
    rates = [rate for rate in verdict["exchange_rates"] if rate["depth"] == trained] or verdict["exchange_rates"][-1:]
    gaps = [gap for gap in verdict["gaps"] if gap["width"] == grid["widths"][-1]]
    widest = min(gaps, key=lambda gap: math.inf if gap["gap"] is None else float(gap["gap"])) if gaps else None
    saturation = verdict["saturation_width"]
    errors = [step["ece"] for step in frontier["heads"]["steps"] if step["step"] == trained]
    timed = any(cell["latency_ms"] is not None for cell in frontier["cells"])
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
            "" if widest is None else f"pass@{widest['width']} minus {widest['selector']}, {plural(trained, 'step')}",
        ),
        (
            "Halt head's error",
            "-" if not errors or errors[0] is None else f"{100 * errors[0]:.1f} points",
            f"mean gap of predicted and right share, step {trained}",
        ),
    ]


def _timing_words(latency: Mapping[str, Any]) -> str:
    """What the latencies are."""
    rounds = latency.get("rounds")
    told = "Expected latency over all puzzles, from tokens in to answer out: the steps of the traces times the measured"
    told += f" time of a step at the rows still running. Mean over {rounds or 'all'} rounds in random order; p95: over"
    told += " puzzles."
    few = f" Fewer than {ROUNDS} rounds: prices are rough." if rounds and rounds < ROUNDS else ""
    compared = launch_words(latency.get("launch_check"))
    return f"{told}{few} {compared or ''}".rstrip()


def _exchange(rate: Mapping[str, Any] | None) -> tuple[str, str]:
    if rate is None:
        return "-", "the grid has no width 2"
    start = f"from 1 x {rate['depth']}"
    if rate["doublings"] is None:
        return "∞", f"no depth of the grid buys what one doubling of width does, {start}"
    if rate["doublings"] == 0:
        return "0", f"one doubling of width buys nothing, {start}"
    return f"{rate['doublings']:.1f}", f"doublings of depth for one of width, {start}"


def section(
    heading: str, content: Picture | str | None, caption: str = "", command: str = "", *, lead: str = ""
) -> str:
    """A heading with a figure, its caption and the command that made it; nothing where there is no content."""
    if not content:
        return ""
    first = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    made = f'<span class="command">{escape(command)}</span>' if command else ""
    return (
        f"<section><h2>{escape(heading)}</h2>{first}<figure>{content}"
        f"<figcaption>{escape(caption)}{made}</figcaption></figure></section>"
    )


def provenance(about: Mapping[str, Any], latency: Mapping[str, Any]) -> str:
    """Where every figure comes from."""
    facts = {name: value for name, value in about.items() if name not in ("versions", "command", "bases")}
    facts |= {f"{name} version": value for name, value in (about.get("versions") or {}).items()}
    apart = ("is_noisy", "steps", "identity", "launch_check")
    facts |= {f"latency: {name}": value for name, value in latency.items() if name not in apart}
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
