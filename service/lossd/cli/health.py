"""``lossd health``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lossd.cli.help import Command
from lossd.cli.options import CACERT, CACERT_KEY, AddressType
from lossd.cli.wording import say
from lossd_client.errors import LossdError

if TYPE_CHECKING:
    from lossd.fronts.health import HealthAnswer

__all__ = ["COMMANDS"]

UNWELL = 1
READY, LIVE = "/health/ready", "/health/live"

EXAMPLES = """
lossd health
lossd health --port 9000 --live
lossd health --url https://loss.example/tools
"""


class _NoAnswerError(LossdError):
    """The service does not answer; one sentence says why."""


@click.command(cls=Command, examples=EXAMPLES, short_help="Ask whether a service is ready.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="The port of a service on this machine.")
@click.option(
    "--url",
    type=AddressType(),
    metavar="URL",
    help="The address of a service elsewhere, with the proxy's path, if any.",
)
@CACERT
@click.option("--live", is_flag=True, help="Ask whether the service is alive, not whether it is ready.")
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.1), metavar="SECONDS")
def health(port: int | None, url: str | None, live: bool, timeout: float) -> None:
    """Ask whether a service is ready: the one on this machine, however it listens, or the one at --url.

    If several run on this machine and --port is not given, LOSSD_PORT names one. Exit status: 0 if it is ready, 1 if it
    is not, 3 if it does not answer.
    """
    if url is not None and port is not None:
        raise click.UsageError("--url is a service's address, --port one on this machine: give only one of them")
    if url is not None and "," in url:
        raise click.UsageError("--url names several addresses, and their health may differ: ask one after the other")
    path = LIVE if live else READY
    name, answer = _ask_url(url, path, timeout) if url is not None else _ask_socket(port, path, timeout)
    state = "live" if live else "ready"
    if answer.status != 200:
        say(f"{name} is not {state}: {_reason(answer)}")
        sys.exit(UNWELL)
    click.echo(f"{name} is {state}")


def _ask_socket(port: int | None, path: str, timeout_s: float) -> tuple[str, HealthAnswer]:
    from http.client import HTTPException

    from lossd.fronts.health import check

    address, port = _choose(port)
    name = f"the service on port {port}"
    try:
        return name, check(address, port, path, timeout_s)
    except TimeoutError:
        raise _NoAnswerError(f"{name} does not answer within {timeout_s:g} seconds") from None
    except (OSError, HTTPException) as error:
        raise _NoAnswerError(f"{name} does not answer: {error}") from None


def _choose(port: int | None) -> tuple[str, int]:
    """Return address and port of the chosen service."""
    import os

    from lossd.fronts.health import list_services

    services = list_services()
    if port is None and len(services) > 1:
        text = os.environ.get("LOSSD_PORT", "")
        port = int(text) if text.isdecimal() else 8000
    chosen = [service for service in services if port in (None, service[1])]
    if not chosen:
        where = "" if port is None else f" on port {port}"
        others = f"; there are some on {', '.join(str(p) for _, p in services)}" if services else ""
        raise _NoAnswerError(f"no service listens{where} on this machine{others}")
    return chosen[0]


def _ask_url(url: str, path: str, timeout_s: float) -> tuple[str, HealthAnswer]:
    import httpx

    from lossd.fronts.health import HealthAnswer
    from lossd_client.addresses import LOCAL, socket_path
    from lossd_client.connections import trusted

    socket = socket_path(url)
    base = url if socket is None else LOCAL
    try:
        cacert = click.get_current_context().meta.get(CACERT_KEY)
        transport = None if socket is None else httpx.HTTPTransport(uds=socket)
        with httpx.Client(transport=transport, verify=trusted(cacert)) as http:
            found = http.get(base.rstrip("/") + path, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise _NoAnswerError(f"{url} does not answer: {error}") from None
    return url, HealthAnswer(found.status_code, found.content)


def _reason(answer: HealthAnswer) -> str:
    import json

    try:
        return str(json.loads(answer.body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"it answers with status {answer.status}"


COMMANDS = (health,)
