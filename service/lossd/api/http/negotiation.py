"""Header fields that are lists: combined fields, weights (RFC 9110, section 12.4.2), and If-None-Match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set

from lossd.caches import memoized

__all__ = ["combined", "is_current", "media_weight", "parse_weights"]

CACHE_BYTES = 1 << 20

_ITEM = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_WEIGHT = re.compile(rb"0(?:\.[0-9]*)?|1(?:\.0*)?")


def combined(headers: Iterable[tuple[bytes, bytes]], names: Set[bytes]) -> dict[bytes, bytes]:
    """Return the value of each field; the values of one that is sent several times are one list (RFC 9110, 5.3).

    Args:
        headers: The fields of a request, with names in lower case.
        names: The names of the fields to return.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in names:
            found[name] = b"%b, %b" % (found[name], value) if name in found else value
    return found


def is_current(stated: bytes, tag: str) -> bool:
    """Return whether a client has the answer of an entity tag, by the value of If-None-Match."""
    opaque = tag.removeprefix("W/")
    return any(part.strip().removeprefix("W/") in (opaque, "*") for part in stated.decode("latin-1").split(","))


@memoized("accept", lambda header, found: 512 + len(header) + 256 * len(found), CACHE_BYTES)
def parse_weights(header: bytes) -> Mapping[bytes, float]:
    """Return the weight of each item, from 0 (refused) to 1, by its name in lower case.

    Args:
        header: The value of Accept or Accept-Encoding. Other parameters than the weight are ignored. An item with a
            malformed weight is left out.
    """
    found: dict[bytes, float] = {}
    for item in _ITEM.findall(header.lower()):
        name, *parameters = (part.strip() for part in item.split(b";"))
        qualities = [value.strip() for key, _, value in (p.partition(b"=") for p in parameters) if key.strip() == b"q"]
        if name and all(map(_WEIGHT.fullmatch, qualities)):
            found[name] = float(qualities[0]) if qualities else 1.0
    return found


def media_weight(accept: Mapping[bytes, float], media_type: bytes) -> float:
    """Return the weight of a media type, else of its range (``application/*``), else of ``*/*``, else 0."""
    for name in (media_type, media_type.partition(b"/")[0] + b"/*", b"*/*"):
        if name in accept:
            return accept[name]
    return 0.0
