"""What a check measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.goals import Verdict

__all__ = ["Finding"]


@dataclass
class Finding:
    """What a check measured.

    Attributes:
        headings: Those of the table.
        rows: The table's rows.
        verdicts: What it says of what is required.
        absent: Who was not measured, and why.
        generator: What made the load; empty for wrk where it is installed.
    """

    headings: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    generator: str = ""
