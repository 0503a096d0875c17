"""The undocumented names of uvicorn that lossd uses.

A connection is a subclass of uvicorn's HTTP protocol, and hot answers skip its ``receive`` and ``send``. Any minor
release of uvicorn may rename what these use, so ``pyproject.toml`` bounds uvicorn to releases that were tested, and a
test checks every name in :data:`ATTRIBUTES`.
"""

from __future__ import annotations

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from lossd.api.http.asgi import DisconnectedError

__all__ = [
    "ATTRIBUTES",
    "HIGH_WATER_LIMIT",
    "FlowControl",
    "HttpToolsProtocol",
    "RequestResponseCycle",
    "ServerState",
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
        "_start_asgi_task", "access_log", "access_logger", "app", "connections", "cycle", "expect_100_continue", "flow",
        "headers", "logger", "loop", "parser", "pipeline", "scheme", "scope", "server_state", "timeout_keep_alive",
        "transport", "url",
    ),
    "Server": ("config", "lifespan", "server_state", "servers", "should_exit", "shutdown", "started", "startup"),
    "Config": ("http_protocol_class",),
    "ServerState": ("connections", "default_headers", "total_requests"),
}  # fmt: skip
"""By class: the attributes and methods that lossd reads, writes or calls."""


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


def write_answer(cycle: RequestResponseCycle, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Write a whole answer of status 200 at once, as the cycle's ``send`` does in two writes."""
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
