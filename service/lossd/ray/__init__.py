"""lossd under Ray Serve: ``serve run lossd.ray:app replicas=4``. Needs the extra ``lossd[ray]``.

Serve places, replaces, updates and scales the replicas. Each replica is lossd's own server, whose port HAProxy sends
requests to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossd.ray.address import url
    from lossd.ray.application import app

__all__ = ["app", "url"]


def __getattr__(name: str) -> Any:
    # A training loop reads the address alone, and must not load the server.
    try:
        if name == "app":
            from lossd.ray.application import app

            return app
        if name == "url":
            from lossd.ray.address import url

            return url
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lossd"):
            raise
        raise ImportError(f"lossd.ray needs Ray Serve (there is no {error.name}): pip install 'lossd[ray]'") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
