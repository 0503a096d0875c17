"""The kinds of pictures of metrics."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KINDS"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "roc": ("roc_curve", "auroc"),
    "pr": ("pr_curve", "average_precision"),
    "confusion": ("confusion_matrix",),
    "reliability": ("reliability", "ece"),
}
"""The metric that each kind draws, and the one that summarises it."""
