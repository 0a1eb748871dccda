"""Ships a trained run: copies it to gram/weights/NAME and measures what its card says, all by `gram eval`.

    python scripts/ship_checkpoint.py runs/nqueens8 nqueens8

Writes config.json, model.safetensors, log.jsonl, card.json (figures) and README.md (the model card). Every figure
stands beside the command that printed it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gram.checkpoint import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
FEW_STEPS = (2, 3)
FEW_PUZZLES = 300
"""Of the runs that compare halting with full depth, and few steps with each other."""
BOARDS = 1000
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
    "conflicts",
    "mean_steps",
)


def evaluate(*arguments: str, verb: str = "eval") -> tuple[str, dict[str, Any]]:
    """One `gram eval` (or another verb) and what it printed."""
    command = ["gram", verb, *arguments]
    print(" ".join(command), file=sys.stderr, flush=True)
    quiet = ["--quiet"] if verb == "eval" else []
    done = subprocess.run(
        [sys.executable, "-m", *command, "--json", *quiet], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return " ".join(command), json.loads(done.stdout)


def measure(task: str, name: str, *, is_stochastic: bool, limit: int | None, few_puzzles: int) -> dict[str, Any]:
    """Held-out figures over three sampling seeds (one where seeds change nothing), and how the heads do."""
    common = (task, "--checkpoint", name, "--width", "20")
    limited = () if limit is None else ("--limit", str(limit))
    runs = [evaluate(*common, *limited, "--seed", str(seed)) for seed in (SEEDS if is_stochastic else SEEDS[:1])]
    values = {key: [result[key] for _, result in runs] for key in SHOWN if runs[0][1][key] is not None}
    figures: dict[str, Any] = {key: round(statistics.mean(value), 5) for key, value in values.items()}
    figures["single_accuracy_by_seed"] = values["single_accuracy"]
    figures["single_accuracy_interval"] = [runs[0][1]["single_accuracy_low"], runs[0][1]["single_accuracy_high"]]
    figures["puzzles"], figures["width"], figures["depth"] = (runs[0][1][key] for key in ("puzzles", "width", "depth"))
    figures["commands"] = [command for command, _ in runs]
    figures["versions"] = runs[0][1]["versions"]

    figures["few_puzzles"] = few_puzzles
    few_limit = ("--limit", str(few_puzzles))
    command, full = evaluate(*common, "--halting", "fixed", *few_limit)
    _, halted = evaluate(*common, *few_limit)
    figures["full_depth"] = {
        "command": command,
        "single_accuracy": full["single_accuracy"],
        "accuracy": full["accuracy"],
        "mean_steps": full["mean_steps"],
        "cost_of_halting_points": round(100 * (full["single_accuracy"] - halted["single_accuracy"]), 3),
        "share_of_steps": round(halted["mean_steps"] / full["mean_steps"], 4),
    }
    figures["few_steps"] = []
    for depth in FEW_STEPS if is_stochastic else ():
        command, few = evaluate(*common, "--halting", "fixed", "--depth", str(depth), *few_limit)
        keys = ("single_accuracy", "accuracy", "pass_at_width", "lprm_auroc", "halt_auroc", "auroc_puzzles")
        figures["few_steps"].append({"command": command, "depth": depth, **{key: few[key] for key in keys}})
    return figures


def measure_boards(task: str, name: str) -> dict[str, Any]:
    """Boards from nothing: shares of `BOARDS`, means over three sampling seeds."""
    runs = [
        evaluate(task, "--checkpoint", name, "--count", str(BOARDS), "--seed", str(seed), verb="generate")
        for seed in SEEDS
    ]
    keys = [key for key in ("valid", "distinct", "distinct_valid", "never_shown") if runs[0][1][key] is not None]
    figures: dict[str, Any] = {
        key: round(statistics.mean(result[key] for _, result in runs) / BOARDS, 5) for key in keys
    }
    figures |= {"boards": BOARDS, "depth": runs[0][1]["depth"], "by_seed": [result["valid"] for _, result in runs]}
    return figures | {"commands": [command for command, _ in runs], "versions": runs[0][1]["versions"]}


def boards_section(figures: dict[str, Any]) -> str:
    """Figures of boards from nothing, as Markdown."""
    commands = "\n".join(f"    {command}" for command in figures["commands"])
    rows = "\n".join(f"| {label} | {figures[key]:.4f} |" for key, label in BOARD_FIGURES.items() if key in figures)
    return f"""## Boards from nothing

{figures["boards"]:,} boards, {figures["depth"]} supervision steps; shares, means over {len(SEEDS)} sampling seeds.

{commands}

| figure | share |
|---|---|
{rows}
"""


def typical_speed(log: Path) -> float:
    """Optimiser steps a second: the median over the log's lines, which pauses and other jobs do not move."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return statistics.median(line["steps_per_s"] for line in lines if not line["evaluation"])


def model_card(name: str, card: dict[str, Any]) -> str:
    """README.md of the checkpoint."""
    is_conditional = card["recipe"]["model"].get("is_conditional", True)
    measured = heads_section(card["figures"]) if is_conditional else boards_section(card["figures"])
    notes = f"\n## Notes\n\n{card['notes']}\n" if card.get("notes") else ""
    return card_head(name, card) + measured + notes


