"""Requests with a known head: answered past the parser, and not told from others by what they are answered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.api.http.asgi import RAW_HEAD
from lossd.api.http.known_heads import KnownHeads
from lossd.api.http.request import HttpRequest
from lossd.api.server import FORWARDED
from lossd.caches import CACHES, Cache
from lossd.configuration.settings import Settings
from lossd.recorder.client import Recorder
from lossd.runs.definition import RunDocument
from lossd_client.wire import Tensor, oip, safetensors
from serving import Running, running
from waiting import eventually

KEY = "a-key-of-sixteen-characters-or-more"
CHANGING = (b"date", b"x-request-id", b"server-timing")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, Cache]]:
    """The service, and its heads: another service takes their place among the caches."""
    with running(engine="inline", api_key=KEY) as service:
        yield service, CACHES["heads"]


@pytest.fixture(scope="module")
def service(served: tuple[Running, Cache]) -> Running:
    return served[0]


@pytest.fixture(scope="module")
def hits(served: tuple[Running, Cache]) -> Callable[[], int]:
    """How many heads the service has found again."""
    return lambda: served[1].hits


@pytest.fixture
def connection(service: Running) -> Iterator[socket.socket]:
    with closing(connected(service)) as connection:
        yield connection


def connected(service: Running) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def binary(value: float = 0.5, loss: str = "mse") -> bytes:
    tensors = {name: Tensor.of(np.full((4, 2), value, np.float32)) for name in ("prediction", "target")}
    return b"".join(safetensors.encode(tensors, {"request": json.dumps({"loss": {"name": loss}})}))


def head(body: bytes, *lines: str, kind: str = safetensors.MEDIA_TYPE, key: str = KEY, version: str = "1.1") -> bytes:
    fields = ("Host: lossd", f"Content-Type: {kind}", f"X-API-Key: {key}", f"Content-Length: {len(body)}", *lines)
    return "\r\n".join((f"POST /v1/evaluate HTTP/{version}", *fields, "", "")).encode()


def answer(connection: socket.socket) -> tuple[int, dict[bytes, bytes], bytes]:
    """The next answer: status, headers and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += (chunk := connection.recv(1 << 16))
        assert chunk, received
    top, _, body = received.partition(b"\r\n\r\n")
    line, *fields = top.split(b"\r\n")
    headers = dict(field.lower().split(b": ", 1) for field in fields)
    while len(body) < int(headers[b"content-length"]):
        body += connection.recv(1 << 16)
    assert len(body) == int(headers[b"content-length"])
    return int(line.split()[1]), headers, body


