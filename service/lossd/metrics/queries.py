"""Queries: lists of scored documents, of which the relevant should come first. Each query is a row.

Documents of equal scores have no order. With the option ``ties`` "averaged" a metric is its mean over all orders of
them, by the formulas of McSherry and Najork; with "stable" the lower index is first.

References:
    F. McSherry, M. Najork, Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
        Scores, ECIR 2008, doi:10.1007/978-3-540-78646-7_38.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.queries import by_score, discounts, gains
from lossd.losses.registry import Input
from lossd.metrics.entries import Entries, for_kernels
from lossd.metrics.parts import RowMean, Sums
from lossd.metrics.registry import Array, Floats, Task, metric, spell, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats, numbers
from lossd_client.errors import InvalidRequest

__all__ = ["Queries"]

MOST_TIED = 1 << 24
"""The most pairs of documents with equal scores that ``err`` goes through."""


class QueryRanking(NamedTuple):
    """The documents of each query by their scores, (R, L) each; those that do not count come last.

    Attributes:
        target: The relevance of the document at each place, 0 where none counts.
        group: The index of each place's group, within which scores are equal.
        within: The index of each place within its group.
        size: The documents of each place's group.
    """

    target: Tensor
    group: Tensor
    within: Tensor
    size: Tensor

    def in_group(self, values: Tensor) -> Tensor:
        """Return the sum of the values of each place's group."""
        return torch.zeros_like(values).scatter_add_(1, self.group, values).gather(1, self.group)

    def mean(self, values: Tensor) -> Tensor:
        """Return the expectation of the value at each place."""
        return self.in_group(values) / self.size


MEASURED = ("ndcg", "average_precision", "reciprocal_rank", "hits", "share_found")
"""The parts that a kernel measures, in its order."""

Values = tuple[Floats, Array]
"""Values of queries, and which are defined: (R, 1) each."""


