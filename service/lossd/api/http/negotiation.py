"""The weights in Accept and Accept-Encoding (RFC 9110, section 12.4.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lossd.caches import memoized

__all__ = ["media_weight", "parse_weights"]

CACHE_BYTES = 1 << 20

_ITEM = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_WEIGHT = re.compile(rb"0(?:\.[0-9]*)?|1(?:\.0*)?")


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
        given = [value.strip() for key, _, value in (p.partition(b"=") for p in parameters) if key.strip() == b"q"]
        if name and all(map(_WEIGHT.fullmatch, given)):
            found[name] = float(given[0]) if given else 1.0
    return found


def media_weight(accept: Mapping[bytes, float], media_type: bytes) -> float:
    """Return the weight of a media type, else of its range (``application/*``), else of ``*/*``, else 0."""
    for name in (media_type, media_type.partition(b"/")[0] + b"/*", b"*/*"):
        if name in accept:
            return accept[name]
    return 0.0
