"""The database of the store: SQLite by default, PostgreSQL if asked. Opens it, runs transactions, words its errors.

What is committed survives a loss of power: SQLite writes with ``synchronous=FULL`` and PostgreSQL with
``synchronous_commit=on``, whatever its default. Both are read back.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError

from lossd.recorder.files import (
    APPLICATION_ID,
    Lock,
    StoreError,
    check_file,
    create_file,
    inode_of,
    is_of_host,
    make_folder,
)
from lossd.recorder.schema import METADATA, VERSION, VERSION_TABLE, VERSIONS
from lossd.recorder.statements import cursor_of
from lossd_client.errors import InternalError, Problem, StorageFull, Unavailable

__all__ = ["Database", "StoreError", "problem_of"]

log = logging.getLogger("lossd.recorder")

T = TypeVar("T")

RETRY_AFTER_S = 1.0
PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 5000, "trusted_schema": 0}
"""What a connection to SQLite must answer; 2 is FULL."""

LIMITS = {"cache_size": -16384, "journal_size_limit": 64 << 20}
"""KiB of pages in memory, as a negative number; the bytes of the log that stay on disk after a checkpoint."""

LOCAL = (
    "SET LOCAL synchronous_commit TO on; SET LOCAL lock_timeout TO '3s'; SET LOCAL statement_timeout TO '30s'; "
    "SET LOCAL idle_in_transaction_session_timeout TO '15s'; SET LOCAL tcp_user_timeout TO '10s'"
)
"""Set in each transaction: behind PgBouncer, the next one may have another session.

A recorder that is stopped in a transaction, or cut off, does not keep the others from its runs for longer. The server
ends its session if it sends no statement, and also if it takes no answer: without ``tcp_user_timeout``, a server sends
an answer to a machine that is gone for a quarter of an hour.
"""

MIGRATING_LOCAL = "SET LOCAL statement_timeout TO 0"
"""Set before a migration: to rewrite a table may take longer than any other statement."""

MIGRATING = int.from_bytes(b"lossd", "big")
"""PostgreSQL's advisory lock of those who migrate."""

