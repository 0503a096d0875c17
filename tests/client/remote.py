"""A remote loss for tests that are collected without it: its import takes a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossd_client.torch import RemoteLoss

__all__ = ["remote_loss"]


def remote_loss(loss: str | Mapping[str, Any], **options: Any) -> RemoteLoss:
    """Return a RemoteLoss."""
    from lossd_client.torch import RemoteLoss

    return RemoteLoss(loss, **options)
