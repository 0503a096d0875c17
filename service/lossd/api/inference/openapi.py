"""The part of the OpenAPI document for ``/v2``. It is an overview; the protocol has its own specification."""

from __future__ import annotations

from collections.abc import Mapping
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
    """An output by name; `parameters.binary_data` says whether it is sent as bytes after the JSON."""

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
        description="loss, numerator, denominator, gradient, hessian, hvp (the last three also for one input, as "
        "gradient.<input>), any metric, <metric>.per_class, diagnostics. By default: loss, gradient and the task's "
        "default metrics.",
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


class ServerMetadata(_Closed):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(_Closed):
    """The process is up."""

    live: Literal[True]


class ServerReady(_Closed):
    """A worker is ready."""

    ready: Literal[True]


class TensorMetadata(_Closed):
    """An input or an output; -1 is an axis of any length, or any number of axes."""

    name: str
    datatype: Annotated[str, DATATYPE]
    shape: list[int]


class ModelMetadata(_Closed):
    """A model's inputs and outputs, with every parameter at its default."""

    name: str
    versions: list[Literal["1"]]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(_Closed):
    """The model can be evaluated."""

    name: str
    ready: Literal[True]


class ConfigOutput(_Closed):
    """An output, with Triton's name of its type."""

    name: str
    data_type: str
    dims: list[int]


class ConfigInput(ConfigOutput):
    """An input, with Triton's name of its type."""

    optional: bool


class ConfigParameter(_Closed):
    """A parameter's default, as JSON text."""

    string_value: str


class LatestVersions(_Closed):
    """The number of versions that are served."""

    num_versions: Literal[1]


class VersionPolicy(_Closed):
    """The versions that are served."""

    latest: LatestVersions


class ModelConfig(_Closed):
    """A model's configuration in Triton's form."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: Literal[0]
    input: list[ConfigInput]
    output: list[ConfigOutput]
    parameters: dict[str, ConfigParameter]


class Duration(_Closed):
    """A number of requests, and the nanoseconds that they took together."""

    count: int
    ns: int


class InferenceStatistics(_Closed):
    """The requests of a model, and the time in each stage."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(_Closed):
    """The requests of a model since the service started, of `/v1` and `/v2`."""

    name: str
    version: Literal["1"]
    last_inference: int = Field(description="When the last one was answered, in milliseconds since 1970; 0 for never.")
    inference_count: int
    execution_count: int = Field(description="The number of batches.")
    inference_stats: InferenceStatistics
    batch_stats: list[Any] = Field(max_length=0)
    memory_usage: list[Any] = Field(max_length=0)


class Statistics(_Closed):
    """The statistics of the requested models."""

    model_stats: list[ModelStatistics]


class IndexEntry(_Closed):
    """A model, and whether it is ready."""

    name: str
    version: Literal["1"]
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class SharedMemoryRegion(_Closed):
    """A registered region of shared memory."""

    name: str
    key: str
    offset: int
    byte_size: int


class SharedMemoryFile(_Closed):
    """A part of a file in /dev/shm, in bytes."""

    key: str
    offset: int = Field(0, ge=0)
    byte_size: int = Field(ge=1)


GETS: Mapping[str, tuple[str, type[BaseModel]]] = {
    "/v2": ("Get the server's name, version and extensions", ServerMetadata),
    "/v2/health/live": ("Check that the process is running", ServerLive),
    "/v2/health/ready": ("Check that a worker is ready and new work is accepted", ServerReady),
    "/v2/models/stats": ("Get the statistics of every model", Statistics),
    "/v2/models/{name}": ("Get a model's inputs and outputs", ModelMetadata),
    "/v2/models/{name}/ready": ("Check that a model can be evaluated", ModelReady),
    "/v2/models/{name}/config": ("Get a model's configuration and its parameters' defaults", ModelConfig),
    "/v2/models/{name}/stats": ("Get the statistics of a model", Statistics),
}

