"""Each limit, on ``/v1`` and ``/v2``: the refusal names the limit, reveals no internals, and reaches the client."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import numpy as np
import pytest

from fuzz.mutations import Sent, as_json, as_oip, as_safetensors
from fuzz.oracle import Wire, check_answer
from lossd_client.wire import oip
from serving import Running

MSE = {"name": "mse"}
AS_JSON = {"Content-Type": "application/json"}
ROW = np.zeros(2, np.float32)


def v2(body: bytes, model: str = "mse", **headers: str) -> Sent:
    return Sent(f"/v2/models/{model}/infer", body, headers)


def entry(**fields: Any) -> dict[str, Any]:
    return {"name": "prediction", "shape": [1], "datatype": "FP32", "data": [1.0], **fields}


def document(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({**fields, "inputs": inputs}).encode()


def chunked(sent: Sent) -> Sent:
    """The same body in one chunk, its length not stated beforehand."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent.body), sent.body)
    return Sent(sent.path, body, {**sent.headers, "Transfer-Encoding": "chunked"})


BIG = np.zeros((1 << 20) // 4, np.float32)
NESTED: Any = 1
for _ in range(33):
    NESTED = [NESTED]
LONG_LIST = as_json({"loss": MSE, "inputs": {"prediction": [0.25] * 20_000, "target": [0.5] * 20_000}})

REFUSED: dict[str, tuple[Sent, int, str]] = {
    "a body beyond the limit": (as_safetensors({"loss": MSE}, prediction=BIG, target=BIG), 413, "max_body_bytes"),
    "the same on /v2": (as_oip("mse", {}, prediction=BIG, target=BIG), 413, "max_body_bytes"),
    "JSON beyond the limit": (LONG_LIST, 413, "max_json_bytes"),
    "the same on /v2, all of it JSON": (v2(document(entry(data=[0.25] * 20_000))), 413, "max_json_bytes"),
    "the same before binary tensors": (
        v2(document(entry(data=[0.25] * 20_000)) + b"\0", **{oip.HEADER_LENGTH: str(70_000)}),
        413,
        "max_json_bytes",
    ),
    "nine axes": (as_json({"loss": MSE, "inputs": {"prediction": [[[[[[[[[1]]]]]]]]], "target": [1]}}), 413, "8"),
    "nine axes in binary": (as_safetensors({"loss": MSE}, prediction=ROW.reshape((1,) * 8 + (2,))), 413, "8"),
    "nine axes on /v2": (as_oip("mse", {}, prediction=ROW.reshape((1,) * 8 + (2,))), 413, "8"),
    "nesting": (as_json({"loss": {**MSE, "reduction": NESTED}, "inputs": {}}), 400, "32 deep"),
    "nesting beyond the writer's depth": (
        Sent("/v1/evaluate", b'{"a":' + b"[" * 500 + b"]" * 500 + b',"inputs":{}}', AS_JSON),
        400,
        "deep",
    ),
    "nesting in a parameter's text": (v2(document(entry(), parameters={"reduction": json.dumps(NESTED)})), 400, "32"),
    "too many tensors": (as_json({"loss": MSE, "inputs": {str(i): 1 for i in range(1025)}}), 413, "1024"),
    "too many tensors in binary": (
        as_safetensors({"loss": MSE}, **{f"a{i}": np.zeros(0, np.uint8) for i in range(1025)}),
        413,
        "1024",
    ),
    "a shape whose product overflows": (
        as_json(
            {"loss": MSE, "inputs": {"prediction": {"dtype": "int8", "shape": [2**32, 2**32], "data": ""}, "target": 1}}
        ),
        400,
        "memory",
    ),
    "pairs": (
        as_safetensors(
            {"loss": {"name": "supcon"}},
            embedding=np.zeros((17_000, 1), np.float16),
            label=np.zeros(17_000, np.uint8),
        ),
        413,
        "289000000 pairs",
    ),
    "pairs of metrics": (
        as_safetensors(
            {"task": "labelled_embeddings"},
            embedding=np.zeros((17_000, 1), np.float16),
            label=np.zeros(17_000, np.uint8),
        ),
        413,
        "289000000 pairs",
    ),
    "pairs of classes": (
        as_safetensors(
            {"loss": {"name": "multilabel_margin"}},
            prediction=np.zeros((1, 100_000), np.float32),
            target=np.full((1, 100_000), -1, np.int8),
        ),
        413,
        "pairs",
    ),
    "a hundred terms": (
        as_json({"loss": {"name": "weighted_sum", "terms": [{"loss": MSE}] * 100}, "inputs": {"prediction": [1.0]}}),
        422,
        "64",
    ),
    "a time-out of 5000 digits": (
        Sent("/v1/evaluate", b"{}", {**AS_JSON, "X-Request-Timeout-Ms": "9" * 5000}),
        422,
        "X-Request-Timeout-Ms",
    ),
    "a chunked body of no stated length": (
        chunked(as_safetensors({"loss": MSE}, prediction=BIG, target=BIG)), 413, "max_body_bytes",
    ),
    "a hundred unknown fields": (
        as_json({"loss": {**MSE, **{f"a{i}": 1 for i in range(100)}}, "inputs": {}}), 422, "and 90 more",
    ),
    "an integer beyond int64": (as_json({"loss": {**MSE, "a": 2**64 - 1}, "inputs": {}}), 422, "int64"),
}  # fmt: skip


@pytest.mark.parametrize("attack", REFUSED)
def test_what_is_over_a_limit_is_refused_by_its_name(attack: str, service: Running) -> None:
    sent, status, words = REFUSED[attack]
    wire = Wire(service.port)
    begin = time.process_time()  # of the front, which runs in this process
    answer = wire.post(sent)
    wire.close()
    assert answer.status == (400 if status == 422 and sent.form == "oip" else status), answer.content[:300]
    assert words in answer.content.decode()
    assert time.process_time() - begin < 5
    check_answer(sent, answer)


def test_ten_thousand_names_are_searched_for_near_ones_ten_times(http: httpx.Client) -> None:
    loss = {"name": "mse", **{f"reductio{i}": 1 for i in range(1_000)}}
    begin = time.process_time()
    answer = http.post("/v1/evaluate", json={"loss": loss, "inputs": {}})
    assert time.process_time() - begin < 2
    assert len(answer.json()["errors"]) == 10
    assert len(answer.content) < 4096


@pytest.mark.parametrize(
    "name", ["", "x" * 10_000, "\x00", "a\x1b[31mb", "é\u202e", "a/b~c", "\U0001f600", "__class__", "{}"]
)
def test_a_name_is_repeated_short_and_printable(name: str, http: httpx.Client) -> None:
    for request in (
        {"loss": {"name": name}, "inputs": {}},
        {"loss": {**MSE, name: 1}, "inputs": {}},
        {"loss": MSE, "inputs": {name: [1.0], "prediction": [1.0], "target": [1.0]}},
        {"loss": MSE, "outputs": [f"gradient.{name}"], "inputs": {}},
        {"loss": MSE, "metrics": {"names": [name]}, "inputs": {}},
        {"task": name, "inputs": {}},
        {name: 1, "loss": MSE, "inputs": {}},
    ):
        sent = as_json(request)
        answer = http.post(sent.path, content=sent.body, headers=sent.headers)
        assert 400 <= answer.status_code < 500
        assert answer.json()["detail"].isprintable()
        assert len(answer.content) < 4096


def test_pointers_are_escaped(http: httpx.Client) -> None:
    answer = http.post("/v1/evaluate", json={"loss": {**MSE, "a/b~c": 1}, "inputs": {}})
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/loss/a~1b~0c"]
