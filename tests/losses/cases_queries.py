"""Rows of the losses of queries. Reference: document by document and pair by pair, as the papers write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

Grades = Sequence[float]
OfQuery = Callable[..., tuple[Tensor, float]]
"""``f(scores, grades, …)``: the value and the weight of one query."""


def documents(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Four documents each; of the third query none is relevant, and two grades are equal in most."""
    target = rng.integers(0, 4, (n, 4)).astype(float)
    target[2:3] = 0
    return {"prediction": rng.normal(0, 1, (n, 4)), "target": target}


def over_queries(of_query: OfQuery) -> Callable[..., tuple[Tensor, Tensor]]:
    def reference(prediction: Tensor, target: Tensor, **parameters: Any) -> tuple[Tensor, Tensor]:
        rows = zip(prediction, target.tolist(), strict=True)
        found = [of_query(scores, grades, **parameters) for scores, grades in rows]
        return torch.stack([value for value, _ in found]), torch.tensor([w for _, w in found], dtype=torch.float64)

    return reference


def logistic(margin: Tensor) -> Tensor:
    return torch.logaddexp(-margin, torch.zeros_like(margin))


def ranks(scores: Tensor) -> list[int]:
    """From 1; of equal scores the lower index is first."""
    values = scores.tolist()
    first = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return [first.index(i) + 1 for i in range(len(values))]


def discount(rank: float) -> float:
    return 1 / math.log2(1 + rank)


def gained(grades: Grades, gain: str, k: int | None = None) -> tuple[list[float], float]:
    """The gains over the ideal DCG, which is returned too."""
    raw = [2**y - 1 if gain == "exponential" else y for y in grades]
    best = sorted(raw, reverse=True)[:k]
    ideal = sum(g * discount(r) for r, g in enumerate(best, 1))
    return [g / ideal if ideal else 0.0 for g in raw], ideal


def ranknet(scores: Tensor, grades: Grades, *, sigma: float = 1.0) -> tuple[Tensor, float]:
    n = range(len(grades))
    pairs = [logistic(sigma * (scores[i] - scores[j])) for i in n for j in n if grades[i] > grades[j]]
    return sum(pairs, 0 * scores.sum()) / max(len(pairs), 1), float(bool(pairs))


def lambda_loss(
    scores: Tensor,
    grades: Grades,
    *,
    scheme: str = "lambdarank",
    k: int | None = None,
    sigma: float = 1.0,
    mu: float = 10.0,
    gain: str = "exponential",
) -> tuple[Tensor, float]:
    share, ideal = gained(grades, gain, k)
    rank, n = ranks(scores), range(len(grades))

    def weight(i: int, j: int) -> float:
        if scheme == "ndcg1":
            return share[i] * discount(rank[i])
        distance = abs(rank[i] - rank[j])
        swapped = abs(share[i] - share[j]) * abs(discount(rank[i]) - discount(rank[j]))
        apart = abs(share[i] - share[j]) * (discount(distance) - discount(distance + 1))
        return {"lambdarank": swapped, "ndcg2": apart, "ndcg2pp": mu * apart + swapped}[scheme]

    pairs = [(i, j) for i in n for j in n if scheme == "ndcg1" or grades[i] > grades[j]]
    within = [(i, j) for i, j in pairs if k is None or max(rank[i], rank[j]) <= k]
    value = sum((weight(i, j) * logistic(sigma * (scores[i] - scores[j])) for i, j in within), 0 * scores.sum())
    return value, float(ideal > 0 if scheme == "ndcg1" else bool(pairs))


def list_net(scores: Tensor, grades: Grades, *, target_form: str = "softmax") -> tuple[Tensor, float]:
    raw = [math.exp(y) for y in grades] if target_form == "softmax" else list(grades)
    total = sum(raw)
    log_total = torch.log(torch.exp(scores).sum())
    value = sum((q / (total or 1) * (log_total - s) for q, s in zip(raw, scores, strict=True)), 0 * scores.sum())
    return value, float(total > 0)


def list_mle(scores: Tensor, grades: Grades) -> tuple[Tensor, float]:
    order = sorted(range(len(grades)), key=lambda i: (-grades[i], i))
    value = 0 * scores.sum()
    for place, i in enumerate(order):
        value = value + torch.log(sum(torch.exp(scores[j]) for j in order[place:])) - scores[i]
    return value, 1.0


def approx_ndcg(
    scores: Tensor, grades: Grades, *, temperature: float = 0.1, gain: str = "exponential"
) -> tuple[Tensor, float]:
    share, ideal = gained(grades, gain)
    value, n = 0 * scores.sum(), range(len(grades))
    for i in n:
        rank = 1 + sum((1 / (1 + torch.exp((scores[i] - scores[j]) / temperature)) for j in n if j != i), 0 * scores[i])
        value = value - share[i] / torch.log2(1 + rank)
    return value, float(ideal > 0)


