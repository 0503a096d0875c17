"""Binds the port before anything else starts, for one process or for several that share it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from lossd.configuration.preflight import StartError

__all__ = ["BACKLOG", "bind", "listen", "take"]

ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
PRIVILEGED = 1024
BACKLOG = 2048  # while the service loads
EVERY = ("", "::")


def bind(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Return sockets that are bound to each address of the host, not listening yet.

    Addresses that this machine lacks, such as localhost's IPv6 address, are left out if another can be bound.

    Args:
        host: A name or an address; empty or ``::`` for all addresses of this machine, IPv6 and IPv4.
        port: 0 for a free port.
        shared: Whether several processes may bind the port and share its connections.

    Raises:
        OSError: The address does not exist, or the port is taken.
        UnicodeError: The host is not a valid name.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for kind, address in _addresses(host, port):
        try:
            bound = socket.socket(kind, socket.SOCK_STREAM)
        except OSError as error:
            absent = error
            continue
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if kind == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((address[0], port, *address[2:]))
        except OSError as error:
            bound.close()
            if error.errno not in ABSENT:
                for other in sockets:
                    other.close()
                raise
            absent = error
            continue
        sockets.append(bound)
        port = bound.getsockname()[1]  # a free port chosen for the first address is used for all
    if not sockets and absent is not None:
        raise absent
    return sockets


def take(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Bind as :func:`bind` does, and check that no other program has the port.

    Raises:
        StartError: Why the port cannot be bound.
    """
    try:
        alone = bind(host, port, shared=False)  # a shared port could already belong to another service
        if not shared:
            return alone
        for one in alone:
            one.close()
        return bind(host, port, shared=True)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on {host} port {port}: {_reason(error, port)}") from None


def listen(sockets: list[socket.socket]) -> None:
    """Listen, so that connections wait while the service loads, instead of being refused.

    Raises:
        StartError: Another service took the port in the same moment.
    """
    for one in sockets:
        try:
            one.listen(BACKLOG)
        except OSError as error:
            host, port = one.getsockname()[:2]
            raise StartError(f"cannot listen on {host} port {port}: {_reason(error, port)}") from None


def _reason(error: Exception, port: int) -> str:
    number = getattr(error, "errno", None)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "this host has no address; set an address of this machine or its name (setting host)"
    if number == errno.EADDRINUSE:
        return "another program listens on it; end that program, or choose another port (0 picks a free one)"
    if number in ABSENT:
        return "this is not an address of this machine (setting host); 0.0.0.0 means all of its addresses"
    if number in (errno.EACCES, errno.EPERM) and 0 < port < PRIVILEGED:
        return f"ports below {PRIVILEGED} need a privilege (CAP_NET_BIND_SERVICE) that this process lacks"
    return os.strerror(number) if number else str(error)


def _addresses(host: str, port: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    # Each family has a socket of its own. One socket for both would show IPv4 clients by IPv6 addresses.
    found = socket.getaddrinfo(None if host in EVERY else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name may have the same address several times; it can be bound only once.
    yield from dict.fromkeys((kind, address) for kind, *_, address in found)
