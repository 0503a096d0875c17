"""A service in a process of its own, started as its operator would, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from lossd.configuration.keys import key_line
from lossd.engine import worker_process

START_S = 120.0
CPUCLOCK_SCHED = 2  # a process's CPU clock, <linux/posix-timers.h>


def processes(pid: int) -> list[int]:
    """Return a process, its children, and theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return [pid]
    return [pid, *(descendant for child in children for descendant in processes(int(child)))]


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have taken, in seconds. One that has ended counts nothing."""
    taken_s = 0.0
    for pid in pids:
        with suppress(OSError):
            taken_s += time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    return taken_s


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants; pages that they share count once."""
    return _sizes_bytes(pid, "Pss")


def written_bytes(pid: int) -> int:
    """Return the memory that a process and its descendants have written; shared memory counts once.

    Other pages count in each process that has them. Processes forked from the same one, which come and go, do not
    change that.
    """
    return _sizes_bytes(pid, "Anonymous|Pss_Shmem")


def _sizes_bytes(pid: int, fields: str) -> int:
    sizes_kib: list[str] = []
    for each in processes(pid):
        with suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            sizes_kib += re.findall(rf"^(?:{fields}):\s+(\d+) kB$", text, re.MULTILINE)
    return sum(map(int, sizes_kib)) << 10


@dataclass
class Service:
    """A running ``lossd serve``.

    Attributes:
        process: Its front.
        url: Where it answers.
        key: An API key to ask for its metrics with; None where it asks for none.
    """

    process: subprocess.Popen[str]
    url: str
    key: str | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"X-API-Key": self.key}

    def workers(self) -> list[int]:
        """The worker processes that are alive."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"lossd.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_S
        while not self.ready():
            assert self.process.poll() is None, "the service has ended"
            assert time.monotonic() < end, "the service does not become ready"
            time.sleep(0.1)

    def metrics(self) -> dict[str, float]:
        """Every sample of the metrics page."""
        page = httpx.get(f"{self.url}/metrics", headers=self.headers, timeout=30).text
        samples = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def held(self) -> tuple[float, float, float]:
        """Requests in progress, the bytes they hold, and the slabs in use."""
        metrics = self.metrics()
        return metrics["lossd_queue_requests"], metrics["lossd_queue_bytes"], metrics["lossd_slabs_in_use"]

    def files(self) -> int:
        """Open files of the front: sockets and all else but slabs, of which some are kept ready."""
        links = (os.readlink(file) for file in Path(f"/proc/{self.process.pid}/fd").iterdir() if file.is_symlink())
        return sum("lossd-slab" not in link for link in links)

    def resident_bytes(self) -> int:
        """Memory of the front, again without slabs."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kib,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kib) << 10

    def wait_until_idle(self, timeout_s: float = 30.0) -> None:
        """Wait until nothing is in progress; fail where something stays."""
        end = time.monotonic() + timeout_s
        while (held := self.held()) != (0, 0, 0):
            assert time.monotonic() < end, f"still held: requests, bytes, slabs = {held}"
            time.sleep(0.05)
        time.sleep(0.2)  # until the connection that asked is gone too

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def served(
    log: IO[str] | None = None, keys: Mapping[str, str] | None = None, port: int = 0, **settings: object
) -> Iterator[Service]:
    """Serve until the block ends.

    Args:
        log: Where its log goes; nowhere by default.
        keys: API keys by name, the first of which reads the metrics.
        port: A free one by default.
        settings: Of the service.
    """
    # The compiled passes give the same answers; to make them would only make each start longer.
    chosen = {"threads": 1, "compiled": False, "access_log": "none"} | settings
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOSSD_")}
    environment |= {f"LOSSD_{name.upper()}": str(value) for name, value in chosen.items()}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        if keys is not None:
            file = Path(folder, "keys")
            file.write_text("".join(f"{key_line(name, key)}\n" for name, key in keys.items()))
            environment["LOSSD_API_KEYS_FILE"] = str(file)
        process = worker_process.subprocess.Popen(  # in tests, it is forked: see warm.py
            command, stdout=subprocess.PIPE, stderr=log or subprocess.DEVNULL, text=True, env=environment
        )
        yield from _until_ready(process, next(iter(keys.values())) if keys else None)


def _until_ready(process: subprocess.Popen[str], key: str | None) -> Iterator[Service]:
    try:
        assert process.stdout is not None
        announced = process.stdout.readline()
        address = re.search(r"http://[0-9.]+:[0-9]+", announced)
        assert address is not None, f"the service did not start: {announced}"
        service = Service(process, address[0], key)
        service.wait_until_ready()
        yield service
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
