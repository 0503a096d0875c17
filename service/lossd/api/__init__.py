"""HTTP in front of the engine. The only folder that imports FastAPI."""

from __future__ import annotations

from lossd.api.app import create_app

__all__ = ["create_app"]
