"""Closed-loop load: every connection sends its next request when it has read the answer to its last."""

from __future__ import annotations

import itertools
import json
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRATCH_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
SILENCE_S = 60.0

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


@dataclass(frozen=True)
class Post:
    """A request before it is known to whom."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"

    def head(self, address: Address) -> bytes:
        """Everything before the body."""
        host = "localhost" if isinstance(address, str) else "{}:{}".format(*address)
        fixed = {"Host": host, **self.headers, "Content-Length": str(len(self.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode()


@dataclass(frozen=True)
class Measurement:
    """What one round gave; failures are answers other than 200 and 201, and broken connections."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failures: int

    @property
    def per_second(self) -> float:
        """Answers a second; a refusal is none."""
        return max(0, self.requests - self.failures) / self.seconds if self.seconds else 0.0


def have_wrk() -> bool:
    """Whether wrk is installed; it costs a fraction of what generating the load in Python does."""
    return shutil.which("wrk") is not None


def wrk(address: Address, posts: Sequence[Post], connections: int, seconds: float) -> Measurement:
    """A round by wrk, one thread.

    Raises:
        RuntimeError: It could not be finished; with what wrk says.
    """
    with tempfile.TemporaryDirectory() as directory:
        for index, post in enumerate(posts):
            Path(directory, str(index)).write_bytes(post.head(address) + post.body)
        run = subprocess.run(
            [
                *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"),
                *("-s", Path(__file__).with_name("post.lua"), "http://{}:{}".format(*address)),
                *("--", directory, str(len(posts))),
            ],
            capture_output=True,
            text=True,
        )
    if run.returncode:
        raise RuntimeError(f"wrk could not finish: {(run.stderr.strip() or run.stdout.strip()).rpartition(chr(10))[2]}")
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("JSON "))
    return Measurement(**json.loads(line.removeprefix("JSON ")))


def sockets(
    address: Address, posts: Iterable[Post], connections: int, seconds: float, at_least: int = 1
) -> Measurement:
    """A round over raw sockets in one thread: for large bodies, and for small ones where wrk is missing.

    A sequence of requests is sent again and again, and an iterator's are sent once.
    """
    made = ((post.head(address), memoryview(post.body)) for post in posts)
    requests = itertools.cycle(list(made)) if isinstance(posts, Sequence) else made
    scratch = memoryview(bytearray(SCRATCH_BYTES))
    selector = selectors.DefaultSelector()
    open_connections = [_Connection(address, scratch) for _ in range(connections)]
    begin = time.monotonic()
    for connection in open_connections:
        connection.begin(requests)
        selector.register(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
    running, latencies_s, failures = len(open_connections), [], 0
    while running:
        ready = selector.select(SILENCE_S)
        if not ready:
            raise TimeoutError(f"no answer within {SILENCE_S:.0f} s")
        for key, events in ready:
            connection = key.data
            if events & selectors.EVENT_WRITE and connection.write():
                selector.modify(connection.socket, selectors.EVENT_READ, connection)
            if not events & selectors.EVENT_READ or not connection.read():
                continue
            latencies_s.append(time.monotonic() - connection.began_s)
            failures += connection.status not in (200, 201)
            more = time.monotonic() - begin < seconds or len(latencies_s) < at_least
            if connection.status and more:
                connection.begin(requests)
                if not connection.write():  # a small request leaves at once; only a large one waits for its turn
                    selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
            else:
                selector.unregister(connection.socket)
                connection.socket.close()
                running -= 1
    elapsed_s = time.monotonic() - begin
    latencies_s.sort()
    p50_s, p99_s = (latencies_s[int(len(latencies_s) * quantile)] for quantile in (0.5, 0.99))
    return Measurement(len(latencies_s), elapsed_s, p50_s * 1e3, p99_s * 1e3, failures)


class _Connection:
    """One connection and how far its request and answer have come. ``status`` 0 is a connection that broke."""

    def __init__(self, address: Address, scratch: memoryview) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.scratch = scratch
        self.began_s = 0.0
        self.status = 0
        self._unsent: list[memoryview] = []
        self._head = b""
        self._missing = 0

    def begin(self, requests: Iterator[tuple[bytes, memoryview]]) -> None:
        head, body = next(requests)
        # One segment for a small request: two would wait for each other's acknowledgement.
        self._unsent = [memoryview(head + bytes(body))] if len(body) < HEAD_BYTES else [memoryview(head), body]
        self._head, self._missing, self.status = b"", 0, 0
        self.began_s = time.monotonic()

    def write(self) -> bool:
        """Send what the socket takes; whether all is sent."""
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent[0])
            except BlockingIOError:
                return False
            except OSError:  # the read that follows reports the broken connection
                self._unsent.clear()
                return True
            self._unsent[0] = self._unsent[0][sent:]
            if not self._unsent[0]:
                del self._unsent[0]
        return True

    def read(self) -> bool:
        """Receive what is there; whether the answer is complete, or will never be."""
        try:
            count = self.socket.recv_into(self.scratch)
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if count == 0:
            self.status = 0
            return True
        if self.status:
            self._missing -= count
            return self._missing <= 0
        self._head += self.scratch[:count]
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return False
        self.status = int(head.split(b" ", 2)[1])
        _, found, rest = head.lower().partition(b"\r\ncontent-length:")
        if not found:
            raise RuntimeError("the generator reads answers with a Content-Length only")
        self._missing = int(rest.split(b"\r\n", 1)[0]) - len(body)
        return self._missing <= 0
