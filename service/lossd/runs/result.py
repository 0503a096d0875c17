"""The score of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

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
        counted: ``rows``: how many rows are counted.
        missing: The first ranges of rows that are not counted, [first, behind the last]; rows by position or id only.
        bounds: For each metric of a table that had to be cut: how far it may be from the exact value (``within``), and
            the leading bits of a score that were kept (``bits``).
        targets: The fingerprint of the targets, ``t1:`` and 32 hexadecimal digits; None for tasks without any.
        digest: ``s1:`` and the digest of the run's state: equal for equal definitions and rows.
        warnings: Warnings, each with ``code`` and ``detail``.
    """

    loss: float | None
    metrics: Record
    counted: Record
    missing: list[list[int]]
    bounds: Record
    targets: str | None
    digest: str
    warnings: list[Record] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; NaN and infinities as strings."""
        document = {
            **({} if self.loss is None else {"loss": self.loss}),
            "metrics": self.metrics,
            "counted": self.counted,
            "missing": self.missing,
            "bounds": self.bounds,
            "targets": self.targets,
            "digest": self.digest,
            "warnings": self.warnings,
        }
        return cast("dict[str, Any]", json.finite(document))

    def flat(self, *, lists: bool = False) -> dict[str, float]:
        """Return the loss and the metrics as numbers by name; see :func:`lossd_client.run_messages.flat`."""
        return flat(self.loss, self.metrics, lists=lists)
