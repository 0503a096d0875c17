"""The Open Inference Protocol against a running service, by the stock client of Triton and byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.http import aio as triton_aio
from tritonclient.utils import InferenceServerException

from lossd.api.inference.openapi import InferResponse
from lossd.losses import REGISTRY
from lossd.metrics import METRICS
from serving import running
from wire.stock import infer_inputs

LENGTH = "Inference-Header-Content-Length"


def logits(rows: int = 8, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"prediction": rng.standard_normal((rows, 3)).astype(dtype), "target": rng.integers(0, 3, rows)}


def numbers(seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Inputs of mse, and its value in NumPy."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 9))
    prediction, target = (rng.standard_normal((rows, 4)).astype(np.float32) for _ in range(2))
    return {"prediction": prediction, "target": target}, float(np.mean((prediction.astype(float) - target) ** 2))


def cross_entropy(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and gradient in float64 NumPy."""
    z = prediction.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    rows = np.arange(len(z))
    target = target.astype(int)
    return float(-np.log(p[rows, target]).mean()), (p - np.eye(z.shape[1])[target]) / len(z)


def outputs(*names: str, binary: bool = True) -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name, binary_data=binary) for name in names]


def entry(name: str, array: np.ndarray, datatype: str) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.reshape(-1).tolist()}


def mse_document(**fields: Any) -> dict[str, Any]:
    inputs = [entry(name, np.array([1.0, 2.0]), "FP32") for name in ("prediction", "target")]
    return {"inputs": inputs, **fields}


def value_of(answer: dict[str, Any], name: str) -> Any:
    (found,) = (output for output in answer["outputs"] if output["name"] == name)
    return found["data"]


# What is asked before the first inference


def test_the_stock_client_finds_the_server_healthy_and_ready(triton, monkeypatch) -> None:
    monkeypatch.delenv("LOSSD_PERCEPTUAL_WEIGHTS")
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("focal")
    assert triton.is_model_ready("metrics.binary", "1")
    assert not triton.is_model_ready("perceptual")  # without its weights
    assert not triton.is_model_ready("focal", "2")
    assert not triton.is_model_ready("nothing")


def test_the_server_names_itself_and_its_extensions(triton) -> None:
    metadata = triton.get_server_metadata()
    assert metadata["name"] == "lossd"
    assert "binary_tensor_data" in metadata["extensions"]


def test_the_index_lists_every_loss_and_every_task(triton, http, monkeypatch) -> None:
    monkeypatch.delenv("LOSSD_PERCEPTUAL_WEIGHTS")
    index = {model["name"]: model for model in triton.get_model_repository_index()}
    assert set(index) == {*REGISTRY, *(f"metrics.{task}" for task in METRICS)}
    assert index["focal"] == {"name": "focal", "version": "1", "state": "READY", "reason": ""}
    assert index["perceptual"]["state"] == "UNAVAILABLE"
    assert "weights" in index["perceptual"]["reason"]
    only_ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {model["name"] for model in only_ready} == {name for name, m in index.items() if m["state"] == "READY"}


@pytest.mark.parametrize("name", [*REGISTRY, *(f"metrics.{task}" for task in METRICS)])
def test_every_model_describes_itself(triton, name: str) -> None:
    metadata = triton.get_model_metadata(name, "1")
    config = triton.get_model_config(name)
    assert metadata.keys() == {"name", "versions", "platform", "inputs", "outputs"}
    assert (metadata["name"], metadata["versions"], config["max_batch_size"]) == (name, ["1"], 0)
    for kind in ("inputs", "outputs"):
        described = [(t["name"], t["datatype"].replace("BYTES", "STRING"), t["shape"]) for t in metadata[kind]]
        configured = [(t["name"], t["data_type"].removeprefix("TYPE_"), t["dims"]) for t in config[kind[:-1]]]
        assert described == configured
    if name in REGISTRY:
        assert json.loads(config["parameters"]["reduction"]["string_value"]) in REGISTRY[name].reductions


# Inference


