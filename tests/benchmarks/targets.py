"""Who is measured: what starts it, what it speaks, and the processes it is when it runs."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.dialects import Dialect, Json, Question, Safetensors, StockTriton, Triton
from benchmarks.environments import PEERS, outer
from benchmarks.workloads import focal
from lossd_client.errors import Problem

START_S = 180.0
STOP_S = 15.0
ANSWER_S = 120.0
NOT_YET = (404, 503)
"""What those answer who listen before they are ready."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

KEY = "the-benchmark-s-own-key"
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
}
"""glibc keeps what it frees. lossd sets itself up so; what a peer gains by it, it is to have."""


class UnusableAnswerError(RuntimeError):
    """What a target answered in place of a result."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True)
class Target:
    """A service to measure.

    Attributes:
        name: How the table calls it.
        what: What the page says it is.
        command: From the folder of a Python's programs and a port to what starts it.
        dialect: What it speaks.
        environment: The name of its virtual environment; empty for this one.
        variables: Added to the environment it starts in.
        halts: Whether it survives being halted by a signal; one that does not is left idle.
    """

    name: str
    what: str
    command: Callable[[Path, int], list[str]]
    dialect: Dialect
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    halts: bool = True


def _mosec(largest_batch: int) -> Callable[[Path, int], list[str]]:
    def command(programs: Path, port: int) -> list[str]:
        limits = ["--timeout", "120000", "--max-request-size", str(1 << 30), "--log-level", "error"]
        server = [str(programs / "python"), "serve_mosec.py", str(largest_batch)]
        return [*server, "--address", "127.0.0.1", "--port", str(port), *limits]

    return command


def _uvicorn(programs: Path, port: int) -> list[str]:
    quick = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return [str(programs / "uvicorn"), "serve_fastapi:app", "--host", "127.0.0.1", "--port", str(port), *quick]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "lossd",
            "this service as it is by default, with a key: one front, one worker of one thread",
            lambda programs, port: [str(programs / "lossd"), "serve", "--port", str(port), "--threads", "1"],
            Safetensors("/v1/evaluate", {"X-API-Key": KEY}),
            variables={"LOSSD_API_KEY": KEY},
        ),
        Target(
            "mosec",
            "batches of up to 64 in one worker, behind a front in Rust",
            _mosec(64),
            Safetensors("/inference"),
            "mosec",
            ALLOCATOR,
        ),
        Target(
            "mosec-alone",
            "the same without batching",
            _mosec(1),
            Safetensors("/inference"),
            "mosec",
            ALLOCATOR,
        ),
        Target(
            "fastapi",
            "evaluated in the route, no batching, under uvicorn with uvloop and httptools",
            _uvicorn,
            Safetensors("/evaluate"),
            "fastapi",
            ALLOCATOR,
        ),
        Target(
            "pytriton",
            "Triton Inference Server, dynamic batches of up to 64",
            lambda programs, port: [str(programs / "python"), "serve_pytriton.py", str(port)],
            Triton(),
            "pytriton",
            ALLOCATOR,
            halts=False,  # its server and its models share locks that time out, upon which it crashes
        ),
        Target(
            "litserve",
            "batches of up to 64 in one worker",
            lambda programs, port: [str(programs / "python"), "serve_litserve.py", str(port)],
            Safetensors("/predict"),
            "litserve",
            ALLOCATOR,
        ),
    )
}


INLINE = Target(
    "inline",
    "each loss with autograd in a FastAPI route, no batching, no checks, in this environment",
    lambda programs, port: [word.replace("serve_fastapi", "serve_inline") for word in _uvicorn(programs, port)],
    Safetensors("/evaluate"),
    variables=ALLOCATOR,
)
"""The job of every loss as it is written for one model; measured loss by loss."""

RAY = Target(
    "lossd-ray",
    "one replica under Ray Serve, which starts HAProxy before it; a worker of one thread",
    lambda programs, port: [str(programs / "python"), "serve_ray.py", str(port)],
    Safetensors("/v1/evaluate"),
    variables={
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
    },
    halts=False,  # its processes watch each other
)
"""lossd where Ray Serve runs it, to be measured beside plain lossd; it is no peer."""

LAYERED = Target(
    "haproxy",
    "the same behind HAProxy with the configuration of deploy, one thread",
    lambda programs, port: [str(programs / "python"), "serve_haproxy.py", str(port)],
    TARGETS["lossd"].dialect,
    variables=TARGETS["lossd"].variables,
)
"""lossd behind what stands in front of several; no peer, so it is not among the targets."""

LAYERS = {target.name: target for target in (LAYERED, RAY)}
"""lossd with something before it, by name."""

IN_JSON = {
    "lossd": replace(TARGETS["lossd"], dialect=Json("/v1/evaluate", {"X-API-Key": KEY})),
    "fastapi": replace(TARGETS["fastapi"], dialect=Json("/evaluate-json")),
}
"""Those that read tensors as numbers in JSON, by name."""

IN_V2 = {
    "lossd": replace(TARGETS["lossd"], dialect=StockTriton({"X-API-Key": KEY})),
    "pytriton": replace(TARGETS["pytriton"], dialect=StockTriton(stacked=True)),
}
"""Those that Triton's own client can ask, by name."""


