"""What the routes of runs share: they ask the recorder, and send JSON documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import Send

from lossd.api.http.compression import compress
from lossd.api.http.negotiation import is_current
from lossd.api.http.request import HttpRequest
from lossd.api.http.sending import Pieces, send_whole
from lossd.api.route import Route
from lossd.api.tensor_route import JSON
from lossd_client.wire import json

if TYPE_CHECKING:
    from lossd.api.http.fairness import FairShare
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.recorder.client import Recorder

__all__ = ["HttpHeader", "Record", "RecordedRoute", "id_header"]

Record = Mapping[str, Any]
HttpHeader = tuple[bytes, bytes]


class RecordedRoute(Route):
    """A route about runs that counts nothing.

    Args:
        settings: The limits.
        engine: Computes results.
        telemetry: Measures the recorder.
        fair_share: As for every route.
        recorder: Keeps the runs.
    """

    def __init__(
        self, settings: Settings, engine: Engine, telemetry: Telemetry, fair_share: FairShare, recorder: Recorder
    ) -> None:
        super().__init__(settings, engine, telemetry, fair_share)
        self.recorder = recorder

    def _refused(self, request: HttpRequest, outcome: str, status: int | None = None) -> None:
        """Count nothing: these requests are no evaluations; the log of pages has them."""

    async def _ask(self, request: HttpRequest, op: str, payload: bytes = b"", **arguments: Any) -> Any:
        """Return the recorder's answer to an operation."""
        answer, _ = await self.telemetry.recording(self.recorder.ask(op, request.deadline, payload, **arguments))
        return answer

    async def _found(self, request: HttpRequest, run: str, owner: str | None = None) -> Record:
        """Return the record of the key's own run, or of a public run.

        Raises:
            UnknownRun: There is none that the key may read.
        """
        found: Record = await self._ask(request, "find", owner=request.client, name=run, owner_of_run=owner)
        return found

    async def _unchanged(self, request: HttpRequest, send: Send, tag: str) -> bool:
        """Answer 304 if the client has the answer of this tag, and return whether it has."""
        if not is_current(request.headers.get(b"if-none-match", b""), tag):
            return False
        await send_whole(send, [(b"etag", tag.encode()), id_header(request)], b"", 304)
        return True

    async def _send(
        self,
        request: HttpRequest,
        send: Send,
        document: Any,
        headers: Sequence[HttpHeader] = (),
        status: int = 200,
        media_type: bytes = JSON,
    ) -> None:
        """Send a JSON document, or a text, compressed as the client asks."""
        pieces: Pieces = [document if isinstance(document, bytes) else json.dumps(document)]
        headers = [(b"content-type", media_type), *headers, (b"vary", b"accept-encoding")]
        if (accept_encoding := request.headers.get(b"accept-encoding")) is not None:
            encoding, pieces = await compress(pieces, accept_encoding, binary=False)
            if encoding:
                headers.append((b"content-encoding", encoding))
        body = b"".join(pieces)
        headers += [(b"content-length", b"%d" % len(body)), id_header(request)]
        await send_whole(send, headers, body, status)


def id_header(request: HttpRequest) -> HttpHeader:
    """Return the header with the request's id."""
    return b"x-request-id", request.request_id.encode("latin-1")
