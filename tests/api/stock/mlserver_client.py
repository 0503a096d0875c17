"""MLServer's codecs write requests and read answers; run in an environment that has them."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from mlserver.codecs import NumpyCodec, NumpyRequestCodec
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    Parameters,
    RequestInput,
    RequestOutput,
)

PREDICTION = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]], np.float32)
TARGET = np.array([0, 2], np.int64)
# -log softmax of the targets' classes.
LOSSES = np.log(np.exp(PREDICTION.astype(np.float64)).sum(1)) - PREDICTION[[0, 1], TARGET]


def exchange(url: str, request: InferenceRequest | None = None) -> Any:
    data = None if request is None else request.model_dump_json().encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


def infer(url: str, model: str, request: InferenceRequest) -> dict[str, np.ndarray]:
    response = InferenceResponse.model_validate(exchange(f"{url}/v2/models/{model}/infer", request))
    assert response.model_name == model
    return {output.name: NumpyCodec.decode_output(output) for output in response.outputs if output.datatype != "BYTES"}


def encoded(**arrays: list[float]) -> list[RequestInput]:
    return [NumpyCodec.encode_input(name, np.array(array)) for name, array in arrays.items()]


def main(url: str) -> None:
    # The codec gives an array of one axis a second one: the target has the shape [2, 1].
    inputs = [NumpyCodec.encode_input("prediction", PREDICTION), NumpyCodec.encode_input("target", TARGET)]
    assert inputs[1].shape == [2, 1]
    parameters = Parameters(content_type=NumpyRequestCodec.ContentType, headers={"x-mine": "a"})
    found = infer(url, "cross_entropy", InferenceRequest(id="seven", inputs=inputs, parameters=parameters))
    np.testing.assert_allclose(found["loss"], LOSSES.mean(), rtol=1e-6)
    assert found["gradient"].shape == (2, 3)
    assert found["confusion_matrix"].shape == (3, 3)

    outputs = [RequestOutput(name="gradient", parameters=Parameters(content_type="np"))]
    found = infer(url, "cross_entropy", InferenceRequest(inputs=inputs, outputs=outputs))
    assert list(found) == ["gradient"]

    # It writes NaN as null, in both directions.
    outputs = [RequestOutput(name=name) for name in ("loss", "gradient")]
    inputs = encoded(prediction=[0.1, np.nan], target=[0.0, 0.0])
    found = infer(url, "mse", InferenceRequest(inputs=inputs, outputs=outputs))
    assert np.isnan(found["loss"])
    assert np.isnan(found["gradient"]).ravel().tolist() == [False, True]
    inputs, outputs = encoded(prediction=[0.1, 0.2], target=[0.0, 0.0]), [RequestOutput(name="recall")]
    assert np.isnan(infer(url, "bce", InferenceRequest(inputs=inputs, outputs=outputs))["recall"])

    # One input alone is what its codec for requests writes and reads.
    request = NumpyRequestCodec.encode_request(np.array([3.0, -1.0]))
    request.inputs[0].name = "fake"
    answer = exchange(f"{url}/v2/models/metrics.gan_generator/infer", request)
    assert NumpyRequestCodec.decode_response(InferenceResponse.model_validate(answer)) == 0.5

    MetadataModelResponse.model_validate(exchange(f"{url}/v2/models/cross_entropy"))


main(sys.argv[1])
