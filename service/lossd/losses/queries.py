"""Losses of queries: lists of scored documents, of which the more relevant should come first. A query is a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

import lossd.losses.softmax as softmax
from lossd.cost import Cost, PairCost
from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.elementary import row_total, sigmoid
from lossd.losses.registry import Unreduced, loss
from lossd.losses.types import Kept, NonNegative, NonNegativeTensor, Positive, Real

__all__ = ["approx_ndcg", "by_score", "discounts", "gains", "lambda_loss", "list_mle", "list_net", "ranknet"]

Gain = Literal["exponential", "linear"]
Scheme = Literal["lambdarank", "ndcg1", "ndcg2", "ndcg2pp"]
Cutoff = Annotated[int, Ge(1)]


def _documents(shapes: Mapping[str, tuple[int, ...]]) -> int:
    queries, documents = shapes["prediction"]
    return queries * documents**2


# Measured in float64, on one core: bytes with a product of the Hessian and a direction, times with the gradient.
COMPARED = PairCost(_documents, 88, 130)
WEIGHED = PairCost(_documents, 97, 200)
APPROXIMATED = PairCost(_documents, 79, 100)
STEP_BYTES, STEP_NS = 73, 75


def gains(target: Tensor, form: str) -> Tensor:
    """Return the gain of each document over a number that is at least half the query's largest gain: (N, L) float64.

    A ratio of gains is the same, and no gain overflows.

    Args:
        target: Relevance, (N, L), >= 0; 0 where no document is.
        form: "exponential", 2^y − 1, or "linear", y.
    """
    y = target.double()
    highest = y.amax(1, keepdim=True)
    if form == "linear":
        return y / highest.masked_fill(highest == 0, 1)
    # Not the difference of two powers, which cancels for a small y.
    return torch.exp((y - highest) * math.log(2)) * -torch.expm1(y * -math.log(2))


def discounts(count: int, like: Tensor) -> Tensor:
    """Return 1/log2(1 + r) of the ranks r from 1 to ``count``, float64 on the device of a tensor."""
    return torch.from_numpy(1 / np.log2(np.arange(2.0, count + 2))).to(like.device)


def by_score(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the documents of each query, the highest score first, the lower index of a tie first: (N, L) int64.

    Documents that do not count come last.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    if mask is None:
        return order
    return order.gather(1, (~mask).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))


def _better(target: Tensor, mask: Tensor | None) -> Tensor:
    """Return whether document i is more relevant than j: (N, L, L) bool, [query, i, j]."""
    better = target.unsqueeze(2) > target.unsqueeze(1)
    return better if mask is None else better & mask.unsqueeze(2) & mask.unsqueeze(1)


def _ahead(prediction: Tensor, pairs: Tensor, sigma: float | Tensor) -> Tensor:
    """Return σ(s_i − s_j) of each pair, and 0 for every other two documents."""
    difference = prediction.unsqueeze(2) - prediction.unsqueeze(1)
    return _of_query(sigma) * torch.where(pairs, difference, torch.zeros_like(difference))


def _of_query(number: float | Tensor) -> float | Tensor:
    """Return a parameter that broadcasts against pairs; requests of a batch have one number for each query."""
    return number.reshape(-1, 1, 1) if isinstance(number, Tensor) else number


def _total(pairs: Tensor) -> Tensor:
    """Return the sum over the pairs of each query: (N, L, L) to (N,) float64."""
    return row_total(pairs.flatten(1), dtype=torch.float64)


def _curvature(ahead: Tensor, weight: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the second derivative of the weighted pairs by each score: (N, L)."""
    second = _of_query(sigma) ** 2 * weight * sigmoid(ahead) * sigmoid(-ahead)
    return second.sum(2) + second.sum(1)


