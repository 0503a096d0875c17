"""The state of a run: what batches have contributed, added up exactly. It merges and has bytes; it computes no metric.

This module loads neither torch nor the evaluation, so that a process which only merges states stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lossd.metrics.parts import Contribution
from lossd.runs import encoding, identity, totals
from lossd.runs.facts import Facts
from lossd.runs.fingerprint import Fingerprint
from lossd.runs.totals import RunTotal
from lossd_client.errors import InvalidRequest

__all__ = ["RunState"]


class RunState:
    """What the batches of a run have contributed.

    Args:
        definition: The run's checked definition: ``request``, ``identity``, ``rows``, ``scope`` and ``limit``.

    Attributes:
        definition: The run's definition, which is not changed.
        identity: Which rows are counted.
        facts: What the batches have in common; None before the first.
        versions: The version of each metric's definition; empty before the first batch.
        totals: The total of each contribution, by part and name.
        fingerprint: The fingerprint of the targets; None for tasks without any.

    Raises:
        InvalidRequest: There is no such identity.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.definition = definition
        self.identity = identity.new(definition["identity"])
        self.facts: Facts | None = None
        self.versions: Mapping[str, int] = {}
        self.totals: dict[str, RunTotal] = {}
        self.fingerprint: Fingerprint | None = None

    @property
    def rows(self) -> int:
        """How many rows are counted."""
        return self.identity.rows

    @property
    def targets(self) -> str | None:
        """The fingerprint of the targets as text; None for tasks without any."""
        return None if self.fingerprint is None else str(self.fingerprint)

    @property
    def digest(self) -> str:
        """``s1:`` and the digest of the bytes: equal for equal definitions and rows."""
        return encoding.digest(self.encode())

    def missing(self, expected: int | None = None) -> list[range]:
        """Return the first ranges of rows that are not counted.

        Args:
            expected: The number of rows of the data set; None for the definition's.
        """
        return self.identity.missing(self.definition["rows"] if expected is None else expected)

    def check(self, facts: Facts, contributions: Mapping[str, Contribution]) -> None:
        """Check that a batch fits what was counted.

        Raises:
            InvalidRequest: It has other classes, or weights where there were none.
        """
        if self.facts is None:
            return
        self.facts.check(facts)
        for key, contribution in contributions.items():
            shape = totals.shape_of(contribution, self.definition["limit"])
            if key in self.totals and self.totals[key].shape != shape:
                part, counted = key.partition(".")[0], self.totals[key].shape
                raise InvalidRequest(f"{part} has shape {shape} in this batch and {counted} in those counted")

    def add(
        self,
        facts: Facts,
        versions: Mapping[str, int],
        contributions: Mapping[str, Contribution],
        targets: Fingerprint | None,
    ) -> None:
        """Add up what a checked batch contributes. Its rows are counted by :attr:`identity`.

        Args:
            facts: What the batch has in common with others.
            versions: The version of each metric's definition.
            contributions: What the batch contributes, by part and name.
            targets: The fingerprint of its targets.
        """
        limit = self.definition["limit"]
        for key, contribution in contributions.items():
            if key not in self.totals:
                self.totals[key] = totals.new(contribution, limit)
            self.totals[key].add(contribution)
        self._join(facts, versions, targets)

    def merge(self, other: RunState) -> None:
        """Count the rows of another state, which keeps its own.

        Raises:
            DuplicateRows: Both counted a row.
            InvalidRequest: The other one has another definition, or does not fit.
        """
        if self.definition is not other.definition and self.definition != other.definition:
            raise InvalidRequest("the other run has another definition: another task, loss, option or identity")
        if other.facts is None:
            return
        if self.facts is not None:
            self.facts.check(other.facts)
            if self.versions != other.versions:
                raise InvalidRequest(
                    "the definition of a metric has changed between the two runs; count the rows again"
                )
        for key, total in other.totals.items():
            if key in self.totals and self.totals[key].shape != total.shape:
                raise InvalidRequest(f"{key.partition('.')[0]} has another shape in the other run")
        self.identity.merge(cast("Any", other.identity))
        for key, total in other.totals.items():
            if key not in self.totals:
                self.totals[key] = totals.empty(total)
            self.totals[key].merge(total)
        self._join(other.facts, other.versions, other.fingerprint)

    def _join(self, facts: Facts, versions: Mapping[str, int], targets: Fingerprint | None) -> None:
        if self.facts is None:
            self.facts, self.versions = facts.copy(), versions
        self.facts.merge(facts)
        if targets is not None:
            self.fingerprint = self.fingerprint or Fingerprint()
            self.fingerprint.merge(targets)

    # Bytes

    def encode(self) -> bytes:
        """Return the state as bytes: the same for the same rows, however they were counted."""
        described: dict[str, Any] = {"definition": self.definition, "metrics": self.versions}
        described["targets"] = self.fingerprint is not None
        parts = {f"total.{key}": total.encode() for key, total in self.totals.items()}
        if self.facts is not None:
            described["facts"] = self.facts.to_dict()
            described["totals"] = {key: [total.kind, total.shape] for key, total in self.totals.items()}
        if self.fingerprint is not None:
            parts["targets"] = self.fingerprint.encode()
        return encoding.encode(described, {**parts, "identity": self.identity.encode()})

    @classmethod
    def decode(cls, data: bytes) -> RunState:
        """Return the state whose :meth:`encode` these bytes are.

        The bytes may come from anybody. Whether the definition has a plan, and whether these are its metrics, is not
        checked here.

        Raises:
            InvalidRequest: The bytes are damaged.
        """
        described, parts = encoding.decode(data)
        with encoding.reading():
            state = cls(described["definition"])
            state.identity = identity.decode(parts.pop("identity"))
            if described["targets"]:
                state.fingerprint = Fingerprint.decode(parts.pop("targets"))
            if "facts" in described:
                state.facts, state.versions = Facts.of_dict(described["facts"]), described["metrics"]
                for key, (kind, shape) in described["totals"].items():
                    state.totals[key] = totals.decode(kind, shape, parts.pop(f"total.{key}"))
            if parts or state.identity.kind != state.definition["identity"]:
                raise ValueError("parts that the description does not name")
            if state.versions.keys() != set(() if state.facts is None else state.facts.names):
                raise ValueError("versions of other metrics than the facts name")
        return state
