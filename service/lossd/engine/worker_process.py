"""Starts and ends a worker's process, and decides when it may be started again."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from lossd.engine.busy_time import BusyTime

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["END_S", "FIRST_TRIES", "MAX_STARTS", "SOCKET_BYTES", "Backoff", "WorkerProcess", "ended_with", "hopeless"]

SOCKET_BYTES = 1 << 20
COMMAND = (sys.executable, "-P", "-m", "lossd.engine.worker")
END_S = 2.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0

FIRST_TRIES = 3
"""How often a worker that was never ready is started before the service ends."""

MAX_STARTS = 5
"""How many starts in a row may fail before requests are refused, if a worker was ready before."""


def ended_with(status: int) -> str:
    """Return how a process ended, as the end of a sentence."""
    return f"ended with status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"


def hopeless(device: str, end: str) -> str:
    """Return why the service ends after :data:`FIRST_TRIES`, as a sentence."""
    how = f"the last time {end.removeprefix('ended ')}"
    return f"the worker on {device} ended {FIRST_TRIES} times before it was ready, {how}; see the log"


class Backoff:
    """The delay before another try: none after the first failure, then doubling from 0.2 to 5 seconds."""

    def __init__(self) -> None:
        self._failures = 0

    def succeeded(self) -> None:
        """Forget the failures: a try succeeded."""
        self._failures = 0

    def delay_s(self) -> float:
        """Count a failure, and return the seconds until the next try."""
        failures, self._failures = self._failures, self._failures + 1
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**failures) if failures else 0.0


class WorkerProcess:
    """The process of a worker; a new one may be started after the last has ended.

    Args:
        device: The worker's device.
        settings: The service's settings.
        listener: The socket to which further fronts connect; None for a single front.

    Attributes:
        busy: How long the processes have been busy.
    """

    def __init__(self, device: str, settings: Settings, listener: socket.socket | None = None) -> None:
        self.device = device
        self.settings = settings
        self.listener = listener
        self._process: subprocess.Popen[bytes] | None = None
        self._busy_fd = os.memfd_create("lossd-busy", os.MFD_CLOEXEC)
        self._close_busy = weakref.finalize(self, os.close, self._busy_fd)
        os.ftruncate(self._busy_fd, mmap.PAGESIZE)
        self.busy = BusyTime(self._busy_fd)

    @property
    def pid(self) -> int | None:
        """The process id; None if there is no process."""
        return self._process.pid if self._process else None

    def start(self) -> socket.socket:
        """Start the process, and return the connection to it, which closes when the process ends.

        Raises:
            OSError: No memory is left for a process, or a limit of processes or files is reached.
        """
        parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (parent_end, child_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        command = [*COMMAND, "--device", self.device]
        command += ["--threads", str(self.settings.threads), "--socket", str(child_end.fileno())]
        command += ["--poll-us", str(self.settings.poll_us)]
        command += ["--log-level", self.settings.log_level, "--log-format", self.settings.log_format]
        command += ["--compiled"] if self.settings.compiled else []
        command += ["--busy", str(self._busy_fd)]
        passed = [child_end.fileno(), self._busy_fd]
        if self.listener is not None:
            command += ["--listen", str(self.listener.fileno())]
            passed.append(self.listener.fileno())
        # torch's threads share an operation. NumPy's own would wait for more work in a loop, at the cost of torch's.
        environment = {"OMP_NUM_THREADS": str(self.settings.threads), "OPENBLAS_NUM_THREADS": "1", **os.environ}
        if self.settings.perceptual_weights is not None:
            environment["LOSSD_PERCEPTUAL_WEIGHTS"] = str(self.settings.perceptual_weights.absolute())
        if self.settings.cache_dir is not None:
            environment["LOSSD_CACHE_DIR"] = str(self.settings.cache_dir.absolute())
        # In a session of its own: a terminal's Ctrl-C reaches only the front, which lets the worker finish.
        try:
            self._process = subprocess.Popen(
                command, pass_fds=passed, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        except OSError:
            parent_end.close()
            raise
        finally:
            child_end.close()
        parent_end.setblocking(False)
        return parent_end

    def reap(self, *, patience_s: float = 0.0) -> int:
        """Return the exit status of a process whose connection has closed.

        Args:
            patience_s: How long to wait before the process is killed; the status then says only that.
        """
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)
        self._process.kill()
        status = self._process.wait()
        self.busy.end()  # it may have died of its work
        return status

    def end(self) -> None:
        """Wait until the last process ends, as when its connections are closed; kill it after two seconds."""
        self._close_busy()
        if self._process is not None:
            try:
                self._process.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self.busy.end()
