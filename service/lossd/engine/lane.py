"""A lane: a second process that evaluates short batches while the worker is busy with a long one.

The worker forks it before it evaluates a long batch. So the lane has loaded everything within milliseconds, and shares
all memory that neither process changes. It ends when the fronts have closed their connections to it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress

import orjson

from lossd.engine.protocol import LANE, Reply
from lossd.engine.worker_connections import FrontConnections

__all__ = ["Lane"]

log = logging.getLogger("lossd.engine")

BACKLOG = 128


class Lane:
    """Opens a worker's lane.

    Args:
        serve: Called in the forked process; serves the fronts that connect to a listener.
    """

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._child: int | None = None

    def open(self, fronts: FrontConnections) -> None:
        """Fork a lane, unless one is running, and send its address to the fronts.

        If no process can be started, there is no lane.
        """
        self.tidy()
        if self._child is not None:
            return
        address = f"lossd-lane-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # about other threads, which the lane does not need
                listener.bind(f"\0{address}")
                listener.listen(BACKLOG)
                child = os.fork()
                if not child:
                    self._run(fronts, listener)
        except OSError as error:
            log.warning("there is no lane for short batches beside a long one: %s", error)
            return
        self._child = child
        fronts.tell(Reply(LANE, 0, 0, [(False, orjson.dumps({"address": address}))]))

    def tidy(self) -> None:
        """Collect the exit status of a lane that has ended."""
        if self._child is not None:
            with suppress(ChildProcessError):
                if os.waitpid(self._child, os.WNOHANG) == (0, 0):
                    return
            self._child = None

    def _run(self, fronts: FrontConnections, listener: socket.socket) -> None:
        """Serve in the forked process, then end it."""
        status = 1
        try:
            fronts.close()
            self._serve(listener)
            status = 0
        except BaseException:
            log.exception("the lane for short batches ended")
        finally:
            os._exit(status)