@task("queries")
class Queries(Task):
    """Queries with a relevant document; the others have no metrics, and are counted.

    With ``zero_division`` 0 or 1, those without a relevant document have that value in the means. A query of which no
    document counts is none.
    """

    options: ClassVar[tuple[str, ...]] = ("zero_division", "ties")
    sorts_once: ClassVar[bool] = True

    @cached_property
    def entries(self) -> Entries:
        """The queries that count."""
        return Entries(self.view)

    @cached_property
    def kept(self) -> Tensor | None:
        """Which documents count, (R, L) bool; None for all."""
        ignored = self.view.ignored
        return None if ignored is None else ~ignored.expand_as(self.view.tensors["prediction"])

    @cached_property
    def target(self) -> Tensor:
        """The relevance of each document, (R, L) float64; 0 where it does not count."""
        target = self.view.tensors["target"].double()
        return target if self.kept is None else target.masked_fill(~self.kept, 0)

    def by_kernel(self, name: str) -> Any:
        """Return the means of a measure, and whether there are any; or how many queries are empty."""
        if name not in (*MEASURED, "empty") or self.measured is None:
            return None
        means, some, empty = self.measured
        if name == "empty":
            return empty
        column = MEASURED.index(name)
        return means[:, column : column + 1], some[:, column : column + 1]

    @cached_property
    def measured(self) -> tuple[Floats, Array, Array] | None:
        """The means of ``MEASURED``, whether there are any, and how many queries are empty; None without a kernel."""
        view, measure = self.view, self.view.kernels.get("queries")
        if measure is None or (found := for_kernels(view, view.tensors["prediction"])) is None:
            return None
        starts, (scores,), words = found
        target, options = self.target.contiguous(), view.options
        discount = discounts(target.shape[1], target).numpy()
        values, relevant = np.empty((len(target), len(MEASURED))), np.empty(len(target), np.int64)
        measure(
            scores, words, target.numpy(), self.k, discount, options["gain"] == "exponential",
            options["ties"] == "stable", values, relevant,
        )  # fmt: skip
        defined = relevant[:, None] > 0
        empty = np.add.reduceat((~defined).astype(np.int64), starts[:-1])
        if self.zero_division is not None:
            values, defined = np.where(defined, values, self.zero_division), np.ones_like(defined)
        return *self.entries.row_means(values, defined), empty

    @cached_property
    def ranking(self) -> QueryRanking:
        """The documents by their scores."""
        scores = self.view.tensors["prediction"]
        order = by_score(scores, self.kept)
        target = self.target.gather(1, order)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        if self.view.options["ties"] == "stable":
            return QueryRanking(target, place, torch.zeros_like(place), torch.ones_like(target))
        ordered = scores.gather(1, order)
        begins = torch.ones_like(order, dtype=torch.bool)
        begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        if self.kept is not None:  # what does not count has no group
            begins |= ~self.kept.gather(1, order)
        group = begins.cumsum(1) - 1
        size = torch.zeros_like(target).scatter_add_(1, group, torch.ones_like(target)).gather(1, group)
        return QueryRanking(target, group, place - torch.where(begins, place, 0).cummax(1).values, size)

    @cached_property
    def relevant(self) -> Tensor:
        """The number of relevant documents, (R, 1) float64."""
        return (self.target > 0).sum(1, keepdim=True).double()

    @cached_property
    def in_group(self) -> Tensor:
        """The number of relevant documents in each place's group, (R, L) float64."""
        return self.ranking.in_group((self.ranking.target > 0).double())

    @cached_property
    def found(self) -> Tensor:
        """The probability that the document at each place is relevant, (R, L)."""
        return self.in_group / self.ranking.size

    @cached_property
    def first(self) -> Tensor:
        """The probability that the first relevant document is at each place, (R, L)."""
        left = self.ranking.size - self.ranking.within
        # Of the documents of the group that are left, if none before is relevant.
        none_yet = ((left - self.in_group).clamp(min=0) / left).cumprod(1)
        return _shifted(none_yet) * (self.in_group / left).clamp(max=1)

    @property
    def k(self) -> int:
        """How many places count in metrics named @k."""
        k: int = self.view.options["k"]
        return k

    def ranks(self, values: Tensor) -> Tensor:
        """Return the rank of each place, from 1, (L,) float64."""
        return torch.arange(1.0, values.shape[1] + 1, dtype=torch.float64, device=values.device)

    def of_queries(self, values: Tensor) -> Values:
        """Return the values of queries, (R, 1), as a part: with a NaN among its scores, a query's value is NaN."""
        scores = self.view.tensors["prediction"]
        unordered = scores.isnan() if self.kept is None else scores.isnan() & self.kept
        values = values.masked_fill(unordered.any(1, keepdim=True), torch.nan)
        relevant = self.relevant > 0
        if self.zero_division is None:
            return values.numpy(force=True), relevant.numpy(force=True)
        values = torch.where(relevant, values, self.zero_division)
        some = torch.ones_like(relevant) if self.kept is None else self.kept.any(1, keepdim=True)
        return values.numpy(force=True), some.numpy(force=True)

    @RowMean
    def ndcg(self) -> Values:
        """NDCG of each query."""
        form: str = self.view.options["gain"]
        discount = discounts(self.target.shape[1], self.target)[: self.k]
        sent = gains(self.target, form)
        ideal = sent.sort(1, descending=True).values[:, : self.k]
        # The gain of a document does not depend on its place.
        order = self.ranking.mean(gains(self.ranking.target, form))[:, : self.k]
        best = row_total(ideal * discount, keepdim=True)
        return self.of_queries((row_total(order * discount, keepdim=True) / best).clamp(max=1))

    @RowMean
    def average_precision(self) -> Values:
        """Average precision of each query."""
        ranking, relevant = self.ranking, self.in_group
        up_to = (ranking.target > 0).double().cumsum(1)
        # Relevant documents before the group: those up to its last place, less its own.
        before = ranking.in_group(torch.where(ranking.within == ranking.size - 1, up_to, 0)) - relevant
        # A relevant document at this place, those before the group, and its share of the group's others.
        hits = 1 + before + ranking.within * (relevant - 1) / (ranking.size - 1).clamp(min=1)
        precision = self.found * hits / self.ranks(hits)
        most = self.relevant.clamp(max=self.k)
        return self.of_queries(row_total(precision[:, : self.k].contiguous(), keepdim=True) / most)

    @RowMean
    def reciprocal_rank(self) -> Values:
        """The reciprocal rank of the first relevant document of each query."""
        return self.of_queries(row_total(self.first / self.ranks(self.first), keepdim=True))

    @RowMean
    def hits(self) -> Values:
        """Whether a relevant document is among the first k of each query."""
        return self.of_queries(row_total(self.first[:, : self.k].contiguous(), keepdim=True).clamp(max=1))

    @RowMean
    def share_found(self) -> Values:
        """The share of the relevant documents that are among the first k of each query."""
        among = row_total(self.found[:, : self.k].contiguous(), keepdim=True)
        return self.of_queries((among / self.relevant).clamp(max=1))

    @RowMean
    def expected_reciprocal_rank(self) -> Values:
        """The expected reciprocal rank at which a user of each query stops."""
        ranking = self.ranking
        goes_on = 1 - gains(ranking.target, "exponential")
        several = (ranking.size > 1) & (self.in_group > 0)
        passed = goes_on.masked_fill(several, 1).cumprod(1)
        if bool(several.any()):
            passed = passed * _passed_together(ranking, goes_on, several)
        return self.of_queries(row_total((_shifted(passed) - passed) / self.ranks(passed), keepdim=True))

    @Sums
    def empty(self) -> Tensor:
        """Whether a query has no relevant document, (R, 1)."""
        empty = self.relevant == 0
        return (empty if self.kept is None else empty & self.kept.any(1, keepdim=True)).long()

    def means(self, name: str, part: Values) -> list[Any]:
        """Return the means over queries, given a part of them."""
        values, some = part
        return self.numbers(name, values[:, 0], ~some[:, 0])

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: the scores and the relevance of each query's documents."""
        return (
            constant_input("prediction", "Scores of documents; the higher, the earlier in the list.",
                           floats("real", "N L")),
            constant_input("target", "Relevance of documents, >= 0, such as grades; 0 is not relevant.",
                           numbers("nonnegative", "N L")),
            SAMPLE_WEIGHT,
            constant_input("mask", "1 for each document that counts and 0 for the others, which may be NaN.",
                           numbers("kept", "N L", "integer"), optional=True),
            constant_input("lengths", "How many documents of each query count, from the first; in place of a mask.",
                           numbers("length", "N", "integer"), optional=True),
        )  # fmt: skip


