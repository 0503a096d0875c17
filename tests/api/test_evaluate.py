"""One request from end to end, in each wire format, and every fault it can have."""

from __future__ import annotations

import asyncio
import base64
import json
import socket

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.metrics import confusion_matrix, f1_score

BINARY = "application/vnd.safetensors"
MSE = {
    "loss": {"name": "mse"},
    "inputs": {"prediction": [2.5, 0.0, 2.1, 7.8], "target": [3.0, -0.5, 2.0, 8.0]},
}


def focal_tensors(rows: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "prediction": rng.standard_normal((rows, 3)).astype(np.float32),
        "target": rng.integers(0, 3, rows),
    }


def focal_reference(prediction: np.ndarray, target: np.ndarray, gamma: float) -> tuple[float, np.ndarray]:
    """Mean focal loss and its gradient by central differences, in float64 NumPy."""
    target = target.astype(int)

    def loss(z: np.ndarray) -> float:
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        log_pt = log_p[np.arange(len(z)), target]
        return float(np.mean(-((1 - np.exp(log_pt)) ** gamma) * log_pt))

    z = prediction.astype(np.float64)
    gradient = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[index] = 1e-6
        gradient[index] = (loss(z + step) - loss(z - step)) / 2e-6
    return loss(z), gradient


def object_of(array: np.ndarray) -> dict:
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def post(http: httpx.Client, request: dict, tensors: dict, form: str, **headers: str) -> httpx.Response:
    if form == "list":
        return http.post("/v1/evaluate", json={**request, "inputs": {n: t.tolist() for n, t in tensors.items()}})
    if form == "base64":
        return http.post("/v1/evaluate", json={**request, "inputs": {n: object_of(t) for n, t in tensors.items()}})
    body = save(tensors, metadata={"request": json.dumps(request)})
    return http.post("/v1/evaluate", content=body, headers={"Content-Type": BINARY, **headers})


