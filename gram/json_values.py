"""Values as strict JSON has them. No file is read or written here."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """`value` with numpy's scalars and arrays as Python's numbers and lists, and NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