def _passed_together(ranking: QueryRanking, goes_on: Tensor, several: Tensor) -> Tensor:
    """Return the probability that a user has passed the documents of groups of several, up to each place.

    Within a group it is the mean over the orders of its documents: after j of m, the mean product of j of their
    probabilities. Such means follow from those of one document less.

    Args:
        ranking: The documents by their scores.
        goes_on: The probability to pass each document, (R, L).
        several: Which places belong to a group of several, (R, L) bool.

    Raises:
        InvalidRequest: There are too many equal scores.
    """
    begins = several & (ranking.within == 0)
    row, first = begins.nonzero(as_tuple=True)
    size = ranking.size[begins].long()
    size, order = size.sort(descending=True, stable=True)
    row, first = row[order], first[order]
    pairs = int((size * size).sum())
    if pairs > MOST_TIED:
        raise InvalidRequest(
            f"err is the mean over all orders of equal scores, and these are {int(size[0])} of a query, with {pairs} "
            f'pairs in all; at most {MOST_TIED} are gone through. Set metrics.ties to "stable"'
        )
    most = int(size[0])
    means = goes_on.new_zeros(len(size), most + 1)  # [group, j]: the mean product of j of the documents so far
    means[:, 0] = 1
    sizes = size.tolist()
    live = len(sizes)
    for so_far in range(most):
        while sizes[live - 1] <= so_far:
            live -= 1
        x = goes_on[row[:live], first[:live] + so_far].unsqueeze(1)
        j = torch.arange(1, so_far + 2, dtype=means.dtype, device=means.device)
        known = means[:live, : so_far + 2]
        means[:live, 1 : so_far + 2] = ((so_far + 1 - j) * known[:, 1:] + j * x * known[:, :-1]) / (so_far + 1)
    passed = torch.ones_like(goes_on)
    offsets = torch.arange(most, device=size.device)
    inside = offsets < size.unsqueeze(1)
    places = (first.unsqueeze(1) + offsets)[inside]
    rows = row.unsqueeze(1).expand(inside.shape)[inside]
    passed[rows, places] = means[:, 1:][inside]
    # Groups come one after the other: beyond a group, its last number stays.
    whole = torch.ones_like(goes_on)
    ends = several & (ranking.within == ranking.size - 1)
    whole[ends] = passed[ends]
    return _shifted(whole.cumprod(1)) * passed