def exchange(connection: socket.socket, *pieces: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """The answer to a request that is sent in pieces."""
    for number, piece in enumerate(pieces):
        if number:
            time.sleep(0.05)
        connection.sendall(piece)
    return answer(connection)


def steady(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in headers.items() if name not in CHANGING}


def test_the_second_request_is_answered_as_the_first(connection: socket.socket, hits: Callable[[], int]) -> None:
    body = binary()
    first, before = exchange(connection, head(body) + body), hits()
    second = exchange(connection, head(body) + body)
    assert hits() == before + 1
    assert (first[0], steady(first[1]), first[2]) == (second[0], steady(second[1]), second[2])
    assert first[0] == 200
    assert first[1].keys() == second[1].keys()
    assert first[1][b"x-request-id"] != second[1][b"x-request-id"]
    assert re.fullmatch(rb"parse;dur=\S+, queue;.* encode;dur=\S+", second[1][b"server-timing"])


def test_a_request_id_is_echoed_and_changes_nothing_else(connection: socket.socket, hits: Callable[[], int]) -> None:
    body = binary()
    before = hits()
    for number in range(3):
        _, headers, _ = exchange(connection, head(body, f"X-Request-ID: mine-{number}") + body)
        assert headers[b"x-request-id"] == f"mine-{number}".encode()
    assert hits() == before + 2


def test_json_is_answered_the_same_way_also_compressed(connection: socket.socket, hits: Callable[[], int]) -> None:
    rows = [[0.25] * 8] * 32
    body = json.dumps({"loss": {"name": "mse"}, "inputs": {"prediction": rows, "target": rows}}).encode()
    request = head(body, "Accept-Encoding: gzip", kind="application/json") + body
    first, before = exchange(connection, request), hits()
    second = exchange(connection, request)
    assert hits() == before + 1
    assert (first[0], steady(first[1]), first[2]) == (second[0], steady(second[1]), second[2])
    assert second[1][b"content-encoding"] == b"gzip"


def test_a_body_may_follow_its_head(connection: socket.socket, hits: Callable[[], int]) -> None:
    body = binary(0.75)
    whole = exchange(connection, head(body) + body)
    before = hits()
    assert exchange(connection, head(body), body)[2] == whole[2]
    assert hits() == before + 2  # found when the head came, and again when the body did
    assert exchange(connection, head(body), body[:10], body[10:])[2] == whole[2]
    assert exchange(connection, head(body) + body[:10], body[10:20], body[20:])[2] == whole[2]


def test_a_body_that_never_comes_ends_in_time() -> None:
    with running(engine="inline", idle_timeout_ms=1000) as service, closing(connected(service)) as connection:
        body = binary()
        assert exchange(connection, head(body) + body)[0] == 200
        connection.sendall(head(body))
        assert answer(connection)[0] == 408


def test_another_body_behind_a_known_head_gets_its_own_answer(connection: socket.socket) -> None:
    one, other = binary(0.5), binary(2.5)
    assert exchange(connection, head(one, "X-Request-ID: whole") + one)[0] == 200
    assert exchange(connection, head(other, "X-Request-ID: other") + other)[0] == 200
    broken = one[:8] + b"x" * (len(one) - 8)
    status, headers, text = exchange(connection, head(one, "X-Request-ID: broken") + broken)
    assert (status, headers[b"x-request-id"]) == (400, b"broken")
    assert json.loads(text)["type"].endswith("malformed-body")


def test_a_refusal_by_the_worker_comes_from_a_task(connection: socket.socket) -> None:
    good, bad = binary(0.5), binary(float("nan"))
    request = head(good, "X-Request-ID: nan")
    assert exchange(connection, request + good)[0] == 200
    status, headers, text = exchange(connection, request + bad)
    assert (status, headers[b"x-request-id"]) == (422, b"nan")
    assert json.loads(text)["request_id"] == "nan"
    assert exchange(connection, request + good)[0] == 200


def test_requests_in_one_piece_are_answered_in_order(connection: socket.socket) -> None:
    body = binary()
    assert exchange(connection, head(body) + body)[0] == 200
    requests = [head(body, f"X-Request-ID: {number}") + body for number in range(5)]
    connection.sendall(b"".join(requests))
    received = b""
    while received.count(b"HTTP/1.1 200 OK") < 5:
        received += connection.recv(1 << 16)
    assert re.findall(rb"x-request-id: (\d)", received) == [b"0", b"1", b"2", b"3", b"4"]


def test_another_key_is_refused(service: Running, connection: socket.socket) -> None:
    body = binary()
    for _ in range(2):
        assert exchange(connection, head(body) + body)[0] == 200
    with closing(connected(service)) as other:
        assert exchange(other, head(body, key=KEY.upper()) + body)[0] == 401


def test_blank_lines_are_no_head(service: Running) -> None:
    body = binary()
    with closing(connected(service)) as connection:
        assert exchange(connection, b"\r\n\r\n" + head(body) + body)[0] == 200
    with closing(connected(service)) as connection:
        assert exchange(connection, b"\r\n\r\n" + body)[0] == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [("Expect: 100-continue", b"100"), ("Content-Encoding: identity", b"200")],
)
def test_heads_with_more_to_them_are_not_learned(
    line: str, status: bytes, service: Running, hits: Callable[[], int]
) -> None:
    body = binary()
    for _ in range(2):
        before = hits()
        with closing(connected(service)) as connection:
            connection.sendall(head(body, line) + body)
            assert connection.recv(1 << 16).split()[1] in (status, b"200")
        assert hits() == before


