"""Whether the other end of a Unix socket is this user's: any user of the machine can see an abstract address."""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["is_own"]

_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group


def is_own(connection: socket.socket) -> bool:
    """Whether a process of this user holds the other end, or, of a listening one, began to listen."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())
