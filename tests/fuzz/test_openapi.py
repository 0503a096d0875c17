"""The service is what its OpenAPI document says: no status, content type or form but those, whatever is sent to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from serving import Running, openapi, running

if find_spec("schemathesis") is None:
    pytest.skip("needs schemathesis", allow_module_level=True)

RUN, OTHER = "/v1/runs/resnet50-v3", "/v1/runs/resnet50-v4"
DEFINITION = {"task": "binary", "metrics": ["accuracy"], "identity": "position"}
BATCH = {"first": 0, "inputs": {"prediction": [2.5, -1.0], "target": [1, 0]}}
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(shared_memory=True) as service:
        yield service


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """Each operation of the document by its method and path."""
    import schemathesis  # only here: it takes 0.4 s with the document

    document = schemathesis.openapi.from_dict(deepcopy(openapi()))
    return {operation.label: operation for result in document.get_all_operations() for operation in (result.ok(),)}


@pytest.fixture(scope="module")
def checks() -> list[Any]:
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as of_openapi

    return [
        checks.not_a_server_error,
        of_openapi.status_code_conformance,
        of_openapi.content_type_conformance,
        of_openapi.response_schema_conformance,
        of_openapi.response_headers_conformance,
    ]


def labels(mode: str) -> list[str]:
    """The operations that are tested in a mode; wrong requests need a body, because any string is a name."""
    return [
        f"{method.upper()} {path}"
        for path, methods in openapi()["paths"].items()
        for method, operation in methods.items()
        if mode == "positive" or "requestBody" in operation
    ]


def test_every_operation_is_tested(operations: dict[str, Any]) -> None:
    assert set(labels("positive")) == operations.keys()
    assert set(labels("negative")) == {label for label, operation in operations.items() if operation.body}


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_service_is_what_openapi_says(
    mode: str, service: Running, operations: dict[str, Any], checks: list[Any]
) -> None:
    """Each operation by itself: the failures of all of them are shown."""
    failures = []
    for label in labels(mode):
        try:
            check_operation(label, mode, service, operations[label], checks)
        except Exception as failure:
            failure.add_note(f"of {label}")
            failures.append(failure)
    if failures:
        raise ExceptionGroup(f"{len(failures)} operations are not what OpenAPI says", failures)


def check_operation(label: str, mode: str, service: Running, operation: Any, checks: list[Any]) -> None:
    """Send examples of an operation, and fail unless each answer is one of the document."""
    from requests import Session
    from schemathesis import GenerationMode

    with httpx.Client(base_url=service.url) as http, Session() as session:

        @settings(
            max_examples=int(EXAMPLES or 5),
            deadline=None,
            derandomize=EXAMPLES is None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        def holds(case: Any) -> None:
            if "/runs/" in label:  # so that the example's run is there
                keep(http, RUN)
            if "compare" in label:
                keep(http, RUN)
                keep(http, OTHER)
            case.call_and_validate(base_url=service.url, session=session, timeout=30, checks=checks)

        holds()


def keep(http: httpx.Client, run: str) -> None:
    """Have a run with a batch."""
    http.put(run, json=DEFINITION)
    http.put(f"{run}/batches/00010", json=BATCH)
