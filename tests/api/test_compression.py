"""Compressed requests and answers of ``/v1`` and ``/v2``: the same answers and limits, and bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd.api.http import compression
from lossd.api.http.compression import ENCODINGS, PIECE_OUTPUT_BYTES, Decompressor
from lossd_client.errors import MalformedBody
from lossd_client.wire import Tensor, safetensors
from serving import Running, running

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACK: dict[str, Callable[[bytes], bytes]] = {"zstd": zstd.compress, "gzip": gzip.compress, "deflate": zlib.compress}
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstd.decompress,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}
BINARY = "application/vnd.safetensors"
LENGTH = "Inference-Header-Content-Length"
LIMIT = 512 << 10


@pytest.fixture(scope="module")
def small() -> Iterator[httpx.Client]:
    """A service whose limits are near, and which streams what is over 16 KiB."""
    with (
        running(engine="inline", max_body_bytes=LIMIT, stream_bytes=16 << 10) as service,
        httpx.Client(base_url=service.url, timeout=30) as http,
    ):
        yield http


def arrays(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    return {name: random.integers(0, 3, rows).astype(np.float32) for name in ("prediction", "target")}


def body(door: str, rows: int, *, binary: bool) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of mse over so many rows."""
    values = arrays(rows)
    if door == "/v1":
        if not binary:
            document = {"loss": {"name": "mse"}, "inputs": {name: a.tolist() for name, a in values.items()}}
            return "/v1/evaluate", {"Content-Type": "application/json"}, json.dumps(document).encode()
        tensors = {name: Tensor.of(a) for name, a in values.items()}
        pieces = safetensors.encode(tensors, {"request": '{"loss": {"name": "mse"}}'})
        return "/v1/evaluate", {"Content-Type": BINARY}, b"".join(map(bytes, pieces))
    inputs: list[dict[str, Any]] = [{"name": n, "shape": a.shape, "datatype": "FP32"} for n, a in values.items()]
    for entry, a in zip(inputs, values.values(), strict=True):
        entry |= {"parameters": {"binary_data_size": a.nbytes}} if binary else {"data": a.tolist()}
    document = {"inputs": inputs, "parameters": {"binary_data_output": binary}}
    text = json.dumps(document).encode()
    data = b"".join(a.tobytes() for a in values.values()) if binary else b""
    return "/v2/models/mse/infer", {LENGTH: str(len(text))} if binary else {}, text + data


# In


@pytest.mark.parametrize("rows", [3, 3000, 30_000])  # inline; streamed where binary; more than one piece of a stream
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("door", ["/v1", "/v2"])
def test_a_compressed_body_has_the_answer_of_the_body(small: httpx.Client, door: str, binary: bool, rows: int) -> None:
    path, headers, plain = body(door, rows, binary=binary)
    identity_headers = {**headers, "Accept-Encoding": "identity"}
    expected = small.post(path, content=plain, headers=identity_headers)
    assert expected.is_success, expected.text
    for encoding, pack in PACK.items():
        content = pack(plain)
        assert len(content) < len(plain) or rows == 3
        found = small.post(path, content=content, headers={**identity_headers, "Content-Encoding": encoding.upper()})
        assert found.content == expected.content, encoding
        assert "content-encoding" not in found.headers
        chunks = [content[i : i + 1000] for i in range(0, len(content), 1000)]
        chunked = small.post(path, content=iter(chunks), headers={**identity_headers, "Content-Encoding": encoding})
        assert chunked.content == expected.content, encoding