def heads_section(figures: dict[str, Any]) -> str:
    """Held-out figures and how the heads do, as Markdown."""
    rows = "\n".join(f"| {key} | {figures[key]:.4f} |" for key in SHOWN if key in figures)
    seeds = len(figures["commands"])
    few = "\n".join(
        f"| {row['depth']} | {row['single_accuracy']:.4f} | {row['accuracy']:.4f} | {row['pass_at_width']:.4f} | "
        f"{_figure(row['lprm_auroc'])} | {_figure(row['halt_auroc'])} |"
        for row in figures["few_steps"]
    )
    few_puzzles = figures.get("few_puzzles", FEW_PUZZLES)
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
    full, low_high = figures["full_depth"], figures["single_accuracy_interval"]
    share = 100 * full["share_of_steps"]
    commands = "\n".join(f"    {command}" for command in figures["commands"])
    return f"""## Held-out figures

{figures["puzzles"]:,} puzzles, {figures["width"]} trajectories each, at most {figures["depth"]} supervision steps,
halting by the halt head; means over {seeds} sampling seed{"s" if seeds > 1 else ""}. 95 % interval of
`single_accuracy` (seed 0): {low_high[0]:.4f} to {low_high[1]:.4f}.

{commands}

| figure | value |
|---|---|
{rows}

## Heads

Against full depth on the same puzzles (`{full["command"]}`: single accuracy
{full["single_accuracy"]:.4f}), halting costs {full["cost_of_halting_points"]:.2f} points of single accuracy
and takes {share:.0f} % of the steps.

{few_steps}"""


def card_head(name: str, card: dict[str, Any]) -> str:
    """What the checkpoint is and how it was trained, as Markdown."""
    steps_minutes = card["optimiser_steps"] / card["steps_per_s"] / 60
    scale = card.get("noise_scale", 1.0)
    scaled = f"| deviation of the prior's noise, scaled after training by | {scale:g} |\n" if scale != 1 else ""
    if "depth" in card:
        scaled += f"| supervision steps at most, chosen after training | {card['depth']} |\n"
    if "halt_threshold" in card:
        scaled += f"| halt threshold, chosen after training | {card['halt_threshold']:g} |\n"
    return f"""# {name}

{card["description"]}.

| | |
|---|---|
| task | `{card["task"]}` |
| recipe | `gram/recipes/{card["recipe"]["name"]}.toml` |
| command | `{card["command"]}` |
| optimiser steps | {card["optimiser_steps"]:,} |
| minutes of training, as run | {card["minutes"]:.1f} |
| optimiser steps a second, median | {card["steps_per_s"]:.2f}, so {steps_minutes:.1f} minutes |
| parameters | {card["parameters"]:,} |
| log | `log.jsonl` |
{scaled}
"""


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Copies, measures, writes the cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished `gram train`")
    parser.add_argument("name", help="name to ship it under")
    parser.add_argument("--card-only", action="store_true", help="keep the figures measured before")
    parser.add_argument(
        "--noise-scale",
        type=float,
        default=1.0,
        help="factor on the deviation of the prior's noise, folded into log_sigma_center; choose on training puzzles",
    )
    parser.add_argument(
        "--halt-threshold", type=float, help="default of the checkpoint's sampling; choose on training puzzles"
    )
    parser.add_argument("--depth", type=int, help="default of the checkpoint's sampling; choose on training puzzles")
    parser.add_argument("--limit", type=int, help="held-out puzzles of the main figures [default: all]")
    parser.add_argument(
        "--few-puzzles",
        type=int,
        default=FEW_PUZZLES,
        help="held-out puzzles of the runs at full depth and at few steps [default: %(default)s]",
    )
    arguments = parser.parse_args()
    target = ROOT / "gram" / "weights" / arguments.name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("model.safetensors", "log.jsonl"):
        # A run that reads the old file goes on with it: overwritten in place, its mapped weights would be gone.
        write_atomically(target / file, (arguments.run / file).read_bytes())
    card = json.loads((arguments.run / "card.json").read_text())
    card["noise_scale"] = arguments.noise_scale
    config = json.loads((arguments.run / "config.json").read_text())
    config["log_sigma_center"] += math.log(arguments.noise_scale)
    if arguments.depth is not None:
        config["depth"] = card["depth"] = arguments.depth
    if arguments.halt_threshold is not None:
        config["halt_threshold"] = card["halt_threshold"] = arguments.halt_threshold
    write_atomically(target / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    card["steps_per_s"] = round(typical_speed(target / "log.jsonl"), 3)
    is_stochastic = card["recipe"]["model"]["guidance"] in ("full", "noise")
    if arguments.card_only:
        before = json.loads((target / "card.json").read_text())
        card |= {key: before[key] for key in ("figures", "notes") if key in before}
    else:
        if config["is_conditional"]:
            card["figures"] = measure(
                card["task"],
                arguments.name,
                is_stochastic=is_stochastic,
                limit=arguments.limit,
                few_puzzles=arguments.few_puzzles,
            )
        else:
            card["figures"] = measure_boards(card["task"], arguments.name)
    write_atomically(target / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    write_atomically(target / "README.md", model_card(arguments.name, card).encode())


if __name__ == "__main__":
    main()
