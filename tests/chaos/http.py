"""A client that can misbehave: raw HTTP/1.1 over a socket, as little of it as the service answers in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Response:
    """An answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """What went wrong, as one word; empty where nothing did."""
        if self.status == 200:
            return ""
        document: dict[str, Any] = json.loads(self.body)
        return document.get("type", f"/v2/{self.status}").rpartition("/")[2]


class BrokenError(Exception):
    """The connection ended before an answer was whole."""


def head(method: str, path: str, headers: Mapping[str, str], length: int | None = None) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


class Connection:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, receive_bytes: int | None = None) -> Connection:
        """Connect.

        Args:
            port: On this machine.
            receive_bytes: Size of the socket's buffer for what arrives, for a reader that is to be felt as slow.
        """
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            limit = LIMIT_BYTES if receive_bytes is None else receive_bytes
            return cls(*await asyncio.open_connection(sock=connection, limit=limit))
        except BaseException:
            connection.close()
            raise

    @property
    def port(self) -> int:
        """The service's port."""
        port: int = self.writer.get_extra_info("peername")[1]
        return port

    async def send(self, data: bytes) -> None:
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError as error:
            raise BrokenError(f"while sending: {error}") from None

    async def answer(self) -> Response:
        """Read one answer.

        Raises:
            BrokenError: There is none.
        """
        try:
            text = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = text.decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await self.reader.readexactly(int(headers["content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise BrokenError(f"while reading: {error}") from None
        return Response(int(status.split(" ")[1]), headers, body)

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        """Send a request and read its answer."""
        await self.send(head(method, path, headers, len(body)) + body)
        return await self.answer()

    async def ended(self) -> None:
        """Wait until the service has closed the connection."""
        with contextlib.suppress(OSError):
            while await self.reader.read(1 << 16):
                pass

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Be gone, at once and rudely: unread bytes make it a reset."""
        self.writer.transport.abort()
