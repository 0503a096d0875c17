"""The states of runs in the database: reads them merged, and folds them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossd.recorder import folding
from lossd.recorder.folding import Covered
from lossd.recorder.schema import RUNS, STATES
from lossd.runs import encoding
from lossd.runs.state import RunState

__all__ = ["Merged", "States"]

MERGED_BYTES, MOST_MERGED = 128 << 20, 1000
"""The bytes of merged states in memory, but for the latest, and their number."""


class Merged:
    """The merged state of a run.

    Attributes:
        state: The state; None without batches.
        data: Its bytes; empty without batches.
        batches: How many batches it covers.
        revision: The revision of the run.
    """

    def __init__(self, state: RunState | None, batches: int, revision: int) -> None:
        self.state, self.batches, self.revision = state, batches, revision
        self.data = b"" if state is None else state.encode()


class States:
    """Merged states, as long as there is memory for them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Merged] = OrderedDict()

    def forget(self, run: str) -> None:
        """Forget the state of a run."""
        self._known.pop(run, None)

    def merged(self, connection: Connection, row: Mapping[str, Any]) -> Merged:
        """Return the merged state of a run, whose row is locked."""
        known = self._known.get(row["id"])
        if known is None or known.revision != row["revision"]:
            self.forget(row["id"])  # it changes now
            known = self._known[row["id"]] = _read(connection, row, known)
        self._known.move_to_end(row["id"])
        nbytes = sum(len(merged.data) for merged in self._known.values())
        while len(self._known) > 1 and (nbytes > MERGED_BYTES or len(self._known) > MOST_MERGED):
            _, dropped = self._known.popitem(last=False)
            nbytes -= len(dropped.data)
        return known

    def fold(self, connection: Connection, row: Mapping[str, Any]) -> None:
        """Make one state of a run's latest ones."""
        covered = _covered(connection, row["id"])
        ordinal = folding.oldest_to_fold(covered)
        state = folding.merged(_states(connection, row["id"], ordinal))
        _replace(connection, row, ordinal, state.encode())

    def fold_all(self, connection: Connection, row: Mapping[str, Any]) -> None:
        """Make one state of all of a run's."""
        _replace(connection, row, 0, self.merged(connection, row).data)


def _read(connection: Connection, row: Mapping[str, Any], known: Merged | None) -> Merged:
    """Return the merged state from a known one and the batches since, or from all states."""
    batches, revision = row["batches"], row["revision"]
    if not batches:
        return Merged(None, 0, revision)
    if known is not None and known.state is not None:
        since = [state for state in _covered(connection, row["id"]) if state.ordinal >= known.batches]
        # A fold of batches on both sides would leave some out.
        if known.batches + sum(state.batches for state in since) == batches:
            if since:
                known.state.merge(folding.merged(_states(connection, row["id"], known.batches)))
            return Merged(known.state, batches, revision)
    return Merged(folding.merged(_states(connection, row["id"], 0)), batches, revision)


def _covered(connection: Connection, run: str) -> list[Covered]:
    """Return what the states of a run cover, in the order of their batches."""
    columns = (STATES.c.ordinal, STATES.c.batches, STATES.c.nbytes)
    query = sa.select(*columns).where(STATES.c.run == run).order_by(STATES.c.ordinal)
    return [Covered(*row) for row in connection.execute(query)]


def _states(connection: Connection, run: str, ordinal: int) -> Iterator[bytes]:
    """Yield the states of a run from an ordinal on, as they are stored."""
    query = sa.select(STATES.c.state).where(STATES.c.run == run, STATES.c.ordinal >= ordinal)
    yield from connection.scalars(query.order_by(STATES.c.ordinal))


def _replace(connection: Connection, row: Mapping[str, Any], ordinal: int, data: bytes) -> None:
    """Replace the states of a run from an ordinal on by one."""
    state = encoding.packed(data)
    chosen = (STATES.c.run == row["id"]) & (STATES.c.ordinal >= ordinal)
    before = int(connection.scalar(sa.select(sa.func.sum(STATES.c.nbytes)).where(chosen)) or 0)
    connection.execute(sa.delete(STATES).where(chosen))
    new = {"run": row["id"], "ordinal": ordinal, "batches": row["batches"] - ordinal, "nbytes": len(state)}
    connection.execute(sa.insert(STATES), {**new, "state": state})
    values = {"bytes": row["bytes"] - before + len(state), "pending": 0, "pending_bytes": 0}
    connection.execute(sa.update(RUNS).where(RUNS.c.id == row["id"]).values(values))
