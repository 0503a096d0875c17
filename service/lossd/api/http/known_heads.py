"""The heads of requests that were answered: what follows from a head is found again without parsing it.

Clients repeat their heads. Parsing one, checking its Host, its key and its format, and making a scope of it takes
longer than the rest of a small request. All of that depends on the head's bytes alone, so it is done once. Heads that
differ only in X-Request-ID and in the lengths of the body and of its JSON text are one: they are found by their bytes
without these values. So are those of PUT without the last part of their path, which names what is put. Before that, a
head is compared with the latest one of its connection, which is mostly the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from lossd.api.http.asgi import BATCH, CONNECTION, RAW_HEAD, WHOLE
from lossd.api.http.request import HttpRequest
from lossd.caches import Cache

__all__ = ["FoundHead", "KnownHead", "KnownHeads", "head_of"]

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
_BODY_LENGTH, _TEXT_LENGTH = b"content-length", b"inference-header-content-length"
_LENGTHS = (_BODY_LENGTH, _TEXT_LENGTH)
_VALUES = (*_LENGTHS, b"x-request-id")
_OWN = (BATCH, CONNECTION, RAW_HEAD, WHOLE, "client", "scheme", "server")
"""Keys of the scope that belong to a connection or to one request."""

_END = b"\r\n\r\n"
_PUT = b"PUT /"
_LENGTH = b"ength: "
"""The end of the name of each field that states a length."""
_DIGITS = 9
_REQUEST_ID = re.compile(rb"\r\n[Xx]-[Rr]equest-[Ii][Dd]: ([!-~]{1,128})\r\n")


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What follows from a head.

    Attributes:
        route: The route that answers.
        format: The formats of request and answer, as the route keeps them.
        scope: ASGI's scope as the route gets it, without what belongs to a connection.
        headers: The headers that lossd reads, without the values that differ.
        lengths: The names of its fields that state lengths, in order.
        client: The name of the API key.
        max_body_bytes: The limit of the body.
        timeout_s: The time from the request's begin to its deadline, in seconds.
    """

    route: Any
    format: Any
    scope: Mapping[str, Any]
    headers: Mapping[bytes, bytes]
    lengths: tuple[bytes, ...]
    client: str
    max_body_bytes: int
    timeout_s: float


@dataclass(slots=True)
class FoundHead:
    """A head that was found, with its own values.

    Attributes:
        head: The head, with the empty line at its end.
        known: What is known of it.
        headers: The headers that lossd reads, without Content-Length and X-Request-ID.
        length: Its Content-Length in bytes.
        request_id: Its X-Request-ID; empty without one.
        name: The last part of the path of a PUT, undecoded; empty for other methods.
        version: How often heads had been forgotten when it was found.
        rest: The head without ``name`` and without the digits of its only length; empty if it states several.
        digits: Where these digits begin.
        named: Where the name begins; 0 without one.
    """

    head: bytes
    known: KnownHead
    headers: Mapping[bytes, bytes]
    length: int
    request_id: bytes
    name: bytes
    version: int
    rest: bytes = b""
    digits: int = 0
    named: int = 0


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
        self._version = 0

    def find(self, data: bytes, latest: FoundHead | None = None) -> FoundHead | None:
        """Return the head that some bytes begin with, and what is known of it; None if nothing is known.

        Args:
            data: The bytes.
            latest: The head that was found before on the same connection: most clients send the same again.
        """
        if latest is not None and latest.version == self._version:
            head = data[: len(latest.head)]
            if hash(head) == hash(latest.head) and head == latest.head:  # see above: the latest key may be another's
                self._known.hits += 1
                return latest
            if (other := _with_other_values(data, latest)) is not None:
                self._known.hits += 1
                return other
        head = head_of(data)
        rest, name = _without_name(head)
        if (split := _without_lengths(rest)) is None:
            return None
        rest, digits = split
        known, request_id = self._known.get(rest), b""
        if known is None:
            if (found := _REQUEST_ID.search(rest)) is None:
                return None
            request_id = found[1]
            if (known := self._known.get(rest[: found.start(1)] + rest[found.end(1) :])) is None:
                return None
        if len(digits) == 1:
            named = head.find(b" ", len(_PUT)) - len(name) if name else 0
            at = head.find(_LENGTH, named + len(name)) + len(_LENGTH)
            rest = head[:named] + head[named + len(name) : at] + head[at + len(digits[0]) :]
            length = int(digits[0])
            return FoundHead(head, known, known.headers, length, request_id, name, self._version, rest, at, named)
        lengths = dict(zip(known.lengths, digits, strict=True))
        length = int(lengths.pop(_BODY_LENGTH))
        return FoundHead(head, known, {**known.headers, **lengths}, length, request_id, name, self._version)

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
        head, name = _without_name(head)
        if (split := _without_lengths(head)) is None:
            return
        rest, _ = split
        if (found := _REQUEST_ID.search(rest)) is not None:
            rest = rest[: found.start(1)] + rest[found.end(1) :]
        common = {name: value for name, value in scope.items() if name not in _OWN}
        if name:
            if not scope["path"].endswith(f"/{name.decode('latin-1')}"):  # it is encoded, or followed by a query
                return
            common["path"], common["raw_path"] = scope["path"][: -len(name)], scope["raw_path"][: -len(name)]
        common["headers"] = [header for header in scope["headers"] if header[0] not in _VALUES]
        headers = {name: value for name, value in request.headers.items() if name not in _VALUES}
        lengths = tuple(name for name, _ in scope["headers"] if name in _LENGTHS)
        timeout_s = request.deadline - request.begin
        known = KnownHead(route, form, common, headers, lengths, request.client, request.max_body_bytes, timeout_s)
        self._known.put(rest, known, ENTRY_BYTES + 4 * len(rest))

    def forget(self) -> None:
        """Forget all heads, because what follows from them has changed, such as whose a key is."""
        self._known.clear()
        self._version += 1
        self._forgot_s = time.monotonic()  # requests that were checked before are not to be learned


