"""``serve``: the application under uvicorn, with uvloop and httptools."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lossd.api import tls
from lossd.api.app import Service, create_app
from lossd.api.http.connection import Http, http_for
from lossd.api.http.refusing import OverLimit
from lossd.configuration.preflight import StartError
from lossd.engine import create_engine
from lossd.fronts.health import socket_path
from lossd.fronts.member import Member
from lossd.fronts.port import BACKLOG, bind
from lossd.logs import configure

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.fronts import FrontConfig

__all__ = ["serve"]

log = logging.getLogger("lossd.api")

# What is open beside connections: slabs, workers, the log.
SPARE_FILES = 64
HANDSHAKES_S = 1.0

FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto")


def serve(
    settings: Settings,
    announce: Callable[[int], None] = lambda port: None,
    front: FrontConfig | None = None,
    sockets: list[socket.socket] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted and return.

    Args:
        settings: How it runs.
        announce: Called with the port once a worker is ready; it was free to choose where the setting is 0. Before
            that, connections are accepted and requests wait.
        front: The parent's configuration of this front; None for a single front.
        sockets: Where it listens, if that is taken already.

    Raises:
        StartError: It cannot work.
    """
    configure(settings)
    _raise_file_limit(settings)
    member = Member(front) if front is not None else None
    engine = create_engine(settings, front.workers if front is not None else None)
    service = create_app(settings, engine, member)
    http: Callable[..., asyncio.Protocol] = http_for(settings)
    context = tls.context_for(settings)
    handshakes = None if context is None else tls.Handshakes(http, context, settings)
    config = uvicorn.Config(
        Forwarded(service),
        interface="asgi3",
        proxy_headers=False,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=handshakes or http,  # type: ignore[arg-type]  # it is called, no more
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        log_level="warning",
        backlog=BACKLOG,
        timeout_keep_alive=max(1, settings.keep_alive_timeout_ms // 1000),
        timeout_graceful_shutdown=max(1, settings.drain_timeout_ms // 1000),
    )
    if not (settings.is_local or settings.has_keys or settings.tls_client_ca):
        log.warning("%s is reachable from the network, and no API keys are set: anybody may ask", settings.host)
    # Uvicorn finishes its work and then raises the signal that stopped it once more; by then there is nothing to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    if front is not None:
        sockets = bind(settings.host, front.port, shared=True)
    server = _Server(config, service, engine, settings, announce, member, handshakes)
    engine.on_failure = server.fail
    server.run(sockets)
    if server.failure is not None:
        raise StartError(server.failure)


class Forwarded(ProxyHeadersMiddleware):
    """Who asked, where a proxy says so that may; all others pass by, at no cost worth mentioning.

    ``FORWARDED_ALLOW_IPS``, which is uvicorn's, names the proxies. Uvicorn trusts 127.0.0.1 by default, which would be
    every program on this machine; here the default is nobody.

    Args:
        service: Who answers.
    """

    def __init__(self, service: Service) -> None:
        trusted = os.environ.get("FORWARDED_ALLOW_IPS", "")
        super().__init__(service.entrance, trusted)  # type: ignore[arg-type]  # ASGI's messages are mutable mappings

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Take one connection; what is returned answers it."""
        for name, _ in scope.get("headers", ()):
            if name in FORWARDED:
                return super().__call__(scope, receive, send)  # type: ignore[arg-type]
        return self.app(scope, receive, send)  # type: ignore[arg-type]


class _Server(uvicorn.Server):
    """Uvicorn's, which says when a worker is ready, and reads keys and certificate again on SIGHUP.

    Attributes:
        failure: Why it ended by itself, if it did.
    """

    failure: str | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        engine: Engine,
        settings: Settings,
        announce: Callable[[int], None],
        member: Member | None,
        handshakes: tls.Handshakes | None = None,
    ) -> None:
        super().__init__(config)
        self._handshakes = handshakes
        self._engine = engine
        self._service = service
        self._settings = settings
        self._announce = announce
        self._member = member
        self._health: asyncio.Server | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # two that start at once may both bind, and one listens
            await self.lifespan.shutdown()
            raise StartError(f"cannot listen on {self._settings.host}: {error}") from None
        if self.started:
            self.servers[0].get_loop().add_signal_handler(signal.SIGHUP, self._reload)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # what came before now is heard now
            await self._tell_health()
            if self._member is not None:
                self._member.report("listening")
            self._waiting = asyncio.create_task(self._until_ready())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._waiting.cancel()
        await self._take_queued(sockets or [])
        if self._health is not None:  # who is there is still answered: that it drains
            self._health.close()
        await super().shutdown(sockets)

    async def _take_queued(self, sockets: list[socket.socket]) -> None:
        """Stop listening, and take who is connected and was not accepted yet: a listener that is closed resets them."""
        loop, queued = asyncio.get_running_loop(), []
        listeners = [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        for server in self.servers:
            server.close()
        for one in sockets:
            one.close()
        for listener in listeners:
            with listener, contextlib.suppress(OSError):  # there is none left, or no file for it
                listener.setblocking(False)
                while True:
                    queued.append(listener.accept()[0])

        def connection() -> asyncio.Protocol:
            protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            if isinstance(protocol, Http):
                protocol.ending = True
            return protocol

        for one in queued:
            await loop.connect_accepted_socket(connection, one)
        if self._handshakes is not None:
            await self._handshakes.settle(HANDSHAKES_S)

    async def _tell_health(self) -> None:
        """Answer ``lossd health`` where it asks; of several fronts on a port, one does."""
        loop, http_of = asyncio.get_running_loop(), http_for(self._settings)

        def connection() -> asyncio.Protocol:
            http = http_of(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            http.app = OverLimit(http.app, self._settings)
            return http

        path = socket_path(*self.servers[0].sockets[0].getsockname()[:2])
        with contextlib.suppress(OSError):  # another front has it
            self._health = await loop.create_unix_server(connection, path)

    async def _until_ready(self) -> None:
        await self._engine.settled.wait()
        if self._engine.fault is not None:  # which on_failure is for
            return
        if self._member is not None:
            self._member.report("ready")
        else:
            self._announce(self.servers[0].sockets[0].getsockname()[1])

    def fail(self, why: str) -> None:
        """End: nothing can be evaluated here."""
        if self.failure is None:
            self.failure = why
            self._engine.give_up(why)
            self.should_exit = True

    def _reload(self) -> None:
        if self._service.access is not None:
            self._service.access.reload()
        if self._handshakes is not None:
            tls.renew(self._handshakes.context, self._settings)


def _raise_file_limit(settings: Settings) -> None:
    """Every connection and every slab is a file; the default limit of 1024 is for interactive programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < settings.max_connections + SPARE_FILES:
        log.warning(
            "%d files may be open (ulimit -Hn), too few for %d connections: raise it, or set max_connections to %d",
            hard,
            settings.max_connections,
            max(1, hard - SPARE_FILES),
        )
