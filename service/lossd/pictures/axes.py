"""The axes of every loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.losses.registry import Loss
from lossd.pictures.answers import DESIRABLE, GAINED, LIKELY, RATIO, REWARDED
from lossd.pictures.axis import Axis
from lossd.pictures.classification import (
    BINARY,
    FRAMES,
    HINGED,
    MULTICLASS,
    MULTILABEL,
    QUERIED,
    RANKED,
    SAMPLES,
    SHARE,
    TAUGHT,
)
from lossd.pictures.geometry import (
    BOXES_OVERLAP,
    CLASSES_APART,
    COSINE,
    DISTANCE,
    GIVEN_DISTANCE,
    LABELLED,
    OFFSET,
    OVERLAP,
    TRIPLET,
    VIEWS,
)
from lossd.pictures.scalar import (
    AMOUNT,
    AMOUNT_OR_NONE,
    DISPERSED,
    ERROR,
    FAKE,
    FAKE_LEAST_SQUARES,
    FEATURE,
    FORMULA,
    HEAVY_TAILED,
    LEAST_SQUARES,
    LOG_VARIANCE,
    MEAN,
    MEMBERS,
    MIDDLE,
    NORMAL,
    PREDICTED,
    PROGRESS,
    QUANTILES,
    RATE,
    RECONSTRUCTION,
    RELATIVE,
    SCALE,
    SCALE_OF_HEAVY_TAILED,
    SCALED,
    SEPARATION,
    UNCERTAIN,
    VARIANCE,
    WEIGHT,
    WEIGHTED,
    WIDTH,
)
from lossd_client.errors import NotEvaluable

__all__ = ["all_axes", "axes_of", "describe_axes"]

BY_TASK: Mapping[str, tuple[Axis, ...]] = {
    "regression": (ERROR,),
    "quantiles": (QUANTILES,),
    "ensembles": (MEMBERS,),
    "intervals": (MIDDLE, WIDTH),
    "binary": BINARY,
    "multiclass": MULTICLASS,
    "multilabel": MULTILABEL,
    "segmentation": (OVERLAP,),
    "boxes": (OFFSET, BOXES_OVERLAP),
    "pairs": (DISTANCE,),
    "cosine_pairs": (COSINE,),
    "distances": (GIVEN_DISTANCE,),
    "triplets": (TRIPLET,),
    "paired_views": (VIEWS,),
    "labelled_embeddings": (LABELLED,),
    "ranking": (RANKED,),
    "queries": (QUERIED,),
    "sets": (HINGED,),
    "gan": (SEPARATION,),
    "lsgan": (LEAST_SQUARES,),
    "gan_generator": (FAKE,),
    "lsgan_generator": (FAKE_LEAST_SQUARES,),
    "vae": (RECONSTRUCTION, MEAN, LOG_VARIANCE),
    "features": (FEATURE,),
    "sequences": (FRAMES,),
    "preferences": (REWARDED,),
    "desirability": (DESIRABLE,),
    "policy": (RATIO,),
    "distillation": (TAUGHT,),
    "custom": (FORMULA,),
}
BY_NAME: Mapping[str, tuple[Axis, ...]] = {
    "gaussian_nll": (NORMAL, VARIANCE),
    "poisson_nll": (RATE,),
    "gamma_nll": (AMOUNT,),
    "tweedie": (AMOUNT_OR_NONE,),
    "squared_log": (PREDICTED,),
    "negative_binomial_nll": (DISPERSED,),
    "student_t_nll": (HEAVY_TAILED, SCALE_OF_HEAVY_TAILED),
    "laplace_nll": (SCALED, SCALE),
    "crps_normal": (SCALED, SCALE),
    "mape": (RELATIVE,),
    "hinge": (BINARY[1], BINARY[0]),
    "soft_margin": (BINARY[1], BINARY[0]),
    "multi_margin": (HINGED,),
    "kl_div": (SHARE,),
    "soft_f1": (OVERLAP, SAMPLES),
    "bce_dice": (OVERLAP,),
    "mined_triplet": (CLASSES_APART,),
    "dpo": (GAINED,),
    "orpo": (LIKELY,),
    "weighted_sum": (WEIGHTED,),
    "uncertainty": (UNCERTAIN,),
    "curriculum": (PROGRESS,),
    "gradnorm": (WEIGHT,),
    "perceptual": (),
}
WITHOUT: Mapping[str, str] = {
    "composed": "it is made of the losses that its request names; ask for the curve of one of those",
    "sequences": "it depends on every path through a whole sequence",
    "perceptual": "it depends on whole images, as a network sees them",
}
"""Losses, by task or name, that have no axis by default, with the reason. Their axes only show an example."""


def all_axes(loss: Loss) -> tuple[Axis, ...]:
    """Return every axis of a loss, those of examples included; empty if there is none."""
    return BY_NAME.get(loss.name, BY_TASK.get(loss.task, ()))


def axes_of(loss: Loss) -> tuple[Axis, ...]:
    """Return the axes of a loss, the default first.

    Raises:
        NotEvaluable: The loss depends on more than one number; the reason is in the message.
    """
    axes = all_axes(loss)
    reason = WITHOUT.get(loss.name) or WITHOUT.get(loss.task)
    if reason is not None:
        example = f"; x={axes[0].name} draws an example" if axes else ""
        raise NotEvaluable(f"{loss.name} has no curve: {reason}{example}")
    if not axes:
        raise NotEvaluable(f"{loss.name} has no curve: no axis is defined for the task {loss.task}")
    return axes


def describe_axes(loss: Loss) -> list[dict[str, Any]]:
    """Return the axes of a loss as JSON has them."""
    return [axis.describe() for axis in all_axes(loss)]
