"""Every loss and every metric over HTTP: in each format, alone, and with all others at once."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferRequestedOutput

from lossd.losses import REGISTRY
from lossd.metrics import METRICS
from lossd_client import wire
from lossd_client.wire import safetensors
from losses.cases import CASES
from losses.cases_composed import COMPOSITIONS
from metrics.measuring import NEEDED
from rows import in_one_item
from wire.stock import infer_inputs

BINARY = "application/vnd.safetensors"


def single(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy()
    return array.astype(np.float32) if array.dtype == np.float64 else array


def requests() -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """One request for each row of the tables: what is asked, and its tensors."""
    rows: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
    for case in CASES:
        inputs = {name: single(t) for name, t in case.inputs(case.parameters[0], n=4).items()}
        rows[str(case)] = ({"loss": {"name": case.name, **case.parameters[0]}}, inputs)
    silent = {
        "prediction": np.log(np.full((3, 2, 4), 0.25, np.float32)),
        "target": np.zeros((2, 0), np.int64),
        "input_lengths": np.array([3, 2]),
        "target_lengths": np.array([0, 0]),
    }
    rows["ctc-without labels"] = ({"loss": {"name": "ctc"}}, silent)
    rows |= masked(rows)
    for row in COMPOSITIONS:
        inputs = {name: single(t) for name, t in row.draw(torch.Generator().manual_seed(0)).items()}
        rows[f"{row.name}-{row.title}"] = ({"loss": dict(row.loss)}, inputs)
    return rows


def masked(rows: Mapping[str, tuple[dict[str, Any], dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Requests that leave entries out, in each way there is."""
    found: dict[str, Any] = {}
    for name, masks in (
        ("mse", {"mask": np.array([True, False])}),
        ("huber", {"element_weight": np.array([0.5, 0], np.float32)}),
        ("cross_entropy-indices", {"lengths": np.array([2, 0, 1, 2])}),
        ("dice", {"mask": np.array([1, 0])}),
        ("clip", {"mask": np.array([True, False])}),
    ):
        request, tensors = rows[name]
        shape = (4,) if name == "clip" else tensors["target"].shape
        resized_masks = {k: m if k == "lengths" else np.resize(m, shape) for k, m in masks.items()}
        found[f"{name}-{next(iter(masks))}"] = (request, {**tensors, **resized_masks})
    return found


REQUESTS = requests()


def listed(array: np.ndarray) -> Any:
    return array.tolist()


def as_object(array: np.ndarray) -> Any:
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(array.tobytes()).decode(),
    }


