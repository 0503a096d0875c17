"""The recorder's process: answers the fronts' requests from the store, and commits in groups.

It has one thread. A turn reads everything that has arrived. All batches to count among it are counted in one
transaction, and each is answered after the commit. Between two turns the store folds one run, or removes a piece of a
deleted one. If the store cannot be opened, every request is answered with the reason, and opening is tried again each
second.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from lossd.recorder import faults
from lossd.recorder.files import StoreError
from lossd.recorder.peer import is_own
from lossd.recorder.protocol import (
    COUNT,
    REPLY_BYTES,
    Frame,
    FrameBuffer,
    FrameError,
    NewBatch,
    batches_of,
    encode,
    encode_problem,
    reply_of,
)
from lossd_client.errors import InternalError, Problem, StorageFull, TooLarge, Unavailable

__all__ = ["Server"]

log = logging.getLogger("lossd.recorder")

READ_BYTES = 4 << 20
"""What one turn reads of a connection, and so how much one transaction counts."""

CHUNK_BYTES = 1 << 18

UNSENT_BYTES = 8 << 20
"""How many bytes of answers wait for a front before no more of its requests are answered."""

SENT_TOGETHER = 256
"""How many answers one system call sends: the front then reads the answers to a commit at once."""

REOPEN_S = 1.0
RETIRE_S = 3600.0
FLUSH_S = 2.0
SCARCE_S = 0.1
"""The pause before another try to accept a connection, if no file is left."""

T = TypeVar("T")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class StoreLike(Protocol):
    """The store, as the recorder calls it: :class:`lossd.recorder.store.Store`."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def create(self, owner: str, name: str, document: dict[str, Any], digest: str) -> tuple[dict[str, Any], bool]: ...

    def find(self, owner: str, name: str, owner_of_run: str | None = None) -> dict[str, Any]: ...

    def list(self, owner: str, **conditions: Any) -> dict[str, Any]: ...

    def count(self, batches: Sequence[NewBatch]) -> Sequence[dict[str, Any] | Problem]: ...

    def batch(self, run: str, name: str) -> dict[str, Any]: ...

    def batches(self, run: str, after: str | None, limit: int) -> dict[str, Any]: ...

    def merged(self, run: str) -> tuple[dict[str, Any], bytes]: ...

    def summarize(self, run: str, rows: int, batches: int, summary: dict[str, Any]) -> dict[str, Any]: ...

    def seal(
        self, run: str, revision: int, rows: int | None, result: dict[str, Any], summary: dict[str, Any]
    ) -> dict[str, Any]: ...

    def delete(self, owner: str, name: str) -> None: ...

    def retire(self) -> int: ...

    def tidy(self) -> bool: ...


OPERATIONS = frozenset(("create", "find", "list", "batch", "batches", "merged", "summarize", "seal", "delete"))
"""The operations that are answered one by one; ``count`` is answered in groups."""


class _Connection:
    """A front's connection.

    Args:
        connected: The connected socket.
        limit: The most bytes of a request.

    Attributes:
        socket: The same socket.
        incoming: What has arrived.
        gone: Whether the front has closed it.
        watched: The events that the selector waits for.
    """

    def __init__(self, connected: socket.socket, limit: int) -> None:
        self.socket = connected
        self.incoming = FrameBuffer(limit)
        self.gone = False
        self.watched = READ
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0

    @property
    def full(self) -> bool:
        """Whether the front must read answers before more are made."""
        return self._unsent_bytes >= UNSENT_BYTES

    @property
    def unsent(self) -> bool:
        """Whether answers wait to be sent."""
        return bool(self._unsent)

    @property
    def events(self) -> int:
        """The events to wait for."""
        return (0 if self.full else READ) | (WRITE if self._unsent else 0)

    def receive(self) -> None:
        """Read what has arrived, up to the limit of a turn."""
        read = 0
        try:
            while read < READ_BYTES:
                data = self.socket.recv(CHUNK_BYTES)
                if not data:
                    self.gone = True
                    return
                self.incoming.feed(data)
                read += len(data)
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True

    def send(self, frame: bytes) -> None:
        """Queue an answer."""
        self._unsent.append(memoryview(frame))
        self._unsent_bytes += len(frame)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        try:
            while self._unsent:
                sent = self.socket.sendmsg(itertools.islice(self._unsent, SENT_TOGETHER))
                self._unsent_bytes -= sent
                while sent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True