def test_of_http_1_0_the_connection_still_closes(service: Running) -> None:
    body = binary()
    for _ in range(2):
        with closing(connected(service)) as connection:
            connection.sendall(head(body, version="1.0") + body)
            received = b""
            while chunk := connection.recv(1 << 16):
                received += chunk
            assert b"200 OK" in received


def test_a_client_that_leaves_frees_its_request() -> None:
    with running(engine="process", batch_bytes=1 << 16, compiled=False) as service:
        body = binary()
        with closing(connected(service)) as connection:
            assert exchange(connection, head(body) + body)[0] == 200
        leaving = [connected(service) for _ in range(20)]
        for connection in leaving:
            connection.sendall(head(body) + body)
            connection.close()
        service.wait_until(lambda engine: engine.in_progress == 0 and engine.pool.in_use == 0)
        with closing(connected(service)) as connection:
            assert exchange(connection, head(body) + body)[0] == 200


def test_one_that_takes_long_is_waited_for() -> None:
    with running(idle_timeout_ms=400, compiled=False) as service, closing(connected(service)) as connection:
        body = binary()
        assert exchange(connection, head(body) + body)[0] == 200
        (worker,) = (vitals.pid for vitals in service.engine.vitals)
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        try:
            connection.sendall(head(body) + body)
            time.sleep(1.0)  # longer than a client may take
        finally:
            os.kill(worker, signal.SIGCONT)
        assert answer(connection)[0] == 200


def test_metrics_count_each_request_once(service: Running, connection: socket.socket) -> None:
    def counted() -> tuple[float, ...]:
        with closing(connected(service)) as other:
            other.sendall(f"GET /metrics HTTP/1.1\r\nHost: lossd\r\nX-API-Key: {KEY}\r\n\r\n".encode())
            text = answer(other)[2].decode()
        prefixes = ('lossd_requests_total{loss="mae",outcome="ok"}', 'nv_inference_request_success{model="mae"')
        lines = [line for line in text.splitlines() if line.startswith(prefixes)]
        return tuple(float(line.rpartition(" ")[2]) for line in lines)

    body = binary(loss="mae")
    assert exchange(connection, head(body) + body)[0] == 200
    before = counted()
    for _ in range(3):
        exchange(connection, head(body) + body)
    assert before
    assert counted() == tuple(count + 3 for count in before)


def request(line: bytes) -> HttpRequest:
    """A request with this head, which nothing but the known heads ever answers."""
    fields = [tuple(field.split(b": ")) for field in line.split(b"\r\n")[1:-2]]
    scope = {"headers": fields, "http_version": "1.1", "method": "POST", "query_string": b"", RAW_HEAD: line}
    made = HttpRequest(scope, None, Settings())  # type: ignore[arg-type]  # nothing is received
    made.read_headers()
    return made


HEAD = b"POST /v1/evaluate HTTP/1.1\r\nhost: lossd\r\ncontent-length: 3\r\n"


def test_behind_a_proxy_heads_are_known_unless_the_proxy_names_the_client(
    connection: socket.socket, hits: Callable[[], int]
) -> None:
    body, before = binary(), hits()
    for _ in range(2):
        assert exchange(connection, head(body, "x-forwarded-for: 9.9.9.9") + body)[0] == 200
    assert hits() == before + 1

    line = HEAD + b"x-forwarded-for: 9.9.9.9\r\n\r\n"
    for unsuitable, known in (((), True), (FORWARDED, False)):
        heads = KnownHeads(unsuitable)
        heads.learn(request(line), None, None)
        assert (heads.find(line) is not None) == known


def test_what_was_checked_before_heads_were_forgotten_is_not_learned() -> None:
    heads, line = KnownHeads(), HEAD + b"\r\n"
    early = request(line)
    heads.learn(early, None, None)
    latest = heads.find(line + b"its body")
    assert latest is not None
    assert (latest.head, latest.length, latest.request_id) == (line, 3, b"")
    assert heads.find(line + b"another", latest) is latest
    assert heads.find(line[:-1], latest) is None
    heads.forget()
    assert heads.find(line) is None
    assert heads.find(line, latest) is None, "a connection knows no more than the server"
    heads.learn(early, None, None)
    assert heads.find(line) is None
    heads.learn(request(line), None, None)
    assert heads.find(line) is not None


