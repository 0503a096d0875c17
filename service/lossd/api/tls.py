"""TLS: the certificate, its successor, taken without a restart, and who may take how long to agree on a key."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lossd.configuration.preflight import StartError, load_certificate

if TYPE_CHECKING:
    from lossd.api.http.uvicorn_internals import ServerState
    from lossd.configuration.settings import Settings

__all__ = ["Handshakes", "context_for", "renew"]

log = logging.getLogger("lossd.api")


def context_for(settings: Settings) -> ssl.SSLContext | None:
    """What connections are encrypted by; None where there is no certificate.

    Raises:
        StartError: The certificate or its key cannot be used.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, settings)
    if settings.tls_client_ca is not None:
        context.load_verify_locations(settings.tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def renew(context: ssl.SSLContext, settings: Settings) -> None:
    """Read the certificate again, for connections from now on; one that is none changes nothing but the log."""
    try:
        # Tried on another first: a certificate that its key does not fit would be in place when that is noticed.
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            load_certificate(target, settings)
    except StartError as error:
        log.error("the certificate stays as it was: %s", error)
    else:
        log.info("the certificate was read again")


class Handshakes:
    """Encrypts connections that were accepted, and hands them on to HTTP: what ``uvicorn.Config`` takes as ``http``.

    Uvicorn counts a connection once it is encrypted, and gives each a minute for that. Here a connection counts from
    the moment it is accepted, and has the time-out of a request's head. Where more come than may, the oldest that is
    not done is closed: an honest client needs a few round trips, so that a new one gets its turn whatever hangs.

    Args:
        http: What makes the protocol of a connection that is encrypted.
        context: What connections are encrypted by.
        settings: The limit and the time-out.

    Attributes:
        pending: The connections that have not agreed on a key, oldest first.
    """

    def __init__(self, http: Callable[..., asyncio.Protocol], context: ssl.SSLContext, settings: Settings) -> None:
        self.context = context
        self.pending: dict[_Handshake, None] = {}
        self.timeout_s = settings.idle_timeout_ms / 1000
        self._most = settings.max_connections
        self._http = http

    def __call__(self, *, server_state: ServerState, **kwargs: Any) -> asyncio.Protocol:
        """A connection that was accepted."""
        http = partial(self._http, server_state=server_state, **kwargs)
        return _Handshake(self, http, lambda: len(server_state.connections))

    def begin(self, handshake: _Handshake, connections: int) -> None:
        """Count one more.

        Args:
            handshake: Of a connection that was accepted.
            connections: How many are encrypted already. As many as are served may be too many, and are told so.
        """
        self.pending[handshake] = None
        if len(self.pending) > self._most or len(self.pending) + connections > 2 * self._most:
            oldest = next(iter(self.pending))
            del self.pending[oldest]
            oldest.transport.abort()

    async def settle(self, timeout_s: float) -> None:
        """Wait until every connection that was accepted is encrypted or closed.

        Args:
            timeout_s: So long at most.
        """
        if tasks := [handshake.task for handshake in self.pending]:
            await asyncio.wait(tasks, timeout=timeout_s)


class _Handshake(asyncio.Protocol):
    """A connection that has not agreed on a key."""

    transport: asyncio.Transport
    task: asyncio.Task[None]

    def __init__(
        self, handshakes: Handshakes, http: Callable[[], asyncio.Protocol], connections: Callable[[], int]
    ) -> None:
        self._handshakes = handshakes
        self._http = http
        self._connections = connections
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        self.transport = transport
        self.task = asyncio.get_running_loop().create_task(self._agree())
        self._handshakes.begin(self, self._connections())

    def data_received(self, data: bytes) -> None:
        """What comes before the task has begun."""
        self._early += data

    async def _agree(self) -> None:
        handshakes, loop = self._handshakes, asyncio.get_running_loop()
        try:
            if self.transport.is_closing():
                return
            loop.call_soon(self._feed)  # once there is somebody to take it, before any more is read
            encrypted = await loop.start_tls(
                self.transport, self, handshakes.context, server_side=True, ssl_handshake_timeout=handshakes.timeout_s
            )
        except OSError:  # ssl.SSLError is one: what came is no TLS, too late, or nothing
            return
        finally:
            handshakes.pending.pop(self, None)
        if encrypted is None or encrypted.is_closing():
            return
        http = self._http()
        encrypted.set_protocol(http)  # its first bytes come after this
        http.connection_made(encrypted)

    def _feed(self) -> None:
        tls: Any = self.transport.get_protocol()
        early = memoryview(self._early)
        while early:
            room = tls.get_buffer(len(early))
            size = min(len(room), len(early))
            room[:size] = early[:size]
            tls.buffer_updated(size)
            early = early[size:]
        self._early = b""
