"""The parent of several fronts: it keeps them and their workers, and takes no request itself."""

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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client.core import CounterMetricFamily

from lossd.engine.supervision import Patience, WorkerProcess
from lossd.fronts import Place
from lossd.fronts.counts import Family, cumulative, family, merged
from lossd.fronts.member import LINE_BYTES
from lossd.fronts.port import bind, check_free
from lossd.logs import configure

if TYPE_CHECKING:
    from lossd.settings import Settings

__all__ = ["keep"]

log = logging.getLogger("lossd.fronts")

BACKLOG = 128
ROUND_S = 1.0
LEAVE_S = 5.0


def keep(settings: Settings, announce: Callable[[int], None]) -> int:
    """Keep fronts and workers until SIGTERM or SIGINT, then let them finish what was accepted.

    Args:
        settings: How they run.
        announce: Called with the port once all fronts accept connections.

    Returns:
        The exit status: 0, or 1 where a front did not start or did not end.
    """
    configure(settings)
    return asyncio.run(_Parent(settings, announce).run())


class _Front:
    """One front, as its parent sees it.

    Attributes:
        listening: Whether it accepts connections.
        counted: What it last said it has counted.
    """

    def __init__(self, process: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.listening = False
        self.counted: list[Family] = []
        self.rounds: dict[int, asyncio.Future[None]] = {}
        self._writer = writer

    def say(self, message: object) -> None:
        self._writer.write(orjson.dumps(message) + b"\n")

    def hear(self, message: dict[str, Any]) -> None:
        """It answers a round."""
        self.counted = message["counted"]
        answered = self.rounds.pop(message["round"], None)
        if answered is not None and not answered.done():
            answered.set_result(None)

    def gone(self) -> None:
        self._writer.close()
        for answered in self.rounds.values():
            answered.cancel()


class _Parent:
    def __init__(self, settings: Settings, announce: Callable[[int], None]) -> None:
        self.settings = settings
        self.announce = announce
        self.fronts: set[_Front] = set()
        self.announced = False
        self.failed = False
        self.restarts = {"front": 0, "worker": 0}
        self.retired: list[Family] = []
        self._rounds = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal says to stop."""
        self.stopping, self.drained = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        try:
            check_free(self.settings.host, self.settings.port)
            held = bind(self.settings.host, self.settings.port)  # never listens: it keeps the port for the fronts
        except OSError as error:
            log.error("cannot listen on %s port %d: %s", self.settings.host, self.settings.port, error)
            return 1
        self.port: int = held[0].getsockname()[1]
        devices = self.settings.device.split(",") if self.settings.engine == "process" else []
        name = f"lossd-{os.getpid()}-{secrets.token_hex(8)}"
        self.addresses = tuple(f"{name}-{index}" for index in range(len(devices)))
        workers = [asyncio.create_task(self._keep_worker(*at)) for at in zip(devices, self.addresses, strict=True)]
        fronts = [asyncio.create_task(self._keep_front()) for _ in range(self.settings.fronts)]
        await self.stopping.wait()
        self._pass_on(signal.SIGTERM)
        # A front takes the drain's time twice at most: for its connections, and for work that nobody waits for.
        _, slow = await asyncio.wait(fronts, timeout=2 * self.settings.drain_timeout_ms / 1000 + LEAVE_S)
        if slow:
            log.error("%d fronts did not end in time and are killed", len(slow))
            self.failed = True
            self._pass_on(signal.SIGKILL)
        self.drained.set()
        await asyncio.gather(*fronts, *workers)
        for one in held:
            one.close()
        return int(self.failed)

    def _pass_on(self, number: signal.Signals) -> None:
        for front in self.fronts:
            if front.listening or number != signal.SIGHUP:  # before that, it would end a front
                front.process.send_signal(number)

    # Fronts

    async def _keep_front(self) -> None:
        patience = Patience()
        while not self.stopping.is_set():
            listened, status = await self._run_front()
            if self.stopping.is_set():
                self.failed |= listened and status != 0
                return
            if not self.announced and not listened:
                log.error("a front ended with status %s before it accepted connections", status)
                self.failed = True
                self.stopping.set()
                return
            if listened:
                patience.succeeded()
            delay_s = patience.delay_s()
            self.restarts["front"] += 1
            log.warning("a front ended with status %s, starting another in %.1f s", status, delay_s)
            await _wait(self.stopping, delay_s)

    async def _run_front(self) -> tuple[bool, int]:
        """One front from its start to its end: whether it accepted connections, and its status."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        place = Place(self.port, theirs.fileno(), self.addresses)
        # The same command once more, in a session of its own: a terminal's Ctrl-C reaches the parent alone.
        process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **place.environment()},
            start_new_session=True,
        )
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        front = _Front(process, writer)
        self.fronts.add(front)
        if self.stopping.is_set():  # meanwhile
            process.terminate()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self._hear(front, orjson.loads(line))
        try:
            status = await asyncio.to_thread(process.wait, LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = await asyncio.to_thread(process.wait)
        self.fronts.discard(front)
        front.gone()
        self.retired = merged([self.retired, cumulative(front.counted)])
        return front.listening, status

    def _hear(self, front: _Front, message: dict[str, Any]) -> None:
        if "listening" in message:
            front.listening = True
            if not self.announced and sum(one.listening for one in self.fronts) == self.settings.fronts:
                self.announced = True
                self.announce(self.port)
        elif "ask" in message:
            task = asyncio.create_task(self._tell(front))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            front.hear(message)

    async def _tell(self, asking: _Front) -> None:
        """Ask every front what it has counted, and tell the sum. What was told stays known when a front dies."""
        number, answers = next(self._rounds), []
        for front in self.fronts:
            front.rounds[number] = asyncio.get_running_loop().create_future()
            answers.append(front.rounds[number])
            front.say({"round": number})
        await asyncio.wait(answers, timeout=ROUND_S)
        for front in self.fronts:
            front.rounds.pop(number, None)
        own = [
            family(
                CounterMetricFamily(f"lossd_{kind}_restarts", f"Processes started in place of a dead {kind}.", count)
            )
            for kind, count in self.restarts.items()
        ]
        asking.say({"totals": merged([*(front.counted for front in self.fronts), self.retired, own])})

    # Workers

    async def _keep_worker(self, device: str, address: str) -> None:
        loop, patience = asyncio.get_running_loop(), Patience()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # It outlives each worker: a front that comes while there is none waits for the next.
            listener.bind(f"\0{address}")
            listener.listen(BACKLOG)
            worker = WorkerProcess(device, self.settings, listener)
            while not self.drained.is_set():
                with worker.start() as connection:
                    ended = asyncio.create_task(_until_closed(loop, connection, patience))
                    drained = asyncio.create_task(self.drained.wait())
                    await asyncio.wait([ended, drained], return_when=asyncio.FIRST_COMPLETED)
                    if drained.done():
                        ended.cancel()
                        break
                    drained.cancel()
                status = await asyncio.to_thread(worker.reap)
                delay_s = patience.delay_s()
                self.restarts["worker"] += 1
                log.warning("worker on %s ended with status %s, starting another in %.1f s", device, status, delay_s)
                await _wait(self.drained, delay_s)
        await asyncio.to_thread(worker.end)


async def _until_closed(loop: asyncio.AbstractEventLoop, connection: socket.socket, patience: Patience) -> None:
    """Read a worker's hello, and then nothing until it ends."""
    with contextlib.suppress(ConnectionError):
        while await loop.sock_recv(connection, 1 << 12):
            patience.succeeded()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
