"""Rows of the losses whose inputs the request names: whole requests, and what they come to in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from losses.case import Composition, Tensors
from losses.cases_expression import EXPRESSIONS
from losses.cases_perceptual import SERIES


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def masks(g: torch.Generator) -> Tensors:
    return {
        "prediction": normal(g, 3, 4, 5),
        "target": (torch.rand(3, 4, 5, generator=g, dtype=torch.float64) > 0.5).double(),
    }


def maps(g: torch.Generator) -> Tensors:
    return {"prediction": normal(g, 3, 4, 2, 5), "target": torch.randint(0, 4, (3, 2, 5), generator=g)}


def heads(g: torch.Generator) -> Tensors:
    return {
        "value": normal(g, 6),
        "measured": normal(g, 6),
        "logits": normal(g, 4, 3),
        "label": torch.randint(0, 3, (4,), generator=g),
        "log_variance": normal(g, 2),
    }


def dice(probability: Tensor, target: Tensor, smooth: float) -> Tensor:
    """Of one region: 1 − (2 Σpt + s) / (Σp + Σt + s)."""
    return 1 - (2 * (probability * target).sum() + smooth) / (probability.sum() + target.sum() + smooth)


def with_missing(draw: Callable[[torch.Generator], Tensors], ignored: int) -> Callable[[torch.Generator], Tensors]:
    """The same, with targets that do not count, and with predictions there that would outweigh all others."""

    def drawn(g: torch.Generator) -> Tensors:
        inputs = draw(g)
        gone = torch.rand(inputs["target"].shape, generator=g) < 0.3
        hidden = gone if inputs["prediction"].shape == gone.shape else gone.unsqueeze(1)
        return {
            "prediction": inputs["prediction"].masked_fill(hidden, 1e3),
            "target": inputs["target"].masked_fill(gone, ignored),
        }

    return drawn


def without_missing(inputs: Tensors, ignored: int) -> Tensors:
    """The positions that count, one after the other: (P,) and (P,), or (P, C) and (P,)."""
    there = inputs["target"] != ignored
    scores = inputs["prediction"] if inputs["prediction"].shape == there.shape else inputs["prediction"].movedim(1, -1)
    return {"prediction": scores[there], "target": inputs["target"][there]}


def binary_sum(inputs: Tensors, bce: float = 1.0, overlap: float = 1.0, smooth: float = 1.0) -> Tensor:
    first = functional.binary_cross_entropy_with_logits(inputs["prediction"], inputs["target"])
    return bce * first + overlap * dice(inputs["prediction"].sigmoid(), inputs["target"], smooth)


def multiclass_sum(inputs: Tensors, ce: float = 0.5, overlap: float = 0.5, smooth: float = 1.0) -> Tensor:
    probability = inputs["prediction"].softmax(1)
    one_hot = functional.one_hot(inputs["target"], 4).movedim(-1, 1)
    regions = torch.stack([dice(probability[:, c], one_hot[:, c], smooth) for c in range(4)])
    return ce * functional.cross_entropy(inputs["prediction"], inputs["target"]) + overlap * regions.mean()


def of_heads(inputs: Tensors) -> tuple[Tensor, Tensor]:
    return (
        functional.mse_loss(inputs["value"], inputs["measured"]),
        functional.cross_entropy(inputs["logits"], inputs["label"]),
    )


HEADS: list[dict[str, Any]] = [
    {"loss": {"name": "mse"}, "inputs": {"prediction": "value", "target": "measured"}},
    {"loss": {"name": "cross_entropy"}, "inputs": {"prediction": "logits", "target": "label"}},
]


def kendall(inputs: Tensors) -> Tensor:
    """Kendall et al. 2018, equation 10: the regression's term is halved, the classification's is not."""
    regression, classification = of_heads(inputs)
    s = inputs["log_variance"]
    return 0.5 * torch.exp(-s[0]) * regression + 0.5 * s[0] + torch.exp(-s[1]) * classification + 0.5 * s[1]


def unhalved(inputs: Tensors) -> Tensor:
    s = inputs["log_variance"]
    return (torch.exp(-s) * torch.stack(of_heads(inputs)) + s).sum()


def lessons(g: torch.Generator) -> Tensors:
    """Dense targets, some ignored, one row of them wholly; two samples are still too hard."""
    target = torch.randint(0, 3, (5, 4), generator=g)
    target[0, 1] = -100
    target[2] = -100
    difficulty = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.51], dtype=torch.float64)
    return {"prediction": normal(g, 5, 3, 4), "target": target, "difficulty": difficulty}


def kept_rows(inputs: Tensors, scale: float = 1.0) -> Tensor:
    """Row means over the valid entries first (none: 0), then the mean over the rows that are easy enough."""
    rows = []
    for n in range(5):
        if inputs["difficulty"][n] <= 0.5:
            valid = inputs["target"][n] != -100
            logits, target = inputs["prediction"][n][:, valid].T, inputs["target"][n][valid]
            rows.append(functional.cross_entropy(logits, target) if valid.any() else 0 * inputs["prediction"][n].sum())
    return scale * torch.stack(rows).mean()


def norms(g: torch.Generator) -> Tensors:
    return {
        name: torch.rand(4, generator=g, dtype=torch.float64) + 0.1
        for name in ("losses", "initial_losses", "gradient_norms", "task_weight")
    }


def restoring(inputs: Tensors, alpha: float) -> Tensor:
    """Chen et al. 2018, equations 1 and 2, written with loops."""
    weighted = [w * g for w, g in zip(inputs["task_weight"], inputs["gradient_norms"], strict=True)]
    mean = sum(float(x.detach()) for x in weighted) / 4
    progress = [float(now / start) for now, start in zip(inputs["losses"], inputs["initial_losses"], strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for x, rate in zip(weighted, progress, strict=True):
        total = total + abs(x - mean * (rate / (sum(progress) / 4)) ** alpha)
    return total


COMPOSITIONS = (
    Composition("defaults", {"name": "bce_dice"}, masks, binary_sum),
    Composition(
        "every parameter",
        {"name": "bce_dice", "bce_weight": 0.3, "dice_weight": 2.0, "smooth": 1e-6},
        masks,
        lambda inputs: binary_sum(inputs, 0.3, 2.0, 1e-6),
    ),
    Composition(
        "missing",
        {"name": "bce_dice", "ignore_index": -1},
        with_missing(masks, -1),
        lambda inputs: binary_sum(without_missing(inputs, -1)),
    ),
    Composition("defaults", {"name": "ce_dice"}, maps, multiclass_sum),
    *(
        Composition(
            f"{ignored} missing",
            {"name": "ce_dice", **({} if ignored == -100 else {"ignore_index": ignored})},
            with_missing(maps, ignored),
            lambda inputs, ignored=ignored: multiclass_sum(without_missing(inputs, ignored)),
        )
        for ignored in (-100, 255)
    ),
    Composition(
        "every parameter",
        {"name": "ce_dice", "ce_weight": 1.5, "dice_weight": 0.25, "smooth": 0.1},
        maps,
        lambda inputs: multiclass_sum(inputs, 1.5, 0.25, 0.1),
    ),
    Composition(
        "two heads",
        {"name": "weighted_sum", "terms": [{**HEADS[0], "weight": 0.7}, HEADS[1]]},
        lambda g: {name: tensor for name, tensor in heads(g).items() if name != "log_variance"},
        lambda inputs: 0.7 * of_heads(inputs)[0] + of_heads(inputs)[1],
        ("value", "logits"),
    ),
    Composition(
        "two losses of one head, one of them a sum",
        {
            "name": "weighted_sum",
            "terms": [{"loss": {"name": "bce_with_logits", "reduction": "sum"}, "weight": -2.0},
                      {"loss": {"name": "dice", "mode": "binary"}}],
        },
        masks,
        lambda inputs: -2.0
        * functional.binary_cross_entropy_with_logits(inputs["prediction"], inputs["target"], reduction="sum")
        + dice(inputs["prediction"].sigmoid(), inputs["target"], 1.0),
    ),
    Composition(
        "kendall",
        {"name": "uncertainty", "terms": [HEADS[0], {**HEADS[1], "kind": "classification"}]},
        heads,
        kendall,
        ("value", "logits", "log_variance"),
    ),
    Composition(
        "unhalved",
        {"name": "uncertainty", "form": "unhalved", "terms": HEADS},
        heads,
        unhalved,
        ("value", "logits", "log_variance"),
    ),
    Composition(
        "mean",
        {"name": "curriculum", "loss": {"name": "cross_entropy"}, "progress": 0.5},
        lessons,
        kept_rows,
    ),
    Composition(
        "sum_scaled",
        {"name": "curriculum", "loss": {"name": "cross_entropy"}, "progress": 0.5, "normalization": "sum_scaled"},
        lessons,
        lambda inputs: kept_rows(inputs, 5.0),
    ),
    Composition("defaults", {"name": "gradnorm"}, norms, lambda inputs: restoring(inputs, 1.5), ("task_weight",)),
    Composition(
        "alpha", {"name": "gradnorm", "alpha": 0.12}, norms, lambda inputs: restoring(inputs, 0.12), ("task_weight",)
    ),
    *EXPRESSIONS,
    *SERIES,
)  # fmt: skip
