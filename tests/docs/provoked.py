"""A request for each problem type that is answered with it: what the problems' pages show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

GOOD = {"prediction": [[2.0, 1.0], [0.5, 2.5]], "target": [0, 1]}


def _evaluate(loss: Mapping[str, Any], inputs: Mapping[str, Any] = GOOD, **rest: Any) -> dict[str, Any]:
    return {"json": {"loss": loss, "inputs": inputs, **rest}}


def _run(run: str = "resnet50-v3", **rest: Any) -> tuple[str, str, dict[str, Any]]:
    definition = {"task": "multiclass", "metrics": ["accuracy"], "identity": "position", **rest}
    return "PUT", f"/v1/runs/{run}", {"json": definition}


def _batch(name: str, first: int, target: list[int], run: str = "resnet50-v3") -> tuple[str, str, dict[str, Any]]:
    return (
        "PUT",
        f"/v1/runs/{run}/batches/{name}",
        {"json": {"first": first, "inputs": {**GOOD, "target": target}}},
    )


Request = tuple[str, str, dict[str, Any]]
"""Method, path, and what is sent."""

REQUESTS: Mapping[str, Request] = {
    "malformed-body": ("POST", "/v1/evaluate", {"text": '{"loss": {"name": "mse"}, '}),
    "forbidden": ("GET", "/v1/losses", {"headers": {"origin": "https://another.example"}}),
    "not-found": ("GET", "/v1/loses", {}),
    "unknown-loss": ("POST", "/v1/evaluate", _evaluate({"name": "crossentropy"})),
    "unknown-metric": ("GET", "/v1/metrics/acuracy", {}),
    "method-not-allowed": ("GET", "/v1/evaluate", {}),
    "too-large": ("POST", "/v1/evaluate", {"text": "1" * 5000}),
    "unsupported-media-type": ("POST", "/v1/evaluate", {"text": "a=1", "type": "application/x-www-form-urlencoded"}),
    "not-evaluable": ("POST", "/v1/evaluate", _evaluate({"name": "perceptual"})),
    "invalid-request": ("POST", "/v1/evaluate", _evaluate({"name": "focal", "gama": 2})),
    "missing-input": ("POST", "/v1/evaluate", _evaluate({"name": "mse"}, {"prediction": [1.0, 2.0]})),
    "unknown-input": ("POST", "/v1/evaluate", _evaluate({"name": "cross_entropy"}, {**GOOD, "weights": [1, 2]})),
    "shape-mismatch": (
        "POST",
        "/v1/evaluate",
        _evaluate({"name": "mse"}, {"prediction": [[1.0], [2.0]], "target": [1.0, 2.0]}),
    ),
    "dtype-mismatch": (
        "POST",
        "/v1/evaluate",
        _evaluate({"name": "focal"}, {**GOOD, "target": [0.0, 1.0]}),
    ),
    "invalid-value": ("POST", "/v1/evaluate", _evaluate({"name": "cross_entropy"}, {**GOOD, "target": [0, 2]})),
    "unknown-run": ("GET", "/v1/runs/resnet50-v4", {}),
    "unknown-batch": ("GET", "/v1/runs/resnet50-v3/batches/00011", {}),
    "run-differs": _run(metrics=["f1"]),
    "batch-conflict": _batch("00000", 0, [0, 0]),
    "duplicate-rows": _batch("00001", 1, [0, 1]),
    "run-sealed": _batch("00001", 2, [0, 1]),
    "incomplete": ("POST", "/v1/runs/resnet50-v3/seal", {"json": {"rows": 4}}),
    "other-targets": ("POST", "/v1/runs/resnet50-v3/seal", {}),
    "not-comparable": ("GET", "/v1/compare?run=resnet50-v3&run=other-labels", {}),
}
"""A request that is answered with the problem."""

BEFORE: Mapping[str, tuple[Request, ...]] = {
    "unknown-batch": (_run(),),
    "run-differs": (_run(),),
    "batch-conflict": (_run(), _batch("00000", 0, [0, 1])),
    "duplicate-rows": (_run(), _batch("00000", 0, [0, 1])),
    "run-sealed": (_run(), _batch("00000", 0, [0, 1]), ("POST", "/v1/runs/resnet50-v3/seal", {})),
    "incomplete": (_run(), _batch("00000", 0, [0, 1])),
    "other-targets": (_run(dataset={"targets": f"t1:{'0' * 32}"}), _batch("00000", 0, [0, 1])),
    "not-comparable": (
        _run(),
        _batch("00000", 0, [0, 1]),
        _run("other-labels"),
        _batch("00000", 0, [1, 1], "other-labels"),
    ),
}
"""Requests about new runs before it."""

SETTINGS = {"max_body_bytes": 4096, "access_log": "none"}
"""Of the service that is asked."""

UNPROVOKED = {
    "malformed-request": "clients send nothing but HTTP",
    "request-timeout": "takes as long as the time-out",
    "uri-too-long": "clients refuse to send such an address",
    "head-too-large": "clients refuse to send such a head",
    "unauthorized": "the service that is asked has no key",
    "queue-full": "takes more load than a page is worth",
    "internal-error": "there is no known way",
    "unavailable": "takes a service that is starting or stopping",
    "deadline-exceeded": "a matter of luck",
    "quota-exceeded": "takes as many runs as a key may have",
    "conflict": "the types below it say more",
    "definition-changed": "takes a newer version of the service",
    "storage-full": "takes a full disk",
}
"""The types without an example, and why."""


def provoke(service: httpx.Client, slug: str) -> dict[str, Any]:
    """The problem document that the request of this type is answered with."""
    if slug in BEFORE:
        for run in ("resnet50-v3", "other-labels"):
            service.delete(f"/v1/runs/{run}")
        for request in BEFORE[slug]:
            _send(service, request).raise_for_status()
    return dict(_send(service, REQUESTS[slug]).json())


def _send(service: httpx.Client, request: Request) -> httpx.Response:
    method, path, sent = request
    content = {"json": sent["json"]} if "json" in sent else {"content": sent.get("text")}
    headers = {
        "content-type": sent.get("type", "application/json"),
        "x-request-id": "a-request",
        **sent.get("headers", {}),
    }
    return service.request(method, path, headers=headers, **content)