@pytest.mark.parametrize("binary", [True, False])
def test_a_loss_its_gradient_and_the_default_metrics(triton, binary: bool) -> None:
    tensors = logits()
    result = triton.infer("cross_entropy", infer_inputs(binary, **tensors), request_id="mine")
    loss, gradient = cross_entropy(**tensors)
    predicted = tensors["prediction"].argmax(1)
    assert result.get_response().keys() == {"id", "model_name", "model_version", "outputs"}
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("mine", "1")
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ["loss", "gradient", *(m.name for m in METRICS["multiclass"].values() if m.default)]
    assert result.as_numpy("loss") == pytest.approx(loss, rel=1e-6)
    assert (result.as_numpy("loss").shape, result.as_numpy("loss").dtype) == ((), np.float64)
    np.testing.assert_allclose(result.as_numpy("gradient"), gradient, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(result.as_numpy("confusion_matrix"), confusion_matrix(tensors["target"], predicted))
    assert result.as_numpy("confusion_matrix").dtype == np.int64
    assert result.as_numpy("f1") == pytest.approx(f1_score(tensors["target"], predicted, average="macro"))


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16], ids=["FP16", "FP32", "FP64", "BF16"]
)
@pytest.mark.parametrize("target", [np.int64, np.int32, np.int8, np.uint8, np.uint16, np.uint32, np.uint64])
def test_every_datatype_of_predictions_and_targets(triton, dtype: Any, target: Any) -> None:
    tensors = logits(dtype=dtype)
    tensors["target"] = tensors["target"].astype(target)
    result = triton.infer("cross_entropy", infer_inputs(**tensors))
    loss, gradient = cross_entropy(**tensors)
    assert result.as_numpy("loss") == pytest.approx(loss, rel=1e-6)
    assert result.as_numpy("gradient").dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_allclose(result.as_numpy("gradient"), gradient, rtol=1e-4, atol=1e-7)


def test_booleans_are_targets(triton) -> None:
    prediction, target = np.array([0.3, -2.0], np.float32), np.array([True, False])
    for binary in (True, False):
        result = triton.infer("bce_with_logits", infer_inputs(binary, prediction=prediction, target=target))
        assert result.as_numpy("loss") == pytest.approx(np.log1p(np.exp([-0.3, -2.0])).mean(), rel=1e-6)


def test_what_is_named_is_answered_in_that_order_and_nothing_else(triton) -> None:
    tensors = logits()
    names = ["f1.per_class", "denominator", "accuracy", "gradient.prediction", "numerator", "auroc", "precision.micro"]
    result = triton.infer("focal", infer_inputs(**tensors), outputs=outputs(*names))
    assert [output["name"] for output in result.get_response()["outputs"]] == names
    predicted = tensors["prediction"].argmax(1)
    np.testing.assert_allclose(result.as_numpy("f1.per_class"), f1_score(tensors["target"], predicted, average=None))
    assert result.as_numpy("denominator") == 8
    assert result.as_numpy("gradient") is None


def test_only_what_is_named_is_computed(triton) -> None:
    """A loss without its gradient has no norm of it to tell."""
    result = triton.infer("focal", infer_inputs(**logits()), outputs=outputs("loss", "diagnostics"))
    (diagnostics,) = result.as_numpy("diagnostics")
    assert json.loads(diagnostics).keys() == {"finite", "valid_count", "chance_level", "warnings"}
    alone = triton.infer("focal", infer_inputs(**logits()), outputs=outputs("diagnostics", binary=False))
    assert json.loads(alone.as_numpy("diagnostics")[0]) == json.loads(diagnostics)


def test_each_output_says_whether_it_is_binary(triton) -> None:
    requested_outputs = [*outputs("loss", binary=False), *outputs("gradient")]
    answer = triton.infer("focal", infer_inputs(**logits()), outputs=requested_outputs).get_response()
    loss, gradient = answer["outputs"]
    assert loss.keys() == {"name", "datatype", "shape", "data"}
    assert gradient["parameters"] == {"binary_data_size": 8 * 3 * 4}


