"""What a check measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.goals import Verdict

__all__ = ["Finding"]


@dataclass
class Finding:
    """What a check measured, as a table, what it says of it, and who was not measured for what reason."""

    headings: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
