"""Every answer of the Open Inference Protocol has a schema in the OpenAPI document, and matches it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from lossd.api.inference.models import models
from lossd.api.inference.openapi import GETS
from serving import running

PATHS = [*GETS, "/v2/repository/index"]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        assert http.post(
            "/v1/evaluate", json={"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}
        )
        yield http


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_matches_its_schema(http: httpx.Client, document: dict[str, Any], path: str) -> None:
    method, operation = next(iter(document["paths"][path].items()))
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema, "an empty schema says nothing"
    valid = jsonschema_rs.validator_for({**schema, "components": document["components"]})
    names = list(models()) if "{name}" in path else [""]
    for name in names:
        answer = http.request(method, path.replace("{name}", name))
        if answer.status_code == 503:  # a model without its weights
            continue
        assert answer.status_code == 200, answer.text
        valid.validate(answer.json())
        for wrong in ({}, {"unknown": 1}, [1], None):
            assert not valid.is_valid(wrong)


def test_no_schema_accepts_what_is_absent(document: dict[str, Any]) -> None:
    """A missing field of an answer is a fault of the service, which a client's generated types must find."""
    for model in ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "IndexEntry"):
        schema = document["components"]["schemas"][model]
        assert set(schema["required"]) == set(schema["properties"])
