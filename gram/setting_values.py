"""What a setting's value may be: plain numbers and names of the declared types, within their ranges.

Used by the frozen configurations (`config.py`, `training/config.py`) in `__post_init__`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

EXPECTED = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}


def at_least(name: str, value: float, low: float) -> None:
    """Raises `ValueError` where a setting is below `low`."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")


def at_most(name: str, value: float, high: float) -> None:
    """Raises `ValueError` where a setting is above `high`."""
    if value > high:
        raise ValueError(f"{name} must be at most {high:,}, got {shown(value)}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises `ValueError` where a setting lies outside its range, both ends included."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be within {low:g} and {high:g}, got {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` where a setting is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def make_plain(config: Any) -> None:
    """Turns a frozen configuration's values into plain ones of their declared types (numpy's numbers into Python's).

    Raises `ValueError` in one line for a value of another type; a truth value is no number.
    """
    for field in fields(config):
        value = _plain(getattr(config, field.name), str(field.type), field.name)
        object.__setattr__(config, field.name, value)


def _plain(value: Any, declared: str, name: str) -> Any:
    """`value` as the declared type of its field, or a `ValueError` in one line."""
    if declared.startswith("tuple["):
        return _plain_list(value, declared, name)
    kind, _, optional = declared.partition(" | ")
    if value is None and optional == "None":
        return None
    if kind == "int" and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind == "float" and isinstance(value, Real) and not isinstance(value, bool):
        try:
            if math.isfinite(number := float(value)):
                return number
        except OverflowError:
            pass
    # numpy's truth value is neither a bool nor a number; its type is known by name, since numpy is slow to import.
    if kind == "bool" and (isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    if kind not in EXPECTED and isinstance(value, str):
        return str(value)
    expected = EXPECTED.get(kind, "a name") + (" or none" if optional else "")
    raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def _plain_list(value: Any, declared: str, name: str) -> Any:
    """A tuple of names, or of pairs of numbers; lists will do."""
    is_listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if declared == "tuple[str, ...]":
        if not is_listed or not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"{name} must be a list of names, got {shown(value)}")
        return tuple(str(entry) for entry in value)
    kinds = declared.removeprefix("tuple[tuple[").split("]")[0].split(", ")
    if not is_listed or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str | bytes) and len(pair) == len(kinds) for pair in value
    ):
        raise ValueError(f"{name} must be a list of pairs, got {shown(value)}")
    return tuple(tuple(_plain(part, kind, name) for part, kind in zip(pair, kinds, strict=True)) for pair in value)


def shown(value: Any) -> str:
    """A value's first characters, on one line."""
    return " ".join(_SHORT.repr(value).split())[:40]


_SHORT = reprlib.Repr()
# A value that nests without end, or repeats one part a million times, must never be written out in full.
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 200, 200, 60
