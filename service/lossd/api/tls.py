"""TLS: the certificate, its renewal without a restart, and limits on handshakes."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lossd.api.http.socket_state import has_reset
from lossd.configuration.preflight import StartError, load_certificate

if TYPE_CHECKING:
    from lossd.api.http.uvicorn_internals import ServerState
    from lossd.configuration.settings import Settings

__all__ = ["Handshakes", "context_for", "renew"]

log = logging.getLogger("lossd.api")


def context_for(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of connections; None without a certificate.

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
    """Read the certificate again for new connections. If it cannot be used, log an error and keep the old one."""
    try:
        # Another context is tried first: OpenSSL sets the certificate before it checks that the key fits.
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            load_certificate(target, settings)
    except StartError as error:
        log.error("the certificate is unchanged: %s", error)
    else:
        log.info("the certificate was read again")


class Handshakes:
    """Makes the TLS handshake of accepted connections, then their HTTP protocol; the ``http`` of ``uvicorn.Config``.

    Uvicorn counts a connection after its handshake, which may take a minute. Here a connection counts once it is
    accepted, and its handshake has the time-out of a request's head. Over the limit, the oldest pending handshake is
    closed: an honest client needs a few round trips, so that stalled handshakes cannot keep new clients out.

    Args:
        http: Makes the protocol of an encrypted connection.
        context: The TLS context.
        settings: The limit and the time-out.

    Attributes:
        pending: The connections in their handshake, oldest first.
    """

    def __init__(self, http: Callable[..., asyncio.Protocol], context: ssl.SSLContext, settings: Settings) -> None:
        self.context = context
        self.pending: dict[_Handshake, None] = {}
        self.timeout_s = settings.idle_timeout_ms / 1000
        self._limit = settings.max_connections
        self._http = http

    def __call__(self, *, server_state: ServerState, **kwargs: Any) -> asyncio.Protocol:
        """Return the protocol of an accepted connection."""
        http = partial(self._http, server_state=server_state, **kwargs)
        return _Handshake(self, http, lambda: len(server_state.connections))

    def begin(self, handshake: _Handshake, connections: int) -> None:
        """Add a handshake, and close the oldest if there are too many.

        Args:
            handshake: The handshake of an accepted connection.
            connections: The encrypted connections. They may be twice the limit, because those over it get an answer.
        """
        self.pending[handshake] = None
        if len(self.pending) > self._limit or len(self.pending) + connections > 2 * self._limit:
            oldest = next(iter(self.pending))
            del self.pending[oldest]
            oldest.transport.abort()

    async def settle(self, timeout_s: float) -> None:
        """Wait until every handshake has ended.

        Args:
            timeout_s: The most time to wait, in seconds.
        """
        if tasks := [handshake.task for handshake in self.pending]:
            await asyncio.wait(tasks, timeout=timeout_s)


class _Handshake(asyncio.Protocol):
    """The protocol of a connection during its handshake."""

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
        if has_reset(transport):
            transport.abort()
            return
        self.task = asyncio.get_running_loop().create_task(self._encrypt())
        self._handshakes.begin(self, self._connections())

    def data_received(self, data: bytes) -> None:
        """Keep the bytes that arrive before the handshake begins."""
        self._early += data

    async def _encrypt(self) -> None:
        handshakes, loop = self._handshakes, asyncio.get_running_loop()
        try:
            if self.transport.is_closing():
                return
            loop.call_soon(self._feed)  # runs after TLS is set up, before the next read
            encrypted = await loop.start_tls(
                self.transport, self, handshakes.context, server_side=True, ssl_handshake_timeout=handshakes.timeout_s
            )
        except OSError:  # or ssl.SSLError, a subclass: no TLS, or too late
            return
        finally:
            handshakes.pending.pop(self, None)
        if encrypted is None or encrypted.is_closing():
            return
        http = self._http()
        encrypted.set_protocol(http)  # before the first decrypted bytes
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
