"""Who is measured: a command that starts it, and how a workload is put to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import load
from workloads import WORKLOADS, Arrays, safetensors_body

START_S = 90.0
STOP_S = 15.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """A service to measure. A peer of lossd is one more of these in :data:`TARGETS`.

    Attributes:
        name: How the table calls it.
        command: What starts it on a port.
        path: Where requests are posted.
        body: A request's JSON object and tensors to the body that asks the same of it.
        headers: Sent with every request.
        environment: Added to the environment it starts in.
    """

    name: str
    command: Callable[[int], list[str]]
    path: str
    body: Callable[[Mapping[str, Any], Arrays], bytes]
    headers: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="lossd",
            command=lambda port: [sys.executable, "-m", "lossd.cli", "serve", "--port", str(port), "--threads", "1"],
            path="/v1/evaluate",
            body=safetensors_body,
            headers={"Content-Type": "application/vnd.safetensors"},
            environment={"LOSSD_LOG_LEVEL": "warning"},
        ),
    )
}


class Running:
    """A started target: a process and its descendants, halted while another one is measured."""

    def __init__(self, target: Target, log: Path) -> None:
        self.target = target
        self.port = _free_port()
        self.log: IO[bytes] = log.open("wb")
        self.process = subprocess.Popen(
            target.command(self.port),
            env={**os.environ, "OMP_NUM_THREADS": "1", **target.environment},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.target.path}"

    def wait_until_it_answers(self) -> None:
        """Raises RuntimeError where it ends first, or takes too long."""
        body = self.target.body(*WORKLOADS["S"]().requests[0])
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError):
                if not load.sockets(self.url, [body], self.target.headers, connections=1, seconds=0).failures:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{self.target.name} did not start; its output is in {self.log.name}")

    def halt(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, by force if it must be."""
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()
        self.log.close()

    def cpu_s(self) -> float:
        """Processor time used so far by all its processes, in seconds."""
        used = (_stat(process) for process in self._processes())
        return sum(sum(map(int, fields[11:15])) for fields in used if fields) / TICKS_PER_S

    def memory_mb(self) -> float:
        """Memory of all its processes, shared pages counted once, in MB."""
        kib = 0
        for process in self._processes():
            with suppress(OSError):
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib * 1024 / 1e6

    def _processes(self) -> list[int]:
        """The started process and its descendants."""
        ids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        parents = {process: int(fields[1]) for process in ids if (fields := _stat(process))}
        family = [self.process.pid]
        for process in family:  # grows while it is walked
            family += [child for child, parent in parents.items() if parent == process]
        return family

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, number)


def _stat(process: int) -> list[str]:
    """The fields of /proc/<process>/stat after the name; none where the process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