def _shifted(probability: Tensor) -> Tensor:
    """Return the probability at the place before each, 1 before the first."""
    return torch.cat([torch.ones_like(probability[:, :1]), probability[:, :-1]], 1)


@metric(
    "queries", default=True, name="ndcg@k", options=("k", "gain"), sorts=True, reads=("ndcg",), better="higher",
    interval="unit",
)  # fmt: skip
def ndcg_at_k(task: Queries) -> Sequence[Any]:
    """The discounted gain of the first ``k`` documents over that of the best order, the mean over queries.

    The option ``gain`` is "linear", the target y itself, or "exponential", 2^y − 1; a document at rank r counts
    1/log2(1 + r) times. Equals sklearn.metrics.ndcg_score by default, but for queries without a relevant document,
    which count 0 there. XGBoost, LightGBM and TF-Ranking have exponential gains, and stable ties.

    References:
        K. Järvelin, J. Kekäläinen, Cumulated Gain-based Evaluation of IR Techniques, 2002, doi:10.1145/582415.582418.
    """
    return task.means("ndcg@k", task.ndcg)


@metric(
    "queries", default=True, name="map@k", options=("k",), sorts=True, reads=("average_precision",), better="higher",
    interval="unit",
)  # fmt: skip
def map_at_k(task: Queries) -> Sequence[Any]:
    """The mean average precision of the first ``k`` documents: precision at the ranks of the relevant ones.

    Their sum is divided by the number of relevant documents, or by ``k`` if that is less, so that 1 is the best
    possible. A document is relevant if its target is above 0.
    """
    return task.means("map@k", task.average_precision)


@metric("queries", default=True, sorts=True, reads=("reciprocal_rank",), better="higher", interval="unit")
def mrr(task: Queries) -> Sequence[Any]:
    """The mean reciprocal rank of the first relevant document (target above 0) in the whole list."""
    return task.means("mrr", task.reciprocal_rank)


@metric(
    "queries", default=True, name="hit_rate@k", options=("k",), sorts=True, reads=("hits",), better="higher",
    interval="unit",
)  # fmt: skip
def hit_rate_at_k(task: Queries) -> Sequence[Any]:
    """The fraction of queries with a relevant document among the first ``k``."""
    return task.means("hit_rate@k", task.hits)


@metric(
    "queries", default=True, name="recall@k", options=("k",), sorts=True, reads=("share_found",), better="higher",
    interval="unit",
)  # fmt: skip
def recall_at_k_of_queries(task: Queries) -> Sequence[Any]:
    """The fraction of a query's relevant documents that are among the first ``k``, the mean over queries."""
    return task.means("recall@k", task.share_found)


@metric("queries", sorts=True, reads=("expected_reciprocal_rank",), better="higher", interval="unit")
def err(task: Queries) -> Sequence[Any]:
    """The expected reciprocal rank at which a user stops; (2^y − 1)/2^highest is the probability to stop.

    The highest target is the query's own.

    References:
        O. Chapelle et al., Expected Reciprocal Rank for Graded Relevance, CIKM 2009, doi:10.1145/1645953.1646033.
    """
    return task.means("err", task.expected_reciprocal_rank)


@metric("queries", default=True, reads=("empty",), interval=None)
def empty_queries(task: Queries) -> Sequence[Any]:
    """The number (or weight) of queries without a relevant document; means leave them out."""
    counts = task.empty[:, 0]
    if task.view.exponent is not None:
        return spell(np.ldexp(counts, task.view.exponent))
    return spell(counts if task.view.sample_weight is None else task.entries.counts(counts))
