"""The page of several frontiers: one self-contained file that compares them and links to each one's own page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from gram.evals.frontier.budgets import UNDECIDED
from gram.evals.pages.figures import checkpoint_curves
from gram.evals.pages.report import page, section
from gram.evals.pages.tables import Entry, chosen, matching, p_value, points, table, words
from gram.formatting import amount, milliseconds, plural

Frontiers = Mapping[str, Mapping[str, Any]]
"""Each frontier by its folder's name."""
OWN_PAGE = "report.html"


def render(compared: Mapping[str, Any], frontiers: Frontiers) -> str:
    """The page of `joint.json` and the frontiers that it speaks of."""
    tasks = list(dict.fromkeys(str(each["about"].get("task")) for each in frontiers.values()))
    body = _verdicts(compared)
    for task in tasks:
        some = {label: each for label, each in frontiers.items() if str(each["about"].get("task")) == task}
        body += _pictures(task if len(tasks) > 1 else "", some)
    body += "".join(_pair(pair) for pair in compared["pairs"]) + _commands(frontiers)
    return page(f"{', '.join(tasks)}: checkpoints compared", f"{_head(compared, tasks)}<main>{body}</main>")


def link(label: str) -> str:
    """A checkpoint's name that leads to its own page."""
    return f'<a href="{quote(label)}/{OWN_PAGE}">{escape(label)}</a>'


def _head(compared: Mapping[str, Any], tasks: list[str]) -> str:
    """Title, and the verdict of each checkpoint."""
    lines = "".join(
        f'<div class="verdict {each["winner"] or ""}"><p class="kicker">{link(each["label"])}</p>'
        f"<p>{escape(each['sentence'])}</p>"
        + "".join(f'<p class="also">{escape(line)}</p>' for line in each["beside"])
        + "".join(f'<p class="warn">{escape(line)}</p>' for line in each["warnings"])
        + "</div>"
        for each in compared["frontiers"]
    )
    meta = f"{plural(len(compared['frontiers']), 'checkpoint')} of {', '.join(tasks)}"
    return (
        '<header class="joint"><p class="kicker">Width against depth at matched latency</p>'
        f'<h1>{escape(", ".join(tasks))}</h1><p class="meta">{escape(meta)}</p>{lines}</header>'
    )


def _verdicts(compared: Mapping[str, Any]) -> str:
    """All verdicts in a table."""
    rows = []
    for each in compared["frontiers"]:
        verdict = each["verdict"]
        counts, even = verdict["counts"], verdict["break_even"]
        apart = sum(counts.get(name, 0) for name in (UNDECIDED, "same cell", "nothing to compare"))
        name = f"{link(each['label'])}<br><small>{escape(each['measure'])}</small>"
        row: list[Entry] = [(name, each["label"], "text name")]
        row += [(amount(verdict["budget"], "latency"), verdict["budget"] or "", "")]
        row += [chosen(verdict.get(family), "latency", family) for family in ("depth", "width", "mixed", "restarts")]
        row += [points(verdict), (f"{counts.get('width', 0)}, {counts.get('depth', 0)}, {apart}", "", "")]
        row += [("none" if even is None else milliseconds(even), even or "", "")]
        rows.append(row)
    heads = ["checkpoint", "budget", "depth only", "width only", "mixed", "restarts", "width minus depth, points"]
    return section(
        "Verdicts",
        table([*heads, "comparisons won", "width ahead from"], rows),
        "At four times the latency of one trajectory at the trained depth. Below each share: width x depth, chosen on "
        "one half of the puzzles and scored on the other, both ways, and what it spends. Comparisons won: by width, "
        "depth, neither; the same two cells at several budgets count once. Each checkpoint's page has the "
        "command that made its row.",
    )


def _pictures(task: str, frontiers: Frontiers) -> str:
    """The measure against latency, all checkpoints of a task in one picture; one picture for each measure."""
    first = next(iter(frontiers.values()))
    made = ""
    for measure in first["grid"]["measures"]:
        of_task = f" ({task})" if task else ""
        made += section(
            f"{measure.capitalize()} against latency{of_task}",
            checkpoint_curves(frontiers, measure),
            "Lines: cells that no cheaper one of the checkpoint reaches, with bands of 95 %. Dashed: one trajectory, "
            "deeper and deeper. Expected latency of one puzzle at a time.",
            "\n".join(dict.fromkeys(each["about"].get("command", "") for each in frontiers.values())),
        )
    return made


def _pair(pair: Mapping[str, Any]) -> str:
    """Two checkpoints at matched budgets."""
    a, b, measure = pair["a"], pair["b"], pair["measure"]
    heading = f"{a} against {b}: {measure}"
    if not pair["budgets"]:
        return section(heading, f"<p>Not compared: {escape(pair['why'])}.</p>")
    rows = []
    for row in pair["budgets"]:
        found = row["contrast"]
        who = {"a": a, "b": b, UNDECIDED: "not significant"}.get(found["verdict"], found["verdict"])
        line: list[Entry] = [words(matching(row["matched_by"]))]
        line += [(amount(row["budget"], row["matched_by"]), row["budget"], "")]
        line += [chosen(row[side], row["matched_by"]) for side in "ab"]
        line += [points(found), p_value(found["p_holm"])]
        line.append((escape(who), who, "text win" if found["verdict"] in ("a", "b") else "text"))
        rows.append(line)
    heads = ["matched by", "budget", a, b, "difference, points", "p (Holm)", "ahead"]
    told = "".join(
        f"<p>{escape(sentence)}</p>" for by, sentence in pair["sentences"].items() if by == "latency interactive"
    ) or "".join(f"<p>{escape(sentence)}</p>" for sentence in list(pair["sentences"].values())[:1])
    why = f" {pair['why'][0].upper()}{pair['why'][1:]}." if pair["why"] else ""
    return section(
        heading,
        told + table(heads, rows),
        f"{measure.capitalize()} on the {pair['puzzles']:,} puzzles of both ({pair['bases']:,} clusters). A budget "
        f"buys the best cell of each, of any width and depth under the checkpoint's own selector, chosen on one half "
        f"of the puzzles and scored on the other, both ways. Differences are {a} minus {b}, paired by puzzle; "
        f"p-values are corrected over all different comparisons of this page that are matched in one way.{why}",
    )


def _commands(frontiers: Frontiers) -> str:
    """The command and the machine of each frontier."""
    rows = []
    for label, each in frontiers.items():
        about, latency = each["about"], each["latency"]
        where = ", ".join(str(about[name]) for name in ("device", "processor", "dtype", "kernel") if about.get(name))
        row: list[Entry] = [(link(label), label, "text"), words(f"{about['puzzles']:,}"), words(about["seeds"])]
        row += [(escape(where), where, "text name"), words("-" if not latency.get("rounds") else latency["rounds"])]
        spread = latency.get("control_spread")
        noise = "-" if spread is None else f"{100 * spread:.0f} %{' (noisy)' if latency.get('is_noisy') else ''}"
        row += [(noise, "" if spread is None else spread, "")]
        rows.append(row)
    commands = list(dict.fromkeys(str(each["about"].get("command", "")) for each in frontiers.values()))
    heads = ["checkpoint", "puzzles", "seeds", "machine", "rounds", "spread of the control"]
    lines = "".join(f"<p><code>{escape(command)}</code></p>" for command in commands)
    return f"<section><h2>How these figures were made</h2>{lines}{table(heads, rows)}</section>"
