"""What differs between two definitions of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differing"]


def differing(one: Mapping[str, Any], other: Mapping[str, Any], pointer: str = "") -> Iterator[str]:
    """Yield RFC 6901 pointers to the fields that differ.

    Args:
        one: A JSON object.
        other: Another one.
        pointer: The place of both.
    """
    for name in dict.fromkeys([*one, *other]):
        value, found = one.get(name), other.get(name)
        place = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            yield from differing(value, found, place)
        elif value != found:
            yield place
