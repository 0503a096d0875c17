"""Uvicorn still has every undocumented name that lossd uses."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from unittest.mock import Mock

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from lossd.api.http import uvicorn_internals
from lossd.api.http.uvicorn_internals import ATTRIBUTES

SERVICE = Path(__file__).parents[2] / "service"


async def _instances() -> dict[str, object]:
    """Return one object of each class, made as uvicorn makes it."""
    config = uvicorn.Config(Mock(), log_config=None)
    config.load()
    state, transport, log = ServerState(), Mock(), logging.getLogger("test")
    protocol = HttpToolsProtocol(config, state, {})
    protocol.connection_made(transport)
    protocol.on_message_begin()
    protocol.on_url(b"/")
    cycle = RequestResponseCycle(
        scope={}, transport=transport, flow=FlowControl(transport), logger=log, access_logger=log, access_log=False,
        default_headers=[], message_event=asyncio.Event(), expect_100_continue=False, keep_alive=True,
        on_response=lambda: None,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)  # by startup
    server.servers = []  # likewise
    objects = (FlowControl(transport), cycle, protocol, server, config, state)
    return {type(one).__name__: one for one in objects}


def test_every_name_is_there() -> None:
    """A new release of uvicorn that moves one of them fails here, by name."""
    instances = asyncio.run(_instances())
    missing = [
        f"{kind}.{name}" for kind, names in ATTRIBUTES.items() for name in names if not hasattr(instances[kind], name)
    ]
    assert instances.keys() == ATTRIBUTES.keys()
    assert missing == []


def test_one_module_imports_them() -> None:
    users = [
        path
        for path in SERVICE.rglob("*.py")
        if re.search(r"^ *(from|import) uvicorn\.(protocols|server)", path.read_text(), re.MULTILINE)
    ]
    assert users == [Path(uvicorn_internals.__file__)]
