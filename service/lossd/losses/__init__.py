"""The losses: pure torch, one family a file. Importing the package fills :data:`REGISTRY`."""

from __future__ import annotations

from lossd.losses import (
    binary,
    boxes,
    classification,
    combine,
    distillation,
    embedding,
    expression,
    forecasts,
    generative,
    likelihoods,
    margin,
    perceptual,
    policy,
    preference,
    queries,
    regression,
    segmentation,
    sequence,
)
from lossd.losses.registry import REGISTRY, Loss, loss

__all__ = [
    "REGISTRY",
    "Loss",
    "binary",
    "boxes",
    "classification",
    "combine",
    "distillation",
    "embedding",
    "expression",
    "forecasts",
    "generative",
    "likelihoods",
    "loss",
    "margin",
    "perceptual",
    "policy",
    "preference",
    "queries",
    "regression",
    "segmentation",
    "sequence",
]
