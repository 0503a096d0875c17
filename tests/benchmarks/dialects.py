"""How a request is put to a target, and how its answer is read: the same tensors, whatever the target speaks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import orjson
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from benchmarks.load import Post
from lossd_client.wire import Tensor, oip, safetensors

Arrays = Mapping[str, np.ndarray[Any, Any]]
Question = tuple[Mapping[str, Any], Arrays]
"""A request's JSON object as lossd reads it, and its tensors."""

MACRO = ("precision", "recall", "f1", "iou")
VALUES = ("mae", "mse", "rmse")
OUTPUTS = ("loss", "gradient", *MACRO, "confusion_matrix")


class Dialect(Protocol):
    def post(self, question: Question) -> Post:
        """The request as this target reads it."""

    def read(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The answer: loss, gradient, the metrics by name, confusion_matrix; NaN for what is undefined."""


@dataclass(frozen=True)
class Safetensors:
    """lossd's own, which the peers that read any bytes are taught."""

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def post(self, question: Question) -> Post:
        request, arrays = question
        tensors = {name: Tensor.of(array) for name, array in arrays.items()}
        body = b"".join(safetensors.encode(tensors, {"request": json.dumps(request)}))
        return Post(self.path, {"Content-Type": safetensors.MEDIA_TYPE, **self.headers}, body)

    def read(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        tensors, metadata = safetensors.decode(body)
        result = json.loads(metadata["result"])
        answer = {"loss": result["loss"], "gradient": tensors["gradient.prediction"].numpy(), **flat(result["metrics"])}
        if "confusion_matrix" in tensors:
            answer["confusion_matrix"] = tensors["confusion_matrix"].numpy()
        return answer


@dataclass(frozen=True)
class Json:
    """Numbers in nested lists, as clients without a library send them; float32 in the fewest digits that round-trip."""

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def post(self, question: Question) -> Post:
        request, arrays = question
        body = orjson.dumps({**request, "inputs": dict(arrays)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Post(self.path, {"Content-Type": "application/json", **self.headers}, body)

    def read(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        answer = orjson.loads(body)
        gradient = np.array(answer["gradient"]["prediction"], np.float32)
        return {"loss": answer["loss"], "gradient": gradient, **flat(answer["metrics"])}


class Triton:
    """The Open Inference Protocol with binary tensors, as pytriton's models have it: one a loss, and one for images."""

    def post(self, question: Question) -> Post:
        request, arrays = question
        model, *parameters = request["loss"].values()
        if arrays["prediction"].ndim > 2:
            model, inputs = f"{model}_of_an_image", dict(arrays)
        else:
            inputs = {name: values[np.newaxis] for name, values in arrays.items()}
        if parameters:
            inputs["parameter"] = np.array([parameters], np.float32)
        pieces, length = oip.encode_request({name: Tensor.of(values) for name, values in inputs.items()})
        return Post(f"/v2/models/{model}/infer", {oip.HEADER_LENGTH: str(length)}, b"".join(pieces))

    def read(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        length = headers.get(oip.HEADER_LENGTH.lower())
        outputs = oip.decode_response(body, None if length is None else int(length)).outputs
        found = {name: value.numpy() for name, value in outputs.items() if isinstance(value, Tensor)}
        metrics = found.pop("metrics").reshape(-1)
        names = MACRO if len(metrics) == len(MACRO) else VALUES
        matrix = found.pop("confusion_matrix", None)
        answer = {
            "loss": float(found["loss"].reshape(())),
            "gradient": found["gradient"],
            **dict(zip(names, metrics.tolist(), strict=True)),
        }
        return answer if matrix is None else answer | {"confusion_matrix": matrix}


@dataclass(frozen=True)
class StockTriton:
    """What Triton's own client sends and reads, byte for byte.

    Attributes:
        headers: Beside the client's.
        stacked: Whether requests have an axis in front, along which Triton batches them, and all outputs are sent.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    stacked: bool = False

    def post(self, question: Question) -> Post:
        request, arrays = question
        inputs = []
        for name, values in arrays.items():
            array = values[np.newaxis] if self.stacked else values
            tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array))
        outputs = None if self.stacked else [InferRequestedOutput(name) for name in OUTPUTS]
        body, length = InferenceServerClient.generate_request_body(inputs, outputs=outputs)
        path = f"/v2/models/{request['loss']['name']}/infer"
        return Post(path, {oip.HEADER_LENGTH: str(length), **self.headers}, bytes(body))

    def read(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        length = headers.get(oip.HEADER_LENGTH.lower())
        result = InferenceServerClient.parse_response_body(body, header_length=None if length is None else int(length))
        names = [output["name"] for output in result.get_response()["outputs"]]
        found = {name: result.as_numpy(name) for name in names}
        if self.stacked:
            found |= dict(zip(MACRO, found.pop("metrics").reshape(-1), strict=True))
        return found


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by name, those of classes by their macro average."""
    found: dict[str, Any] = {}
    for name in (*MACRO, *VALUES):
        if name in metrics:
            value = metrics[name]["macro"] if isinstance(metrics[name], dict) else metrics[name]
            found[name] = math.nan if value is None else value
    if "confusion_matrix" in metrics:
        found["confusion_matrix"] = np.array(metrics["confusion_matrix"])
    return found