@pytest.mark.parametrize("length", ["1", "0", "123456789", "1234567890", "", "-1", "1 ", "1x"])
def test_another_length_on_the_same_connection_is_found_as_on_another_one(length: str) -> None:
    heads = KnownHeads()
    heads.learn(request(HEAD + b"x-after: it\r\n\r\n"), None, None)
    latest = heads.find(HEAD + b"x-after: it\r\n\r\nits body")
    assert latest is not None
    other = HEAD.replace(b"gth: 3", b"gth: " + length.encode()) + b"x-after: it\r\n\r\n"
    assert heads.find(other + b"body", latest) == heads.find(other + b"body")
    assert heads.find(other.replace(b"after: it", b"after: no"), latest) is None


def test_lengths_and_ids_may_differ_and_nothing_else(connection: socket.socket, hits: Callable[[], int]) -> None:
    def of_rows(rows: int) -> bytes:
        tensors = {name: Tensor.of(np.zeros((rows, 3), np.float32)) for name in ("prediction", "target")}
        return b"".join(safetensors.encode(tensors, {"request": json.dumps({"loss": {"name": "mse"}})}))

    exchange(connection, head(of_rows(1), "X-Kind: lengths") + of_rows(1))
    before = hits()
    for rows in (2, 300, 4):
        status, _, body = exchange(connection, head(of_rows(rows), "X-Kind: lengths") + of_rows(rows))
        assert (status, safetensors.decode(body)[0]["gradient.prediction"].shape) == (200, (rows, 3))
    assert hits() == before + 3


@pytest.mark.parametrize(
    "line",
    [
        "X-Length: 7",
        "Inference-Header-Content-Length: 7\r\nX-Length: 7",
        "Content-Length: 7",
        "X-Request-ID: one\r\nX-Request-ID: two",
        "X-Space:  two",
    ],
)
def test_a_head_that_could_be_taken_for_another_is_not_known(
    line: str, service: Running, hits: Callable[[], int]
) -> None:
    body = binary()
    lines = head(body).split(b"\r\n")
    lines.insert(1, line.encode())
    for _ in range(2):
        before = hits()
        with closing(connected(service)) as connection:
            assert exchange(connection, b"\r\n".join(lines) + body)[0] in (200, 400)
        assert hits() == before


def infer(body: bytes, length: int | None, *lines: str, model: str = "mse") -> bytes:
    """A request of the Open Inference Protocol, as Triton's clients write it: its lengths in this order."""
    fields = ("Host: lossd", f"X-API-Key: {KEY}", *lines)
    if length is not None:
        fields += (f"Inference-Header-Content-Length: {length}",)
    line = f"POST /v2/models/{model}/infer HTTP/1.1"
    return "\r\n".join((line, *fields, f"Content-Length: {len(body)}", "", "")).encode() + body


