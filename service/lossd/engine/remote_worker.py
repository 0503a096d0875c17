"""The front's end of a worker: its unanswered batches, and what happens when it dies or hangs."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from lossd.compiled.passes import CompileProgress
from lossd.engine.batcher import Batch, Batcher
from lossd.engine.heartbeat import PROBE, Heartbeat
from lossd.engine.liveness import Liveness, Observation
from lossd.engine.polling import Polling
from lossd.engine.process_handle import ProcessHandle
from lossd.engine.protocol import HELLO, LANE, LENGTH, Reply, decode_answers, take_replies
from lossd.engine.statistics import Stats
from lossd.engine.worker_process import END_S, FIRST_TRIES, SOCKET_BYTES, Backoff, WorkerProcess, ended_with, hopeless
from lossd_client.errors import Problem

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["RemoteLane", "RemoteWorker"]

log = logging.getLogger("lossd.engine")

LINGER_S = 10.0
"""How long an unused lane is kept: long batches often follow one another."""


class WorkerOwner(Protocol):
    """The engine, as a worker's front end calls it."""

    settings: Settings
    stats: Stats
    batcher: Batcher
    polling: Polling
    draining: bool
    on_failure: Callable[[str], None]

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def in_progress(self) -> int: ...

    def dispatch(self) -> None: ...

    def recover(self, batches: Sequence[Batch], suspects: Sequence[Batch]) -> None: ...

    def resolve(self, batch: Batch, answers: Sequence[bytes | Problem], copy_s: float, compute_s: float) -> None: ...

    def worker_ready(self) -> None: ...

    def worker_start_failed(self) -> None: ...


