"""The states of runs in the database: reads them merged, and folds them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossd.recorder import folding
from lossd.recorder.folding import Covered
from lossd.recorder.schema import RUNS, STATES
from lossd.recorder.statements import Statement
from lossd.runs import encoding
from lossd.runs.state import RunState

__all__ = ["Fold", "Merged", "Reading", "States", "replace", "replace_all", "to_fold"]

MERGED_BYTES, MOST_MERGED = 128 << 20, 1000
"""The bytes of merged states in memory, but for the latest, and their number."""


class Merged:
    """The merged state of a run.

    Args:
        data: The bytes of the state; empty without batches.
        batches: How many batches it covers.
        revision: The revision of the run.
        state: The state, if it has been read.

    Attributes:
        data: The same bytes.
        batches: The same number.
        revision: The same revision.
    """

    def __init__(self, data: bytes, batches: int, revision: int, state: RunState | None = None) -> None:
        self.data, self.batches, self.revision = data, batches, revision
        self._state = state

    @property
    def state(self) -> RunState | None:
        """The state, which is read when it is needed; None without batches.

        Raises:
            InternalError: The bytes are damaged.
        """
        if self._state is None and self.data:
            self._state = folding.state_of([self.data])
        return self._state


class Reading(NamedTuple):
    """What the merged state of a run is made of, as a transaction read it.

    Attributes:
        run: The run's id.
        revision: The revision of the run.
        batches: How many batches it has.
        known: The merged state of its first batches, of which the others are the rest.
        stored: The states of the rest, as they are stored.
    """

    run: str
    revision: int
    batches: int
    known: Merged | None
    stored: Sequence[bytes]


class Fold(NamedTuple):
    """Some states of a run that become one.

    Attributes:
        covered: What they cover, to the run's last batch.
        stored: The states, as they are stored.
    """

    covered: Sequence[Covered]
    stored: Sequence[bytes]


class States:
    """Merged states, as long as there is memory for them.

    States are read and written in transactions, which lock the run's row, and merged between these: another recorder
    waits for the row meanwhile.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, Merged] = OrderedDict()

    def forget(self, run: str) -> None:
        """Forget the state of a run."""
        self._known.pop(run, None)

    def read(self, connection: Connection, row: Mapping[str, Any]) -> Reading:
        """Return what the merged state of a run is made of; its row is locked."""
        run, batches, revision = row["id"], row["batches"], row["revision"]
        known = self._known.get(run)
        if known is not None and known.revision != revision and not _continues(connection, row, known):
            known = None
        since = 0 if known is None else known.batches
        stored = _states(connection, run, since) if since < batches else []
        return Reading(run, revision, batches, known, stored)

    def merged(self, reading: Reading) -> Merged:
        """Return the merged state of a run."""
        run, revision, batches, known, stored = reading
        if known is None or known.revision != revision:
            self.forget(run)  # it changes now
            known = self._known[run] = _merged(known, stored, batches, revision)
        else:
            self._known[run] = known
        self._known.move_to_end(run)
        nbytes = sum(len(merged.data) for merged in self._known.values())
        while len(self._known) > 1 and (nbytes > MERGED_BYTES or len(self._known) > MOST_MERGED):
            _, dropped = self._known.popitem(last=False)
            nbytes -= len(dropped.data)
        return known


def _merged(known: Merged | None, stored: Sequence[bytes], batches: int, revision: int) -> Merged:
    """Return the state of a known one, which may change, and of others."""
    if not stored:
        return Merged(b"", 0, revision) if known is None else Merged(known.data, batches, revision, known.state)
    if known is None and len(stored) == 1:
        data, *others = encoding.each_unpacked(stored[0])
        if not others and encoding.is_current(data):
            folding.described(data)  # checks the checksum
            return Merged(data, batches, revision)  # merging would give the same bytes
    state = None if known is None else known.state
    rest = folding.merged(stored)
    if state is None:
        state = rest
    else:
        state.merge(rest)
    return Merged(state.encode(), batches, revision, state)


def to_fold(connection: Connection, row: Mapping[str, Any]) -> Fold:
    """Return a run's latest states, which are to become one; its row is locked."""
    covered = _covered(connection, row["id"])
    ordinal = folding.oldest_to_fold(covered, row["batches"] - row["pending"])
    chosen = [state for state in covered if state.ordinal >= ordinal]
    return Fold(chosen, _states(connection, row["id"], ordinal))


def replace(connection: Connection, row: Mapping[str, Any], fold: Fold, state: bytes) -> bool:
    """Replace some states of a run by one; its row is locked.

    Args:
        connection: The connection, in a transaction.
        row: The run's row.
        fold: The states that are replaced.
        state: The state of their batches, as it is stored.

    Returns:
        Whether it was done: not if another recorder has folded some of them since they were read.
    """
    first = fold.covered[0].ordinal
    present = [each for each in _covered(connection, row["id"]) if each.ordinal >= first]
    if present[: len(fold.covered)] != list(fold.covered):
        return False
    later = present[len(fold.covered) :]
    stop = first + sum(each.batches for each in fold.covered)
    _replace(connection, row, range(first, stop), state, sum(each.nbytes for each in later))
    return True


def replace_all(connection: Connection, row: Mapping[str, Any], state: bytes) -> None:
    """Replace all states of a run by one, as it is stored; the run's row is locked."""
    _replace(connection, row, range(row["batches"]), state, 0)


def _continues(connection: Connection, row: Mapping[str, Any], known: Merged) -> bool:
    """Return whether a state begins behind those of a merged one: a fold of batches on both sides leaves some out."""
    since = [state.batches for state in _covered(connection, row["id"]) if state.ordinal >= known.batches]
    return bool(known.data) and known.batches + sum(since) == row["batches"]


_COVERED = Statement(
    sa.select(STATES.c.ordinal, STATES.c.batches, STATES.c.nbytes)
    .where(STATES.c.run == sa.bindparam("which"))
    .order_by(STATES.c.ordinal)
)
_STATES = Statement(
    sa.select(STATES.c.state)
    .where(STATES.c.run == sa.bindparam("which"), STATES.c.ordinal >= sa.bindparam("since"))
    .order_by(STATES.c.ordinal)
)


def _covered(connection: Connection, run: str) -> list[Covered]:
    """Return what the states of a run cover, in the order of their batches."""
    return list(itertools.starmap(Covered, _COVERED.rows(connection, {"which": run})))


def _states(connection: Connection, run: str, ordinal: int) -> list[bytes]:
    """Return the states of a run from an ordinal on, as they are stored."""
    return [state for (state,) in _STATES.rows(connection, {"which": run, "since": ordinal})]


def _replace(connection: Connection, row: Mapping[str, Any], ordinals: range, state: bytes, pending_bytes: int) -> None:
    """Replace the states of some of a run's batches by one; the later batches, if any, are not folded yet."""
    chosen = (STATES.c.run == row["id"]) & STATES.c.ordinal.between(ordinals.start, ordinals.stop - 1)
    before = int(connection.scalar(sa.select(sa.func.sum(STATES.c.nbytes)).where(chosen)) or 0)
    connection.execute(sa.delete(STATES).where(chosen))
    new = {"run": row["id"], "ordinal": ordinals.start, "batches": len(ordinals), "nbytes": len(state)}
    connection.execute(sa.insert(STATES), {**new, "state": state})
    values = {
        "bytes": row["bytes"] - before + len(state),
        "pending": row["batches"] - ordinals.stop,
        "pending_bytes": pending_bytes,
    }
    connection.execute(sa.update(RUNS).where(RUNS.c.id == row["id"]).values(values))
