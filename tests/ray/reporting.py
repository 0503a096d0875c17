"""How a script inside the namespaces tells a test outside what it saw: a line of JSON for each scenario."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load import Load

__all__ = ["Logs", "cpu_s", "ray_starts", "report", "request_ids", "say"]


def report(scenario: str, load: Load, seconds: float) -> None:
    """Print what clients saw in a scenario."""
    clients = {name: getattr(load, name) for name in ("answered", "wrong", "lost", "slowest_s")}
    say(scenario, seconds=seconds, **clients)


def say(scenario: str, **facts: Any) -> None:
    """Print one line."""
    print(json.dumps({"scenario": scenario, **facts}), flush=True)


@contextmanager
def ray_starts() -> Iterator[None]:
    """End the script for another attempt if Ray does not start in the block: a node has 30 s, busy machine or not."""
    try:
        yield
    except Exception as error:
        print(f"Ray has not started: {error}", flush=True)
        os._exit(os.EX_TEMPFAIL)


class Logs:
    """The logs that Ray's processes begin from now on: its log monitor would carry them for much CPU.

    Args:
        folder: The folder of the session's logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = set(folder.rglob("*.*"))

    def wait_for_one(self, *lines: str) -> list[str]:
        """Return which of these lines the logs have, once they have one, or after 60 s."""
        end = time.monotonic() + 60
        while True:
            files = set(self._folder.rglob("*.err")) - self._before
            text = "".join(file.read_text(errors="replace") for file in files)
            if (matches := [line for line in lines if line in text]) or time.monotonic() > end:
                return matches
            time.sleep(0.2)


def cpu_s() -> float:
    """CPU time of all processes of this namespace, and of those that have ended, in seconds."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            ticks += sum(map(int, fields[11:15]))  # its own, and its waited-for children's
    return ticks / os.sysconf("SC_CLK_TCK")


def request_ids(url: str) -> int:
    """How many request ids an answer has: Serve's layers add one of their own to lossd's."""
    with urllib.request.urlopen(f"{url}/health/ready") as answer:
        return len(answer.headers.get_all("x-request-id"))
