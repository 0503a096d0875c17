"""The inputs of a batch on its device, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.masking import Masking, masking_of
from lossd.evaluation.validation import INDICES, check, dropped_rows, without_dropped
from lossd.job import MASKING, UNIVERSAL
from lossd.losses import softmax
from lossd.losses.reduction import Segments
from lossd_client.errors import Problem

__all__ = ["SOFTMAX", "DeviceInputs", "prepared"]

SOFTMAX = ("multiclass", "segmentation")
"""The tasks of class scores, whose differences alone matter."""


class DeviceInputs(NamedTuple):
    """The inputs of a batch, on its device.

    Attributes:
        tensors: The tensors that the loss and the metrics read, by name: integers in their own dtype, floats in the
            dtype of the computation. A harmless entry replaces each one that does not count or is out of its domain.
        dtype: The dtype of the computation.
        sample_weight: The weight of each row, (R,) float64; None for 1.
        cotangent: The upstream gradient that the request sent; None if it sent none.
        direction: The direction that a Hessian is multiplied by; None if there is none.
        dropped: Which rows have weight 0, (R,) bool; None if none has.
        masking: Which entries count; None if all do.
    """

    tensors: Mapping[str, Tensor]
    dtype: torch.dtype = torch.float32
    sample_weight: Tensor | None = None
    cotangent: Tensor | None = None
    direction: Tensor | None = None
    dropped: Tensor | None = None
    masking: Masking | None = None


def prepared(
    batch: TensorBatch, segments: Segments, *, careful: bool = False
) -> tuple[DeviceInputs, dict[int, Problem]]:
    """Check the inputs of a batch, put them on its device, and return them with the problem of each request.

    Args:
        batch: The batch.
        segments: The rows of each request; one row each if requests are stacked.
        careful: Whether to compute in float64, and to take a sample's single infinite score as certain.
    """
    recipe, device = batch.recipe, batch.device
    on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
    # A composed loss has no samples of its own; its terms use the sample weights.
    weight = on_device.get("sample_weight") if recipe.kind != "composed" else None
    dropped = dropped_rows(weight)
    counted = without_dropped(recipe, on_device, dropped)
    masking: Masking | None = None
    of_masks: dict[int, Problem] = {}
    if recipe.axes:
        masking, of_masks = masking_of(recipe, counted, segments)
        counted = masking.filled({name: t for name, t in counted.items() if recipe.domains[name] not in MASKING})
    safe, problems = check(recipe, counted, segments)
    problems |= of_masks
    dtype = torch.float64 if recipe.wide or careful else torch.float32
    tensors = {
        name: tensor if recipe.domains[name] in INDICES else tensor.to(dtype)
        for name, tensor in safe.items()
        if name not in UNIVERSAL
    }
    shifts = recipe.parameters.get("z_loss") is None  # else the scores count, and not their differences alone
    if careful and shifts and recipe.task in SOFTMAX and recipe.domains.get("prediction") == "logits":
        axis = 1 if recipe.kind == "rows" else 2
        tensors["prediction"] = softmax.settled(tensors["prediction"], axis)
    inputs = DeviceInputs(
        tensors=tensors,
        dtype=dtype,
        sample_weight=None if weight is None else safe["sample_weight"].to(torch.float64),
        cotangent=safe.get("cotangent"),
        direction=safe.get("direction"),
        dropped=dropped,
        masking=masking,
    )
    return inputs, problems
