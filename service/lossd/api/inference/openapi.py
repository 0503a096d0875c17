"""The part of the OpenAPI document for ``/v2``. It is an overview; the protocol has its own specification."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lossd_client.wire import json, oip

__all__ = ["MODELS", "paths"]

REFERENCE = "#/components/schemas/"
DATATYPE = Field(json_schema_extra={"enum": list(oip.DATATYPES)})
AXES = Field(max_length=8)

Parameters = dict[str, str | float | bool]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InferInput(_Closed):
    """A tensor: its elements as `data`, nested or flat, or `parameters.binary_data_size` bytes after the JSON."""

    name: str
    shape: Annotated[list[int], AXES]
    datatype: Annotated[str, DATATYPE]
    parameters: Parameters = {}
    data: list[Any] | None = None


class InferRequestedOutput(_Closed):
    """An output by name; `parameters.binary_data` says whether as bytes after the JSON."""

    name: str
    parameters: Parameters = {}


class InferRequest(_Closed):
    """A request. Parameters are those of the loss; lists, objects and null are sent as JSON text."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "inputs": [
                    {"name": "prediction", "shape": [4], "datatype": "FP32", "data": [2.5, 0.0, 2.1, 7.8]},
                    {"name": "target", "shape": [4], "datatype": "FP32", "data": [3.0, -0.5, 2.0, 8.0]},
                ],
                "outputs": [{"name": "loss"}, {"name": "gradient"}],
            }
        }
    )

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[InferInput]
    outputs: list[InferRequestedOutput] | None = Field(
        None,
        description="loss, numerator, denominator, gradient, gradient.<input>, any metric, <metric>.per_class, "
        "diagnostics; loss, gradient and the task's default metrics if none is named.",
    )


class InferOutput(_Closed):
    """A tensor of the answer, in the form of the inputs; `data` is flat."""

    name: str
    shape: list[int]
    datatype: Annotated[str, DATATYPE]
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferResponse(_Closed):
    """The answer. Its JSON may hold the bare tokens NaN and Infinity."""

    id: str | None = None
    model_name: str
    model_version: Literal["1"]
    outputs: list[InferOutput]


class InferError(_Closed):
    """Any error under `/v2`."""

    error: str


MODELS: tuple[type[BaseModel], ...] = (InferRequest, InferResponse, InferError)
"""The schemas that :func:`paths` refers to."""

GETS = {
    "/v2": "The server's name, version and extensions",
    "/v2/health/live": "The process is up",
    "/v2/health/ready": "A worker is ready, and new work is accepted",
    "/v2/models/stats": "The requests of every model",
    "/v2/models/{name}": "A model's inputs and outputs",
    "/v2/models/{name}/ready": "A model can be evaluated",
    "/v2/models/{name}/config": "A model's configuration, with its parameters' defaults",
    "/v2/models/{name}/stats": "The requests of a model",
}
NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": "mse"}


def paths() -> dict[str, Any]:
    """Return the paths of ``/v2``. Each path of a model also exists with ``/versions/1`` before its end."""
    length = {
        "name": oip.HEADER_LENGTH,
        "in": "header",
        "schema": {"type": "integer"},
        "description": "The length of the JSON if binary tensors follow it.",
    }
    infer = {
        "operationId": "infer",
        "summary": "Evaluate a loss as a model of the Open Inference Protocol",
        "description": (
            "Models are the losses, and the metrics of each task as `metrics.<task>`. Stock clients of Triton and "
            "KServe work unchanged: with JSON, the binary tensor extension, and gzip or deflate both ways."
        ),
        "parameters": [NAME, length],
        "requestBody": {"required": True, "content": _content("InferRequest")},
        "responses": {
            "200": {"description": "The answer", "content": _content("InferResponse")},
            **{
                status: _error()
                for status in ("400", "404", "408", "413", "414", "415", "429", "431", "500", "503", "504")
            },
        },
    }
    index = {"operationId": "index", "summary": "Every model, and whether it is ready", "responses": _answers("200")}
    return {
        "/v2/models/{name}/infer": {"post": {"tags": ["open inference protocol"], **infer}},
        "/v2/repository/index": {"post": {"tags": ["open inference protocol"], **index}},
        **{path: {"get": _get(path, summary)} for path, summary in GETS.items()},
    }


def _get(path: str, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": ["open inference protocol"],
        "operationId": "v2" + "".join(f"_{part.strip('{}')}" for part in path.split("/")[2:]),
        "summary": summary,
        "responses": _answers("200", "404") if "{" in path else _answers("200"),
    }
    if "{" in path:
        operation["parameters"] = [NAME]
    if path.endswith("ready"):
        operation["responses"]["503"] = _error()
    return operation


def _answers(*statuses: str) -> dict[str, Any]:
    document = {"description": "The answer", "content": {json.MEDIA_TYPE: {"schema": {}}}}
    return {status: document if status == "200" else _error() for status in statuses}


def _content(schema: str) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary", "description": "The same JSON, then the binary tensors."}
    return {json.MEDIA_TYPE: {"schema": {"$ref": REFERENCE + schema}}, oip.MEDIA_TYPE: {"schema": binary}}


def _error() -> dict[str, Any]:
    return {
        "description": "The error",
        "content": {json.MEDIA_TYPE: {"schema": {"$ref": f"{REFERENCE}InferError"}}},
    }
