"""What a client would have: the weights in Accept and Accept-Encoding (RFC 9110, section 12.4.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lossd.caches import memoized

__all__ = ["media_weight", "weights"]

CACHE_BYTES = 1 << 20

_ITEM = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_WEIGHT = re.compile(rb"0(?:\.[0-9]*)?|1(?:\.0*)?")


@memoized("accept", lambda header, found: 512 + len(header) + 256 * len(found), CACHE_BYTES)
def weights(header: bytes) -> Mapping[bytes, float]:
    """The weight of each item, from 0 (refused) to 1, by its name in lower case; one whose weight is none is left out.

    Args:
        header: The value of Accept, Accept-Encoding or their like; parameters but for the weight say nothing here.
    """
    found: dict[bytes, float] = {}
    for item in _ITEM.findall(header.lower()):
        name, *parameters = (part.strip() for part in item.split(b";"))
        given = [value.strip() for key, _, value in (p.partition(b"=") for p in parameters) if key.strip() == b"q"]
        if name and all(map(_WEIGHT.fullmatch, given)):
            found[name] = float(given[0]) if given else 1.0
    return found


def media_weight(accept: Mapping[bytes, float], media_type: bytes) -> float:
    """What a media type weighs: by itself, else by its range (``application/*``), else by ``*/*``; 0 where unnamed."""
    for name in (media_type, media_type.partition(b"/")[0] + b"/*", b"*/*"):
        if name in accept:
            return accept[name]
    return 0.0
