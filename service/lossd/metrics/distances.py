"""Pairs that are similar if their distance is small."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_norm, row_total
from lossd.losses.registry import Input
from lossd.metrics.cutoffs import rounded, slack
from lossd.metrics.decisions import Decided, Decision
from lossd.metrics.registry import Floats, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats, numbers
from lossd.metrics.view import View
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["NOISE", "CosinePairs", "Distances", "Pairs", "unit", "without_noise"]

NOISE = 2.0**40
"""Cosines that differ by less than the reciprocal differ by rounding alone."""


@task("distances")
class Distances(Decided):
    """Pairs given by their distance: similar below ``threshold``, by default half the loss's margin.

    Distances are compared in the dtype in which they were sent. A NaN distance is never below. The target is above 0
    for similar pairs.
    """

    def decide(self) -> Decision:
        """Decide by the distance."""
        view = self.view
        distance, similar = self.distances(view)
        threshold = view.options.get("threshold")
        limit = self.boundary(view) if threshold is None else threshold
        distance = distance.reshape(len(distance), 1, -1)
        return Decision(-distance, similar.reshape(distance.shape) > 0, distance < self.cut(limit))

    def distances(self, view: View) -> tuple[Tensor, Tensor]:
        """Return distances in float64, and numbers above 0 for similar pairs, in the same shape."""
        return view.tensors["prediction"].double(), view.tensors["target"]

    def boundary(self, view: View) -> Tensor | float:
        """Return half the margin, for each row if requests differ: (R, 1, 1)."""
        return view.number("margin", 1.0, 3) / 2

    def cut(self, limit: Tensor | float) -> Tensor | float:
        """Return the number with which distances are compared."""
        return rounded(limit, self.view.sent("prediction"))

    def threshold_at(self, scores: Floats, step: int) -> float:
        """Return the mean of two neighbouring distances, or another threshold that separates them."""
        last = -float(scores[step])
        following = -float(scores[step + 1]) if step + 1 < len(scores) else math.inf
        if math.isinf(last):  # JSON has no number for infinity
            return sys.float_info.max if last > 0 else following if following < math.inf else 0.0
        middle = math.nextafter(last, math.inf) if following == math.inf else (last + following) / 2
        if math.isinf(middle):  # the sum alone
            middle = last / 2 + following / 2
        for limit in (middle, 2 * middle - float(self.cut(middle))):
            if last < float(self.cut(limit)) <= following:
                return limit
        more = math.ulp(limit)
        while float(self.cut(limit)) <= last and limit + more < math.inf:
            limit, more = limit + more, 2 * more
        return limit

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Check that a threshold is a distance."""
        if isinstance(options.get("threshold"), Mapping):
            detail = "threshold is a distance here, a number"
            raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/threshold", detail=detail)])

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: distances, and whether they are of similar pairs."""
        return (
            constant_input("prediction", "Distances.", floats("real", "N *")),
            constant_input("target", "Same shape; 1 for similar, -1 for dissimilar.", numbers("sign", "N *")),
            SAMPLE_WEIGHT,
        )


@task("pairs")
class Pairs(Distances):
    """Pairs of embeddings: similar if their Euclidean distance is below ``threshold``, by default half a margin.

    A distance that equals the threshold apart from the embeddings' rounding is not below it.
    """

    def distances(self, view: View) -> tuple[Tensor, Tensor]:
        """Return the distance of each pair as in the loss, and ``similar``."""
        difference = view.tensors["first"].double() - view.tensors["second"].double()
        distance = row_norm(difference + view.number("eps", 0.0, 2))
        return distance, view.tensors["similar"]

    def cut(self, limit: Tensor | float) -> Tensor | float:
        """Return the limit, less what rounding may have taken from a distance that equals it."""
        return limit * (1 - slack(self.view.computed("first", "second")))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: two embeddings a row, and whether they are similar."""
        return (
            constant_input("first", "Embeddings.", floats("real", "N D")),
            constant_input("second", "Embeddings, each paired with the row of the first.", floats("real", "N D")),
            constant_input("similar", "1 for a similar pair, 0 for another.", numbers("indicator", "N")),
            SAMPLE_WEIGHT,
        )


@task("cosine_pairs")
class CosinePairs(Pairs):
    """Pairs of embeddings: similar if 1 - cosine is below ``threshold``, by default half-way to the margin.

    Half-way means (1 - margin) / 2: the loss pulls similar pairs to a distance of 0, and pushes others to 1 - margin.
    """

    def distances(self, view: View) -> tuple[Tensor, Tensor]:
        """Return 1 - cosine of each pair, 1 if a vector is zero, and ``similar``."""
        cosine = row_total(unit(view.tensors["first"]) * unit(view.tensors["second"]))
        return 1 - without_noise(cosine), view.tensors["similar"]

    def cut(self, limit: Tensor | float) -> Tensor | float:
        """As for pairs; what rounding takes from 1 - a cosine does not shrink with it."""
        return limit - slack(self.view.computed("first", "second"))

    def boundary(self, view: View) -> Tensor | float:
        """Return the mean of the loss's two target distances; (R, 1, 1), one for each row, if requests differ."""
        return (1 - view.number("margin", 0.0, 3)) / 2

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: two embeddings a row, and whether they are similar."""
        first, second, _, weight = super().inputs(options)
        return (
            first,
            second,
            constant_input("similar", "1 for a similar pair, -1 for another.", numbers("sign", "N")),
            weight,
        )


def unit(vectors: Tensor) -> Tensor:
    """Return each vector at length 1, in float64, and a zero vector unchanged: (..., D)."""
    wide = vectors.double()
    if vectors.dtype == torch.float64:
        # At the scale of the largest entry squares neither overflow nor vanish; those of float32 do neither.
        scale = wide.abs().amax(-1, keepdim=True)
        wide = wide / scale.masked_fill(scale == 0, 1)
    length = row_norm(wide, keepdim=True)
    direction: Tensor = wide.div_(length.masked_fill_(length == 0, 1))
    return direction


def without_noise(cosines: Tensor) -> Tensor:
    """Return values rounded to 2^-40: sums of products that differ only in their order are then ties."""
    return (cosines * NOISE).round_().mul_(1 / NOISE)