FOUR = {"prediction": [[0.2, 1.5, -0.3, 0.7]], "target": [[0.0, 2.0, 1.0, 3.0]]}
"""The numbers of one query, computed once by plain NumPy."""
NOTHING = {"no_positives", "nothing_to_average"}


def stated(title: str, loss: float, parameters: Parameters | None = None, **more: Any) -> Stated:
    return Stated(title, FOUR, loss, parameters or {}, **{"within": 2e-6, "dtype": torch.float64} | more)


def without_pairs(*, of_equal: bool = True) -> tuple[Stated, ...]:
    """Queries that say nothing about the order."""
    equal = Stated("all equal", {"prediction": [[1.0, 2.0]], "target": [[2, 2]]}, 0, gradient=[[0.0, 0.0]],
                   warnings=NOTHING)  # fmt: skip
    return (
        Stated("none relevant", {"prediction": [[1.0, 2.0]], "target": [[0, 0]]}, 0, gradient=[[0.0, 0.0]],
               warnings=NOTHING),
        *((equal, Stated("one document", {"prediction": [[1.0]], "target": [[2]]}, 0, gradient=[[0.0]],
                         warnings=NOTHING)) if of_equal else ()),
    )  # fmt: skip


def masked(loss: float, gradient: list[list[float]], parameters: Parameters | None = None) -> Stated:
    """Two documents of one query; the rest and the other query are padding."""
    inputs = {
        "prediction": [[1.0, 0.0, math.nan], [math.inf, math.nan, math.nan]],
        "target": [[1.0, 0.0, -7.0], [math.nan, -7.0, 3.0]],
        "lengths": torch.tensor([2, 0]),
    }
    return Stated("padding", inputs, loss, parameters or {}, gradient=[[*gradient[0], 0], [0, 0, 0]],
                  dtype=torch.float64)  # fmt: skip


REFUSED = (
    Refused(InvalidValue, r"finite values >= 0 expected, found -1 at target\[0, 1\]",
            inputs={"prediction": [[1.0, 2.0]], "target": [[0, -1]]}),
    Refused(InvalidValue, r"found NaN at target\[0, 0\]", inputs={"target": np.full((5, 4), np.nan)}),
    Refused(ShapeMismatch, r"target has shape \(5, 3\)", inputs={"target": np.zeros((5, 3))}),
    Refused(ShapeMismatch, r"prediction has shape \(4,\)", inputs={"prediction": [1.0, 2.0, 3.0, 4.0]}),
)  # fmt: skip
AT_ONE = 1 / (1 + math.e)
"""The logistic function at −1."""
ONE_AHEAD = math.log1p(math.exp(-1))
SWAPPED = 1 - 1 / math.log2(3)
"""What NDCG loses if the only relevant document of two is second."""
SMOOTH = math.log(2) / (2 + AT_ONE) / math.log(2 + AT_ONE) ** 2 * AT_ONE * (1 - AT_ONE)
"""The slope of 1/log2(1 + rank), if the rank is 1 plus the logistic function of the difference 1."""

