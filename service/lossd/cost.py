"""What evaluating a request takes besides the memory of its tensors: estimates, which admission limits and counts.

What grows as the tensors do needs none: their bytes are counted. A loss or a metric for which a small request can be
much work says here how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["NOTHING", "Cost", "Pairs", "together"]

Shapes = Mapping[str, tuple[int, ...]]


class Cost(NamedTuple):
    """An estimate.

    Attributes:
        scratch_bytes: Bytes of temporaries at their most.
        work_ns: Processor time, in nanoseconds of one core.
    """

    scratch_bytes: int = 0
    work_ns: int = 0


NOTHING = Cost()


def together(costs: Iterable[Cost]) -> Cost:
    """Of several things done one after the other: the work of all, the memory of the largest."""
    most, work = 0, 0
    for cost in costs:
        most, work = max(most, cost.scratch_bytes), work + cost.work_ns
    return Cost(most, work)


@dataclass(frozen=True, slots=True)
class Pairs:
    """How many pairs of entries a loss looks at together, and what each takes.

    Attributes:
        count: How many, given the inputs' shapes.
        nbytes: Bytes of the tables that are held together, a pair, in float64: what float32 cannot compute is computed
            again in float64.
        work_ns: Nanoseconds of one core, a pair.
        coordinate_ns: The same for each coordinate of the embeddings.
    """

    count: Callable[[Shapes], int]
    nbytes: int
    work_ns: float
    coordinate_ns: float = 0.0

    def __call__(self, shapes: Shapes) -> int:
        """How many."""
        return self.count(shapes)

    def cost(self, shapes: Shapes) -> Cost:
        """What they take."""
        pairs, width = self.count(shapes), max(math.prod(shape[1:]) for shape in shapes.values())
        return Cost(pairs * self.nbytes, int(pairs * (self.work_ns + width * self.coordinate_ns)))
