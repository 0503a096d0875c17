"""Content-Encoding of requests and answers: zstd, gzip, and deflate in the zlib format (RFC 9110, section 8.4.1).

A compressed body is decompressed piece by piece while it arrives. It is checked, limited and written to shared memory
like any other body. The size that its header states is not trusted.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from lossd.api.http.negotiation import combined, parse_weights
from lossd_client.errors import MalformedBody, UnsupportedMediaType
from lossd_client.wire.quoting import quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "ENCODINGS",
    "MIN_BYTES",
    "CompressedPages",
    "Decompressor",
    "choose_encoding",
    "compress",
    "compress_inline",
    "content_encoding",
]

ENCODINGS = (b"zstd", b"gzip", b"deflate")
"""All encodings, in the order in which answers prefer them."""

ALIASES = {b"x-gzip": b"gzip"}  # RFC 9110, section 8.4.1.3
WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
LEVEL = 1
# The largest window that RFC 9659 allows. Without a limit, a frame of a few bytes may request gigabytes.
ZSTD_WINDOW_LOG = 23
# Members of gzip and frames of zstd may follow one another. Each needs a new decompressor, however short it is.
MAX_MEMBERS = 1 << 15

# An answer below MIN_BYTES fits one packet without compression. Binary numbers hardly shrink. An answer is sent as it
# is if a sample of it does not shrink to WORTHWHILE of its size.
MIN_BYTES = 1 << 10
MIN_BINARY_BYTES = 64 << 10
SAMPLE_BYTES = 64 << 10
WORTHWHILE = 0.9

# Up to the INLINE sizes, the event loop compresses and decompresses by itself. A thread does longer work, without the
# interpreter's lock, in pieces that are large enough to be worth the switch.
INLINE_INPUT_BYTES = 4 << 10
INLINE_OUTPUT_BYTES = 64 << 10
PIECE_INPUT_BYTES = 256 << 10
PIECE_OUTPUT_BYTES = 1 << 20


def content_encoding(header: bytes) -> bytes | None:
    """Return the encoding that a Content-Encoding names, by its usual name; None if the body is not encoded."""
    names = [name for item in header.lower().split(b",") if (name := item.strip()) not in (b"", b"identity")]
    name = b", ".join(names)
    return ALIASES.get(name, name) or None


class Decompressor:
    """Decompresses one body while it arrives.

    Args:
        encoding: As :func:`content_encoding` returns it.

    Attributes:
        unread: Whether more of the compressed body is to come.
        size: Decompressed bytes so far.
        taken: Compressed bytes so far.

    Raises:
        UnsupportedMediaType: The encoding is unknown.
    """

    def __init__(self, encoding: bytes) -> None:
        if encoding not in ENCODINGS:
            raise UnsupportedMediaType(
                f"Content-Encoding {quoted(encoding.decode('latin-1'))} is not read; zstd, gzip and deflate are"
            )
        self._encoding = encoding
        self._stream = _decompressor(encoding)
        self._members = 1
        self._compressed = bytearray()
        self._needs_input = True
        self.size = self.taken = 0
        self.unread = True

    @property
    def needs_input(self) -> bool:
        """Whether :meth:`feed` should be called before :meth:`piece`."""
        return self.unread and self._needs_input and len(self._compressed) < PIECE_INPUT_BYTES

    @property
    def done(self) -> bool:
        """Whether all of the body has been returned."""
        return not (self.unread or self._compressed) and bool(self._stream.eof)

    def feed(self, chunk: bytes, *, unread: bool) -> None:
        """Add compressed bytes that have arrived."""
        self._compressed += chunk
        self.taken += len(chunk)
        self.unread = unread

    async def piece(self) -> bytes:
        """Return the next bytes of the body, at most 1 MiB; none if more must arrive first.

        Raises:
            MalformedBody: The bytes are not of the encoding.
        """
        if len(self._compressed) <= INLINE_INPUT_BYTES and self._needs_input:
            return self._decompress(INLINE_OUTPUT_BYTES)
        return await asyncio.to_thread(self._decompress, PIECE_OUTPUT_BYTES)

    def _decompress(self, limit: int) -> bytes:
        """Return at most ``limit`` bytes."""
        chunk, pieces, room = bytes(self._compressed), [], limit
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
                chunk = getattr(stream, "unconsumed_tail", b"")  # zstd's decompressor keeps its rest
                break
            chunk = stream.unused_data
        self._compressed[:] = chunk
        self._needs_input = room > 0 or (self._stream.eof and not chunk)
        if not (self._stream.eof or self.unread) and self._needs_input:
            raise MalformedBody("the body ends before its compressed data does")
        self.size += limit - room
        return b"".join(pieces)

    def _begin(self, rest: bytes) -> None:
        """Begin the next member or frame with the bytes that are left."""
        self._members += 1
        if not rest.startswith(FIRST_BYTES[self._encoding]):
            raise MalformedBody(f"{len(rest)} bytes follow the body's compressed data")
        if self._members > MAX_MEMBERS:
            raise MalformedBody(f"the body's compressed data has more than {MAX_MEMBERS} parts")
        self._stream = _decompressor(self._encoding)


# The first byte of a member of gzip and of a frame of zstd, ordinary or skippable. Deflate has one part only.
FIRST_BYTES: dict[bytes, tuple[bytes, ...]] = {
    b"gzip": (b"\x1f",),
    b"zstd": (b"\x28", *(bytes([0x50 + number]) for number in range(16))),
    b"deflate": (),
}


def _decompressor(encoding: bytes) -> Any:
    if encoding == b"zstd":
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
    return zlib.decompressobj(WINDOW_BITS[encoding])


def choose_encoding(header: bytes | None, offered: tuple[bytes, ...] = ENCODINGS) -> bytes | None:
    """Return the encoding of the answer, by the request's Accept-Encoding; None for none.

    It is the one of the greatest weight; of equal ones, the first offered. An encoding that is not named has the weight
    of ``*``.
    """
    if header is None:
        return None
    stated = parse_weights(header)
    default = stated.get(b"*", 0.0)
    weights = {name: stated.get(name, default) for name in offered}
    for alias, name in ALIASES.items():
        if name in weights and name not in stated:
            weights[name] = stated.get(alias, default)
    best = max(offered, key=weights.__getitem__)
    return best if weights[best] > 0 and weights[best] >= stated.get(b"identity", 0.0) else None


_ACCEPT_ENCODING = frozenset((b"accept-encoding",))


class CompressedPages(GZipMiddleware):
    """Starlette's middleware, with the weights in Accept-Encoding. It looks for the word gzip only."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, compressed if the client accepts gzip."""
        if scope["type"] == "http":
            headers = MutableHeaders(raw=list(scope["headers"]))
            accept_encoding = combined(scope["headers"], _ACCEPT_ENCODING).get(b"accept-encoding")
            headers["accept-encoding"] = "gzip" if choose_encoding(accept_encoding, (b"gzip",)) else "identity"
            scope = {**scope, "headers": headers.raw}
        await super().__call__(scope, receive, send)