def test_an_answer_without_binary_outputs_is_json(http) -> None:
    response = http.post("/v2/models/mse/infer", content=json.dumps(mse_document()))
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    assert value_of(response.json(), "loss") == [0.0]
    stages = [part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")]
    assert stages == ["parse", "queue", "copy", "compute", "encode"]


def test_a_stated_length_of_an_all_json_request_is_welcome(http) -> None:
    body = json.dumps(mse_document()).encode()
    response = http.post("/v2/models/mse/infer", content=body, headers={LENGTH: str(len(body))})
    assert value_of(response.json(), "loss") == [0.0]


def test_parameters_of_the_loss_as_numbers_and_as_text(triton) -> None:
    tensors = logits()
    as_numbers = triton.infer("focal", infer_inputs(**tensors), parameters={"gamma": 3, "alpha": "[0.2, 0.3, 0.5]"})
    as_text = triton.infer("focal", infer_inputs(**tensors), parameters={"gamma": "3.0", "alpha": "[0.2,0.3,0.5]"})
    plain = triton.infer("focal", infer_inputs(**tensors), parameters={"alpha": "null", "reduction": "sum"})
    assert as_numbers.as_numpy("loss") == as_text.as_numpy("loss")
    log_p = np.log(np.exp(tensors["prediction"]) / np.exp(tensors["prediction"]).sum(1, keepdims=True))
    log_pt = log_p[np.arange(8), tensors["target"]]
    assert plain.as_numpy("loss") == pytest.approx(float(-((1 - np.exp(log_pt)) ** 2 * log_pt).sum()), rel=1e-5)
    weight = np.array([0.2, 0.3, 0.5])[tensors["target"]]
    assert as_numbers.as_numpy("loss") == pytest.approx(
        float(-(weight * (1 - np.exp(log_pt)) ** 3 * log_pt).mean()), rel=1e-5
    )


def test_options_of_gradient_and_metrics(triton) -> None:
    tensors = {"prediction": np.array([[3.0, 4.0]]), "target": np.zeros((1, 2))}
    result = triton.infer(
        "mse", infer_inputs(**tensors), parameters={"gradient.clip_norm": 0.5, "gradient.dtype": "float16"}
    )
    assert result.as_numpy("gradient").dtype == np.float16
    np.testing.assert_allclose(result.as_numpy("gradient"), [[0.3, 0.4]], rtol=1e-3)
    scores = {"prediction": np.array([0.2, 0.6, 0.9]), "target": np.array([0.0, 1.0, 1.0])}
    result = triton.infer(
        "bce", infer_inputs(**scores), parameters={"metrics.threshold": 0.7}, outputs=outputs("recall")
    )
    assert result.as_numpy("recall") == 0.5


def test_an_unreduced_loss_is_a_tensor(triton) -> None:
    tensors, _ = numbers(0)
    result = triton.infer("mse", infer_inputs(**tensors), parameters={"reduction": "none"}, outputs=outputs("loss"))
    np.testing.assert_allclose(result.as_numpy("loss"), (tensors["prediction"] - tensors["target"]) ** 2, rtol=1e-6)


def test_a_loss_of_several_gradients(triton) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((4, 5)) for name in ("anchor", "positive", "negative")}
    named = [f"gradient.{name}" for name in tensors]
    result = triton.infer("triplet", infer_inputs(**tensors), outputs=outputs("gradient", *named))
    np.testing.assert_array_equal(result.as_numpy("gradient"), result.as_numpy("gradient.anchor"))
    assert not np.array_equal(result.as_numpy("gradient"), result.as_numpy("gradient.negative"))


def test_a_composed_loss_has_its_terms_as_text(triton) -> None:
    tensors, mse = numbers(3)
    terms = [{"loss": {"name": "mse"}, "weight": 2.0}, {"loss": {"name": "mae"}, "weight": 0.5}]
    result = triton.infer("weighted_sum", infer_inputs(**tensors), parameters={"terms": json.dumps(terms)})
    mae = np.abs(tensors["prediction"] - tensors["target"]).mean()
    assert result.as_numpy("loss") == pytest.approx(2 * mse + 0.5 * mae, rel=1e-6)
    diagnostics = triton.infer(
        "weighted_sum", infer_inputs(**tensors), parameters={"terms": json.dumps(terms)}, outputs=outputs("diagnostics")
    )
    assert [t["loss"] for t in json.loads(diagnostics.as_numpy("diagnostics")[0])["terms"]] == ["mse", "mae"]


def test_an_expression_is_text_as_it_is(triton) -> None:
    tensors, mse = numbers(4)
    parameters = {"formula": "k * (prediction - target)**2", "parameters": '{"k": 3}'}
    result = triton.infer("expression", infer_inputs(**tensors), parameters=parameters)
    assert result.as_numpy("loss") == pytest.approx(3 * mse, rel=1e-6)