PARAMETERS: dict[str, Any] = {
    "connect_timeout": 5,
    "application_name": "lossd",
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""How soon a connection to PostgreSQL is given up; the URL may say otherwise."""

HOSTS = re.compile(r"(?P<before>\w+://(?:[^/@]*@)?)(?P<hosts>[^/@?]*,[^/@?]*)(?P<behind>.*)", re.DOTALL)
"""A URL of several servers, as libpq takes it: ``postgresql://lossd@a:5432,b:5432/lossd``."""

WRITABLE = {"target_session_attrs": "read-write"}
"""Which of several servers is used: after a failover, one that was the primary may be a standby."""


class Database:
    """A connection to the database that keeps the runs.

    Args:
        url: ``postgresql://...``, or the path of an SQLite file.

    Attributes:
        sessions: How often it has connected. What was read in an earlier session may be no more: after a failover, a
            server may have lost the last transactions of the one before it.

    Raises:
        StoreError: The URL cannot be read, or the driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.sessions = 0
        self._lock: Lock | None = None
        self._fresh = False
        self._file: tuple[int, int] | None = None
        self._path: Path | None = None
        self._connection: Connection | None = None
        if url.startswith(("postgresql:", "postgres:", "postgresql+psycopg:")):
            self._engine = _postgresql(url)
        elif "://" in url and not url.startswith("sqlite:///"):
            raise StoreError(
                f"{url.partition('://')[0]}:// is not a database of lossd; write a path or postgresql://..."
            )
        else:
            self._path = Path(url.removeprefix("sqlite:///")).expanduser().resolve()
            self._engine = _sqlite(self._path, self._set_pragmas)
        event.listen(self._engine, "connect", self._connected)

    def __str__(self) -> str:
        return str(self._path) if self._path else self._engine.url.set(drivername="postgresql").render_as_string()

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL, which several recorders may share."""
        return self._path is None

    def open(self) -> None:
        """Lock the database, connect, and bring its schema up to date.

        Raises:
            StoreError: That is impossible; the sentence says why, and what to do.
        """
        if self._path is not None:
            make_folder(self._path)
            self._lock = Lock(self._path)
        try:
            if self._path is not None:
                self._fresh = check_file(self._path)
                if self._fresh:
                    create_file(self._path)
                self._file = inode_of(self._path)
            with self._transaction() as connection:
                if self.is_postgresql:
                    _check_postgresql(connection)
                self._migrate(connection)
        except DBAPIError as error:
            self.close()
            problem = problem_of(error)
            problem.__cause__ = error
            raise StoreError(f"cannot open {self}: {problem.detail} ({_words(error)})") from problem
        except BaseException:
            self.close()
            raise
        self._fresh = False

    def close(self) -> None:
        """Disconnect and free the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._path is not None and self._file is not None and inode_of(self._path) != self._file:
            self._empty_log()
        self._file = None
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def run(self, work: Callable[[Connection], T]) -> T:
        """Return what ``work`` does in one transaction, after its commit.

        If the connection is lost, even in the commit, nobody knows whether the transaction was committed. So the work
        is done once more, in another connection, and must find out itself. The same holds if PostgreSQL breaks a
        deadlock, and if the server takes no writes any more because another one is the primary now.

        Args:
            work: Takes the connection. A :class:`Problem` that it raises rolls the transaction back.

        Raises:
            StorageFull: The disk is full.
            Unavailable: The database is locked, or does not answer.
            StoreError: PostgreSQL cannot be reached, or SQLite's file was moved or replaced; close the database and
                open it again.
        """
        try:
            try:
                return self._once(work)
            except DBAPIError as error:
                if _state(error) in DEMOTED and self.is_postgresql:
                    self._disconnect()
                elif not (error.connection_invalidated or _state(error) in AGAIN):
                    raise
                log.warning("the transaction is done again, because %s said: %s", self, _words(error))
                return self._once(work)
        except DBAPIError as error:
            problem = problem_of(error)
            log.warning("%s (%s)", problem.detail, _words(error))
            if self.is_postgresql and (self._connection is None or self._connection.invalidated):
                raise StoreError(problem.detail) from error  # each further request would wait for a connection
            raise problem from error

    def _once(self, work: Callable[[Connection], T]) -> T:
        if self._path is not None and inode_of(self._path) != self._file:
            # SQLite would go on in the file that it has open, which nobody finds again.
            raise StoreError("the file of the database of runs was moved or replaced; it must be opened again")
        with self._transaction() as connection:
            return work(connection)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Begin a transaction, which is committed if nothing is raised.

        The connection is kept: to take it from the pool for each transaction takes longer than an empty transaction. A
        listener for the beginning of transactions would cost each statement more than the driver takes for it.

        Raises:
            DBAPIError: Also for the errors of the driver, which statements without SQLAlchemy raise.
        """
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            connection = self._connection  # it connects again after it was lost
            try:
                cursor_of(connection).execute(LOCAL if self.is_postgresql else "BEGIN IMMEDIATE")
                yield connection
            except self._engine.dialect.loaded_dbapi.Error as error:
                lost = self._engine.dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
                if lost:
                    connection.invalidate(error)
                raise DBAPIError("", None, error, connection_invalidated=lost) from error

    def _connected(self, _connection: object, _record: object) -> None:
        self.sessions += 1

    def _disconnect(self) -> None:
        """Close the connection; the next transaction opens another one."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _empty_log(self) -> None:
        """Write SQLite's log into the file that was moved: a database that takes its place would read the log."""
        try:
            connection = self._engine.raw_connection()
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except (DBAPIError, sqlite3.Error) as error:
            log.error("the log of the file that was at %s could not be emptied: %s", self._path, error)

    def _set_pragmas(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # a transaction begins when this class says so
        assert self._path is not None
        # Alone, SQLite has the index of its log in its own memory. It must know that before it opens the file.
        alone = {"locking_mode": "exclusive"} if is_of_host(self._path) else {}
        # The first write marks the file as lossd's, so that it is never another program's.
        mark = {"application_id": APPLICATION_ID} if self._fresh else {}
        settings = {**alone, **mark, **PRAGMAS, **LIMITS}
        try:
            for name, value in settings.items():
                connection.execute(f"PRAGMA {name} = {value}")
        except sqlite3.Error as error:
            raise DBAPIError("PRAGMA", None, error) from error  # as the engine does for statements
        for name, value in {**alone, **PRAGMAS}.items():
            (found,) = connection.execute(f"PRAGMA {name}").fetchone()
            if found != value:
                raise StoreError(
                    f"SQLite answers {name} = {found} for {self._path}, and {value} is needed; move the file to a "
                    "local disk, or set LOSSD_RUNS to postgresql://..."
                )

    def _migrate(self, connection: Connection) -> None:
        if self.is_postgresql:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATING})")
        names = set(sa.inspect(connection).get_table_names())
        if VERSION_TABLE not in names:
            if taken := names & METADATA.tables.keys():
                raise StoreError(
                    f"{self} has a table {min(taken)} that is not lossd's; give lossd a database of its own"
                )
            create_tables(connection)
            log.info("%s is new and has the schema %s", self, VERSION)
            return
        found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
        if found != VERSION:
            _upgrade(connection, found, str(self))


def create_tables(connection: Connection) -> None:
    """Make the newest schema in a database that has none, as all migrations would, in the connection's transaction."""
    VERSIONS.create(connection)
    METADATA.create_all(connection)
    connection.execute(VERSIONS.insert().values(version_num=VERSION))


def _upgrade(connection: Connection, found: str | None, name: str) -> None:
    """Migrate to the newest schema, in the connection's transaction.

    Raises:
        StoreError: The schema is newer than this lossd.
    """
    from alembic import command  # half a second, which only the first start of a new version pays
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "lossd.recorder:migrations")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"{name} was written by a newer lossd: its schema is {found}, and this one knows those up to {VERSION}; "
            "install the newer lossd again, or restore a backup that is older"
        )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(MIGRATING_LOCAL)
    command.upgrade(config, "head")
    log.info("the schema of %s is %s, before %s", name, VERSION, found or "none")


