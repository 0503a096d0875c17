"""Counts batches in one transaction: each name once, each row once, and only what can be added up.

Names are looked up in the database. Rows are looked up in memory, where a run's identity stays. If another recorder has
counted batches of the run, their rows are added first. The identity is read from the run's states if it is not known.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossd.recorder import faults, folding
from lossd.recorder.definitions import in_common
from lossd.recorder.protocol import NewBatch
from lossd.recorder.schema import BATCHES, DELETED, OPEN, RUNS, STATES
from lossd.recorder.statements import Statement
from lossd.runs import encoding
from lossd.runs.report import BatchReport
from lossd.runs.rows import identity
from lossd.runs.rows.batches import check_same
from lossd.runs.rows.identity import Identity, Ids, Positions
from lossd_client.errors import (
    DuplicateRows,
    InternalError,
    InvalidRequest,
    Problem,
    QuotaExceeded,
    RunSealed,
    UnknownRun,
)

__all__ = ["Counter", "lock", "quota_exceeded"]

BATCH_BYTES = 256
"""What a batch takes beside its name, its ids and its state: about that much of the table and its indices."""

LOOKED_UP = 500
"""Names in one query, below the number of parameters that every SQLite takes."""

IDENTITY_BYTES = 256 << 20
"""The memory of all identities, but for the one in use."""

MOST_KNOWN = 1000
"""Runs that are known at a time."""

USED_FOR_S = 10.0
"""How long an owner's bytes are known. To add them up takes a millisecond for a thousand runs."""

NAMED, CANDIDATES = 10, 64
"""Rows whose batches an error names, and batches that are searched for one id."""

CHANGING = -1
"""The revision of an identity that is ahead of the database until the transaction is committed."""


@dataclass
class _Known:
    """What this process knows of a run beyond its row.

    Attributes:
        identity: The rows that are counted.
        common: What the states of all batches have in common; None before the first.
        revision: The revision of the run at which this was true.
        batches: The batches of the run at that revision.
        entries: Their entries; None if those of a batch are not known.
        described: The description of a state that was found to fit: most batches of a run have the same.
    """

    identity: Identity
    common: dict[str, Any] | None
    revision: int
    batches: int
    entries: int | None
    described: bytes | None = None


class _Batch(NamedTuple):
    """A row of ``batches``."""

    run: str
    name: str
    ordinal: int
    digest: bytes
    rows: int
    total_rows: int
    entries: int | None
    total_entries: int | None
    first: int | None
    last: int | None
    identity: bytes | None
    device: str
    build: str
    counted_at: float


class _State(NamedTuple):
    """A row of ``states``."""

    run: str
    ordinal: int
    batches: int
    nbytes: int
    state: bytes


class _Counted(NamedTuple):
    """What an answer says of a batch that was counted."""

    name: str
    digest: bytes
    rows: int
    entries: int | None
    total_rows: int
    ordinal: int


@dataclass
class _Open:
    """A run during a transaction: its row as it was and as it will be, and its new rows of other tables."""

    row: dict[str, Any]
    known: _Known
    common: dict[str, Any] | None
    batches: list[_Batch] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)

    def rows_of_states(self) -> Iterator[_State]:
        """Yield the new rows of ``states``: short states of neighbouring batches are one row."""
        ordinal = self.row["batches"] - len(self.states)
        for some, stored in encoding.joined(self.states):
            yield _State(self.row["id"], ordinal, len(some), sum(map(len, some)), stored)
            ordinal += len(some)


@dataclass
class _Used:
    """The bytes of an owner's runs, and since when they are known."""

    nbytes: int
    since: float


