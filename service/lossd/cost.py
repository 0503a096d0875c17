"""Estimates of what an evaluation takes besides its tensors' memory; admission counts and limits them.

Costs that grow like the tensors need no estimate: the tensors' bytes are counted. A loss or a metric states its cost
here if a small request can be much work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["NOTHING", "Cost", "PairCost", "together"]

Shapes = Mapping[str, tuple[int, ...]]


class Cost(NamedTuple):
    """An estimate.

    Attributes:
        scratch_bytes: Peak bytes of temporaries.
        work_ns: CPU time, in nanoseconds of one core.
    """

    scratch_bytes: int = 0
    work_ns: int = 0


NOTHING = Cost()


def together(costs: Iterable[Cost]) -> Cost:
    """Return the cost of several computations in sequence: the sum of their work, the largest of their memory."""
    most, work = 0, 0
    for cost in costs:
        most, work = max(most, cost.scratch_bytes), work + cost.work_ns
    return Cost(most, work)


@dataclass(frozen=True, slots=True)
class PairCost:
    """How many pairs of entries a loss compares, and what each pair takes.

    Attributes:
        count: Returns the number of pairs, given the inputs' shapes.
        nbytes: Bytes per pair of all tables in memory at once, in float64: a result out of float32's range is computed
            again in float64.
        work_ns: Nanoseconds of one core per pair.
        coordinate_ns: Nanoseconds of one core per pair and coordinate of the embeddings.
    """

    count: Callable[[Shapes], int]
    nbytes: int
    work_ns: float
    coordinate_ns: float = 0.0

    def __call__(self, shapes: Shapes) -> int:
        """Return the number of pairs."""
        return self.count(shapes)

    def cost(self, shapes: Shapes) -> Cost:
        """Return the cost of the pairs."""
        pairs, width = self.count(shapes), max(math.prod(shape[1:]) for shape in shapes.values())
        return Cost(pairs * self.nbytes, int(pairs * (self.work_ns + width * self.coordinate_ns)))
