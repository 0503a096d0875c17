"""Compressed bodies, both ways: zstd, gzip, and deflate in the zlib format that HTTP means by it.

A compressed body is unpacked piece by piece while it arrives, so that it is checked, limited and written to shared
memory as if it had come as it was: what it says of its size is not taken on trust.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from typing import Any

from lossd_client.errors import MalformedBody, UnsupportedMediaType
from lossd_client.wire.quoting import quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ENCODINGS", "MIN_BYTES", "Unpacker", "accepted", "packed"]

ENCODINGS = (b"zstd", b"gzip", b"deflate")
"""In the order in which answers prefer them."""

WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
LEVEL = 1
# The largest window that RFC 9659 lets a sender use; without a limit, a frame of a few bytes may ask for gigabytes.
ZSTD_WINDOW_LOG = 23

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


class Unpacker:
    """A body on its way out of its Content-Encoding.

    Args:
        encoding: The header's value, in lower case.

    Attributes:
        unread: Whether there is more of the compressed body to come.
        size: Bytes of the body so far.

    Raises:
        UnsupportedMediaType: Another encoding.
    """

    def __init__(self, encoding: bytes) -> None:
        if encoding not in ENCODINGS:
            raise UnsupportedMediaType(
                f"Content-Encoding {quoted(encoding.decode('latin-1'))} is not read; zstd, gzip and deflate are"
            )
        self._stream: Any
        if encoding == b"zstd":
            self._stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
        else:
            self._stream = zlib.decompressobj(WINDOW_BITS[encoding])
        self._compressed = bytearray()
        self._hungry = True
        self.unread = True
        self.size = 0

    @property
    def hungry(self) -> bool:
        """Whether it should be fed before it is asked for a piece."""
        return self.unread and self._hungry and len(self._compressed) < PIECE_INPUT_BYTES

    @property
    def done(self) -> bool:
        """Whether all of the body has been handed out."""
        return not self.unread and bool(self._stream.eof)

    def feed(self, chunk: bytes, *, unread: bool) -> None:
        """Take what has arrived."""
        self._compressed += chunk
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
        stream, chunk = self._stream, bytes(self._compressed)
        self._compressed.clear()
        piece = b""
        if not stream.eof:
            try:
                piece = stream.decompress(chunk, most)
            except (zlib.error, zstd.ZstdError) as error:
                raise MalformedBody(f"the body is not what its Content-Encoding says: {error}") from None
            chunk = stream.unused_data
            if not stream.eof:
                self._compressed += getattr(stream, "unconsumed_tail", b"")  # zstd keeps it to itself
            self._hungry = len(piece) < most or stream.eof
            if not (stream.eof or self.unread) and self._hungry:
                raise MalformedBody("the body ends before its compressed data does")
        if stream.eof and chunk:
            raise MalformedBody(f"{len(chunk)} bytes follow the body's compressed data")
        self.size += len(piece)
        return bytes(piece)


def accepted(header: bytes | None, among: tuple[bytes, ...] = ENCODINGS) -> bytes | None:
    """The encoding to answer in, by the request's Accept-Encoding; None for none."""
    if header is None:
        return None
    welcome = set()
    for item in header.lower().split(b","):
        name, *options = (part.strip() for part in item.split(b";"))
        if not any(option.replace(b" ", b"") in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000") for option in options):
            welcome.add(name)
    return next((name for name in among if name in welcome), None)


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