class Counter:
    """Counts batches of any runs.

    Args:
        run_bytes: The most bytes of a run.
        owner_bytes: The most bytes of all runs of an owner.
        clock: The Unix time.
    """

    def __init__(self, run_bytes: int, owner_bytes: int, clock: Callable[[], float]) -> None:
        self._run_bytes, self._owner_bytes, self._clock = run_bytes, owner_bytes, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._owners: dict[str, _Used] = {}

    def forget(self, run: str) -> None:
        """Forget a run that is sealed or deleted, and what owners use."""
        self._known.pop(run, None)
        self._owners.clear()

    def forget_all(self) -> None:
        """Forget all runs and owners."""
        self._known.clear()
        self._owners.clear()

    def count(
        self, connection: Connection, batches: Sequence[NewBatch], *, wait: bool = True
    ) -> tuple[list[dict[str, Any] | Problem | None], dict[str, dict[str, Any]]]:
        """Count batches, each as if it came after the one before it.

        Args:
            connection: The connection, in a transaction.
            batches: The batches.
            wait: Whether to wait for runs that another recorder holds.

        Returns:
            For each batch, its outcome or why it was refused; without ``wait``, None for a batch of a run that was not
            found, which another recorder may hold. And the rows of the runs that changed: the caller passes them to
            :meth:`committed` after the commit.
        """
        rows = lock(connection, {batch.run for batch in batches}, wait=wait)
        counted = _counted(connection, batches)
        used = {owner: self._used(connection, owner) for owner in {row["owner"] for row in rows.values()}}
        opened: dict[str, _Open] = {}
        outcomes: list[dict[str, Any] | Problem | None] = []
        for batch in batches:
            if not wait and batch.run not in rows:
                outcomes.append(None)
                continue
            try:
                report = _read(batch.report)
                before = counted.get((batch.run, batch.name))
                row = rows.get(batch.run)
                if row is None:
                    raise UnknownRun("the run does not exist any more: it was deleted")
                if before is None:
                    run = opened.get(batch.run) or opened.setdefault(batch.run, self._opened(connection, row))
                    before = self._add(connection, run, batch, report, used)
                    counted[batch.run, batch.name] = before
                    outcomes.append(_outcome(before, created=True))
                else:
                    check_same(batch.name, before.digest, report.digest)
                    outcomes.append(_outcome(before, created=False))
            except Problem as problem:
                outcomes.append(problem)
        changed = [run for run in opened.values() if run.batches]
        if changed:
            self._write(connection, changed)
            faults.reach(faults.WRITTEN)
        return outcomes, {run.row["id"]: run.row for run in changed}

    def committed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note that the runs with these rows are now in the database as they are in memory."""
        for row in rows:
            if (known := self._known.get(row["id"])) is not None:
                known.revision, known.batches = row["revision"], row["batches"]
            if (owner := self._owners.get(row["owner"])) is not None:
                owner.nbytes += row["grown"]
        self._drop_oldest()

    def _opened(self, connection: Connection, row: dict[str, Any]) -> _Open:
        """Return a run with its identity, which is read from its states unless it is known.

        Raises:
            RunSealed: It counts nothing more.
        """
        if row["status"] != OPEN:
            raise RunSealed(f"the run {row['name']} is sealed: its result is final; count in another run")
        known = self._known.get(row["id"])
        if known is None or known.revision == CHANGING:
            known = self._known[row["id"]] = _read_all(connection, row)
        elif known.revision != row["revision"]:
            _catch_up(connection, row, known)
        self._known.move_to_end(row["id"])
        return _Open(row, known, known.common)

    def _add(
        self, connection: Connection, run: _Open, batch: NewBatch, report: BatchReport, used: dict[str, int]
    ) -> _Counted:
        """Count a new batch in memory; return what an answer says of it.

        Raises:
            Problem: It is refused; nothing has changed.
        """
        known, row, packed = run.known, run.row, report.packed
        common = known.common
        if report.described != known.described:
            common = in_common(common, encoding.description(report.described))
        rows = _identity(report)
        if rows.kind != known.identity.kind or rows.rows != report.rows:
            raise InternalError("the worker's report of the batch contradicts itself")
        stored = encoding.compressed(report.identity) if isinstance(rows, Ids) else None
        nbytes = len(packed) + len(stored or b"") + len(batch.name) + BATCH_BYTES
        self._check_quota(row, nbytes, used)
        try:
            known.identity.extend(cast("Any", rows))
        except DuplicateRows as problem:
            raise _with_batches(connection, run, problem) from None
        known.revision, known.common, known.described = CHANGING, common, report.described
        known.entries = None if known.entries is None else known.entries + report.entries
        row["rows"] += report.rows
        ordinal = row["batches"]
        counted = _Counted(batch.name, report.digest, report.rows, report.entries, row["rows"], ordinal)
        first, last = rows.bounds or (None, None)
        run.batches.append(
            _Batch(
                batch.run,
                batch.name,
                ordinal,
                report.digest,
                report.rows,
                row["rows"],
                report.entries,
                known.entries,
                first,
                last,
                stored,
                batch.device,
                batch.build,
                self._clock(),
            )
        )
        run.states.append(packed)
        row["batches"] += 1
        row["bytes"] += nbytes
        row["grown"] = row.get("grown", 0) + nbytes
        row["pending"] += 1
        row["pending_bytes"] += len(packed)
        used[row["owner"]] = used.get(row["owner"], 0) + nbytes
        return counted

    def _used(self, connection: Connection, owner: str) -> int:
        """Return about how many bytes the runs of an owner have: other recorders' are a few seconds old."""
        known = self._owners.get(owner)
        if known is None or not 0 <= self._clock() - known.since < USED_FOR_S:
            known = self._owners[owner] = _Used(connection.scalar(_USED, {"whose": owner}) or 0, self._clock())
        return known.nbytes

    def _check_quota(self, row: Mapping[str, Any], nbytes: int, used: Mapping[str, int]) -> None:
        if row["bytes"] + nbytes > self._run_bytes:
            raise quota_exceeded(f"the run {row['name']}", row["bytes"], self._run_bytes, f"the batch has {nbytes}")
        total = used.get(row["owner"], 0)
        if total + nbytes > self._owner_bytes:
            raise quota_exceeded("your runs together", total, self._owner_bytes, f"the batch has {nbytes}")

    def _write(self, connection: Connection, runs: Sequence[_Open]) -> None:
        _INSERT_BATCHES.execute_each(connection, [row for run in runs for row in run.batches])
        _INSERT_STATES.execute_each(connection, [row for run in runs for row in run.rows_of_states()])
        now = self._clock()
        for run in runs:
            row = run.row
            row["revision"] += 1
            row["touched"] = max(now, row["touched"])
            if run.known.common is not run.common:
                _UPDATE_COMMON.execute(connection, {"id_": row["id"], "common_": json.dumps(run.known.common)})
            _UPDATE_RUN.execute(connection, {f"{name}_": row[name] for name in ("id", *_CHANGING)})

    def _drop_oldest(self) -> None:
        nbytes = sum(known.identity.nbytes for known in self._known.values())
        while len(self._known) > 1 and (nbytes > IDENTITY_BYTES or len(self._known) > MOST_KNOWN):
            _, dropped = self._known.popitem(last=False)
            nbytes -= dropped.identity.nbytes


