"""The OpenAPI document, with the routes outside FastAPI, generated from the models."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.json_schema import models_json_schema

from lossd.api.inference import openapi as inference_openapi
from lossd.api.runs import openapi as runs_openapi
from lossd.api.schemas import (
    BINARY,
    NULL,
    REFERENCE,
    TENSOR,
    Number,
    TensorObject,
    Warning_,
    header,
    problems,
    reference,
)
from lossd.losses import REGISTRY
from lossd.request.options import GradientOptions, HessianOptions, MetricOptions
from lossd_client.wire import json, safetensors

__all__ = ["document"]

STATUSES = (400, 401, 403, 404, 405, 408, 413, 414, 415, 422, 429, 431, 500, 503, 504)


class Reduction(BaseModel):
    """The two numbers of the mean; accumulate them over batches for the exact global mean."""

    numerator: Number
    denominator: Number


class Diagnostics(BaseModel):
    """Checks of the loss and its gradient."""

    finite: bool
    valid_count: int
    gradient_norm: dict[str, Number] | None = None
    non_finite_gradient_entries: dict[str, int] | None = None
    chance_level: Number | None = None
    warnings: list[Warning_]


class Answer(BaseModel):
    """The requested outputs. Numbers that JSON lacks are the strings "NaN", "Infinity" and "-Infinity"."""

    loss: Number | list[Any] | TensorObject | None = None
    reduction: Reduction | None = None
    metrics: dict[str, Any] | None = None
    diagnostics: Diagnostics
    gradient: dict[str, list[Any] | TensorObject] | None = None
    hessian: dict[str, list[Any] | TensorObject] | None = None
    hvp: dict[str, list[Any] | TensorObject] | None = None


class FaultModel(BaseModel):
    """One fault: an RFC 6901 pointer into the request, and a description."""

    model_config = ConfigDict(title="Fault")

    pointer: str
    detail: str


class ProblemModel(BaseModel):
    """An error, RFC 9457."""

    model_config = ConfigDict(title="Problem")

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultModel] = []
    request_id: str | None = None


def document(base: dict[str, Any]) -> dict[str, Any]:
    """Return FastAPI's document with the evaluation routes and their schemas."""
    losses = [loss.model for loss in REGISTRY.values()]
    others: list[type[BaseModel]] = [
        GradientOptions,
        HessianOptions,
        MetricOptions,
        TensorObject,
        Answer,
        ProblemModel,
        *inference_openapi.MODELS,
        *runs_openapi.MODELS,
    ]
    _, definitions = models_json_schema([(m, "validation") for m in (*losses, *others)], ref_template=REFERENCE)
    schemas = base.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    union: TypeAdapter[Any] = TypeAdapter(Annotated[Union[*losses], Field(discriminator="name")])  # type: ignore[arg-type]  # a union made at run time
    schemas["Loss"] = {k: v for k, v in union.json_schema(ref_template=REFERENCE).items() if k != "$defs"} | {
        "description": "A loss by name, with its parameters."
    }
    complete = [loss.name for loss in REGISTRY.values() if all(p.default is not ... for p in loss.parameters)]
    output = {"type": "string", "pattern": "^(loss|metrics|(gradient|hessian|hvp)(\\..+)?)$"}
    loss = {
        "description": "An object, or only the name of a loss that needs no parameters.",
        "anyOf": [reference("Loss"), {"type": "string", "enum": complete}, NULL],
    }
    metrics = {
        "description": "Options, or only the names of metrics.",
        "anyOf": [
            reference("MetricOptions"),
            {"type": "array", "items": {"type": "string"}},
            {"type": "string"},
            NULL,
        ],
    }
    schemas["EvaluateRequest"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["inputs"],
        "properties": {
            "loss": loss,
            "task": {
                "anyOf": [{"type": "string"}, NULL],
                "description": "A task in place of a loss, for metrics alone.",
            },
            "inputs": {"type": "object", "additionalProperties": TENSOR},
            "outputs": {
                "description": "A list of outputs, or a single output.",
                "anyOf": [{"type": "array", "items": output}, output, NULL],
            },
            "gradient": {"anyOf": [reference("GradientOptions"), NULL]},
            "hessian": {"anyOf": [reference("HessianOptions"), NULL]},
            "metrics": metrics,
        },
        "example": {
            "loss": {"name": "mse"},
            "inputs": {"prediction": [2.5, 0.0, 2.1, 7.8], "target": [3.0, -0.5, 2.0, 8.0]},
        },
    }
    schemas |= runs_openapi.schemas(schemas.pop("RunFields"), loss, metrics)
    for path, methods in base["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)  # FastAPI's form; lossd answers with problems
            operation["responses"]["200"]["description"] = "The answer"
            if "{" in path:
                operation["responses"]["404"] = problems([404])["404"]
            elif path == "/health/ready":
                operation["responses"]["503"] = problems([503])["503"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    evaluate = {
        "post": {
            "tags": ["evaluation"],
            "operationId": "evaluate",
            "summary": "Evaluate a loss, its gradient and metrics",
            "description": (
                "The request is JSON, or a safetensors file whose tensors are the inputs and whose "
                "`__metadata__.request` holds the same JSON without `inputs`. The answer has the request's format "
                "unless `Accept` names another."
            ),
            "parameters": [
                header("X-Request-ID", "string", "Returned with the answer; generated if absent."),
                header("X-Request-Timeout-Ms", "integer", "The request is dropped after this many milliseconds."),
                header("Content-Encoding", "string", "zstd, gzip or deflate; limits apply to the decompressed body."),
                {
                    "name": "request",
                    "in": "query",
                    "schema": {"type": "string"},
                    "description": "The request as JSON, for a safetensors file whose metadata lack it.",
                },
            ],
            "requestBody": {
                "required": True,
                "content": {
                    json.MEDIA_TYPE: {"schema": reference("EvaluateRequest")},
                    safetensors.MEDIA_TYPE: BINARY,
                },
            },
            "responses": {
                "200": {
                    "description": "The answer",
                    "content": {json.MEDIA_TYPE: {"schema": reference("Answer")}, safetensors.MEDIA_TYPE: BINARY},
                },
                **problems(STATUSES),
            },
        }
    }
    base["paths"] = {"/v1/evaluate": evaluate, **runs_openapi.paths(), **base["paths"], **inference_openapi.paths()}
    base["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, if the service needs one."},
        "header": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "The same API key as a header.",
        },
    }
    base["security"] = [{}, {"bearer": []}, {"header": []}]
    return base
