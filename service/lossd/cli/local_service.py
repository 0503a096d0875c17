"""The service inside a command: the same application, reached without a socket, on this user's store of runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import httpx

from lossd.cli.options import connect
from lossd_client import LossClient
from lossd_client.errors import LossdError, Unavailable

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["connected"]

ADDRESS = "http://127.0.0.1"
"""The address of the application, which is not connected to."""

TIMEOUT_S = 600.0

IN_A_COMMAND: dict[str, Any] = {
    "engine": "inline",
    "compiled": False,  # runs evaluate without compiled passes
    "fronts": 1,
    "api_key": None,
    "api_keys_file": None,
    "tls_cert": None,
    "tls_key": None,
    "tls_client_ca": None,
    "cors_origins": None,
    "allowed_hosts": None,
    "root_path": None,
    "access_log": "none",
    "log_level": "warning",
    "tracing": False,
}
"""The settings of the service inside a command; all others are those of the environment."""


@contextmanager
def connected(url: str | None) -> Iterator[LossClient]:
    """Yield a client of the service at an address, or of the service inside this command.

    Args:
        url: The address; None for the service inside this command.
    """
    if url is not None:
        with connect(url) as client:
            yield client
        return
    with _application() as http:
        try:
            # Without retries: a store that another service holds stays held.
            yield LossClient(ADDRESS, timeout_s=TIMEOUT_S, retries=0, http=http)
        except LossdError as error:
            error.request_id = None  # there is no log to look for it in
            if isinstance(error, Unavailable):
                error.detail += _remedy()
            raise


@contextmanager
def _application() -> Iterator[httpx.Client]:
    """Run the application in a thread's event loop, and yield a client whose requests are handed to it."""
    from lossd.cli.serve import read_settings
    from lossd.configuration.preflight import StartError

    try:
        settings, _ = read_settings(IN_A_COMMAND)
    except StartError as error:
        raise click.UsageError(str(error)) from None
    started: Future[_Transport] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_run(settings, started)), name="lossd-service")
    thread.start()
    try:
        transport = started.result()
        with httpx.Client(transport=transport) as http:
            yield http
    finally:
        if started.exception() is None:  # Ctrl-C may come before it has started
            started.result().stop()
        thread.join()


async def _run(settings: Settings, started: Future[_Transport]) -> None:
    """Run the application until its transport is stopped."""
    try:
        from lossd.api import create_app
        from lossd.engine.inline import InlineEngine

        app = create_app(settings, InlineEngine(settings, lazy=True))
        async with app.router.lifespan_context(app):
            transport = _Transport(httpx.ASGITransport(app), asyncio.get_running_loop())
            started.set_result(transport)
            await transport.stopped.wait()
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


class _Transport(httpx.BaseTransport):
    """Hands the requests of any thread to an application in an event loop.

    Args:
        application: The application's transport.
        loop: The event loop.
    """

    def __init__(self, application: httpx.ASGITransport, loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._loop = loop
        self.stopped = asyncio.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the application's answer."""
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop).result()

    def stop(self) -> None:
        """End the application."""
        self._loop.call_soon_threadsafe(self.stopped.set)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._application.handle_async_request(request)
        content = httpx.ByteStream(await answer.aread())
        return httpx.Response(answer.status_code, headers=answer.headers, stream=content)


def _remedy() -> str:
    """Return how to reach the services that run on this machine, as the end of a sentence; empty if there are none."""
    from lossd.fronts.health import list_services

    try:
        urls = [f"http://127.0.0.1:{port}" for _, port in list_services()]
    except OSError:  # no Linux
        return ""
    return f"; a service runs on this machine: use --url {' or --url '.join(urls)}" if urls else ""