def test_metrics_alone(triton) -> None:
    tensors = logits()
    result = triton.infer("metrics.multiclass", infer_inputs(**tensors))
    predicted = tensors["prediction"].argmax(1)
    assert result.as_numpy("accuracy") == (predicted == tensors["target"]).mean()
    assert result.as_numpy("loss") is None
    named = triton.infer("metrics.multiclass", infer_inputs(**tensors), outputs=outputs("f1", "diagnostics"))
    assert named.as_numpy("f1") == pytest.approx(f1_score(tensors["target"], predicted, average="macro"))
    with pytest.raises(InferenceServerException, match=r"metrics\.threshold"):
        triton.infer("metrics.binary", infer_inputs(**tensors), parameters={"threshold": 0.5})


@pytest.mark.parametrize("binary", [True, False])
def test_an_undefined_metric_is_nan(triton, binary: bool) -> None:
    tensors = {"prediction": np.array([[0.9, 0.1, 0.0]] * 2, np.float32), "target": np.array([0, 0])}
    result = triton.infer(
        "cross_entropy", infer_inputs(**tensors), outputs=outputs("f1.per_class", "precision", binary=binary)
    )
    np.testing.assert_array_equal(result.as_numpy("f1.per_class"), [1.0, np.nan, np.nan])
    assert result.as_numpy("precision") == 1.0


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_not_finite_travels_both_ways(triton, binary: bool) -> None:
    tensors = {"prediction": np.array([np.inf, 1.0], np.float32), "target": np.zeros(2, np.float32)}
    result = triton.infer("mse", infer_inputs(binary, **tensors), outputs=outputs("loss", "gradient", binary=binary))
    assert result.as_numpy("loss") == np.inf
    np.testing.assert_array_equal(result.as_numpy("gradient"), np.array([np.inf, 1.0], np.float32))


def test_a_json_answer_has_the_bare_tokens(http) -> None:
    document = mse_document(outputs=[{"name": "loss"}])
    body = json.dumps(document).replace("2.0", "NaN", 1)
    response = http.post("/v2/models/mse/infer", content=body)
    assert b'"data":[NaN]' in response.content


def test_a_curve_is_answered_as_text_and_by_its_parts(triton) -> None:
    tensors = {"prediction": np.array([0.1, 0.4, 0.8, 0.9]), "target": np.array([0.0, 1.0, 0.0, 1.0])}
    result = triton.infer("bce", infer_inputs(**tensors), outputs=outputs("roc_curve", "roc_curve.tpr"))
    curve = json.loads(result.as_numpy("roc_curve")[0])
    np.testing.assert_array_equal(result.as_numpy("roc_curve.tpr"), curve["tpr"])


def test_reserved_parameters_are_taken(triton) -> None:
    tensors, mse = numbers(0)
    result = triton.infer(
        "mse", infer_inputs(**tensors), sequence_id=7, sequence_start=True, priority=2, timeout=30_000_000
    )
    assert result.as_numpy("loss") == pytest.approx(mse, rel=1e-6)


def test_a_loss_without_its_weights_says_how_to_give_them(triton, monkeypatch) -> None:
    monkeypatch.delenv("LOSSD_PERCEPTUAL_WEIGHTS")
    unheard_of = {"layer_weights": "[0.25, 0.5, 0.125]"}  # a request planned before, with the weights, stays planned
    with pytest.raises(InferenceServerException, match="LOSSD_PERCEPTUAL_WEIGHTS"):
        triton.infer("perceptual", infer_inputs(**logits()), parameters=unheard_of)


def test_a_timeout_in_microseconds_is_the_deadline(triton) -> None:
    tensors, _ = numbers(0)
    with pytest.raises(InferenceServerException) as refused:
        triton.infer("mse", infer_inputs(**tensors), timeout=1)
    assert refused.value.status() == "504"


# Many at once, and large ones


