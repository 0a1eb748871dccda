"""Writes the behaviours that `gram circuit` knows by name into `gram/behaviours/`: the same bytes every time.

python scripts/make_behaviours.py
"""

from __future__ import annotations

import json

from gram.checkpoint import write_atomically
from gram.evals.circuits.behaviour import SHIPPED
from gram.evals.circuits.contrasts import behaviours


def text(values: dict) -> str:
    """A behaviour's file: one pair a line."""
    pairs = ",\n".join("  " + json.dumps(pair) for pair in values["pairs"])
    head = json.dumps({name: value for name, value in values.items() if name != "pairs"})[:-1]
    return f'{head}, "pairs": [\n{pairs}\n]}}\n'


if __name__ == "__main__":
    SHIPPED.mkdir(exist_ok=True)
    for name, values in behaviours().items():
        write_atomically(SHIPPED / f"{name}.json", text(values).encode())
