"""Signals for a worker's process, whoever started it.

A process id is reused once its process has ended and was collected. A front did not start the worker if there are
several fronts, and never starts a lane: it would learn of an end too late, and its signal could reach another process.
So each worker sends the front a file descriptor of itself (a pidfd), which never names another process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["ProcessHandle", "own_descriptor"]


@contextmanager
def own_descriptor() -> Iterator[list[int]]:
    """Yield a list with the descriptor of this process. It is empty if the system has none, as gVisor."""
    descriptors = []
    with suppress(AttributeError, OSError):  # some builds of Python lack the function
        descriptors.append(os.pidfd_open(os.getpid()))
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class ProcessHandle:
    """A process that may be sent signals.

    Args:
        descriptor: The process's descriptor; None if the system has none.

    Attributes:
        pid: The process id, which is used if there is no descriptor; None if it is unknown.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.pid: int | None = None
        self._descriptor = descriptor

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended gets none."""
        with suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            elif self.pid is not None:
                os.kill(self.pid, number)

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