def test_hundreds_of_requests_with_64_in_flight_are_each_answered_their_own(triton) -> None:
    cases = [numbers(seed) for seed in range(384)]
    pending = [
        triton.async_infer("mse", infer_inputs(**tensors), request_id=str(i)) for i, (tensors, _) in enumerate(cases)
    ]
    for i, (request, (tensors, expected)) in enumerate(zip(pending, cases, strict=True)):
        result = request.get_result()
        assert result.get_response()["id"] == str(i)
        assert result.as_numpy("loss") == pytest.approx(expected, rel=1e-5)
        assert result.as_numpy("gradient").shape == tensors["prediction"].shape


def test_the_asyncio_client_too(service) -> None:
    cases = [numbers(seed) for seed in range(384)]

    async def main() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{service.port}", conn_limit=64) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("mse"))["name"] == "mse"
            results = await asyncio.gather(*(client.infer("mse", infer_inputs(**tensors)) for tensors, _ in cases))
            for result, (_, expected) in zip(results, cases, strict=True):
                assert result.as_numpy("loss") == pytest.approx(expected, rel=1e-5)
            with pytest.raises(InferenceServerException, match="did you mean"):
                await client.infer("msee", infer_inputs(**cases[0][0]))

    asyncio.run(main())


@pytest.mark.parametrize("target", [np.int64, np.uint16], ids=["signed", "unsigned"])
def test_a_large_request_equals_its_parts(triton, target: Any) -> None:
    tensors = logits(rows=150_000)
    tensors["target"] = tensors["target"].astype(target)
    whole = triton.infer("cross_entropy", infer_inputs(**tensors), outputs=outputs("numerator", "gradient"))
    numerator = 0.0
    for first in range(0, 150_000, 30_000):
        rows = slice(first, first + 30_000)
        part = {name: tensor[rows] for name, tensor in tensors.items()}
        of_part = triton.infer("cross_entropy", infer_inputs(**part), outputs=outputs("numerator", "gradient"))
        numerator += float(of_part.as_numpy("numerator"))
        np.testing.assert_allclose(of_part.as_numpy("gradient") / 5, whole.as_numpy("gradient")[rows], rtol=1e-5)
    assert whole.as_numpy("numerator") == pytest.approx(numerator, rel=1e-9)


# Compression


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [4, 400])
def test_compression_both_ways(triton, algorithm: str, rows: int) -> None:
    tensors = {"prediction": np.ones((rows, 10), np.float32), "target": np.zeros((rows, 10), np.float32)}
    result = triton.infer(
        "mse",
        infer_inputs(**tensors),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.as_numpy("loss") == 1.0
    np.testing.assert_allclose(result.as_numpy("gradient"), np.full((rows, 10), 0.2 / rows), rtol=1e-6)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("br, deflate;q=0.5, gzip;q=0", "deflate"), ("br", None), ("", None)],
)
def test_the_answer_is_encoded_as_the_client_accepts(http, accept: str, encoding: str | None) -> None:
    zeros = {"prediction": np.zeros(4000), "target": np.zeros(4000)}
    inputs = [entry(name, array, "FP32") for name, array in zeros.items()]
    content = json.dumps({"inputs": inputs, "outputs": [{"name": "gradient"}]})
    response = http.post("/v2/models/mse/infer", content=content, headers={"Accept-Encoding": accept})
    assert response.headers.get("content-encoding") == encoding
    assert value_of(response.json(), "gradient") == [0.0] * 4000
    assert (int(response.headers["content-length"]) < 1000) == (encoding is not None)


def test_what_does_not_shrink_is_sent_as_it_is(service) -> None:
    tensors = logits(rows=100_000)
    with InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        body, length = client.generate_request_body(infer_inputs(**tensors), outputs=outputs("gradient"))
    headers = {LENGTH: str(length), "Accept-Encoding": "gzip"}
    response = httpx.post(f"{service.url}/v2/models/cross_entropy/infer", content=body, headers=headers)
    assert response.status_code == 200
    assert "content-encoding" not in response.headers


@pytest.fixture(scope="module")
def small():
    """A service that reads little."""
    with running(engine="inline", max_body_bytes=1 << 16) as service, httpx.Client(base_url=service.url) as http:
        yield http


COMPRESSED = gzip.compress(json.dumps(mse_document()).encode())

