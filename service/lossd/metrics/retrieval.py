"""Embeddings as neighbours of each other: of those with the same label, or of their counterpart in another view.

Neighbours are by Euclidean distance of unit vectors, the nearest the most similar by cosine. What differs by
rounding alone counts as a tie, and of ties the lower index is nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd.losses.registry import Input
from lossd.metrics.distances import unit, without_noise
from lossd.metrics.registry import Array, Floats, Task, metric, task
from lossd.metrics.signature import floats, given, numbers

__all__ = ["Labelled", "Views"]

# Numbers held at a time.
BLOCK = 1 << 20


def nearness(queries: Tensor, gallery: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """How near some queries are to all of the gallery, (q, N), a block of rows at a time.

    Half of what the squared distance is short of the query's own squared length: for unit vectors the cosine less 1/2.
    """
    step = max(1, BLOCK // len(gallery))
    half = gallery.square().sum(1) / 2
    for first in range(0, len(queries), step):
        rows = slice(first, min(first + step, len(queries)))
        yield rows, without_noise(queries[rows] @ gallery.T - half)


def rank_of_nearest(near: Tensor, wanted: Tensor) -> Tensor:
    """How many are nearer than the nearest that is wanted: (q, N) to (q,); without any, N."""
    column = torch.arange(near.shape[1], device=near.device)
    best = near.masked_fill(~wanted, -torch.inf).amax(1, keepdim=True)
    index = torch.where(wanted & (near == best), column, len(column)).amin(1, keepdim=True)
    nearer = (near > best) | ((near == best) & (column < index))
    return torch.where(index[:, 0] < len(column), nearer.sum(1), len(column))


class Neighbours(Task):
    """Requests of N embeddings each, taken one after the other."""

    def each(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The tensors of one request after the other."""
        return zip(*(self.view.segments.split(tensor) for tensor in tensors), strict=True)

    def fraction(self, name: str, found: Array, asked: Array | None = None) -> list[Any]:
        """The mean of (R,) numbers over each request's rows, those that are asked."""
        starts = self.view.segments.starts
        asked = np.ones(len(found)) if asked is None else asked.astype(float)
        return self.quotients(name, np.add.reduceat(found * asked, starts), np.add.reduceat(asked, starts))


@task("labelled_embeddings")
class Labelled(Neighbours):
    """Each embedding asks for its neighbours, itself left out; those whose label no other has ask for nothing."""

    @cached_property
    def units(self) -> Tensor:
        """(R, D): the embeddings at length 1."""
        return unit(self.view.tensors["embedding"])

    def walk(self, function: Callable[[Tensor, Tensor], Tensor]) -> Floats:
        """What ``function`` says of blocks of queries, (R,): of who is how near and who shares the label, (q, N) each."""
        answers = []
        for units, label in self.each(self.units, self.view.tensors["label"]):
            index = torch.arange(len(label), device=label.device)
            for rows, near in nearness(units, units):
                own = index[rows].unsqueeze(1) == index
                wanted = (label[rows].unsqueeze(1) == label) & ~own
                answers.append(function(near.masked_fill(own, -torch.inf), wanted).double())
        return torch.cat(answers).numpy(force=True)

    @cached_property
    def ranks(self) -> Floats:
        """(R,): how many others are nearer than the nearest with the same label."""
        return self.walk(rank_of_nearest)

    @cached_property
    def asked(self) -> Array:
        """(R,) bool: whether another has the same label."""
        shared = []
        for (label,) in self.each(self.view.tensors["label"]):
            _, which, count = torch.unique(label, return_inverse=True, return_counts=True)
            shared.append(count[which] > 1)
        return torch.cat(shared).numpy(force=True)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Embeddings, and what they are of."""
        return (
            given("embedding", "Embeddings.", floats("real", "N D")),
            given("label", "What each is an embedding of; any integers.", numbers("integer", "N", "integer")),
        )


@metric("labelled_embeddings", default=True, name="recall@1")
def recall_at_1(task: Labelled) -> Sequence[Any]:
    """The fraction of embeddings whose nearest neighbour has their label, of those whose label another has."""
    return task.fraction("recall@1", task.ranks < 1, task.asked)


@metric("labelled_embeddings", default=True, name="precision@1")
def precision_at_1(task: Labelled) -> Sequence[Any]:
    """The fraction of nearest neighbours that have the label of whoever asks: with one neighbour each, recall@1."""
    return task.fraction("precision@1", task.ranks < 1, task.asked)


@metric("labelled_embeddings", name="recall@k", options=("k",))
def recall_at_k(task: Labelled) -> Sequence[Any]:
    """The fraction of embeddings with their label among the ``k`` nearest neighbours, of those whose label another has.

    References:
        H. Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016, arXiv:1511.06452.
    """
    return task.fraction("recall@k", task.ranks < task.view.options["k"], task.asked)


@metric("labelled_embeddings", name="map@r")
def map_at_r(task: Labelled) -> Sequence[Any]:
    """The mean average precision of the R nearest neighbours, R being how many others have the label.

    References:
        K. Musgrave, S. Belongie, S.-N. Lim, A Metric Learning Reality Check, 2020, arXiv:2003.08505.
    """

    def average_precision(near: Tensor, wanted: Tensor) -> Tensor:
        found = wanted.gather(1, near.sort(stable=True, dim=1, descending=True).indices)
        place = torch.arange(1, found.shape[1] + 1, device=found.device)
        share = wanted.sum(1)
        precision = found.cumsum(1) / place
        within = found & (place <= share.unsqueeze(1))
        return (precision * within).sum(1) / share.clamp(min=1)

    return task.fraction("map@r", task.walk(average_precision), task.asked)


@task("paired_views")
class Views(Neighbours):
    """Two views of the same things: row i of the one is the counterpart of row i of the other."""

    @cached_property
    def units(self) -> tuple[Tensor, Tensor]:
        """Both views' embeddings at length 1, (R, D) each."""
        return unit(self.view.tensors["first"]), unit(self.view.tensors["second"])

    @cached_property
    def forward_ranks(self) -> Floats:
        """(R,): how many of the second view are nearer to one of the first than its counterpart."""
        return self._ranks(*self.units)

    @cached_property
    def backward_ranks(self) -> Floats:
        """(R,): how many of the first view are nearer to one of the second than its counterpart."""
        return self._ranks(*reversed(self.units))

    def _ranks(self, queries: Tensor, gallery: Tensor) -> Floats:
        ranks = []
        for of_queries, of_gallery in self.each(queries, gallery):
            index = torch.arange(len(of_queries), device=queries.device)
            for rows, near in nearness(of_queries, of_gallery):
                ranks.append(rank_of_nearest(near, index[rows].unsqueeze(1) == index))
        return torch.cat(ranks).double().numpy(force=True)

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """The embeddings of both views."""
        return (
            given("first", "One view's embeddings.", floats("real", "N D")),
            given("second", "The other view's; row i is the counterpart of row i.", floats("real", "N D")),
        )