@loss(task="queries", kind="rows", pairs=COMPARED)
def ranknet(
    prediction: Real[Tensor, "N L"],
    target: NonNegativeTensor[Tensor, "N L"],
    mask: Kept[Tensor, "N L"] | None = None,
    *,
    sigma: Positive = 1.0,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Logistic loss of each pair of documents of a query, of which one is more relevant.

    .. math:: \frac{1}{|P|} \sum_{(i,j) \in P} \log\left(1 + e^{-\sigma(s_i - s_j)}\right), \quad
        P = \{(i,j) : y_i > y_j\}

    Args:
        prediction: The score s of each document of each query; the higher, the earlier in the list.
        target: Relevance y, >= 0, such as grades 0 to 4. Only its order counts.
        mask: Which documents count.
        sigma: The factor σ of the differences.

    Returns:
        One value per query, >= 0, unreduced: the mean over its pairs. A query without a pair counts neither in the
        numerator nor in the denominator, with the warning ``no_positives``.

    Gradient:
        With respect to ``prediction``: −σ/(1 + e^{σ(s_i − s_j)}) over the number of pairs, for each document that a
        document i should precede the opposite.

    References:
        C. Burges et al., Learning to Rank using Gradient Descent, ICML 2005, doi:10.1145/1102351.1102363.
        allRank has the mean over the pairs of all queries together, TF-Ranking's PairwiseLogisticLoss their sum.
    """
    better = _better(target, mask)
    lost = -functional.logsigmoid(_ahead(prediction, better, sigma))
    count = better.flatten(1).sum(1)
    value = _total(lost.masked_fill(~better, 0)) / count.clamp(min=1)
    return Unreduced(value, (count > 0).to(value.dtype), flags={"no_positives": count == 0})


@ranknet.hessian_form("exact")
def _ranknet_hessian(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, sigma: float | Tensor
) -> Tensor:
    better = _better(target, mask)
    second = _curvature(_ahead(prediction, better, sigma), better.to(prediction.dtype), sigma)
    return second / better.flatten(1).sum(1, keepdim=True).clamp(min=1)


@ranknet.hessian_form("xgboost")
def _ranknet_hessian_xgboost(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, sigma: float | Tensor
) -> Tensor:
    return 2 * _ranknet_hessian(prediction, target, mask, sigma=sigma)


@loss(task="queries", kind="rows", pairs=WEIGHED)
def lambda_loss(
    prediction: Real[Tensor, "N L"],
    target: NonNegativeTensor[Tensor, "N L"],
    mask: Kept[Tensor, "N L"] | None = None,
    *,
    scheme: Scheme = "lambdarank",
    k: Cutoff | None = None,
    sigma: Positive = 1.0,
    mu: NonNegative = 10.0,
    gain: Gain = "exponential",
) -> Real[Tensor, "N"] | Unreduced:
    r"""RankNet's pairs, each weighted by how much NDCG changes if its two documents change places.

    .. math:: \sum_{y_i > y_j} |\Delta\text{NDCG}_{ij}| \log\left(1 + e^{-\sigma(s_i - s_j)}\right)

    Args:
        prediction: The score s of each document of each query; the higher, the earlier in the list.
        target: Relevance y, >= 0, such as grades 0 to 4.
        mask: Which documents count.
        scheme: The weight of a pair, with the gains G over the ideal DCG, the ranks r by score, and D(r) = 1/log2(1+r).
            "lambdarank" is the difference of the two gains times that of D at the two ranks; "ndcg2" has D(d) − D(d+1)
            in place of the latter, with the distance d of the ranks; "ndcg2pp" is "lambdarank" plus ``mu`` times
            "ndcg2". "ndcg1" is G_i D(r_i) for each pair of documents, whatever their relevance, and of a document with
            itself.
        k: Only pairs of which both documents are among the k highest scores count, and the ideal DCG is that of the
            k best; null for all.
        sigma: The factor σ of the differences.
        mu: The weight of "ndcg2" in "ndcg2pp".
        gain: "exponential", 2^y − 1, or "linear", y.

    Returns:
        One value per query, >= 0, unreduced: the sum over its pairs. A query without a pair, or without a relevant
        document, counts neither in the numerator nor in the denominator, with the warning ``no_positives``.

    Gradient:
        With respect to ``prediction``; ranks and weights are constants. Of equal scores, the lower index has the better
        rank.

    References:
        C. Burges, R. Ragno, Q. Le, Learning to Rank with Nonsmooth Cost Functions (LambdaRank), 2006.
        X. Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018,
            doi:10.1145/3269206.3271784.
        allRank has the logarithm to base 2 by default, which is 1/ln 2 times this, and adds up the queries.
    """
    pairs, weight, some = _weighed(prediction, target, mask, scheme, k, mu, gain)
    lost = -functional.logsigmoid(_ahead(prediction, pairs, sigma))
    value = _total((weight * lost).masked_fill(~pairs, 0))
    return Unreduced(value, some.to(value.dtype), flags={"no_positives": ~some})


def _weighed(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    scheme: str,
    k: int | None,
    mu: float | Tensor,
    gain: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which pairs count and their weights, (N, L, L) each, and which queries have any, (N,)."""
    scores, count = prediction.detach(), prediction.shape[1]
    order = by_score(scores, mask)
    place = torch.arange(count, device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)  # from 0
    discount = discounts(count + 1, scores)
    share = gains(target if mask is None else target.masked_fill(~mask, 0), gain)
    ideal = row_total(share.sort(1, descending=True).values[:, :k] * discount[:count][:k])
    share = share / ideal.masked_fill(ideal == 0, 1).unsqueeze(1)
    at = discount[rank]
    if scheme == "ndcg1":
        pairs = _among(torch.ones_like(scores, dtype=torch.bool) if mask is None else mask)
        some = ideal > 0
        weight = (share * at).unsqueeze(2).expand(pairs.shape)
    else:
        pairs = _better(target, mask)
        some = pairs.flatten(1).any(1)
        by_rank = (at.unsqueeze(2) - at.unsqueeze(1)).abs()
        if scheme != "lambdarank":
            distance = (rank.unsqueeze(2) - rank.unsqueeze(1)).abs()
            step = torch.cat([discount.new_zeros(1), discount[:-1] - discount[1:]])[distance]
            by_rank = step if scheme == "ndcg2" else _of_query(mu) * step + by_rank
        weight = (share.unsqueeze(2) - share.unsqueeze(1)).abs() * by_rank
    if k is not None:
        pairs = pairs & _among(rank < k)
    return pairs, weight.to(prediction.dtype), some


def _among(documents: Tensor) -> Tensor:
    """Return the pairs whose two documents count: (N, L) to (N, L, L)."""
    return documents.unsqueeze(2) & documents.unsqueeze(1)


@lambda_loss.hessian_form("exact")
def _lambda_hessian(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    scheme: str,
    k: int | None,
    sigma: float | Tensor,
    mu: float | Tensor,
    gain: str,
) -> Tensor:
    pairs, weight, _ = _weighed(prediction, target, mask, scheme, k, mu, gain)
    apart = ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)  # a document is never ahead of itself
    return _curvature(_ahead(prediction, pairs, sigma), (weight * apart).masked_fill(~pairs, 0), sigma)


