"""Compressed bodies, both ways: zstd, gzip, and deflate in the zlib format that HTTP means by it.

A compressed body is unpacked piece by piece while it arrives, so that it is checked, limited and written to shared
memory as if it had come as it was: what it says of its size is not taken on trust.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from lossd.api.http.negotiation import weights
from lossd_client.errors import MalformedBody, UnsupportedMediaType
from lossd_client.wire.quoting import quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ENCODINGS", "MIN_BYTES", "PackedPages", "Unpacker", "accepted", "encoding_of", "packed"]

ENCODINGS = (b"zstd", b"gzip", b"deflate")
"""In the order in which answers prefer them."""

ALIASES = {b"x-gzip": b"gzip"}  # RFC 9110, section 8.4.1.3
WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
LEVEL = 1
# The largest window that RFC 9659 lets a sender use; without a limit, a frame of a few bytes may ask for gigabytes.
ZSTD_WINDOW_LOG = 23
# Members of gzip and frames of zstd may follow one another. Each needs a decompressor of its own, however short it is.
MAX_MEMBERS = 1 << 15

# Below MIN_BYTES an answer goes in one packet either way, and so much of binary numbers hardly shrinks at all. Where a
# sample shrinks less than to WORTHWHILE of itself, the rest is not worth the time.
MIN_BYTES = 1 << 10
MIN_BINARY_BYTES = 64 << 10
SAMPLE_BYTES = 64 << 10
WORTHWHILE = 0.9

# What a loop can do without keeping others waiting; longer work goes to a thread, where compressors let go of the
# interpreter, in pieces that are worth the way there.
INLINE_INPUT_BYTES = 4 << 10
INLINE_OUTPUT_BYTES = 64 << 10
PIECE_INPUT_BYTES = 256 << 10
PIECE_OUTPUT_BYTES = 1 << 20


def encoding_of(header: bytes) -> bytes | None:
    """The encoding that a Content-Encoding names, under its usual name; None where the body is as it is."""
    names = [name for item in header.lower().split(b",") if (name := item.strip()) not in (b"", b"identity")]
    name = b", ".join(names)
    return ALIASES.get(name, name) or None


class Unpacker:
    """A body on its way out of its Content-Encoding.

    Args:
        encoding: Of :func:`encoding_of`.

    Attributes:
        unread: Whether there is more of the compressed body to come.
        size: Bytes of the body so far.
        taken: Bytes of what it is unpacked from so far.

    Raises:
        UnsupportedMediaType: Another encoding.
    """

    def __init__(self, encoding: bytes) -> None:
        if encoding not in ENCODINGS:
            raise UnsupportedMediaType(
                f"Content-Encoding {quoted(encoding.decode('latin-1'))} is not read; zstd, gzip and deflate are"
            )
        self._encoding = encoding
        self._stream = _unpacker(encoding)
        self._members = 1
        self._compressed = bytearray()
        self._hungry = True
        self.size = self.taken = 0
        self.unread = True

    @property
    def hungry(self) -> bool:
        """Whether it should be fed before it is asked for a piece."""
        return self.unread and self._hungry and len(self._compressed) < PIECE_INPUT_BYTES

    @property
    def done(self) -> bool:
        """Whether all of the body has been handed out."""
        return not (self.unread or self._compressed) and bool(self._stream.eof)

    def feed(self, chunk: bytes, *, unread: bool) -> None:
        """Take what has arrived."""
        self._compressed += chunk
        self.taken += len(chunk)
        self.unread = unread

    async def piece(self) -> bytes:
        """The next bytes of the body, at most a MiB; none where more has to arrive first.

        Raises:
            MalformedBody: Not what the encoding says.
        """
        if len(self._compressed) <= INLINE_INPUT_BYTES and self._hungry:
            return self._unpack(INLINE_OUTPUT_BYTES)
        return await asyncio.to_thread(self._unpack, PIECE_OUTPUT_BYTES)

    def _unpack(self, most: int) -> bytes:
        chunk, pieces, room = bytes(self._compressed), [], most
        while room > 0 and (chunk or not self._stream.eof):
            if self._stream.eof:
                self._begin(chunk)
            stream = self._stream
            try:
                pieces.append(stream.decompress(chunk, room))
            except (zlib.error, zstd.ZstdError) as error:
                raise MalformedBody(f"the body is not what its Content-Encoding says: {error}") from None
            room -= len(pieces[-1])
            if not stream.eof:
                chunk = getattr(stream, "unconsumed_tail", b"")  # zstd keeps it to itself
                break
            chunk = stream.unused_data
        self._compressed[:] = chunk
        self._hungry = room > 0 or (self._stream.eof and not chunk)
        if not (self._stream.eof or self.unread) and self._hungry:
            raise MalformedBody("the body ends before its compressed data does")
        self.size += most - room
        return b"".join(pieces)

    def _begin(self, rest: bytes) -> None:
        """Go on with the next member or frame, which begins with what is left."""
        self._members += 1
        if not rest.startswith(BEGINS[self._encoding]):
            raise MalformedBody(f"{len(rest)} bytes follow the body's compressed data")
        if self._members > MAX_MEMBERS:
            raise MalformedBody(f"the body's compressed data has more than {MAX_MEMBERS} parts")
        self._stream = _unpacker(self._encoding)


# The first byte of a member of gzip, and of frames of zstd, which may be skippable ones. Deflate has nothing like it.
BEGINS: dict[bytes, tuple[bytes, ...]] = {
    b"gzip": (b"\x1f",),
    b"zstd": (b"\x28", *(bytes([0x50 + of]) for of in range(16))),
    b"deflate": (),
}


def _unpacker(encoding: bytes) -> Any:
    if encoding == b"zstd":
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
    return zlib.decompressobj(WINDOW_BITS[encoding])


def accepted(header: bytes | None, among: tuple[bytes, ...] = ENCODINGS) -> bytes | None:
    """The encoding to answer in, by the request's Accept-Encoding; None for none.

    The one of the greatest weight, of equals the first of ``among``. What is not named weighs what ``*`` does.
    """
    if header is None:
        return None
    welcome = weights(header)
    others = welcome.get(b"*", 0.0)
    of = {name: welcome.get(name, others) for name in among}
    for alias, name in ALIASES.items():
        if name in of and name not in welcome:
            of[name] = welcome.get(alias, others)
    best = max(among, key=of.__getitem__)
    return best if of[best] > 0 and of[best] >= welcome.get(b"identity", 0.0) else None


class PackedPages(GZipMiddleware):
    """Starlette's, which looks for the word gzip alone, told what the weights in Accept-Encoding say."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it answered."""
        if scope["type"] == "http":
            headers = MutableHeaders(raw=list(scope["headers"]))
            welcome = headers.get("accept-encoding", "").encode("latin-1")
            headers["accept-encoding"] = "gzip" if accepted(welcome, (b"gzip",)) else "identity"
            scope = {**scope, "headers": headers.raw}
        await super().__call__(scope, receive, send)


