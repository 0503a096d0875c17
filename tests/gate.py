"""Workers that start when a test lets them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lossd.engine import worker_process

# What a worker does before anything else; where the file says so, it ends at once.
WAIT = """
import os, sys, time
while not os.path.exists(path := os.environ["WORKERS_GATE"]):
    time.sleep(0.01)
if status := int(open(path).read() or 0):
    os._exit(status)
from lossd.engine import worker
worker.main()
"""


class Gate:
    """Keeps every worker from starting until it is opened.

    Args:
        place: An empty folder.
        monkeypatch: Puts the gate before the workers of this process.
    """

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = place / "gate"
        monkeypatch.setenv("WORKERS_GATE", str(self._file))
        monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-P", "-c", WAIT))

    def open(self, status: int = 0) -> None:
        """Let workers start, or end with a status."""
        new = self._file.with_suffix(".new")
        new.write_text(str(status))
        new.replace(self._file)

    def shut(self) -> None:
        """Let no further worker start."""
        self._file.unlink()
