"""A service that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from lossd_client import AsyncLossClient, LossClient
from lossd_client.wire import Tensor, safetensors


@dataclass
class Request:
    """A request as it came over the socket."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(safetensors.decode(self.body)[1]["request"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        return safetensors.decode(self.body)[0]


@dataclass
class Reply:
    """An answer to give; ``missing`` bytes of it are announced and never sent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    announce: bool = True
    missing: int = 0
    delay_s: float = 0.0


def evaluation(
    result: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, **tensors: np.ndarray | Tensor
) -> Reply:
    """A successful answer: the JSON rest, and tensors with ``__`` for the dot of their names."""
    named = {n.replace("__", "."): t if isinstance(t, Tensor) else Tensor.of(t) for n, t in tensors.items()}
    text = json.dumps(result if result is not None else {"loss": 0.5})
    body = b"".join(safetensors.encode(named, {"result": text}))
    return Reply(200, {"Content-Type": safetensors.MEDIA_TYPE, **(headers or {})}, body)


def problem(status: int, slug: str, detail: str = "no", headers: Mapping[str, str] | None = None) -> Reply:
    document = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": detail}
    body = json.dumps(document).encode()
    return Reply(status, {"Content-Type": "application/problem+json", **(headers or {})}, body)


class FakeService:
    """Answers from a queue; when that is empty, ``default`` makes the answer.

    Args:
        host: The address that it listens at.
        port: The port; by default a free one.
        tls: Its certificate, if it speaks TLS.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.replies: deque[Reply | None] = deque()
        self.default: Callable[[Request], Reply] = lambda request: evaluation()
        self.connections = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                service.connections += 1
                super().setup()

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, self.headers, body)
                service.requests.append(request)
                reply = service.replies.popleft() if service.replies else service.default(request)
                if reply is None:  # hang up
                    self.close_connection = True
                    return
                if reply.delay_s:
                    threading.Event().wait(reply.delay_s)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if "X-Request-ID" not in reply.headers:
                    self.send_header("X-Request-ID", self.headers["X-Request-ID"] or "none")
                if reply.announce:
                    self.send_header("Content-Length", str(len(reply.body) + reply.missing))
                else:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(reply.body)
                if reply.missing or not reply.announce:
                    self.close_connection = True

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  (named by http.server)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that gave up is no news."""

        self._server = Server((host, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Caller:
    """Either client, behind one face: what holds for one holds for the other."""

    def __init__(self, colour: str) -> None:
        self.colour = colour

    def __call__(
        self, url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Call one method of a fresh client."""
        if self.colour == "sync":
            with LossClient(url, **(client or {})) as lossd:
                return getattr(lossd, method)(*arguments, **options)

        async def call() -> Any:
            async with AsyncLossClient(url, **(client or {})) as lossd:
                return await getattr(lossd, method)(*arguments, **options)

        return asyncio.run(call())
