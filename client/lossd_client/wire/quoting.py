"""What a request said, as an error may repeat it: short, on one line, and in JSON's words rather than Python's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["digits", "quoted"]

MAX_CHARACTERS = 60
_WORDS = {None: "null", True: "true", False: "false"}


def quoted(value: Any) -> str:
    """A value of a JSON document, cut where it is long; what cannot be printed is escaped."""
    if isinstance(value, str):
        return repr(value) if len(value) <= MAX_CHARACTERS else f"{value[:MAX_CHARACTERS]!r}..."
    if isinstance(value, list | tuple):
        return "a list" if value else "[]"
    if isinstance(value, dict):
        return "an object" if value else "{}"
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, float) and not math.isfinite(value):
        return digits(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float) else type(value).__name__


def digits(value: float, rounded: Callable[[float], float] = float) -> str:
    """A number by the fewest digits that lead back to it: 0.1 of float32, and 1.0000001 where 1 would hide a fault.

    Args:
        value: The number.
        rounded: The nearest number to a float in the precision that the value has; that of a float by default.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    texts = (f"{value:.{precision}g}" for precision in range(1, 18))
    return repr(next(float(text) for text in texts if rounded(float(text)) == value)).removesuffix(".0")