@metric("paired_views", default=True, name="first_to_second@1")
def first_to_second_at_1(task: Views) -> Sequence[Any]:
    """The fraction of the first view whose nearest neighbour in the second is their counterpart."""
    return task.fraction("first_to_second@1", task.forward_ranks < 1)


@metric("paired_views", default=True, name="second_to_first@1")
def second_to_first_at_1(task: Views) -> Sequence[Any]:
    """The fraction of the second view whose nearest neighbour in the first is their counterpart."""
    return task.fraction("second_to_first@1", task.backward_ranks < 1)


@metric("paired_views", default=True)
def alignment(task: Views) -> Sequence[Any]:
    """The mean squared distance of counterparts, as unit vectors: 0 where the views agree, at most 4.

    References:
        T. Wang, P. Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
            Hypersphere, 2020, arXiv:2005.10242.
    """
    first, second = task.units
    return task.fraction("alignment", (first - second).square().sum(1).numpy(force=True))


@metric("paired_views", default=True)
def uniformity(task: Views) -> Sequence[Any]:
    """The logarithm of the mean of exp(-2 d²) over all pairs of a view, as unit vectors; the mean of both views.

    0 where all are the same, the less the more evenly they are spread. Undefined for a single embedding.

    References:
        T. Wang, P. Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
            Hypersphere, 2020, arXiv:2005.10242.
    """
    both = np.array([[_uniformity(view) for view in views] for views in task.each(*task.units)])
    return task.numbers("uniformity", both.mean(1), np.array(task.view.segments.rows) < 2)


def _uniformity(units: Tensor) -> float:
    if len(units) < 2:
        return 0.0
    lengths = units.square().sum(1)
    potentials = 0.0
    for rows, near in nearness(units, units):
        squared = (lengths[rows].unsqueeze(1) - 2 * near).clamp(min=0)
        potentials += float((-2 * squared).exp().sum())
    others = len(units) - 1
    return float(np.log((potentials - len(units)) / (len(units) * others)))


@metric("paired_views", name="first_to_second@k", options=("k",))
def first_to_second_at_k(task: Views) -> Sequence[Any]:
    """The fraction of the first view with their counterpart among the ``k`` nearest of the second."""
    return task.fraction("first_to_second@k", task.forward_ranks < task.view.options["k"])


@metric("paired_views", name="second_to_first@k", options=("k",))
def second_to_first_at_k(task: Views) -> Sequence[Any]:
    """The fraction of the second view with their counterpart among the ``k`` nearest of the first."""
    return task.fraction("second_to_first@k", task.backward_ranks < task.view.options["k"])
