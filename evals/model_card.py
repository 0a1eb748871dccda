"""README.md of a shipped checkpoint, from its `card.json`: what it is, how it was trained, what was measured.

Not the measuring (`scripts/ship_checkpoint.py`). Only what the card holds is told.
"""

from __future__ import annotations

from typing import Any

from gram.formatting import number

BOARD_FIGURES = {
    "valid": "valid",
    "distinct": "distinct",
    "distinct_valid": "distinct and valid",
    "never_shown": "valid, of grids that training never shows",
}
SHOWN = (
    "single_accuracy",
    "accuracy",
    "pass_at_width",
    "coverage",
    "coverage_pooled",
    "coverage_multi",
    "coverage_ceiling",
    "coverage_pooled_ceiling",
    "coverage_pooled_of_ceiling",
    "conflicts",
    "mean_steps",
)


def model_card(name: str, card: dict[str, Any]) -> str:
    """README.md of the checkpoint."""
    is_conditional = card["recipe"]["model"].get("is_conditional", True)
    measured = heads_section(card["figures"]) if is_conditional else boards_section(card["figures"])
    if card.get("hard"):
        measured += hard_section(card["hard"])
    if card.get("tasks"):
        measured += sizes_section(name, card)
    if card.get("split_note"):
        measured += f"\n## Old split\n\n{card['split_note']}\n"
    notes = f"\n## Notes\n\n{card['notes']}\n" if card.get("notes") else ""
    return card_head(name, card) + measured + notes


def heads_section(figures: dict[str, Any]) -> str:
    """Held-out figures and how the heads do, as Markdown."""
    ends = {key: f"{low:.4f} to {high:.4f}" for key, (low, high) in figures["intervals"].items()}
    rows = "\n".join(f"| {key} | {figures[key]:.4f} | {ends.get(key, '')} |" for key in SHOWN if key in figures)
    seeds = len(figures["commands"])
    commands = "\n".join(f"    {command}" for command in figures["commands"])
    return f"""## Held-out figures

{figures["puzzles"]:,} puzzles, {figures["width"]} trajectories each, at most {figures["depth"]} supervision steps,
halting by the halt head; means over {seeds} sampling seed{"s" if seeds > 1 else ""}. Intervals are of seed 0.

{commands}

| figure | value | 95 % interval |
|---|---|---|
{rows}

{_lookup(figures)}{_halting(figures) if "full_depth" in figures else ""}"""


def _halting(figures: dict[str, Any]) -> str:
    """What halting costs, and answers after few steps, as Markdown."""
    few = "\n".join(
        f"| {row['depth']} | {row['single_accuracy']:.4f} | {row['accuracy']:.4f} | {row['pass_at_width']:.4f} | "
        f"{number(row['lprm_auroc'], 3)} | {number(row['halt_auroc'], 3)} |"
        for row in figures["few_steps"]
    )
    few_puzzles = figures["few_puzzles"]
    few_steps = (
        f"""With few steps, all of them taken ({few_puzzles} puzzles; AUROC is within puzzles that have right and wrong
trajectories):

| depth | single accuracy | accuracy (vote) | pass@{figures["width"]} | LPRM AUROC | halt AUROC |
|---|---|---|---|---|---|
{few}
"""
        if few
        else ""
    )
    full = figures["full_depth"]
    share = 100 * full["share_of_steps"]
    return f"""## Heads

Against full depth on the same puzzles (`{full["command"]}`: single accuracy
{full["single_accuracy"]:.4f}), halting costs {full["cost_of_halting_points"]:.2f} points of single accuracy
and takes {share:.0f} % of the steps.

{few_steps}"""


def hard_section(hard: dict[str, Any]) -> str:
    """The figure on hard puzzles, by which a task's default checkpoint is chosen, as Markdown."""
    low, high = hard["interval"]
    return f"""
## Hard puzzles

The selected answer is right for {100 * hard["accuracy"]:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of
{hard["puzzles"]}:

    {hard["command"]}
"""


def sizes_section(name: str, card: dict[str, Any]) -> str:
    """Figures of every task that the model does, as Markdown."""
    trained = {card["recipe"]["task"], *card["recipe"].get("tasks", [])}
    every = {card["task"]: {"figures": card["figures"]}, **card["tasks"]}

    def row(task: str, figures: dict[str, Any]) -> str:
        low, high = figures["intervals"]["single_accuracy"]
        cells = [f"`{task}`", "yes" if task in trained else "no", f"{figures['puzzles']:,}"]
        cells += [f"{100 * figures['single_accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"]
        cells += [f"{100 * figures['accuracy']:.1f} %"]
        has_several = "coverage_pooled" in figures
        cells += [
            f"{figures['coverage_pooled']:.3f} ({figures['coverage_pooled_ceiling']:.3f})" if has_several else "-"
        ]
        cells += [f"{figures['mean_steps']:.1f} of {figures['depth']}"]
        return "| " + " | ".join(cells) + " |"

    rows = "\n".join(row(task, found["figures"]) for task, found in every.items())
    flags = card["figures"]["commands"][0].partition(f"--checkpoint {name} ")[2].partition(" --seed")[0]
    return f"""
## Every size

No parameter depends on the number of tokens. `gram eval TASK --checkpoint {name} {flags} --seed 0` (1, 2) gives the
figures of each test split. A task that is not trained on has a size that training never showed.

| task | trained on | puzzles | one trajectory (95 %) | selected answer | pooled coverage (ceiling) | steps |
|---|---|---|---|---|---|---|
{rows}
"""


