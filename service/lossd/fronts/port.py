"""A port that several processes listen on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

__all__ = ["bind", "check_free"]


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets at each address of the host; each process that listens on its own gets its part of the connections."""
    sockets: list[socket.socket] = []
    for kind, address in _addresses(host, port):
        one = socket.socket(kind, socket.SOCK_STREAM)
        sockets.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address[0], port, *address[2:]))
        port = one.getsockname()[1]  # the next address gets the port that was free to choose for the first
    return sockets


def check_free(host: str, port: int) -> None:
    """See that nobody listens there: who shares a port would share it with another service, too, and not know.

    Raises:
        OSError: Somebody does.
    """
    for kind, address in _addresses(host, port):
        with socket.socket(kind, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if kind == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)


def _addresses(host: str, port: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for kind, *_, address in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        yield kind, address
