"""``lossd serve --fronts`` as a process for tests, and the state of its processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from waiting import eventually


class Group:
    """Fronts that answer at ``url``."""

    def __init__(self, parent: subprocess.Popen[str], url: str, fronts: int, log: Path) -> None:
        self.parent = parent
        self.url = url
        self.count = fronts
        self.port = int(url.rpartition(":")[2])
        self._log = log

    @property
    def log(self) -> str:
        """What all of them wrote to standard error."""
        return self._log.read_text()

    @property
    def children(self) -> dict[int, str]:
        """The command line of each process that the parent keeps; the one it forks them from is none, see ``warm``."""
        pids = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()
        found = {}
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return {pid: line for pid, line in found.items() if "/warm.py" not in line}

    @property
    def workers(self) -> list[int]:
        """The workers' ids."""
        return [pid for pid, command in self.children.items() if "worker" in command]

    @property
    def recorders(self) -> list[int]:
        """The recorder's id; empty before a run is asked for."""
        return [pid for pid, command in self.children.items() if "lossd.recorder" in command]

    @property
    def fronts(self) -> list[int]:
        """The fronts' ids."""
        others = {*self.workers, *self.recorders}
        return [pid for pid in self.children if pid not in others]

    def metric(self, name: str) -> float:
        """A sample of the metrics page."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def client_of_each(self) -> dict[int, httpx.Client]:
        """By process id, a client whose connection is to that front."""
        clients: dict[int, httpx.Client] = {}
        end = time.monotonic() + 60  # a front that was just started takes a while
        while time.monotonic() < end:
            client = httpx.Client(base_url=self.url, timeout=60)
            client.get("/health/live")
            stream = client._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
            pid = self._serving(stream.get_extra_info("socket").getsockname()[1])
            if pid is None or pid in clients:
                client.close()
            else:
                clients[pid] = client
            if len(clients) == self.count:
                return clients
        raise AssertionError(f"only {len(clients)} of {self.count} fronts were reached")

    def _serving(self, client_port: int) -> int | None:
        """Which front has the connection that comes from that port."""
        there = f"{socket.htonl(0x7F000001):08X}:{client_port:04X}"
        rows = (row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:])
        inode = next(row[9] for row in rows if row[2] == there and row[1].endswith(f":{self.port:04X}"))
        for pid in self.fronts:
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if os.readlink(fd) == f"socket:[{inode}]":
                        return pid
        return None


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def group(place: Path, fronts: int = 2, *options: str) -> Iterator[Group]:
    """Serve with several fronts until the block ends, and see that nobody is left then."""
    log = place / "log"
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port=0", f"--fronts={fronts}", "--threads=1"]
    with log.open("w") as errors:
        parent = subprocess.Popen(
            [*command, "--compiled=false", *options],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert parent.stdout is not None
    kept: list[int] = []
    try:
        line = parent.stdout.readline()
        assert line, log.read_text()
        one = Group(parent, line.split(" listens on ")[1].partition(",")[0], fronts, log)
        eventually(lambda: one.metric("lossd_ready") == 1)
        yield one
        kept = list(one.children) if parent.poll() is None else []
    finally:
        parent.send_signal(signal.SIGTERM)
        parent.wait(timeout=60)
        parent.stdout.close()
    assert not [pid for pid in kept if is_alive(pid)]
