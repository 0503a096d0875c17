"""Answers that cost more than what was asked: as JSON, number by number, and lists as long as there are classes."""

from __future__ import annotations

import json as stdlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

import lossd
from lossd.api.http import number_lists
from lossd.api.http.texts import INLINE_BYTES
from lossd.metrics import METRICS
from lossd.metrics.lists import LISTED_CLASSES
from lossd.request.planning import make_plan
from lossd_client.errors import TooLarge
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
@pytest.mark.parametrize("shape", [(0,), (3,), (1 << 13, 3), (2, 3, 1 << 13), (1, 9 + (1 << 14)), (5, 0)])
def test_a_text_is_the_same_in_one_go_and_in_pieces(
    shape: tuple[int, ...], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal(shape).astype(dtype)
    array.reshape(-1)[::5] = random.choice([np.nan, np.inf, -np.inf], array.reshape(-1)[::5].shape)
    text = json.tensor_text(Tensor.of(array), "list")
    assert stdlib.loads(text) == json.finite(json.shortest(array))
    tokens = b"".join(oip.encode_response("m", [("a", Tensor.of(array.astype(np.float64)), False)])[0])
    data = np.array(stdlib.loads(tokens)["outputs"][0]["data"], np.float64)
    np.testing.assert_allclose(data, array.astype(np.float64).ravel(), rtol=1e-6)


COSTLY: dict[str, Callable[[int], tuple[np.ndarray, json.Form]]] = {
    "one NaN": lambda n: (np.where(np.arange(n) == 7, np.nan, 0.1).astype(np.float32), "list"),
    "NaN throughout": lambda n: (np.full(n, np.nan, np.float32), "list"),
    "every third is infinite": lambda n: (np.where(np.arange(n) % 3, 0.1, -np.inf), "list"),
    "float16": lambda n: (np.linspace(-1, 1, n).astype(np.float16), "list"),
    "a number to a list": lambda n: (np.full((n, 1), 0.1, np.float32), "list"),
}


@pytest.mark.parametrize("numbers", COSTLY.values(), ids=COSTLY.keys())
def test_no_number_costs_python_a_turn(numbers: Callable[[int], tuple[np.ndarray, json.Form]]) -> None:
    """A hundred thousand numbers in less than half of the time that a loop over as many finite ones takes."""
    array, form = numbers(100_000)
    finite = np.full(100_000, 0.1, array.dtype)
    tensor = Tensor.of(array)
    json.tensor_text(Tensor.of(array[:100]), form)  # tables are made once

    def least_s(work: Callable[[], object]) -> float:
        """Of three: another program on the same core makes some of them slower."""
        spent_s = []
        for _ in range(3):
            begin = time.thread_time()
            work()
            spent_s.append(time.thread_time() - begin)
        return min(spent_s)

    loop_s = least_s(lambda: [str(number) for number in finite])
    assert least_s(lambda: json.tensor_text(tensor, form)) < loop_s / 2


LONG = INLINE_BYTES // 2


def test_long_texts_are_read_and_written_beside_the_loop(large: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {"read": set(), "written": set()}
    read, written = number_lists.read, json.tensor_text

    def reading(text: bytes) -> Any:
        if len(text) > INLINE_BYTES:
            threads["read"].add(threading.current_thread().name)
        return read(text)

    def writing(tensor: Tensor, form: json.Form) -> bytes:
        threads["written"].add(threading.current_thread().name)
        return written(tensor, form)

    monkeypatch.setattr(number_lists, "read", reading)
    monkeypatch.setattr(json, "tensor_text", writing)
    values = [0.5] * LONG
    document = {"loss": "mse", "inputs": {"prediction": values, "target": values}}
    answer = httpx.post(f"{large.url}/v1/evaluate", json=document, timeout=60)
    assert answer.is_success, answer.text
    assert answer.json()["gradient"]["prediction"] == [0.0] * LONG
    assert all(len(names) == 1 and names.pop().startswith("lossd-texts") for names in threads.values())
    large.wait_until(lambda engine: not (engine.budget.held_bytes or engine.budget.gathered_bytes))


# Lists with an entry for each class


SCORES = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "classes"), [("binary", 1), *product(("multiclass", "multilabel", "sets"), (2, 40, 300))]
)
def test_no_metrics_are_a_longer_text_than_was_reckoned(task: str, classes: int) -> None:
    """Each by itself, with weights, which make long decimals of counts; undefined for many of the classes.

    Of 300 classes, those that rank the scores class by class say no more of each class than of 40.
    """
    random = np.random.default_rng(1)
    prediction = SCORES[:, 0] if task == "binary" else SCORES[:, :classes]
    chosen = random.integers(0, classes, 50)
    target = chosen if task == "multiclass" else (random.random(prediction.shape) < 0.1).astype(np.int64)
    weight = random.random(50)
    for name, metric in METRICS[task].items():
        if metric.sorts and classes > 256:
            continue
        if name == "normalized_confusion_matrix" and task == "multiclass" and classes > 256:
            continue  # it is refused
        request = {"task": task, "metrics": {"names": [name], **({"k": 1} if name == "top_k_accuracy" else {})}}
        inputs = {"prediction": prediction, "target": target, "sample_weight": weight}
        job = make_plan(request).job({n: (str(a.dtype), a.shape) for n, a in inputs.items()})
        answer = lossd.evaluate(task=task, inputs=inputs, metrics=request["metrics"])
        text = orjson.dumps(answer.metrics, default=dict)
        assert len(text) <= job.recipe.text_bytes + 100, name
        assert job.recipe.text_bytes < 20 * len(text) + 3000 or name.endswith("_curve"), name


