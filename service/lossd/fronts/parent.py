"""The parent of several fronts: starts and restarts fronts, workers and the recorder, and answers no requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client.core import CounterMetricFamily

from lossd.configuration.preflight import StartError
from lossd.engine.protocol import take_replies
from lossd.engine.worker_process import END_S, FIRST_TRIES, Backoff, WorkerProcess, ended_with, hopeless
from lossd.fronts import FrontConfig
from lossd.fronts.counts import Family, cumulative, family, merge, worker_busy
from lossd.fronts.member import LINE_BYTES
from lossd.fronts.unix_socket import UnixSocket
from lossd.logs import configure
from lossd.recorder.keeper import Keeper
from lossd.recorder.place import kept

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["keep"]

log = logging.getLogger("lossd.fronts")

BACKLOG = 128
ROUND_S = 1.0
LEAVE_S = 5.0


def keep(
    settings: Settings, announce: Callable[[int], None], held: Sequence[socket.socket], local: UnixSocket | None = None
) -> int:
    """Run fronts and workers until SIGTERM or SIGINT, then let them finish the accepted requests.

    Args:
        settings: The service's settings.
        announce: Called with the port once all fronts accept connections and have a worker.
        held: Bound sockets that never listen, and so reserve the port for the fronts.
        local: The Unix socket, which all fronts share.

    Returns:
        The exit status: 0, or 1 if a front did not start or did not end.

    Raises:
        StartError: A worker never became ready and cannot work.
    """
    configure(settings)
    parent = _Parent(settings, announce, held[0].getsockname()[1], local)
    status = asyncio.run(parent.run())
    for reserved in held:
        reserved.close()
    if parent.failure is not None:
        raise StartError(parent.failure)
    return status


class _FrontProcess:
    """A front's process and the connection to it.

    Attributes:
        listening: Whether it accepts connections.
        ready: Whether it has, or had, a worker.
        counted: Its counters, as it last sent them.
    """

    def __init__(self, process: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.listening = self.ready = False
        self.counted: list[Family] = []
        self.rounds: dict[int, asyncio.Future[None]] = {}
        self._writer = writer

    def send(self, message: object) -> None:
        self._writer.write(orjson.dumps(message) + b"\n")

    def receive_counters(self, message: dict[str, Any]) -> None:
        """Take the answer to a round of questions."""
        self.counted = message["counted"]
        answered = self.rounds.pop(message["round"], None)
        if answered is not None and not answered.done():
            answered.set_result(None)

    def close(self) -> None:
        self._writer.close()
        for answered in self.rounds.values():
            answered.cancel()


class _Parent:
    def __init__(
        self, settings: Settings, announce: Callable[[int], None], port: int, local: UnixSocket | None
    ) -> None:
        self.port = port
        self.local = local
        # The registered regions of shared memory, which every front reads and writes.
        self.regions = os.memfd_create("lossd-regions", os.MFD_CLOEXEC) if settings.shared_memory else None
        self.failure: str | None = None
        self.settings = settings
        self.announce = announce
        self.fronts: set[_FrontProcess] = set()
        self.announced = False
        self.failed = False
        self.restarts = {"front": 0, "worker": 0}
        self.workers: dict[int, WorkerProcess] = {}
        self.recorder = Keeper(settings) if kept(settings) else None
        self.retired: list[Family] = []
        self._rounds = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Run until a signal asks to stop, and return the exit status."""
        self.stopping, self.drained = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # deliver a signal that came before
        devices = self.settings.device.split(",") if self.settings.engine == "process" else []
        name = f"lossd-{os.getpid()}-{secrets.token_hex(8)}"
        self.addresses = tuple(f"{name}-{index}" for index in range(len(devices)))
        if self.recorder is not None:
            self.recorder.start()
        workers = [asyncio.create_task(self._keep_worker(*at)) for at in zip(devices, self.addresses, strict=True)]
        fronts = [asyncio.create_task(self._keep_front()) for _ in range(self.settings.fronts)]
        await self.stopping.wait()
        # A front needs at most twice the drain time: for its connections, and for work that nobody waits for.
        period_ms = self.settings.lame_duck_ms + 2 * self.settings.drain_timeout_ms
        _, slow = await asyncio.wait(fronts, timeout=period_ms / 1000 + LEAVE_S)
        if slow:
            log.error("%d fronts did not end in time; they are killed", len(slow))
            self.failed = True
            self._pass_on(signal.SIGKILL)
        self.drained.set()
        await asyncio.gather(*fronts, *workers)
        if self.recorder is not None:
            await self.recorder.stop()
        return int(self.failed)

    def _stop(self, number: signal.Signals) -> None:
        """Have the fronts end as one that is alone ends after this signal. They may get a second one."""
        self.stopping.set()
        if self.local is not None:
            asyncio.get_running_loop().call_later(self.settings.lame_duck_ms / 1000, self.local.remove)
        for front in self.fronts:
            front.process.send_signal(number if front.listening else signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for front in self.fronts:
            front.process.send_signal(number)

    def _fail(self, reason: str) -> None:
        """End, because no worker can evaluate anything."""
        self.failure = self.failure or reason
        self._stop(signal.SIGINT)

    # Fronts

    async def _keep_front(self) -> None:
        patience = Backoff()
        while not self.stopping.is_set():
            try:
                listened, status = await self._run_front()
            except OSError as error:  # no memory, process or file is left now
                delay_s = patience.delay_s()
                log.error("a front cannot be started: %s; the next try is in %.1f s", error, delay_s)
                await _wait(self.stopping, delay_s)
                continue
            if self.stopping.is_set():
                self.failed |= listened and status != 0
                return
            if not self.announced and not listened:
                log.error("a front ended with status %s before it accepted connections", status)
                self.failed = True
                self._stop(signal.SIGINT)
                return
            if listened:
                patience.succeeded()
            delay_s = patience.delay_s()
            self.restarts["front"] += 1
            log.warning("a front ended with status %s; another starts in %.1f s", status, delay_s)
            await _wait(self.stopping, delay_s)

    async def _run_front(self) -> tuple[bool, int]:
        """Run one front until it ends. Return whether it accepted connections, and its exit status."""
        parent_end, front_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        recorder = None if self.recorder is None else self.recorder.address
        uds = None if self.local is None else self.local.bound.fileno()
        config = FrontConfig(self.port, front_end.fileno(), self.addresses, recorder, uds, self.regions)
        # The same command in a new session: a terminal's Ctrl-C reaches the parent only.
        try:
            with _sighup_blocked():  # the front inherits the mask, and unblocks the signal when it is ready
                process = subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]],
                    pass_fds=[
                        front_end.fileno(),
                        *(fd for fd in (uds, self.regions) if fd is not None),
                    ],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **config.environment()},
                    start_new_session=True,
                )
        except OSError:
            parent_end.close()
            raise
        finally:
            front_end.close()
        reader, writer = await asyncio.open_unix_connection(sock=parent_end, limit=LINE_BYTES)
        front = _FrontProcess(process, writer)
        self.fronts.add(front)
        if self.stopping.is_set():  # the signal came while the front was started
            process.terminate()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self._receive(front, orjson.loads(line))
        try:
            status = await asyncio.to_thread(process.wait, LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = await asyncio.to_thread(process.wait)
        self.fronts.discard(front)
        front.close()
        self.retired = merge([self.retired, cumulative(front.counted)])
        return front.listening, status

    def _receive(self, front: _FrontProcess, message: dict[str, Any]) -> None:
        if "listening" in message:
            front.listening = True
        elif "ready" in message:
            front.ready = True
            if not self.announced and sum(other.ready for other in self.fronts) == self.settings.fronts:
                self.announced = True
                self.announce(self.port)
        elif "ask" in message:
            task = asyncio.create_task(self._send_totals(front))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            front.receive_counters(message)

    async def _send_totals(self, recipient: _FrontProcess) -> None:
        """Ask every front for its counters and send the sum. The parent keeps the counters of a front that dies."""
        number, answers = next(self._rounds), []
        for front in self.fronts:
            front.rounds[number] = asyncio.get_running_loop().create_future()
            answers.append(front.rounds[number])
            front.send({"round": number})
        await asyncio.wait(answers, timeout=ROUND_S)
        for front in self.fronts:
            front.rounds.pop(number, None)
        restarts = [
            family(
                CounterMetricFamily(f"lossd_{kind}_restarts", f"Processes started in place of a dead {kind}.", count)
            )
            for kind, count in {**self.restarts, "recorder": self.recorder.restarts if self.recorder else 0}.items()
        ]
        busy = family(worker_busy({index: worker.busy.seconds for index, worker in self.workers.items()}))
        recipient.send({"totals": merge([*(front.counted for front in self.fronts), self.retired, [*restarts, busy]])})

    # Workers

    async def _keep_worker(self, device: str, address: str) -> None:
        status, patience, first_tries = _WorkerStatus(), Backoff(), 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # The listener outlives each worker: a front that connects between two workers waits for the next.
            listener.bind(f"\0{address}")
            listener.listen(BACKLOG)
            worker = self.workers[self.addresses.index(address)] = WorkerProcess(device, self.settings, listener)
            while not self.drained.is_set():
                end = await self._run_worker(worker, status, patience)
                if self.drained.is_set():
                    break
                if not status.ready:
                    _close_queued(listener)
                if not status.greeted:
                    first_tries += 1
                    reason = status.refusal or (hopeless(device, end) if first_tries == FIRST_TRIES else None)
                    if reason is not None:
                        self._fail(reason)
                        return
                delay_s = patience.delay_s()
                self.restarts["worker"] += 1
                log.warning("worker on %s %s; another starts in %.1f s", device, end, delay_s)
                await _wait(self.drained, delay_s)
        await asyncio.to_thread(worker.end)

    async def _run_worker(self, worker: WorkerProcess, status: _WorkerStatus, patience: Backoff) -> str:
        """Run one worker until it ends or all fronts have ended, and return how it ended."""
        try:
            connection = worker.start()
        except OSError as error:
            status.ready = False
            return f"cannot be started: {error}"
        with connection:
            ended = asyncio.create_task(status.read_until_closed(connection, patience))
            drained = asyncio.create_task(self.drained.wait())
            await asyncio.wait([ended, drained], return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            if self.drained.is_set():
                ended.cancel()
                return "is no longer needed"
        return ended_with(await asyncio.to_thread(worker.reap, patience_s=0.0 if status.ready else END_S))


class _WorkerStatus:
    """The state of a device's worker processes, one after the other.

    Attributes:
        ready: Whether the last worker became ready.
        greeted: Whether any worker became ready.
        refusal: Why the last worker cannot work; None if it can.
    """

    def __init__(self) -> None:
        self.ready = self.greeted = False
        self.refusal: str | None = None

    async def read_until_closed(self, connection: socket.socket, patience: Backoff) -> None:
        """Read a worker's first message, and return when the worker ends."""
        loop, buffer, self.ready = asyncio.get_running_loop(), bytearray(), False
        with contextlib.suppress(ConnectionError):
            while chunk := await loop.sock_recv(connection, 1 << 12):
                buffer += chunk
                for reply in take_replies(buffer):
                    [(refused, text)] = reply.answers
                    if refused:
                        self.refusal = orjson.loads(text)["detail"]
                        if self.greeted:  # a device that has worked may recover
                            log.error("%s", self.refusal)
                    else:
                        self.ready = self.greeted = True
                        patience.succeeded()


@contextlib.contextmanager
def _sighup_blocked() -> Iterator[None]:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _close_queued(listener: socket.socket) -> None:
    """Close the connections of fronts that wait for a worker. They count the failed start, and connect again."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
