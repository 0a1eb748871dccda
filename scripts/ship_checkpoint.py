"""Ships a trained run: copies it to gram/weights/NAME and measures what its card says, all by `gram eval`.

    python scripts/ship_checkpoint.py runs/nqueens8 nqueens8
    python scripts/ship_checkpoint.py runs/queens queens --tasks nqueens9 nqueens10

Writes config.json, model.safetensors, log.jsonl, card.json (figures) and README.md (the model card). Every figure
stands beside the command that printed it. What only people know goes into card.json by hand afterwards (`notes`;
`parts` of a training in several runs, and their whole `command`), then `python scripts/model_cards.py NAME`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gram.checkpoint import write_atomically
from gram.evals.model_card import SHOWN, model_card
from gram.tasks.registry import get_task

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
FEW_STEPS = (2, 3)
FEW_PUZZLES = 300
"""Of the runs that compare halting with full depth, and few steps with each other."""
BOARDS = 1000


def evaluate(*arguments: str, verb: str = "eval") -> tuple[str, dict[str, Any]]:
    """One `gram eval` (or another verb) and what it printed."""
    command = ["gram", verb, *arguments]
    print(" ".join(command), file=sys.stderr, flush=True)
    quiet = ["--quiet"] if verb == "eval" else []
    done = subprocess.run(
        [sys.executable, "-m", *command, "--json", *quiet], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return " ".join(command), json.loads(done.stdout)


def measure(
    task: str,
    name: str,
    *,
    policy: tuple[str, ...],
    split: str,
    width: int,
    is_stochastic: bool,
    is_lattice: bool,
    limit: int | None,
    few_puzzles: int,
) -> dict[str, Any]:
    """Figures of the test split over three sampling seeds (one where seeds change nothing), and how the heads do. (A
    lattice halts where it is solved: there is no other halting to compare.)

    The last step, and the only one that reads the test split.
    """
    chosen = () if split == "test" else ("--split", split)
    common = (task, "--checkpoint", name, "--width", str(width), *policy, *chosen)
    figures = measure_answers(common, is_stochastic=is_stochastic, limit=limit)
    if (lookup := get_task(task).lookup(split)) is not None:
        figures["lookup"] = {"split": split, **asdict(lookup)}
    if is_lattice:
        return figures
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


def measure_answers(common: tuple[str, ...], *, is_stochastic: bool, limit: int | None) -> dict[str, Any]:
    """Figures of answers over the sampling seeds of one `gram eval`."""
    limited = () if limit is None else ("--limit", str(limit))
    runs = [evaluate(*common, *limited, "--seed", str(seed)) for seed in (SEEDS if is_stochastic else SEEDS[:1])]
    values = {key: [result[key] for _, result in runs] for key in SHOWN if runs[0][1][key] is not None}
    figures: dict[str, Any] = {key: round(statistics.mean(value), 5) for key, value in values.items()}
    figures["single_accuracy_by_seed"] = values["single_accuracy"]
    figures["intervals"] = {
        key: [runs[0][1][f"{key}_{end}"] for end in ("low", "high")]
        for key in SHOWN
        if runs[0][1].get(f"{key}_low") is not None
    }
    figures["puzzles"], figures["width"], figures["depth"] = (runs[0][1][key] for key in ("puzzles", "width", "depth"))
    figures["commands"] = [command for command, _ in runs]
    figures["versions"] = runs[0][1]["versions"]
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


def typical_speed(log: Path) -> float:
    """Optimiser steps a second: the median over the log's lines, which pauses and other jobs do not move."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return statistics.median(line["steps_per_s"] for line in lines if not line["evaluation"])


