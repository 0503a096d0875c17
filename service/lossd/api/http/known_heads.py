"""The heads of requests that were answered: what follows from a head is found again without parsing it.

Clients repeat their heads. Parsing one, checking its Host, its key and its format, and making a scope of it takes
longer than the rest of a small request. All of that depends on the head's bytes alone, so it is done once. Heads that
differ in Content-Length and X-Request-ID only are one: they are found by their bytes without the two values.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from lossd.api.http.asgi import CONNECTION, RAW_HEAD, WHOLE
from lossd.api.http.request import HttpRequest
from lossd.caches import Cache

__all__ = ["KnownHead", "KnownHeads"]

HEAD_BYTES = 4096  # a longer head is not kept
ENTRY_BYTES = 4096  # about what is kept of a head, beside its bytes
LIMIT_BYTES = 1 << 20

# What depends on more than the head: the connection's address, or the bytes behind the head. With a trace's header, no
# two heads are alike.
_UNSUITABLE = frozenset(
    (
        b"content-encoding",
        b"expect",
        b"traceparent",
        b"transfer-encoding",
        b"upgrade",
    )
)
_VALUES = (b"content-length", b"x-request-id")
_OWN = (CONNECTION, RAW_HEAD, WHOLE, "client", "scheme", "server")
"""Keys of the scope that belong to a connection or to one request."""

_LENGTH = b"ength: "
_DIGITS = 9
_REQUEST_ID = re.compile(rb"\r\n[Xx]-[Rr]equest-[Ii][Dd]: ([!-~]{1,128})\r\n")


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What follows from a head.

    Attributes:
        route: The route that answers.
        format: The formats of request and answer, as the route keeps them.
        scope: ASGI's scope as the route gets it, without what belongs to a connection.
        headers: The headers that lossd reads, without the two values.
        client: The name of the API key.
        max_body_bytes: The limit of the body.
        timeout_s: The time from the request's begin to its deadline, in seconds.
    """

    route: Any
    format: Any
    scope: Mapping[str, Any]
    headers: Mapping[bytes, bytes]
    client: str
    max_body_bytes: int
    timeout_s: float


class KnownHeads:
    """The heads of one server's requests.

    A head holds an API key. Python finds bytes by a hash that depends on a secret of the process, so the time of a
    look-up does not tell how much of a key is right.

    Args:
        unsuitable: The lower-case names of further headers whose requests need other treatment.
    """

    def __init__(self, unsuitable: Iterable[bytes] = ()) -> None:
        self._unsuitable = _UNSUITABLE.union(unsuitable)
        self._known: Cache[bytes, KnownHead] = Cache("heads", LIMIT_BYTES)
        self._forgot_s = 0.0  # on the monotonic clock

    def find(self, head: bytes) -> tuple[KnownHead, int, bytes] | None:
        """Return what is known of a head, its Content-Length and its X-Request-ID; None if nothing is known.

        Args:
            head: The head, with the empty line at its end.
        """
        if (split := _without_length(head)) is None:
            return None
        rest, length = split
        known = self._known.get(rest)
        if known is not None:
            return known, length, b""
        if (found := _REQUEST_ID.search(rest)) is None:
            return None
        known = self._known.get(rest[: found.start(1)] + rest[found.end(1) :])
        return None if known is None else (known, length, found[1])

    def learn(self, request: HttpRequest, route: Any, form: Any) -> None:
        """Keep the head of a request that was answered, if requests with the same head need no other treatment.

        Args:
            request: The request.
            route: The route that answered.
            form: The formats of request and answer.
        """
        scope = request.scope
        head: bytes | None = scope.get(RAW_HEAD)
        if head is None or request.begin <= self._forgot_s or not _is_suitable(head, scope, self._unsuitable):
            return
        if (split := _without_length(head)) is None or split[1] != request.length:
            return
        rest, _ = split
        if (found := _REQUEST_ID.search(rest)) is not None:
            rest = rest[: found.start(1)] + rest[found.end(1) :]
        own = {name: value for name, value in scope.items() if name not in _OWN}
        own["headers"] = [header for header in scope["headers"] if header[0] not in _VALUES]
        headers = {name: value for name, value in request.headers.items() if name not in _VALUES}
        timeout_s = request.deadline - request.begin
        known = KnownHead(route, form, own, headers, request.client, request.max_body_bytes, timeout_s)
        self._known.put(rest, known, ENTRY_BYTES + 4 * len(rest))

    def forget(self) -> None:
        """Forget all heads, because what follows from them has changed, such as whose a key is."""
        self._known.clear()
        self._forgot_s = time.monotonic()  # requests that were checked before are not to be learned


def _without_length(head: bytes) -> tuple[bytes, int] | None:
    """Return a head without the value of its Content-Length, and that value; None if it cannot be told.

    The value is cut out behind the first ``ength:``. Two heads with the same rest are cut at the same place, because
    the rest begins with the same bytes.
    """
    begin = head.find(_LENGTH) + len(_LENGTH)
    end = head.find(b"\r", begin)
    digits = head[begin:end]
    if begin < len(_LENGTH) or len(digits) > _DIGITS or not digits.isdigit():
        return None
    return head[:begin] + head[end:], int(digits)


def _is_suitable(head: bytes, scope: Scope, unsuitable: Set[bytes]) -> bool:
    """Return whether requests with this head need no treatment but the head's own.

    Args:
        head: What was taken for the head.
        scope: The scope that the parser made of it.
        unsuitable: The names of headers that ask for more.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    names = [name for name, _ in headers]
    if scope["http_version"] != "1.1" or not unsuitable.isdisjoint(names):
        return False
    if names.count(b"content-length") != 1 or names.count(b"x-request-id") > 1:
        return False
    # The parser took exactly these bytes for the head, such as no line break before it.
    line, _, fields = head.partition(b"\r\n")
    parsed = b"".join([b"%b: %b\r\n" % header for header in headers]) + b"\r\n"
    if line.count(b" ") != 2 or not line.startswith(b"POST /") or fields.lower() != parsed.lower():
        return False
    if not head[: head.find(_LENGTH)].lower().endswith(b"\r\ncontent-l"):  # another header ends in the same way
        return False
    return all(value.lower() == b"keep-alive" for name, value in headers if name == b"connection")
