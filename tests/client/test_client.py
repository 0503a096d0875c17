"""Both clients against a service in a thread that speaks the wire's own codec."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from client.fake import Caller, FakeService, Reply, evaluation, problem
from lossd_client import Evaluation, LossClient, Record, Reduction
from lossd_client.errors import (
    ConnectionFailed,
    MalformedBody,
    NotFound,
    QueueFull,
    Unavailable,
    UnknownLoss,
    UnreadableAnswer,
)
from lossd_client.wire import Tensor, safetensors

PREDICTION = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], np.float32)
TARGET = np.array([0, 1])


# What is asked


def test_a_request_is_this(ask: Caller, service: FakeService) -> None:
    ask(
        service.url,
        "evaluate",
        "focal",
        PREDICTION,
        TARGET,
        gamma=2.0,
        class_weight=[1, 2, 3],
        sample_weight=np.ones(2, np.float32),
        outputs=["loss", "gradient"],
        gradient={"clip_norm": 1.0},
        metrics={"threshold": 0.5},
        client={"api_key": "secret"},
        timeout_s=5,
        request_id="r-1",
    )
    (request,) = service.requests
    assert (request.method, request.path) == ("POST", "/v1/evaluate")
    assert request.document == {
        "loss": {"name": "focal", "gamma": 2.0, "class_weight": [1, 2, 3]},
        "outputs": ["loss", "gradient"],
        "gradient": {"clip_norm": 1.0},
        "metrics": {"threshold": 0.5},
    }
    assert request.tensors == {
        "prediction": Tensor.of(PREDICTION),
        "target": Tensor.of(TARGET),
        "sample_weight": Tensor.of(np.ones(2, np.float32)),
    }
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["content-type"] == headers["accept"] == safetensors.MEDIA_TYPE
    assert headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in headers
    assert headers["authorization"] == "Bearer secret"
    assert headers["x-request-id"] == "r-1"
    assert 4900 < int(headers["x-request-timeout-ms"]) <= 5000
    assert headers["accept-encoding"] == "identity"


def test_what_is_not_given_is_not_sent(ask: Caller, service: FakeService) -> None:
    ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION)
    (request,) = service.requests
    assert request.document == {"loss": {"name": "mse"}}
    assert "Authorization" not in request.headers
    assert re.fullmatch("[0-9a-f]{32}", request.headers["X-Request-ID"])
    assert 59_000 < int(request.headers["X-Request-Timeout-Ms"]) <= 60_000


class Tensorlike:
    """An array of a library that only knows ``__array__``."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array([1.5], np.float64)


class Dlpack:
    """An array of a library that only knows DLPack."""

    def __dlpack__(self, **options: Any) -> Any:
        return np.array([2.5], np.float64).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return (1, 0)