_CHANGING = ("rows", "batches", "bytes", "pending", "pending_bytes", "touched", "revision")
_LOCKED = ("id", "owner", "name", "status", *_CHANGING)


def _update(*names: str) -> Statement:
    """Return the statement that sets columns of a run; the parameters are the columns' names with an underscore."""
    values: dict[str, Any] = {name: sa.bindparam(f"{name}_") for name in names}
    return Statement(sa.update(RUNS).where(RUNS.c.id == sa.bindparam("id_")).values(values))


_INSERT_BATCHES = Statement(sa.insert(BATCHES), order=_Batch._fields)
_INSERT_STATES = Statement(sa.insert(STATES), order=_State._fields)
_UPDATE_RUN, _UPDATE_COMMON = _update(*_CHANGING), _update("common")
_ROWS = (
    sa.select(*(RUNS.c[name] for name in _LOCKED))
    .where(RUNS.c.id.in_(sa.bindparam("ids", expanding=True)), RUNS.c.status != DELETED)
    .order_by(RUNS.c.id)
)
_LOCK = Statement(_ROWS.with_for_update(), among="ids")
_LOCK_FREE = Statement(_ROWS.with_for_update(skip_locked=True), among="ids")
_COUNTED = Statement(
    sa.select(*(BATCHES.c[name] for name in _Counted._fields)).where(
        BATCHES.c.run == sa.bindparam("which"), BATCHES.c.name.in_(sa.bindparam("names", expanding=True))
    ),
    among="names",
)
# A statement is made once: to make one takes as long as SQLite takes to run it.
_USED = sa.select(sa.func.coalesce(sa.func.sum(RUNS.c.bytes), 0)).where(
    RUNS.c.owner == sa.bindparam("whose"), RUNS.c.status != DELETED
)
_TEXTS = sa.select(RUNS.c.common, RUNS.c.document).where(RUNS.c.id == sa.bindparam("which"))
_STATES = sa.select(STATES.c.state).where(STATES.c.run == sa.bindparam("which"))
_ENTRIES = sa.select(BATCHES.c.total_entries).where(
    BATCHES.c.run == sa.bindparam("which"), BATCHES.c.ordinal == sa.bindparam("last")
)
_SINCE = sa.select(BATCHES.c.first, BATCHES.c.rows, BATCHES.c.identity).where(
    BATCHES.c.run == sa.bindparam("which"), BATCHES.c.ordinal >= sa.bindparam("since"), BATCHES.c.first.is_not(None)
)


def lock(connection: Connection, ids: Iterable[str], *, wait: bool = True) -> dict[str, dict[str, Any]]:
    """Return what changes of runs, by their ids, locked against other recorders; deleted runs are left out.

    Recorders lock in the same order, so they cannot wait for each other in a circle. Without ``wait``, runs that
    another recorder holds are left out too.
    """
    found: dict[str, dict[str, Any]] = {}
    ordered = sorted(ids)
    for first in range(0, len(ordered), LOOKED_UP):
        for row in (_LOCK if wait else _LOCK_FREE).rows(connection, {"ids": ordered[first : first + LOOKED_UP]}):
            found[row[0]] = dict(zip(_LOCKED, row, strict=True))
    return found