class Running:
    """A started target: a process and its descendants, halted while another one is measured."""

    def __init__(self, target: Target, python: Path, log: Path) -> None:
        self.name = target.name
        self.dialect = target.dialect
        self.halts = target.halts
        self.address = ("127.0.0.1", _free_port())
        self.log: IO[bytes] = log.open("wb")
        self.process = subprocess.Popen(
            target.command(python.parent, self.address[1]),
            cwd=PEERS,
            env={**(outer() if target.environment else os.environ), "OMP_NUM_THREADS": "1", **target.variables},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def ask(self, question: Question) -> dict[str, Any]:
        """What it answers.

        Raises:
            UnusableAnswerError: A refusal, or nothing that can be read.
        """
        post = self.dialect.post(question)
        connection = http.client.HTTPConnection(*self.address, timeout=ANSWER_S)
        try:
            connection.request("POST", post.path, post.body, dict(post.headers))
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"broken off: {error!r}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise UnusableAnswerError(f"{response.status}: {body[:500].decode(errors='replace')}", response.status)
        try:
            return self.dialect.read({name.lower(): value for name, value in response.getheaders()}, body)
        except (Problem, ValueError, KeyError) as error:
            raise UnusableAnswerError(f"an answer that cannot be read: {error}", response.status) from error

    def wait_until_it_answers(self) -> None:
        """Raises RuntimeError where it ends first, or takes too long."""
        deadline = time.monotonic() + START_S
        last: Exception | None = None
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask(focal((64, 10)))
            except (OSError, UnusableAnswerError) as error:
                if isinstance(error, UnusableAnswerError) and error.status not in NOT_YET:
                    raise
                last = error
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"did not start ({last}); its output is in {Path(self.log.name).name} in .bench")

    def halt(self) -> None:
        if self.halts:
            _signal(self.processes(), signal.SIGSTOP)

    def resume(self) -> None:
        _signal(self.processes(), signal.SIGCONT)

    def stop(self) -> None:
        """End it and what it started, by force if it must be: who is given time gives shared memory back."""
        self.resume()
        family = self.processes()
        self.process.terminate()
        deadline = time.monotonic() + STOP_S
        while (left := [process for process in family if _alive(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        _signal(left, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def cpu_s(self) -> float:
        """Processor time used so far by all its processes, in seconds."""
        used = (_stat(process) for process in self.processes())
        return sum(sum(map(int, fields[11:15])) for fields in used if fields) / TICKS_PER_S

    def memory_mb(self) -> float:
        """Memory of all its processes, shared pages counted once, in MB."""
        kib = 0
        for process in self.processes():
            with suppress(OSError):
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib * 1024 / 1e6

    def processes(self) -> list[int]:
        """The started process and its descendants."""
        ids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        parents = {process: int(fields[1]) for process in ids if (fields := _stat(process))}
        family = [self.process.pid]
        for process in family:  # grows while it is walked
            family += [child for child, parent in parents.items() if parent == process]
        return family


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _alive(process: int) -> bool:
    return _stat(process)[:1] not in ([], ["Z"])


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