def _sqlite(path: Path, connected: Callable[[sqlite3.Connection, object], None]) -> Engine:
    engine = sa.create_engine(URL.create("sqlite", database=str(path)), pool_size=1, max_overflow=0)
    event.listen(engine, "connect", connected)
    return engine


def _postgresql(url: str) -> Engine:
    several = HOSTS.fullmatch(url)
    try:
        parsed = sa.make_url(several["before"] + several["behind"] if several else url)
    except (ArgumentError, ValueError) as error:
        raise StoreError("the URL of the database cannot be read; write postgresql://user@host/database") from error
    parsed = parsed.set(drivername="postgresql+psycopg")
    if several:
        parsed = parsed.update_query_dict({"host": [unquote(host) for host in several["hosts"].split(",")]})
    # A prepared statement belongs to a session, which PgBouncer may change between two transactions.
    defaults = PARAMETERS | (WRITABLE if isinstance(parsed.query.get("host"), tuple) else {})
    arguments = {"prepare_threshold": None, **{k: v for k, v in defaults.items() if k not in parsed.query}}
    try:
        return sa.create_engine(parsed, pool_size=1, max_overflow=0, connect_args=arguments)
    except ImportError as error:
        raise StoreError("PostgreSQL needs a driver; install lossd[postgres]") from error


def _check_postgresql(connection: Connection) -> None:
    """Check what the server says of itself.

    Raises:
        StoreError: It is a standby, its texts are no UTF-8, or it does not wait for its log.
    """
    answers = {
        name: connection.exec_driver_sql(f"SHOW {name}").scalar()
        for name in ("transaction_read_only", "server_encoding", "synchronous_commit", "fsync")
    }
    if answers["transaction_read_only"] != "off":
        raise StoreError(STANDBY)
    if answers["server_encoding"] != "UTF8":
        raise StoreError(f"the database has the encoding {answers['server_encoding']}; create one with ENCODING 'UTF8'")
    if answers["synchronous_commit"] != "on":
        raise StoreError(f"PostgreSQL answers synchronous_commit = {answers['synchronous_commit']}; on is needed")
    if answers["fsync"] != "on":
        log.warning("PostgreSQL runs with fsync = off: a loss of power may lose what was counted")


# Errors

STANDBY = "the PostgreSQL server is read-only, a standby perhaps; set LOSSD_RUNS to the primary"

AGAIN = {"40001", "40P01"}
"""PostgreSQL ended the transaction for the sake of another: serialization_failure, deadlock_detected."""

FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, "53100"}
"""No room for a write: also over a quota of the file system, which SQLite reports as a failed write."""

BUSY, HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}, {"55P03"}
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, "XX001", "XX002"}
READ_ONLY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, "42501"}
DEMOTED = {"25006"}
"""The server takes no writes: it became a standby, or somebody made it so."""


def _state(error: DBAPIError) -> int | str | None:
    """Return SQLite's result code or PostgreSQL's SQLSTATE."""
    return getattr(error.orig, "sqlite_errorcode", None) or getattr(error.orig, "sqlstate", None)


def problem_of(error: DBAPIError) -> Problem:
    """Return the answer to a request that the database could not serve; the log has the database's own words."""
    state = _state(error)
    kinds = {state, state & 0xFF} if isinstance(state, int) else {state}  # SQLite's second byte says more of the first
    if kinds & FULL:
        return StorageFull(
            "the disk of the database of runs has no room; delete runs or make room, then send it again",
            retry_after_s=RETRY_AFTER_S,
        )
    if kinds & BUSY:
        return Unavailable(
            "another program keeps the database of runs locked; close it, then send it again",
            retry_after_s=RETRY_AFTER_S,
        )
    if kinds & HELD:
        return Unavailable(
            "another service holds the run in the database, or lost its connection while it did; send it again",
            retry_after_s=RETRY_AFTER_S,
        )
    if kinds & DEMOTED:
        return Unavailable(f"{STANDBY}, then send it again", retry_after_s=RETRY_AFTER_S)
    if kinds & DAMAGED:
        return Unavailable("the database of runs is damaged; restore a backup", retry_after_s=RETRY_AFTER_S)
    if kinds & READ_ONLY:
        return Unavailable(
            "the database of runs cannot be written; give lossd's user the right to", retry_after_s=RETRY_AFTER_S
        )
    if error.connection_invalidated or isinstance(error.orig, _operational()):
        return Unavailable("the database of runs does not answer; send it again", retry_after_s=RETRY_AFTER_S)
    return InternalError("the database of runs refused a statement; the log of the service says more")


def _words(error: DBAPIError) -> str:
    """Return what the database says, in one line."""
    return " ".join(str(error.orig).split())


def _operational() -> tuple[type[Exception], ...]:
    try:
        import psycopg
    except ImportError:
        return (sqlite3.OperationalError,)
    return sqlite3.OperationalError, psycopg.OperationalError
