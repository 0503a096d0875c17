"""Metrics of the regions of images: all regions of an image together, their boundaries and their volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.metrics.counts import CLASSES, Counts
from lossd.metrics.parts import RowMean, Sums
from lossd.metrics.registry import Array, Floats, metric
from lossd_client.errors import InvalidRequest

__all__ = ["Regions"]

BOUNDARY = 0.02
"""The width of a boundary, as a fraction of the image's diagonal."""


class Regions(Counts):
    """Regions of each image.

    Attributes:
        classes: The number of classes.
    """

    classes: int

    @cached_property
    def predicted_class(self) -> Tensor:
        """The predicted classes, (R, I) int64."""
        raise NotImplementedError

    @cached_property
    def target_class(self) -> Tensor:
        """The target classes, (R, I) int64; anything where ignored."""
        raise NotImplementedError

    @cached_property
    def row_counts(self) -> tuple[Array, Array, Array]:
        """Hits, predictions and targets of each row on its own, (R, C) int64 each."""
        raise NotImplementedError

    @RowMean
    def row_generalized_dice(self) -> tuple[Floats, Array]:
        """The Dice coefficient of all regions of each image together, (R, 1)."""
        tp, predicted, actual = self.row_counts
        some = actual > 0
        smallest = np.where(some, actual, np.iinfo(np.int64).max).min(1, keepdims=True)
        # In units of the smallest region's weight, which those without a target have too.
        weight = np.where(some, smallest / np.where(some, actual, 1), 1.0) ** 2
        above, below = 2 * (weight * tp).sum(1), (weight * (predicted + actual)).sum(1)
        defined: Array = np.logical_or.reduce(some, axis=1)
        return (above / np.where(defined, below, 1))[:, None], defined[:, None]

    @RowMean
    def row_volumes(self) -> tuple[Floats, Array]:
        """Predicted less target entries of each class in each image, (R, C); of images with entries that count."""
        _, predicted, actual = self.row_counts
        return (predicted - actual).astype(float), actual.sum(1, keepdims=True) > 0

    @RowMean
    def row_relative_volumes(self) -> tuple[Floats, Array]:
        """The same over the target's, (R, C); of images that have the class."""
        _, predicted, actual = self.row_counts
        return (predicted - actual) / np.maximum(actual, 1), actual > 0

    @Sums
    def boundary_counts(self) -> Tensor:
        """Entries in both boundaries, in the prediction's and in the target's, of each class, (R, C, 3) int64."""
        shape = self.view.tensors["prediction"].shape
        by_class = self.view.activation != "predicted"
        if len(shape) != 3 + by_class:
            needed = "(N, C, H, W)" if by_class else "(N, H, W)"
            raise InvalidRequest(
                f"boundary_iou needs images, a prediction of the shape {needed}, found {tuple(shape)}; leave it out"
            )
        height, width = shape[-2:]
        distance = max(1, round(BOUNDARY * math.hypot(height, width)))
        ignored = self.entries.ignored
        kept = None if ignored is None else ~ignored.expand(self.predicted_class.shape).reshape(-1, height, width)
        images = [each.reshape(-1, height, width) for each in (self.predicted_class, self.target_class)]
        counts = []
        for k in range(self.classes):
            predicted, actual = (_boundary(_kept(image == k, kept), distance) for image in images)
            counts.append(torch.stack([each.flatten(1).sum(1) for each in (predicted & actual, predicted, actual)], 1))
        return torch.stack(counts, 1)


def _kept(region: Tensor, kept: Tensor | None) -> Tensor:
    return region if kept is None else region & kept


def _boundary(region: Tensor, distance: int) -> Tensor:
    """Return the positions of regions, (R, H, W) bool, within so many steps of the outside, diagonal steps too."""
    # A square is the product of two lines.
    return region & _near(_near(~region, distance, 2), distance, 1)


