"""The page of a circuit: one self-contained file that draws its graph, from `circuit.json` alone.

Columns from left to right: what is read (symbols, places), channels of the state, hidden units, the same channels as
they are written, values. The recursion goes from the fourth column back to the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gram.evals.pages.report import page, provenance, section
from gram.evals.pages.tables import Entry, share, table, words
from gram.formatting import number, percent, plural

MOST_DRAWN = 800
"""Edges that are drawn, the strongest; all stand in `circuit.json`."""
WIDTH, LEFT, TOP, ROW = 732, 76, 22, 17
LEAST_HEIGHT = 300
"""Of the drawing, so that the edges of a small circuit can be told from each other."""
HALO = "stroke:var(--page);stroke-width:3px;paint-order:stroke"
"""Of labels, which stand on edges."""
COLUMNS = {"token": 0, "place": 0, "state": 1, "mixer": 2, "channel": 2, "prior": 2, "value": 4}
COLOURS = {"mixer": "depth", "channel": "mixed", "prior": "restarts"}
HEADS = ("reads", "state", "hidden units", "state, written", "value")
MOST_NAMED = 6
SIZES = ("nodes", "edges")
Made = Mapping[str, Any]


def render(made: Made) -> str:
    """The page of `circuit.json`."""
    graph, about = made["graph"], made["about"]
    title = made["description"] or made["behaviour"]
    size = (
        f"{plural(made['nodes'], 'node')} of {made['nodes_of']:,} and {made['edges']:,} of {made['edges_of']:,} edges"
    )
    kept, gone = made["circuit"]["accuracy"], made["ablated"]["accuracy"]
    verdict = (
        f"{size} alone, with all else at its mean, choose right in {percent(kept)} of held-out puzzles; the whole "
        f"model does in {percent(made['whole']['accuracy'])}, and the rest without them in {percent(gone)}."
    )
    if not made["is_reached"]:
        verdict = "No part of the model that was found reaches the target; the graph is of the whole model."
    head = (
        f'<header><p class="kicker">Circuit</p><h1>{escape(title)}</h1>'
        f'<p class="meta">{escape(str(about["checkpoint"]))} · {escape(made["task"])} · '
        f"{plural(made['depth'], 'supervision step')} · target {made['target']:g} nats</p>"
        f'<div class="verdict"><p>{escape(verdict)}</p></div></header>'
    )
    command = about.get("command", "")
    drawn = (
        f"{min(MOST_DRAWN, made['edges']):,} of {made['edges']:,} edges, the strongest of each matrix first. Blue "
        "edges add, orange ones subtract. Of hidden units, blue ones are of mixers, which carry between places, green "
        "ones of channel SwiGLUs, which work within a token, purple ones of the prior. Hover over a node."
    )
    body = (
        section("The graph", _drawing(graph), drawn, command)
        + section("Needed and enough", _evidence(made), _evidence_words(made), command)
        + section("Against other models", _others(made), "Pruned in the same way to the same target.", command)
        + section("Nodes", _nodes(graph), f"The {MOST_NAMED} strongest weights of each node.", command)
        + provenance({**about, **{name: made[name] for name in ("steps", "pairs_found_on", "pairs_judged_on")}}, {})
    )
    return page(f"{title}: circuit", head + f"<main>{body}</main>")


def _drawing(graph: Made) -> str:
    """The graph as SVG."""
    columns: list[list[str]] = [[] for _ in HEADS]
    kinds = {node["id"]: node for node in graph["nodes"]}
    for name, node in kinds.items():
        columns[COLUMNS[node["kind"]]].append(name)
    columns[3] = columns[1]
    tallest = max(len(column) for column in columns)
    height = max(LEAST_HEIGHT, TOP + ROW * tallest + 12)
    step = (WIDTH - 2 * LEFT) / (len(HEADS) - 1)
    places = [
        {name: (LEFT + at * step, TOP + (row + 0.5) * (height - TOP) / len(column)) for row, name in enumerate(column)}
        for at, column in enumerate(columns)
    ]
    strongest = {edge["matrix"]: 1e-9 for edge in graph["edges"]}
    for edge in graph["edges"]:
        strongest[edge["matrix"]] = max(strongest[edge["matrix"]], abs(edge["weight"]))
    ranked = sorted(graph["edges"], key=lambda edge: -abs(edge["weight"]) / strongest[edge["matrix"]])[:MOST_DRAWN]
    lines = []
    for edge in reversed(ranked):
        ends = _ends(kinds[edge["source"]]["kind"], kinds[edge["target"]]["kind"])
        (x1, y1), (x2, y2) = (places[at][edge[end]] for at, end in zip(ends, ("source", "target"), strict=True))
        force = abs(edge["weight"]) / strongest[edge["matrix"]]
        colour = "var(--depth)" if edge["weight"] > 0 else "var(--width)"
        lines.append(
            f'<path d="M{x1:.0f} {y1:.0f}C{(x1 + x2) / 2:.0f} {y1:.0f} {(x1 + x2) / 2:.0f} {y2:.0f} {x2:.0f} {y2:.0f}" '
            f'fill="none" stroke="{colour}" stroke-width="{0.4 + 1.4 * force:.2f}" opacity="{0.1 + 0.6 * force:.2f}"/>'
        )
    marks = []
    for at, column in enumerate(places):
        marks.append(f'<text x="{LEFT + at * step:.0f}" y="12" class="middle label">{HEADS[at]}</text>')
        for name, (x, y) in column.items():
            node = kinds[name]
            colour = COLOURS.get(node["kind"], "neutral")
            tip = f"{name}\n{node['words']}\nreads {node['reads']}, writes {node['writes']}"
            shift, anchor = (-9, "end") if at < 2 else (9, "start")
            marks.append(
                f'<circle cx="{x:.0f}" cy="{y:.1f}" r="4.5" class="dot {colour}" data-tip="{escape(tip)}"/>'
                f'<text x="{x + shift:.0f}" y="{y + 4:.1f}" style="font-size:10px;text-anchor:{anchor};{HALO}">'
                f"{escape(_short(name))}</text>"
            )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="graph of the circuit">'
        f"{''.join(lines)}{''.join(marks)}</svg>"
    )


def _ends(source: str, target: str) -> tuple[int, int]:
    """Columns of an edge's ends: a state that is read stands left of the units, one that is written right of them."""
    if target == "state":
        return COLUMNS[source], 1 if COLUMNS[source] == 0 else 3
    if source == "state":
        return (3, 4) if target == "value" else (1, 2)
    return COLUMNS[source], COLUMNS[target]