def main() -> None:
    """Copies, measures, writes the cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished `gram train`")
    parser.add_argument("name", help="name to ship it under")
    parser.add_argument(
        "--noise-scale",
        type=float,
        default=1.0,
        help="factor on the deviation of the prior's noise, folded into log_sigma_center; choose on training puzzles",
    )
    parser.add_argument(
        "--halt-threshold", type=float, help="default of the checkpoint's sampling; choose on training puzzles"
    )
    for name in ("selector", "width-policy", "views"):
        parser.add_argument(f"--{name}", help="default of the checkpoint's sampling; choose on training puzzles")
    parser.add_argument("--warm-start", action="store_true", help="rounds of a lattice start warm")
    for name in ("depth", "transitions", "width-stage"):
        parser.add_argument(
            f"--{name}", type=int, help="default of the checkpoint's sampling; choose on training puzzles"
        )
    parser.add_argument("--width", type=int, default=20, help="trajectories a puzzle [default: %(default)s]")
    parser.add_argument("--limit", type=int, help="held-out puzzles of the main figures [default: all]")
    parser.add_argument(
        "--few-puzzles",
        type=int,
        default=FEW_PUZZLES,
        help="held-out puzzles of the runs at full depth and at few steps [default: %(default)s]",
    )
    parser.add_argument(
        "--tasks", nargs="*", default=(), help="tasks of other sizes that the card lists with their figures"
    )
    arguments = parser.parse_args()
    target = ROOT / "gram" / "weights" / arguments.name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("model.safetensors", "log.jsonl"):
        # A run that reads the old file goes on with it: overwritten in place, its mapped weights would be gone.
        write_atomically(target / file, (arguments.run / file).read_bytes())
    card = json.loads((arguments.run / "card.json").read_text())
    card["noise_scale"] = arguments.noise_scale
    card["split"] = card["recipe"]["training"]["split"]
    config = json.loads((arguments.run / "config.json").read_text())
    config["log_sigma_center"] += math.log(arguments.noise_scale)
    if arguments.depth is not None:
        config["trained_depth"] = config.get("trained_depth") or config["depth"]
        config["depth"] = card["depth"] = arguments.depth
    if arguments.halt_threshold is not None:
        config["halt_threshold"] = card["halt_threshold"] = arguments.halt_threshold
    if arguments.warm_start:
        config["is_warm_started"] = card["is_warm_started"] = True
    for name in ("selector", "width_policy", "width_stage", "views", "transitions"):
        if (value := getattr(arguments, name)) is not None:
            config[name] = value
            if name != "selector":
                card[name] = value
    write_atomically(target / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    card["steps_per_s"] = round(typical_speed(target / "log.jsonl"), 3)
    # Trajectories that stop at another's halt have no single accuracy.
    policy = ("--width-policy", "trusted") if config.get("width_policy") == "first-halt" else ()
    is_lattice = config.get("latent") == "lattice"
    is_stochastic = is_lattice or card["recipe"]["model"]["guidance"] in ("full", "noise")
    if config["is_conditional"]:
        card["figures"] = measure(
            card["task"],
            arguments.name,
            policy=policy,
            split=card["split"].replace("train", "test", 1),
            width=arguments.width,
            is_lattice=is_lattice,
            is_stochastic=is_stochastic,
            limit=arguments.limit,
            few_puzzles=arguments.few_puzzles,
        )
        for task in arguments.tasks:
            common = (task, "--checkpoint", arguments.name, "--width", str(arguments.width), *policy)
            figures = measure_answers(common, is_stochastic=is_stochastic, limit=arguments.limit)
            card.setdefault("tasks", {})[task] = {"figures": figures}
            write_cards(arguments.name, card)  # a shipping that is stopped keeps what it has measured
    else:
        card["figures"] = measure_boards(card["task"], arguments.name)
    write_cards(arguments.name, card)


def write_cards(name: str, card: dict[str, Any]) -> None:
    """A shipped checkpoint's card, for programs and for people."""
    target = ROOT / "gram" / "weights" / name
    write_atomically(target / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    write_atomically(target / "README.md", model_card(name, card).encode())


if __name__ == "__main__":
    main()
