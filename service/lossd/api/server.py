"""``serve``: the application under uvicorn, with uvloop and httptools."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lossd.api.app import Service, create_app
from lossd.api.log import configure

if TYPE_CHECKING:
    from lossd.settings import Settings

__all__ = ["Http", "serve"]

KEEP_ALIVE_S = 75
BACKLOG = 2048


def serve(settings: Settings, announce: Callable[[int], None] = lambda port: None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted and return.

    Args:
        settings: How it runs.
        announce: Called with the port once connections are accepted; it was free to choose where the setting is 0.
    """
    configure(settings)
    _raise_file_limit()
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Http,
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        log_level="warning",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, settings.drain_timeout_ms // 1000),
    )
    # Uvicorn finishes its work and then raises the signal that stopped it once more; by then there is nothing to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Server(config, announce).run()


class Http(HttpToolsProtocol):
    """Uvicorn's HTTP, for which a body may follow an offer to speak another protocol.

    Java's HTTP client, among others, offers HTTP/2 with every first request and is content to be answered in HTTP/1.1.
    The parser, though, ends a message where an ``Upgrade`` header takes effect, and drops its body.
    """

    def data_received(self, data: bytes) -> None:
        """Parse; a head that offers another protocol is parsed again, without the offer."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self._offers_upgrade():
                version = self.parser.get_http_version().encode()
                start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
                headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.data_received(b"\r\n".join([start, *headers, b"", data[stop.args[0] :]]))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        """Begin to answer, unless this head is parsed again."""
        if not self._offers_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole, unless it has not begun."""
        if not self._offers_upgrade():
            super().on_message_complete()

    def _offers_upgrade(self) -> bool:
        # CONNECT leaves HTTP too, but by itself, and has no body.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"


class _Server(uvicorn.Server):
    """Uvicorn's, which says when it listens."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[int], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            app = self.config.app
            if isinstance(app, Service) and app.access is not None:
                self.servers[0].get_loop().add_signal_handler(signal.SIGHUP, app.access.reload)
            self._announce(self.servers[0].sockets[0].getsockname()[1])


def _raise_file_limit() -> None:
    """Every connection and every slab is a file; the default limit of 1024 is for interactive programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
