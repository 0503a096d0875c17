"""Rows of the written loss: formulas, and the same by hand in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from losses.case import Composition, Tensors


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def pairs(g: torch.Generator) -> Tensors:
    return {"prediction": normal(g, 4, 3), "target": normal(g, 4, 3)}


def classes(g: torch.Generator) -> Tensors:
    return {
        "prediction": normal(g, 6, 4),
        "target": functional.one_hot(torch.randint(0, 4, (6,), generator=g)).double(),
    }


def vectors(g: torch.Generator) -> Tensors:
    return {"anchor": normal(g, 5, 7), "positive": normal(g, 5, 7), "negative": normal(g, 5, 7)}


def scores(g: torch.Generator) -> Tensors:
    return {"similarity": normal(g, 6, 6), "same": torch.eye(6, dtype=torch.float64)}


def ranks(g: torch.Generator) -> Tensors:
    return {"left": normal(g, 5, 1), "right": normal(g, 1, 4)}


def asymmetric(inputs: Tensors) -> Tensor:
    e = inputs["prediction"] - inputs["target"]
    return torch.where(e > 0, 3 * e * e, e * e).mean()


def focal(inputs: Tensors) -> Tensor:
    entropy = functional.cross_entropy(inputs["prediction"], inputs["target"].argmax(1), reduction="none")
    return ((1 - (-entropy).exp()) ** 2 * entropy).mean()


def info_nce(inputs: Tensors) -> Tensor:
    label = torch.arange(6, device=inputs["similarity"].device)
    return functional.cross_entropy(inputs["similarity"] / 0.5, label)


def written(title: str, formula: str, draw: Any, reference: Any, *gradients: str, **parameters: float) -> Composition:
    loss: dict[str, Any] = {"name": "expression", "formula": formula}
    if parameters:
        loss["parameters"] = parameters
    return Composition(title, loss, draw, reference, gradients or ("prediction", "target"))


EXPRESSIONS = (
    written(
        "asymmetric mse",
        "e = prediction - target; mean(where(e > 0, k*e**2, e**2))",
        pairs, asymmetric, k=3.0,
    ),
    written(
        "huber, reduced by the request",
        "a = abs(prediction - target);\nwhere(a <= delta, a**2 / 2, delta * (a - delta / 2))",
        pairs, lambda inputs: functional.huber_loss(inputs["prediction"], inputs["target"], delta=0.7), delta=0.7,
    ),
    written(
        "focal of one-hot targets",
        "l = -sum(target * log_softmax(prediction), 1); (1 - exp(-l)) ** gamma * l",
        classes, focal, "prediction", gamma=2.0,
    ),
    written(
        "info_nce of similarities",
        "s = similarity / t; mean(logsumexp(s) - sum(same * s, 1))",
        scores, info_nce, "similarity", t=0.5,
    ),
    written(
        "triplet",
        "relu(norm(anchor - positive, 1) - norm(anchor - negative, 1) + margin)",
        vectors,
        lambda inputs: functional.triplet_margin_loss(
            inputs["anchor"], inputs["positive"], inputs["negative"], 2.0, eps=0.0
        ),
        "anchor", "positive", "negative", margin=2.0,
    ),
    written(
        "every pair of two columns",
        "softplus(right - left)",
        ranks, lambda inputs: functional.softplus(inputs["right"] - inputs["left"]).mean(), "left", "right",
    ),
)  # fmt: skip
