"""What the metrics of queries are made of: documents in the order of their scores, for one query after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lossd.compiled.arithmetic import jit_apart
from lossd.compiled.kernels import aot
from lossd.compiled.memory import load

__all__ = ["queries"]


@jit_apart
def _by_score(scores: Any, order: Any) -> None:
    """Write the indices of scores, the highest first, the lower index of equal scores first: Shell's sort."""
    gap = 1
    for i in range(scores.shape[0]):
        order[i] = i
    while gap < scores.shape[0] // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, scores.shape[0]):
            moved, j = order[i], i
            while j >= gap:
                other = order[j - gap]
                if scores[other] > scores[moved] or (scores[other] == scores[moved] and other < moved):
                    break
                order[j] = other
                j -= gap
            order[j] = moved
        gap //= 3


@jit_apart
def _gain(y: float, highest: float, exponential: bool) -> float:
    """The gain of a document, in units of what is at least half the query's largest."""
    if not exponential:
        return y / highest
    return math.exp((y - highest) * math.log(2)) * -math.expm1(-y * math.log(2))


@aot("void(float32[::1], int64, float64[:,::1], int64, float64[::1], boolean, boolean, float64[:,::1], int64[::1])")
def queries(
    scores: Any,
    words: int,
    target: Any,
    k: int,
    discount: Any,
    exponential: bool,
    stable: bool,
    values: Any,
    relevant: Any,
) -> None:
    """Measure each query as :mod:`lossd.metrics.queries` defines it.

    Args:
        scores: (R * L * words,), see :mod:`lossd.compiled.memory`.
        words: The float32 words of a score.
        target: (R, L) relevance, finite and >= 0.
        k: How many places count in metrics @k.
        discount: (L,) the factor of each place.
        exponential: Whether gains are exponential, else linear.
        stable: Whether the lower index of equal scores is first, else the mean over all orders of them counts.
        values: (R, 5), written: NDCG, average precision, reciprocal rank, whether a relevant document is among the
            first k, and the share of the relevant documents that are; NaN where a score is NaN or none is relevant.
        relevant: (R,), written: the number of relevant documents.
    """
    length = target.shape[1]
    counted = k if k < length else length  # Numba takes long for min and max
    row, grades, order = np.empty(length), np.empty(length), np.empty(length, np.int64)
    for i in range(target.shape[0]):
        some, unordered = 0, False
        for j in range(length):
            row[j], grades[j] = load(scores, i * length + j, words), target[i, j]
            some += grades[j] > 0
            unordered |= row[j] != row[j]
        relevant[i] = some
        if unordered or some == 0:
            for measure in range(values.shape[1]):
                values[i, measure] = math.nan
            continue
        _by_score(grades, order)
        highest, best = grades[order[0]], 0.0
        for place in range(counted):
            best += discount[place] * _gain(grades[order[place]], highest, exponential)
        _by_score(row, order)
        found, precision, reciprocal, among, share = 0.0, 0.0, 0.0, 0.0, 0.0
        none_yet, before, begin = 1.0, 0, 0
        while begin < length:
            end = begin + 1
            while end < length and not stable and row[order[end]] == row[order[begin]]:
                end += 1
            size, positives, gain = end - begin, 0, 0.0
            for place in range(begin, end):
                y = grades[order[place]]
                positives += y > 0
                gain += _gain(y, highest, exponential)
            for place in range(begin, end):
                within = place - begin
                left = size - within
                first = none_yet * (positives / left if positives < left else 1.0)
                none_yet *= (left - positives) / left if positives < left else 0.0
                reciprocal += first / (place + 1)
                if place < k:
                    found += discount[place] * gain / size
                    hits = 1 + before + within * (positives - 1) / (size - 1 if size > 1 else 1)
                    precision += positives / size * hits / (place + 1)
                    among += first
                    share += positives / size
            before += positives
            begin = end
        share /= some
        values[i, 0] = found / best if found < best else 1.0
        values[i, 1] = precision / (some if some < k else k)
        values[i, 2] = reciprocal
        values[i, 3] = among if among < 1 else 1.0
        values[i, 4] = share if share < 1 else 1.0
