"""Starts the recorder when a front first connects, starts it again if it dies, and ends it with the service.

The keeper is the single front's process, or the parent of several fronts. It binds the recorder's address and listens.
The first connection starts the recorder, which inherits the listening socket and accepts. The socket outlives each
recorder, so a front that connects between two recorders waits for the next. A service that never sees a run starts no
process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from lossd.engine.worker_process import Backoff, ended_with
from lossd.recorder.config import RecorderConfig

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["Keeper"]

log = logging.getLogger("lossd.recorder")

COMMAND = (sys.executable, "-P", "-m", "lossd.recorder")
BACKLOG = 128
END_S = 5.0
"""How long a recorder may take to commit what it has read and to close the database, before it is killed."""

STEADY_S = 2.0
"""How long a recorder must run, so that its end is no failed start."""


class Keeper:
    """Keeps the recorder's process, in this process's event loop.

    Args:
        settings: The service's settings.

    Attributes:
        address: The recorder's address, without the zero byte of abstract Unix sockets.
        restarts: The number of recorders started in place of dead ones.
    """

    def __init__(self, settings: Settings) -> None:
        self.address = f"lossd-runs-{os.getpid()}-{secrets.token_hex(8)}"
        self.restarts = 0
        self._settings = settings
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The recorder's process id; None if there is no process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Listen. The first connection starts the recorder.

        Raises:
            OSError: No file is left.
        """
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"\0{self.address}")
        self._listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._connected)

    async def stop(self) -> None:
        """Let the recorder commit and answer what it has read, and return when it has ended."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._process is not None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, END_S)
            except subprocess.TimeoutExpired:
                log.error("the recorder (pid %s) did not end in %.0f s; it is killed", self._process.pid, END_S)
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
            self._process = None
        self._listener.close()
        self._listener = None

    def _connected(self) -> None:
        """Start the recorder: a front has connected."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._task = loop.create_task(self._keep(self._listener))

    async def _keep(self, listener: socket.socket) -> None:
        """Run one recorder after the other, until this task is cancelled."""
        patience = Backoff()
        while True:
            begin = time.monotonic()
            end = await self._run(listener)
            if time.monotonic() - begin >= STEADY_S:
                patience.succeeded()
            delay_s = patience.delay_s()
            self.restarts += 1
            log.warning("the recorder %s; another starts in %.1f s", end, delay_s)
            await asyncio.sleep(delay_s)

    async def _run(self, listener: socket.socket) -> str:
        """Run one recorder until it ends, and return how it ended."""
        try:
            self._process, pipe = self._start(listener)
        except OSError as error:  # no memory, process or file is left now
            return f"cannot be started: {error}"
        log.info("the recorder of runs was started (pid %s)", self._process.pid)
        try:
            await _closed(pipe)
        finally:
            os.close(pipe)
        status = await asyncio.to_thread(self._process.wait)
        self._process = None
        return ended_with(status)

    def _start(self, listener: socket.socket) -> tuple[subprocess.Popen[bytes], int]:
        """Start a recorder. Return its process, and the end of a pipe whose other end is closed when it ends."""
        config = RecorderConfig.of(self._settings, listener.fileno())
        parent_end, child_end = os.pipe()
        # In a session of its own: a terminal's Ctrl-C reaches only the front, which lets the recorder finish. It is
        # started in this thread, with which it ends.
        try:
            process = subprocess.Popen(
                COMMAND,
                pass_fds=[listener.fileno(), child_end],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **config.environment()},
                start_new_session=True,
            )
        except OSError:
            os.close(parent_end)
            raise
        finally:
            os.close(child_end)
        return process, parent_end


async def _closed(pipe: int) -> None:
    """Return when the other end of a pipe is closed."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pipe, closed.set_result, None)
    try:
        await closed
    finally:
        loop.remove_reader(pipe)
