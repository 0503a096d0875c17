"""The state of a connection's socket that no read has reported yet: the client has sent something, or left."""

from __future__ import annotations

import asyncio
import select

__all__ = ["has_closed", "has_reset", "has_unread"]


def has_reset(transport: asyncio.Transport) -> bool:
    """Return whether the client has reset the connection."""
    return _is(transport, select.POLLERR)


def has_closed(transport: asyncio.Transport) -> bool:
    """Return whether the client has closed its sending side, or reset the connection."""
    return _is(transport, select.POLLRDHUP)


def has_unread(transport: asyncio.Transport) -> bool:
    """Return whether bytes that the client sent have not been read, or its end."""
    return _is(transport, select.POLLIN)


def _is(transport: asyncio.Transport, event: int) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), event)
    return bool(poll.poll(0))
