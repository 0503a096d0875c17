"""Embeddings as neighbours: those with the same label, or their counterparts in another view.

Neighbours are sorted by the Euclidean distance of unit vectors; the nearest has the highest cosine. Distances that
differ only by rounding are ties, and the lower index of a tie is nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.reduction import Segments
from lossd.losses.registry import Input
from lossd.metrics.distances import unit, without_noise
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Mean
from lossd.metrics.registry import Array, Floats, Task, metric, task
from lossd.metrics.signature import constant_input, floats, numbers

__all__ = ["Labelled", "Views"]

# Numbers held at a time.
BLOCK = 1 << 17


def rank_of_nearest(near: Tensor, relevant: Tensor) -> Tensor:
    """Return how many neighbours are nearer than the nearest wanted one: (..., N) to (...); N if none is wanted."""
    column = torch.arange(near.shape[-1], dtype=torch.int32, device=near.device)
    best = near.masked_fill(~relevant, -torch.inf).amax(-1, keepdim=True)
    as_near = near == best
    index = torch.where(as_near & relevant, column, len(column)).amin(-1, keepdim=True)
    nearer = (near > best).logical_or_(as_near.logical_and_(column < index))
    return torch.where(index.squeeze(-1) < len(column), nearer.sum(-1), len(column))


def half_squares(units: Tensor) -> Tensor:
    """Return half the squared length of unit vectors, (..., N, D) to (..., N): 1/2 exactly, or 0 for a zero vector.

    A cosine minus this number of the neighbour orders neighbours as their distance does.
    """
    half: Tensor = (torch.linalg.vector_norm(units, dim=-1) > 0.5) * 0.5
    return half


def row_blocks(queries: Tensor, gallery: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield products of a request's queries with all of its gallery: (b, q, N), q rows at a time."""
    step = max(1, BLOCK // (gallery.shape[0] * gallery.shape[1]))
    for first in range(0, queries.shape[1], step):
        rows = slice(first, min(first + step, queries.shape[1]))
        yield rows, without_noise(queries[:, rows] @ gallery.mT)


class Neighbours(Task):
    """Requests of N embeddings each; each request's embeddings are neighbours of each other."""

    compares: ClassVar[bool] = True

    @classmethod
    def compared(cls, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Each of one tensor's rows with each of another's."""
        return max(shape[0] if shape else 1 for shape in shapes.values()) ** 2

    # How many of a request's rows one of them is not compared with.
    excluded: ClassVar[int] = 0

    def warnings(self, names: Sequence[str]) -> list[list[str]]:
        """Whether the ``k`` nearest are all there are."""
        if not any(name.endswith("@k") for name in names):
            return super().warnings(names)
        k: int = self.view.options["k"]
        return [["k_is_all"] if k >= rows - self.excluded else [] for rows in self.compared_rows]

    @cached_property
    def _compared(self) -> Tensor | None:
        """The rows that are compared, (R,) bool: those a mask keeps, and one of a request without any; None for all."""
        if self.view.ignored is None:
            return None
        compared = ~self.view.ignored[:, 0]
        starts = torch.tensor(self.view.segments.starts, device=compared.device)
        compared[starts] |= self.view.segments.sum(compared.long()) == 0
        return compared

    @cached_property
    def compared_rows(self) -> list[int]:
        """How many rows of each request are compared."""
        if self._compared is None:
            return self.view.segments.rows
        counts: list[int] = self.view.segments.sum(self._compared.long()).tolist()
        return counts

    def found(self, name: str, find: Callable[[], Array]) -> Array:
        """Return what a compiled pass has found under a name; what ``find`` returns if it has not."""
        counted = self.view.counted.get(name)
        return find() if counted is None else counted

    def in_rows(self, numbers: Floats) -> Floats:
        """Return numbers of the rows that are compared for all rows, (R,); 0 for the others."""
        if self._compared is None:
            return numbers
        whole = np.zeros(self.view.segments.total)
        whole[self._compared.numpy(force=True)] = numbers
        return whole

    def groups(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The tensors of requests of one size, (b, N, ...), as many as make a block; in order."""
        segments = self.view.segments
        if self._compared is not None:
            segments = Segments(self.compared_rows, segments.device)
            tensors = tuple(t[self._compared] for t in tensors)
        if not segments.equal:
            yield from (
                tuple(t.unsqueeze(0) for t in request) for request in zip(*map(segments.split, tensors), strict=True)
            )
            return
        rows = segments.rows[0]
        stacked = [t.reshape(segments.count, rows, *t.shape[1:]) for t in tensors]
        yield from zip(*(torch.split(t, max(1, BLOCK // rows**2)) for t in stacked), strict=True)

    def fraction(self, name: str, found: Array, queries: Array | None = None) -> list[Any]:
        """Return the mean of (R,) numbers over the queries among each request's rows."""
        starts = self.view.segments.starts
        queries = np.ones(len(found)) if queries is None else queries.astype(float)
        if self.view.ignored is not None:
            queries = queries * ~self.view.ignored[:, 0].numpy(force=True)
        return self.quotients(name, np.add.reduceat(found * queries, starts), np.add.reduceat(queries, starts))


@task("labelled_embeddings")
class Labelled(Neighbours):
    """Each embedding is a query for its neighbours, itself excluded; embeddings with a unique label are no queries."""

    excluded: ClassVar[int] = 1

    @cached_property
    def units(self) -> Tensor:
        """(R, D): the embeddings at length 1."""
        return unit(self.view.tensors["embedding"])

    def walk(self, function: Callable[[Tensor, Tensor], Tensor]) -> Floats:
        """What ``function`` says of each query, (R,), given who is how near and who shares its label, (..., N) each."""
        answers = []
        for units, label in self.groups(self.units, self.view.tensors["label"]):
            index = torch.arange(label.shape[1], device=label.device)
            half = half_squares(units).unsqueeze(1)
            parts = []
            for rows, cosine in row_blocks(units, units):
                is_query = index[rows].unsqueeze(1) == index
                relevant = (label[:, rows].unsqueeze(2) == label.unsqueeze(1)) & ~is_query
                parts.append(function((cosine - half).masked_fill(is_query, -torch.inf), relevant))
            answers.append(torch.cat(parts, 1).flatten())
        return self.in_rows(torch.cat(answers).double().numpy(force=True))

    @cached_property
    def ranks(self) -> Floats:
        """(R,): how many others are nearer than the nearest with the same label."""
        return self.walk(rank_of_nearest)

    @cached_property
    def nearest(self) -> Array:
        """(R,) bool: whether the nearest other has the same label."""
        return self.found("nearest", lambda: self.ranks < 1)

    @cached_property
    def has_positive(self) -> Array:
        """(R,) bool: whether another has the same label."""
        return self.found("has_positive", self._have_positives)

    def _have_positives(self) -> Array:
        labels, dense = torch.unique(self.view.tensors["label"], return_inverse=True)
        of_request = self.view.segments.index * len(labels) + dense
        if self.view.ignored is not None:  # what is masked shares its label with nothing
            of_request = torch.where(
                self.view.ignored[:, 0], -1 - torch.arange(len(dense), device=dense.device), of_request
            )
        _, which, count = torch.unique(of_request, return_inverse=True, return_counts=True)
        have: Array = (count[which] > 1).numpy(force=True)
        return have

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Embeddings, and what they are of."""
        return (
            constant_input("embedding", "Embeddings.", floats("real", "N D")),
            constant_input("label", "What each is an embedding of; any integers.", numbers("integer", "N", "integer")),
        )


@metric("labelled_embeddings", default=True, name="recall@1", reads=None, better="higher", interval=None)
def recall_at_1(task: Labelled) -> Sequence[Any]:
    """The fraction of embeddings whose nearest neighbour has their label; unique labels are left out.

    Nearest by cosine.
    """
    return task.fraction("recall@1", task.nearest, task.has_positive)


@metric("labelled_embeddings", default=True, name="precision@1", reads=None, better="higher", interval=None)
def precision_at_1(task: Labelled) -> Sequence[Any]:
    """The fraction of nearest neighbours by cosine that have the embedding's label; equal to recall@1."""
    return task.fraction("precision@1", task.nearest, task.has_positive)


@metric("labelled_embeddings", name="recall@k", options=("k",), reads=None, better="higher", interval=None)
def recall_at_k(task: Labelled) -> Sequence[Any]:
    """The fraction of embeddings with their label among the ``k`` nearest; unique labels are left out.

    Nearest by cosine.

    References:
        H. Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016, arXiv:1511.06452.
    """
    return task.fraction("recall@k", task.ranks < task.view.options["k"], task.has_positive)


@metric("labelled_embeddings", name="map@r", reads=None, better="higher", interval=None)
def map_at_r(task: Labelled) -> Sequence[Any]:
    """The mean average precision of the R nearest neighbours by cosine, R is the number of others with the label.

    References:
        K. Musgrave, S. Belongie, S.-N. Lim, A Metric Learning Reality Check, 2020, arXiv:2003.08505.
    """

    def average_precision(near: Tensor, relevant: Tensor) -> Tensor:
        found = relevant.gather(-1, near.sort(stable=True, dim=-1, descending=True).indices)
        place = torch.arange(1, found.shape[-1] + 1, device=found.device)
        share = relevant.sum(-1)
        precision = found.cumsum(-1) / place
        within = found & (place <= share.unsqueeze(-1))
        return (precision * within).sum(-1) / share.clamp(min=1)

    return task.fraction("map@r", task.walk(average_precision), task.has_positive)


@task("paired_views")
class Views(Neighbours):
    """Two views of the same things: row i of one view is the counterpart of row i of the other."""

    @cached_property
    def units(self) -> tuple[Tensor, Tensor]:
        """Both views' embeddings at length 1, (R, D) each."""
        return unit(self.view.tensors["first"]), unit(self.view.tensors["second"])

    @cached_property
    def entries(self) -> Entries:
        """The pairs of counterparts, which all count."""
        return Entries(self.view)

    @Mean
    def distance(self) -> Tensor:
        """The squared distance of counterparts, (R, 1)."""
        first, second = self.units
        return row_total((first - second).square(), keepdim=True)

    @cached_property
    def ranks(self) -> tuple[Floats, Floats]:
        """(R,) both ways: how many of the other view are nearer than the counterpart."""
        forth, back = [], []
        for first, second in self.groups(*self.units):
            index = torch.arange(first.shape[1], device=first.device)
            half_first, half_second = half_squares(first), half_squares(second)
            counterpart = without_noise((first * second).sum(-1))
            to_second, to_first = torch.full_like(counterpart, 0), torch.full_like(counterpart, 0)
            for rows, cosine in row_blocks(first, second):
                row, column = index[rows].unsqueeze(1), index
                near, limit = cosine - half_second.unsqueeze(1), (counterpart - half_second)[:, rows].unsqueeze(2)
                nearer = ((near > limit) | ((near == limit) & (column < row))) & (column != row)
                to_second[:, rows] = nearer.sum(2).to(counterpart.dtype)
                near, limit = cosine - half_first[:, rows].unsqueeze(2), (counterpart - half_first).unsqueeze(1)
                nearer = ((near > limit) | ((near == limit) & (row < column))) & (column != row)
                to_first += nearer.sum(1)
            # Nothing is nearer than NaN, which finds nothing.
            forth.append(to_second.masked_fill(counterpart.isnan(), torch.inf).flatten())
            back.append(to_first.masked_fill(counterpart.isnan(), torch.inf).flatten())
        return self.in_rows(torch.cat(forth).numpy(force=True)), self.in_rows(torch.cat(back).numpy(force=True))

    @cached_property
    def nearest_in_second(self) -> Array:
        """(R,) bool: whether the counterpart is the nearest of the second view."""
        return self.found("nearest_in_second", lambda: self.ranks[0] < 1)

    @cached_property
    def nearest_in_first(self) -> Array:
        """(R,) bool: whether the counterpart is the nearest of the first view."""
        return self.found("nearest_in_first", lambda: self.ranks[1] < 1)

    @cached_property
    def uniformities(self) -> Floats:
        """(B,), the mean of both views; where there is a single embedding, anything."""
        return self.found("uniformities", self._uniformities)

    def _uniformities(self) -> Floats:
        of_views = [[_uniformity(group) for (group,) in self.groups(view)] for view in self.units]
        first, second = (torch.cat(parts).numpy(force=True) for parts in of_views)
        mean: Floats = (first + second) / 2
        return mean

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """The embeddings of both views."""
        return (
            constant_input("first", "One view's embeddings.", floats("real", "N D")),
            constant_input("second", "The other view's; row i is the counterpart of row i.", floats("real", "N D")),
        )


@metric("paired_views", default=True, name="first_to_second@1", reads=None, better="higher", interval=None)
def first_to_second_at_1(task: Views) -> Sequence[Any]:
    """The fraction of the first view whose nearest neighbour in the second, by cosine, is the counterpart."""
    return task.fraction("first_to_second@1", task.nearest_in_second)


@metric("paired_views", default=True, name="second_to_first@1", reads=None, better="higher", interval=None)
def second_to_first_at_1(task: Views) -> Sequence[Any]:
    """The fraction of the second view whose nearest neighbour in the first, by cosine, is the counterpart."""
    return task.fraction("second_to_first@1", task.nearest_in_first)


@metric("paired_views", default=True, reads=("distance",), better="lower", interval="positive")
def alignment(task: Views) -> Sequence[Any]:
    """The mean squared distance of counterparts as unit vectors: 0 for equal views, at most 4.

    References:
        T. Wang, P. Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
            Hypersphere, 2020, arXiv:2005.10242.
    """
    return task.quotients("alignment", *task.distance)


@metric("paired_views", default=True, reads=None, better="lower", interval=None)
def uniformity(task: Views) -> Sequence[Any]:
    """The logarithm of the mean of exp(-2 d²) over all pairs of a view, as unit vectors; the mean of both views.

    0 where all are the same, the less the more evenly they are spread. Undefined for a single embedding.

    References:
        T. Wang, P. Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
            Hypersphere, 2020, arXiv:2005.10242.
    """
    return task.numbers("uniformity", task.uniformities, np.array(task.compared_rows) < 2)


def _uniformity(units: Tensor) -> Tensor:
    """(b, N, D) to (b,)."""
    half = half_squares(units)
    potentials = torch.zeros(len(units), dtype=torch.float64, device=units.device)
    for rows, cosine in row_blocks(units, units):
        squared = 2 * (half[:, rows].unsqueeze(2) + half.unsqueeze(1) - cosine)
        potentials += (-2 * squared.clamp(min=0)).exp().sum((1, 2))
    n = units.shape[1]
    # Each pair twice, and each embedding with itself, at distance 0.
    return torch.log((potentials - n) / max(n * (n - 1), 1))


@metric("paired_views", name="first_to_second@k", options=("k",), reads=None, better="higher", interval=None)
def first_to_second_at_k(task: Views) -> Sequence[Any]:
    """The fraction of the first view whose counterpart is among the ``k`` nearest of the second, by cosine."""
    return task.fraction("first_to_second@k", task.ranks[0] < task.view.options["k"])


@metric("paired_views", name="second_to_first@k", options=("k",), reads=None, better="higher", interval=None)
def second_to_first_at_k(task: Views) -> Sequence[Any]:
    """The fraction of the second view whose counterpart is among the ``k`` nearest of the first, by cosine."""
    return task.fraction("second_to_first@k", task.ranks[1] < task.view.options["k"])
