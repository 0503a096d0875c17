"""Lossd's additions to ASGI: keys of the scope, request ids, and the form of a refusal."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from starlette.types import Receive

from lossd_client.errors import MethodNotAllowed, Problem
from lossd_client.wire import json

__all__ = [
    "BATCH",
    "CLIENT",
    "CONNECTION",
    "FAULT",
    "RAW_HEAD",
    "ROOT",
    "RUN",
    "TELEMETRY",
    "WHOLE",
    "DisconnectedError",
    "cancel_on_disconnect",
    "new_request_id",
    "not_allowed",
    "problem_body",
    "request_id",
]

CLIENT = "lossd.client"
"""Key of the scope: the name of the API key that the request came with."""

CONNECTION = "lossd.connection"
"""Key of the scope: the connection, if it can :meth:`receive_into <lossd.api.http.connection.Http.receive_into>`."""

FAULT = "lossd.fault"
"""Key of the scope: the problem for which the rest of the body is not read."""

RAW_HEAD = "lossd.raw_head"
"""Key of the scope: the head's bytes, if a request with the same ones may be answered without parsing them."""

RUN, BATCH = "lossd.run", "lossd.batch"
"""Keys of the scope: the names of the run and of the batch that the path names, for the log."""

ROOT = "lossd.root"
"""Key of the scope: the path that a proxy serves the service below."""

TELEMETRY = "lossd.telemetry"
"""Key of the application's state: the object that counts requests."""

WHOLE = "lossd.whole"
"""Key of the scope: whether the whole body had arrived when the request began to be answered."""

MAX_ID = 128

_ids = itertools.count()
_id_prefix = secrets.token_hex(4)


class DisconnectedError(Exception):
    """The client left; nobody reads the answer."""


def new_request_id() -> str:
    """Return an id for a request that brings none; it is unique among the running services."""
    return f"{_id_prefix}-{next(_ids):x}"


def request_id(sent: str) -> str:
    """Return the client's id, cut to 128 characters, or a new one if the client's could be mistaken in a log."""
    return sent[:MAX_ID] if sent and sent.isascii() and sent.isprintable() else new_request_id()


async def cancel_on_disconnect(receive: Receive, future: asyncio.Future[Any]) -> None:
    """Cancel a future when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    future.cancel()


def not_allowed(method: str, taken: Collection[str]) -> MethodNotAllowed:
    """Return the problem of a path that takes other methods; HEAD goes with GET."""
    allow = ", ".join(sorted({*taken, *(["HEAD"] if "GET" in taken else [])}))
    return MethodNotAllowed(f"this path takes {allow}, not {method}", allow=allow)


def problem_body(scope: Mapping[str, Any], problem: Problem) -> tuple[bytes, bytes]:
    """Return a problem's media type and body, in the form of the protocol that the request's path belongs to."""
    path = scope["path"]
    if path == "/v2" or path.startswith("/v2/"):
        return json.MEDIA_TYPE.encode(), json.dumps({"error": problem.detail})
    document = problem.to_json()
    if ROOT in scope:
        document["type"] = scope[ROOT] + document["type"]
    return b"application/problem+json", json.dumps(document)
