"""Values as they are written into a command or an address."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["literal"]

MAX_DEPTH = 32


def literal(text: str) -> Any:
    """A number, list or object as JSON; a list of numbers may go without its brackets, a string without its quotes.

    Raises:
        MalformedBody: It nests deeper than any value does.
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
    """Whether lists and objects nest in more than so many levels."""
    if not isinstance(value, list | dict):
        return False
    children = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deeper(child, levels - 1) for child in children)


def _too_deep() -> Exception:
    from lossd_client.errors import MalformedBody  # late: its package loads NumPy, which completion and help do without

    return MalformedBody(f"a value nests lists and objects more than {MAX_DEPTH} deep")