def card_head(name: str, card: dict[str, Any]) -> str:
    """What the checkpoint is and how it was trained, as Markdown."""
    steps_minutes = card["optimiser_steps"] / card["steps_per_s"] / 60
    scale = card.get("noise_scale", 1.0)
    scaled = f"| deviation of the prior's noise, scaled after training by | {scale:g} |\n" if scale != 1 else ""
    if "depth" in card:
        scaled += f"| supervision steps at most, chosen after training | {card['depth']} |\n"
        depths = card.get("trained_depths", [card["recipe"]["model"]["depth"]])
        scaled += f"| supervision steps, trained | {' and '.join(map(str, dict.fromkeys(depths)))} |\n"
    if "transitions" in card:
        warm = ", each round from where the last one ended" if card.get("is_warm_started") else ""
        scaled += f"| transitions, chosen after training | {card['transitions']}{warm} |\n"
        scaled += f"| transitions, trained | {card['recipe']['model']['transitions']} |\n"
    if "halt_threshold" in card:
        scaled += f"| halt threshold, chosen after training | {card['halt_threshold']:g} |\n"
    if "views" in card:
        scaled += f"| views, chosen after training | `{card['views']}` |\n"
    if "selection" in card:
        scaled += f"| selector, chosen on {selection_words(card['selection'])} |\n"
    trained = card.get("held_out_while_training", {})
    if "nelbo" in trained:
        bound = f"{trained['nelbo']:.2f}, of it KL {trained['nelbo_kl']:.2f}"
        scaled += f"| negative ELBO after training, nats a held-out puzzle (`gram/training/elbo.py`) | {bound} |\n"
    if "split" in card:
        older = ", an old split: see below" if card.get("split_note") else ""
        scaled += f"| split trained on | `{card['split']}`{older} |\n"
    reproduces = f"| does the command give these weights? | {card['reproduces']} |\n" if "reproduces" in card else ""
    parts = card.get("parts", [])
    last = " of the last part" if parts else ""
    return f"""# {name}

{card["description"]}.

| | |
|---|---|
| task | `{card["task"]}` |
| recipe | `gram/recipes/{card["recipe"]["name"]}.toml` |
| command | `{card["command"]}` |
{reproduces}| optimiser steps{last} | {card["optimiser_steps"]:,} |
| minutes of training{last}, as run | {card["minutes"]:.1f} |
| optimiser steps a second, median | {card["steps_per_s"]:.2f}, so {steps_minutes:.1f} minutes |
| parameters | {card["parameters"]:,} |
| log | `log.jsonl`{last} |
{scaled}
{_parts_table(parts)}"""


def _lookup(figures: dict[str, Any]) -> str:
    """What a table of training puzzles knows of the same puzzles."""
    known = figures.get("lookup")
    if not known:
        return ""
    twins, right = 100 * known["twins"], 100 * known["accuracy"]
    return f"""Of these puzzles {twins:.1f} % stand in training too, turned or renamed by the task's symmetries.
A table that answers with {known["rule"]} ({known["training"]:,} training puzzles) has {right:.1f} % right.

"""


def selection_words(found: dict[str, Any]) -> str:
    """The evidence for a checkpoint's default selector, and the selector: the last two cells of a table's row."""
    rows = {row["selector"]: row for row in found["compared"]}
    own, vote = rows[found["selector"]], rows["vote"]
    how = f"{found['puzzles']} puzzles ({found['split']}), {found['width']} trajectories of {found['depth']} steps"
    if own is vote:
        best = max(rows.values(), key=lambda row: float(row["accuracy"]))
        told = (
            f"`vote`, {100 * vote['accuracy']:.1f} % right: none is significantly ahead of it after Holm's correction"
        )
        if best["accuracy"] > vote["accuracy"]:
            told += f" (`{best['selector']}` {100 * best['accuracy']:.1f} %)"
        return f"{how} | {told}"
    ends = f"{100 * own['less_low']:+.1f} to {100 * own['less_high']:+.1f}"
    told = f"`{own['selector']}`, {100 * own['accuracy']:.1f} % right, {100 * own['less_vote']:+.1f} points ({ends})"
    return f"{how} | {told} against `vote`"


def _parts_table(parts: list[dict[str, Any]]) -> str:
    """What each part of a training in several runs took; a part may have been stopped before its recipe's end."""
    if not parts:
        return ""
    rows = [f"| `{part['recipe']}` | {part['optimiser_steps']:,} | {part['minutes']:.1f} |" for part in parts]
    steps, minutes = (sum(part[key] for part in parts) for key in ("optimiser_steps", "minutes"))
    head = "| part | optimiser steps, as run | minutes, as run |\n|---|---|---|\n"
    return head + "\n".join([*rows, f"| all | {steps:,} | {minutes:.1f} |"]) + "\n\n"


def boards_section(figures: dict[str, Any]) -> str:
    """Figures of boards from nothing, as Markdown."""
    seeds = len(figures["commands"])
    commands = "\n".join(f"    {command}" for command in figures["commands"])
    rows = "\n".join(f"| {label} | {figures[key]:.4f} |" for key, label in BOARD_FIGURES.items() if key in figures)
    return f"""## Boards from nothing

{figures["boards"]:,} boards, {figures["depth"]} supervision steps; shares, means over {seeds} sampling seeds.

{commands}

| figure | share |
|---|---|
{rows}
"""
