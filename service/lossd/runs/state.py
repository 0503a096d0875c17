"""The state of a run: what batches have contributed, added up exactly. It merges and has bytes; it computes no metric.

This module loads neither torch nor the evaluation, so that a process which only merges states stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from lossd.exact.integer_sums import IntegerSums
from lossd.metrics.registry import Array
from lossd.runs import encoding, totals
from lossd.runs.facts import Facts
from lossd.runs.rows import identity
from lossd.runs.rows.fingerprint import Fingerprint
from lossd.runs.rows.slots import slots_of
from lossd.runs.totals import RunTotal
from lossd_client.errors import DefinitionChanged, InvalidRequest

__all__ = ["Measured", "RunState", "description_of", "parts_of"]


class Measured(NamedTuple):
    """What batches contribute.

    Attributes:
        facts: What they have in common; None of no batch.
        totals: The total of each contribution, by part and name.
        by_slot: How many rows each slot has.
        targets: The fingerprint of the targets; None for none.
        grouping: The fingerprint of the targets and the groups that they are in; None for none.
    """

    facts: Facts | None
    totals: Mapping[str, RunTotal]
    by_slot: IntegerSums
    targets: Fingerprint | None
    grouping: Fingerprint | None


class RunState:
    """What the batches of a run have contributed.

    Args:
        definition: The run's checked definition: ``request``, ``identity``, ``rows``, ``scope``, ``limit`` and strata.

    Attributes:
        definition: The run's definition, which is not changed.
        slots: Where rows are counted.
        identity: Which rows are counted.
        facts: What the batches have in common; None before the first.
        versions: The version of each metric's definition; empty before the first batch.
        totals: The total of each contribution, by part and name.
        by_slot: How many rows each slot has.
        fingerprint: The fingerprint of the targets; None for tasks without any.
        grouping: The fingerprint of the targets and the groups that they are in; None where the groups follow from the
            rows' identity, and for tasks without targets.

    Raises:
        InvalidRequest: There is no such identity.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.definition = definition
        self.slots = slots_of(definition)
        self.identity = identity.new(definition["identity"])
        self.facts: Facts | None = None
        self.versions: Mapping[str, int] = {}
        self.totals: dict[str, RunTotal] = {}
        self.by_slot = IntegerSums(self.slots.count)
        self.fingerprint: Fingerprint | None = None
        self.grouping: Fingerprint | None = None

    @property
    def rows(self) -> int:
        """How many rows are counted."""
        return self.identity.rows

    def rows_by_group(self, stratum: int) -> Array:
        """Return how many rows of a stratum each group has, (groups,) int64; (1,) without groups."""
        groups = self.slots.groups
        return self.by_slot.dense(stratum * groups, (stratum + 1) * groups)

    @property
    def targets(self) -> str | None:
        """The fingerprint of the targets as text; None for tasks without any."""
        return None if self.fingerprint is None else str(self.fingerprint)

    @property
    def pairing(self) -> str | None:
        """The fingerprint of the targets and their groups; None where the groups follow from the rows' identity.

        Two runs of equal targets and equal pairing have the same rows in each group.
        """
        return None if self.grouping is None else str(self.grouping)

    @property
    def digest(self) -> str:
        """``s2:`` and the digest of the bytes: equal for equal definitions and rows."""
        return encoding.digest(self.encode())

    def missing(self, expected: int | None = None) -> list[range]:
        """Return the first ranges of rows that are not counted.

        Args:
            expected: The number of rows of the data set; None for the definition's.
        """
        return self.identity.missing(self.definition["rows"] if expected is None else expected)

    def check(self, measured: Measured) -> None:
        """Check that a batch fits what was counted.

        Raises:
            InvalidRequest: It has other classes, or weights or clusters where there were none.
        """
        if self.facts is None or measured.facts is None:
            return
        self.facts.check(measured.facts)
        for key, total in measured.totals.items():
            if key in self.totals and self.totals[key].shape != total.shape:
                part, counted = key.partition(".")[0], self.totals[key].shape
                raise InvalidRequest(f"{part} has shape {total.shape} in this batch and {counted} in those counted")

    def add(self, measured: Measured, versions: Mapping[str, int]) -> None:
        """Add up what a checked batch contributes. Its rows are counted by :attr:`identity`.

        Args:
            measured: What the batch contributes, whose totals may become the state's.
            versions: The version of each metric's definition.
        """
        for key, total in measured.totals.items():
            if key in self.totals:
                self.totals[key].merge(total)
            else:
                self.totals[key] = total
        self.by_slot.merge(measured.by_slot)
        assert measured.facts is not None
        self._join(measured.facts, versions, measured.targets, measured.grouping)

    def merge(self, other: RunState) -> None:
        """Count the rows of another state, which keeps its own.

        Raises:
            DefinitionChanged: The definition of a metric has changed between the two.
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
                raise DefinitionChanged(
                    "the definition of a metric has changed between the two runs; count the rows again"
                )
        for key, total in other.totals.items():
            if key in self.totals and self.totals[key].shape != total.shape:
                raise InvalidRequest(f"{key.partition('.')[0]} has another shape in the other run")
        self.identity.merge(cast("Any", other.identity))
        for key, total in other.totals.items():
            self._total(key, total).merge(total)
        self.by_slot.merge(other.by_slot)
        self._join(other.facts, other.versions, other.fingerprint, other.grouping)

    def _total(self, key: str, like: RunTotal) -> RunTotal:
        if key not in self.totals:
            self.totals[key] = totals.empty(like, self.slots)
        return self.totals[key]

    def _join(
        self,
        facts: Facts,
        versions: Mapping[str, int],
        targets: Fingerprint | None,
        grouping: Fingerprint | None,
    ) -> None:
        if self.facts is None:
            self.facts, self.versions = facts.copy(), versions
        self.facts.merge(facts)
        if targets is not None:
            self.fingerprint = self.fingerprint or Fingerprint()
            self.fingerprint.merge(targets)
        if grouping is not None:
            self.grouping = self.grouping or Fingerprint()
            self.grouping.merge(grouping)

    # Bytes

    def encode(self) -> bytes:
        """Return the state as bytes: the same for the same rows, however they were counted."""
        measured = Measured(self.facts, self.totals, self.by_slot, self.fingerprint, self.grouping)
        described = description_of(self.definition, self.versions, measured)
        return encoding.encode(described, parts_of(measured, self.identity.encode()))

    @classmethod
    def decode(cls, data: bytes) -> RunState:
        """Return the state whose :meth:`encode` these bytes are, or those of an earlier version.

        The bytes may come from anybody. Whether the definition has a plan, and whether these are its metrics, is not
        checked here.

        Raises:
            InvalidRequest: The bytes are damaged.
        """
        return cls.merged([data])

    @classmethod
    def merged(cls, many: Sequence[bytes]) -> RunState:
        """Return the state of the rows of several states; errors are those of :meth:`decode` and :meth:`merge`.

        States with the description of the first one are read together, which takes a third of the time.
        """
        described, parts, version, others = encoding.decode_alike(many)
        state = cls._read(described, parts, version)
        if others:
            state.merge(cls.merged(others))
        return state

    @classmethod
    def _read(cls, described: Mapping[str, Any], parts: dict[str, list[bytes]], version: int) -> RunState:
        """Return the state of several states with one description, each of whose parts has the list of its bytes."""
        first = version == encoding.FIRST
        with encoding.reading():
            state = cls(described["definition"])
            state.identity = identity.merged(parts.pop("identity"))
            if described["targets"]:
                state.fingerprint = Fingerprint.merged(parts.pop("targets"))
            if not first and described["pairing"]:
                state.grouping = Fingerprint.merged(parts.pop("pairing"))
            if "facts" in described:
                state.facts, state.versions = Facts.of_dict(described["facts"]), described["metrics"]
                for key, (kind, shape) in described["totals"].items():
                    encoded = parts.pop(f"total.{key}")
                    if not first:
                        state.totals[key] = totals.merged(kind, shape, state.slots, encoded)
                        continue
                    state.totals[key] = totals.decode_first(kind, shape, state.slots, encoded[0])
                    for data in encoded[1:]:
                        state.totals[key].merge(totals.decode_first(kind, shape, state.slots, data))
            if not first:
                state.by_slot = IntegerSums.merged(parts.pop("rows"), state.slots.count)
            elif state.rows:
                state.by_slot = IntegerSums(1, np.zeros(1, np.int64), np.array([state.rows]))
            if parts or state.identity.kind != state.definition["identity"]:
                raise ValueError("parts that the description does not name")
            if first and state.slots.count != 1:
                raise ValueError("a version without groups has some")
            if state.versions.keys() != set(() if state.facts is None else state.facts.names):
                raise ValueError("versions of other metrics than the facts name")
        return state


def description_of(definition: Mapping[str, Any], versions: Mapping[str, int], measured: Measured) -> bytes:
    """Return the text that describes what batches contribute, but for the numbers."""
    described: dict[str, Any] = {"definition": definition, "metrics": versions}
    described["targets"] = measured.targets is not None
    described["pairing"] = measured.grouping is not None
    if measured.facts is not None:
        described["facts"] = measured.facts.to_dict()
        described["totals"] = {key: [total.kind, total.shape] for key, total in measured.totals.items()}
    return encoding.text_of(described)


def parts_of(measured: Measured, identity: bytes) -> dict[str, bytes]:
    """Return the parts of the bytes of a state.

    Args:
        measured: What its batches contribute.
        identity: The bytes of the rows that are counted.
    """
    parts = {f"total.{key}": total.encode() for key, total in measured.totals.items()}
    if measured.targets is not None:
        parts["targets"] = measured.targets.encode()
    if measured.grouping is not None:
        parts["pairing"] = measured.grouping.encode()
    parts["identity"] = identity
    parts["rows"] = measured.by_slot.encode()
    return parts
