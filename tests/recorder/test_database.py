"""Opening the database, and what it answers when it cannot: in words, with a remedy, and without losing a count."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from lossd.engine import worker_process
from lossd.recorder import database, files
from lossd.recorder.database import problem_of
from lossd.recorder.files import file_system
from lossd.recorder.store import Store, StoreError
from lossd_client.errors import Problem, StorageFull, Unavailable
from postgres import PostgreSQL
from recorder.reports import batch, count_one, document, state

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - {kind} server:/home rw
31 30 8:2 / /home/local\\040disk rw - xfs /dev/sdb rw
"""
NETWORK = ["nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "davfs"]
LOCAL = ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk", "fuse.fuse-overlayfs", "f2fs"]
HOST = ["9p", "virtiofs", "drvfs", "vboxsf", "fakeowner", "fuse.grpcfuse"]


def opened(url: str | Path) -> Store:
    store = Store(str(url))
    store.open()
    return store


def new_run(store: Store) -> str:
    made: str = store.create("", "r", document(), "d")[0]["id"]
    return made


def scalar(store: Store, statement: str) -> Any:
    return store._run(lambda connection: connection.exec_driver_sql(statement).scalar())


# SQLite's file


def test_a_commit_to_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    store = opened(tmp_path / "new/folder/runs.db")
    assert scalar(store, "PRAGMA synchronous") == 2
    assert scalar(store, "PRAGMA journal_mode") == "wal"
    new_run(store)
    assert (tmp_path / "new/folder").stat().st_mode & 0o777 == 0o700
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new/folder").iterdir()}
    assert found == dict.fromkeys(("runs.db", "runs.db-wal", "runs.db-shm", "runs.db.lock"), 0o600)
    store.close()


def test_settings_that_sqlite_does_not_take_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(database.PRAGMAS, "synchronous", 9)  # SQLite takes the last three bits
    with pytest.raises(StoreError, match=r"SQLite answers synchronous = 1 .* and 9 is needed"):
        opened(tmp_path / "runs.db")


def test_a_second_service_on_a_file_is_refused_by_the_process_id(tmp_path: Path) -> None:
    first = opened(tmp_path / "runs.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "runs.db")
    for path in (tmp_path / "runs.db", tmp_path / "link.db"):
        with pytest.raises(StoreError, match=rf"another lossd \(process {os.getpid()}\) .*stop it, or set LOSSD_RUNS"):
            opened(path)
    new_run(first)
    first.close()
    opened(tmp_path / "runs.db").close()


def test_a_killed_service_leaves_no_lock_and_no_half_batch(tmp_path: Path) -> None:
    script = (
        "import sys; from lossd.recorder.store import Store; s = Store(sys.argv[1]); s.open();"
        "s.create('', 'r', {}, 'd'); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "runs.db")]
    with worker_process.subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match=f"process {process.pid}"):
            opened(tmp_path / "runs.db")
        process.kill()
        process.wait()
        store = opened(tmp_path / "runs.db")
    assert store.find("", "r")["status"] == "open"
    store.close()


@pytest.mark.parametrize("by_another", [True, False])
def test_a_file_that_is_replaced_under_the_service_counts_nothing_more(tmp_path: Path, by_another: bool) -> None:
    path = tmp_path / "runs.db"
    store = opened(path)
    run = new_run(store)
    path.rename(tmp_path / "moved.db")
    if by_another:
        opened(tmp_path / "other.db").close()
        (tmp_path / "other.db").rename(path)
    with pytest.raises(StoreError, match="moved or replaced; it must be opened again"):
        count_one(store, batch(run, "a", range(4)))
    store.close()
    store.open()
    assert store.list("")["runs"] == []
    store.close()
    moved = opened(tmp_path / "moved.db")
    assert moved.find("", "r")["rows"] == 0
    moved.close()


def _text(path: Path) -> None:
    path.write_text("not a database\n" * 100)


def _another(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (id)")
    connection.close()


@pytest.mark.parametrize(("make", "words"), [(_text, "not an SQLite database"), (_another, "of another program")])
def test_a_file_that_is_not_lossds_is_refused_and_not_touched(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "runs.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"{words}.*set LOSSD_RUNS to another file"):
        opened(path)
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} <= {"runs.db", "runs.db.lock"}
    path.unlink()
    opened(path).close()


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.touch()
    opened(path).close()
    assert opened(path).list("")["runs"] == []


@pytest.mark.parametrize("path", ["/dev/null/runs.db", "/proc/lossd/runs.db"])
def test_a_folder_that_cannot_be_made_is_named(path: str) -> None:
    with pytest.raises(StoreError, match=f"cannot create the folder {Path(path).parent}: .*; set LOSSD_RUNS"):
        opened(path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"cannot read {tmp_path}: Is a directory"):
        opened(tmp_path)


@pytest.mark.parametrize("url", ["mysql://host/runs", "http://host", "redis://x"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"write a path or postgresql://"):
        Store(url)


# Network file systems


@pytest.mark.parametrize(("kind", "refused"), [*((k, True) for k in NETWORK), *((k, False) for k in LOCAL + HOST)])
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(kind=kind).replace("/home", str(tmp_path)))
    monkeypatch.setattr(files, "MOUNTS", mounts)
    if refused:
        with pytest.raises(StoreError, match=rf"network file system \({re.escape(kind)}\).*postgresql://"):
            opened(tmp_path / "new/runs.db")
        assert not (tmp_path / "new").exists()
    else:
        opened(tmp_path / "new/runs.db").close()


def test_a_folder_of_the_host_needs_no_mapped_file_and_admits_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(kind="9p").replace("/home", str(tmp_path)))
    monkeypatch.setattr(files, "MOUNTS", mounts)
    path = tmp_path / "runs.db"
    store = opened(path)
    run = new_run(store)
    count_one(store, batch(run, "a", range(4)))
    assert scalar(store, "PRAGMA synchronous") == 2
    assert {file.name for file in tmp_path.glob("runs.db*")} == {"runs.db", "runs.db-wal", "runs.db.lock"}
    with sqlite3.connect(path, timeout=0) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM runs")
    copy = tmp_path / "after a crash"
    copy.mkdir()
    for name in ("runs.db", "runs.db-wal"):
        shutil.copy(tmp_path / name, copy)
    store.close()
    for where in (copy / "runs.db", path):
        again = opened(where)
        assert again.merged(run)[1] == state("position", tuple(range(4)))
        again.close()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StoreError, match=r"cannot lock .*runs.db.lock: No locks available; set LOSSD_RUNS"):
        opened(tmp_path / "runs.db")


def test_the_innermost_and_latest_mount_counts(tmp_path: Path) -> None:
    mounts = MOUNTS.format(kind="nfs4").replace("/home", str(tmp_path))
    (tmp_path / "local disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "local disk")
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(tmp_path, mounts) == "nfs4"
    assert file_system(tmp_path / "local disk", mounts) == file_system(tmp_path / "link", mounts) == "xfs"
    assert file_system(tmp_path, mounts + f"40 30 8:3 / {tmp_path} rw - btrfs /dev/sdc rw\n") == "btrfs"
    assert file_system(tmp_path, "nonsense\n") == ""
    assert file_system(Path("/proc")) == "proc"


# Schemas


def test_a_newer_schema_is_refused_in_words_and_not_touched(url: str) -> None:
    store = opened(url)
    new_run(store)
    store._run(lambda c: c.exec_driver_sql("UPDATE lossd_schema SET version_num = '9999'").close())
    store.close()
    with pytest.raises(StoreError, match=r"written by a newer lossd: its schema is 9999.*install the newer lossd"):
        opened(url)


def test_tables_of_another_program_in_postgresql_are_not_touched(postgresql: PostgreSQL) -> None:
    url = postgresql.new_schema()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE runs (run_uuid text)")
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        with pytest.raises(StoreError, match="has a table runs that is not lossd's; give lossd a database of its own"):
            opened(url)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema").fetchall()
    assert sorted(name for (name,) in tables) == ["alembic_version", "runs"]


# Full disks


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """Writes behind so many bytes of a file fail, as over a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_file_system_refuses_is_a_full_disk_until_there_is_room(tmp_path: Path) -> None:
    store = opened(tmp_path / "runs.db")
    run = new_run(store)
    count_one(store, batch(run, "a", range(4)))
    with largest_file((tmp_path / "runs.db-wal").stat().st_size):
        for _ in range(2):
            with pytest.raises(StorageFull) as caught:
                count_one(store, batch(run, "b", range(4, 8)))
        assert store.find("", "r")["rows"] == 4
        assert store.merged(run)[1] == state("position", tuple(range(4)))
    assert (caught.value.status, caught.value.retry_after_s) == (507, 1.0)
    assert count_one(store, batch(run, "b", range(4, 8)))["created"]
    assert store.merged(run)[1] == state("position", tuple(range(8)))
    store.close()


@pytest.mark.parametrize("room", [0, 4096, 8192])
def test_a_database_without_room_for_its_tables_does_not_open(tmp_path: Path, room: int) -> None:
    with largest_file(room), pytest.raises(StoreError, match="has no room; delete runs or make room"):
        opened(tmp_path / "runs.db")
    opened(tmp_path / "runs.db").close()


def test_a_damaged_file_asks_for_a_backup(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    opened(path).close()
    content = path.read_bytes()
    for kept in (100, 4096):
        path.write_bytes(content[:kept] + b"x" * (len(content) - kept))
        with pytest.raises(StoreError, match="damaged; restore a backup"):
            opened(path)


def test_a_file_that_another_program_writes_to_is_said_to_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.PRAGMAS, "busy_timeout", 10)
    path = tmp_path / "runs.db"
    store = opened(path)
    run = new_run(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked; close it"):
        count_one(store, batch(run, "a", range(4)))
    store.close()
    with pytest.raises(StoreError, match="locked; close it"):
        opened(path)
    other.close()
    store = opened(path)
    assert count_one(store, batch(run, "a", range(4)))["created"]
    store.close()


# Errors in words


def _sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (_sqlite_error(sqlite3.SQLITE_FULL), StorageFull, "no room"),
        (_sqlite_error(sqlite3.SQLITE_IOERR_WRITE), StorageFull, "no room"),
        (_sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), Unavailable, "locked"),
        (_sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), Unavailable, "cannot be written"),
        (_sqlite_error(sqlite3.SQLITE_CORRUPT), Unavailable, "restore a backup"),
        (_sqlite_error(sqlite3.SQLITE_IOERR_READ), Unavailable, "does not answer"),
        (psycopg.errors.DiskFull(), StorageFull, "no room"),
        (psycopg.errors.LockNotAvailable(), Unavailable, "another service holds the run"),
        (psycopg.errors.TooManyConnections(), Unavailable, "does not answer"),
        (psycopg.errors.AdminShutdown(), Unavailable, "does not answer"),
        (psycopg.errors.ReadOnlySqlTransaction(), Unavailable, "a standby perhaps"),
        (psycopg.errors.InsufficientPrivilege(), Unavailable, "cannot be written"),
        (psycopg.OperationalError("consuming input failed"), Unavailable, "does not answer"),
    ],
)
def test_what_the_database_says_becomes_an_answer(error: Exception, kind: type[Problem], words: str) -> None:
    problem = problem_of(DBAPIError("SELECT 1", None, error))
    assert type(problem) is kind
    assert words in problem.detail
    assert problem.retry_after_s is not None


# PostgreSQL


def test_a_commit_to_postgresql_waits_for_the_disk_whatever_its_default(postgresql: PostgreSQL) -> None:
    postgresql.ask("ALTER ROLE lossd SET synchronous_commit = off")
    try:
        store = opened(postgresql.new_schema())
        assert scalar(store, "SHOW synchronous_commit") == "on"
        store.close()
    finally:
        postgresql.ask("ALTER ROLE lossd RESET synchronous_commit")


def test_a_read_only_server_is_refused(postgresql: PostgreSQL) -> None:
    postgresql.ask("CREATE ROLE reader LOGIN")
    postgresql.ask("ALTER ROLE reader SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match="read-only, a standby perhaps; set LOSSD_RUNS to the primary"):
        opened(postgresql.url().replace("lossd@", "reader@"))


def test_no_statement_is_prepared_because_pgbouncer_changes_sessions(postgresql: PostgreSQL) -> None:
    store = opened(postgresql.new_schema())
    run = new_run(store)
    for k in range(12):  # psycopg prepares a statement that is run for the sixth time
        count_one(store, batch(run, f"b{k}", range(4 * k, 4 * k + 4)))
    assert scalar(store, "SELECT count(*) FROM pg_prepared_statements") == 0
    store.close()


def test_a_password_is_in_no_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = Store("postgresql://ann:secret@127.0.0.1:1/runs")
    assert str(store) == "postgresql://ann:***@127.0.0.1:1/runs"
    with pytest.raises(StoreError, match=r"cannot open postgresql://ann:\*\*\*@.*does not answer") as caught:
        store.open()
    assert "secret" not in str(caught.value) + caplog.text


def test_two_services_open_a_new_database_at_once(postgresql: PostgreSQL) -> None:
    url = postgresql.new_schema()
    script = "import sys; from lossd.recorder.store import Store; s = Store(sys.argv[1]); s.open(); s.close()"
    processes = [worker_process.subprocess.Popen([sys.executable, "-c", script, url]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    opened(url).close()


@pytest.fixture
def own_server(postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """The server, running again after the test."""
    yield postgresql
    if postgresql.process.poll() is not None:
        postgresql.start()


def test_a_server_that_crashes_and_comes_back_has_what_was_answered(own_server: PostgreSQL) -> None:
    store = opened(own_server.new_schema())
    run = new_run(store)
    count_one(store, batch(run, "a", range(4)))
    own_server.stop(signal.SIGQUIT)
    for _ in range(2):
        with pytest.raises(StoreError, match="does not answer; send it again"):
            count_one(store, batch(run, "b", range(4, 8)))
    own_server.start()
    assert count_one(store, batch(run, "b", range(4, 8)))["created"]
    assert not count_one(store, batch(run, "a", range(4)))["created"]
    own_server.stop(signal.SIGINT)
    own_server.start()
    assert count_one(store, batch(run, "c", range(8, 12)))["created"], "a lost session is not the client's matter"
    assert store.merged(run)[1] == state("position", tuple(range(12)))
    store.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_connection_lost_at_commit_counts_once(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    store = opened(postgresql.new_schema())
    run = new_run(store)
    count_one(store, batch(run, "a", range(4)))
    commit, lost = psycopg.Connection.commit, []

    def losing(connection: psycopg.Connection[Any]) -> None:
        if lost:
            return commit(connection)
        lost.append(connection)
        if committed:
            commit(connection)
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(psycopg.Connection, "commit", losing)
    outcome = count_one(store, batch(run, "b", range(4, 8)))
    assert lost
    assert outcome == {
        "batch": "b", "created": not committed, "counted": {"rows": 4, "entries": 4}, "run": {"rows": 8, "batches": 2}
    }  # fmt: skip
    assert count_one(store, batch(run, "c", range(8, 12)))["run"] == {"rows": 12, "batches": 3}
    assert store.merged(run)[1] == state("position", tuple(range(12)))
    lost.clear()
    assert store.seal(run, store.merged(run)[0]["revision"], 12, {}, {})["status"] == "sealed"
    lost.clear()
    store.delete("", "r")
    assert store.list("")["runs"] == []
    store.close()


@pytest.mark.parametrize("names", [["r"], ["r", "s"]])
def test_a_recorder_that_was_stopped_in_a_transaction_counts_once_when_it_goes_on(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    assert "SET LOCAL idle_in_transaction_session_timeout TO '15s'" in database.LOCAL
    store = opened(postgresql.new_schema())
    runs = [store.create("", name, document(), "d")[0]["id"] for name in names]
    monkeypatch.setattr(database, "LOCAL", database.LOCAL.replace("'15s'", "'1s'"))
    stops: list[str] = []

    def stop_once(point: str) -> None:
        if not stops:
            time.sleep(2)
        stops.append(point)

    monkeypatch.setattr("lossd.recorder.faults.reach", stop_once)
    outcomes = store.count([batch(run, "a", range(4)) for run in runs])
    assert len(stops) == 2, "PostgreSQL ended the first session, and the transaction was done again"
    assert [outcome["run"] for outcome in outcomes] == [{"rows": 4, "batches": 1}] * len(runs)
    assert [store.merged(run)[1] for run in runs] == [state("position", tuple(range(4)))] * len(runs)
    store.close()


def test_a_run_that_another_program_locks_is_unavailable(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCAL", "SET LOCAL synchronous_commit TO on; SET LOCAL lock_timeout TO '50ms'")
    url = postgresql.new_schema()
    store = opened(url)
    run = new_run(store)
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1 FROM runs FOR UPDATE")
        with pytest.raises(Unavailable, match="another service holds the run"):
            count_one(store, batch(run, "a", range(4)))
    assert count_one(store, batch(run, "a", range(4)))["created"]
    store.close()


# Plans


def test_sqlite_finds_names_and_rows_by_an_index(tmp_path: Path) -> None:
    store = opened(tmp_path / "runs.db")
    run = new_run(store)
    statements: list[str] = []
    store._run(lambda connection: connection.connection.dbapi_connection.set_trace_callback(statements.append))
    store.count([batch(run, "a", range(4)), batch(run, "b", range(2, 6))])
    store.batches(run, "3")
    read = [text for text in statements if text.startswith("SELECT")]
    store._run(lambda connection: connection.connection.dbapi_connection.set_trace_callback(None))
    plans = [
        detail
        for text in read
        for *_, detail in store._run(lambda c, t=text: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {t}").all())
    ]
    assert len(read) >= 5
    assert any("batches" in plan for plan in plans)
    allowed = ("SEARCH", "USE TEMP B-TREE FOR ORDER BY", "CORRELATED SCALAR SUBQUERY")  # its own steps follow
    assert [plan for plan in plans if not plan.startswith(allowed)] == []
    store.close()
