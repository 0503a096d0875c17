"""A worker's end of its connections: to the front that started it, or to several fronts that connect.

Each front numbers its own slabs and batches. So they are kept by connection, and dropped with it.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from lossd.engine.protocol import Reply, encode_reply, take_frames

__all__ = ["FrontConnection", "FrontConnections", "Manifest"]

Manifest = Mapping[str, Any]

FDS_BYTES = socket.CMSG_SPACE(16 * 4)
CHUNK_BYTES = 1 << 16
SOCKET_BYTES = 1 << 20
SEND_TIMEOUT_S = 5
NO_FILE_S = 0.02


def _nothing(_: mmap.mmap) -> None:
    pass


class FrontConnection:
    """A worker's connection to a front.

    Args:
        number: The front's number on the heartbeat's page.
        connection: The socket.
        pin: Called with each slab that was mapped.
        unpin: Called with each slab before it is unmapped.
        pid: The front's process id; 0 if the front has started this process.

    Attributes:
        gone: Whether the connection is closed.
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        pin: Callable[[mmap.mmap], None] = _nothing,
        unpin: Callable[[mmap.mmap], None] = _nothing,
        pid: int = 0,
    ) -> None:
        self.number = number
        self.connection = connection
        self.pid = pid
        self.gone = False
        self._pin = pin
        self._unpin = unpin
        self._slabs: dict[int, mmap.mmap] = {}
        self._buffer = bytearray()
        self._fds: list[int] = []

    def receive(self, flags: int = 0) -> list[Manifest]:
        """Return the manifests that one read completes.

        Raises:
            BlockingIOError: Nothing was sent, and ``flags`` say not to wait.
            ConnectionError: The front is gone.
        """
        # Not socket.recv_fds, which ignores the flags before Python 3.12.
        chunk, attached, _, _ = self.connection.recvmsg(CHUNK_BYTES, FDS_BYTES, flags)
        if not chunk:
            raise ConnectionResetError
        for _, _, fds in attached:
            self._fds += memoryview(fds).cast("i")
        self._buffer += chunk
        return [orjson.loads(frame) for frame in take_frames(self._buffer)]

    def slab(self, manifest: Manifest) -> mmap.mmap:
        """Return the memory of a manifest's slab; map it if it is new."""
        for closed in manifest.get("closed", ()):
            self._unpin(self._slabs.pop(closed))
        if size := manifest.get("size"):
            fd = self._fds.pop(0)
            memory = self._slabs[manifest["slab"]] = mmap.mmap(fd, size)
            os.close(fd)
            self._pin(memory)
        return self._slabs[manifest["slab"]]

    def send(self, reply: Reply, fds: tuple[int, ...] = ()) -> None:
        """Send a reply.

        Raises:
            ConnectionError: The front is gone.
            BlockingIOError: The front does not read.
        """
        text = encode_reply(reply)
        if fds:
            text = text[socket.send_fds(self.connection, [text], fds) :]
        self.connection.sendall(text)

    def close(self) -> None:
        """Close the connection and unmap its slabs."""
        self.gone = True
        self.connection.close()
        for memory in self._slabs.values():
            self._unpin(memory)
        self._slabs.clear()
        for fd in self._fds:
            os.close(fd)


class FrontConnections:
    """A worker's connections to all its fronts.

    Args:
        connection: The socket to the process that started the worker: its only front, or the parent of several. None if
            there is no connection yet.
        listener: The socket to which fronts connect; None for a single front.
        greet: Called with each new front.
        pin: See :class:`FrontConnection`.
        unpin: See :class:`FrontConnection`.
    """

    def __init__(
        self,
        connection: socket.socket | None,
        listener: socket.socket | None,
        greet: Callable[[FrontConnection], None],
        pin: Callable[[mmap.mmap], None] = _nothing,
        unpin: Callable[[mmap.mmap], None] = _nothing,
    ) -> None:
        self._greet = greet
        self._hooks = (pin, unpin)
        self._numbers = itertools.count(1)
        self._listener = listener
        self._selector = selectors.DefaultSelector() if listener is not None else None
        self._fronts: list[FrontConnection] = []
        if self._selector is not None and listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        if connection is not None:
            self._add(connection)

    def __bool__(self) -> bool:
        """Return whether a front is connected."""
        return bool(self._fronts)

    def await_first(self, timeout_s: float) -> None:
        """Wait until a front connects.

        Args:
            timeout_s: The most time to wait.
        """
        if self._selector is not None and self._selector.select(timeout_s):
            self._accept()

    def receive(self, *, wait: bool = True, poll_s: float = 0.0) -> list[tuple[FrontConnection, Manifest]]:
        """Return the manifests that the fronts sent.

        Args:
            wait: Whether to sleep until a front sends, connects or leaves.
            poll_s: How long to poll before that; other processes may have the processor meanwhile.
        """
        end = time.perf_counter() + poll_s if poll_s else 0.0
        while end and self._fronts:
            if received := self._received(wait=False):
                return received
            os.sched_yield()
            if time.perf_counter() >= end:
                break
        return self._received(wait=wait) if self._fronts else []

    def _received(self, *, wait: bool) -> list[tuple[FrontConnection, Manifest]]:
        if self._selector is None:  # one read is faster than a selector and a read
            return self._read(self._fronts[0], 0 if wait else socket.MSG_DONTWAIT)
        received = []
        for key, _ in self._selector.select(None if wait else 0):
            if key.data is None:
                self._accept()
            else:
                received += self._read(key.data, socket.MSG_DONTWAIT)
        return received

    def reply(self, front: FrontConnection, reply: Reply) -> None:
        """Send a reply. A front that does not read is disconnected; it may connect again."""
        try:
            front.send(reply)
        except (ConnectionError, BlockingIOError):
            self._drop(front)

    def tell(self, reply: Reply) -> None:
        """Send a reply to every front."""
        for front in list(self._fronts):
            self.reply(front, reply)

    def close(self) -> None:
        """Close all sockets in a forked process; the parent process keeps its own."""
        for front in self._fronts:
            front.close()
        self._fronts.clear()
        for one in (self._selector, self._listener):
            if one is not None:
                one.close()

    def _read(self, front: FrontConnection, flags: int) -> list[tuple[FrontConnection, Manifest]]:
        try:
            return [(front, manifest) for manifest in front.receive(flags)]
        except BlockingIOError:
            return []
        except ConnectionError:
            self._drop(front)
            return []

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # the front still waits: do not ask again at once
                time.sleep(NO_FILE_S)
            return  # else the front left before it was accepted
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid() or not pid:  # any process may connect; 0 is a process outside this container
            connection.close()
            return
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        # A front that is stopped delays the others no longer than this.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._add(connection, pid)

    def _add(self, connection: socket.socket, pid: int = 0) -> None:
        front = FrontConnection(next(self._numbers), connection, *self._hooks, pid)
        self._fronts.append(front)
        if self._selector is not None:
            self._selector.register(connection, selectors.EVENT_READ, front)
        try:
            self._greet(front)
        except ConnectionError:
            self._drop(front)

    def _drop(self, front: FrontConnection) -> None:
        self._fronts.remove(front)
        if self._selector is not None:
            self._selector.unregister(front.connection)
        front.close()