def bomb(door: str, size: int) -> tuple[str, dict[str, str], bytes]:
    """A body that says it has tensors of this size, with all of it in zeros."""
    rows = size // 8
    if door == "/v1":
        metadata = {"request": '{"loss": {"name": "mse"}}'}
        entries = [("prediction", "float32", (rows,), 4 * rows), ("target", "float32", (rows,), 4 * rows)]
        return (
            "/v1/evaluate",
            {"Content-Type": BINARY},
            bytes(safetensors.encode_header(entries, metadata)) + bytes(size),
        )
    inputs = [
        {"name": n, "shape": [rows], "datatype": "FP32", "parameters": {"binary_data_size": 4 * rows}}
        for n in ("prediction", "target")
    ]
    text = json.dumps({"inputs": inputs}).encode()
    return "/v2/models/mse/infer", {LENGTH: str(len(text))}, text + bytes(size)


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("door", ["/v1", "/v2"])
def test_a_bomb_is_refused_by_what_it_says_it_is(
    small: httpx.Client, door: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[int] = []
    piece = Decompressor.piece

    async def watched(self: Decompressor) -> bytes:
        found = await piece(self)
        unpacked.append(len(found))
        return found

    monkeypatch.setattr(Decompressor, "piece", watched)
    path, headers, plain = bomb(door, 16 << 20)
    content = PACK[encoding](plain)
    assert len(content) < 20_000
    answer = small.post(path, content=content, headers={**headers, "Content-Encoding": encoding})
    assert answer.status_code == 413
    assert str(LIMIT) in answer.text
    assert sum(unpacked) <= PIECE_OUTPUT_BYTES, "16 MiB were there to be unpacked"


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize(("door", "content_type"), [("/v1/evaluate", "application/json"), ("/v2/models/mse/infer", "")])
def test_a_bomb_of_text_is_refused_at_the_limit(
    small: httpx.Client, door: str, content_type: str, encoding: str
) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": content_type}
    answer = small.post(door, content=PACK[encoding](b" " * (16 << 20)), headers=headers)
    assert answer.status_code == 413
    assert small.get("/health/ready").is_success


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("rows", [3, 6000])
@pytest.mark.parametrize("door", ["/v1", "/v2"])
def test_tensors_that_go_on_or_stop_short_are_refused(small: httpx.Client, door: str, rows: int, encoding: str) -> None:
    path, headers, plain = body(door, rows, binary=True)
    for wrong in (plain + b"0", plain + bytes(4096), plain[:-1], plain[:-17]):
        sent = {**headers, "Content-Encoding": encoding}
        answer = small.post(path, content=PACK[encoding](wrong), headers=sent)
        assert answer.status_code == 400, answer.text
        assert "bytes" in answer.text
    assert small.post(path, content=plain, headers=headers).is_success


BROKEN = {
    "not compressed": (lambda packed, plain: plain, 400, "Content-Encoding"),
    "cut off": (lambda packed, plain: packed[:-5], 400, "ends before"),
    "empty": (lambda packed, plain: b"", 400, "ends before"),
    "followed by more": (lambda packed, plain: packed + b"more", 400, "4 bytes follow"),
    "twice": (lambda packed, plain: packed + packed, 400, "bytes"),
}


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("rows", [3, 6000])
@pytest.mark.parametrize(("broken", "status", "detail"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_what_its_encoding_says_is_refused(
    small: httpx.Client, broken: Any, status: int, detail: str, rows: int, encoding: str
) -> None:
    path, headers, plain = body("/v1", rows, binary=True)
    content = broken(PACK[encoding](plain), plain)
    answer = small.post(path, content=content, headers={**headers, "Content-Encoding": encoding})
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd;q=1", "x"])
def test_an_encoding_that_is_not_read_is_refused(small: httpx.Client, encoding: str) -> None:
    path, headers, plain = body("/v1", 3, binary=True)
    answer = small.post(path, content=plain, headers={**headers, "Content-Encoding": encoding})
    assert answer.status_code == 415
    assert "zstd, gzip and deflate are" in answer.json()["detail"]


def test_a_zstd_frame_may_not_ask_for_a_window_of_its_own_size(small: httpx.Client) -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.compression_level: 1}
    stream = zstd.ZstdCompressor(options=options)
    path, headers, plain = body("/v1", 3, binary=True)
    content = stream.compress(plain) + stream.flush()
    answer = small.post(path, content=content, headers={**headers, "Content-Encoding": "zstd"})
    assert answer.status_code == 400
    assert "memory" in answer.json()["detail"]


def test_a_body_that_is_refused_while_it_arrives_is_answered_and_no_longer_unpacked(small: httpx.Client) -> None:
    path, _, plain = bomb("/v1", 64 << 20)
    content = gzip.compress(plain[:300] + np.random.default_rng(0).bytes(400_000), 1)
    with socket.create_connection((small.base_url.host, small.base_url.port or 80)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Type: {BINARY}\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:300_000])
        time.sleep(0.3)
        connection.sendall(content[300_000:])
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


@given(
    st.binary(max_size=3000),
    st.sampled_from(ENCODINGS),
    st.lists(st.integers(1, 400), max_size=20),
    st.integers(1, 600),
)
def test_a_body_unpacks_to_the_same_in_whatever_pieces_it_comes(
    plain: bytes, encoding: bytes, cuts: list[int], repeat: int
) -> None:
    plain *= repeat  # from what does not shrink to what shrinks a hundred times
    packed = PACK[encoding.decode()](plain)
    ends = [*np.cumsum([0, *cuts]).tolist(), len(packed)]
    chunks = [packed[a:b] for a, b in itertools.pairwise(ends)]

    async def unpack() -> bytes:
        decompressor, found, waiting = Decompressor(encoding), b"", list(chunks)
        while not decompressor.done:
            if decompressor.needs_input:
                decompressor.feed(waiting.pop(0), unread=bool(waiting))
            piece = await decompressor.piece()
            assert len(piece) <= PIECE_OUTPUT_BYTES
            found += piece
        assert decompressor.size == len(found)
        return found

    assert asyncio.run(unpack()) == plain


@given(st.binary(max_size=300), st.sampled_from(ENCODINGS), st.data())
def test_any_damage_is_an_error_and_never_an_endless_wait(plain: bytes, encoding: bytes, data: st.DataObject) -> None:
    packed = bytearray(PACK[encoding.decode()](plain))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    decompressor = Decompressor(encoding)
    decompressor.feed(bytes(packed), unread=False)

    async def unpack() -> bytes:
        found = b""
        for _ in range(100):
            if decompressor.done:
                return found
            found += await decompressor.piece()
        raise AssertionError("it goes on and on")

    try:
        found = asyncio.run(unpack())
    except MalformedBody:
        return
    assert len(found) < 1 << 20  # what no checksum covers, such as a header's time, may change


JOINED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip, in members": ("gzip", lambda plain: gzip.compress(plain[:9]) + gzip.compress(plain[9:])),
    "gzip, a member of nothing": ("gzip", lambda plain: gzip.compress(b"") + gzip.compress(plain) + gzip.compress(b"")),
    "zstd, in frames": ("zstd", lambda plain: b"".join(zstd.compress(plain[i : i + 99]) for i in range(0, 9999, 99))),
    "zstd, with a frame to skip": ("zstd", lambda plain: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd.compress(plain)),
    "x-gzip": ("x-gzip", gzip.compress),
    "GZip": ("GZip", gzip.compress),
    "Identity": ("Identity", bytes),
    "identity and gzip": ("identity, gzip", gzip.compress),
}