BAD_ENCODINGS = [
    ("a bomb", gzip.compress(b" " * (1 << 22)), "gzip", 413, "65536"),
    ("a bomb of zlib's", zlib.compress(b" " * (1 << 22)), "deflate", 413, "65536"),
    ("not compressed", json.dumps(mse_document()).encode(), "gzip", 400, "Content-Encoding"),
    ("cut off", COMPRESSED[:-9], "gzip", 400, "ends before"),
    ("followed by more", COMPRESSED + b"more", "gzip", 400, "4 bytes follow"),
    ("the other", COMPRESSED, "deflate", 400, "Content-Encoding"),
    ("unknown", COMPRESSED, "br", 415, "br"),
    ("too large as it is", b" " * (1 << 17), "identity", 413, "max_body_bytes"),
]


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"), [pytest.param(*case[1:], id=case[0]) for case in BAD_ENCODINGS]
)
def test_what_cannot_be_decompressed_is_refused(small, body: bytes, encoding: str, status: int, message: str) -> None:
    response = small.post("/v2/models/mse/infer", content=body, headers={"Content-Encoding": encoding})
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    assert message in response.json()["error"]
    assert small.post("/v2/models/mse/infer", content=COMPRESSED, headers={"Content-Encoding": "gzip"}).is_success


# Faults

CLASSES = {"prediction": np.zeros((2, 3), np.float32), "target": np.array([0, 3])}
SHAPES = {"prediction": np.zeros((2, 3), np.float32), "target": np.zeros(3, np.float32)}
WORDS = {"prediction": np.array(["a", "b"], np.object_), "target": np.zeros(2, np.float32)}
ONE = {"prediction": np.zeros((2, 3), np.float32)}

