"""Compressed bodies, both ways: gzip, and deflate in the zlib format that HTTP means by it."""

from __future__ import annotations

import asyncio
import zlib

from lossd_client.errors import MalformedBody, TooLarge, UnsupportedMediaType

__all__ = ["MIN_BYTES", "accepted", "compressed", "decompressed"]

WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
LEVEL = 1

# Below MIN_BYTES an answer goes in one packet either way. Where a sample shrinks less than to WORTHWHILE of itself, the
# rest is not worth the time.
MIN_BYTES = 1 << 10
SAMPLE_BYTES = 64 << 10
WORTHWHILE = 0.9

# What a loop can do without keeping others waiting; longer work goes to a thread (zlib lets go of the interpreter).
INLINE_INPUT_BYTES = 4 << 10
INLINE_OUTPUT_BYTES = 64 << 10


async def decompressed(body: bytes | bytearray, encoding: bytes, limit: int) -> bytes | bytearray:
    """The body as it was before its Content-Encoding.

    Args:
        body: As it arrived.
        encoding: The header's value; identity for none.
        limit: The most bytes it may have.

    Raises:
        UnsupportedMediaType: Another encoding.
        MalformedBody: Not what the encoding says.
        TooLarge: Over the limit; no more than that is ever held.
    """
    if encoding == b"identity":
        return body
    bits = WINDOW_BITS.get(encoding)
    if bits is None:
        raise UnsupportedMediaType(f"Content-Encoding {encoding.decode('latin-1')} is not read; gzip and deflate are")
    if len(body) <= INLINE_INPUT_BYTES:
        return _inflate(body, bits, limit)
    return await asyncio.to_thread(_inflate, body, bits, limit)


def _inflate(body: bytes | bytearray, bits: int, limit: int) -> bytes:
    stream = zlib.decompressobj(bits)
    try:
        whole = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedBody(f"the body is not what its Content-Encoding says: {error}") from None
    if len(whole) > limit:
        raise TooLarge(f"the body has more than {limit} bytes when decompressed (setting max_body_bytes)")
    if not stream.eof:
        raise MalformedBody("the body ends before its compressed data does")
    if stream.unused_data:
        raise MalformedBody(f"{len(stream.unused_data)} bytes follow the body's compressed data")
    return whole


def accepted(header: bytes | None) -> bytes | None:
    """The encoding to answer in, by the request's Accept-Encoding; None for none."""
    if header is None:
        return None
    welcome = set()
    for item in header.lower().split(b","):
        name, *options = (part.strip() for part in item.split(b";"))
        if not any(option.replace(b" ", b"") in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000") for option in options):
            welcome.add(name)
    return next((name for name in WINDOW_BITS if name in welcome), None)


async def compressed(pieces: list[bytes | memoryview], encoding: bytes) -> bytes | None:
    """The body of these pieces compressed, or None where that is not worth while.

    Args:
        pieces: Of the body. They must stay as they are until this returns.
        encoding: Of :func:`accepted`.
    """
    size = sum(len(piece) for piece in pieces)
    if size < MIN_BYTES:
        return None
    if size <= INLINE_OUTPUT_BYTES:
        return _deflate(pieces, size, WINDOW_BITS[encoding])
    return await asyncio.to_thread(_deflate, pieces, size, WINDOW_BITS[encoding])


def _deflate(pieces: list[bytes | memoryview], size: int, bits: int) -> bytes | None:
    if size > SAMPLE_BYTES:
        largest = max(pieces, key=len)
        sample = largest[:SAMPLE_BYTES]
        if len(zlib.compress(sample, LEVEL)) > WORTHWHILE * len(sample):
            return None
    stream = zlib.compressobj(LEVEL, wbits=bits)
    body = b"".join([*(stream.compress(piece) for piece in pieces), stream.flush()])
    return body if len(body) < size else None
