"""Writes README.md of shipped checkpoints anew from their card.json: `python scripts/model_cards.py [NAME ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gram.checkpoint import read_card, write_atomically
from gram.evals.model_card import model_card

WEIGHTS = Path(__file__).resolve().parent.parent / "gram" / "weights"


def main() -> None:
    """All of them where none is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = sorted(path.parent.name for path in WEIGHTS.glob("*/card.json"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="shipped checkpoint [default: all]")
    names = parser.parse_args().names or shipped
    for name in names:
        if name not in shipped:
            parser.error(f"name must be one of {', '.join(shipped)}, got {name}")
    for name in names:
        write_atomically(WEIGHTS / name / "README.md", model_card(name, read_card(WEIGHTS / name)).encode())


if __name__ == "__main__":
    main()
