"""The state of a connection's socket that no read has reported yet: closed, reset, or with unread bytes."""

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
    """Return whether bytes of the client, or its end of the connection, wait to be read."""
    return _is(transport, select.POLLIN)


def _is(transport: asyncio.Transport, event: int) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), event)
    return bool(poll.poll(0))
