"""The page of a folder of `scripts/bench_gpu.sh`: what ran on the GPU, what it measured, and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from gram.evals.benchmarks.gpu_folder import TUNED, UNFAILED, GpuFolder, Part
from gram.evals.pages.report import page, section
from gram.evals.pages.tables import Entry, table, words
from gram.formatting import number, percent, plural

HELD = {True: "holds", False: "<strong>short</strong>", None: ""}
TITLES = {
    "slots": "Does a result depend on its slot?",
    "kernels": "Kernels",
    "engine": "The engine",
    "training": "Training",
    "sampler": "The sampler",
}
"""Headings of the benchmarks, by what their part's name begins with."""


def render(folder: GpuFolder, verdicts: Mapping[str, str]) -> str:
    """The page; `verdicts` are the sentences of the folder's frontiers, by the name of their folder."""
    body = _parts(folder.parts) + _frontiers(verdicts) + _cuts(folder.cuts)
    for kind, heading in TITLES.items():
        measured = [part for part in folder.parts if part.rows and part.name.split("-")[0] == kind]
        body += section(heading, _rows(measured), _CAPTION, "\n".join(part.command for part in measured))
    return page("gram on a GPU", f"{_head(folder)}<main>{body}{_training(folder.training)}</main>")


_CAPTION = (
    "A ratio is the slower version over the faster one, above 1 a gain, unless the row names a unit; the median of "
    "paired rounds with the least and the greatest. The floor is what is asked for."
)


def _head(folder: GpuFolder) -> str:
    """The GPUs, and in a line what went well."""
    wrong = [part for part in folder.parts if part.exit not in UNFAILED]
    rows = [row for part in folder.parts for row in part.rows]
    short = sum(row.get("is_met") is False for row in rows)
    failed = sum(row.get("error") is not None for row in rows)
    said = f"{len(folder.parts) - len(wrong)} of {plural(len(folder.parts), 'part')} without a failure"
    said += f"; of {plural(len(rows), 'measurement')} {short} short of their floor, {failed} with an error."
    warn = "".join(f'<p class="warn">{escape(part.name)}: {escape(part.outcome)}</p>' for part in wrong)
    return (
        '<header class="joint"><p class="kicker">Proof and measurement</p><h1>gram on a GPU</h1>'
        f'<p class="meta">{"<br>".join(map(escape, folder.gpus))}</p><div class="verdict"><p>{escape(said)}</p></div>'
        f"{warn}</header>"
    )


def _parts(parts: Iterable[Part]) -> str:
    """Every part, with what a failed one said last."""
    rows: list[list[Entry]] = []
    for part in parts:
        why = part.command.removeprefix("not run: ") if part.exit == "-" else part.summary
        said = "<br>".join(map(escape, part.last_lines or filter(None, [why])))
        under = f"<br><small>{said}</small>" if said else ""
        name = escape(part.name) + under, part.name, "text name"
        rows.append([name, words(part.outcome), (f"{part.seconds:,} s", part.seconds, "")])
    return section("Parts", table(["part", "outcome", "took"], rows))


def _frontiers(verdicts: Mapping[str, str]) -> str:
    """The frontiers' verdicts, each with a link to its own page."""
    lines = "".join(
        f'<p><a href="{quote(name)}/report.html">{escape(name)}</a>: {escape(sentence)}</p>'
        for name, sentence in verdicts.items()
    )
    return section("Width against depth at matched latency", lines)


def _cuts(cuts: Sequence[Mapping[str, Any]]) -> str:
    """How the fused kernel is cut fastest for each model, as a sweep timed it."""
    heads = ("model", "type", "ms a step", "by default", "warps", "stages", "tile", "trajectories a program")
    rows: list[list[Entry]] = []
    for each in cuts:
        cut = each["tuning"]
        row = [words(each["model"]), words(str(each["dtype"]).removeprefix("torch."))]
        times = each["milliseconds"], each.get("default_milliseconds")
        row += [("-", "", "") if time is None else (f"{time:.3f}", time, "") for time in times]
        row += [(str(cut[name]), cut[name], "") for name in ("warps", "stages", "tile", "group")]
        rows.append(row)
    return section("The fused kernel's fastest cuts", table(heads, rows))


def _side_by_side(parts: Iterable[Part]) -> list[tuple[Part, Mapping[str, Any]]]:
    """The measurements in order, those of one name together: before and after."""
    pairs = [(part, row) for part in parts for row in part.rows]
    first: dict[str, int] = {}
    for place, (_, row) in enumerate(pairs):
        first.setdefault(row["name"], place)
    return sorted(pairs, key=lambda pair: first[pair[1]["name"]])


def _rows(parts: Iterable[Part]) -> str:
    """All measurements of some parts."""
    rows: list[list[Entry]] = []
    for part, row in _side_by_side(parts):
        name = escape(str(row["name"])), row["name"], "text name"
        if part.name.endswith(TUNED):
            name = f"{name[0]}, <strong>with the fastest cuts</strong>", *name[1:]
        if row.get("error"):
            rows.append(
                [
                    (f"{name[0]}<br><small>{escape(row['error'])}</small>", *name[1:]),
                    ("-", "", ""),
                    *[words("")] * 2,
                ]
            )
            continue
        value = f"{number(row['ratio'])}<br><small>{number(row['low'])} to {number(row['high'])}</small>"
        bound = "" if row["floor"] is None else f"{'at most' if row['is_ceiling'] else 'at least'} {row['floor']:g}"
        rows.append([name, (value, row["ratio"], ""), words(bound), (HELD[row["is_met"]], None, "text")])
    return table(["measured", "value", "floor", ""], rows)


def _training(lines: Sequence[Mapping[str, Any]]) -> str:
    """How far the training has come."""
    rows: list[list[Entry]] = []
    for line in lines:
        found = line.get("evaluation") or {}
        row: list[Entry] = [(f"{line['step']:,}", line["step"], "")]
        row += [(f"{line['elapsed_s'] / 60:,.1f} min", line["elapsed_s"], ""), (percent(line["fraction"]), None, "")]
        row.append((number(line.get("cross_entropy"), 3), line.get("cross_entropy") or "", ""))
        row += [words("; ".join(f"{name.replace('_', ' ')} {number(value, 3)}" for name, value in found.items()))]
        rows.append(row)
    heads = ["optimiser step", "took", "of the run", "cross entropy, nats", "on held-out puzzles"]
    return section("The run of the paper's recipe", table(heads, rows))