class Server:
    """Serves the store until :meth:`stop`.

    Args:
        listener: The listening socket.
        make_store: Returns a closed store. It may raise :class:`StoreError`.
        limit: The most bytes of a request.
    """

    def __init__(self, listener: socket.socket, make_store: Callable[[], StoreLike], limit: int) -> None:
        self._listener = listener
        self._make_store = make_store
        self._limit = limit
        self._store: StoreLike | None = None
        self._reason = ""
        self._obstacle: tuple[type[Problem], str] = Unavailable, "the store of runs is not open yet"
        self._open_at = self._retire_at = self._tidy_at = 0.0
        self._untidy = False
        self._stopping = False
        self._scarce = False
        self._connections: set[_Connection] = set()
        self._waker, self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()

    def stop(self) -> None:
        """Make :meth:`run` answer what has been read, and return. A signal's handler may call it."""
        self._stopping = True
        with suppress(OSError):  # it has ended, or was asked to many times
            self._wake.send(b"\0")

    def run(self) -> None:
        """Serve until :meth:`stop`, then close the store."""
        for end in (self._listener, self._waker, self._wake):
            end.setblocking(False)
        self._selector.register(self._listener, READ)
        self._selector.register(self._waker, READ)
        try:
            while not self._stopping:
                self._tend()
                self._turn(self._idle_s())
            self._turn(0.0)  # what has arrived
            self._finish()
        finally:
            for connection in list(self._connections):
                self._drop(connection)
            self._selector.close()
            self._waker.close()
            self._wake.close()
            self._close_store()

    # The store

    def _tend(self) -> None:
        """Do what is due: open the store, retire old runs, tidy a piece."""
        now = time.monotonic()
        if self._store is None:
            if now >= self._open_at:
                self._open()
        elif now >= self._retire_at:
            self._retire_at = now + RETIRE_S
            retired = self._keep_house(self._store.retire, "old runs could not be deleted")
            if retired:
                log.info("%d old runs were deleted, as the settings say", retired)
                self._untidy = True
        elif self._untidy and now >= self._tidy_at:
            self._untidy = self._keep_house(self._store.tidy, "states could not be folded") is not False

    def _keep_house(self, work: Callable[[], int | bool], failed: str) -> int | bool | None:
        """Return what the store did; None if that failed, and it is tried again later."""
        try:
            return work()
        except Exception as error:
            self._tidy_at = time.monotonic() + REOPEN_S
            log.error("%s: %s", failed, error, exc_info=not isinstance(error, Problem | StoreError))
            return None

    def _idle_s(self) -> float:
        """Return for how long nothing is due, in seconds."""
        due = (
            self._open_at if self._store is None else min(self._retire_at, self._tidy_at if self._untidy else math.inf)
        )
        return max(0.0, due - time.monotonic())

    def _open(self) -> None:
        self._open_at = time.monotonic() + REOPEN_S
        store = None
        try:
            store = self._make_store()
            store.open()
        except Exception as error:
            _close(store)
            known = isinstance(error, StoreError | Problem | ImportError)
            reason = f"the store of runs cannot be opened: {error}" if str(error) else f"the store: {error!r}"
            self._unusable(reason, error, known=known)
        else:
            self._store, self._untidy, self._retire_at = store, True, time.monotonic()
            log.info("the store of runs is open%s", ", after it was not" if self._reason else "")
            self._reason = ""

    def _unusable(self, reason: str, error: Exception, *, known: bool) -> None:
        """Answer requests with a reason until the store is opened. A reason is logged once, not at each try."""
        self._obstacle = StorageFull if _lacks_room(error) else Unavailable, reason
        if reason != self._reason:
            self._reason = reason
            log.error("%s", reason, exc_info=None if known else error)

    def _problem(self) -> Problem:
        """Return why the store is not open. Each request gets an exception of its own, which holds its traceback."""
        kind, reason = self._obstacle
        return kind(reason, retry_after_s=REOPEN_S)

    def _close_store(self) -> None:
        store, self._store = self._store, None
        _close(store)

    # A turn

    def _turn(self, timeout_s: float) -> None:
        """Read what has arrived, answer it, and send the answers."""
        active = []
        for key, events in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._waker:
                self._waker.recv(1 << 10)
            else:
                connection: _Connection = key.data
                if events & WRITE:
                    connection.flush()
                if events & READ:
                    connection.receive()
                active.append(connection)
        unanswered = active
        while unanswered:
            self._answer(unanswered)
            full = [connection for connection in unanswered if connection.full]
            for connection in unanswered:
                connection.flush()
            # Requests may wait behind answers that are sent by now; nothing else would announce them.
            unanswered = [connection for connection in full if not (connection.full or connection.gone)]
        for connection in active:
            if connection.gone:
                self._drop(connection)
            elif connection.watched != connection.events:
                connection.watched = connection.events
                self._selector.modify(connection.socket, connection.watched, connection)

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no file is left; connections wait in the backlog
            if not self._scarce:
                log.error("a front's connection cannot be accepted: %s", error)
            self._scarce = True
            time.sleep(SCARCE_S)
            return
        self._scarce = False
        if not is_own(connected):
            log.warning("a connection of another user was closed")
            connected.close()
            return
        connected.setblocking(False)
        connection = _Connection(connected, self._limit)
        self._connections.add(connection)
        self._selector.register(connected, READ, connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _finish(self) -> None:
        """Send the answers that wait, for as long as the fronts read them."""
        end = time.monotonic() + FLUSH_S
        while any(connection.unsent for connection in self._connections) and time.monotonic() < end:
            for connection in [c for c in self._connections if c.unsent]:
                connection.flush()
                if connection.gone:
                    self._drop(connection)
            time.sleep(0.005)

    # Requests

    def _answer(self, active: list[_Connection]) -> None:
        waiting: list[tuple[_Connection, int, list[NewBatch]]] = []
        for connection in active:
            try:
                while not (connection.gone or connection.full) and (frame := connection.incoming.take()):
                    if frame.head.get("op") != COUNT:
                        connection.send(self._reply(frame))
                        continue
                    batches = batches_of(frame)
                    for _ in batches:
                        faults.reach(faults.RECEIVED)
                    waiting.append((connection, frame.head["id"], batches))
            except FrameError as error:
                log.error("a front's connection is closed: %s", error)
                connection.gone = True
        if waiting:
            outcomes = iter(self._count([batch for *_, batches in waiting for batch in batches]))
            for connection, number, batches in waiting:
                each = [next(outcomes) for _ in batches]
                found = [reply_of(outcome) if isinstance(outcome, Problem) else outcome for outcome in each]
                connection.send(_encode(number, found))

    def _reply(self, frame: Frame) -> bytes:
        """Return the answer to a request other than ``count``."""
        arguments = dict(frame.head)
        number, op = arguments.pop("id"), arguments.pop("op", None)
        payload = b""
        try:
            if op not in OPERATIONS:
                raise InternalError(f"the recorder has no operation {op!r}")
            outcome = self._call(lambda store: getattr(store, op)(**arguments))
        except Problem as problem:
            outcome = problem
        if op == "merged" and not isinstance(outcome, Problem):
            outcome, payload = outcome
        return _encode(number, outcome, payload)

    def _count(self, batches: Sequence[NewBatch]) -> list[dict[str, Any] | Problem]:
        """Count batches in one transaction, and return what came of each."""

        def count(store: StoreLike) -> list[dict[str, Any] | Problem]:
            faults.reach(faults.WAITING)
            outcomes = list(store.count(batches))
            faults.reach(faults.COMMITTED)
            return outcomes

        try:
            return self._call(count)
        except InternalError as problem:
            if len(batches) == 1:
                return [problem]
        except Problem as problem:
            return [problem] * len(batches)
        # One batch may be at fault. Nothing of the group was committed, so each is counted alone.
        return [self._count([batch])[0] for batch in batches]

    def _call(self, work: Callable[[StoreLike], T]) -> T:
        """Return what the store answers.

        Raises:
            Problem: The store's own, or that of an unexpected exception, which is logged.
        """
        if self._store is None:
            raise self._problem()
        self._untidy = True  # the store knows; the question costs nothing
        try:
            return work(self._store)
        except Problem:
            raise
        except StoreError as error:
            self._close_store()
            self._open_at = time.monotonic() + REOPEN_S
            self._unusable(f"the store of runs cannot be used: {error}", error, known=True)
            raise self._problem() from error
        except Exception as error:
            log.exception("a request failed in the recorder")
            raise _failed() from error


def _encode(number: int, outcome: Any, payload: bytes = b"") -> bytes:
    """Return an answer's frame."""
    if isinstance(outcome, Problem):
        return encode_problem(number, outcome)
    if len(payload) > REPLY_BYTES:
        outcome = TooLarge(f"the run's state has {len(payload)} bytes; at most {REPLY_BYTES} are sent")
        return encode_problem(number, outcome)
    try:
        return encode({"id": number, "ok": outcome}, payload)
    except (FrameError, TypeError):
        log.exception("an answer cannot be sent")
        return encode_problem(number, _failed())


def _lacks_room(error: BaseException) -> bool:
    """Whether the disk is full, by an error or its cause."""
    if isinstance(error, StorageFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return True
    return error.__cause__ is not None and _lacks_room(error.__cause__)


def _failed() -> InternalError:
    return InternalError("the recorder failed on this request; the service's log has the details")


def _close(store: StoreLike | None) -> None:
    if store is not None:
        try:
            store.close()
        except Exception as error:
            log.error("the store of runs could not be closed: %s", error)