def _read_all(connection: Connection, row: Mapping[str, Any]) -> _Known:
    """Return what is known of a run, read from the states of all its batches."""
    common, document = connection.execute(_TEXTS, {"which": row["id"]}).one()
    kind = json.loads(document).get("identity", "batch")
    common = None if common is None else json.loads(common)
    known = _Known(identity.new(kind), common, row["revision"], row["batches"], _entries(connection, row))
    if kind != "batch":
        for (stored,) in connection.execute(_STATES, {"which": row["id"]}):
            for data in encoding.each_unpacked(stored):
                _, parts = folding.described(data)
                known.identity.merge(cast("Any", identity.decode(parts["identity"])))
    return known


def _catch_up(connection: Connection, row: Mapping[str, Any], known: _Known) -> None:
    """Add what other recorders have counted since a run was known: its batches are never changed, and only added."""
    known.revision = CHANGING
    (common, _) = connection.execute(_TEXTS, {"which": row["id"]}).one()
    known.common, known.described = None if common is None else json.loads(common), None
    if known.identity.kind != "batch":
        for first, rows, ids in connection.execute(_SINCE, {"which": row["id"], "since": known.batches}):
            if isinstance(known.identity, Positions):
                known.identity.add(first, rows)
            else:
                known.identity.extend(cast("Any", identity.decode(encoding.unpacked(ids))))
    known.entries = _entries(connection, row)
    known.revision, known.batches = row["revision"], row["batches"]


def _entries(connection: Connection, row: Mapping[str, Any]) -> int | None:
    """Return the entries of a run's batches; None if they are not known."""
    if not row["batches"]:
        return 0
    return connection.scalar(_ENTRIES, {"which": row["id"], "last": row["batches"] - 1})


def quota_exceeded(whose: str, used: int, limit: int, more: str) -> QuotaExceeded:
    """Return the error of a limit in bytes."""
    return QuotaExceeded(
        f"{whose} may have {limit} bytes; {used} are used, {max(limit - used, 0)} remain, and {more}; delete runs, or "
        "ask the operator for more"
    )


def _read(report: bytes) -> BatchReport:
    try:
        return BatchReport.decode(report)
    except ValueError as error:
        raise InternalError(str(error)) from error


def _identity(report: BatchReport) -> Identity:
    try:
        return identity.decode(report.identity)
    except InvalidRequest as error:
        raise InternalError("the worker's report of the batch names no rows") from error


def _counted(connection: Connection, batches: Iterable[NewBatch]) -> dict[tuple[str, str], _Counted]:
    """Return the batches that were counted before, by run and name.

    There is a query for each run: SQLite reads the whole table for pairs of a run and a name.
    """
    names_by_run: dict[str, dict[str, None]] = {}
    for batch in batches:
        names_by_run.setdefault(batch.run, {})[batch.name] = None
    found: dict[tuple[str, str], _Counted] = {}
    for run, names in names_by_run.items():
        ordered = list(names)
        for first in range(0, len(ordered), LOOKED_UP):
            some = {"which": run, "names": ordered[first : first + LOOKED_UP]}
            for row in _COUNTED.rows(connection, some):
                found[run, row[0]] = _Counted(*row)
    return found


def _outcome(counted: _Counted, *, created: bool) -> dict[str, Any]:
    return {
        "batch": counted.name,
        "created": created,
        "counted": {"rows": counted.rows, "entries": counted.entries},
        "run": {"rows": counted.total_rows, "batches": counted.ordinal + 1},
    }


def _with_batches(connection: Connection, run: _Open, problem: DuplicateRows) -> DuplicateRows:
    """Return the error with the names of the batches in which the first rows were counted."""
    names: dict[str, None] = {}
    read: dict[str, Ids] = {}
    stored = [BATCHES.c[name] for name in ("name", "first", "last", "identity")]
    waiting = [(row.name, row.first, row.last, row.identity) for row in run.batches if row.first is not None]
    for number in problem.rows[:NAMED]:
        query = (
            sa.select(*stored)
            .where(BATCHES.c.run == run.row["id"], BATCHES.c.first.is_not(None), BATCHES.c.first <= number)
            .order_by(BATCHES.c.first.desc())
            .limit(CANDIDATES if run.known.identity.kind == "id" else 1)
        )
        for name, first, last, ids in [*connection.execute(query), *waiting]:
            if name in names or not first <= number <= last:
                continue
            if ids is not None and name not in read:
                read[name] = cast("Ids", identity.decode(encoding.unpacked(ids)))
            if ids is None or read[name].holds(np.array([number], np.int64)):
                names[name] = None
    some = list(names)[:NAMED]
    counted = f" (counted with {', '.join(some)})" if some else ""
    before, separator, remedy = problem.detail.rpartition("; ")
    detail = f"{before}{counted}{separator}{remedy}"
    errors = [{**fault, "detail": detail} for fault in problem.errors]
    return DuplicateRows(detail, rows=problem.rows, count=problem.count, batches=some, errors=cast("Any", errors))
