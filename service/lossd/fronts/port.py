"""The port: taken before anything else is started, by one process or by several that listen on it together."""

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
BACKLOG = 2048


def bind(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Sockets at each address of the host, not listening yet.

    An address that this machine does not have, such as localhost's second one where there is no IPv6, is left out as
    long as there is another.

    Args:
        host: A name or an address; empty for all of this machine's.
        port: 0 for one that is free.
        shared: Whether each process that binds so gets its part of the connections; a port that is not is taken by one.

    Raises:
        OSError: There is no such address, or it is taken.
        UnicodeError: That is no name of a host.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for kind, address in _addresses(host, port):
        try:
            one = socket.socket(kind, socket.SOCK_STREAM)
        except OSError as error:
            absent = error
            continue
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if kind == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port, *address[2:]))
        except OSError as error:
            one.close()
            if error.errno not in ABSENT:
                for other in sockets:
                    other.close()
                raise
            absent = error
            continue
        sockets.append(one)
        port = one.getsockname()[1]  # the next address gets the port that was free to choose for the first
    if not sockets and absent is not None:
        raise absent
    return sockets


def take(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """The same, for a service that starts: nobody else may be there.

    Raises:
        StartError: It cannot be had, and why.
    """
    try:
        alone = bind(host, port, shared=False)  # who shares a port would share it with another service, and not know
        if not shared:
            return alone
        for one in alone:
            one.close()
        return bind(host, port, shared=True)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on {host} port {port}: {_reason(error, port)}") from None


def listen(sockets: list[socket.socket]) -> None:
    """Let who connects wait to be accepted, from now on: it is not refused while the service loads.

    Raises:
        StartError: Another service that started at the same moment has the port.
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
        return "that is no address, nor a name that has one (setting host)"
    if number == errno.EADDRINUSE:
        return "another program listens on it; end that program, or choose another port (0 picks a free one)"
    if number in ABSENT:
        return "that is not an address of this machine (setting host); 0.0.0.0 is all it has"
    if number in (errno.EACCES, errno.EPERM) and 0 < port < PRIVILEGED:
        return f"ports below {PRIVILEGED} need a privilege (CAP_NET_BIND_SERVICE) that this process lacks"
    return os.strerror(number) if number else str(error)


def _addresses(host: str, port: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name may stand for the same address more than once, which cannot be listened on twice.
    yield from dict.fromkeys((kind, address) for kind, *_, address in found)
