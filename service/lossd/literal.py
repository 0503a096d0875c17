"""Values as people write them into a command or an address."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["literal"]


def literal(text: str) -> Any:
    """A number, list or object as JSON; a list of numbers may go without its brackets, a string without its quotes."""
    for candidate in (text, f"[{text}]"):
        try:
            return json.loads(candidate)
        except ValueError:
            pass
    return text