FAULTS: list[tuple[str, str, dict[str, np.ndarray], dict[str, Any], str, list[str]]] = [
    ("unknown model", "focol", logits(), {}, "404", ["'focol'", "focal"]),
    ("unknown task", "metrics.multiklass", logits(), {}, "404", ["metrics.multiclass"]),
    ("unknown version", "focal", logits(), {"model_version": "2"}, "404", ["version 1"]),
    ("wrong shape", "mse", SHAPES, {}, "400", ["(3,)", "(2, 3)"]),
    ("class out of range", "cross_entropy", CLASSES, {}, "400", ["target[1]", "0 to 2"]),
    ("missing input", "mse", ONE, {}, "400", ["target"]),
    ("unknown input", "mse", {**numbers(0)[0], "mask": np.zeros(1)}, {}, "400", ["mask"]),
    ("words", "mse", WORDS, {}, "400", ["BYTES"]),
    ("unknown parameter", "focal", logits(), {"parameters": {"gama": 2}}, "400", ["gama", "gamma"]),
    ("parameter out of range", "focal", logits(), {"parameters": {"gamma": -1}}, "400", ["gamma", "greater than"]),
    ("parameter is no JSON", "focal", logits(), {"parameters": {"alpha": "[0.1,"}}, "400", ["alpha"]),
    ("unknown option", "focal", logits(), {"parameters": {"metrics.bin": 3}}, "400", ["bins"]),
    ("the model as a parameter", "focal", logits(), {"parameters": {"name": "mse"}}, "400", ["name", "path"]),
    ("names as an option", "focal", logits(), {"parameters": {"metrics.names": '["f1"]'}}, "400", ["outputs"]),
    ("unknown output", "focal", logits(), {"outputs": outputs("los")}, "400", ["'los'", "loss"]),
    ("unknown gradient", "focal", logits(), {"outputs": outputs("gradient.target")}, "400", ["gradients for"]),
    ("unknown part", "focal", logits(), {"outputs": outputs("f1.mean")}, "400", ["'mean'", "macro"]),
    ("a part of what has none", "focal", logits(), {"outputs": outputs("accuracy.macro")}, "400", ["no parts"]),
    ("loss of metrics", "metrics.binary", logits(), {"outputs": outputs("loss")}, "400", ["no output 'loss'"]),
    (
        "classification",
        "focal",
        logits(),
        {"outputs": [InferRequestedOutput("loss", class_count=1)]},
        "400",
        ["classification"],
    ),
    ("negative timeout", "focal", logits(), {"timeout": -1}, "400", ["microseconds"]),
    (
        "half precision as JSON",
        "focal",
        logits(),
        {"parameters": {"gradient.dtype": "bfloat16"}, "outputs": outputs("gradient", binary=False)},
        "400",
        ["binary"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "tensors", "options", "status", "phrases"), [pytest.param(*case[1:], id=case[0]) for case in FAULTS]
)
def test_a_fault_is_told_in_a_sentence(
    triton, model: str, tensors: dict[str, np.ndarray], options: dict[str, Any], status: str, phrases: list[str]
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        triton.infer(model, infer_inputs(**tensors), **options)
    assert refused.value.status() == status
    for words in phrases:
        assert words in refused.value.message()


def test_shared_memory_is_refused_by_default(triton) -> None:
    assert triton.get_system_shared_memory_status() == []
    assert triton.get_cuda_shared_memory_status() == []
    triton.unregister_system_shared_memory()
    with pytest.raises(InferenceServerException) as refused:
        triton.register_system_shared_memory("region", "/key", 64)
    assert refused.value.status() == "501"
    entries = [InferInput(name, [2], "FP32").set_shared_memory("region", 8) for name in ("prediction", "target")]
    with pytest.raises(InferenceServerException, match=r"shared memory \(shared_memory_region\) is off"):
        triton.infer("mse", entries)


@pytest.mark.parametrize("call", ["load_model", "unload_model"])
def test_models_are_neither_loaded_nor_unloaded(triton, call: str) -> None:
    with pytest.raises(InferenceServerException) as refused:
        getattr(triton, call)("focal")
    assert refused.value.status() == "501"


@pytest.mark.parametrize("call", ["get_trace_settings", "get_log_settings"])
def test_tracing_and_logging_have_no_settings(triton, call: str) -> None:
    with pytest.raises(InferenceServerException) as refused:
        getattr(triton, call)()
    assert refused.value.status() == "501"


TEXT = json.dumps(
    {
        "inputs": [
            {"name": n, "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
            for n in ("prediction", "target")
        ]
    }
).encode()

BAD_BODIES = [
    ("not JSON", b"{", {}, "JSON"),
    ("nothing", b"", {}, "JSON"),
    ("too short", TEXT + b"\0" * 15, {LENGTH: str(len(TEXT))}, "describes 16 bytes of binary tensors, 15 follow"),
    ("left-over bytes", TEXT + b"\0" * 17, {LENGTH: str(len(TEXT))}, "17 follow"),
    ("length beyond the body", TEXT, {LENGTH: str(len(TEXT) + 1)}, LENGTH),
    ("length is no number", TEXT, {LENGTH: "-1"}, LENGTH),
    ("length missing", TEXT + b"\0" * 16, {}, "JSON"),
    ("length too short", TEXT + b"\0" * 16, {LENGTH: "10"}, "JSON"),
]


@pytest.mark.parametrize(("body", "headers", "message"), [pytest.param(*case[1:], id=case[0]) for case in BAD_BODIES])
def test_a_body_that_is_not_as_it_says_is_refused(http, body: bytes, headers: dict[str, str], message: str) -> None:
    response = http.post("/v2/models/mse/infer", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json().keys() == {"error"}
    assert message in response.json()["error"]


@pytest.mark.parametrize("extra", [-8, 8])
def test_a_large_body_of_the_wrong_length_is_refused_by_its_headers(http, extra: int) -> None:
    big = {"shape": [300_000], "datatype": "FP32", "parameters": {"binary_data_size": 1_200_000}}
    text = json.dumps({"inputs": [{"name": n, **big} for n in ("prediction", "target")]}).encode()
    response = http.post(
        "/v2/models/mse/infer", content=text + bytes(2_400_000 + extra), headers={LENGTH: str(len(text))}
    )
    assert response.status_code == 400
    assert f"{2_400_000 + extra} follow" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/focal/infer", 405),
        ("POST", "/v2/models/focal", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/focol", 404),
        ("GET", "/v2/models/focal/versions/2/config", 404),
        ("POST", "/v2/models/focol/infer", 404),
    ],
)
def test_every_error_has_the_protocol_s_form_and_nothing_more(http, method: str, path: str, status: int) -> None:
    response = http.request(method, path, headers={"X-Request-ID": "mine-1"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "mine-1"
    assert list(response.json()) == ["error"]
    if status == 405:
        assert response.headers["allow"] == ("GET, HEAD" if method == "POST" else "POST")


@pytest.mark.parametrize("path", ["repository/index", "systemsharedmemory/region/a/register"])
def test_a_body_without_tensors_has_a_limit_of_its_own(path: str) -> None:
    with running(engine="inline", shared_memory=True) as service:
        answer = httpx.post(f"{service.url}/v2/{path}", content=b"[" + b"1," * 300_000 + b"1]")
    assert (answer.status_code, "at most 524288 are read" in answer.text) == (413, True)


def test_a_service_that_is_not_ready_says_so() -> None:
    with running(engine="inline") as service, httpx.Client(base_url=service.url) as http:
        assert http.get("/v2/health/ready").json() == {"ready": True}
        service.engine.draining = True
        for path in ("/v2/health/ready", "/v2/models/mse/ready"):
            response = http.get(path)
            assert response.status_code == 503
            assert response.json().keys() == {"error"}
        assert http.get("/v2/health/live").status_code == 200
        refused = http.post("/v2/models/mse/infer", json=mse_document())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        service.engine.draining = False


# What was counted


def test_statistics_count_what_happened(triton, http) -> None:
    tensors, _ = numbers(0)

    def counts() -> dict[str, Any]:
        (stats,) = triton.get_inference_statistics("log_cosh")["model_stats"]
        return stats

    before = counts()
    pending = [triton.async_infer("log_cosh", infer_inputs(**tensors)) for _ in range(20)]
    for request in pending:
        request.get_result()
    with pytest.raises(InferenceServerException):
        triton.infer("log_cosh", infer_inputs(**ONE))
    document = {"loss": {"name": "log_cosh"}, "inputs": {"prediction": [1.0], "target": [2.0]}}
    assert http.post("/v1/evaluate", json=document).is_success
    after = counts()
    assert after.keys() == {
        "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats", "batch_stats",
        "memory_usage",
    }  # fmt: skip
    assert after["inference_count"] - before["inference_count"] == 21
    assert 2 <= after["execution_count"] - before["execution_count"] <= 21
    assert after["last_inference"] > before["last_inference"]
    for name, more in {"success": 21, "fail": 1, "queue": 21, "compute_input": 21, "compute_infer": 21}.items():
        old, new = before["inference_stats"][name], after["inference_stats"][name]
        assert new["count"] - old["count"] == more, name
        assert new["ns"] >= old["ns"]
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]


def test_statistics_of_every_model(triton) -> None:
    names = [stats["name"] for stats in triton.get_inference_statistics()["model_stats"]]
    assert names == [model["name"] for model in triton.get_model_repository_index()]


def test_dashboards_made_for_triton_find_their_counters(triton, http) -> None:
    tensors, _ = numbers(0)

    def counts() -> dict[str, float]:
        lines = http.get("/metrics").text.splitlines()
        huber = (line for line in lines if line.startswith("nv_inference_") and 'model="huber",version="1"' in line)
        return {line.partition("{")[0].removeprefix("nv_inference_"): float(line.rpartition(" ")[2]) for line in huber}

    triton.infer("huber", infer_inputs(**tensors))
    before = counts()
    triton.infer("huber", infer_inputs(**tensors))
    with pytest.raises(InferenceServerException):
        triton.infer("huber", infer_inputs(**ONE))
    after = counts()
    for name in ("request_success", "request_failure", "count", "exec_count"):
        assert after[name] - before[name] == 1, name
    for name in ("request", "queue", "compute_infer", "compute_output"):
        assert after[f"{name}_duration_us"] > before[f"{name}_duration_us"], name
    assert "compute_input_duration_us" in after


def test_what_openapi_lists_is_served(http) -> None:
    document = http.get("/openapi.json").json()
    listed = {path: methods for path, methods in document["paths"].items() if path.startswith("/v2")}
    assert len(listed) == 15
    identities = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(identities)) == len(identities)
    example = document["components"]["schemas"]["InferRequest"]["example"]
    for path, methods in listed.items():
        (method,) = methods
        content = json.dumps(example) if path.endswith("infer") else None
        response = http.request(method, path.replace("{name}", "mse"), content=content)
        assert response.status_code == (501 if path.endswith("/register") else 200), path  # shared memory is off
        if content:
            InferResponse.model_validate(response.json())
            assert value_of(response.json(), "loss") == [pytest.approx(0.1375)]