def inference(value: float = 0.5, rows: int = 4, **more: object) -> tuple[bytes, int]:
    """A request's body, and the length of its JSON text."""
    array = np.full((rows, 2), value, np.float32)
    entry = {"shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    inputs = [{"name": name, **entry} for name in ("prediction", "target")]
    text = json.dumps({**more, "inputs": inputs, "parameters": {"binary_data_output": True}}, separators=(",", ":"))
    return text.encode() + array.tobytes() * 2, len(text)


def test_inferences_are_answered_the_same_way(connection: socket.socket, hits: Callable[[], int]) -> None:
    body, length = inference()
    first, before = exchange(connection, infer(body, length)), hits()
    second = exchange(connection, infer(body, length))
    assert hits() == before + 1
    assert (first[0], steady(first[1]), first[2]) == (second[0], steady(second[1]), second[2])
    assert first[0] == 200
    assert first[1].keys() == second[1].keys()
    assert re.fullmatch(rb"parse;dur=\S+, queue;.* encode;dur=\S+", second[1][b"server-timing"])


def test_inferences_may_differ_in_both_lengths_and_their_ids(
    connection: socket.socket, hits: Callable[[], int]
) -> None:
    exchange(connection, infer(*inference(id="first"), "X-Kind: ids"))
    before, parsed = hits(), CACHES["v2_requests"].misses
    ids = ("a", "of some length", "", 'of "quotes"', "of \N{GREEK SMALL LETTER MU}")
    for name in ids:
        status, headers, body = exchange(connection, infer(*inference(id=name), "X-Kind: ids"))
        assert (status, oip.decode_response(body, int(headers[b"inference-header-content-length"])).id) == (200, name)
    assert hits() == before + len(ids)
    assert CACHES["v2_requests"].misses == parsed + 2  # the two whose ids JSON escapes
    status, headers, body = exchange(connection, infer(*inference(rows=300), "X-Kind: ids"))
    response = oip.decode_response(body, int(headers[b"inference-header-content-length"]))
    assert (status, response.id, response.outputs["gradient"].shape) == (200, None, (300, 2))  # type: ignore[union-attr]
    assert hits() == before + len(ids) + 1


@pytest.mark.parametrize("text", [b'"id":"two"', b'"\\u0069d":"two"'])
def test_of_two_ids_the_last_one_holds(text: bytes, connection: socket.socket) -> None:
    body, length = inference(id="one")
    body = body[: length - 1] + b"," + text + b"}" + body[length:]
    for _ in range(2):
        status, headers, answered = exchange(connection, infer(body, length + 1 + len(text)))
        answer = oip.decode_response(answered, int(headers[b"inference-header-content-length"]))
        assert (status, answer.id) == (200, "two")


def test_inferences_in_json_are_answered_the_same_way(connection: socket.socket, hits: Callable[[], int]) -> None:
    entry = {"shape": [2], "datatype": "FP32", "data": [0.5, 1.5]}
    document = {"id": "mine", "inputs": [{"name": name, **entry} for name in ("prediction", "target")]}
    body = json.dumps(document).encode()
    first, before = exchange(connection, infer(body, None)), hits()
    second = exchange(connection, infer(body, None))
    assert hits() == before + 1
    assert (first[0], steady(first[1]), first[2]) == (second[0], steady(second[1]), second[2])
    assert json.loads(second[2])["id"] == "mine"


def test_a_refused_inference_is_refused_as_the_first_time(connection: socket.socket) -> None:
    good, length = inference(id="good")
    assert exchange(connection, infer(good, length, "X-Request-ID: good"))[0] == 200
    for body, stated, part in (
        (good[:-4], length, "12 follow it"),
        (good, len(good) + 1, "the body has only"),
        (b"x" + good[1:], length, "not JSON"),
        (inference(float("nan"))[0], inference()[1], "NaN"),
    ):
        status, headers, text = exchange(connection, infer(body, stated, "X-Request-ID: bad"))
        assert (status, headers[b"x-request-id"], list(json.loads(text))) == (400, b"bad", ["error"])
        assert part.replace("12", str(len(body) - stated)) in json.loads(text)["error"]
    assert exchange(connection, infer(good, length))[0] == 200


def test_a_model_is_not_taken_for_another(connection: socket.socket) -> None:
    body, length = inference()
    for _ in range(2):
        for model in ("mse", "mae"):
            status, headers, answered = exchange(connection, infer(body, length, model=model))
            response = oip.decode_response(answered, int(headers[b"inference-header-content-length"]))
            assert (status, response.model_name) == (200, model)
        assert exchange(connection, infer(body, length, model="mes"))[0] == 404


@pytest.mark.parametrize("key", ["lossd_key", KEY])
def test_inferences_need_the_key_of_their_head(key: str, connection: socket.socket) -> None:
    body, length = inference()
    assert exchange(connection, infer(body, length))[0] == 200
    request = infer(body, length).replace(KEY.encode(), key.encode())
    assert exchange(connection, request)[0] == (200 if key == KEY else 401)


# Batches of runs


BINARY = {"task": "binary", "metrics": ["accuracy"], "identity": "position"}


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Running]:
    with running(engine="inline", compiled=False, runs=str(tmp_path / "runs.db")) as service:
        yield service


