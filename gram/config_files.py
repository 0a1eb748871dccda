"""How files of settings are read: JSON and TOML, each fault in one line. What they may say is in `config.py`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gram.config import shown

MOST_BYTES = 16 * 2**20
"""No file of settings is longer."""


def read_json(path: Path, refusal: type[ValueError] = ValueError) -> dict[str, Any]:
    """The JSON object of a file, in UTF-8, -16 or -32. Raises `refusal` in one line, and `OSError`."""
    return _read(path, "JSON", lambda content: parse_json(content), refusal)


def parse_json(text: str | bytes) -> Any:
    """A JSON value. A repeated key is refused: either value would be a guess.

    Raises `ValueError`, whose message names no file, and `RecursionError` for one nested too deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{shown(key)} stands twice")
        values[key] = value
    return values


def read_toml(path: Path, refusal: type[ValueError] = ValueError) -> dict[str, Any]:
    """The values of a TOML file, without a byte order mark. Raises `refusal` in one line, `OSError`."""
    return _read(path, "TOML", lambda content: tomllib.loads(content.decode("utf-8-sig")), refusal)


def _read(path: Path, form: str, parse: Callable[[bytes], Any], refusal: type[ValueError]) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise refusal(f"{path}: must be {form} of at most {MOST_BYTES:,} bytes, got more")
    try:
        values = parse(content)
    except RecursionError:
        raise refusal(f"{path}: not {form} (nested too deep)") from None
    except ValueError as error:
        raise refusal(f"{path}: not {form} ({_reason(error)})") from None
    if not isinstance(values, dict):
        raise refusal(f"{path}: must hold a {form} object, got {shown(values)}")
    return values


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    return " ".join(str(error).split())[:100]
