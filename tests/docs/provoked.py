"""A request for each problem type that is answered with it: what the problems' pages show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from lossd.api.problems.guide import EXAMPLES, GOOD, Example


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


def _request(example: Example) -> Request:
    body = {"text": example.body} if isinstance(example.body, str) else {"json": example.body} if example.body else {}
    return example.method, example.path, {**body, "headers": dict(example.headers)}


REQUESTS: Mapping[str, Request] = {slug: _request(example) for slug, example in EXAMPLES.items()}
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
    headers = {"Content-Type": "application/json", "X-Request-ID": "a-request", **sent.get("headers", {})}
    return service.request(method, path, headers=headers, **content)
