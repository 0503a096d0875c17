"""Read values from a command line or a URL."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["literal"]

MAX_DEPTH = 32


def literal(text: str) -> Any:
    """Return the value of a text: JSON, a list of numbers without its brackets, or a string without quotes.

    Raises:
        MalformedBody: The value nests more than 32 levels deep.
    """
    for candidate in (text, f"[{text}]"):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        except RecursionError:
            raise _too_deep() from None
        if isinstance(value, list | dict) and _is_deeper(value, MAX_DEPTH):
            raise _too_deep()
        return value
    return text


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects nest in more than so many levels."""
    if not isinstance(value, list | dict):
        return False
    children = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deeper(child, levels - 1) for child in children)


def _too_deep() -> Exception:
    from lossd_client.errors import MalformedBody  # late: its package loads NumPy, which slows completion and help

    return MalformedBody(f"a value nests lists and objects more than {MAX_DEPTH} deep")
