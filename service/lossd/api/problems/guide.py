"""How to fix each type of problem, and a request that causes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["EXAMPLES", "FIXES", "Example"]


class Example(NamedTuple):
    """A request, and why it is refused.

    Attributes:
        method: The method.
        path: The path.
        body: The body: text, or a value that is sent as JSON; None for no body.
        detail: The problem's detail; ``…`` stands for parts that vary.
        headers: Further headers; those of the body are added.
    """

    method: str
    path: str
    body: Any
    detail: str
    headers: Mapping[str, str] = {}


FIXES: Mapping[str, str] = {
    "malformed-body": "Check that the body is complete, and that the Content-Type names its format. Use a library to "
    "write JSON. A safetensors file begins with 8 bytes for the length of its header.",
    "malformed-request": "Send the request with an HTTP library. If you do, check whether a proxy changes the request.",
    "unauthorized": "Send `Authorization: Bearer KEY`, or `X-API-Key: KEY`. The operator makes keys with `lossd key`.",
    "forbidden": "For your own page, ask the operator to add its origin to `LOSSD_CORS_ORIGINS`. If the service is "
    "behind a proxy, ask the operator to add the proxy's name to `LOSSD_ALLOWED_HOSTS`.",
    "quota-exceeded": "Delete runs that you no longer need with `lossd runs delete`, count fewer metrics or slices, or "
    "ask the operator for a higher limit.",
    "not-found": "Compare the path with the [API reference](redoc). Behind a proxy, add the proxy's path.",
    "unknown-loss": "Use one of the names in the detail, or find the loss with `lossd losses WORD` or `GET "
    "/v1/losses?q=WORD`. Names of other libraries, such as `MSELoss`, are found too.",
    "unknown-metric": "Use one of the names in the detail. `GET /v1/metrics` lists the metrics of each task.",
    "unknown-run": "Compare the name with `lossd runs`. You can read a run of another key only if it is public.",
    "unknown-batch": "Compare the name with the batches of the run, `GET /v1/runs/{run}/batches`.",
    "method-not-allowed": "Use one of the methods in the header `Allow`.",
    "request-timeout": "Send the request again. On a slow connection, send safetensors, which is smaller than JSON, or "
    "compress the body.",
    "conflict": "Read the run's state with `GET /v1/runs/{run}`. The detail says what to do.",
    "run-differs": "Give the new run another name, or delete the old one.",
    "batch-conflict": "Give each batch of data its own name. Send the same bytes when you repeat a batch.",
    "duplicate-rows": "Send each row once. If you restart a script, read `GET /v1/runs/{run}` and send only the "
    "missing rows; the Python client does that.",
    "run-sealed": "Send the rows to another run. A sealed run is final.",
    "incomplete": "Send the rows that `missing` names, then seal again.",
    "other-targets": "Compare the labels, the weights and the number of rows with those of the fingerprint. Then "
    "delete the run and score again.",
    "definition-changed": "Start another run. An upgrade of the service changed the definition of the metric.",
    "not-comparable": "Score both models with the same definition on the same rows. For different rows, set "
    "`unpaired`.",
    "too-large": "Send less at once, such as half of the batch. If the detail names a setting, ask the operator to "
    "raise it.",
    "uri-too-long": "Send the parameters in the body of `POST /v1/evaluate`.",
    "head-too-large": "Send fewer or shorter headers and trailers. Cookies of other pages on the same host count too.",
    "unsupported-media-type": "Send `Content-Type: application/json` or `application/vnd.safetensors`. For curl, add "
    "`-H 'Content-Type: application/json'`.",
    "not-evaluable": "The detail names what is missing: weights, a device, or a value that makes the loss finite.",
    "invalid-request": "Correct each field in `errors`. `lossd losses NAME` lists a loss's parameters.",
    "missing-input": "Send the tensor under the name that the detail gives.",
    "unknown-input": "Rename the tensor to one that the loss takes, or leave it out. For names of other libraries, "
    "such as `pred` or `labels`, the detail proposes one.",
    "shape-mismatch": "Change the shape as the detail proposes: add a batch axis, move the class axis, or drop an axis "
    "of length 1.",
    "dtype-mismatch": "Convert the tensor. Class indices are integers: `target.astype('int64')`.",
    "invalid-value": "Correct the entry that the detail names. To leave entries out, send a `mask`, or use "
    "`ignore_index`.",
    "queue-full": "Wait as long as `Retry-After` says. If it happens often, send fewer requests at once, or add a "
    "replica.",
    "internal-error": "Report the request id to the operator. The service's log contains it.",
    "unavailable": "Wait as long as `Retry-After` says; the Python client does. If the problem lasts, read "
    "`/health/ready`.",
    "deadline-exceeded": "Set a later deadline in `X-Request-Timeout-Ms`, send less at once, or add a replica.",
    "storage-full": "Ask the operator to free space on the disk or in the database. Then send the batch again.",
}
"""How to fix a request of each type, in Markdown of code and links."""

GOOD = {"prediction": [[2.0, 1.0], [0.5, 2.5]], "target": [0, 1]}
RUN = "/v1/runs/resnet50-v3"
DEFINITION = {"task": "multiclass", "metrics": ["f1"], "identity": "position"}


def _evaluate(loss: Mapping[str, Any], detail: str, inputs: Mapping[str, Any] = GOOD) -> Example:
    return Example("POST", "/v1/evaluate", {"loss": loss, "inputs": inputs}, detail)


def _batch(name: str, first: int, target: list[int], detail: str) -> Example:
    return Example("PUT", f"{RUN}/batches/{name}", {"first": first, "inputs": {**GOOD, "target": target}}, detail)


EXAMPLES: Mapping[str, Example] = {
    "malformed-body": Example(
        "POST",
        "/v1/evaluate",
        '{"loss": {"name": "mse"}, ',
        "the body is not JSON: unexpected end of data: line 1 column 27 (char 26)",
    ),
    "forbidden": Example(
        "GET",
        "/v1/losses",
        None,
        "a page of 'https://another.example' may not use this service; add origins whose pages may to "
        "LOSSD_CORS_ORIGINS",
        {"Origin": "https://another.example"},
    ),
    "not-found": Example("GET", "/v1/loses", None, "nothing is served at '/v1/loses'; /openapi.json lists all paths"),
    "unknown-loss": _evaluate(
        {"name": "crossentropy"},
        "there is no loss named 'crossentropy'; did you mean cross_entropy? GET /v1/losses lists them all",
    ),
    "unknown-metric": Example(
        "GET",
        "/v1/metrics/acuracy",
        None,
        "there is no metric named 'acuracy'; did you mean accuracy or top_k_accuracy or auroc? "
        "GET /v1/metrics lists them all",
    ),
    "unknown-run": Example(
        "GET", "/v1/runs/resnet50-v4", None, "no run is named resnet50-v4; GET /v1/runs lists yours"
    ),
    "unknown-batch": Example("GET", f"{RUN}/batches/00011", None, "the run has counted no batch named 00011"),
    "method-not-allowed": Example("GET", "/v1/evaluate", None, "this path takes POST, not GET"),
    "run-differs": Example(
        "PUT",
        RUN,
        DEFINITION,
        "the run resnet50-v3 exists with another definition, which differs in /metrics/names; use another name, or "
        "delete the run",
    ),
    "batch-conflict": _batch(
        "00000",
        0,
        [0, 0],
        "the batch '00000' was counted with other data: its digest was …, and is now …; give other data another name",
    ),
    "duplicate-rows": _batch(
        "00001",
        1,
        [0, 1],
        "the run has counted these rows before: 1 (counted with 00000); send only rows that it has not counted",
    ),
    "run-sealed": _batch(
        "00001", 2, [0, 1], "the run resnet50-v3 is sealed: its result is final; count in another run"
    ),
    "incomplete": Example(
        "POST",
        f"{RUN}/seal",
        {"rows": 4},
        "the run resnet50-v3 has counted 2 of 4 rows: the rows 2 to 3 are missing; send them, then seal the run",
    ),
    "other-targets": Example(
        "POST",
        f"{RUN}/seal",
        None,
        "the targets of the counted rows have the fingerprint t1:…, and the definition names t1:…: labels, weights or "
        "rows differ; delete the run, and send the right ones",
    ),
    "not-comparable": Example(
        "GET",
        "/v1/compare?run=resnet50-v3&run=other-labels",
        None,
        "the runs cannot be compared: 'other-labels' with 'resnet50-v3': the runs have different targets; score "
        "both on the same data, or send unpaired to compare runs of different rows",
    ),
    "too-large": Example(
        "POST",
        "/v1/evaluate",
        "1" * 5000,
        "the body has 5000 bytes or more, at most 4096 are read (setting max_body_bytes)",
    ),
    "unsupported-media-type": Example(
        "POST",
        "/v1/evaluate",
        "a=1",
        "the Content-Type is 'application/x-www-form-urlencoded'; send application/json or "
        "application/vnd.safetensors (with curl: -H 'Content-Type: application/json')",
        {"Content-Type": "application/x-www-form-urlencoded"},
    ),
    "not-evaluable": _evaluate(
        {"name": "perceptual"},
        "perceptual needs the weights of VGG16, and LOSSD_PERCEPTUAL_WEIGHTS is not set: start the service with "
        "--perceptual-weights FILE, torchvision's vgg16 state dict as .pth or .safetensors",
    ),
    "invalid-request": _evaluate({"name": "focal", "gama": 2}, "loss.gama is not known; did you mean gamma?"),
    "missing-input": _evaluate(
        {"name": "mse"},
        "mse needs the input target, which was not sent; it takes prediction, target, sample_weight (optional), "
        "cotangent (optional), mask (optional), element_weight (optional), lengths (optional); you sent 'prediction'",
        {"prediction": [1.0, 2.0]},
    ),
    "unknown-input": _evaluate(
        {"name": "cross_entropy"},
        "cross_entropy takes no input 'weights'; did you mean sample_weight?",
        {**GOOD, "weights": [1, 2]},
    ),
    "shape-mismatch": _evaluate(
        {"name": "mse"},
        "target has shape (2,), expected (2, 1) since prediction is (2, 1); shapes must match exactly, without "
        "broadcasting; drop the axis of length 1: send prediction.squeeze(1)",
        {"prediction": [[1.0], [2.0]], "target": [1.0, 2.0]},
    ),
    "dtype-mismatch": _evaluate(
        {"name": "focal"},
        "target has the shape (2,) of class indices and the dtype float32; probabilities would have the shape (2, 2); "
        'class indices are integers: send target.astype("int64")',
        {**GOOD, "target": [0.0, 1.0]},
    ),
    "invalid-value": _evaluate(
        {"name": "cross_entropy"},
        "class 2 at target[1] is out of range: classes 0 to 1 expected, as many as prediction has, or -100 "
        "(ignore_index) for targets that do not count; the first class is 0",
        {**GOOD, "target": [0, 2]},
    ),
}
"""A request that causes the problem, by its type. Some types need a fault of the network or the service."""
