"""Comparisons of two numbers: an anchor's distances to its positive and its negative, or two scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_norm
from lossd.losses.embedding import triplet
from lossd.losses.margin import margin_ranking
from lossd.losses.registry import Input, Unreduced
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Mean
from lossd.metrics.registry import Task, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats, numbers
from lossd.metrics.view import View

__all__ = ["MarginTask", "Ordered", "Triplets"]


class MarginTask(Task):
    """The margin by which each comparison comes out right."""

    @cached_property
    def entries(self) -> Entries:
        """The entries that count."""
        return Entries(self.view)

    @cached_property
    def ahead(self) -> Tensor:
        """Margins, (R, I), above 0 where the comparison comes out right."""
        raise NotImplementedError

    @Mean
    def right(self) -> Tensor:
        """Whether each comparison comes out right."""
        return (self.ahead > 0).double()

    @Mean
    def without_loss(self) -> Tensor:
        """Whether each comparison comes out right by the loss's margin at least."""
        return (self.losses() <= 0).double()

    def losses(self) -> Tensor:
        """The loss's own values, (R, I), in its own arithmetic."""
        raise NotImplementedError

    def parameters(self, ndim: int, **defaults: float) -> dict[str, Any]:
        """Return numeric parameters for the loss: if requests differ, in its dtype and with ``ndim`` axes."""
        dtype = next(iter(self.view.tensors.values())).dtype
        numbers = {name: self.view.number(name, default, ndim) for name, default in defaults.items()}
        return {name: n.to(dtype) if isinstance(n, Tensor) else n for name, n in numbers.items()}


@task("triplets")
class Triplets(MarginTask):
    """Distances as in the loss: its norm, squared or not; with ``swap`` the smaller of the negative's two distances."""

    @cached_property
    def distances(self) -> tuple[Tensor, Tensor]:
        """The distances of the anchors to their positives and to their negatives, (R, 1) each."""
        view = self.view
        anchor, positive, negative = (view.tensors[name].double() for name in ("anchor", "positive", "negative"))
        far = _distance(view, anchor, negative)
        if view.parameters.get("swap"):
            far = torch.minimum(far, _distance(view, positive, negative))
        return _distance(view, anchor, positive), far

    @cached_property
    def ahead(self) -> Tensor:
        """How much farther the negative is than the positive, (R, 1)."""
        near, far = self.distances
        return far - near

    @Mean
    def near(self) -> Tensor:
        """The distance to the positive."""
        return self.distances[0]

    @Mean
    def far(self) -> Tensor:
        """The distance to the negative."""
        return self.distances[1]

    def losses(self) -> Tensor:
        """(R, 1)."""
        tensors = (self.view.tensors[name] for name in ("anchor", "positive", "negative"))
        fixed = {name: self.view.parameters[name] for name in ("p", "squared", "swap") if name in self.view.parameters}
        unreduced = triplet.function(*tensors, **fixed, **self.parameters(1, margin=1.0, eps=0.0))
        assert isinstance(unreduced, Unreduced)
        return unreduced.value.unsqueeze(1)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Three embeddings a row."""
        return (
            constant_input("anchor", "Embeddings.", floats("real", "N D")),
            constant_input("positive", "Embeddings of the same kind as the anchors.", floats("real", "N D")),
            constant_input("negative", "Embeddings of another kind.", floats("real", "N D")),
            SAMPLE_WEIGHT,
        )


@task("ranking")
class Ordered(MarginTask):
    """Two scores, one of which should be higher."""

    @cached_property
    def ahead(self) -> Tensor:
        """The higher score minus the lower, in the order that the target says, (R, I)."""
        rows, tensors = self.view.segments.total, self.view.tensors
        first, second, target = (tensors[name].reshape(rows, -1).double() for name in ("first", "second", "target"))
        return torch.where(target > 0, first - second, second - first)

    def losses(self) -> Tensor:
        """(R, I)."""
        tensors = [self.view.tensors[name] for name in ("first", "second", "target")]
        value = margin_ranking.function(*tensors, **self.parameters(tensors[0].ndim, margin=0.0))
        assert isinstance(value, Tensor)
        return value.reshape(self.ahead.shape)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Two scores, and which should be higher."""
        return (
            constant_input("first", "Scores.", floats("real", "N *")),
            constant_input("second", "Scores, same shape.", floats("real", "N *")),
            constant_input("target", "Same shape; 1 where the first should be higher, -1 where the second.",
                  numbers("sign", "N *")),
            SAMPLE_WEIGHT,
        )  # fmt: skip


def _distance(view: View, first: Tensor, second: Tensor) -> Tensor:
    """(R, 1)."""
    squared = view.parameters.get("squared", False)
    difference = first - second
    if not squared:
        difference = difference + view.number("eps", 0.0, 2)
    order = float(view.parameters.get("p", 2.0))
    distance = row_norm(difference, order, keepdim=True)
    return distance.square() if squared else distance


@metric("triplets", "ranking", default=True, reads=("right",), better="higher", interval="unit")
def correct(task: MarginTask) -> Sequence[Any]:
    """The fraction in the right order: the positive nearer, or the higher score higher. Ties count as wrong."""
    return task.quotients("correct", *task.right)


@metric("triplets", "ranking", default=True, reads=("without_loss",), better="higher", interval="unit")
def satisfied(task: MarginTask) -> Sequence[Any]:
    """The fraction in the right order by at least the loss's margin, so with a loss of 0."""
    return task.quotients("satisfied", *task.without_loss)


@metric("triplets", default=True, reads=("near",), better="lower", interval="positive")
def mean_positive_distance(task: Triplets) -> Sequence[Any]:
    """The mean distance of anchors to their positives."""
    return task.quotients("mean_positive_distance", *task.near)


@metric("triplets", default=True, reads=("far",), better="higher", interval="positive")
def mean_negative_distance(task: Triplets) -> Sequence[Any]:
    """The mean distance of anchors to their negatives."""
    return task.quotients("mean_negative_distance", *task.far)
