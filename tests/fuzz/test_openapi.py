"""The service is what its OpenAPI document says: no status, content type or form but those, whatever is sent to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from serving import Running, openapi, running

schemathesis = pytest.importorskip("schemathesis")

from schemathesis import GenerationMode, checks  # noqa: E402
from schemathesis.specs.openapi import checks as of_openapi  # noqa: E402

RUN, OTHER = "/v1/runs/resnet50-v3", "/v1/runs/resnet50-v4"
DEFINITION = {"task": "binary", "metrics": ["accuracy"], "identity": "position"}
BATCH = {"first": 0, "inputs": {"prediction": [2.5, -1.0], "target": [1, 0]}}
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
DOCUMENT = schemathesis.openapi.from_dict(deepcopy(openapi()))
OPERATIONS = {operation.label: operation for result in DOCUMENT.get_all_operations() for operation in (result.ok(),)}
CHECKS = [
    checks.not_a_server_error,
    of_openapi.status_code_conformance,
    of_openapi.content_type_conformance,
    of_openapi.response_schema_conformance,
    of_openapi.response_headers_conformance,
]


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(shared_memory=True) as service:
        yield service


def modes() -> Iterator[tuple[str, GenerationMode]]:
    for label, operation in OPERATIONS.items():
        yield label, GenerationMode.POSITIVE
        if operation.body:  # elsewhere there are but names, of which any string is one
            yield label, GenerationMode.NEGATIVE


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize(("label", "mode"), list(modes()), ids=lambda value: getattr(value, "value", value))
def test_the_service_is_what_openapi_says(label: str, mode: GenerationMode, service: Running) -> None:
    @settings(
        max_examples=int(EXAMPLES or 8),
        deadline=None,
        derandomize=EXAMPLES is None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        if "/runs/" in label:  # so that the example's run is there
            httpx.put(f"{service.url}{RUN}", json=DEFINITION)
            httpx.put(f"{service.url}{RUN}/batches/00010", json=BATCH)
        if "compare" in label:
            for run in (RUN, OTHER):
                httpx.put(f"{service.url}{run}", json=DEFINITION)
                httpx.put(f"{service.url}{run}/batches/00010", json=BATCH)
        case.call_and_validate(base_url=service.url, timeout=30, checks=CHECKS)

    holds()
