"""Holds ARC's data sets, identities and votes against the official code: `python scripts/check_arc.py --peer-repo DIR
--tasks FILE`.

DIR is your checkout of TRM (SamsungSAILMontreal/TinyRecursiveModels) or HRM (sapientinc/HRM), FILE a JSON of ARC tasks.
The official builder makes a data set of the first tasks. Its model is built in fp32 with random weights and a table of
that set's identities, saved as its training does, imported with `--data`, and both answer tests of the set: the largest
difference of the logits after one supervision step must be below 1e-4. With TRM the official evaluator and ours then
vote on the same made-up predictions, on its data set and on one of `gram data arc`: pass@k and `submission.json` must
be equal; and its reader of data sets must read ours. Prints a JSON object a check; exits 1 where one fails. Packages
that the official code imports but these parts do not need are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from gram.evals.arc_votes import PASS_AT, ArcVotes, pass_at_k, submission
from gram.evals.benchmarks.peers import ARC_VARIANTS, SHARED, family_of, imported, official, stand_in
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Injection
from gram.tasks.arc_files import ArcTask, read_tasks
from gram.tasks.arc_folder import ArcFolder, open_arc_folder
from gram.tasks.arc_grids import FIRST_COLOUR
from gram.training.arc_builder import build

LIMIT = 1e-4


class ParserStandIn:
    """In place of argdantic's: the builder's function is called directly."""

    def command(self, **_: Any) -> Callable[[Any], Any]:
        """Leaves a function as it is."""
        return lambda function: function


def official_data(repo: Path, family: str, tasks: list[ArcTask], folder: Path, views: int) -> Path:
    """The data set that the official builder makes of some tasks, whose tests are to be solved."""
    stand_in("argdantic", ArgParser=ParserStandIn)
    out = folder / "official"
    content = {
        task.name: {
            kind: [
                {"input": pair.input.tolist(), "output": pair.output.tolist()}
                for pair in pairs
                if pair.output is not None
            ]
            for kind, pairs in (("train", task.train), ("test", task.test))
        }
        for task in tasks
    }
    if family == "trm":
        (folder / "arc_evaluation_challenges.json").write_text(json.dumps(content))
        solutions = {name: [pair["output"] for pair in task["test"]] for name, task in content.items()}
        (folder / "arc_evaluation_solutions.json").write_text(json.dumps(solutions))
        settings = {"input_file_prefix": str(folder / "arc"), "subsets": ["evaluation"], "test_set_name": "evaluation"}
        sys.path.insert(0, str(repo))
        module: Any = __import__("dataset.build_arc_dataset", fromlist=["convert_dataset"])
    else:
        (folder / "raw" / "evaluation").mkdir(parents=True)
        for name, task in content.items():
            (folder / "raw" / "evaluation" / f"{name}.json").write_text(json.dumps(task))
        settings = {"dataset_dirs": [str(folder / "raw")]}
        sys.path.insert(0, str(repo / "dataset"))
        module = __import__("build_arc_dataset")
    with redirected():
        module.convert_dataset(module.DataProcessConfig(output_dir=str(out), num_aug=views, **settings))
    return out


class redirected:
    """Sends what the official code prints to stderr."""

    def __enter__(self) -> None:
        self.stdout, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, *_: object) -> None:
        sys.stdout = self.stdout


@torch.no_grad()
def logits(repo: Path, family: str, data: Path, rows: int) -> dict[str, Any]:
    """The imported model against the official one on tests of the data set, one supervision step."""
    folder = open_arc_folder(data)
    config = SHARED | ARC_VARIANTS[family] | {"num_puzzle_identifiers": len(folder.names), "batch_size": rows}
    model = official(repo, family, config, 0)
    ours = imported(family, model, config, data=data)
    split = folder.split("test")
    examples = np.linspace(0, len(split.inputs) - 1, rows).astype(np.int64)
    puzzles = torch.from_numpy(split.inputs[examples].astype(np.int64))
    identities = torch.from_numpy(split.identities[split.puzzles_of(examples)])
    batch = {"inputs": puzzles, "puzzle_identifiers": identities}
    inner: Any = model.inner
    carry = inner.reset_carry(torch.ones(rows, dtype=torch.bool), inner.empty_carry(rows))
    _, theirs, q = inner(carry, batch)
    key = NoiseKey(0, torch.arange(rows), *torch.zeros(2, rows, dtype=torch.long))
    e_x = ours.embed(puzzles, identities)
    step = ours.step(*ours.initial_state(rows), e_x, key, injection=Injection(injector="none"))
    others = ours.embed(puzzles, identities.flip(0))
    moved = ours.decode(ours.step(*ours.initial_state(rows), others, key, injection=Injection(injector="none")).h)
    decoded = ours.decode(step.h)
    return {
        "check": "logits",
        "family": family,
        "identities": len(folder.names),
        "tests": rows,
        "logits_after_1": (theirs - decoded).abs().max().item(),
        "halt_after_1": (q[0] - step.halt).abs().max().item(),
        "largest_logit": theirs.abs().max().item(),
        "with_identities_exchanged": (theirs - moved).abs().max().item(),
        "is_equal": bool((theirs - decoded).abs().max() < LIMIT),
    }


def made_up(folder: ArcFolder, seed: int = 0) -> Iterator[tuple[Any, ...]]:
    """Predictions of every view of every test: right ones, wrong ones that agree, others that do not, empty ones."""
    split, rng = folder.split("test"), np.random.default_rng(seed)
    for first in range(0, len(split.inputs), 64):
        examples = np.arange(first, min(first + 64, len(split.inputs)))
        answers = np.array(split.labels[examples])
        kinds = rng.integers(0, 4, len(examples))
        for answer, kind in zip(answers, kinds, strict=True):
            places = np.flatnonzero(answer >= FIRST_COLOUR)
            if kind == 1:
                answer[places[0]] = FIRST_COLOUR  # black, which no view renames
            elif kind == 2:
                answer[rng.choice(places)] = rng.integers(FIRST_COLOUR, FIRST_COLOUR + 10)
            elif kind == 3 and rng.random() < 0.3:
                answer[0] = 0
        halts = rng.choice([-1.5, 0.25, 2.0], len(examples)).astype(np.float32)  # some tie
        yield split.identities[split.puzzles_of(examples)], split.inputs[examples], answers, halts


def votes(repo: Path, data: Path, folder: Path, name: str) -> dict[str, Any]:
    """Both evaluators on the same predictions."""
    stand_in("numba", njit=lambda function: function)
    sys.path.insert(0, str(repo))
    evaluator: Any = __import__("evaluators.arc", fromlist=["ARC"])
    common: Any = __import__("dataset.common", fromlist=["PuzzleDatasetMetadata"])
    metadata = common.PuzzleDatasetMetadata(**json.loads((data / "test" / "dataset.json").read_text()))
    with redirected():
        theirs = evaluator.ARC(str(data), metadata, pass_Ks=PASS_AT)
        theirs.begin_eval()
    opened = open_arc_folder(data)
    ours = ArcVotes(opened)
    for identities, inputs, answers, halts in made_up(opened):
        ours.add(identities, inputs, answers, halts)
        batch = {"inputs": torch.from_numpy(inputs.copy()), "puzzle_identifiers": torch.from_numpy(identities)}
        theirs.update_batch(batch, {"preds": torch.from_numpy(answers), "q_halt_logits": torch.from_numpy(halts)})
    rows = [voted.to_json() for task in opened.tests for voted in ours.close(task)]
    save = folder / f"votes-{name}"
    save.mkdir()
    with redirected():
        found = theirs.result(str(save), rank=0, world_size=1)
    figures = pass_at_k(rows)
    differences = [abs(found[f"ARC/pass@{k}"] - (figures[f"pass@{k}"] or 0.0)) for k in PASS_AT]
    is_same = json.loads((save / "submission.json").read_text()) == submission(rows)
    return {
        "check": f"votes on {name}",
        "tests": len(rows),
        "predictions": sum(row["predictions"] for row in rows),
        "candidates": sum(row["candidates"] for row in rows),
        "pass": {f"pass@{k}": found[f"ARC/pass@{k}"] for k in PASS_AT},
        "largest_difference": max(differences),
        "is_submission_equal": is_same,
        "is_equal": is_same and max(differences) < 1e-12,
    }


def reads(repo: Path, data: Path, ours: ArcFolder) -> dict[str, Any]:
    """The official reader of data sets on ours: every test with its identity, and a batch of training."""
    stand_in("argdantic", ArgParser=ParserStandIn)
    sys.path.insert(0, str(repo))
    module: Any = __import__("puzzle_dataset")
    shared = {"seed": 0, "dataset_paths": [str(data)], "global_batch_size": 16, "rank": 0, "num_replicas": 1}
    split, first, is_equal = ours.split("test"), 0, True
    settings = module.PuzzleDatasetConfig(test_set_mode=True, epochs_per_iter=1, **shared)
    for _, batch, count in module.PuzzleDataset(settings, "test"):
        rows = np.arange(first, first + count)
        is_equal &= bool((batch["inputs"][:count].numpy() == split.inputs[rows]).all())
        is_equal &= bool(
            (batch["puzzle_identifiers"][:count].numpy() == split.identities[split.puzzles_of(rows)]).all()
        )
        first += count
    settings = module.PuzzleDatasetConfig(test_set_mode=False, epochs_per_iter=8, **shared)
    batches = sum(1 for _ in module.PuzzleDataset(settings, "train"))
    return {
        "check": "our data set read by theirs",
        "tests": first,
        "training_batches": batches,
        "is_equal": is_equal and first == len(split.inputs) and batches > 0,
    }


def main() -> int:
    """All checks that the checkout allows; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-repo", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", type=Path, required=True, metavar="FILE")
    parser.add_argument("--count", type=int, default=10, help="tasks of FILE")
    parser.add_argument("--views", type=int, default=8, help="views of each beside the plain one")
    parser.add_argument("--rows", type=int, default=2, help="tests that the models answer")
    options = parser.parse_args()
    try:
        family = family_of(options.peer_repo)
        if family not in ARC_VARIANTS:
            raise ValueError(f"peer_repo must be a checkout of TRM or HRM, got one of {family}")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    tasks = read_tasks(options.tasks)[: options.count]
    is_equal = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = official_data(options.peer_repo, family, tasks, folder, options.views)
        checks: list[Callable[[], dict[str, Any]]] = [lambda: logits(options.peer_repo, family, data, options.rows)]
        if family == "trm":
            build([folder / "arc_evaluation_challenges.json"], folder / "ours", views=options.views)
            checks += [
                lambda: votes(options.peer_repo, data, folder, "their data set"),
                lambda: votes(options.peer_repo, folder / "ours", folder, "our data set"),
                lambda: reads(options.peer_repo, folder / "ours", open_arc_folder(folder / "ours")),
            ]
        for check in checks:
            found = check()
            is_equal &= found["is_equal"]
            print(json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(int(not is_equal))  # the official code's workers need no end


if __name__ == "__main__":
    main()
