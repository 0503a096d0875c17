"""What is asked in a soak: requests whose answers are known, and requests that must be refused, by every door."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import lossd
from chaos.bodies import HEADERS, PATH, safetensors_body
from chaos.http import Response
from lossd_client.wire import Tensor, oip, safetensors

Arrays = Mapping[str, np.ndarray[Any, Any]]

DOORS = ("json", "safetensors", "oip", "oip binary")
CLASSES = 7
STREAMED_ROWS = 40_000


@dataclass(frozen=True)
class Question:
    """A request, and what it must be answered.

    Attributes:
        path: Its route.
        headers: Its own.
        body: Whole.
        loss: The answer's; None where the request must be refused.
        gradient: Likewise.
        metrics: Likewise, as the document has them.
        problem: What it must be refused as; on ``/v2`` the status alone says.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    loss: float | None = None
    gradient: np.ndarray[Any, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def is_answered(self, response: Response) -> bool:
        """Whether this is the answer it must have: to the last digits, which depend on who shares the batch."""
        if self.loss is None:
            return response.problem == self.problem
        if response.status != 200:
            return False
        loss, gradient, metrics = _read(self, response)
        return (
            bool(np.isclose(loss, self.loss, rtol=1e-5, atol=1e-7))
            and gradient.shape == self.gradient.shape
            and bool(np.allclose(gradient, self.gradient, rtol=1e-4, atol=1e-7))
            and (not metrics or _alike(metrics, self.metrics))
        )


def _read(question: Question, response: Response) -> tuple[float, np.ndarray[Any, Any], Mapping[str, Any]]:
    if question.path != PATH:
        length = response.headers.get(oip.HEADER_LENGTH.lower())
        outputs = oip.decode_response(response.body, None if length is None else int(length)).outputs
        loss, gradient = outputs["loss"], next(v for n, v in outputs.items() if n.startswith("gradient"))
        assert isinstance(loss, Tensor)
        assert isinstance(gradient, Tensor)
        return float(loss.numpy()), gradient.numpy(), {}
    if response.headers["content-type"] == safetensors.MEDIA_TYPE:
        tensors, metadata = safetensors.decode(response.body)
        document = json.loads(metadata["result"])
        return document["loss"], tensors["gradient.prediction"].numpy(), document["metrics"]
    document = json.loads(response.body)
    return document["loss"], np.array(document["gradient"]["prediction"]), document["metrics"]


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(_alike(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    if isinstance(expected, float):
        return found is not None and bool(np.isclose(found, expected, rtol=1e-4, atol=1e-6))
    return bool(found == expected)


def questions(count: int, seed: int) -> list[Question]:
    """Requests to be answered: losses, parameters, sizes and doors mixed; each evaluated here, by itself."""
    chance, numbers = random.Random(seed), np.random.default_rng(seed)
    mixture = []
    for index in range(count):
        rows = STREAMED_ROWS if index % 40 == 39 else int(numbers.integers(1, 257))
        loss, arrays = _drawn(chance, numbers, rows)
        door = "safetensors" if rows == STREAMED_ROWS else DOORS[index % len(DOORS)]
        answer = lossd.evaluate(loss, **arrays)
        mixture.append(
            Question(*_sent(door, loss, arrays), answer.loss, np.asarray(answer.gradient), _plain(answer.metrics))
        )
    return mixture


def refused(seed: int) -> list[Question]:
    """Requests to be refused, each in its own way, by every door that can."""
    numbers = np.random.default_rng(seed)
    prediction = numbers.standard_normal((9, CLASSES), dtype=np.float32)
    target = numbers.integers(0, CLASSES, 9)
    outside, below, nan = target.copy(), target.copy(), numbers.standard_normal((9, CLASSES)).astype(np.float32)
    outside[4], below[1], nan[2, 3] = CLASSES, -1, np.nan
    cases: list[tuple[dict[str, Any], Arrays, str]] = [
        ({"name": "focal"}, {"prediction": prediction, "target": outside}, "invalid-value"),
        ({"name": "cross_entropy"}, {"prediction": prediction, "target": below}, "invalid-value"),
        ({"name": "mse"}, {"prediction": prediction, "target": nan}, "invalid-value"),
        ({"name": "mse"}, {"prediction": prediction, "target": nan[:5]}, "shape-mismatch"),
        ({"name": "huber", "delta": -1.0}, {"prediction": prediction, "target": prediction}, "invalid-request"),
        ({"name": "no_such_loss"}, {"prediction": prediction, "target": prediction}, "unknown-loss"),
        ({"name": "mse"}, {"prediction": prediction}, "missing-input"),
    ]
    found = []
    for loss, arrays, problem in cases:
        for door in DOORS:
            path, headers, body = _sent(door, loss, arrays)
            if path != PATH:
                problem = "404" if problem in ("unknown-loss", "404") else "400"
            found.append(Question(path, headers, body, problem=problem))
    whole = safetensors_body({"loss": {"name": "mse"}}, prediction=prediction, target=prediction)
    as_json = {"Content-Type": "application/json"}
    return [
        *found,
        Question(PATH, HEADERS, whole[:-5], problem="malformed-body"),
        Question(PATH, HEADERS, whole + b"12345", problem="malformed-body"),
        Question(PATH, HEADERS, b"\xff" * 8 + whole, problem="too-large"),
        Question(PATH, as_json, b'{"loss": {"name": "mse"}, "inputs": {', problem="malformed-body"),
        Question(PATH, as_json, b"[1, 2]", problem="invalid-request"),
        Question(PATH, {"Content-Type": "text/csv"}, b"1,2", problem="unsupported-media-type"),
        Question("/v2/models/mse/infer", {}, b'{"inputs": 1}', problem="400"),
    ]


def _drawn(chance: random.Random, numbers: np.random.Generator, rows: int) -> tuple[dict[str, Any], Arrays]:
    scores = numbers.standard_normal((rows, CLASSES), dtype=np.float32)
    others = numbers.standard_normal((rows, CLASSES), dtype=np.float32)
    classes = numbers.integers(0, CLASSES, rows)
    labels = numbers.integers(0, 2, (rows, CLASSES)).astype(np.float32)
    fraction = round(chance.uniform(0.05, 0.95), 3)
    kinds: list[tuple[dict[str, Any], Any]] = [
        ({"name": "mse"}, others),
        ({"name": "mae"}, others),
        ({"name": "huber", "delta": fraction}, others),
        ({"name": "log_cosh"}, others),
        ({"name": "quantile", "q": fraction}, others),
        ({"name": "cross_entropy", "label_smoothing": fraction}, classes),
        ({"name": "focal", "gamma": 1 + fraction}, classes),
        ({"name": "focal", "gamma": 2.0}, classes),
        ({"name": "bce_with_logits"}, labels),
        ({"name": "sigmoid_focal", "gamma": fraction}, labels),
        ({"name": "dice", "mode": "multilabel"}, labels),
    ]
    loss, target = chance.choice(kinds)
    return loss, {"prediction": scores, "target": target}


def _sent(door: str, loss: Mapping[str, Any], arrays: Arrays) -> tuple[str, Mapping[str, str], bytes]:
    if door == "safetensors":
        return PATH, HEADERS, safetensors_body({"loss": loss}, **arrays)
    if door == "json":
        inputs = {name: _listed(array) for name, array in arrays.items()}
        return PATH, {"Content-Type": "application/json"}, json.dumps({"loss": loss, "inputs": inputs}).encode()
    path = f"/v2/models/{loss['name']}/infer"
    parameters = {name: value for name, value in loss.items() if name != "name"}
    if door == "oip":
        entries = [
            {"name": n, "shape": a.shape, "datatype": oip.BY_DTYPE[str(a.dtype)].name, "data": a.ravel().tolist()}
            for n, a in arrays.items()
        ]
        return path, {}, json.dumps({"inputs": entries, "parameters": parameters}).encode()
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    pieces, length = oip.encode_request(tensors, parameters=parameters)
    return path, {oip.HEADER_LENGTH: str(length)}, b"".join(bytes(piece) for piece in pieces)


def _listed(array: np.ndarray[Any, Any]) -> Any:
    """Numbers that JSON lacks travel as strings."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    return [[value if np.isfinite(value) else "NaN" for value in row] for row in array.tolist()]


def _plain(record: Any) -> Any:
    return json.loads(json.dumps(record))
