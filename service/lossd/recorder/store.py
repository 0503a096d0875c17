"""The store of runs: what a scoring service must not forget. Every method is one transaction, and may be repeated.

A run is a set of batches, never a counter that is read, changed and written: a batch that is sent twice, by two clients
or after a crash, finds its name taken. The states of its batches are merged when somebody reads them
(:mod:`lossd.recorder.folding`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from lossd.recorder import faults, folding, listing
from lossd.recorder.counting import Counter, lock
from lossd.recorder.database import Database, StoreError
from lossd.recorder.definitions import check_complete, check_same, check_targets, columns, compact
from lossd.recorder.protocol import NewBatch
from lossd.recorder.schema import BATCHES, DELETED, OPEN, RUNS, SEALED, STATES
from lossd.recorder.states import Fold, Reading, States, replace, replace_all, to_fold
from lossd.runs import encoding
from lossd.runs.rows.content import NEWEST
from lossd_client.errors import Conflict, InternalError, Problem, QuotaExceeded, RunSealed, UnknownBatch, UnknownRun

__all__ = ["Limits", "NewBatch", "Store", "StoreError"]

T = TypeVar("T")
Outcomes = list[dict[str, Any] | Problem]
PartialOutcomes = list[dict[str, Any] | Problem | None]

DAY_S = 24 * 3600.0
PIECE = 1000
"""Batches that are removed in one transaction: some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an owner may keep, and for how long.

    Attributes:
        runs_per_key: Runs of an owner.
        run_bytes: Bytes of a run.
        runs_bytes_per_key: Bytes of all runs of an owner.
        keep_open_days: Days after its last batch that an open run is kept; None for ever.
        keep_days: Days after its seal that a sealed run is kept; None for ever.
    """

    runs_per_key: int = 1000
    run_bytes: int = 256 << 20
    runs_bytes_per_key: int = 8 << 30
    keep_open_days: float | None = 30
    keep_days: float | None = None


class Store:
    """The runs, in a database.

    Args:
        url: The path of an SQLite file, or ``postgresql://...``.
        limits: What an owner may keep.
        clock: The Unix time.

    Raises:
        StoreError: The URL cannot be read, or its driver is not installed.
    """

    def __init__(self, url: str, limits: Limits | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._limits, self._clock = limits or Limits(), clock
        self._database = Database(url)
        self._counter = Counter(self._limits.run_bytes, self._limits.runs_bytes_per_key, clock)
        self._states = States()
        self._session = 0
        self._due: dict[str, None] = {}  # runs to fold, the earliest first
        self._deleted: dict[str, None] = {}  # runs whose rows remain

    def __str__(self) -> str:
        return str(self._database)

    def open(self) -> None:
        """Open the database, and migrate it to the newest schema.

        Raises:
            StoreError: That is impossible; the sentence says why, and what to do.
        """
        self._database.open()
        try:
            self._find_deferred()
        except Problem as problem:
            self.close()
            raise StoreError(problem.detail) from problem

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Runs

    def create(
        self, owner: str, name: str, document: Mapping[str, Any], digest: str, *, task: str | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Return the run of that name, and whether it was created.

        An existing one must have the same definition; its tags and its ``public`` become those of the document.
        The number of an owner's runs is counted under a lock, which other recorders wait for.

        Args:
            owner: Whose run.
            name: Its name.
            document: Its definition, with ``tags`` and ``public``.
            digest: The digest of all that a result depends on.
            task: The task of its metrics; by default the document's.

        Raises:
            RunDiffers: The run exists with another definition.
            DefinitionChanged: A metric of the run is defined differently by now.
            QuotaExceeded: The owner has as many runs as it may.
            InvalidRequest: A text has a NUL character.
        """
        values = columns(document, task)

        def work(connection: Connection) -> tuple[dict[str, Any], bool]:
            for _ in range(2):
                found = self._find(connection, owner, name)
                if found is not None:
                    check_same(found, document, digest)
                    if (record := self._reopened(connection, found, values)) is not None:
                        return record, False
                self._lock_owner(connection, owner)
                self._check_runs(connection, owner)
                now = self._clock()
                new = {**values, "id": uuid.uuid4().hex, "owner": owner, "name": name, "digest": digest}
                new |= {"content_hash": NEWEST, "created": now, "touched": now}
                if connection.execute(self._insert_run(), new).rowcount:
                    return listing.record(self._find(connection, owner, name) or {}), True
            raise Conflict(f"the run {name} is created and deleted by others at this time; send it again")

        return self._run(work)

    def find(self, owner: str, name: str, owner_of_run: str | None = None) -> dict[str, Any]:
        """Return the record of a run: the owner's own, else a public one of that name, the oldest.

        Args:
            owner: Who asks.
            name: The run's name.
            owner_of_run: Whose run; None for any.

        Raises:
            UnknownRun: There is none that the owner may read.
        """

        def work(connection: Connection) -> dict[str, Any]:
            mine = RUNS.c.owner == owner
            query = sa.select(RUNS, listing.ENTRIES).where(
                RUNS.c.name == name, RUNS.c.status != DELETED, mine | RUNS.c.public
            )
            if owner_of_run is not None:
                query = query.where(RUNS.c.owner == owner_of_run)
            query = query.order_by(sa.case((mine, 0), else_=1), RUNS.c.created, RUNS.c.id).limit(1)
            row = connection.execute(query).mappings().first()
            if row is None:
                raise UnknownRun(f"no run is named {name}; GET /v1/runs lists yours")
            return listing.record(row)

        return self._run(work)

    def list(self, owner: str, **filters: Any) -> dict[str, Any]:
        """Return one page of runs; see :func:`lossd.recorder.listing.runs`."""
        return self._run(lambda connection: listing.runs(connection, owner, **filters))

    def delete(self, owner: str, name: str) -> None:
        """Delete a run: nobody finds it any more, and its name is free. :meth:`tidy` removes its rows.

        Raises:
            UnknownRun: The owner has none of that name.
        """
        found = self._run(lambda connection: self._find(connection, owner, name))
        if found is None:
            raise UnknownRun(f"you have no run named {name}; GET /v1/runs lists yours")
        self._run(lambda connection: self._mark(connection, [found["id"]]))

    def retire(self) -> int:
        """Delete the runs whose time is over; return how many. What other recorders left to :meth:`tidy` is found."""
        self._find_deferred()
        now, limits = self._clock(), self._limits
        over = []
        if limits.keep_open_days is not None:
            over.append((RUNS.c.status == OPEN) & (RUNS.c.touched < now - limits.keep_open_days * DAY_S))
        if limits.keep_days is not None:
            over.append((RUNS.c.status == SEALED) & (RUNS.c.sealed < now - limits.keep_days * DAY_S))
        if not over:
            return 0

        def work(connection: Connection) -> int:
            ids = connection.scalars(
                sa.select(RUNS.c.id).where(sa.or_(*over)).order_by(RUNS.c.id).with_for_update()
            ).all()
            self._mark(connection, ids)
            return len(ids)

        return self._run(work)

    # Batches

    def count(self, batches: Sequence[NewBatch]) -> Outcomes:
        """Count batches of any runs, each as if it came after the one of its run before it.

        They are counted in one transaction; those of runs that another recorder holds at the moment in a second one,
        so that the others do not wait for it.

        Returns:
            For each batch ``batch``, ``created``, ``counted`` and ``run`` as they were when it was counted first, or
            the problem for which it was refused:

            * UnknownRun: The run was deleted.
            * BatchConflict: The name was counted with other data.
            * RunSealed: The run is sealed.
            * DuplicateRows: Rows were counted with other batches, which it names.
            * InvalidRequest, DefinitionChanged: The state does not fit those of the other batches.
            * QuotaExceeded: The run or the owner has too many bytes.

        Raises:
            StorageFull, Unavailable: Nothing was counted.
        """
        runs = {batch.run for batch in batches}
        outcomes = self._counted(batches, wait=len(runs) == 1 or not self._database.is_postgresql)
        if held := [k for k, outcome in enumerate(outcomes) if outcome is None]:
            try:
                late = self._counted([batches[k] for k in held], wait=True)
            except Problem as problem:  # the others are counted
                late = [problem] * len(held)
            for k, answer in zip(held, late, strict=True):
                outcomes[k] = answer
        return [outcome for outcome in outcomes if outcome is not None]

    def _counted(self, batches: Sequence[NewBatch], *, wait: bool) -> PartialOutcomes:
        """Count batches in one transaction.

        Args:
            batches: The batches.
            wait: Whether to wait for runs that another recorder holds. Else the outcome of their batches is None.
        """
        outcomes, rows = self._run(lambda connection: self._counter.count(connection, batches, wait=wait))
        self._counter.committed(rows.values())
        for run, row in rows.items():
            if folding.is_due(row["pending"], row["pending_bytes"]):
                self._due[run] = None
        return outcomes

    def batch(self, run: str, name: str) -> dict[str, Any]:
        """Return a batch that was counted.

        Raises:
            UnknownBatch: There is none of that name.
        """

        def work(connection: Connection) -> dict[str, Any]:
            query = sa.select(BATCHES).join(RUNS, (RUNS.c.id == BATCHES.c.run) & (RUNS.c.status != DELETED))
            query = query.where(BATCHES.c.run == run, BATCHES.c.name == name)
            row = connection.execute(query).mappings().first()
            if row is None:
                raise UnknownBatch(f"the run has counted no batch named {name}")
            return listing.batch_document(row)

        return self._run(work)

    def batches(self, run: str, after: str | None = None, limit: int = 100) -> dict[str, Any]:
        """Return one page of a run's batches; see :func:`lossd.recorder.listing.batches`.

        Raises:
            UnknownRun: There is no such run.
            InvalidRequest: The cursor cannot be read.
        """

        def work(connection: Connection) -> dict[str, Any]:
            self._row(connection, run)
            return listing.batches(connection, run, after, limit)

        return self._run(work)

    # Results

    def merged(self, run: str) -> tuple[dict[str, Any], bytes]:
        """Return the record of a run and the bytes of the state of all its batches, empty before the first.

        Raises:
            UnknownRun: There is no such run.
        """

        def work(connection: Connection) -> tuple[dict[str, Any], Reading]:
            reading = self._states.read(connection, self._locked(connection, run))
            return listing.record(self._row(connection, run)), reading

        record, reading = self._run(work)
        return record, self._states.merged(reading).data

    def summarize(self, run: str, rows: int, batches: int, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Keep numbers of an open run's result, by which it is sorted among other runs. Return its record.

        The result of fewer batches than those of the kept one, and that of a sealed run, change nothing.

        Args:
            run: The run's id.
            rows: The rows that the result is of.
            batches: The batches that the result is of.
            summary: Numbers by name. What is no finite number is left out.

        Raises:
            UnknownRun: There is no such run.
        """

        def work(connection: Connection) -> dict[str, Any]:
            self._locked(connection, run)
            row = self._row(connection, run)
            kept = (listing.record(row)["summarized"] or {"batches": 0})["batches"]
            if row["status"] == OPEN and kept < batches <= row["batches"]:
                values = {**_finite(summary), **dict(zip(listing.OF, (rows, batches), strict=True))}
                connection.execute(sa.update(RUNS).where(RUNS.c.id == run).values(summary=values))
            return listing.record(self._row(connection, run))

        return self._run(work)

    def seal(
        self, run: str, revision: int, rows: int | None, result: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Seal a run: check that it is complete, and keep its result. Return its record; a repetition returns the same.

        Args:
            run: The run's id.
            revision: Its revision when the result was computed.
            rows: The rows of the data set; None for the definition's. Without either, rows by position must not have
                gaps, and no more can be checked.
            result: The result, as JSON values.
            summary: Numbers by name, by which runs are sorted. What is no finite number is left out.

        Raises:
            UnknownRun: There is no such run.
            RunSealed: It is sealed, with other rows.
            Conflict: It has counted more since the revision; compute the result again.
            Incomplete: Rows are missing, or there are more than the data set has.
            OtherTargets: The targets are not those that the definition names.
        """

        def read(connection: Connection) -> Reading | None:
            row = self._locked(connection, run)
            return None if row["status"] == SEALED else self._states.read(connection, row)

        reading = self._run(read)
        merged = None if reading is None else self._states.merged(reading)
        packed = b"" if merged is None else encoding.compressed(merged.data)

        def work(connection: Connection) -> dict[str, Any]:
            row = self._locked(connection, run)
            if row["status"] == SEALED:
                if rows not in (None, row["rows"]):
                    raise RunSealed(f"the run {row['name']} is sealed with {row['rows']} rows, not {rows}")
                return listing.record(self._row(connection, run))
            if merged is None or not row["revision"] == merged.revision == revision:
                raise Conflict("the run changed while its result was computed; seal it again")
            dataset = json.loads(self._row(connection, run)["document"]).get("dataset") or {}
            check_complete(row, merged.state, dataset.get("rows") if rows is None else rows)
            check_targets(merged.state, dataset.get("targets"))
            replace_all(connection, row, packed)
            now = self._clock()
            values = {"status": SEALED, "sealed": now, "touched": now, "revision": revision + 1}
            values |= {"result": compact(result), "summary": _finite(summary)}
            connection.execute(sa.update(RUNS).where(RUNS.c.id == run).values(values))
            faults.reach(faults.SEALING)
            return listing.record(self._row(connection, run))

        record = self._run(work)
        self._counter.forget(run)
        self._due.pop(run, None)
        return record

    # Deferred work

    def tidy(self) -> bool:
        """Fold one run, or remove some rows of a deleted one; return whether more waits.

        Raises:
            StorageFull, Unavailable: It was not done, and waits.
            InternalError: A state is damaged; the run is not tried again before its next batch.
        """
        if self._due:
            run = next(iter(self._due))
            try:
                self._fold_due(run)
            except InternalError:
                self._due.pop(run, None)  # a damaged state must not keep other runs waiting
                raise
            self._due.pop(run, None)
        elif self._deleted:
            run = next(iter(self._deleted))
            if self._run(lambda connection: _remove_some(connection, run)):
                self._deleted.pop(run, None)
        return bool(self._due or self._deleted)

    def _fold_due(self, run: str) -> None:
        """Fold a run's latest states, unless it was deleted or sealed, or another recorder was first."""

        def find(connection: Connection) -> Fold | None:
            row = lock(connection, [run]).get(run)
            due = row is not None and folding.is_due(row["pending"], row["pending_bytes"])
            return to_fold(connection, row) if row is not None and due else None

        fold = self._run(find)
        if fold is None:
            return
        packed = encoding.compressed(folding.merged(fold.stored).encode())

        def write(connection: Connection) -> None:
            row = lock(connection, [run]).get(run)
            if row is not None and row["status"] == OPEN and replace(connection, row, fold, packed):
                faults.reach(faults.FOLDING)

        self._run(write)

    def _find_deferred(self) -> None:
        """Find the runs to fold, and the deleted ones whose rows remain: another recorder may have left them."""
        due = (RUNS.c.pending >= folding.PENDING) | (RUNS.c.pending_bytes >= folding.PENDING_BYTES)
        query = sa.select(RUNS.c.id, RUNS.c.status).where((RUNS.c.status == DELETED) | due)
        for run, status in self._run(lambda connection: connection.execute(query).all()):
            (self._deleted if status == DELETED else self._due)[run] = None

    # Parts

    def _run(self, work: Callable[[Connection], T]) -> T:
        def begun(connection: Connection) -> T:
            if self._session != self._database.sessions:
                self._session = self._database.sessions
                self._counter.forget_all()
                self._states = States()
            return work(connection)

        return self._database.run(begun)

    def _insert_run(self) -> Any:
        insert = postgresql.insert if self._database.is_postgresql else sqlite.insert
        return insert(RUNS).on_conflict_do_nothing(index_elements=["owner", "name"])

    def _lock_owner(self, connection: Connection, owner: str) -> None:
        """Keep other recorders from creating runs of an owner until the transaction ends."""
        if self._database.is_postgresql:
            key = int.from_bytes(hashlib.blake2b(owner.encode(), digest_size=8).digest(), signed=True)
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({key})")

    def _find(self, connection: Connection, owner: str, name: str) -> Mapping[Any, Any] | None:
        query = sa.select(RUNS, listing.ENTRIES).where(
            RUNS.c.owner == owner, RUNS.c.name == name, RUNS.c.status != DELETED
        )
        return connection.execute(query).mappings().first()

    def _row(self, connection: Connection, run: str) -> Mapping[Any, Any]:
        row = (
            connection.execute(sa.select(RUNS, listing.ENTRIES).where(RUNS.c.id == run, RUNS.c.status != DELETED))
            .mappings()
            .first()
        )
        if row is None:
            raise UnknownRun("the run does not exist any more: it was deleted")
        return row

    def _locked(self, connection: Connection, run: str) -> dict[str, Any]:
        row = lock(connection, [run]).get(run)
        if row is None:
            raise UnknownRun("the run does not exist any more: it was deleted")
        return row

    def _reopened(
        self, connection: Connection, found: Mapping[Any, Any], values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Return the record of a run that exists, with other tags and ``public``, if they are others.

        None if another recorder has deleted it since.
        """
        if found["id"] not in lock(connection, [found["id"]]):
            return None
        if (found["tags"], found["public"]) != (values["tags"], values["public"]):
            changed = {name: values[name] for name in ("tags", "public", "document")}
            update = sa.update(RUNS).where(RUNS.c.id == found["id"])
            connection.execute(update.values({**changed, "revision": RUNS.c.revision + 1}))
        return listing.record(self._row(connection, found["id"]))

    def _check_runs(self, connection: Connection, owner: str) -> None:
        query = sa.select(sa.func.count()).select_from(RUNS).where(RUNS.c.owner == owner, RUNS.c.status != DELETED)
        used, limit = connection.scalar(query) or 0, self._limits.runs_per_key
        if used >= limit:
            raise QuotaExceeded(
                f"you may have {limit} runs, and have {used}; delete some, or ask the operator for more"
            )

    def _mark(self, connection: Connection, ids: Sequence[str]) -> None:
        """Mark runs as deleted and free their names; ``/`` is in no name."""
        values = {"status": DELETED, "public": False, "name": "/" + RUNS.c.id}
        for first in range(0, len(ids), PIECE):
            connection.execute(sa.update(RUNS).where(RUNS.c.id.in_(ids[first : first + PIECE])).values(values))
        for run in ids:
            self._deleted[run] = None
            self._states.forget(run)
            self._counter.forget(run)


def _finite(summary: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in summary.items() if type(value) in (int, float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _remove_some(connection: Connection, run: str) -> bool:
    """Remove the last batches of a deleted run; return whether nothing of it is left."""
    query = sa.select(RUNS.c.batches).where(RUNS.c.id == run, RUNS.c.status == DELETED)
    left = connection.scalar(query.with_for_update())  # two recorders would delete rows in different orders
    if left is None:
        return True
    rest = max(int(left) - PIECE, 0)
    for table in (BATCHES, STATES):
        connection.execute(sa.delete(table).where(table.c.run == run, table.c.ordinal >= rest))
    if rest:
        connection.execute(sa.update(RUNS).where(RUNS.c.id == run).values(batches=rest))
    else:
        connection.execute(sa.delete(RUNS).where(RUNS.c.id == run))
    faults.reach(faults.DELETING)
    return not rest
