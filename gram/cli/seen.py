"""Whether a checkpoint has seen a split in training, by what its card says: told once, and kept in the JSON.

Not a check of weights: a card without a recipe (an imported checkpoint) says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gram.api import Sampler


def trained_split(card: dict[str, Any]) -> str | None:
    """The split that a checkpoint was trained on, None where its card does not say."""
    recipe = card.get("recipe")
    training = recipe.get("training") if isinstance(recipe, dict) else None
    named = card.get("split") or (training.get("split") if isinstance(training, dict) else None)
    return named if isinstance(named, str) else None


def is_unseen(card: dict[str, Any], split: str) -> bool | None:
    """Whether a split is held out from the one trained on; None where the card does not say which that was."""
    from gram.tasks.protocol import training_split

    trained = trained_split(card)
    if trained is None:
        return None
    try:
        return training_split(split) == trained and split not in card.get("also_trained_on", ())
    except ValueError:
        return False


def seen_facts(card: dict[str, Any], split: str | None) -> dict[str, Any]:
    """Fields of a JSON: the split trained on, and whether the one judged (None: a file) is unseen."""
    return {"trained_split": trained_split(card), "is_unseen": None if split is None else is_unseen(card, split)}


def warn_if_seen(sampler: Sampler, split: str | None) -> None:
    """One line where a split that should be unseen is not."""
    from gram.cli import terminal

    if split is None or is_unseen(sampler.card, split) is not False or "train" in split:
        return
    trained = trained_split(sampler.card)
    own = "" if trained is None else trained.replace("train", "test", 1)
    terminal.tell(
        f"checkpoint {sampler.name} was trained on {trained!r}: puzzles of {split!r} are not unseen by it"
        + (f" (those of {own!r} are)" if own in sampler.task.splits else "")
    )
