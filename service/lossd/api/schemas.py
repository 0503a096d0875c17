"""What the parts of the OpenAPI document share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lossd_client.errors import PROBLEMS
from lossd_client.wire import DTYPES

__all__ = [
    "BINARY",
    "NULL",
    "REFERENCE",
    "TENSOR",
    "Number",
    "TensorObject",
    "Warning_",
    "header",
    "problems",
    "reference",
]

REFERENCE = "#/components/schemas/{model}"
NULL = {"type": "null"}
BINARY = {"schema": {"type": "string", "format": "binary", "description": "A safetensors file."}}
TENSOR = {
    "description": "A nested list of numbers, or an object of dtype, shape and base64 data.",
    "anyOf": [{"type": "array", "items": {}}, {"type": "number"}, {"$ref": REFERENCE.format(model="TensorObject")}],
}

Number = float | Literal["NaN", "Infinity", "-Infinity"]
"""A number of an answer. JSON has no NaN and no infinities, so that they are strings."""


class TensorObject(BaseModel):
    """A tensor as base64 of its little-endian, row-major bytes."""

    model_config = ConfigDict(extra="forbid")

    dtype: str = Field(json_schema_extra={"enum": list(DTYPES)})
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=8)
    data: str = Field(json_schema_extra={"contentEncoding": "base64"})


class Warning_(BaseModel):  # noqa: N801  (Warning is Python's own)
    """A warning about the answer."""

    model_config = ConfigDict(title="Warning")

    code: str
    detail: str
    classes: list[int] | None = Field(None, description="The classes that it is about.")


def reference(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": REFERENCE.format(model=name)}


def header(name: str, type_: str, description: str) -> dict[str, Any]:
    """Return a request's header as a parameter."""
    return {"name": name, "in": "header", "schema": {"type": type_}, "description": description}


def problems(statuses: Iterable[int]) -> dict[str, Any]:
    """Return the responses of these statuses that are problems, by status."""
    return {str(status): _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    titles = ", ".join(kind.title for kind in PROBLEMS.values() if kind.status == status)
    return {
        "description": titles,
        "content": {"application/problem+json": {"schema": reference("ProblemModel")}},
    }