CASES = (
    Case(
        "ranknet",
        documents,
        over_queries(ranknet),
        parameters=({}, {"sigma": 0.5}),
        vary={"sigma": (0.5, 1.0, 3.0)},
        stated=(
            stated("four documents", 0.554417),
            Stated("far wrong", {"prediction": [[-1e4, 1e4]], "target": [[1, 0]]}, 2e4, gradient=[[-1.0, 1.0]]),
            Stated("far right", {"prediction": [[1e4, -1e4]], "target": [[1, 0]]}, 0, gradient=[[0.0, 0.0]]),
            Stated(
                "beyond float32", {"prediction": [[-3e38, 3e38]], "target": [[1, 0]]}, 6e38, gradient=[[-1.0, 1.0]]
            ),
            masked(ONE_AHEAD, [[-AT_ONE, AT_ONE]]),
            *without_pairs(),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "sigma.*greater than 0", {"sigma": 0.0})),
    ),
    Case(
        "lambda_loss",
        documents,
        over_queries(lambda_loss),
        parameters=(
            {},
            {"scheme": "ndcg1", "sigma": 0.5},
            {"scheme": "ndcg2", "gain": "linear"},
            {"scheme": "ndcg2pp", "mu": 4.0},
            {"scheme": "lambdarank", "k": 2},
            {"scheme": "ndcg1", "k": 3, "gain": "linear"},
        ),
        vary={"sigma": (0.5, 1.0, 3.0), "mu": (0.0, 1.0, 10.0)},
        stated=(
            stated("four documents", 0.334617),
            Stated(
                "far wrong",
                {"prediction": [[-1e4, 1e4]], "target": [[1, 0]]},
                2e4 * SWAPPED,
                gradient=[[-SWAPPED, SWAPPED]],
            ),
            # Grades whose powers of two are beyond float64: the second is nothing beside the first.
            Stated(
                "huge grades", {"prediction": [[0.0, 0.0]], "target": [[3000, 1000]]}, SWAPPED * math.log(2),
                gradient=[[-SWAPPED / 2, SWAPPED / 2]],
            ),
            Stated("the pair is beyond k", {"prediction": [[1.0, 0.0]], "target": [[0, 1]]}, 0, {"k": 1},
                   gradient=[[0.0, 0.0]], warnings={"zero_gradient"}),
            masked(SWAPPED * ONE_AHEAD, [[-SWAPPED * AT_ONE, SWAPPED * AT_ONE]]),
            *without_pairs(),
        ),
        refused=(
            *REFUSED,
            Refused(InvalidRequest, "loss.k", {"k": 0}),
            Refused(InvalidRequest, "scheme", {"scheme": "ndcg3"}),
            Refused(InvalidRequest, "mu.*greater than or equal to 0", {"mu": -1.0}),
        ),
    ),
    Case(
        "list_net",
        documents,
        over_queries(list_net),
        parameters=({}, {"target_form": "proportional"}),
        stated=(
            stated("four documents", 1.348740),
            stated("four documents, proportional", 1.335073, {"target_form": "proportional"}),
            Stated("far wrong", {"prediction": [[-1e4, 1e4]], "target": [[1, 0]]}, 2e4,
                   {"target_form": "proportional"}, gradient=[[-1.0, 1.0]]),
            Stated("all equal", {"prediction": [[1.0, 1.0]], "target": [[2, 2]]}, math.log(2), gradient=[[0.0, 0.0]],
                   warnings={"zero_gradient"}),
            Stated("one document", {"prediction": [[5.0]], "target": [[2]]}, 0, gradient=[[0.0]],
                   warnings={"zero_gradient"}),
            Stated("none relevant", {"prediction": [[1.0, 2.0]], "target": [[0, 0]]}, 0,
                   {"target_form": "proportional"}, gradient=[[0.0, 0.0]], warnings=NOTHING),
            masked(ONE_AHEAD, [[-AT_ONE, AT_ONE]], {"target_form": "proportional"}),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "target_form", {"target_form": "sum"})),
    ),
    Case(
        "list_mle",
        documents,
        over_queries(list_mle),
        stated=(
            stated("four documents", 2.772285),
            Stated("far wrong", {"prediction": [[-1e4, 1e4]], "target": [[1, 0]]}, 2e4, gradient=[[-1.0, 1.0]]),
            # The last two are far below the first: their own order counts all the same.
            Stated("far apart", {"prediction": [[1e4, 0.0, 0.0]], "target": [[2, 1, 0]]}, math.log(2),
                   gradient=[[0.0, -0.5, 0.5]]),
            Stated("equal grades, in the order sent", {"prediction": [[0.0, 1.0]], "target": [[2, 2]]}, 1 + ONE_AHEAD,
                   gradient=[[AT_ONE - 1, 1 - AT_ONE]]),
            Stated("one document", {"prediction": [[5.0]], "target": [[2]]}, 0, gradient=[[0.0]],
                   warnings={"zero_gradient"}),
            masked(ONE_AHEAD, [[-AT_ONE, AT_ONE]]),
        ),
        refused=REFUSED,
    ),
    Case(
        "approx_ndcg",
        documents,
        over_queries(approx_ndcg),
        parameters=({}, {"temperature": 1.0, "gain": "linear"}),
        vary={"temperature": (0.1, 0.5, 2.0)},
        stated=(
            stated("four documents, T = 1", -0.705812, {"temperature": 1.0}),
            stated("four documents", -0.834498),
            Stated("far right", {"prediction": [[1e4, -1e4]], "target": [[1, 0]]}, -1, gradient=[[0.0, 0.0]]),
            Stated("far wrong", {"prediction": [[-1e30, 1e30]], "target": [[1, 0]]}, SWAPPED - 1,
                   gradient=[[0.0, 0.0]]),
            Stated("one document", {"prediction": [[5.0]], "target": [[2]]}, -1, gradient=[[0.0]],
                   warnings={"zero_gradient"}),
            Stated("all equal", {"prediction": [[1e4, -1e4]], "target": [[2, 2]]}, -1, gradient=[[0.0, 0.0]],
                   warnings={"zero_gradient"}),
            masked(-1 / math.log2(2 + AT_ONE), [[-SMOOTH, SMOOTH]], {"temperature": 1.0}),
            *without_pairs(of_equal=False),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "temperature.*greater than 0", {"temperature": 0.0})),
    ),
)  # fmt: skip
