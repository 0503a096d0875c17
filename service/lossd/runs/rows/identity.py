"""Which rows a run has counted, each exactly once: by position, by id, or by batch.

The three classes have the same methods. ``check`` returns how many rows a batch would add, and raises if one of them
was counted before. ``add`` counts them. ``extend`` counts a batch that is an identity of its own. ``merge`` adds the
rows of another run. ``missing`` lists the gaps. ``bounds`` are the lowest and the highest row. ``encode`` returns the
same bytes for the same rows, whatever the order, the batches and the merges. A method that raises changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lossd.runs.rows.batches import Batches
from lossd.runs.rows.ids import IDS, Ids
from lossd.runs.rows.positions import Positions
from lossd.runs.rows.row_sets import MAX_BYTES, damaged
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = [
    "IDS",
    "Batches",
    "Identity",
    "Ids",
    "Positions",
    "bytes_of",
    "decode",
    "merged",
    "new",
]

Identity = Positions | Ids | Batches
"""Which rows were counted, in one of the three ways."""

_KINDS: Mapping[str, type[Positions] | type[Ids] | type[Batches]] = {cls.kind: cls for cls in (Positions, Ids, Batches)}
_BY_MAGIC: Mapping[bytes, Callable[[memoryview, int], Identity]] = {
    b"P1": Positions.decoded,
    b"I1": Ids.decoded,
    b"B1": Batches.decoded,
}


def new(kind: str, *, max_bytes: int = MAX_BYTES) -> Identity:
    """Return an empty identity.

    Args:
        kind: position, id or batch.
        max_bytes: The most bytes that it may take.

    Raises:
        InvalidRequest: There is no such kind.
    """
    if kind not in _KINDS:
        detail = f"identity is {quoted(kind)}; it is one of {', '.join(_KINDS)}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/identity", detail=detail)])
    return _KINDS[kind](max_bytes=max_bytes)


def bytes_of(kind: str, *rows: Any) -> bytes:
    """Return the bytes of a batch's identity; arguments and errors are those of its ``add``."""
    if kind == Positions.kind:
        return Positions.range_of(*rows)
    found = new(kind)
    found.add(*rows)
    return found.encode()


def merged(many: Sequence[bytes]) -> Identity:
    """Return the identity of the rows of several, of the kind of the first.

    Raises:
        InvalidRequest: The bytes of one are not canonical, or of another kind.
        DuplicateRows: A row is in two of them.
        TooLarge: The identity takes too many bytes.
    """
    if (found := Positions.of_ranges(many)) is not None:
        return found
    first, *others = (decode(data) for data in many)
    for other in others:
        if other.kind != first.kind:
            raise damaged("its rows are identified in two ways")
        first.merge(cast("Any", other))
    return first


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> Identity:
    """Return the identity of its bytes, which may come from anybody.

    Raises:
        InvalidRequest: The bytes are not canonical: no ``encode`` returns them.
        TooLarge: The identity takes too many bytes.
    """
    view = memoryview(data)
    reader = _BY_MAGIC.get(bytes(view[:2]))
    if reader is None:
        raise damaged(f"it begins with {bytes(view[:2])!r}, not with {', '.join(map(repr, _BY_MAGIC))}")
    return reader(view[2:], max_bytes)