def _with_other_values(data: bytes, latest: FoundHead) -> FoundHead | None:
    """Return the latest head with the length, and the name, that some bytes state.

    None if they begin with another head.
    """
    if not latest.digits:
        return None
    begin, named, behind, name = latest.digits, latest.named, latest.named, b""
    if named:
        behind = data.find(b" ", named, HEAD_BYTES)
        name = data[named:behind]
        if behind < 0 or not name or b"/" in name:
            return None
        begin += len(name) - len(latest.name)
    end = data.find(b"\r", begin, begin + _DIGITS + 1)
    digits = data[begin:end]
    if end < 0 or not digits.isdigit():
        return None
    last = end + len(latest.rest) + len(latest.name) - latest.digits
    rest = data[:named] + data[behind:begin] + data[end:last]
    if hash(rest) != hash(latest.rest) or rest != latest.rest:
        return None
    return FoundHead(
        data[:last],
        latest.known,
        latest.headers,
        int(digits),
        latest.request_id,
        name,
        latest.version,
        rest,
        begin,
        named,
    )


def head_of(data: bytes) -> bytes:
    """Return the head that some bytes begin with, and the empty line at its end; empty if it has no end or is long."""
    end = data.find(_END, 0, HEAD_BYTES)
    return b"" if end < 0 else data[: end + len(_END)]


def _without_name(head: bytes) -> tuple[bytes, bytes]:
    """Return a head without the last part of the path of a PUT, and that part; it is empty for other methods."""
    if not head.startswith(_PUT):
        return head, b""
    end = head.find(b" ", len(_PUT))
    begin = head.rfind(b"/", 0, end) + 1
    return head[:begin] + head[end:], head[begin:end]


def _without_lengths(head: bytes) -> tuple[bytes, list[bytes]] | None:
    """Return a head without the values of its lengths, and these values; None if they cannot be told.

    The values are cut out behind each ``ength: ``. Two heads with the same rest are cut at the same places, because the
    rest begins with the same bytes.
    """
    pieces, values, at = [], [], 0
    while (begin := head.find(_LENGTH, at) + len(_LENGTH)) >= len(_LENGTH):
        end = head.find(b"\r", begin)
        digits = head[begin:end]
        if len(digits) > _DIGITS or not digits.isdigit():
            return None
        pieces.append(head[at:begin])
        values.append(digits)
        at = end
    pieces.append(head[at:])
    return (b"".join(pieces), values) if values else None


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
    if names.count(_BODY_LENGTH) != 1 or any(names.count(name) > 1 for name in _VALUES):
        return False
    # The parser took exactly these bytes for the head, such as no line break before it.
    line, _, fields = head.partition(b"\r\n")
    parsed = b"".join([b"%b: %b\r\n" % header for header in headers]) + b"\r\n"
    if line.count(b" ") != 2 or not line.startswith((b"POST /", _PUT)) or fields.lower() != parsed.lower():
        return False
    cut = [field.partition(b":")[0].lower() for field in fields.split(b"\r\n") if _LENGTH in field]
    if cut != [name for name in names if name in _LENGTHS]:  # another field's name ends in the same way
        return False
    return all(value.lower() == b"keep-alive" for name, value in headers if name == b"connection")