def test_what_is_a_tensor_is_an_input_and_all_else_a_parameter(service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate(
            "triplet",
            anchor=np.zeros((1, 2)),
            positive=torch.ones(1, 2),
            negative=Tensorlike(),
            cotangent=Dlpack(),
            margin=np.float32(0.5),
            p=np.int64(2),
            swap=np.bool_(True),
            weights=(1, np.float64(2.5)),
            nested={"a": np.arange(2), "b": [torch.ones(2)]},
            form="kendall",
            nothing=None,
        )
    (request,) = service.requests
    assert request.document["loss"] == {
        "name": "triplet",
        "margin": 0.5,
        "p": 2,
        "swap": True,
        "weights": [1, 2.5],
        "nested": {"a": [0, 1], "b": [[1.0, 1.0]]},
        "form": "kendall",
        "nothing": None,
    }
    assert {n: t.numpy().tolist() for n, t in request.tensors.items()} == {
        "anchor": [[0, 0]],
        "positive": [[1, 1]],
        "negative": [1.5],
        "cotangent": [2.5],
    }


def test_inputs_may_be_named_apart(service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate("odd", inputs={"outputs": [[1, 2]], "gradient": np.ones(1), "prediction": [0.5, math.nan]})
    assert {n: (t.dtype, t.numpy().tolist()) for n, t in service.requests[0].tensors.items()} == {
        "outputs": ("int64", [[1, 2]]),
        "gradient": ("float64", [1.0]),
        "prediction": ("float32", [0.5, pytest.approx(math.nan, nan_ok=True)]),
    }


@pytest.mark.parametrize(
    ("value", "dtype", "entries"),
    [
        ([[1.5, 2]], "float32", [[1.5, 2]]),
        (((1, 2), (3, 4)), "int64", [[1, 2], [3, 4]]),
        ([True, False], "int64", [1, 0]),
        (2.5, "float32", 2.5),
        ([np.float64(0.5), np.float32(1)], "float32", [0.5, 1]),
        ([torch.tensor([1, 2])], "int64", [[1, 2]]),
        ([], "float32", []),
    ],
    ids=str,
)
def test_lists_are_tensors_where_they_stand_for_one(value: Any, dtype: str, entries: Any, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate("mse", value, PREDICTION)
    tensor = service.requests[0].tensors["prediction"]
    assert tensor.dtype == dtype
    assert tensor.numpy().tolist() == entries


@pytest.mark.parametrize(
    ("tensor", "dtype", "entries"),
    [
        (torch.arange(6, dtype=torch.float32).reshape(2, 3).T, "float32", [[0, 3], [1, 4], [2, 5]]),
        (torch.tensor([1.0, -2.5], dtype=torch.bfloat16), "bfloat16", [1.0, -2.5]),
        (torch.tensor(1.5, dtype=torch.bfloat16), "bfloat16", 1.5),
        (torch.tensor([0.5], dtype=torch.float16), "float16", [0.5]),
        (torch.tensor([True, False]), "bool", [True, False]),
        (torch.ones(2, requires_grad=True) * 2, "float32", [2.0, 2.0]),
        (torch.nn.Parameter(torch.ones(1)), "float32", [1.0]),
        (torch._neg_view(torch.ones(2)), "float32", [-1.0, -1.0]),
        (torch.ones(1).expand(3), "float32", [1.0, 1.0, 1.0]),
        (torch.zeros(0, 4), "float32", []),
    ],
)
def test_torch_tensors_travel_as_they_are(tensor: torch.Tensor, dtype: str, entries: Any, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate("mse", tensor, tensor)
    sent = service.requests[0].tensors["prediction"]
    assert sent.dtype == dtype
    assert sent.shape == tuple(tensor.shape)
    assert sent.numpy().tolist() == entries


def test_composed_losses_are_objects(service: FakeService) -> None:
    terms = [{"weight": np.float32(0.5), "loss": {"name": "mse"}}, {"loss": {"name": "mae"}}]
    with LossClient(service.url) as lossd:
        lossd.evaluate({"name": "weighted_sum", "terms": terms}, PREDICTION, PREDICTION, reduction="sum")
    assert service.requests[0].document["loss"] == {
        "name": "weighted_sum",
        "terms": [{"weight": 0.5, "loss": {"name": "mse"}}, {"loss": {"name": "mae"}}],
        "reduction": "sum",
    }


@pytest.mark.parametrize(
    ("outputs", "sent"), [("loss", ["loss"]), (("loss", "metrics"), ["loss", "metrics"]), ([], [])]
)
def test_outputs_may_be_one_or_many(outputs: Any, sent: list[str], service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate("mse", PREDICTION, PREDICTION, outputs=outputs)
    assert service.requests[0].document["outputs"] == sent


@pytest.mark.parametrize(
    ("metrics", "sent"),
    [
        ("f1", {"names": ["f1"]}),
        (("f1", "iou"), {"names": ["f1", "iou"]}),
        ({"names": "f1"}, {"names": ["f1"]}),
        ({"k": (1,)}, {"k": [1]}),
    ],
)
def test_metrics_may_be_named_or_described(metrics: Any, sent: Any, service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate("mse", PREDICTION, PREDICTION, metrics=metrics)
    assert service.requests[0].document["metrics"] == sent


def test_non_finite_parameters_are_not_silently_null(service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        lossd.evaluate("huber", PREDICTION, PREDICTION, delta=math.inf, weights=[math.nan])
    assert service.requests[0].document["loss"] == {"name": "huber", "delta": "Infinity", "weights": ["NaN"]}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "name either a loss, or a task"),
        (("mse",), {"task": "regression"}, "name either a loss, or a task"),
        (("mse", PREDICTION), {"prediction": PREDICTION}, "the input prediction is given twice"),
        (("mse", PREDICTION), {"inputs": {"prediction": [1]}}, "the input prediction is given twice"),
        (("mse",), {"inputs": {"a": [1]}, "a": PREDICTION}, "the input a is given twice"),
        (({"name": "focal", "gamma": 1},), {"gamma": 2}, "gamma of the loss is given twice"),
        (("focal",), {"name": "mse"}, "name of the loss is given twice"),
        ((), {"task": "binary", "threshold": 0.5}, "threshold: without a loss, options go into metrics={…}"),
        (("mse", "prediction"), {}, "prediction must be an array, a tensor or a (nested) list of numbers, not str"),
        (("mse", object()), {}, "not object"),
        (("mse", np.array(["a"])), {}, "prediction (numpy.ndarray): dtype str32 cannot be sent; convert to one of"),
        (("mse", PREDICTION, torch.ones(1, dtype=torch.complex64)), {}, "target (torch.Tensor): dtype complex64 "),
        (("mse", torch.eye(2).to_sparse()), {}, "prediction (torch.Tensor): "),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_meant_are_type_errors(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str, ask: Caller, service: FakeService
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        ask(service.url, "evaluate", *arguments, **options)
    assert service.requests == []


def test_a_ragged_list_is_named_with_its_place(service: FakeService) -> None:
    with LossClient(service.url) as lossd, pytest.raises(MalformedBody, match=r"target is ragged: target\[1\] has 1"):
        lossd.evaluate("mse", PREDICTION, [[1.0, 2.0], [3.0]])


def test_metrics_alone(ask: Caller, service: FakeService) -> None:
    service.default = lambda request: evaluation({"metrics": {"f1": 0.5}})
    metrics = ask(
        service.url,
        "metrics",
        "binary",
        PREDICTION,
        PREDICTION,
        threshold=0.25,
        names=("f1",),
        sample_weight=np.ones(2),
    )
    assert metrics.f1 == 0.5
    (request,) = service.requests
    assert request.document == {"task": "binary", "metrics": {"threshold": 0.25, "names": ["f1"]}}
    assert set(request.tensors) == {"prediction", "target", "sample_weight"}
    assert ask(service.url, "evaluate", None, PREDICTION, task="binary", metrics="f1").metrics.f1 == 0.5


# What is answered

RESULT = {
    "loss": 0.25,
    "reduction": {"numerator": 0.5, "denominator": 2.0},
    "metrics": {
        "task": "multiclass",
        "f1": {"macro": 0.75, "per_class": [1.0, 0.5, None]},
        "recall@1": 1.0,
        "confusion_matrix": [[1, 0], [0, 1]],
    },
    "diagnostics": {
        "finite": True,
        "gradient_norm": {"prediction": "Infinity"},
        "warnings": [{"code": "zero_gradient", "detail": "every entry of the gradient is 0"}],
    },
    "terms": [0.125, 0.125],
}


def test_an_answer_reads_like_this(ask: Caller, service: FakeService) -> None:
    gradient = np.arange(6, dtype=np.float32).reshape(2, 3)
    timing = 'parse;dur=0.125, queue;dur=2, compute;dur=1.5;desc="batch of 3", odd, cpu;dur=x'
    service.replies.append(evaluation(RESULT, {"Server-Timing": timing}, gradient__prediction=gradient))
    result = ask(service.url, "evaluate", "focal", PREDICTION, TARGET, request_id="r-7")
    assert isinstance(result, Evaluation)
    assert result.loss == 0.25
    np.testing.assert_array_equal(result.gradient, gradient)
    assert set(result.gradients) == {"prediction"}
    assert result.reduction == Reduction(numerator=0.5, denominator=2.0)
    assert result.metrics.f1.macro == result.metrics["f1"]["macro"] == 0.75
    assert result.metrics.f1.per_class == [1.0, 0.5, None]
    assert result.metrics["recall@1"] == 1.0
    assert result.metrics == RESULT["metrics"]
    assert json.loads(json.dumps(result.metrics)) == RESULT["metrics"]
    assert result.diagnostics.gradient_norm.prediction == math.inf
    assert [warning.code for warning in result.warnings] == ["zero_gradient"]
    assert result.extra == {"terms": [0.125, 0.125]}
    assert result.request_id == "r-7"
    assert result.server_timing == {"parse": 0.125, "queue": 2.0, "compute": 1.5}


def test_an_answer_that_a_proxy_has_compressed_reads_the_same(ask: Caller, service: FakeService) -> None:
    gradient = np.zeros((2, 3), np.float32)
    reply = evaluation(RESULT, {"Content-Encoding": "gzip"}, gradient__prediction=gradient)
    service.replies.append(replace(reply, body=gzip.compress(reply.body)))
    result = ask(service.url, "evaluate", "focal", PREDICTION, TARGET)
    assert result.loss == 0.25
    np.testing.assert_array_equal(result.gradient, gradient)


def test_what_was_not_asked_for_is_not_there(service: FakeService) -> None:
    service.default = lambda request: evaluation({})
    with LossClient(service.url) as lossd:
        result = lossd.evaluate("mse", PREDICTION, PREDICTION, outputs=[])
    assert (result.loss, result.gradient, result.reduction) == (None, None, None)
    assert (result.gradients, result.metrics, result.diagnostics, result.extra, result.warnings) == ({}, {}, {}, {}, [])
    with pytest.raises(AttributeError, match="there is no f1 here; there is nothing"):
        _ = result.metrics.f1


def test_non_finite_losses_are_floats(service: FakeService) -> None:
    service.replies.extend([evaluation({"loss": "NaN"}), evaluation({"loss": "-Infinity"})])
    with LossClient(service.url) as lossd:
        assert math.isnan(lossd.evaluate("mse", PREDICTION, PREDICTION).loss)
        assert lossd.evaluate("mse", PREDICTION, PREDICTION).loss == -math.inf


def test_gradients_are_of_the_kind_of_their_inputs(service: FakeService) -> None:
    bits = (np.array([1.0, -2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    service.default = lambda request: evaluation(
        {},
        loss=np.array([0.5, 0.25]),
        gradient__positive=np.array([1.0, 2.0]),
        gradient__anchor=np.array([3.0, 4.0], np.float32),
        gradient__negative=Tensor.of(bits, "bfloat16"),
    )
    with LossClient(service.url) as lossd:
        result = lossd.evaluate(
            "triplet",
            anchor=torch.ones(2, requires_grad=True),
            positive=np.ones(2),
            negative=torch.ones(2, dtype=torch.bfloat16),
            reduction="none",
        )
    assert list(result.gradients) == ["anchor", "positive", "negative"], "in the order of the inputs"
    assert result.gradient is result.gradients["anchor"]
    assert isinstance(result.loss, torch.Tensor)
    assert torch.equal(result.loss, torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert torch.equal(result.gradients["anchor"], torch.tensor([3.0, 4.0]))
    assert isinstance(result.gradients["positive"], np.ndarray)
    assert torch.equal(result.gradients["negative"], torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    assert not result.gradients["anchor"].requires_grad


def test_answers_go_back_to_the_device_they_came_from() -> None:
    from lossd_client.arrays import Origin

    returned = Origin(torch.device("meta")).receive(Tensor.of(np.ones((2, 3), np.float32)))
    assert (returned.device.type, returned.dtype, tuple(returned.shape)) == ("meta", torch.float32, (2, 3))


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_answers_are_writable_and_aligned(shape: tuple[int, ...], kind: str, ask: Caller, service: FakeService) -> None:
    service.replies.append(evaluation({}, loss=np.ones(3, np.float32), gradient__prediction=np.ones(shape)))
    prediction = np.ones(shape) if kind == "numpy" else torch.ones(shape)
    result = ask(service.url, "evaluate", "mse", prediction, prediction)
    result.gradient[...] = 7
    assert result.gradient.tolist() == np.full(shape, 7.0).tolist()
    if kind == "numpy":
        assert result.gradient.flags.writeable
        assert result.gradient.flags.aligned
    assert result.loss.tolist() == [1, 1, 1], "its neighbour in the buffer is untouched"


def test_results_have_a_readable_repr(service: FakeService) -> None:
    service.replies.append(evaluation(RESULT, gradient__prediction=np.ones((2, 3), np.float32)))
    service.replies.append(evaluation({"metrics": {"curve": list(range(100))}}, loss=np.ones(4)))
    with LossClient(service.url) as lossd:
        first = lossd.evaluate("focal", PREDICTION, TARGET)
        second = lossd.evaluate("focal", torch.from_numpy(PREDICTION), TARGET)
    assert repr(first) == (
        "Evaluation(loss=0.25, gradients={'prediction': <float32 (2, 3)>}, metrics=Record(task='multiclass', "
        "f1=Record(macro=0.75, per_class=[1.0, 0.5, None]), recall@1=1.0, confusion_matrix=[[1, 0], [0, 1]]), "
        "extra=Record(terms=[0.125, 0.125]), warnings=['zero_gradient'])"
    )
    assert repr(second) == ("Evaluation(loss=<float64 (4,)>, metrics=Record(curve=[0, 1, 2, 3, 4, 5, … 100 in all]))")


def test_records_name_what_they_hold() -> None:
    record = Record({"f1": {"macro": 1.0}, "iou": None})
    assert {"f1", "iou", "keys"} <= set(dir(record))
    with pytest.raises(AttributeError, match="there is no precision here; there is f1, iou"):
        _ = record.precision
    assert not hasattr(record, "__array__")


def test_a_large_result_is_read(service: FakeService) -> None:
    curve = [i / 7 for i in range(100_000)]
    service.replies.append(evaluation({"metrics": {"curve": curve}}))
    with LossClient(service.url) as lossd:
        assert lossd.evaluate("mse", PREDICTION, PREDICTION).metrics.curve == curve


def test_an_answer_of_unknown_length_is_read(ask: Caller, service: FakeService) -> None:
    reply = evaluation({"loss": 0.5}, gradient__prediction=np.ones(100_000))
    reply.announce = False
    service.replies.append(reply)
    result = ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION)
    gradient = result.gradient
    gradient += 1
    assert gradient.sum() == 200_000


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply(200, {"Content-Type": "text/html"}, b"<h1>It works!</h1>"),
            "the answer is text/html, not application/vnd",
        ),
        (Reply(200, {}, b"hello"), "the answer is no media type"),
        (
            Reply(200, {"Content-Type": safetensors.MEDIA_TYPE}, b"hello"),
            "the answer cannot be read: a safetensors body",
        ),
        (
            Reply(200, {"Content-Type": safetensors.MEDIA_TYPE}, b"".join(safetensors.encode({}, {}))),
            "the result is not",
        ),
        (
            Reply(200, {"Content-Type": safetensors.MEDIA_TYPE}, b"".join(safetensors.encode({}, {"result": "[]"}))),
            "the answer's result is not an object",
        ),
        (Reply(302, {"Location": "https://login.test/"}), "status 302 to https://login.test/"),
    ],
)
def test_answers_that_are_not_lossds_are_unreadable(
    reply: Reply, message: str, ask: Caller, service: FakeService
) -> None:
    service.replies.append(reply)
    with pytest.raises(UnreadableAnswer, match=re.escape(message)) as caught:
        ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION, request_id="r-3")
    assert caught.value.request_id == "r-3"


# Failing and trying again


def test_problems_are_raised_as_their_classes(ask: Caller, service: FakeService) -> None:
    service.replies.append(problem(404, "unknown-loss", "there is no loss named 'foca'; did you mean focal?"))
    with pytest.raises(UnknownLoss, match="did you mean focal") as caught:
        ask(service.url, "evaluate", "foca", PREDICTION, TARGET, request_id="r-4")
    assert caught.value.request_id == "r-4"
    assert len(service.requests) == 1


def test_a_busy_service_is_asked_again_with_the_same_request(ask: Caller, service: FakeService) -> None:
    service.replies.extend(
        [problem(429, "queue-full", headers={"Retry-After": "0"}), problem(503, "unavailable"), None]
    )
    assert ask(service.url, "evaluate", "focal", PREDICTION, TARGET, gamma=2.0).loss == 0.5
    assert len(service.requests) == 4
    assert len({request.body for request in service.requests}) == 1
    assert len({request.headers["X-Request-ID"] for request in service.requests}) == 1
    timeouts_ms = [int(request.headers["X-Request-Timeout-Ms"]) for request in service.requests]
    assert timeouts_ms == sorted(timeouts_ms, reverse=True)
    assert timeouts_ms[-1] < timeouts_ms[0]


def test_patience_ends(ask: Caller, service: FakeService) -> None:
    service.default = lambda request: problem(429, "queue-full", "full", {"Retry-After": "0"})
    with pytest.raises(QueueFull):
        ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION, client={"retries": 1})
    assert len(service.requests) == 2


def test_an_answer_that_breaks_off_is_asked_for_again(ask: Caller, service: FakeService) -> None:
    broken = evaluation({"loss": 0.125}, gradient__prediction=np.ones(1000))
    broken.missing = 10
    service.replies.append(broken)
    assert ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION).loss == 0.5
    assert len(service.requests) == 2


def test_nothing_listening_is_said_with_the_address(ask: Caller, service: FakeService) -> None:
    service.stop()
    with pytest.raises(ConnectionFailed, match=f"cannot connect to {service.url}/v1/evaluate .*lossd serve") as caught:
        ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION, client={"retries": 0})
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert caught.value.request_id
    service._server.socket.close()


def test_silence_ends_with_the_time_out(ask: Caller, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd_client.calls.GRACE_S", 0.0)
    service.default = lambda request: Reply(delay_s=0.5)
    with pytest.raises(ConnectionFailed, match=r"did not answer within 0\.1 s"):
        ask(service.url, "evaluate", "mse", PREDICTION, PREDICTION, timeout_s=0.1)
    deadline = time.monotonic() + 10  # on a busy machine the service notes the request later than that
    while not service.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(service.requests) == 1


def test_an_address_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="'localhost:8000' is not an address; it must start with http:// or https://"):
        LossClient("localhost:8000")


# The rest of the service


def test_the_catalogue_is_read(ask: Caller, service: FakeService) -> None:
    entry = {"name": "focal", "parameters": {"gamma": {"default": 2.0}}}
    body = json.dumps({"losses": [entry]}).encode()
    service.replies.append(Reply(200, {"Content-Type": "application/json"}, body))
    (loss,) = ask(service.url + "/", "losses")
    assert loss.parameters.gamma.default == 2.0
    service.replies.append(Reply(200, {"Content-Type": "application/json"}, json.dumps(entry).encode()))
    assert ask(service.url, "loss", "a/b?ü").name == "focal"
    service.replies.append(Reply(200, {"Content-Type": "application/json"}, b'{"status":"live","version":"0.1.0"}'))
    assert ask(service.url, "health").version == "0.1.0"
    assert [request.path for request in service.requests] == ["/v1/losses", "/v1/losses/a%2Fb%3F%C3%BC", "/health/live"]
    assert all("X-Request-Timeout-Ms" not in request.headers for request in service.requests)


@pytest.mark.parametrize("body", [b"hello", b"[]"])
def test_another_programs_page_is_no_catalogue(body: bytes, ask: Caller, service: FakeService) -> None:
    service.replies.append(Reply(200, {"Content-Type": "text/html"}, body))
    with pytest.raises(UnreadableAnswer, match="is it lossd"):
        ask(service.url, "losses")


def test_readiness_is_asked_once(ask: Caller, service: FakeService) -> None:
    service.replies.extend([problem(503, "unavailable"), Reply(200, {}, b"{}")])
    assert ask(service.url, "ready") is False
    assert ask(service.url, "ready") is True
    service.stop()
    assert ask(service.url, "ready") is False


def test_a_service_that_starts_is_waited_for(ask: Caller, service: FakeService) -> None:
    service.replies.extend([None, problem(503, "unavailable"), Reply(200, {}, b"{}")])
    assert ask(service.url, "wait_until_ready", 5.0) is None
    assert len(service.requests) == 3


def test_waiting_ends(ask: Caller, service: FakeService) -> None:
    service.default = lambda request: problem(503, "unavailable", "waiting for a worker")
    with pytest.raises(Unavailable, match="waiting for a worker") as caught:
        ask(service.url, "wait_until_ready", 0.2)
    assert caught.value.__notes__ == [f"{service.url} was not ready within 0.2 s"]


def test_waiting_for_something_else_ends_at_once(ask: Caller, service: FakeService) -> None:
    service.default = lambda request: Reply(404, {}, b"nothing here")
    with pytest.raises(NotFound, match="is it lossd"):
        ask(service.url, "wait_until_ready", 60.0)


# Sockets and memory


def test_connections_are_kept(service: FakeService) -> None:
    with LossClient(service.url) as lossd:
        for _ in range(5):
            lossd.evaluate("mse", PREDICTION, PREDICTION)
    assert service.connections == 1


def test_a_client_of_ones_own_is_used_and_not_closed(service: FakeService) -> None:
    client_headers = {"X-Proxy": "yes", "User-Agent": "mine", "Accept": "text/html"}
    with httpx.Client(headers=client_headers, cookies={"backend": "b1"}) as http:
        with LossClient(service.url, http=http) as lossd:
            lossd.evaluate("mse", PREDICTION, PREDICTION)
        assert not http.is_closed
    headers = service.requests[0].headers
    assert headers["X-Proxy"] == "yes"
    assert headers["Cookie"] == "backend=b1"
    assert headers.get_all("Accept") == [safetensors.MEDIA_TYPE]
    assert headers.get_all("User-Agent") == ["lossd-client"]
    assert headers.get_all("Host") == [service.url.removeprefix("http://")]
    lossd = LossClient(service.url)
    lossd.close()
    assert lossd._http.is_closed


class Discard(httpx.BaseTransport):
    """Takes a body chunk by chunk, keeps nothing, and answers with as much."""

    def __init__(self, nbytes: int) -> None:
        self.head = safetensors.encode_header(
            [("gradient.prediction", "float32", (nbytes // 4,), nbytes)], {"result": "{}"}
        )
        self.nbytes = nbytes
        self.received = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        for chunk in request.stream:
            self.received += len(chunk)

        def content() -> Iterator[bytes]:
            yield self.head
            for _ in range(self.nbytes // 65536):
                yield bytes(65536)

        headers = {"Content-Type": safetensors.MEDIA_TYPE, "Content-Length": str(len(self.head) + self.nbytes)}
        return httpx.Response(200, headers=headers, content=content())


def test_tensors_are_not_copied_on_their_way_out_or_back() -> None:
    nbytes = 32 << 20
    prediction = np.zeros(nbytes // 4, np.float32)
    transport = Discard(nbytes)
    with LossClient("http://lossd.test", http=httpx.Client(transport=transport)) as lossd:
        lossd.evaluate("mse", prediction[:10], prediction[:10])  # what is imported and cached once is not counted
        tracemalloc.start()
        try:
            result = lossd.evaluate("mse", prediction, prediction)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert transport.received > 2 * nbytes
    assert result.gradient.nbytes == nbytes
    assert peak < nbytes + (1 << 20), "one buffer for the answer, and nothing else of its size"


# What is imported

ISOLATION = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import lossd_client
{then}
print(sorted(name for name in {watched} if sys.modules.get(name)))
"""


def run(then: str, *, blocked: list[str], watched: list[str]) -> str:
    script = ISOLATION.format(blocked=blocked, then=then, watched=watched)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


BEYOND = ["torch", "fastapi", "starlette", "pydantic", "uvicorn", "orjson", "lossd", "safetensors"]


def test_the_client_needs_numpy_and_httpx_alone(service: FakeService) -> None:
    service.default = lambda request: evaluation(RESULT, gradient__prediction=np.ones((1, 2), np.float32))
    then = f"""
import numpy
with lossd_client.LossClient({service.url!r}) as lossd:
    result = lossd.evaluate("mse", numpy.ones((1, 2), numpy.float32), [[1.0, 2.0]], gamma=2.0)
    assert result.gradient.tolist() == [[1.0, 1.0]] and result.metrics.f1.macro == 0.75, result
"""
    assert run(then, blocked=BEYOND, watched=BEYOND) == "[]"
    assert service.requests[0].document == {"loss": {"name": "mse", "gamma": 2.0}}


def test_the_client_imports_no_framework_that_is_there() -> None:
    watched = [name for name in BEYOND if name != "orjson"]
    assert run("lossd_client.LossClient, lossd_client.AsyncLossClient", blocked=[], watched=watched) == "[]"


def test_the_wire_and_the_errors_do_without_httpx() -> None:
    then = "import lossd_client.errors, lossd_client.wire.json, lossd_client.wire.safetensors"
    assert run(then, blocked=["httpx"], watched=[]) == "[]"


def test_every_public_name_is_there() -> None:
    import lossd_client

    for name in lossd_client.__all__:
        assert getattr(lossd_client, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Client'"):
        _ = lossd_client.Client  # type: ignore[attr-defined]