def put(target: str, body: bytes, *lines: str, kind: str = safetensors.MEDIA_TYPE) -> bytes:
    fields = ("Host: lossd", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines)
    return "\r\n".join((f"PUT /v1/runs/a{target} HTTP/1.1", *fields, "", "")).encode() + body


def created(connection: socket.socket) -> None:
    """Create the run a."""
    assert exchange(connection, put("", json.dumps(BINARY).encode(), kind="application/json"))[0] == 201


def rows(first: int, value: float = 0.5, label: int = 1) -> bytes:
    """Two rows of a run by position."""
    tensors = {"prediction": Tensor.of(np.full(2, value, np.float32)), "target": Tensor.of(np.array([0, label]))}
    return b"".join(safetensors.encode(tensors, {"request": json.dumps({"first": first})}))


def head_of(connection: socket.socket, name: str) -> int:
    """The status of HEAD of a batch."""
    connection.sendall(f"HEAD /v1/runs/a/batches/{name} HTTP/1.1\r\nHost: lossd\r\n\r\n".encode())
    return int(connection.recv(1 << 16).split()[1])


def batches_counted(service: Running) -> dict[str, float]:
    text = httpx.get(f"{service.url}/metrics").text
    lines = [
        line for line in text.splitlines() if line.startswith(("lossd_run_batches_total{", "lossd_requests_total{"))
    ]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_batches_whose_heads_differ_in_their_name_are_counted_the_same_way(runs: Running) -> None:
    heads = CACHES["heads"]
    with closing(connected(runs)) as connection:
        created(connection)
        first = exchange(connection, put("/batches/b0", rows(0), "X-Request-ID: mine-0"))
        before = heads.hits
        for number in (1, 2, 3):
            status, headers, body = exchange(
                connection, put(f"/batches/b{number}", rows(2 * number), f"X-Request-ID: mine-{number}")
            )
            assert (status, steady(headers).keys()) == (201, steady(first[1]).keys())
            assert headers[b"x-request-id"] == f"mine-{number}".encode()
            assert re.fullmatch(rb"parse;dur=\S+, queue;.* record;dur=\S+", headers[b"server-timing"])
            assert json.loads(body) == {
                "batch": f"b{number}",
                "counted": {"rows": 2, "entries": 2},
                "run": {"rows": 2 * number + 2, "batches": number + 1},
            }
        assert heads.hits == before + 3
        again = exchange(connection, put("/batches/b3", rows(6), "X-Request-ID: again"))
        assert (again[0], again[2]) == (200, body)
        assert heads.hits == before + 4
    counts = batches_counted(runs)
    assert counts['lossd_run_batches_total{outcome="counted"}'] == 4
    assert counts['lossd_run_batches_total{outcome="again"}'] == 1
    assert counts['lossd_requests_total{loss="metrics.binary",outcome="ok"}'] == 5


def test_names_of_any_length_are_told_from_the_latest_one(runs: Running) -> None:
    """Heads without an id are compared with the latest one of their connection, without their names and lengths."""
    heads = CACHES["heads"]
    with closing(connected(runs)) as connection:
        created(connection)
        assert exchange(connection, put("/batches/latest", rows(0)))[0] == 201
        before = heads.hits
        names = ["b", "batch-0001", "batch-0002", "x" * 200, "c"]
        for number, name in enumerate(names, 1):
            body = rows(2 * 10**number)  # the length of the text differs, and so does that of the body
            status, _, text = exchange(connection, put(f"/batches/{name}", body))
            assert (status, json.loads(text)["batch"]) == (201, name)
            assert head_of(connection, name) == 200
        assert heads.hits == before + len(names)
        for target, status in (("/batches/c/d", 404), ("/batches/", 422), ("/batches/c?first=2", 422), ("/c", 404)):
            assert exchange(connection, put(target, rows(2)))[0] == status
        other = put("/batches/d", rows(2)).replace(b"/runs/a/", b"/runs/b/")
        assert exchange(connection, other)[0] == 404
        assert exchange(connection, put("/batches/d", rows(2)))[0] == 201