def answer_of(response: httpx.Response) -> tuple[dict, dict[str, np.ndarray]]:
    """The answer's JSON and its tensors, whatever form it has."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == BINARY:
        size = int.from_bytes(response.content[:8], "little")
        assert size % 64 == 56, "the tensors start on a 64-byte boundary"
        metadata = json.loads(response.content[8 : 8 + size])["__metadata__"]
        return json.loads(metadata["result"]), load(response.content)
    document = response.json()
    tensors = {}
    for name, value in document.pop("gradient", {}).items():
        if isinstance(value, dict):
            flat = np.frombuffer(base64.b64decode(value["data"]), value["dtype"])
            tensors[f"gradient.{name}"] = flat.reshape(value["shape"])
        else:
            tensors[f"gradient.{name}"] = np.array(value, dtype=np.float32)
    return document, tensors


@pytest.mark.parametrize("form", ["list", "base64", "safetensors"])
def test_each_form_gives_loss_gradient_and_metrics(http, form):
    tensors = focal_tensors()
    answer, arrays = answer_of(post(http, {"loss": {"name": "focal", "gamma": 1.5}}, tensors, form))
    loss, gradient = focal_reference(**tensors, gamma=1.5)
    assert answer["loss"] == pytest.approx(loss, rel=1e-5)
    assert answer["reduction"] == {"numerator": pytest.approx(6 * loss, rel=1e-5), "denominator": 6.0}
    np.testing.assert_allclose(arrays["gradient.prediction"], gradient, rtol=1e-4, atol=1e-6)
    predicted = tensors["prediction"].argmax(1)
    metrics = answer["metrics"]
    assert metrics["confusion_matrix"] == confusion_matrix(tensors["target"], predicted, labels=[0, 1, 2]).tolist()
    expected = f1_score(tensors["target"], predicted, average="macro", labels=np.unique([tensors["target"], predicted]))
    assert metrics["f1"]["macro"] == pytest.approx(expected)
    assert answer["diagnostics"]["chance_level"] == pytest.approx(np.log(3))


def test_every_form_gives_the_same_answer_to_the_last_digit(http):
    tensors = focal_tensors()
    request = {"loss": {"name": "focal"}}
    (listed, a), (object_, b), (binary, c) = (
        answer_of(post(http, request, tensors, form)) for form in ("list", "base64", "safetensors")
    )
    assert listed == object_ == binary
    for arrays in (b, c):
        np.testing.assert_array_equal(a["gradient.prediction"], arrays["gradient.prediction"])


def test_accept_chooses_the_answers_form(http):
    response = post(http, {"loss": {"name": "focal"}}, focal_tensors(), "safetensors", Accept="application/json")
    assert response.headers["content-type"] == "application/json"
    assert len(response.json()["gradient"]["prediction"]) == 6
    response = http.post("/v1/evaluate", json=MSE, headers={"Accept": BINARY})
    assert load(response.content)["gradient.prediction"].shape == (4,)


def test_a_file_without_metadata_is_posted_with_the_request_in_the_query(http):
    tensors = focal_tensors()
    response = http.post(
        "/v1/evaluate",
        content=save(tensors),
        headers={"Content-Type": BINARY},
        params={"request": '{"loss":{"name":"focal","gamma":1.5}}'},
    )
    answer, _ = answer_of(response)
    assert answer["loss"] == pytest.approx(focal_reference(**tensors, gamma=1.5)[0], rel=1e-5)
    two = [("request", '{"loss":"focal"}'), ("request", '{"loss":"cross_entropy"}')]
    refused = http.post("/v1/evaluate", content=save(tensors), headers={"Content-Type": BINARY}, params=two)
    check_problem(refused, 422, "invalid-request", ["twice"])


@pytest.mark.parametrize(
    ("outputs", "fields"),
    [
        (["loss"], {"loss", "reduction", "diagnostics"}),
        (["gradient"], {"gradient", "diagnostics"}),
        (["metrics"], {"metrics", "diagnostics"}),
        (["loss", "gradient.prediction"], {"loss", "reduction", "gradient", "diagnostics"}),
    ],
)
def test_what_is_not_asked_for_is_not_answered(http, outputs, fields):
    assert set(http.post("/v1/evaluate", json={**MSE, "outputs": outputs}).json()) == fields


def test_an_unreduced_loss_travels_in_each_form(http):
    tensors = focal_tensors()
    request = {"loss": {"name": "focal", "reduction": "none"}}
    listed = post(http, request, tensors, "list").json()["loss"]
    binary = load(post(http, request, tensors, "safetensors").content)["loss"]
    assert len(listed) == 6
    np.testing.assert_array_equal(np.array(listed, np.float32), binary)
    assert np.mean(listed) == pytest.approx(focal_reference(**tensors, gamma=2.0)[0], rel=1e-5)


def test_a_large_body_is_streamed_and_equals_its_parts(http):
    """Over stream_bytes the body goes into shared memory as it arrives; the answer is that of the small way."""
    tensors = focal_tensors(rows=200_000)
    whole, arrays = answer_of(post(http, {"loss": {"name": "focal"}}, tensors, "safetensors"))
    numerator = 0.0
    for part in range(10):
        rows = slice(part * 20_000, (part + 1) * 20_000)
        answer, of_part = answer_of(
            post(http, {"loss": {"name": "focal"}}, {n: t[rows] for n, t in tensors.items()}, "safetensors")
        )
        numerator += answer["reduction"]["numerator"]
        np.testing.assert_allclose(of_part["gradient.prediction"] / 10, arrays["gradient.prediction"][rows], rtol=1e-5)
    assert whole["reduction"]["numerator"] == pytest.approx(numerator, rel=1e-9)
    assert arrays["gradient.prediction"].shape == (200_000, 3)


def test_half_precision_is_computed_in_float32_and_answered_in_it(http):
    tensors = focal_tensors()
    half = {**tensors, "prediction": tensors["prediction"].astype(np.float16)}
    answer, arrays = answer_of(post(http, {"loss": {"name": "focal"}}, half, "safetensors"))
    loss, _ = focal_reference(half["prediction"], half["target"], 2.0)
    assert answer["loss"] == pytest.approx(loss, rel=1e-5)
    assert arrays["gradient.prediction"].dtype == np.float32


def test_the_gradient_options_clip_and_convert(http):
    request = {**MSE, "gradient": {"clip_norm": 0.1, "dtype": "float64"}}
    response = http.post("/v1/evaluate", json=request, headers={"Accept": BINARY})
    gradient = load(response.content)["gradient.prediction"]
    assert gradient.dtype == np.float64
    assert np.linalg.norm(gradient) == pytest.approx(0.1)
    clamped = http.post("/v1/evaluate", json={**MSE, "gradient": {"clip_value": 0.2}}).json()
    assert clamped["gradient"]["prediction"] == pytest.approx([-0.2, 0.2, 0.05, -0.1], rel=1e-5)
    assert clamped["diagnostics"]["gradient_norm"]["prediction"] == pytest.approx(0.37081, rel=1e-4)


def test_non_finite_numbers_travel_as_strings_both_ways(http):
    request = {"loss": {"name": "mse"}, "inputs": {"prediction": ["Infinity", 1.0], "target": [0.0, 1.0]}}
    answer = http.post("/v1/evaluate", json=request).json()
    assert answer["loss"] == "Infinity"
    assert answer["gradient"]["prediction"] == ["Infinity", 0.0]
    assert answer["diagnostics"]["finite"] is False
    assert [w["code"] for w in answer["diagnostics"]["warnings"]] == ["non_finite"]


def test_request_ids_and_timings_are_answered(http):
    response = http.post("/v1/evaluate", json=MSE, headers={"X-Request-ID": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    stages = [part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")]
    assert stages == ["parse", "queue", "copy", "compute", "encode"]
    first, second = (http.post("/v1/evaluate", json=MSE).headers["x-request-id"] for _ in range(2))
    assert first != second


def binary_body(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ASK = {"__metadata__": {"request": '{"loss":{"name":"mse"}}'}}
PAIR = {**ASK, "prediction": entry("F32", [2], 0, 8), "target": entry("F32", [2], 8, 16)}
X = [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]

BAD_JSON = [
    ("not json", b"{", 400, "malformed-body", ["JSON"]),
    ("bare NaN", b'{"loss":{"name":"mse"},"inputs":{"prediction":[NaN],"target":[1]}}', 400, "malformed-body", []),
    ("a list", b"[]", 422, "invalid-request", ["object"]),
    ("no inputs", {"loss": {"name": "mse"}}, 422, "invalid-request", ["inputs"]),
    ("unknown loss", {**MSE, "loss": {"name": "l1"}}, 404, "unknown-loss", ["l1", "mae"]),
    ("misspelt loss", {**MSE, "loss": {"name": "hubber"}}, 404, "unknown-loss", ["huber"]),
    ("unknown parameter", {**MSE, "loss": {"name": "huber", "dleta": 1}}, 422, "invalid-request", ["dleta", "delta"]),
    ("parameter out of range", {**MSE, "loss": {"name": "huber", "delta": 0}}, 422, "invalid-request", ["delta", "0"]),
    ("unknown field", {**MSE, "output": ["loss"]}, 422, "invalid-request", ["output", "outputs"]),
    ("unknown output", {**MSE, "outputs": ["los"]}, 422, "invalid-request", ["los"]),
    ("no such gradient", {**MSE, "outputs": ["gradient.target"]}, 422, "invalid-request", ["target", "prediction"]),
    ("missing input", {**MSE, "inputs": {"prediction": [1.0]}}, 422, "missing-input", ["target"]),
    (
        "unknown input",
        {**MSE, "inputs": {**MSE["inputs"], "wieght": [1.0]}},
        422,
        "unknown-input",
        ["wieght"],
    ),
    (
        "wrong shape",
        {"loss": {"name": "mse"}, "inputs": {"prediction": [[1.0, 2.0]], "target": [1.0, 2.0]}},
        422,
        "shape-mismatch",
        ["target", "(2,)", "(1, 2)"],
    ),
    (
        "ragged",
        {"loss": {"name": "mse"}, "inputs": {"prediction": [[1.0, 2.0], [3.0]], "target": [1.0, 2.0]}},
        400,
        "malformed-body",
        ["prediction", "ragged"],
    ),
    (
        "class out of range",
        {"loss": {"name": "cross_entropy"}, "inputs": {"prediction": X, "target": [0, 3]}},
        422,
        "invalid-value",
        ["3", "target[1]", "0 to 2"],
    ),
    (
        "fractional class",
        {"loss": {"name": "multi_margin"}, "inputs": {"prediction": X, "target": [0, 1.5]}},
        422,
        "dtype-mismatch",
        ["1.5", "target[1]"],
    ),
    (
        "probability over 1",
        {"loss": {"name": "bce"}, "inputs": {"prediction": [0.2, 3.2], "target": [0, 1]}},
        422,
        "invalid-value",
        ["3.2", "prediction[1]", "[0, 1]", "bce_with_logits"],
    ),
    (
        "NaN target",
        {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [1.0, "NaN"]}},
        422,
        "invalid-value",
        ["NaN", "target[1]"],
    ),
    (
        "infinite target",
        {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": ["Infinity"]}},
        422,
        "invalid-value",
        ["Infinity", "target[0]"],
    ),
    ("empty", {"loss": {"name": "mse"}, "inputs": {"prediction": [], "target": []}}, 422, "shape-mismatch", ["empty"]),
    (
        "class weights of the wrong length",
        {"loss": {"name": "focal", "class_weight": [1, 2]}, "inputs": {"prediction": X, "target": [0, 1]}},
        422,
        "invalid-request",
        ["class_weight", "2", "3"],
    ),
    (
        "base64 too short",
        {"loss": {"name": "mse"}, "inputs": {"prediction": {"dtype": "float32", "shape": [2], "data": "AAAA"}}},
        422,
        "shape-mismatch",
        ["prediction", "8 bytes", "3"],
    ),
]

BAD_BINARY = [
    ("shorter than a prefix", b"\x01\x02", 400, "malformed-body", ["8 bytes"]),
    ("truncated header", binary_body(b"{", length=100), 400, "malformed-body", ["ends inside"]),
    ("huge header", binary_body(b"{}", length=1 << 60), 413, "too-large", [str(1 << 60)]),
    ("not json", binary_body(b"{nope}"), 400, "malformed-body", ["JSON"]),
    ("truncated tensors", binary_body(PAIR, b"\0" * 12), 400, "malformed-body", ["16", "12"]),
    ("left-over bytes", binary_body(PAIR, b"\0" * 20), 400, "malformed-body", ["16", "20"]),
    (
        "lying offsets",
        binary_body({**ASK, "prediction": entry("F32", [3], 0, 8)}, b"\0" * 8),
        400,
        "malformed-body",
        ["prediction", "12"],
    ),
    (
        "overlap",
        binary_body({**PAIR, "target": entry("F32", [2], 4, 12)}, b"\0" * 12),
        400,
        "malformed-body",
        ["target", "overlaps"],
    ),
    (
        "overflowing shape",
        binary_body({**ASK, "prediction": entry("F32", [1 << 40, 1 << 40], 0, 8)}, b"\0" * 8),
        400,
        "malformed-body",
        ["prediction"],
    ),
    (
        "no request",
        binary_body({"prediction": entry("F32", [2], 0, 8)}, b"\0" * 8),
        422,
        "invalid-request",
        ["request"],
    ),
]


def check_problem(response: httpx.Response, status: int, kind: str, words: list[str]) -> None:
    problem = response.json()
    assert (response.status_code, problem["type"]) == (status, f"/problems/{kind}"), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    for word in words:
        assert word in problem["detail"], problem["detail"]


@pytest.mark.parametrize(("body", "status", "kind", "words"), [b[1:] for b in BAD_JSON], ids=[b[0] for b in BAD_JSON])
def test_bad_json_is_answered_with_what_is_wrong_and_where(http, body, status, kind, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post("/v1/evaluate", content=content, headers={"Content-Type": "application/json"})
    check_problem(response, status, kind, words)


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"), [b[1:] for b in BAD_BINARY], ids=[b[0] for b in BAD_BINARY]
)
def test_bad_binary_is_answered_with_what_is_wrong_and_where(http, body, status, kind, words):
    check_problem(http.post("/v1/evaluate", content=body, headers={"Content-Type": BINARY}), status, kind, words)


def test_several_faults_each_have_their_pointer(http):
    request = {**MSE, "loss": {"name": "huber", "delta": -1, "foo": 2}}
    problem = http.post("/v1/evaluate", json=request).json()
    assert {fault["pointer"] for fault in problem["errors"]} == {"/loss/delta", "/loss/foo"}


def test_content_types_and_methods_are_named(http):
    response = http.post("/v1/evaluate", content=b"x", headers={"Content-Type": "text/csv"})
    check_problem(response, 415, "unsupported-media-type", ["text/csv", "application/json"])
    response = http.post("/v1/evaluate", json=MSE, headers={"Content-Encoding": "br"})
    check_problem(response, 415, "unsupported-media-type", ["br"])
    response = http.get("/v1/evaluate")
    check_problem(response, 405, "method-not-allowed", ["POST"])
    assert response.headers["allow"] == "POST"
    check_problem(
        http.post("/v1/evaluate", json=MSE, headers={"X-Request-Timeout-Ms": "soon"}), 422, "invalid-request", []
    )


def test_a_body_over_the_limit_is_refused_before_it_is_read(service):
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            b"POST /v1/evaluate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        connection.settimeout(10)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"max_body_bytes" in answer


def test_a_lying_content_length_does_not_hold_memory(service, http):
    """A streamed body whose header describes less than its Content-Length is refused at the header."""
    tensors = focal_tensors(rows=100_000)
    body = save(tensors, metadata={"request": '{"loss":{"name":"focal"}}'})
    response = http.post("/v1/evaluate", content=body + b"\0" * 64, headers={"Content-Type": BINARY})
    check_problem(response, 400, "malformed-body", [])
    service.wait_until(lambda e: e.in_progress == 0)
    assert service.engine.pool.in_use == 0


def test_poisoned_requests_do_not_touch_their_neighbours(service):
    """64 at once, every fourth of them bad in its own way; each good one gets exactly the answer it gets alone."""

    def request(seed: int) -> tuple[dict, str | None]:
        tensors = focal_tensors(rows=5 + seed % 7, seed=seed)
        kind = None
        if seed % 4 == 3:
            kind = ["class", "nan", "shape", "parameter"][seed // 4 % 4]
        listed = {name: tensor.tolist() for name, tensor in tensors.items()}
        loss = {"name": "focal", "gamma": 1.0 + seed % 3}
        if kind == "class":
            listed["target"][0] = 17
        elif kind == "nan":
            listed["prediction"][1] = ["NaN"] * 3
        elif kind == "shape":
            listed["target"].append(0)
        elif kind == "parameter":
            loss["gamma"] = -1.0
        return {"loss": loss, "inputs": listed}, kind

    async def all_at_once(requests: list[dict]) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as http:
            return await asyncio.gather(*(http.post("/v1/evaluate", json=r) for r in requests))

    requests, kinds = zip(*(request(seed) for seed in range(64)), strict=True)
    before = service.engine.stats.batches
    together = asyncio.run(all_at_once(list(requests)))
    batches = service.engine.stats.batches - before
    assert batches < 60, "some of them must have shared a batch for this test to mean anything"
    with httpx.Client(base_url=service.url) as http:
        alone = [http.post("/v1/evaluate", json=r) for r in requests]
    for kind, shared, single in zip(kinds, together, alone, strict=True):
        assert shared.status_code == single.status_code == (422 if kind in ("class", "shape", "parameter") else 200)
        if shared.status_code != 200:
            assert shared.json()["detail"] == single.json()["detail"]
            continue
        a, b = shared.json(), single.json()
        assert a["metrics"] == b["metrics"] or kind == "nan"
        if kind == "nan":
            assert a["loss"] == b["loss"] == "NaN"
            assert a["diagnostics"]["finite"] is False
        else:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
            np.testing.assert_allclose(a["gradient"]["prediction"], b["gradient"]["prediction"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float32"])
def test_integers_for_floats_are_taken_in_every_form_and_protocol(http, dtype):
    tensors = {"prediction": np.array([2.5, 0.0, 2.0], np.float32), "target": np.array([1, 0, 1], dtype)}
    request = {"loss": {"name": "mse"}, "outputs": ["loss", "gradient"]}
    for form in ("list", "base64", "safetensors"):
        answer, _ = answer_of(post(http, request, tensors, form))
        assert answer["loss"] == pytest.approx(3.25 / 3)
    datatype = {"bool": "BOOL", "float32": "FP32"}.get(dtype, dtype.upper())
    inputs = [
        {"name": "prediction", "shape": [3], "datatype": "FP32", "data": [2.5, 0.0, 2.0]},
        {"name": "target", "shape": [3], "datatype": datatype, "data": tensors["target"].tolist()},
    ]
    answer = http.post("/v2/models/mse/infer", json={"inputs": inputs, "outputs": [{"name": "loss"}]}).json()
    assert answer["outputs"][0]["data"] == [pytest.approx(3.25 / 3)]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_predicted_classes_are_taken_in_every_form_and_protocol(http, dtype):
    tensors = {"prediction": np.array([[2, 0, 1], [1, 1, 0]], dtype), "target": np.array([[2, 0, 1], [0, 1, 1]], dtype)}
    true, predicted = tensors["target"].ravel(), tensors["prediction"].ravel()
    matrix = confusion_matrix(true, predicted)
    request = {"task": "segmentation", "metrics": {"classes": 3}}
    for form in ("list", "base64", "safetensors"):
        answer, _ = answer_of(post(http, request, tensors, form))
        assert answer["metrics"]["confusion_matrix"] == matrix.tolist()
        assert answer["metrics"]["f1"]["macro"] == pytest.approx(f1_score(true, predicted, average="macro"), abs=1e-12)
    inputs = [
        {"name": name, "shape": [2, 3], "datatype": dtype.upper(), "data": array.tolist()}
        for name, array in tensors.items()
    ]
    infer = {"inputs": inputs, "parameters": {"metrics.classes": 3}}
    answer = http.post("/v2/models/metrics.segmentation/infer", json=infer).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["confusion_matrix"] == {
        **outputs["confusion_matrix"],
        "shape": [3, 3],
        "data": matrix.ravel().tolist(),
    }
    refused = http.post("/v1/evaluate", json={**request, "inputs": {"prediction": [0.0, 1.0], "target": [0, 1]}})
    assert refused.status_code == 422
    assert "prediction must hold integers" in refused.json()["detail"]


def test_a_name_stands_for_a_loss_an_output_and_a_metric(http):
    short = {"loss": "mse", "outputs": "loss", "inputs": MSE["inputs"]}
    answer = http.post("/v1/evaluate", json=short).json()
    assert answer == http.post("/v1/evaluate", json={**MSE, "outputs": ["loss"]}).json()
    assert answer.keys() == {"loss", "reduction", "diagnostics"}
    measured = http.post("/v1/evaluate", json={**short, "outputs": "metrics", "metrics": "mae"}).json()
    assert measured["metrics"].keys() == {"task", "mae"}
    fields = http.get("/openapi.json").json()["components"]["schemas"]["EvaluateRequest"]["properties"]
    assert "mse" in fields["loss"]["anyOf"][1]["enum"]
    assert "weighted_sum" not in fields["loss"]["anyOf"][1]["enum"], "it needs its terms"
    assert fields["outputs"]["anyOf"][1]["type"] == fields["metrics"]["anyOf"][2]["type"] == "string"


def test_the_body_without_inputs_says_where_tensors_go(http):
    response = http.post("/v1/evaluate", json={"loss": "mse", "prediction": [1.0], "target": [1.0]})
    check_problem(response, 422, "invalid-request", ["has no inputs", '"prediction"'])


@pytest.mark.parametrize("prediction", [[0, 1, 0, 1], [False, True, False, True]], ids=str)
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_and_booleans_in_lists_are_no_logits(http, task, prediction):
    request = {"task": task, "inputs": {"prediction": prediction, "target": [0, 1, 0, 1]}}
    refused = http.post("/v1/evaluate", json=request)
    assert (refused.status_code, "set metrics.from_logits to false" in refused.json()["detail"]) == (422, True)
    request["inputs"]["prediction"] = [float(value) for value in prediction]
    assert http.post("/v1/evaluate", json=request).status_code == 200


@pytest.mark.parametrize("prediction", [[0, 1, 0, 1], [False, True, False, True], [0.0, 1.0, 0, 1]], ids=str)
def test_decisions_in_lists_are_probabilities_where_the_request_says_so(http, prediction):
    inputs = {"prediction": prediction, "target": [0, 1, 0, 1]}
    metrics = {"names": ["accuracy", "f1"], "from_logits": False}
    answer = http.post("/v1/evaluate", json={"task": "binary", "inputs": inputs, "metrics": metrics}).json()
    assert answer["metrics"] == {"task": "binary", "accuracy": 1.0, "f1": 1.0}
