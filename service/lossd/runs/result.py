"""The score of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from lossd_client.comparisons import slice_of
from lossd_client.messages import Record
from lossd_client.run_messages import flat
from lossd_client.wire import json

__all__ = ["RunResult"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The score of the rows that a run has counted.

    Attributes:
        loss: The loss over all rows; None without a loss.
        metrics: The task's metrics, in the form of an evaluation: ``metrics.f1.macro``.
        level: The level of the intervals.
        groups: The number of groups of rows from which intervals are computed; 0 if the run has none.
        intervals: ``low``, ``high`` and ``standard_error`` of a value by its name, such as ``f1.macro`` or
            ``f1.per_class.3``; values without an interval are left out.
        slices: For each value of a slice and each crossing: ``slice``, and ``counted``, ``loss``, ``metrics``,
            ``intervals``, ``bounds`` and ``warnings`` of its rows.
        worst: For each number with a better direction, the ``slice`` with the worst value, and its ``value``. Crossings
            and slices with fewer than 64 rows are left out.
        gap: For each of these numbers, the largest difference between two values of one slice.
        counted: ``rows``: the number of counted rows.
        missing: The first ranges of rows that are not counted, as [first, last + 1]; for identities ``position`` and
            ``id`` only.
        bounds: For each metric whose table exceeded the run's ``limit``: the largest possible error (``within``), and
            the number of leading bits of each score that were kept (``bits``).
        targets: The fingerprint of the targets, ``t1:`` and 32 hexadecimal digits; None for tasks without any.
        pairing: The fingerprint of the assignment of rows to groups; None if the targets' fingerprint determines it.
        digest: ``s2:`` and the digest of the run's state: equal for equal definitions and rows.
        readable: The metrics of the task that can be computed from the counted parts.
        warnings: Warnings, each with ``code`` and ``detail``.
    """

    loss: float | None
    metrics: Record
    level: float
    groups: int
    intervals: Record
    slices: list[Record]
    worst: Record
    gap: Record
    counted: Record
    missing: list[list[int]]
    bounds: Record
    targets: str | None
    pairing: str | None = None
    digest: str
    readable: list[str] = field(default_factory=list)
    warnings: list[Record] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values. NaN and infinities are strings."""
        document = {
            **({} if self.loss is None else {"loss": self.loss}),
            "metrics": self.metrics,
            "level": self.level,
            "groups": self.groups,
            "intervals": self.intervals,
            "slices": self.slices,
            "worst": self.worst,
            "gap": self.gap,
            "counted": self.counted,
            "missing": self.missing,
            "bounds": self.bounds,
            "targets": self.targets,
            **({} if self.pairing is None else {"pairing": self.pairing}),
            "digest": self.digest,
            "readable": self.readable,
            "warnings": self.warnings,
        }
        return cast("dict[str, Any]", json.finite(document))

    def slice(self, **values: str) -> Record:
        """Return the score of the rows of one value of a slice, or of a crossing: ``result.slice(site="A").metrics``.

        Raises:
            KeyError: The run's definition has no such slice.
        """
        return cast("Record", slice_of(self.slices, values))

    def flat(self, *, lists: bool = False) -> dict[str, float]:
        """Return the loss and the metrics as numbers by name; see :func:`lossd_client.run_messages.flat`."""
        return flat(self.loss, self.metrics, lists=lists)