async def compress(
    pieces: list[bytes | memoryview], accept_encoding: bytes, *, binary: bool
) -> tuple[bytes | None, list[bytes | memoryview]]:
    """Return an answer's encoding and its compressed pieces; None and the given pieces if compression does not pay.

    Args:
        pieces: The body. It must not change until this returns.
        accept_encoding: The request's Accept-Encoding.
        binary: Whether the body is binary numbers rather than text.
    """
    found = compress_inline(pieces, accept_encoding, binary=binary)
    if found is not None:
        return found
    encoding, size = choose_encoding(accept_encoding), sum(map(len, pieces))
    assert encoding is not None
    body = await asyncio.to_thread(_compress, pieces, size, encoding)
    return (None, pieces) if body is None else (encoding, [body])


def compress_inline(
    pieces: list[bytes | memoryview], accept_encoding: bytes, *, binary: bool
) -> tuple[bytes | None, list[bytes | memoryview]] | None:
    """Return what :func:`compress` returns; None if that takes so long that a thread should do it."""
    size = sum(map(len, pieces))
    if size < (MIN_BINARY_BYTES if binary else MIN_BYTES):
        return None, pieces
    if (encoding := choose_encoding(accept_encoding)) is None:
        return None, pieces
    if size > INLINE_OUTPUT_BYTES:
        return None
    body = _compress(pieces, size, encoding)
    return (None, pieces) if body is None else (encoding, [body])


def _compress(pieces: list[bytes | memoryview], size: int, encoding: bytes) -> bytes | None:
    if size > SAMPLE_BYTES:
        largest = max(pieces, key=len)
        sample = largest[:SAMPLE_BYTES]
        stream = _compressor(encoding)
        if len(stream.compress(sample)) + len(stream.flush()) > WORTHWHILE * len(sample):
            return None
    stream = _compressor(encoding)
    body = b"".join([*(stream.compress(piece) for piece in pieces), stream.flush()])
    return body if len(body) < size else None


def _compressor(encoding: bytes) -> Any:
    return zstd.ZstdCompressor(LEVEL) if encoding == b"zstd" else zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