def _short(name: str) -> str:
    """A node's label: most cores are shared, and called `low`."""
    return name.removeprefix("low.")


def _evidence(made: Made) -> str:
    rows = []
    named = {
        "whole": "the whole model",
        "circuit": "the circuit alone (enough)",
        "ablated": "all but the circuit (needed)",
        "random": "as many nodes at random, mean of several",
    }
    for name, text in named.items():
        found = made[name]
        entry = share(found["accuracy"], found.get("low"), found.get("high"))
        rows.append([words(text), entry, (number(found["loss"], 3), found["loss"], "")])
    return table(["kept", "right choices", "loss, nats"], rows)


def _evidence_words(made: Made) -> str:
    text = f"On {plural(made['pairs_judged_on'], 'pair')} that the circuit was not found on; a guess is right in 50 %."
    if (control := made["control"]) is None:
        return text
    if not control["is_reached"]:
        return f"{text} With shuffled labels no part was found that reaches the target."
    return f"{text} With shuffled labels it takes {control['nodes']:,} nodes and {control['edges']:,} edges."


def _others(made: Made) -> str:
    if (other := made.get("against")) is None:
        return ""
    none = ("none reaches the target", "Infinity", "")
    rows = [
        [words(name), *((f"{each[part]:,}", each[part], "") if each["is_reached"] else none for part in SIZES)]
        for name, each in ((str(made["about"]["checkpoint"]), made), (str(other["checkpoint"]), other))
    ]
    return table(["model", *SIZES], rows)


def _wrapped(text: str) -> Entry:
    """Text of several lines where it is long."""
    return escape(text), None, "text name"


def _nodes(graph: Made) -> str:
    """Every node with its strongest weights."""

    def strongest(name: str, end: str, other: str) -> str:
        found: Sequence[Made] = sorted(
            (edge for edge in graph["edges"] if edge[end] == name), key=lambda edge: -abs(edge["weight"])
        )
        shown = [f"{_short(edge[other])} {edge['weight']:+.2f}" for edge in found[:MOST_NAMED]]
        return ", ".join(shown) + (" ..." if len(found) > MOST_NAMED else "")

    rows = [
        [
            words(node["id"]),
            words(node["words"]),
            _wrapped(strongest(node["id"], "target", "source")),
            _wrapped(strongest(node["id"], "source", "target")),
        ]
        for node in graph["nodes"]
    ]
    return table(["node", "what it is", "reads", "writes"], rows, is_tall=True)