def wide(classes: int) -> dict[str, Any]:
    return {"prediction": np.zeros((1, classes), np.float32), "target": np.array([3])}


def test_classes_are_listed_where_there_are_few_or_they_are_asked_for() -> None:
    few, many = (lossd.evaluate("cross_entropy", **wide(classes)) for classes in (LISTED_CLASSES, LISTED_CLASSES + 1))
    assert len(few.metrics.f1.per_class) == len(few.metrics.support) == LISTED_CLASSES
    assert not few.diagnostics.warnings
    assert set(many.metrics.f1) == {"macro", "micro", "weighted"}
    assert {"support", "confusion_matrix", "undefined"}.isdisjoint(many.metrics)
    assert [warning.code for warning in many.diagnostics.warnings] == ["classes_not_listed"]
    assert dict(many.metrics.f1) == {name: few.metrics.f1[name] for name in ("macro", "micro", "weighted")}
    every = lossd.evaluate("cross_entropy", **wide(20_000), metrics={"names": ["f1", "support"], "per_class": True})
    assert len(every.metrics.f1.per_class) == len(every.metrics.support) == 20_000
    assert not every.diagnostics.warnings
    none = lossd.evaluate("cross_entropy", **wide(5), metrics={"per_class": False})
    assert set(none.metrics.f1) == {"macro", "micro", "weighted"}
    labels = lossd.evaluate("bce", np.zeros((1, 20_000)), np.zeros((1, 20_000)), metrics={"task": "multilabel"})
    assert "per_class" not in labels.metrics.f1
    assert "tp" not in labels.metrics


@pytest.mark.parametrize(
    ("request_", "shape"),
    [
        ({"loss": "cross_entropy", "metrics": {"per_class": True}}, (1, 4_000_000)),
        ({"loss": "cross_entropy", "metrics": {"names": ["support"]}}, (1, 4_000_000)),
        ({"task": "multilabel", "metrics": {"names": ["tp"]}}, (1, 4_000_000)),
        ({"task": "multilabel", "metrics": {"names": ["roc_curve"], "points": 100_000}}, (100_000, 30)),
        ({"loss": "ce_dice", "metrics": {"per_class": True}}, (1, 4_000_000, 1, 1)),
    ],
)
def test_longer_lists_are_refused_before_anything_is_computed(request_: dict[str, Any], shape: tuple[int, ...]) -> None:
    target = shape if request_.get("task") == "multilabel" else (shape[0], *shape[2:])
    plan = make_plan(request_)
    with pytest.raises(TooLarge, match=r"metrics\.names.*metrics\.per_class"):
        plan.job({"prediction": ("float32", shape), "target": ("int64", target)})


def test_curves_of_more_entries_are_refused_though_those_of_few_were_answered() -> None:
    plan = make_plan({"task": "multilabel", "metrics": {"names": ["pr_curve"], "points": 100_000}})
    plan.job({"prediction": ("float32", (100, 30)), "target": ("int64", (100, 30))})
    with pytest.raises(TooLarge, match=r"metrics\.points"):
        plan.job({"prediction": ("float32", (100_000, 30)), "target": ("int64", (100_000, 30))})


def test_many_classes_have_their_averages_at_the_door_of_models_too(large: Running) -> None:
    inputs = {name: Tensor.of(array) for name, array in wide(20_000).items()}
    for outputs, found in ((None, None), (["f1.per_class"], 20_000), (["support", "f1"], 20_000)):
        pieces, length = oip.encode_request(inputs, outputs=outputs)
        answer = httpx.post(
            f"{large.url}/v2/models/cross_entropy/infer",
            content=b"".join(pieces),
            headers={oip.HEADER_LENGTH: str(length)},
        )
        assert answer.is_success, answer.text
        response = oip.decode_response(answer.content, int(answer.headers[oip.HEADER_LENGTH]))
        if outputs is None:
            assert list(response.outputs) == ["loss", "gradient", "accuracy", "precision", "recall", "f1", "iou"]
        else:
            assert response.outputs[outputs[0]].shape == (found,)
