"""The abstract Unix socket that answers health checks on this machine; its name has the service's address and port.

A check over TCP must know the service's address and port, whether it uses TLS, and which certificate it asks of
clients. The socket needs none of these. It answers ``/health/live`` and ``/health/ready`` only. Any user of the machine
may use it, as over TCP.
"""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["HealthAnswer", "check", "list_services", "socket_path"]

SOCKETS = Path("/proc/net/unix")

_LISTED = re.compile(r"@lossd-health/(?P<address>\S+)/(?P<port>\d+)$", re.MULTILINE)


class HealthAnswer(NamedTuple):
    """A service's answer to a health check.

    Attributes:
        status: The HTTP status; 200 if the service is healthy.
        body: The JSON document.
    """

    status: int
    body: bytes


def socket_path(address: str, port: int) -> str:
    """Return the socket's path for a service at this address and port."""
    return f"\0lossd-health/{address}/{port}"


def list_services() -> list[tuple[str, int]]:
    """Return address and port of every service in this network namespace, sorted."""
    found = {(match["address"], int(match["port"])) for match in _LISTED.finditer(SOCKETS.read_text())}
    return sorted(found)


def check(address: str, port: int, path: str, timeout_s: float) -> HealthAnswer:
    """Send a health check to a service and return the answer.

    Args:
        address: The address it listens at.
        port: The port it listens on.
        path: ``/health/ready`` or ``/health/live``.
        timeout_s: The most time to wait, in seconds.

    Raises:
        OSError: The service does not answer.
        http.client.HTTPException: The answer is not HTTP.
    """
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(socket_path(address, port))
        connection.request("GET", path)
        answer = connection.getresponse()
        return HealthAnswer(answer.status, answer.read())
    finally:
        connection.close()