@lambda_loss.hessian_form("xgboost")
def _lambda_hessian_xgboost(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, **parameters: Any
) -> Tensor:
    return 2 * _lambda_hessian(prediction, target, mask, **parameters)


@loss(task="queries", kind="rows")
def list_net(
    prediction: Real[Tensor, "N L"],
    target: NonNegativeTensor[Tensor, "N L"],
    mask: Kept[Tensor, "N L"] | None = None,
    *,
    target_form: Literal["softmax", "proportional"] = "softmax",
) -> Real[Tensor, "N"] | Unreduced:
    r"""Cross-entropy of the probability of each document to be first, by score and by relevance.

    .. math:: -\sum_i q_i \log\frac{e^{s_i}}{\sum_j e^{s_j}}, \quad q_i = \frac{e^{y_i}}{\sum_j e^{y_j}}

    Args:
        prediction: The score s of each document of each query; the higher, the earlier in the list.
        target: Relevance y, >= 0, such as grades 0 to 4.
        mask: Which documents count.
        target_form: What q is: "softmax" as above, or "proportional", y over its sum, of which documents that are not
            relevant have nothing.

    Returns:
        One value per query, >= 0, unreduced. A query without documents counts neither in the numerator nor in the
        denominator; nor does, if "proportional", one without a relevant document, with the warning ``no_positives``.

    Gradient:
        With respect to ``prediction``: the softmax of the scores, less q.

    References:
        Z. Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007,
            doi:10.1145/1273496.1273513.
        TF-Ranking's SoftmaxLoss is "proportional" and weights each query by the sum of y: send that as sample_weight.
    """
    share, some = _shares(target, mask, target_form, prediction.dtype)
    log_p = torch.log_softmax(_filled(prediction, mask), 1)
    value = row_total(softmax.weighted_nll(share, -log_p), dtype=torch.float64)
    flags = {} if target_form == "softmax" else {"no_positives": ~some}
    return Unreduced(value, some.to(value.dtype), flags=flags)


