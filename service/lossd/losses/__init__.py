"""The losses: pure torch, one family a file. Importing the package fills :data:`REGISTRY`."""

from __future__ import annotations

from lossd.losses import classification, regression
from lossd.losses.registry import REGISTRY, Loss, loss

__all__ = ["REGISTRY", "Loss", "classification", "loss", "regression"]