def _near(outside: Tensor, distance: int, axis: int) -> Tensor:
    """Return the positions within so many steps of the outside along an axis; beyond the ends all is outside."""
    length = outside.shape[axis]
    sums = torch.cat(
        [torch.zeros_like(outside.narrow(axis, 0, 1), dtype=torch.int32), outside.cumsum(axis, dtype=torch.int32)], axis
    )
    place = torch.arange(length, device=outside.device)
    first, last = (place - distance).clamp(min=0), (place + distance + 1).clamp(max=length)
    beyond = (place < distance) | (place >= length - distance)
    shape = [-1 if number == axis else 1 for number in range(outside.ndim)]
    return (sums.index_select(axis, last) > sums.index_select(axis, first)) | beyond.reshape(shape)


@metric(*CLASSES, better="higher", interval="unit")
def fw_iou(counts: Counts) -> Sequence[Any]:
    """Frequency-weighted IoU: classes weighted by their entries in the target. Equal to iou.weighted."""
    some, union = counts.actual > 0, counts.union
    each = counts.actual * (counts.tp / np.where(some, union, 1))
    return counts.quotients("fw_iou", np.where(some, each, 0).sum(-1), counts.actual.sum(-1))


@metric(*CLASSES, byte_ns=24, reads=("row_generalized_dice",), better="higher", interval="unit")
def generalized_dice(task: Regions) -> Sequence[Any]:
    """Dice of all regions of an image together, each weighted by 1 over its squared size; the mean over images.

    A region without a target has the weight of the smallest that has one. Images without an entry that counts are left
    out. Equals 1 less the loss ``generalized_dice`` without ``smooth``, of decisions.

    References:
        C. H. Sudre et al., Generalised Dice Overlap, 2017, arXiv:1707.03237.
        monai.metrics.GeneralizedDiceScore.
    """
    means, found = task.row_generalized_dice
    return task.numbers("generalized_dice", means[:, 0], ~found[:, 0])


@metric("segmentation", byte_ns=200, reads=("boundary_counts",), better="higher", interval="unit", cases="union")
def boundary_iou(task: Regions) -> Sequence[Any]:
    """IoU of boundaries: the entries of a region within 2 % of the image's diagonal from its outside.

    The distance is at least 1 and counts diagonal steps; the outside of the image and entries that do not count are
    outside. Counts of all images are added up. Undefined for a class without entries. Of images (N, C, H, W).

    References:
        B. Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, 2021, arXiv:2103.16562.
    """
    both, predicted, actual = (task.boundary_counts[..., k] for k in range(3))
    return task.ratio("boundary_iou", both, predicted + actual - both)


@metric(*CLASSES, byte_ns=24, reads=("row_volumes",), interval="real", cases="actual")
def volume_difference(task: Regions) -> Sequence[Any]:
    """The predicted minus the true number of entries of each class, averaged over images: {"macro", "per_class"}.

    ``macro`` is the mean of the sizes of the classes' differences, which themselves add up to 0.
    """
    means, found = task.row_volumes
    return _by_class(task, "volume_difference", means, np.broadcast_to(found, means.shape), of_sizes=True)


@metric(*CLASSES, byte_ns=24, reads=("row_relative_volumes",), interval="real", cases="actual")
def relative_volume_difference(task: Regions) -> Sequence[Any]:
    """volume_difference over the true number of entries of each class, averaged over images: {"macro", "per_class"}.

    Images without the class are left out of its mean, and classes without an image of ``macro``, the mean over classes.
    """
    return _by_class(task, "relative_volume_difference", *task.row_relative_volumes, of_sizes=False)


def _by_class(task: Regions, name: str, values: Floats, defined: Array, *, of_sizes: bool) -> list[Any]:
    """Return {"macro", "per_class"} of values of each class, (B, C), where they are defined."""
    kept = np.where(defined, np.abs(values) if of_sizes else values, 0)
    some: Array = np.logical_or.reduce(defined, axis=1)
    macro = task.numbers(name, kept.sum(1) / np.maximum(defined.sum(1), 1), ~some)
    if not task.listed:
        return [{"macro": value} for value in macro]
    answers = []
    for request, (row, known) in enumerate(zip(values.tolist(), defined.tolist(), strict=True)):
        if missing := [k for k, one in enumerate(known) if not one]:
            task.undefined[request][name] = missing
        each = [value if one else task.zero_division for value, one in zip(row, known, strict=True)]
        answers.append({"macro": macro[request], "per_class": each})
    return answers
