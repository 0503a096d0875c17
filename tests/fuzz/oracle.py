"""What must hold of every answer, whatever was sent."""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from typing import Any

from fuzz.mutations import Sent
from lossd_client.errors import PROBLEMS, LossdError
from lossd_client.wire import oip, safetensors

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Answer", "UnacceptableError", "Wire", "check_answer", "check_codecs"]

LONGEST_S = 20.0
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "zstd": zstd.decompress,
}
LONGEST_REFUSAL = 16 << 10
INTERNALS = re.compile(
    r"Traceback|File \"|\.py\b|object at 0x|/site-packages/|line \d+, in |<class |Error\(|<memory at"
)


class UnacceptableError(AssertionError):
    """An answer that no request may have, with the request."""


@dataclass(frozen=True)
class Answer:
    """An answer as it came over the wire."""

    status: int
    headers: Message
    content: bytes
    seconds: float


class Wire:
    """A connection that sends what it is told to: HTTP clients refuse to send much of what a server may get.

    Args:
        port: Of the service, on this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket: socket.socket | None = None

    def post(self, sent: Sent) -> Answer:
        """The answer to a request; on a new connection where the last one was closed."""
        begin = time.monotonic()
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=2 * LONGEST_S)
        framing = {} if "Transfer-Encoding" in sent.headers else {"Content-Length": str(len(sent.body))}
        headers = {"Host": "lossd", **framing, **sent.headers}
        lines = [f"POST {sent.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        with suppress(BrokenPipeError, ConnectionResetError):  # it was refused before all was sent
            self._socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + sent.body)
        response = HTTPResponse(self._socket, method="POST")
        response.begin()
        content = response.read()
        if encoding := response.headers.get("content-encoding"):
            content = UNPACK[encoding](content)
        if response.will_close:
            self.close()
        return Answer(response.status, response.headers, content, time.monotonic() - begin)

    def close(self) -> None:
        """Let go of the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def check_answer(sent: Sent, answer: Answer) -> None:
    """Hold an answer to what it may be: an evaluation, or a refusal that says what is wrong and nothing else.

    Raises:
        UnacceptableError: It is neither.
    """

    def require(condition: Any, what: str) -> None:
        if not condition:
            found = f"{answer.status} {answer.content[:300]!r} after {answer.seconds:.1f} s"
            raise UnacceptableError(f"{what}: {found} to {sent}")

    require(answer.seconds < LONGEST_S, "late")
    status = answer.status
    asked_for_haste = "timeout" in " ".join(sent.headers).lower() or b"timeout" in sent.body
    require(status == 200 or 400 <= status < 500 or (status == 504 and asked_for_haste), "a status")
    require(answer.headers.get("x-request-id", "").isprintable(), "a request id")
    kind = answer.headers["content-type"] or ""
    if status == 200:
        try:
            _decode(sent, answer, kind)
        except (LossdError, ValueError, KeyError) as error:
            raise UnacceptableError(f"an unreadable answer ({error}) to {sent}") from error
        return
    require(len(answer.content) <= LONGEST_REFUSAL, "a long refusal")
    document = json.loads(answer.content)
    if sent.path.startswith("/v2/"):
        require(kind == "application/json" and document.keys() == {"error"}, "no error of /v2")
        detail = document["error"]
    else:
        require(kind == "application/problem+json", "no problem")
        known = {"type", "title", "status", "detail", "errors", "request_id"}
        require(document.keys() <= known and document["status"] == status, "no problem document")
        require(document["type"].removeprefix("/problems/") in PROBLEMS, "an unknown type")
        detail = document["detail"]
    require(detail and detail.isprintable(), "an unprintable detail")
    internals = INTERNALS.search(detail)
    require(not internals or internals[0].encode() in sent.body + sent.path.encode(), "internals told")


def _decode(sent: Sent, answer: Answer, kind: str) -> None:
    if sent.path.startswith("/v2/"):
        length = answer.headers.get(oip.HEADER_LENGTH)
        decoded = oip.decode_response(answer.content, oip.header_length(length, len(answer.content)))
        assert decoded.outputs is not None
    elif kind == safetensors.MEDIA_TYPE:
        tensors, metadata = safetensors.decode(answer.content)
        assert "diagnostics" in json.loads(metadata["result"])
        for tensor in tensors.values():
            tensor.numpy()
    else:
        assert "diagnostics" in json.loads(answer.content)


def check_codecs(sent: Sent) -> None:
    """Read a body as its format says: whatever it holds, it is read or refused by an error of lossd's own tree."""
    body = sent.body
    try:
        if sent.form == "safetensors":
            for tensor in safetensors.decode(body)[0].values():
                tensor.numpy()
        elif sent.form == "oip":
            length = oip.header_length(sent.headers.get(oip.HEADER_LENGTH), len(body))
            for value in oip.decode_request(body, length)[1].values():
                if not isinstance(value, list):
                    value.numpy()
        else:
            _read_json(body)
    except LossdError:
        pass


def _read_json(body: bytes) -> None:
    from lossd_client.wire import json as codec

    document = codec.loads(body)
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        for floats, integers in ((True, True), (True, False), (False, True)):
            try:
                codec.tensor_from_json(name, value, floats=floats, integers=integers)[0].numpy()
            except LossdError:
                continue
