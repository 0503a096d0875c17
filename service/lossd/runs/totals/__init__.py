"""What a run has added up: one total for each contribution of its parts, in slots of strata and groups.

Totals are merged in any order and by any tree, and hold the same bytes then. They are read once, at the end, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, cast

from lossd.metrics.contributions import Amounts, Contribution, Extremes, Products, Scores, Tallied
from lossd.runs.rows.slots import Placement, Slots
from lossd.runs.totals.sums import LargestTotal, ProductTotal, SumTotal
from lossd.runs.totals.tables import TableTotal

__all__ = ["RunTotal", "decode_first", "each", "empty", "merged"]


class RunTotal(Protocol):
    """One total of a run."""

    kind: ClassVar[str]
    shape: list[int]
    """The numbers from which an empty total of this kind is made."""

    def merge(self, other: Any) -> None:
        """Add the total of other batches."""

    def read(self, stratum: int, groups: int) -> Any:
        """Return what metrics read, of B = 1 + groups sets of rows.

        Args:
            stratum: The number of the stratum among those of the definition.
            groups: The number of groups; the first set has all rows of the stratum, and set 1 + g those whose group
                modulo ``groups`` is not g. 0 for the first set alone.
        """
        ...

    def encode(self) -> bytes:
        """Return the same bytes for the same content."""
        ...


KINDS: dict[str, Any] = {cls.kind: cls for cls in (SumTotal, LargestTotal, TableTotal, ProductTotal)}
BY_CONTRIBUTION: dict[type, Any] = {
    Amounts: SumTotal,
    Tallied: SumTotal,
    Extremes: LargestTotal,
    Scores: TableTotal,
    Products: ProductTotal,
}
FIRST: dict[str, Callable[[bytes, list[int], Slots], Any]] = {
    "sums": SumTotal.of_dense,
    "largest": LargestTotal.of_dense,
    "tables": TableTotal.of_points,
    "products": ProductTotal.of_dense,
}
"""What reads the bytes of versions before groups."""


def each(contribution: Contribution, placement: Placement, limit: int) -> list[RunTotal]:
    """Return the total of each of several batches.

    Args:
        contribution: What all of them contribute.
        placement: Where their rows are counted.
        limit: The most rows of the tables of one part.
    """
    return cast("list[RunTotal]", BY_CONTRIBUTION[type(contribution)].each(contribution, placement, limit))


def empty(total: RunTotal, slots: Slots) -> RunTotal:
    """Return an empty total of the same kind and shape."""
    return cast("RunTotal", KINDS[total.kind](total.shape, slots))


def merged(kind: str, shape: list[int], slots: Slots, many: Sequence[bytes]) -> RunTotal:
    """Return the total of totals that :meth:`RunTotal.encode` wrote.

    Sums are read all at once, which takes a tenth of the time if they are small.

    Raises:
        ValueError: The bytes are not what it writes.
    """
    if kind not in KINDS:
        raise ValueError("a total of an unknown kind")
    found = KINDS[kind]
    if hasattr(found, "merged"):
        return cast("RunTotal", found.merged(many, shape, slots))
    first, *others = (found.decode(data, shape, slots) for data in many)
    for other in others:
        first.merge(other)
    return cast("RunTotal", first)


def decode_first(kind: str, shape: list[int], slots: Slots, data: bytes) -> RunTotal:
    """Return the total that versions before groups wrote.

    Raises:
        ValueError: The bytes are not what they wrote.
    """
    if kind not in FIRST:
        raise ValueError("a total of an unknown kind")
    return cast("RunTotal", FIRST[kind](data, shape, slots))