@pytest.mark.parametrize(("encoding", "pack"), JOINED.values(), ids=JOINED.keys())
@pytest.mark.parametrize("door", ["/v1", "/v2"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_may_come_in_parts_and_its_encoding_under_each_of_its_names(
    small: httpx.Client, door: str, encoding: str, pack: Callable[[bytes], bytes], chunked: bool
) -> None:
    path, headers, plain = body(door, 1000, binary=True)
    assert len(plain) < 9999
    packed = pack(plain)
    content = iter([packed[i : i + 100] for i in range(0, len(packed), 100)]) if chunked else packed
    answer = small.post(path, content=content, headers={**headers, "Content-Encoding": encoding})
    assert answer.is_success, answer.text
    assert answer.content == small.post(path, content=plain, headers=headers).content


@pytest.mark.parametrize(
    ("encoding", "nothing"), [("gzip", gzip.compress(b"")), ("zstd", zstd.compress(b""))], ids=["gzip", "zstd"]
)
def test_parts_without_end_are_refused(
    small: httpx.Client, encoding: str, nothing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MAX_MEMBERS", 4096)
    path, headers, _ = body("/v1", 3, binary=True)
    begin = time.process_time()
    content = nothing * (LIMIT // len(nothing) - 1)
    answer = small.post(path, content=content, headers={**headers, "Content-Encoding": encoding})
    assert answer.status_code == 400
    assert time.process_time() - begin < 0.5
    sent = itertools.repeat(nothing * 5000, 16 * LIMIT // (len(nothing) * 5000))
    with small.stream("POST", path, content=iter(sent), headers={**headers, "Content-Encoding": encoding}) as answer:
        assert answer.status_code in (400, 413)
        assert re.search("more than 4096 parts|max_body_bytes", answer.read().decode())


@pytest.mark.parametrize(
    ("encoding", "nothing"), [(b"gzip", gzip.compress(b"")), (b"zstd", zstd.compress(b""))], ids=["gzip", "zstd"]
)
def test_a_body_has_at_most_so_many_parts(encoding: bytes, nothing: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_MEMBERS", 50)
    for parts in (50, 51):
        decompressor = Decompressor(encoding)
        decompressor.feed(nothing * parts, unread=False)
        with pytest.raises(MalformedBody, match="more than 50 parts") if parts > 50 else nullcontext():
            assert asyncio.run(decompressor.piece()) == b""
            assert decompressor.done


# Out


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"), ("deflate", "deflate"), ("zstd", "zstd"), ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0", "gzip"), ("GZIP", "gzip"), ("br", None), ("identity", None), ("", None),
        ("gzip;q=0.9, zstd;q=0.5", "gzip"), ("zstd ; Q=0.000, x-gzip", "gzip"), ("*", "zstd"), ("*;q=0", None),
        ("zstd;q=0,*", "gzip"), ("identity, zstd;q=0.5", None), ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=0.001", "gzip"), ("gzip;q=2", None), ("zstd;q=a,deflate", "deflate"), (",, gzip ,", "gzip"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("door", ["/v1", "/v2"])
def test_the_answer_comes_as_the_client_accepts(
    small: httpx.Client, door: str, accept: str, encoding: str | None
) -> None:
    path, headers, plain = body(door, 2000, binary=False)
    expected = small.post(path, content=plain, headers={**headers, "Accept-Encoding": "identity"})
    with small.stream("POST", path, content=plain, headers={**headers, "Accept-Encoding": accept}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers.get("content-encoding") == encoding
    assert int(answer.headers["content-length"]) == len(raw)
    assert (len(raw) < len(expected.content) / 2) == (encoding is not None)
    assert (UNPACK[encoding](raw) if encoding else raw) == expected.content


@pytest.mark.parametrize("door", ["/v1", "/v2"])
def test_what_is_small_or_does_not_shrink_goes_as_it_is(service: Running, door: str) -> None:
    with httpx.Client(base_url=service.url, headers={"Accept-Encoding": "gzip, zstd"}) as http:
        for rows, binary in ((10, False), (2000, True)):
            path, headers, plain = body(door, rows, binary=binary)
            assert "content-encoding" not in http.post(path, content=plain, headers=headers).headers
        path, headers, plain = noise(door, 100_000)
        answer = http.post(path, content=plain, headers=headers)
        assert answer.is_success
        assert "content-encoding" not in answer.headers
        path, headers, plain = body(door, 100_000, binary=True)
        assert http.post(path, content=plain, headers=headers).headers["content-encoding"] == "zstd"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/json", "json"), ("application/vnd.safetensors", BINARY), ("*/*", None), ("text/html", None),
        ("APPLICATION/JSON", "json"), ("application/json;q=0.5, application/vnd.safetensors", BINARY),
        ("application/vnd.safetensors;q=0.3, application/json;q=0.9", "json"),
        ("application/vnd.safetensors;q=0, */*", "json"), ("application/json;q=0, */*;q=0.1", BINARY),
        ("application/json, text/plain, */*", None), ("application/*;q=0.5, application/json", "json"),
        ('text/html;a="b, application/json"', None), ("application/json; charset=utf-8; q=1.0", "json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("binary", [False, True])
def test_the_answer_has_the_form_that_weighs_most_and_else_that_of_the_request(
    small: httpx.Client, accept: str, form: str | None, binary: bool
) -> None:
    path, headers, plain = body("/v1", 3, binary=binary)
    answer = small.post(path, content=plain, headers={**headers, "Accept": accept})
    request_type = BINARY if binary else "application/json"
    assert answer.headers["content-type"] == (
        request_type if form is None else BINARY if form == BINARY else "application/json"
    )


def noise(door: str, rows: int) -> tuple[str, dict[str, str], bytes]:
    """The same request with numbers that do not shrink."""
    path, headers, plain = body(door, rows, binary=True)
    random = np.random.default_rng(0).standard_normal(2 * rows).astype(np.float32).tobytes()
    return path, headers, plain[: -len(random)] + random


@pytest.mark.parametrize("path", ["/v1/losses", "/openapi.json", "/"])
def test_pages_are_not_compressed_for_whoever_would_rather_have_them_as_they_are(http: httpx.Client, path: str) -> None:
    for accept in ("gzip;q=0", "identity, gzip;q=0.5", "*;q=0", "br"):
        answer = http.get(path, headers={"Accept-Encoding": accept})
        assert answer.is_success
        assert "content-encoding" not in answer.headers, accept


def test_pages_are_compressed_too(service: Running) -> None:
    with httpx.stream("GET", f"{service.url}/v1/losses", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in answer.headers["vary"].lower()
    assert len(json.loads(gzip.decompress(raw))["losses"]) > 50
