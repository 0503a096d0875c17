"""Classification losses: of class scores against class indices, or of probabilities against targets in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lossd.losses.reduction import class_weights, weighted
from lossd.losses.registry import Unreduced, Upstream, loss
from lossd.losses.types import ClassIndex, Logits, NonNegative, PerClass, Real


@loss(task="multiclass", kind="rows")
def focal(
    prediction: Logits[Tensor, "N C *"],
    target: ClassIndex[Tensor, "N *"],
    *,
    gamma: NonNegative = 2.0,
    class_weight: PerClass | None = None,
    ignore_index: int | None = -100,
) -> Real[Tensor, "N *"]:
    r"""Cross-entropy that fades for examples already classified well.

    .. math:: (1-p_t)^\gamma \cdot (-\log p_t)

    Args:
        prediction: Class scores.
        target: Class indices.
        gamma: How strongly.
        class_weight: per class.
        ignore_index: ignored.
    """
    target, weight = class_weights(target, prediction, class_weight, ignore_index)
    log_p = torch.log_softmax(prediction, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    fade = torch.exp(gamma * torch.log1p(-log_p.exp().clamp(max=1 - 1e-7)))
    return weighted(-fade * log_p, weight)
