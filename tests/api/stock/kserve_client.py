"""KServe's SDK asks for a loss, by JSON and by its own binary form; run in an environment that has it."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

PREDICTION = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]], np.float32)
TARGET = np.array([0, 2], np.int64)
# -log softmax of the targets' classes.
LOSSES = np.log(np.exp(PREDICTION.astype(np.float64)).sum(1)) - PREDICTION[[0, 1], TARGET]


def request(*, binary: bool) -> InferRequest:
    inputs = [InferInput("prediction", [2, 3], "FP32"), InferInput("target", [2], "INT64")]
    for entry, array in zip(inputs, (PREDICTION, TARGET), strict=True):
        entry.set_data_from_numpy(array, binary_data=binary)
    outputs = [RequestedOutput(name, {"binary_data": binary}) for name in ("loss", "gradient", "accuracy")]
    return InferRequest("cross_entropy", inputs, request_id="seven", request_outputs=outputs)


def value(output: InferOutput) -> np.ndarray:
    return np.asarray(output.as_numpy())


async def main(url: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "cross_entropy")
        for binary in (False, True):
            answer = await client.infer(url, request(binary=binary), model_name="cross_entropy")
            assert (answer.id, answer.model_name) == ("seven", "cross_entropy")
            outputs = {output.name: value(output) for output in answer.outputs}
            np.testing.assert_allclose(outputs["loss"], LOSSES.mean(), rtol=1e-6)
            assert outputs["gradient"].shape == (2, 3)
            np.testing.assert_allclose(outputs["gradient"].sum(1), 0, atol=1e-7)
            assert outputs["accuracy"] == 1
        unnamed = InferRequest("cross_entropy", request(binary=False).inputs)
        answer = await client.infer(url, unnamed, model_name="cross_entropy")
        assert {"loss", "gradient", "accuracy"} <= {output.name for output in answer.outputs}


asyncio.run(main(sys.argv[1]))
