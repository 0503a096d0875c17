"""A command on a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lossd.engine import worker_process

__all__ = ["Terminal"]


class Terminal:
    """A command whose standard error is a terminal; forked from a process that has torch, see ``warm``."""

    def __init__(self, *arguments: str | Path) -> None:
        ours, theirs = pty.openpty()
        self._screen = ours
        self._poll = select.poll()  # select.select() knows no file beyond the 1024th
        self._poll.register(ours, select.POLLIN)
        self.process = worker_process.subprocess.Popen(
            [sys.executable, "-m", "lossd.cli", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def watch(self) -> Iterator[str]:
        """What is on the screen, as it grows."""
        while True:
            if self._poll.poll(60_000):
                try:
                    part = os.read(self._screen, 65536)
                except OSError:  # the other end is closed
                    return
                self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part.decode(errors="replace"))
            yield self.shown

    def close(self) -> tuple[int, str]:
        """The exit status and standard output."""
        for _ in self.watch():
            pass
        os.close(self._screen)
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output
