"""A lane for short batches beside a long one: a second process that serves them while the worker is busy.

It is forked when a long batch is about to be evaluated. So it has all that its worker has loaded, within milliseconds,
and shares its memory but for what either changes. It ends when the fronts have closed their connections to it.
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
    """A worker's end of it.

    Args:
        serve: Serves fronts that connect to a listener; called in the process that is forked.
    """

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._child: int | None = None

    def open(self, fronts: FrontConnections) -> None:
        """Fork, unless the last one is still there, and tell the fronts where the lane listens.

        Where there can be no other process there is no lane.
        """
        self.tidy()
        if self._child is not None:
            return
        address = f"lossd-lane-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of other threads: none of theirs is needed there
                listener.bind(f"\0{address}")
                listener.listen(BACKLOG)
                child = os.fork()
                if not child:
                    self._be(fronts, listener)
        except OSError as error:
            log.warning("there is no lane for short batches beside a long one: %s", error)
            return
        self._child = child
        fronts.tell(Reply(LANE, 0, 0, [(False, orjson.dumps({"address": address}))]))

    def tidy(self) -> None:
        """Clear one away that has ended."""
        if self._child is not None:
            with suppress(ChildProcessError):
                if os.waitpid(self._child, os.WNOHANG) == (0, 0):
                    return
            self._child = None

    def _be(self, fronts: FrontConnections, listener: socket.socket) -> None:
        """What the forked process does, and nothing after it."""
        status = 1
        try:
            fronts.close()
            self._serve(listener)
            status = 0
        except BaseException:
            log.exception("the lane for short batches ended")
        finally:
            os._exit(status)
