"""Where a service tells this machine how it is: an abstract Unix socket that is named after its address and port.

A check by TCP has to know how the service was started: its port, which address it listens at, whether it speaks TLS,
and with which certificate a client comes in. The socket depends on none of these. It answers ``/health/live`` and
``/health/ready`` and nothing else. Any user of the machine may ask it, as by TCP.
"""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["Answer", "ask", "path_of", "services"]

SOCKETS = Path("/proc/net/unix")

_LISTED = re.compile(r"@lossd-health/(?P<address>\S+)/(?P<port>\d+)$", re.MULTILINE)


class Answer(NamedTuple):
    """What a service says of its health.

    Attributes:
        status: Of HTTP: 200 where it is well.
        body: JSON, as bytes.
    """

    status: int
    body: bytes


def path_of(address: str, port: int) -> str:
    """The socket's path, for a service that listens at that address and port."""
    return f"\0lossd-health/{address}/{port}"


def services() -> list[tuple[str, int]]:
    """Address and port of every service in this network namespace, in order."""
    found = {(match["address"], int(match["port"])) for match in _LISTED.finditer(SOCKETS.read_text())}
    return sorted(found)


def ask(address: str, port: int, path: str, timeout_s: float) -> Answer:
    """Ask a service.

    Args:
        address: Where it listens.
        port: Likewise.
        path: ``/health/ready`` or ``/health/live``.
        timeout_s: How long to wait at most, in seconds.

    Raises:
        OSError: It does not answer.
        http.client.HTTPException: What answers is no service.
    """
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(path_of(address, port))
        connection.request("GET", path)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())
    finally:
        connection.close()
