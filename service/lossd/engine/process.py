"""Worker processes, one a device, supervised: when one dies, its work goes to the next and the answers still come."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from lossd.engine import Engine
from lossd.engine.batcher import Batch
from lossd.engine.frames import HELLO, LENGTH, Reply, decode_answers, take_replies
from lossd_client.errors import InternalError, Unavailable

if TYPE_CHECKING:
    from lossd.settings import Settings

__all__ = ["ProcessEngine"]

log = logging.getLogger("lossd.engine")

MAX_DEATHS = 3
PATIENCE_S = 10.0
SOCKET_BYTES = 1 << 20


class ProcessEngine(Engine):
    """An engine whose batches are evaluated by worker processes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.workers = [Worker(self, device) for device in settings.device.split(",")]
        self._last_ready = 0.0

    async def start(self) -> None:
        """Start the workers; each is ready some seconds later."""
        await super().start()
        for worker in self.workers:
            worker.spawn()

    async def stop(self) -> None:
        """Finish what was accepted, then end the workers."""
        await super().stop()
        for worker in self.workers:
            worker.end()

    @property
    def ready(self) -> bool:
        """Whether any worker said hello and is alive."""
        return not self.draining and any(worker.ready for worker in self.workers)

    def _check_available(self) -> None:
        super()._check_available()
        if self.ready:
            self._last_ready = time.monotonic()
        elif not self._last_ready:
            raise Unavailable("the worker is starting", retry_after_s=1.0)
        elif time.monotonic() - self._last_ready > PATIENCE_S:
            raise Unavailable("no worker is running; one is being started", retry_after_s=2.0)

    def _dispatch(self) -> None:
        for worker in self.workers:
            while worker.free and self.batcher:
                batch = self._next_batch()
                if batch is None:
                    return
                worker.send(batch)

    def _under_way(self) -> Sequence[Batch]:
        return [batch for worker in self.workers for batch in worker.batches.values()]

    def _forget(self, slab_id: int) -> None:
        for worker in self.workers:
            worker.forget(slab_id)

    def _recover(self, batches: Sequence[Batch]) -> None:
        """Requeue what a dead worker had; what keeps killing workers is narrowed down and given up."""
        again: deque[Batch] = deque()
        for batch in batches:
            batch.deaths += 1
            if batch.deaths == 1:
                again.append(batch)
            elif len(batch.tickets) > 1:
                again.extend(batch.singles())
            elif batch.deaths < MAX_DEATHS:
                again.append(batch)
            else:
                self._fail(
                    batch, InternalError(f"{batch.deaths} workers died evaluating this request; it was given up")
                )
        self.batcher.requeue(again)


class Worker:
    """The front's end of one worker process.

    Attributes:
        device: What it computes on.
        ready: Whether it said hello and has not died since.
        batches: What it was sent and has not answered, oldest first.
    """

    def __init__(self, engine: ProcessEngine, device: str) -> None:
        self.engine = engine
        self.device = device
        # A CPU computes one batch while the next fills up; a GPU also overlaps copies with computing.
        self.depth = 2 if device.startswith("cuda") else 1
        self.ready = False
        self.batches: dict[int, Batch] = {}
        self._known: set[int] = set()
        self._closed: list[int] = []
        self._buffer = bytearray()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting_to_write = False
        self._failures = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._respawn: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process else None

    @property
    def free(self) -> bool:
        """Whether it can take a batch now."""
        return self.ready and len(self.batches) < self.depth

    def spawn(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        command = [sys.executable, "-m", "lossd.engine.worker", "--device", self.device]
        command += ["--threads", str(self.engine.settings.threads), "--socket", str(theirs.fileno())]
        command += ["--compiled"] if self.engine.settings.compiled else []
        environment = {"OMP_NUM_THREADS": str(self.engine.settings.threads), **os.environ}
        # A session of its own: a terminal's Ctrl-C reaches the front alone, which then lets the worker finish.
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._known.clear()
        self._closed.clear()
        self._buffer.clear()
        self.engine.loop.add_reader(ours.fileno(), self._readable)

    def end(self) -> None:
        """Close the connection, upon which the process ends; make sure that it does."""
        if self._respawn is not None:
            self._respawn.cancel()
        self._hang_up()
        if self._process is not None:
            try:
                self._process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def send(self, batch: Batch) -> None:
        """Hand it a batch."""
        assert self._socket is not None
        slab = batch.lease.slab
        manifest: dict[str, Any] = batch.manifest()
        fds = []
        if slab.id not in self._known:
            self._known.add(slab.id)
            manifest["size"] = slab.size
            fds.append(slab.fd)
        if self._closed:
            manifest["closed"] = list(self._closed)
            self._closed.clear()
        self.batches[batch.id] = batch
        body = orjson.dumps(manifest)
        self._unsent.append((memoryview(LENGTH.pack(len(body)) + body), fds))
        if len(self._unsent) == 1:
            self._flush()

    def forget(self, slab_id: int) -> None:
        """Tell it, with the next batch, that a slab is no more."""
        if slab_id in self._known:
            self._known.discard(slab_id)
            self._closed.append(slab_id)

    def _flush(self) -> None:
        """Send what the socket takes. Manifests are mostly far smaller than its buffer, but not all."""
        assert self._socket is not None
        loop, number = self.engine.loop, self._socket.fileno()
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._died()
                return
            if sent < len(data):
                self._unsent[0] = data[sent:], [] if sent else fds  # descriptors go with the first byte
                if not self._waiting_to_write:
                    self._waiting_to_write = True
                    loop.add_writer(number, self._flush)
                return
            self._unsent.popleft()
        if self._waiting_to_write:
            self._waiting_to_write = False
            loop.remove_writer(number)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(SOCKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._died()
            return
        self._buffer += chunk
        for reply in take_replies(self._buffer):
            if reply.batch == HELLO:
                self.ready = True
                self._failures = 0
                log.info("worker ready on %s (pid %s)", self.device, self.pid)
                self.engine._dispatch()
            else:
                self._answered(reply)

    def _answered(self, reply: Reply) -> None:
        batch = self.batches.pop(reply.batch)
        self.engine._dispatch()  # first give the worker its next batch, then the answers their way
        self.engine._resolve(batch, decode_answers(reply), reply.copy_ns / 1e9, reply.compute_ns / 1e9)

    def _hang_up(self) -> None:
        self.ready = False
        if self._socket is not None:
            self.engine.loop.remove_reader(self._socket.fileno())
            self.engine.loop.remove_writer(self._socket.fileno())
            self._waiting_to_write = False
            self._unsent.clear()
            self._socket.close()
            self._socket = None

    def _died(self) -> None:
        """The connection is gone, and with it the process: start another and give it the work."""
        self._hang_up()
        assert self._process is not None
        self._process.kill()
        status = self._process.wait()
        batches = list(self.batches.values())
        self.batches.clear()
        self.engine._recover(batches)
        if self.engine.draining and not self.engine.in_progress:
            return
        self.engine.stats.restarts += 1
        delay_s = min(5.0, 0.1 * 2**self._failures) if self._failures else 0.0
        self._failures += 1
        log.warning(
            "worker on %s ended with status %s; %d requests requeued, starting another in %.1f s",
            self.device,
            status,
            sum(len(b.tickets) for b in batches),
            delay_s,
        )
        self._respawn = self.engine.loop.call_later(delay_s, self.spawn)
