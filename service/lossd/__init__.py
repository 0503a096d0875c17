"""Loss as a service: losses, gradients and metrics over HTTP, batched onto a worker."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