def test_a_refused_batch_is_refused_as_the_first_time(runs: Running) -> None:
    with closing(connected(runs)) as connection:
        created(connection)
        assert exchange(connection, put("/batches/good", rows(0), "X-Request-ID: good"))[0] == 201
        for target, body, status, slug in (
            ("/batches/good", rows(0, 1.0), 409, "batch-conflict"),
            ("/batches/other", rows(1), 409, "duplicate-rows"),
            ("/batches/bad", rows(2, label=7), 422, "invalid-value"),
            ("/batches/short", rows(2)[:-1], 400, "malformed-body"),
            ("/batches/", rows(2), 422, "invalid-request"),
            ("/batches/..", rows(2), 422, "invalid-request"),
            ("/batches/b?first=2", rows(2), 422, "invalid-request"),
        ):
            answered, headers, text = exchange(connection, put(target, body, "X-Request-ID: bad"))
            assert (answered, headers[b"x-request-id"]) == (status, b"bad"), text
            assert json.loads(text)["type"] == f"/problems/{slug}"
        status, _, text = exchange(connection, put("/batches/%62", rows(2)))
        assert (status, json.loads(text)["batch"]) == (201, "b")
        assert json.loads(exchange(connection, put("/batches/c", rows(4)))[2])["run"] == {"rows": 6, "batches": 3}


def test_a_batch_of_a_run_that_another_front_replaced_is_counted_in_the_new_one(
    runs: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, recorders = Recorder.begin, set[Recorder]()

    def noted(self: Recorder, *rest: Any, **arguments: Any) -> Any:
        recorders.add(self)
        return begin(self, *rest, **arguments)

    async def replace(recorder: Recorder) -> None:
        document, deadline = RunDocument.parse(BINARY), time.monotonic() + 30
        await recorder.ask("delete", deadline, owner="", name="a")
        fields = {"document": document.to_dict(), "digest": document.digest, "task": document.plan.task}
        await recorder.ask("create", deadline, owner="", name="a", **fields)

    monkeypatch.setattr(Recorder, "begin", noted)
    with closing(connected(runs)) as connection:
        created(connection)
        for number in (0, 1):
            assert exchange(connection, put(f"/batches/b{number}", rows(2 * number)))[0] == 201
        (recorder,) = recorders
        asyncio.run_coroutine_threadsafe(replace(recorder), runs.engine.loop).result(60)
        status, _, text = exchange(connection, put("/batches/b1", rows(2)))
        assert (status, json.loads(text)["run"]) == (201, {"rows": 2, "batches": 1})


def test_a_batch_whose_client_left_while_it_was_counted_is_counted(
    runs: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Recorder.begin
    held: list[tuple[asyncio.Future[Any], asyncio.Future[Any]]] = []

    def hold(self: Recorder, *rest: Any, **arguments: Any) -> asyncio.Future[Any]:
        answer = begin(self, *rest, **arguments)
        held.append((answer, answer.get_loop().create_future()))
        return held[-1][1]

    async def release() -> None:
        answer, later = held[-1]
        later.set_result(await answer)

    with closing(connected(runs)) as other:
        with closing(connected(runs)) as connection:
            created(connection)
            assert exchange(connection, put("/batches/b0", rows(0)))[0] == 201
            monkeypatch.setattr(Recorder, "begin", hold)
            connection.sendall(put("/batches/b1", rows(2)))
            eventually(lambda: held)
        assert head_of(other, "b0") == 200  # the service has seen by now that the client left
        asyncio.run_coroutine_threadsafe(release(), runs.engine.loop).result(60)
        monkeypatch.undo()
        assert head_of(other, "b1") == 200
        eventually(lambda: batches_counted(runs)['lossd_run_batches_total{outcome="counted"}'] == 2)
        assert runs.engine.in_progress == 0
        assert exchange(other, put("/batches/b1", rows(2)))[0] == 200


def test_the_limit_of_a_body_holds() -> None:
    with running(engine="inline", max_body_bytes=1024, idle_timeout_ms=1000) as service:
        with closing(connected(service)) as connection:
            body = binary()
            assert exchange(connection, head(body) + body)[0] == 200
            assert exchange(connection, head(b" " * 1025))[0] == 413
        with closing(connected(service)) as connection:
            assert exchange(connection, head(b" " * 1025) + b" " * 1025)[0] == 413
