"""Answers on their way to the socket: small ones in one write, large ones straight from the slab.

ASGI has a server send the head and the body of an answer one after the other: two system calls, and headers checked one
by one. For the small answers that lossd gives by the thousand that is a fifth of the front's time. Where the server is
uvicorn, and nothing stands between it and the route, the answer is written as one piece instead.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Scope
from starlette.types import Receive as AsgiReceive
from starlette.types import Send as AsgiSend
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from lossd.api.http.exchange import Send

__all__ = ["Headers", "Heads", "Pieces", "send_pieces", "send_whole"]

Headers = list[tuple[bytes, bytes]]
Pieces = list[bytes | memoryview]

CHUNK_BYTES = 4 << 20
TAIL_BYTES = 128 << 10


class Heads:
    """Answers HEAD as GET wherever there is GET: the same head, from which the server leaves the body out.

    Args:
        app: Who answers GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: AsgiSend) -> None:
        """Have it answered."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the server goes by its own
        await self.app(scope, receive, send)


async def send_whole(send: Send, headers: Headers, body: bytes) -> None:
    """Answer with status 200.

    Args:
        send: ASGI's.
        headers: Names in lower case; neither names nor values hold a line break.
        body: All of it.
    """
    cycle = getattr(send, "__self__", None)  # a middleware's ``send`` is bound to something else, or to nothing
    if type(cycle) is RequestResponseCycle and cycle.keep_alive and not cycle.flow.write_paused:
        _write(cycle, headers, body)
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _write(cycle: RequestResponseCycle, headers: Headers, body: bytes) -> None:
    """What the cycle's own ``send`` does with a start and with a body that ends the answer."""
    if cycle.disconnected:
        return
    pieces = [b"HTTP/1.1 200 OK"]
    for name, value in cycle.default_headers:
        pieces += (b"\r\n", name, b": ", value)
    for name, value in headers:
        pieces += (b"\r\n", name, b": ", value)
    pieces += (b"\r\n\r\n", body)
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(b"".join(pieces))
    cycle.message_event.set()
    cycle.on_response()


async def send_pieces(send: Send, headers: Headers, pieces: Pieces) -> None:
    """Send straight from the slab. When this returns, nothing refers to the slab any more.

    The server keeps what the socket does not take at once, up to its high-water mark of 64 KiB, so the last 128 KiB go
    as copies: once the first half of them was accepted, all that was sent before has left the slab.
    """
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    remaining = sum(len(piece) for piece in pieces)
    for piece in pieces:
        view = memoryview(piece)
        at = 0
        while at < len(view):
            from_slab = remaining - TAIL_BYTES
            if from_slab > 0:
                step = min(CHUNK_BYTES, len(view) - at, from_slab)
                body: bytes | memoryview = view[at : at + step]
            else:
                step = min(TAIL_BYTES // 2, len(view) - at)
                body = bytes(view[at : at + step])
            at += step
            remaining -= step
            await send({"type": "http.response.body", "body": body, "more_body": remaining > 0})
