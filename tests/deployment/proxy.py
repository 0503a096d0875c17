"""HAProxy with the configuration of ``deploy/haproxy``, and the name server that tells it where the replicas are."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy/haproxy/haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")

A, AAAA, INTERNET = 1, 28, 1  # record types and the class, RFC 1035 and RFC 3596
NAME = "lossd-each.default.svc.cluster.local"


class NameServer:
    """A name server on loopback, for which every name has the same IPv4 addresses.

    Attributes:
        addresses: The addresses, which may change while it runs.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(1 << 16)
            if question == b"end":
                return
            self._socket.sendto(self._answer(question), client)

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 1
        kind, _ = struct.unpack("!HH", question[end : end + 4])
        found = self.addresses if kind == A else []
        # An answer to a recursive query, without an error; the name is a pointer to the question's.
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0) + question[12 : end + 4]
        records = (struct.pack("!HHHIH", 0xC00C, A, INTERNET, 1, 4) + socket.inet_aton(each) for each in found)
        return head + b"".join(records)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"end", ("127.0.0.1", self.port))
        self._thread.join(10)
        self._socket.close()


def free_port(addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """Return a port that is free at every one of these addresses."""
    while True:
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            with suppress(OSError):
                for address in addresses[1:]:
                    with socket.socket() as other:
                        other.bind((address, port))
                return port


@dataclass(frozen=True)
class Proxy:
    """A running HAProxy.

    Attributes:
        url: Its address for clients.
        commands: The port where it takes commands.
    """

    url: str
    commands: int

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.url.rpartition(":")[2])

    def check_no_more(self, replicas: int) -> None:
        """End the health checks of so many replicas. They stay up."""
        for number in range(1, replicas + 1):
            with socket.create_connection(("127.0.0.1", self.commands)) as connection:
                connection.sendall(b"disable health replicas/replica%d\n" % number)
                assert connection.recv(4096).strip() == b""


@contextmanager
def haproxy(addresses: Sequence[str], port: int, log: Path, more: str = "") -> Iterator[Proxy]:
    """Run HAProxy in front of replicas at these addresses, which share a port; ``more`` is for its ``global``."""
    names = NameServer(addresses)
    bind, status, commands = free_port(), free_port(), free_port()
    file = log.with_suffix(".cfg")
    file.write_text(f"global\n    stats socket ipv4@127.0.0.1:{commands} level admin\n    {more}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PROXY_REPLICAS": f"{NAME}:{port}",
        "PROXY_DNS": f"127.0.0.1:{names.port}",
        "PROXY_BIND": f"127.0.0.1:{bind}",
        "PROXY_STATUS": f"127.0.0.1:{status}",
        "PROXY_THREADS": "1",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(HAPROXY), "-f", str(CONFIGURATION), "-f", str(file)], env=environment, stdout=output, stderr=output
        )
    try:
        wait_for_replicas(f"http://127.0.0.1:{status}", len(addresses), log)
        yield Proxy(f"http://127.0.0.1:{bind}", commands)
    finally:
        process.kill()
        process.wait()
        names.close()


def wait_for_replicas(status: str, count: int, log: Path) -> None:
    """Wait until the proxy has found so many replicas and each of them is ready."""
    end = time.monotonic() + 30
    while True:
        with suppress(httpx.TransportError):
            page = httpx.get(f"{status}/metrics", params={"scope": "server"}, timeout=5).text
            lines = [line for line in page.splitlines() if line.startswith("haproxy_server_status{")]
            if sum('state="UP"' in line and line.endswith(" 1") for line in lines) == count:
                return
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
