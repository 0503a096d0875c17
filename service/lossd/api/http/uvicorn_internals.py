"""The undocumented names of uvicorn that lossd uses.

A connection is a subclass of uvicorn's HTTP protocol, and hot answers skip its ``receive`` and ``send``. Any minor
release of uvicorn may rename what these use, so ``pyproject.toml`` bounds uvicorn to releases that were tested, and a
test checks every name in :data:`ATTRIBUTES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from lossd.api.http.asgi import DisconnectedError

__all__ = [
    "ATTRIBUTES",
    "HIGH_WATER_LIMIT",
    "FlowControl",
    "HttpToolsProtocol",
    "LossdServerState",
    "RequestResponseCycle",
    "ServerState",
    "answer_bytes",
    "is_ending",
    "own_cycle",
    "replace_default_protocol",
    "take_body",
    "write_answer",
]

ATTRIBUTES = {
    "FlowControl": ("_transport", "pause_reading", "read_paused", "resume_reading", "write_paused"),
    "RequestResponseCycle": (
        "body", "default_headers", "disconnected", "flow", "keep_alive", "message_event", "more_body", "on_response",
        "response_complete", "response_started", "scope", "transport", "waiting_for_100_continue",
    ),
    "HttpToolsProtocol": (
        "_start_asgi_task", "access_log", "access_logger", "app", "client", "connections", "cycle",
        "expect_100_continue", "flow", "headers", "logger", "loop", "parser", "pipeline", "scheme", "scope", "server",
        "server_state", "tasks", "timeout_keep_alive", "transport", "url",
    ),
    "Server": (
        "config", "handle_exit", "lifespan", "on_tick", "server_state", "servers", "should_exit", "shutdown", "started",
        "startup",
    ),
    "Config": ("http_protocol_class",),
    "ServerState": ("connections", "default_headers", "total_requests"),
}  # fmt: skip
"""By class: the attributes and methods that lossd reads, writes or calls."""


def replace_default_protocol(make: Callable[..., asyncio.Protocol]) -> None:
    """Let the servers that this process starts from now on make their connections by this function.

    Servers whose ``http`` is set keep theirs.
    """
    auto.AutoHTTPProtocol = make  # type: ignore[assignment]  # uvicorn only calls it


class LossdServerState(ServerState):
    """Uvicorn's state of a server, which all its connections share.

    Attributes:
        ending: Whether the server is about to end: a new connection then closes with its first answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ending = False


def is_ending(state: ServerState) -> bool:
    """Return whether a server is about to end; another program's server does not say."""
    return isinstance(state, LossdServerState) and state.ending


def own_cycle(function: object) -> RequestResponseCycle | None:
    """Return the cycle whose ``receive`` or ``send`` this is; None if a middleware stands between."""
    cycle = getattr(function, "__self__", None)
    return cycle if type(cycle) is RequestResponseCycle else None


def take_body(cycle: RequestResponseCycle) -> bytearray:
    """Return the body that a cycle holds, without the copy that its ``receive`` makes.

    Raises:
        DisconnectedError: The client left.
    """
    if cycle.disconnected:
        raise DisconnectedError
    body, cycle.body = cycle.body, bytearray()
    cycle.message_event.clear()
    return body


def answer_bytes(
    status: int,
    default_headers: Iterable[tuple[bytes, bytes]],
    headers: Iterable[tuple[bytes, bytes]],
    body: Iterable[bytes | memoryview],
) -> bytes:
    """Return an answer as it is sent.

    Args:
        status: Its status.
        default_headers: The server's headers.
        headers: The answer's.
        body: The pieces of the whole body.
    """
    pieces = [_STATUS_LINES[status]]
    for name, value in default_headers:
        pieces += (b"\r\n", name, b": ", value)
    for name, value in headers:
        pieces += (b"\r\n", name, b": ", value)
    return b"".join((*pieces, b"\r\n\r\n", *body))


_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in HTTPStatus}


def write_answer(cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Write a whole answer at once, as the cycle's ``send`` does in two writes."""
    if cycle.disconnected:
        return
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(answer_bytes(status, cycle.default_headers, headers, (body,)))
    cycle.message_event.set()
    cycle.on_response()