async def packed(
    pieces: list[bytes | memoryview], welcome: bytes, *, binary: bool
) -> tuple[bytes | None, list[bytes | memoryview]]:
    """The encoding of an answer and its pieces in it; None and the pieces as they are where that is not worth while.

    Args:
        pieces: Of the body. They must stay as they are until this returns.
        welcome: The request's Accept-Encoding.
        binary: Whether they are numbers as they are in memory, rather than text.
    """
    encoding, size = accepted(welcome), sum(len(piece) for piece in pieces)
    if encoding is None or size < (MIN_BINARY_BYTES if binary else MIN_BYTES):
        return None, pieces
    if size <= INLINE_OUTPUT_BYTES:
        body = _pack(pieces, size, encoding)
    else:
        body = await asyncio.to_thread(_pack, pieces, size, encoding)
    return (None, pieces) if body is None else (encoding, [body])


def _pack(pieces: list[bytes | memoryview], size: int, encoding: bytes) -> bytes | None:
    if size > SAMPLE_BYTES:
        largest = max(pieces, key=len)
        sample = largest[:SAMPLE_BYTES]
        stream = _packer(encoding)
        if len(stream.compress(sample)) + len(stream.flush()) > WORTHWHILE * len(sample):
            return None
    stream = _packer(encoding)
    body = b"".join([*(stream.compress(piece) for piece in pieces), stream.flush()])
    return body if len(body) < size else None


def _packer(encoding: bytes) -> Any:
    return zstd.ZstdCompressor(LEVEL) if encoding == b"zstd" else zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