class RemoteWorker:
    """The front's end of one worker.

    Args:
        engine: The engine whose batches it evaluates.
        device: The worker's device.
        address: The worker's socket, if another process keeps the worker; None to start it here.

    Attributes:
        device: The worker's device.
        ready: Whether it said hello and has not died since.
        ever_ready: Whether a worker was ready before.
        failed_starts: How many processes in a row ended before they said hello.
        last_end: How the last process ended.
        batches: The batches that it has not answered, oldest first.
        lane: The lane for short batches; None if there is none.
        pid: The id of its process; None if there is none.
    """

    def __init__(self, engine: WorkerOwner, device: str, address: str | None = None) -> None:
        self.engine = engine
        self.device = device
        self.address = address
        # A CPU evaluates one batch while the next is filled. A GPU also copies the next one in, and has one more ready.
        self.depth, self.room = (3, 3) if device.startswith("cuda") else (1, 2)
        self.ready = False
        self.ever_ready = False
        self.failed_starts = 0
        self.last_end = ""
        self.batches: dict[int, Batch] = {}
        self._forks = device == "cpu"
        self.lane: RemoteLane | None = None
        self.pid: int | None = None
        self._known: set[int] = set()
        self._closed: list[int] = []
        self._buffer = bytearray()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting_to_write = False
        self._process = WorkerProcess(device, engine.settings) if address is None else None
        self._backoff = Backoff()
        self._socket: socket.socket | None = None
        self._heartbeat: Heartbeat | None = None
        self._handle: ProcessHandle | None = None
        self._number = 0
        self._closed_for_good = False
        self._reaping: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._liveness = Liveness(engine.settings.worker_timeout_ms / 1000)
        self._next_check: asyncio.TimerHandle | None = None

    @property
    def free(self) -> bool:
        """Whether it can evaluate a batch now."""
        return self.ready and len(self.batches) < self.depth and not self.engaged

    @property
    def has_room(self) -> bool:
        """Whether it can take a batch ahead of time."""
        return self.ready and len(self.batches) < self.room and not self.engaged

    @property
    def engaged(self) -> bool:
        """Whether a batch that is sent now would wait for a long one. The lane takes it instead."""
        if self._heartbeat is not None and self._heartbeat.engaged:
            return True
        return self._forks and any(batch.long for batch in self.batches.values())

    @property
    def memory(self) -> tuple[int, int, int] | None:
        """See :attr:`lossd.engine.heartbeat.Heartbeat.memory`."""
        return None if self._heartbeat is None else self._heartbeat.memory

    @property
    def busy_s(self) -> float | None:
        """The seconds it has been busy, with the workers before it; None if another process keeps it."""
        return None if self._process is None else self._process.busy.seconds

    @property
    def compiled(self) -> CompileProgress:
        """The progress of its compiled passes."""
        return CompileProgress() if self._heartbeat is None else CompileProgress(*self._heartbeat.compiled)

    def connect(self) -> None:
        """Start the worker's process, or connect to it. It is ready when it says hello."""
        if self._process is not None:
            try:
                connection = self._process.start()
            except OSError as error:  # no memory, process or file is left
                self._start_failed(f"cannot be started: {error}")
                if not self.ever_ready and self.failed_starts == FIRST_TRIES:
                    self.engine.on_failure(hopeless(self.device, self.last_end))
                self._try_again(self.last_end)
                return
            self.pid = self._process.pid
        else:
            assert self.address is not None
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            connection.setblocking(False)
            try:
                connection.connect(f"\0{self.address}")
            except OSError as error:  # the parent is ending, or the backlog is full
                connection.close()
                self._try_again(f"cannot be reached: {error}")
                return
        self._socket = connection
        self._known.clear()
        self._closed.clear()
        self._buffer = bytearray()
        self.engine.loop.add_reader(connection.fileno(), self._readable)

    def close(self) -> None:
        """Close the connection for good. A worker without a connection ends."""
        self._closed_for_good = True
        if self._retry is not None:
            self._retry.cancel()
        self._hang_up()

    async def end(self) -> None:
        """Close the connection, and return when the process has ended."""
        self.close()
        if self._reaping is not None:
            await self._reaping
        if self._process is not None:
            await asyncio.to_thread(self._process.end)

    def send(self, batch: Batch) -> None:
        """Send a batch."""
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
        """Tell the worker, with the next batch, to unmap a slab."""
        if slab_id in self._known:
            self._known.discard(slab_id)
            self._closed.append(slab_id)

    def _flush(self) -> None:
        """Send as much as the socket takes. Most manifests are far smaller than its buffer, but not all."""
        assert self._socket is not None
        loop, number = self.engine.loop, self._socket.fileno()
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._lost()
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
            if self.ready:
                chunk = self._socket.recv(SOCKET_BYTES)
            else:
                chunk, fds, _, _ = socket.recv_fds(self._socket, SOCKET_BYTES, 2)
                if fds:
                    self._heartbeat = Heartbeat(fds[0])
                    self._handle = ProcessHandle(*fds[1:])
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._lost()
            return
        self._buffer += chunk
        for reply in list(take_replies(self._buffer)):
            if reply.batch == HELLO:
                refused, text = reply.answers[0]
                (self._refused if refused else self._greeted)(orjson.loads(text))
            elif reply.batch == LANE:
                self._open_lane(orjson.loads(reply.answers[0][1])["address"])
            else:
                self._answered(reply)

    def _greeted(self, hello: dict[str, Any]) -> None:
        self.ready, self.ever_ready, self.failed_starts = True, True, 0
        self.pid, self._number = hello["pid"], hello["front"]
        if self._handle is not None:
            self._handle.pid = self.pid
        self._backoff.succeeded()
        self._liveness.reset(time.monotonic())
        self._check_liveness()
        log.info("worker ready on %s (pid %s)", self.device, self.pid)
        self.engine.worker_ready()

    def _open_lane(self, address: str) -> None:
        if self.lane is None:
            self.lane = RemoteLane(self, address)
            self.lane.connect()

    def _start_failed(self, end: str) -> None:
        self.failed_starts, self.last_end = self.failed_starts + 1, end
        self.engine.worker_start_failed()

    def _refused(self, problem: dict[str, Any]) -> None:
        """Handle a worker that cannot work. The service ends if none ever was ready; else the device may recover."""
        if self.ever_ready:
            log.error("worker on %s: %s", self.device, problem["detail"])
        else:
            self.engine.on_failure(problem["detail"])

    def _answered(self, reply: Reply) -> None:
        batch = self.batches.pop(reply.batch, None)
        if batch is None:  # the connection broke while replies were read, and the batch was queued again
            return
        self.engine.polling.answered()
        self.engine.dispatch()  # first, so that the worker has its next batch while answers are sent
        self.engine.resolve(batch, decode_answers(reply), reply.copy_ns / 1e9, reply.compute_ns / 1e9)

    def _hang_up(self) -> None:
        self.ready, self.pid = False, None
        if self._next_check is not None:
            self._next_check.cancel()
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        if self._socket is not None:
            self.engine.loop.remove_reader(self._socket.fileno())
            self.engine.loop.remove_writer(self._socket.fileno())
            self._waiting_to_write = False
            self._unsent.clear()
            self._socket.close()
            self._socket = None

    def _lost(self) -> None:
        """Handle a closed connection: the process has ended or soon will, and its batches are queued again."""
        if self._socket is None:
            return
        was_ready, batches = self.ready, list(self.batches.values())
        self.batches.clear()
        evaluating = self._heartbeat.evaluating if self._heartbeat is not None else None
        # A batch that was not being evaluated is not to blame; if it is unknown which was, any may be.
        suspects = [b for b in batches if evaluating is None or evaluating == (self._number, b.id)]
        self._hang_up()
        self.engine.recover(batches, suspects)
        requeued = f"{sum(len(b.tickets) for b in batches)} requests requeued"
        if self._process is None:
            self._replace("is gone", requeued, was_ready=was_ready)
        else:
            self._reaping = self.engine.loop.create_task(self._reap(self._process, requeued, was_ready=was_ready))

    async def _reap(self, process: WorkerProcess, requeued: str, *, was_ready: bool) -> None:
        """Wait until a process has ended, then start another.

        The kernel may take seconds to free the memory of a GPU's worker, and the next worker needs that memory. The
        event loop goes on meanwhile.
        """
        status = await asyncio.to_thread(process.reap, patience_s=0.0 if was_ready else END_S)
        self._reaping = None
        self._replace(ended_with(status), requeued, was_ready=was_ready)

    def _replace(self, end: str, requeued: str, *, was_ready: bool) -> None:
        """Start another process, or connect to it, in place of one that has ended."""
        if self._closed_for_good:
            return
        if not was_ready:
            self._start_failed(end)
        if self.engine.draining and not self.engine.in_progress:
            return
        if self._process is not None:
            self.engine.stats.restarts += 1
            if not self.ever_ready and self.failed_starts == FIRST_TRIES:
                self.engine.on_failure(hopeless(self.device, end))
        self._try_again(f"{end}; {requeued}")

    def _try_again(self, what: str) -> None:
        delay_s = self._backoff.delay_s()
        verb = "starting another" if self._process is not None else "looking for the next"
        log.warning("worker on %s %s, %s in %.1f s", self.device, what, verb, delay_s)
        self._retry = self.engine.loop.call_later(delay_s, self.connect)

    def _check_liveness(self) -> None:
        """Check whether the worker is alive, and send a probe if that is unclear."""
        self._next_check = self.engine.loop.call_later(self._liveness.interval_s, self._check_liveness)
        heartbeat = self._heartbeat
        if heartbeat is None:
            return
        front, number = heartbeat.evaluating or (0, 0)  # read once: the worker may end the batch meanwhile
        batch = self.batches.get(number) if front == self._number else None
        awaited = not (front and heartbeat.abandoned) if batch is None else batch.awaited
        others_wait = not awaited and self._others_wait
        busy = bool(self.batches) or not awaited
        observation = Observation(heartbeat.steps, heartbeat.probes_answered, busy, awaited, others_wait)
        why = self._liveness.check(observation, time.monotonic())
        if why is not None:
            self._kill(why)
        elif self._handle is not None and (self._liveness.silent or not awaited):
            if not awaited:
                heartbeat.mark_unwanted(front, number)
            self._handle.send(PROBE)

    @property
    def _others_wait(self) -> bool:
        """Whether a client waits for another batch. Clients of other fronts may, so with several fronts it is True."""
        if self.engine.settings.fronts > 1 or any(batch.awaited for batch in self.batches.values()):
            return True
        return any(not ticket.future.done() for ticket in self.engine.batcher.waiting())

    def _kill(self, why: str) -> None:
        """Kill a process that hangs; its closed connection is handled as usual."""
        if self._handle is not None:
            log.error("worker on %s (pid %s) %s: killing it", self.device, self._handle.pid, why)
            self._handle.send(signal.SIGKILL)


class RemoteLane(RemoteWorker):
    """The front's end of a lane.

    Args:
        worker: The worker that forked the lane.
        address: The lane's socket.
    """

    def __init__(self, worker: RemoteWorker, address: str) -> None:
        super().__init__(worker.engine, worker.device, address)
        self._worker = worker
        self._needed_s = time.monotonic()

    def close(self) -> None:
        """Close the connection for good; the lane then ends."""
        super().close()
        self._worker.lane = None

    def _check_liveness(self) -> None:
        super()._check_liveness()
        now = time.monotonic()
        if self.batches or self._worker.engaged:
            self._needed_s = now
        elif now - self._needed_s > LINGER_S:
            self.close()

    def _start_failed(self, end: str) -> None:
        pass  # then there is no lane

    def _try_again(self, what: str) -> None:
        self._worker.lane = None
        log.info("the lane for short batches %s", what)
