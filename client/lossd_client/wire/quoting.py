"""Quote parts of a request in an error: short, on one line, in JSON's words rather than Python's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["digits", "quoted"]

MAX_CHARACTERS = 60
_WORDS = {None: "null", True: "true", False: "false"}


def quoted(value: Any) -> str:
    """Return a value of a JSON document as text; long strings are cut, unprintable characters are escaped."""
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
    """Return a number with the fewest digits that round-trip: 0.1 for float32, or 1.0000001 if 1 would hide a fault.

    Args:
        value: The number.
        rounded: Rounds a float to the precision of the value; the default is float64.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    texts = (f"{value:.{precision}g}" for precision in range(1, 18))
    return repr(next(float(text) for text in texts if rounded(float(text)) == value)).removesuffix(".0")
