"""The engine: jobs in, results out; batches in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lossd.engine.engine import Engine, Upload
from lossd.engine.result import Result, Timings
from lossd.engine.statistics import BATCH_BYTES, BATCH_SIZES, Load, Stats, Vitals

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = [
    "BATCH_BYTES",
    "BATCH_SIZES",
    "Engine",
    "Load",
    "Result",
    "Stats",
    "Timings",
    "Upload",
    "Vitals",
    "create_engine",
]


def create_engine(settings: Settings, workers: Sequence[str] | None = None) -> Engine:
    """The engine the settings name.

    Args:
        settings: Its sizes and limits.
        workers: Where the workers listen, one a device, if somebody else keeps them.
    """
    if settings.engine == "inline":
        from lossd.engine.inline import InlineEngine

        return InlineEngine(settings)
    from lossd.engine.process import ProcessEngine

    return ProcessEngine(settings, workers)
