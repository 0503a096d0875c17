"""``serve``: runs the application under uvicorn, with uvloop and httptools."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lossd.api import tls
from lossd.api.app import ServiceApp, create_app
from lossd.api.http.connection import Http, http_for
from lossd.api.http.known_heads import KnownHeads
from lossd.api.http.refusing import OverLimit
from lossd.api.http.uvicorn_internals import LossdServerState
from lossd.configuration.machine import files, raise_file_limit
from lossd.configuration.preflight import StartError
from lossd.engine import create_engine
from lossd.fronts.health import socket_path
from lossd.fronts.member import Member
from lossd.fronts.port import bind
from lossd.fronts.unix_socket import UnixSocket
from lossd.logs import configure

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.fronts import FrontConfig

__all__ = ["Forwarded", "known_heads", "serve", "within_files"]

log = logging.getLogger("lossd.api")

# For files other than connections and slabs: listeners, workers, the log.
SPARE_FILES = 64
HANDSHAKES_S = 1.0

# libuv accepts one connection of a listener in each turn of its loop. A turn takes milliseconds if many clients send
# requests, and then connections would wait for a place in line longer than for their answer.
ACCEPTS = 8

# How many connections may wait to be accepted. Each may bring a request that takes a millisecond to refuse, and health
# is answered after all that came before it. A client that finds no place tries again after a second.
WAITING = 512

ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)

FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto")


def serve(
    settings: Settings,
    announce: Callable[[int], None] = lambda port: None,
    front: FrontConfig | None = None,
    sockets: list[socket.socket] | None = None,
    local: UnixSocket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests and return.

    After SIGTERM, requests are accepted for another ``lame_duck_ms``, unless a second signal comes.

    Args:
        settings: The service's settings.
        announce: Called with the port once a worker is ready. Before that, connections are accepted and requests wait.
        front: The parent's configuration of this front; None for a single front.
        sockets: The bound sockets; by default, they are bound here.
        local: The Unix socket of a single front.

    Raises:
        StartError: Why the service cannot work.
    """
    configure(settings)
    settings = within_files(settings)
    member = Member(front) if front is not None else None
    engine = create_engine(settings, front.workers if front is not None else None)
    service = create_app(settings, engine, member)
    heads = known_heads()
    http: Callable[..., asyncio.Protocol] = http_for(settings, heads)
    context = tls.context_for(settings)
    handshakes = None if context is None else tls.Handshakes(http, context, settings)
    config = uvicorn.Config(
        Forwarded(service),
        interface="asgi3",
        proxy_headers=False,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=handshakes or http,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        log_level="warning",
        backlog=WAITING,
        timeout_keep_alive=max(1, settings.keep_alive_timeout_ms // 1000),
        timeout_graceful_shutdown=max(1, settings.drain_timeout_ms // 1000),
    )
    if not (settings.is_local or settings.has_keys or settings.tls_client_ca):
        log.warning("%s is reachable from the network, and no API keys are set: anybody may ask", settings.host)
    if front is not None:
        sockets = bind(settings.host, front.port, shared=True)
    if sockets is not None:
        sockets = [*sockets, *(bound.dup() for bound in sockets for _ in range(ACCEPTS - 1))]
    server = _Server(config, service, engine, settings, announce, member, handshakes, heads)
    if local is not None:
        server.listen_locally(local.bound, local.remove)
    elif front is not None and front.uds is not None:
        server.listen_locally(socket.socket(fileno=front.uds), lambda: None)  # the parent removes the file
    engine.on_failure = server.fail
    # Uvicorn handles signals once its loop runs. One that comes before that counts too. After its work, uvicorn raises
    # the signals again, and they change nothing.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run(sockets)
    if server.failure is not None:
        raise StartError(server.failure)


class Forwarded(ProxyHeadersMiddleware):
    """Takes the client's address and scheme from a trusted proxy's headers. Requests without them skip the work.

    Uvicorn's variable ``FORWARDED_ALLOW_IPS`` names the proxies. Uvicorn trusts 127.0.0.1 by default, which is every
    program on this machine; here the default is none.

    Args:
        service: The application.
    """

    def __init__(self, service: ServiceApp) -> None:
        super().__init__(service.entrance, _trusted_proxies())  # type: ignore[arg-type]  # ASGI's messages are mutable mappings

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Return the coroutine that answers one request."""
        for name, _ in scope.get("headers", ()):
            if name in FORWARDED:
                return super().__call__(scope, receive, send)  # type: ignore[arg-type]
        return self.app(scope, receive, send)  # type: ignore[arg-type]


def known_heads() -> KnownHeads:
    """Return the table of known heads of a new server. If proxies are trusted, their headers are read each time."""
    return KnownHeads(FORWARDED if _trusted_proxies() else ())


def _trusted_proxies() -> str:
    return os.environ.get("FORWARDED_ALLOW_IPS", "")


class _Server(uvicorn.Server):
    """Uvicorn's server. It reports when a worker is ready, and reads keys and certificate again on SIGHUP.

    Attributes:
        failure: Why the server ended without a signal; None otherwise.
    """

    failure: str | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        service: ServiceApp,
        engine: Engine,
        settings: Settings,
        announce: Callable[[int], None],
        member: Member | None,
        handshakes: tls.Handshakes | None = None,
        heads: KnownHeads | None = None,
    ) -> None:
        super().__init__(config)
        self._heads = heads
        self.server_state: LossdServerState = LossdServerState()
        self._handshakes = handshakes
        self._engine = engine
        self._service = service
        self._settings = settings
        self._announce = announce
        self._member = member
        self._make_http = http_for(settings, heads)
        self._local: tuple[socket.socket, Callable[[], None]] | None = None
        self._health: asyncio.Server | None = None
        self._lame_until_s: float | None = None

    def listen_locally(self, bound: socket.socket, leave: Callable[[], None]) -> None:
        """Serve on this Unix socket, too, without TLS.

        Args:
            bound: The socket.
            leave: Called when no further connections are accepted.
        """
        self._local = bound, leave

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # two services that start at once may both bind; one can listen
            await self.lifespan.shutdown()
            raise StartError(f"cannot listen on {self._settings.host}: {error}") from None
        if self.started:
            self.servers[0].get_loop().add_signal_handler(signal.SIGHUP, self._reload)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # deliver a signal that came before
            await self._serve_health()
            if self._local is not None:
                loop = asyncio.get_running_loop()
                self.servers.append(await loop.create_unix_server(self._plain, sock=self._local[0], backlog=WAITING))
            if self._member is not None:
                self._member.report("listening")
            self._readiness = asyncio.create_task(self._report_ready())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        period_s = self._settings.lame_duck_ms / 1000
        if sig != signal.SIGTERM or not period_s or not self.started or self._lame_until_s is not None:
            super().handle_exit(sig, frame)
            return
        self._lame_until_s = time.monotonic() + period_s
        self.servers[0].get_loop().call_soon_threadsafe(self._retire)

    def _retire(self) -> None:
        """Be not ready, and close each connection with its next answer. The port stays open."""
        log.info(
            "the service shuts down: it is no longer ready, and its port closes in %d ms", self._settings.lame_duck_ms
        )
        self._engine.retire()
        self.server_state.ending = True
        for connection in self.server_state.connections:
            if isinstance(connection, Http):
                connection.end_with_next_answer()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to shut down."""
        if self._lame_until_s is not None and time.monotonic() >= self._lame_until_s:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._readiness.cancel()
        if self._local is not None:
            self._local[1]()
        await self._accept_queued(sockets or [])
        if self._health is not None:  # open connections still get the answer that the service drains
            self._health.close()
        await super().shutdown(sockets)

    async def _accept_queued(self, sockets: list[socket.socket]) -> None:
        """Stop listening, and accept the connections in the backlog. Closing the listener would reset them."""
        loop, queued, listeners = asyncio.get_running_loop(), [], []
        with contextlib.suppress(OSError):  # no file is left
            for server in self.servers:
                listeners += [socket.socket(fileno=os.dup(sock.fileno())) for sock in server.sockets]
        for server in self.servers:
            server.close()
        for bound in sockets:
            bound.close()
        for listener in listeners:
            with listener, contextlib.suppress(OSError):  # the backlog is empty, or no file is left
                listener.setblocking(False)
                while True:
                    queued.append(listener.accept()[0])

        self.server_state.ending = True
        for accepted in queued:
            local = accepted.family == socket.AF_UNIX
            make = self._plain if local else lambda: self._protocol(self.config.http_protocol_class)
            await loop.connect_accepted_socket(make, accepted)
        if self._handshakes is not None:
            await self._handshakes.settle(HANDSHAKES_S)

    def _protocol(self, make: Callable[..., ProtocolT]) -> ProtocolT:
        """Return the protocol of a new connection, made as uvicorn makes it."""
        loop = asyncio.get_running_loop()
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop)

    def _plain(self) -> Http:
        """Return the protocol of a new connection without TLS."""
        return self._protocol(self._make_http)

    async def _serve_health(self) -> None:
        """Answer ``lossd health`` on its Unix socket. Of several fronts, one does."""
        loop, make_http = asyncio.get_running_loop(), http_for(self._settings)

        def connection() -> asyncio.Protocol:
            http = self._protocol(make_http)
            http.app = OverLimit(http.app, self._settings)
            return http

        path = socket_path(*self.servers[0].sockets[0].getsockname()[:2])
        with contextlib.suppress(OSError):  # another front listens there
            self._health = await loop.create_unix_server(connection, path)

    async def _report_ready(self) -> None:
        await self._engine.settled.wait()
        if self._engine.fault is not None:  # on_failure reports it
            return
        if self._member is not None:
            self._member.report("ready")
        else:
            self._announce(self.servers[0].sockets[0].getsockname()[1])

    def fail(self, reason: str) -> None:
        """End, because no worker can evaluate anything."""
        if self.failure is None:
            self.failure = reason
            self._engine.give_up(reason)
            self.should_exit = True

    def _reload(self) -> None:
        if self._service.access is not None:
            self._service.access.reload()
            if self._heads is not None:
                self._heads.forget()
        if self._handshakes is not None:
            tls.renew(self._handshakes.context, self._settings)


def within_files(settings: Settings) -> Settings:
    """Return the settings with as many connections as the limit of open files allows.

    Without a free file no connection is accepted, not even one that asks for health. Connections get three quarters of
    the files, of which half are for connections over their limit; slabs get the last quarter.
    """
    raise_file_limit()
    limit = files()
    most = max(1, int((limit - SPARE_FILES) * 3 / 8)) if limit < math.inf else math.inf
    if settings.max_connections <= most:
        return settings
    log.warning(
        "%d files may be open (ulimit -Hn), too few for %d connections (setting max_connections): %d are served",
        limit,
        settings.max_connections,
        most,
    )
    return settings.model_copy(update={"max_connections": most})