MODELS: tuple[type[BaseModel], ...] = (
    InferRequest,
    InferResponse,
    InferError,
    IndexEntry,
    SharedMemoryRegion,
    SharedMemoryFile,
    *dict.fromkeys(model for _, model in GETS.values()),
)
"""The schemas that :func:`paths` refers to."""

INFER_ERRORS = ("400", "403", "404", "408", "413", "414", "415", "429", "431", "500", "501", "503", "504")

NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": "mse"}


def paths() -> dict[str, Any]:
    """Return the paths of ``/v2``. Each path of a model also exists with ``/versions/1`` before its end."""
    length = {
        "name": oip.HEADER_LENGTH,
        "in": "header",
        "schema": {"type": "integer"},
        "description": "The length of the JSON in bytes, if binary tensors follow it.",
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
            **{status: _error() for status in INFER_ERRORS},
        },
    }
    index = {
        "operationId": "index",
        "summary": "List every model and whether it is ready",
        "responses": {"200": _answer({"type": "array", "items": _reference(IndexEntry)})},
    }
    return {
        "/v2/models/{name}/infer": {"post": {"tags": ["open inference protocol"], **infer}},
        "/v2/repository/index": {"post": {"tags": ["open inference protocol"], **index}},
        **{path: {"get": _get(path, summary, model)} for path, (summary, model) in GETS.items()},
        **_shared_memory(),
    }


def _shared_memory() -> dict[str, Any]:
    """Return the paths of system shared memory."""
    regions = {"200": _answer({"type": "array", "items": _reference(SharedMemoryRegion)})}
    nothing = {"200": _answer({"type": "object", "maxProperties": 0})}
    body = {"required": True, "content": {json.MEDIA_TYPE: {"schema": _reference(SharedMemoryFile)}}}
    found: dict[str, Any] = {}
    for middle, which in (("", "every region"), ("/region/{name}", "a region")):
        for action, words, method, answers in (
            ("status", "Get the status of", "get", regions),
            ("unregister", "Unregister", "post", nothing),
        ):
            path = f"/v2/systemsharedmemory{middle}/{action}"
            found[path] = {method: _operation(path, f"{words} {which} of shared memory", answers)}
    path = "/v2/systemsharedmemory/region/{name}/register"
    found[path] = {
        "post": {**_operation(path, "Register a part of a file in /dev/shm as a region", nothing), "requestBody": body}
    }
    return found


def _operation(path: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    named = "{" in path
    errors = ("400", "403", *(("404", "409", "413", "501") if named else ()))
    return {
        "tags": ["open inference protocol"],
        "operationId": "v2" + "".join(f"_{part.strip('{}')}" for part in path.split("/")[2:]),
        "summary": summary,
        "responses": {**answers, **{status: _error() for status in errors}},
        **({"parameters": [NAME]} if named else {}),
    }


def _get(path: str, summary: str, model: type[BaseModel]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": ["open inference protocol"],
        "operationId": "v2" + "".join(f"_{part.strip('{}')}" for part in path.split("/")[2:]),
        "summary": summary,
        "responses": {"200": _answer(_reference(model))},
    }
    if "{" in path:
        operation["parameters"] = [NAME]
        operation["responses"]["404"] = _error()
    if path.endswith("ready"):
        operation["responses"]["503"] = _error()
    return operation


def _answer(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "The answer", "content": {json.MEDIA_TYPE: {"schema": schema}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE + model.__name__}


def _content(schema: str) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary", "description": "The same JSON, then the binary tensors."}
    return {json.MEDIA_TYPE: {"schema": {"$ref": REFERENCE + schema}}, oip.MEDIA_TYPE: {"schema": binary}}


def _error() -> dict[str, Any]:
    return {
        "description": "The error",
        "content": {json.MEDIA_TYPE: {"schema": {"$ref": f"{REFERENCE}InferError"}}},
    }
