"""Sends answers: small ones in one write, large ones directly from the slab.

ASGI servers send the head and the body of an answer one after the other: two system calls, and a check of each header.
For small answers that was a fifth of the front's time. If the server is uvicorn and no middleware stands between it and
the route, the answer is written as one piece instead.
"""

from __future__ import annotations

import math

from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.api.http.asgi import problem_body
from lossd.api.http.request import HttpRequest
from lossd.api.http.uvicorn_internals import own_cycle, write_answer
from lossd_client.errors import MethodNotAllowed, Problem, Unauthorized

__all__ = ["AnswerHead", "Headers", "Pieces", "send_pieces", "send_problem", "send_whole"]

Headers = list[tuple[bytes, bytes]]
Pieces = list[bytes | memoryview]

CHUNK_BYTES = 4 << 20
TAIL_BYTES = 128 << 10


class AnswerHead:
    """An application that answers HEAD like GET; the server leaves the body out.

    Args:
        app: The application that answers GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the server must still see HEAD
        await self.app(scope, receive, send)


async def send_whole(send: Send, headers: Headers, body: bytes, status: int = 200) -> None:
    """Send an answer.

    Args:
        send: ASGI's channel.
        headers: Names in lower case; neither names nor values hold a line break.
        body: The whole body.
        status: Its status.
    """
    cycle = own_cycle(send)
    if cycle is not None and cycle.keep_alive and not cycle.flow.write_paused:
        write_answer(cycle, status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_pieces(send: Send, headers: Headers, pieces: Pieces, *, copied: bool) -> None:
    """Send an answer of status 200 from its slab. After this returns, nothing refers to the slab.

    ASGI's bodies are bytes, which a server may keep or pickle. Lossd's own connection takes views of the slab too, and
    buffers up to its high-water mark of 64 KiB what the socket does not take. The last 128 KiB are therefore always
    sent as copies: once the first half of them is accepted, everything before has left the slab.

    Args:
        send: ASGI's channel.
        headers: Names in lower case.
        pieces: The body.
        copied: Whether all of the body is sent as copies, for another server's connection.
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
                body: bytes | memoryview = bytes(view[at : at + step]) if copied else view[at : at + step]
            else:
                step = min(TAIL_BYTES // 2, len(view) - at)
                body = bytes(view[at : at + step])
            at += step
            remaining -= step
            await send({"type": "http.response.body", "body": body, "more_body": remaining > 0})


async def send_problem(request: HttpRequest, problem: Problem, send: Send, status: int | None = None) -> None:
    """Answer a request with a problem, in the form of its path's protocol.

    If part of the body is still to come, it is drained, and the connection ends with the answer.

    Args:
        request: The request; the problem gets its id.
        problem: The problem to answer with.
        send: ASGI's channel.
        status: The answer's status; the problem's by default.
    """
    problem.request_id = request.request_id
    media_type, body = problem_body(request.scope, problem)
    await request.stop_reading()
    headers = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request.request_id.encode("latin-1")),
    ]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(problem.retry_after_s))))
    if isinstance(problem, MethodNotAllowed) and problem.allow:
        headers.append((b"allow", problem.allow.encode()))
    if isinstance(problem, Unauthorized):
        headers.append((b"www-authenticate", b'Bearer realm="lossd"'))
    if request.unread:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status or problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": request.unread})
    if request.unread:
        await request.drain()
        await send({"type": "http.response.body", "body": b""})
