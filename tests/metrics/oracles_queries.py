"""What metrics of queries must be: each query's lists one after the other, straight from the definitions.

Of equal scores, all orders are gone through, and the mean is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from metrics.measuring import Array, Request
from metrics.oracles import UNDEFINED
from metrics.oracles_compared import weights

Grades = Sequence[float]
Score = Callable[..., float]
"""``f(grades, k, gain)``: of the grades of one query's documents, in the order of the list."""


def orders(scores: Array, ties: str) -> Iterator[list[int]]:
    """Yield every order of the documents in which no score rises."""
    levels = [np.flatnonzero(scores == level).tolist() for level in sorted(set(scores.tolist()), reverse=True)]
    several = [itertools.permutations(level) if ties == "averaged" else [tuple(level)] for level in levels]
    for chosen in itertools.product(*several):
        yield [i for level in chosen for i in level]


def ndcg(grades: Grades, k: int, gain: str) -> float:
    def gained(ranking: Grades) -> float:
        raw = [2**y - 1 if gain == "exponential" else y for y in ranking]
        return sum(g / math.log2(1 + r) for r, g in enumerate(raw[:k], 1))

    return gained(grades) / gained(sorted(grades, reverse=True))


def average_precision(grades: Grades, k: int, gain: str) -> float:
    found = [y > 0 for y in grades]
    precision = [sum(found[:r]) / r for r in range(1, len(found) + 1) if found[r - 1] and r <= k]
    return sum(precision) / min(sum(found), k)


def reciprocal_rank(grades: Grades, k: int, gain: str) -> float:
    return 1 / (1 + [y > 0 for y in grades].index(True))


def hit(grades: Grades, k: int, gain: str) -> float:
    return float(any(y > 0 for y in grades[:k]))


def recall(grades: Grades, k: int, gain: str) -> float:
    return sum(y > 0 for y in grades[:k]) / sum(y > 0 for y in grades)


def expected_reciprocal_rank(grades: Grades, k: int, gain: str) -> float:
    total, goes_on = 0.0, 1.0
    for rank, y in enumerate(grades, 1):
        stops = (2**y - 1) / 2 ** max(grades)
        total += goes_on * stops / rank
        goes_on *= 1 - stops
    return total


def of_query(score: Score, scores: Array, grades: Array, k: int, ties: str, gain: str) -> float:
    """Return the metric of one query, the mean over the orders of its documents."""
    return float(np.mean([score(grades[order].tolist(), k, gain) for order in orders(scores, ties)]))


def over_queries(score: Score) -> Callable[..., float]:
    def oracle(
        r: Request, *, k: int = 5, ties: str = "averaged", gain: str = "linear", zero_division: Any = None, **_: Any
    ) -> float:
        values, heavy = [], []
        for scores, grades, weight in zip(r["prediction"], r["target"], weights(r), strict=True):
            if (grades > 0).any():
                values.append(of_query(score, scores, grades, k, ties, gain))
            elif zero_division is None:
                continue
            else:
                values.append(zero_division)
            heavy.append(weight)
        return float(np.average(values, weights=heavy)) if values else UNDEFINED

    return oracle


QUERIES: dict[str, Callable[..., Any]] = {
    "ndcg@k": over_queries(ndcg),
    "map@k": over_queries(average_precision),
    "mrr": over_queries(reciprocal_rank),
    "hit_rate@k": over_queries(hit),
    "recall@k": over_queries(recall),
    "err": over_queries(expected_reciprocal_rank),
    "empty_queries": lambda r, **_: float(weights(r)[(r["target"] <= 0).all(1)].sum()),
}