def _shares(target: Tensor, mask: Tensor | None, form: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return q, (N, L), and which queries have any, (N,)."""
    y = target.to(dtype)
    if form == "softmax":
        share = torch.softmax(_filled(y, mask), 1)
        share = share if mask is None else share.masked_fill(~mask, 0)
        return share, torch.ones_like(y[:, 0], dtype=torch.bool) if mask is None else mask.any(1)
    y = y if mask is None else y.masked_fill(~mask, 0)
    highest = y.amax(1, keepdim=True)
    y = y / highest.masked_fill(highest == 0, 1)  # so that the sum stays in range
    total = row_total(y, keepdim=True)
    return y / total.masked_fill(total == 0, 1), highest[:, 0] > 0


def _filled(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return scores with the least number where no document counts, whose exponential is 0 beside any other's.

    It is finite: of −inf alone, a softmax is NaN.
    """
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


@list_net.hessian_form("exact")
def _list_net_hessian(prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, target_form: str) -> Tensor:
    _, second = softmax.variances(_filled(prediction, mask))
    return second if mask is None else second.masked_fill(~mask, 0)


def _doubling(_: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    """Return what each step of a sum from each place on takes: a step doubles the places that are added up."""
    queries, documents = shapes["prediction"]
    steps = queries * documents * (documents - 1).bit_length()
    return Cost(STEP_BYTES * steps, STEP_NS * steps)


@loss(task="queries", kind="rows", cost=_doubling)
def list_mle(
    prediction: Real[Tensor, "N L"],
    target: NonNegativeTensor[Tensor, "N L"],
    mask: Kept[Tensor, "N L"] | None = None,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Negative log-likelihood of the order by relevance, if documents are drawn one after the other by their scores.

    .. math:: \sum_i \left(\log \sum_{j \ge i} e^{s_j} - s_i\right), \quad y_1 \ge y_2 \ge \dots

    Args:
        prediction: The score s of each document of each query; the higher, the earlier in the list.
        target: Relevance y, >= 0. Only its order counts. Documents of equal relevance are taken in the order in which
            they are sent: shuffle them, so that it does not matter in the mean.
        mask: Which documents count.

    Returns:
        One value per query, >= 0, unreduced: the sum over its documents. A query without documents counts neither in
        the numerator nor in the denominator.

    Gradient:
        With respect to ``prediction``: each document's probabilities to be drawn at each step up to its own, less 1.

    References:
        F. Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, ICML 2008,
            doi:10.1145/1390156.1390306.
        allRank takes documents of equal relevance in random order.
    """
    order = by_score(target, mask)
    s = _filled(prediction.double(), mask).gather(1, order)
    value = _logsumexp_of_rest(s) - s
    if mask is None:
        return row_total(value)
    value = row_total(value.masked_fill(~mask.gather(1, order), 0))
    return Unreduced(value, mask.any(1).to(value.dtype))


def _logsumexp_of_rest(s: Tensor) -> Tensor:
    """Return the logarithm of the sum of the exponentials from each place on: (N, L).

    Each step doubles the places that are added up. Of torch's own logcumsumexp and logaddexp, the second derivative is
    NaN at far numbers.
    """
    reach, count = 1, s.shape[1]
    while reach < count:
        here, beyond = s[:, :-reach], s[:, reach:]
        is_higher = here >= beyond
        high, low = torch.where(is_higher, here, beyond), torch.where(is_higher, beyond, here)
        s = torch.cat([high - functional.logsigmoid(high - low), s[:, -reach:]], 1)
        reach *= 2
    return s


@loss(task="queries", kind="rows", pairs=APPROXIMATED)
def approx_ndcg(
    prediction: Real[Tensor, "N L"],
    target: NonNegativeTensor[Tensor, "N L"],
    mask: Kept[Tensor, "N L"] | None = None,
    *,
    temperature: Positive = 0.1,
    gain: Gain = "exponential",
) -> Real[Tensor, "N"] | Unreduced:
    r"""Minus NDCG, with ranks that change smoothly with the scores.

    .. math:: -\frac{1}{\text{iDCG}} \sum_i \frac{2^{y_i} - 1}{\log_2(1 + \hat\pi_i)}, \quad
        \hat\pi_i = 1 + \sum_{j \ne i} \sigma\left(\frac{s_j - s_i}{T}\right)

    Args:
        prediction: The score s of each document of each query; the higher, the earlier in the list.
        target: Relevance y, >= 0, such as grades 0 to 4.
        mask: Which documents count.
        temperature: T, the difference of scores at which ranks change: the smaller, the closer to NDCG, and the more
            scores have no gradient. allRank's alpha is 1/T, 1 by default.
        gain: "exponential", 2^y − 1, or "linear", y.

    Returns:
        One value per query, in [-1, 0], unreduced. A query without a relevant document counts neither in the numerator
        nor in the denominator, with the warning ``no_positives``.

    Gradient:
        With respect to ``prediction``.

    References:
        T. Qin, T.-Y. Liu, H. Li, A General Approximation Framework for Direct Optimization of Information Retrieval
            Measures, 2010, doi:10.1007/s10791-009-9124-x.
        S. Bruch et al., Revisiting Approximate Metric Optimization in the Age of Deep Neural Networks, SIGIR 2019,
            doi:10.1145/3331184.3331347.
    """
    count = prediction.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=prediction.device)
    pairs = others if mask is None else others & _among(mask)
    difference = prediction.unsqueeze(1) - prediction.unsqueeze(2)
    difference = torch.where(pairs, difference, torch.zeros_like(difference))
    before = sigmoid(difference / _of_query(temperature)).masked_fill(~pairs, 0)
    rank = 1 + before.sum(2, dtype=torch.float64)
    share = gains(target if mask is None else target.masked_fill(~mask, 0), gain)
    ideal = row_total(share.sort(1, descending=True).values * discounts(count, prediction))
    some = ideal > 0
    value = -row_total(share * (math.log(2) / torch.log1p(rank))) / ideal.masked_fill(~some, 1)
    return Unreduced(value, some.to(value.dtype), flags={"no_positives": ~some})
