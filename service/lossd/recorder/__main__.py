"""``python -m lossd.recorder``: the recorder, as a keeper starts it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING

from lossd import logs
from lossd.recorder.config import RecorderConfig
from lossd.recorder.files import StoreError
from lossd.recorder.protocol import request_bytes
from lossd.recorder.recorder import Server

if TYPE_CHECKING:
    from lossd.recorder.store import Store

__all__ = ["main"]

log = logging.getLogger("lossd.recorder")

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Serve until SIGTERM, or until the keeper ends."""
    config = RecorderConfig.from_environment()
    logs.start(config.log_level, config.log_format)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports each of its plugins
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keeper decides when the recorder ends
    _end_with_the_parent(config.parent)
    listener = socket.socket(fileno=config.listener)
    server = Server(listener, lambda: _store(config), request_bytes(config.limits["run_bytes"]))
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    server.run()


def _store(config: RecorderConfig) -> Store:
    """Return the store. Its libraries are imported here, so that a missing one is said in the answers.

    Raises:
        StoreError: There is no place for it, or a library is missing.
    """
    if not config.url:
        raise StoreError("this user has no home directory; set LOSSD_RUNS to a file or to postgresql://...")
    try:
        from lossd.recorder.store import Limits, Store
    except ModuleNotFoundError as error:
        raise StoreError(f"{error.name} is not installed: pip install 'lossd[service]'") from error
    return Store(config.url, Limits(**config.limits))


def _end_with_the_parent(parent: int) -> None:
    """Have the kernel kill this process when the keeper dies: nobody would restart it or end it.

    A death between two transactions or in one loses nothing that was answered. Linux sends the signal when the thread
    that started this process ends; that is the event loop's thread.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        raise SystemExit(0)


if __name__ == "__main__":
    main()