def body(form: str, request: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What httpx is to send, for an answer in JSON."""
    if form == "safetensors":
        pieces = safetensors.encode(
            {name: wire.Tensor.of(array) for name, array in tensors.items()}, {"request": json.dumps(request)}
        )
        return {
            "content": b"".join(bytes(piece) for piece in pieces),
            "headers": {"Content-Type": BINARY, "Accept": "application/json"},
        }
    convert = listed if form == "list" else as_object
    return {"json": {**request, "inputs": {name: convert(array) for name, array in tensors.items()}}}


def gradients(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, value in answer.get("gradient", {}).items():
        if isinstance(value, dict):
            flat = np.frombuffer(base64.b64decode(value["data"]), value["dtype"])
            arrays[name] = flat.reshape(value["shape"])
        else:
            arrays[name] = np.array(value, dtype=np.float32)
    return arrays


@pytest.fixture(scope="module")
def answer(http: httpx.Client) -> Callable[[str], dict[str, Any]]:
    """The answer to a request of the tables, sent as safetensors, which is asked for once."""

    @cache
    def ask(name: str) -> dict[str, Any]:
        response = http.post("/v1/evaluate", **body("safetensors", *REQUESTS[name]))
        assert response.status_code == 200, response.text
        return response.json()

    return ask


@in_one_item("name", REQUESTS)
def test_a_loss_gives_one_answer_in_every_form(http, answer, name: str) -> None:
    binary = answer(name)
    assert binary["diagnostics"]["finite"] is True
    for form in ("base64", "list"):
        response = http.post("/v1/evaluate", **body(form, *REQUESTS[name]))
        assert response.status_code == 200, response.text
        other = response.json()
        for field in binary.keys() - {"gradient"}:
            assert other[field] == binary[field], field
        for of_input, gradient in gradients(binary).items():
            np.testing.assert_array_equal(gradients(other)[of_input], gradient)


@in_one_item("name", REQUESTS)
def test_the_open_inference_protocol_gives_the_same_answer(answer, triton, name: str) -> None:
    request, tensors = REQUESTS[name]
    loss = dict(request["loss"])
    model = loss.pop("name")
    parameters = {k: v if isinstance(v, str | int | float) else json.dumps(v) for k, v in loss.items()}
    expected = answer(name)
    plain = triton.infer(model, infer_inputs(**tensors), parameters=parameters)
    of_inputs = gradients(expected)
    names = ["loss", "numerator", "denominator", *(f"gradient.{name}" for name in of_inputs), "diagnostics"]
    outputs = [InferRequestedOutput(name) for name in names]
    named = triton.infer(model, infer_inputs(**tensors), parameters=parameters, outputs=outputs)
    assert plain.as_numpy("loss") == named.as_numpy("loss") == expected["loss"]
    for name, value in expected["reduction"].items():
        assert named.as_numpy(name) == value
    for name, gradient in of_inputs.items():
        np.testing.assert_array_equal(named.as_numpy(f"gradient.{name}"), gradient)
    if of_inputs:
        np.testing.assert_array_equal(plain.as_numpy("gradient"), next(iter(of_inputs.values())))
    measured = {k: v for k, v in expected.get("metrics", {}).items() if k not in ("task", "undefined")}
    for name, value in measured.items():
        number = np.array(value["macro"] if isinstance(value, dict) else value, plain.as_numpy(name).dtype)
        np.testing.assert_array_equal(plain.as_numpy(name), number, strict=True)
    assert json.loads(named.as_numpy("diagnostics")[0]).items() >= expected["diagnostics"].items()
    answered = [output["name"] for output in plain.get_response()["outputs"]]
    assert answered == ["loss", *(["gradient"] if of_inputs else []), *measured]


@in_one_item("name", REQUESTS)
def test_a_model_s_metadata_tell_what_is_answered(triton, name: str) -> None:
    request, tensors = REQUESTS[name]
    if len(request["loss"]) > 1:  # metadata are of every parameter at its default
        return
    model = request["loss"]["name"]
    metadata = triton.get_model_metadata(model)
    takes = {tensor["name"].replace("*", "0") for tensor in metadata["inputs"]}
    assert {tensor for tensor in tensors if not tensor.endswith((".1", ".2", ".3"))} <= takes
    outputs = [InferRequestedOutput(tensor["name"].replace("*", "0")) for tensor in metadata["outputs"]]
    result = triton.infer(model, infer_inputs(**tensors), outputs=outputs)
    for described, answered in zip(metadata["outputs"], result.get_response()["outputs"], strict=True):
        assert described["datatype"] == answered["datatype"], described
        if "sample_weight" not in tensors and -1 not in described["shape"]:
            assert described["shape"] == answered["shape"], described
        elif described["name"] in ("tp", "fp", "fn", "tn", "support", "confusion_matrix"):
            assert len(described["shape"]) == len(answered["shape"]), described


def test_the_tables_name_every_loss_that_is_available() -> None:
    assert {request["loss"]["name"] for request, _ in REQUESTS.values()} == set(REGISTRY)


@given(names=st.lists(st.sampled_from(sorted(REQUESTS)), min_size=16, max_size=48))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mix_of_losses_at_once_is_answered_as_each_alone(service, answer, names: list[str]) -> None:
    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            return await asyncio.gather(
                *(client.post("/v1/evaluate", **body("safetensors", *REQUESTS[name])) for name in names)
            )

    for name, response in zip(names, asyncio.run(at_once()), strict=True):
        alone = answer(name)
        mixed = response.json()
        assert response.status_code == 200, mixed
        assert mixed["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-6), name
        for of_input, gradient in gradients(alone).items():
            np.testing.assert_allclose(gradients(mixed)[of_input], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


def metric_selection(*names: str) -> dict[str, Any]:
    """Return the metrics to ask for: the default k of 5 is refused where there are fewer classes."""
    return {"names": list(names), **NEEDED, "min_precision": 0.1} | ({"k": 2} if "top_k_accuracy" in names else {})


@in_one_item("name", REQUESTS)
def test_every_metric_of_its_task_is_answered_next_to_a_loss(http, answer, name: str) -> None:
    request, tensors = REQUESTS[name]
    plain = answer(name)
    if "metrics" not in plain:
        assert REGISTRY[request["loss"]["name"]].task not in METRICS
        return
    every = list(METRICS[plain["metrics"]["task"]])
    if "boundary_iou" in every and tensors["prediction"].ndim != 4:
        every.remove("boundary_iou")  # of images
    metrics_request = {**request, "metrics": metric_selection(*every)}
    response = http.post("/v1/evaluate", **body("safetensors", metrics_request, tensors))
    assert response.status_code == 200, response.text
    metrics = response.json()["metrics"]
    assert metrics.keys() - {"undefined", "task"} == set(every)
    for default, value in plain["metrics"].items():
        if default != "undefined":
            assert metrics[default] == value


TASKS = ("binary", "multilabel", "multiclass", "regression")
METRICS_ALONE = [(task, name) for task in TASKS for name in METRICS[task]]


@in_one_item("task, name", METRICS_ALONE)
def test_a_metric_is_answered_without_a_loss(http, task: str, name: str) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "binary": {"prediction": rng.standard_normal(40), "target": rng.integers(0, 2, 40)},
        "multilabel": {"prediction": rng.standard_normal((40, 3)), "target": rng.integers(0, 2, (40, 3))},
        "multiclass": {"prediction": rng.standard_normal((40, 4)), "target": rng.integers(0, 4, 40)},
        "regression": {"prediction": rng.exponential(size=40), "target": rng.exponential(size=40)},
    }[task]
    request = {"task": task, "metrics": metric_selection(name)}
    response = http.post("/v1/evaluate", **body("safetensors", request, tensors))
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["metrics"].keys() - {"task", "undefined"} == {name}
    assert answer["metrics"][name] is not None
    assert "loss" not in answer
