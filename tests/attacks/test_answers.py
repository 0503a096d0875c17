"""Answers that cost more than what was asked: as JSON, number by number, and lists as long as there are classes."""

from __future__ import annotations

import json as stdlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.api.texts import INLINE_BYTES
from lossd_client.wire import Tensor, json, oip, safetensors
from serving import Running, running

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BINARY = {"Content-Type": safetensors.MEDIA_TYPE, "Accept": "application/json"}
GRADIENT = '{"loss":"mse","outputs":["gradient"]}'


@pytest.fixture(scope="module")
def large() -> Iterator[Running]:
    """A service with the default limits."""
    with running() as service:
        yield service


def of_zeros(rows: int) -> dict[str, Tensor]:
    """Two tensors, of which the one has a NaN."""
    prediction = np.zeros(rows, np.float32)
    prediction[7] = np.nan
    return {"prediction": Tensor.of(prediction), "target": Tensor.of(np.zeros(rows, np.float32))}


def test_an_answer_that_is_too_long_as_json_is_refused_before_it_is_computed(large: Running) -> None:
    """Two kilobytes that stand for 64 MiB, one number of them NaN: a text of a hundred megabytes, made one by one."""
    batches = large.engine.stats.batches
    tensors = of_zeros(8 << 20)
    body = zstd.compress(b"".join(safetensors.encode(tensors, {"request": GRADIENT})))
    assert len(body) < 16 << 10
    answer = httpx.post(
        f"{large.url}/v1/evaluate", content=body, headers={**BINARY, "Content-Encoding": "zstd"}, timeout=60
    )
    assert answer.status_code == 413
    assert "max_json_bytes" in answer.json()["detail"]
    assert f"Accept: {safetensors.MEDIA_TYPE}" in answer.json()["detail"]
    pieces, length = oip.encode_request(tensors, outputs=["gradient"])
    text = bytes(pieces[0]).replace(b'"binary_data_output":true', b'"binary_data_output":false')
    answer = httpx.post(
        f"{large.url}/v2/models/mse/infer",
        content=zstd.compress(b"".join([text, *pieces[1:]])),
        headers={oip.HEADER_LENGTH: str(length + 1), "Content-Encoding": "zstd"},
        timeout=60,
    )
    assert answer.status_code == 413, answer.text
    assert "max_json_bytes" in answer.json()["error"]
    assert "binary_data_output" in answer.json()["error"]
    assert large.engine.stats.batches == batches
    large.wait_until(lambda engine: not (engine.budget.held_bytes or engine.budget.gathered_bytes))


@pytest.mark.parametrize("form", ["list", "base64"])
@pytest.mark.parametrize("shape", [(1 << 12,), (1 << 12, 1, 1), (64, 64)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64"])
def test_no_text_is_longer_than_was_reckoned(dtype: str, shape: tuple[int, ...], form: json.Form) -> None:
    random = np.random.default_rng(0)
    size = int(np.prod(shape)) * {"float16": 2, "bfloat16": 2, "float32": 4}.get(dtype, 8)
    anything = Tensor(dtype, shape, memoryview(random.bytes(size)))
    assert len(json.tensor_text(anything, form)) <= json.most_bytes(dtype, shape, form)
    if dtype.startswith("float"):
        awkward = [-np.inf, -6.3184107e-6, -1.4528960981624416e-186, -1.00001e-5]
        tensor = Tensor.of(np.resize(np.array(awkward, np.float64).astype(dtype), shape))
        assert len(json.tensor_text(tensor, form)) <= json.most_bytes(dtype, shape, form)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(0,), (3,), (1 << 15, 3), (2, 3, 1 << 14), (1, 1 << 16), (5, 0)])
def test_a_text_is_the_same_in_one_go_and_in_pieces(
    shape: tuple[int, ...], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal(shape).astype(dtype)
    array.reshape(-1)[::5] = random.choice([np.nan, np.inf, -np.inf], array.reshape(-1)[::5].shape)
    text = json.tensor_text(Tensor.of(array), "list")
    assert stdlib.loads(text) == json.finite(json.shortest(array))
    tokens = b"".join(oip.encode_response("m", [("a", Tensor.of(array.astype(np.float64)), False)])[0])
    assert stdlib.loads(tokens)["outputs"][0]["data"] == pytest.approx(array.astype(np.float64).ravel(), nan_ok=True)


COSTLY: dict[str, Callable[[int], tuple[np.ndarray, json.Form]]] = {
    "one NaN": lambda n: (np.where(np.arange(n) == 7, np.nan, 0.1).astype(np.float32), "list"),
    "NaN throughout": lambda n: (np.full(n, np.nan, np.float32), "list"),
    "every third is infinite": lambda n: (np.where(np.arange(n) % 3, 0.1, -np.inf), "list"),
    "float16": lambda n: (np.linspace(-1, 1, n).astype(np.float16), "list"),
    "a number to a list": lambda n: (np.full((n, 1), 0.1, np.float32), "list"),
}


@pytest.mark.parametrize("of", COSTLY.values(), ids=COSTLY.keys())
def test_no_number_costs_python_a_turn(of: Callable[[int], tuple[np.ndarray, json.Form]]) -> None:
    """Half a million numbers in less than half of the time that a loop over them takes."""
    array, form = of(500_000)
    tensor = Tensor.of(array)
    json.tensor_text(Tensor.of(array[:100]), form)  # tables are made once
    begin = time.thread_time()
    json.tensor_text(tensor, form)
    text_s = time.thread_time() - begin
    begin = time.thread_time()
    [str(number) for number in array.reshape(-1)]
    assert text_s < (time.thread_time() - begin) / 2


LONG = INLINE_BYTES // 2


def test_long_texts_are_read_and_written_beside_the_loop(large: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {"read": set(), "written": set()}
    read, written = json.loads, json.tensor_text

    def reading(text: Any, **keywords: Any) -> Any:
        if len(text) > INLINE_BYTES:
            threads["read"].add(threading.current_thread().name)
        return read(text, **keywords)

    def writing(tensor: Tensor, form: json.Form) -> bytes:
        threads["written"].add(threading.current_thread().name)
        return written(tensor, form)

    monkeypatch.setattr(json, "loads", reading)
    monkeypatch.setattr(json, "tensor_text", writing)
    values = [0.5] * LONG
    document = {"loss": "mse", "inputs": {"prediction": values, "target": values}}
    answer = httpx.post(f"{large.url}/v1/evaluate", json=document, timeout=60)
    assert answer.is_success, answer.text
    assert answer.json()["gradient"]["prediction"] == [0.0] * LONG
    assert all(len(names) == 1 and names.pop().startswith("lossd-texts") for names in threads.values())
    large.wait_until(lambda engine: not (engine.budget.held_bytes or engine.budget.gathered_bytes))
