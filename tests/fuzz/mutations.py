"""Requests that are almost right: valid ones, and what can be done to them, by one source of chance.

Everything draws from a ``random.Random``, so that hypothesis, which can make one and shrink it, and a loop that only
counts seeds share it.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from lossd.metrics import METRICS
from lossd_client.wire import Tensor, oip, safetensors

__all__ = ["CORPUS", "SEEDS", "Sent", "as_json", "as_oip", "as_safetensors", "mutated"]

CORPUS = Path(__file__).parent / "corpus"
"""Bodies that once did harm, by the format they are in: name.json, name.safetensors, name.oip."""


@dataclass(frozen=True)
class Sent:
    """A request as it goes over the wire."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """json, safetensors, or oip."""
        if self.path.startswith("/v2"):
            return "oip"
        return "json" if "json" in self.headers.get("Content-Type", "") else "safetensors"


def as_json(document: Any) -> Sent:
    """A request to ``/v1/evaluate``."""
    return Sent("/v1/evaluate", json.dumps(document).encode(), {"Content-Type": "application/json"})


def as_safetensors(request: Any, **arrays: np.ndarray[Any, Any]) -> Sent:
    """The same with its tensors in binary."""
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    pieces = safetensors.encode(tensors, {"request": json.dumps(request)})
    return Sent("/v1/evaluate", b"".join(pieces), {"Content-Type": safetensors.MEDIA_TYPE})


def as_oip(model: str, parameters: dict[str, Any], **arrays: np.ndarray[Any, Any]) -> Sent:
    """A request to ``/v2`` with its tensors in binary."""
    tensors = {name: Tensor.of(array) for name, array in arrays.items()}
    pieces, length = oip.encode_request(tensors, parameters=parameters, id="7")
    return Sent(f"/v2/models/{model}/infer", b"".join(pieces), {oip.HEADER_LENGTH: str(length)})


def _seeds() -> tuple[Sent, ...]:
    """Valid requests of every form and of most kinds of loss."""
    random = np.random.default_rng(0)
    scores, classes = random.standard_normal((4, 3)).astype(np.float32), np.array([0, 2, 1, 0])
    rows, flags = random.standard_normal(4).astype(np.float32), np.array([0.0, 1.0, 1.0, 0.0], np.float32)
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 4]], np.float32)
    everything = ["loss", "gradient", "metrics"]
    return (
        as_json({"loss": {"name": "mse"}, "inputs": {"prediction": rows.tolist(), "target": flags.tolist()}}),
        as_json(
            {
                "loss": {"name": "focal", "gamma": 2.0, "alpha": [0.2, 0.3, 0.5], "reduction": "sum"},
                "inputs": {
                    "prediction": scores.tolist(),
                    "target": classes.tolist(),
                    "sample_weight": [1, 0, 0.5, 2],
                },
                "outputs": everything,
                "gradient": {"clip_norm": 1.0, "dtype": "float64"},
                "metrics": {"names": ["default", "top_k_accuracy"], "k": 2, "zero_division": 0},
            }
        ),
        as_json(
            {
                "loss": {"name": "expression", "formula": "e = p - t; where(e > 0, k * e**2, abs(e))",
                         "parameters": {"k": 3}, "reduction": "none"},
                "inputs": {
                    "p": rows.tolist(),
                    "t": {"dtype": "float32", "shape": [4], "data": "AAAAAAAAgD8AAABAAABAQA=="},
                },
            }
        ),
        as_json(
            {
                "loss": {"name": "weighted_sum", "terms": [
                    {"loss": {"name": "huber", "delta": 0.5}, "weight": 2},
                    {"loss": {"name": "mae"}, "inputs": {"prediction": "prediction", "target": "other"}},
                ]},
                "inputs": {"prediction": [1.5, "NaN"], "target": [1, 2], "other": [[0.0], [1.0]][0] * 2},
            }
        ),
        as_json({"task": "multiclass", "inputs": {"prediction": scores.tolist(), "target": classes.tolist()}}),
        as_safetensors({"loss": {"name": "cross_entropy", "ignore_index": 2}}, prediction=scores, target=classes),
        as_safetensors({"loss": {"name": "giou"}}, prediction=boxes, target=boxes + 1),
        as_safetensors(
            {"loss": {"name": "supcon"}, "outputs": everything},
            embedding=scores.astype(np.float16), label=classes.astype(np.uint8),
        ),
        as_safetensors(
            {"loss": {"name": "bce_with_logits", "pos_weight": [2.0]}},
            prediction=rows[:, None], target=flags[:, None], cotangent=np.array(2.0, np.float32),
        ),
        as_oip("dice", {"mode": "multiclass", "smooth": 0.5}, prediction=scores, target=classes),
        as_oip("cross_entropy", {"class_weight": "[1, 2, 3]", "timeout": 9_000_000}, prediction=scores, target=classes),
        Sent(
            "/v2/models/quantile/infer",
            json.dumps(
                {
                    "id": "a",
                    "parameters": {"q": 0.3, "gradient.clip_value": 0.1},
                    "inputs": [
                        {"name": "prediction", "shape": [2, 2], "datatype": "FP64", "data": [1, 2.5, [3], 4][:2] * 2},
                        {"name": "target", "shape": [2, 2], "datatype": "FP64", "data": [[1, 2], [0, 1]]},
                    ],
                    "outputs": [{"name": "loss"}, {"name": "gradient", "parameters": {"binary_data": True}}],
                }
            ).encode(),
        ),
    )  # fmt: skip


SEEDS = _seeds()

# Values at the edges of what JSON, int64, float32 and the names in a request can be.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, -0.0, 0.5, 1e-320, 1e38, 1e39, 1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1,
    -(2**63), "", "NaN", "Infinity", "-Infinity", "nan", "1", "loss", "prediction", "gradient", "gradient.target",
    "default", "none", "float64", "bfloat16", "BYTES", "UINT64", "../../etc/passwd", "a" * 5000, "\x00",
    "é\u202e\x85\x1b[31m", "\U0001f600", "prediction.0", "__metadata__", [], {}, [[]], [{}], [None], [1, [2]],
    [[1.0] * 3] * 4, [0] * 1000, {"dtype": "int64", "shape": [1], "data": "AAAAAAAAAAA="}, {"name": "mse"},
    {"": None}, ["loss", "loss"],
)  # fmt: skip

SPELLINGS = (
    b"1e999", b"-1e999", b"1e-999", b"-0", b"-0.0", b"01", b"+1", b".5", b"5.", b"0x10", b"1_000", b"NaN", b"Infinity",
    b"-Infinity", b"9" * 400, b"0." + b"1" * 400, b"1E5", b"null", b"tru", b'"\\ud800"', b'"\\u0000"', b"'a'", b"//",
    b'"\\ud83d\\ude00"', b"\xff", b"\x00", b"\xef\xbb\xbf", b"[" * 40 + b"]" * 40, b"[" * 3000, b'{"a":' * 300,
)  # fmt: skip


def mutated(random: Random, seed: Sent | None = None) -> Sent:
    """A request that was valid, after one to four changes."""
    sent = seed or random.choice(SEEDS)
    for _ in range(random.choice((1, 1, 2, 2, 3, 4))):
        change = random.choice(CHANGES[sent.form])
        sent = change(random, sent)
    return sent


def _any_bytes(random: Random, sent: Sent) -> Sent:
    """Bytes set, cut, put in, doubled, or all others."""
    body = bytearray(sent.body)
    at = random.randrange(len(body) + 1)
    match random.randrange(6):
        case 0:
            body[at : at + 1] = random.randbytes(1)
        case 1:
            del body[at : at + random.choice((1, 4, 8, 100))]
        case 2:
            body[at:at] = random.randbytes(random.choice((1, 3, 8)))
        case 3:
            body[at:at] = body[at : at + 16]
        case 4:
            body = body[:at]
        case _:
            body = bytearray(random.randbytes(random.randrange(64)))
    return replace(sent, body=bytes(body))


NUMBERS = (0, 1, -1, 2, 3, 0.5, 100, 1e-8, 1e-30, 1e8, 1e30, -1e30, 3e38, "NaN", "Infinity", "-Infinity", 2**31, -0.0)
METRIC_NAMES = tuple(sorted({name for of_task in METRICS.values() for name in of_task}))
OPTIONS: dict[str, tuple[Any, ...]] = {
    "threshold": (0, 0.5, 1, 10), "iou_threshold": (0, 0.5, 1), "zero_division": (0, 1), "beta": (1e-6, 1, 1e6),
    "k": (1, 5, 10_000), "bins": (1, 15, 1000), "points": (2, 1000), "quantiles": ([0], [0.5, 1], [1] * 100),
    "from_logits": (True, False), "format": ("xywh", "cxcywh"), "ignore_index": (0, -100, 255), "task": tuple(METRICS),
    "gain": ("linear", "exponential"), "ties": ("averaged", "stable"), "by": ("mean", "range", "std", "l2"),
    "scale": (1e-300, 1), "levels": ([0], [0.1, 1], [0.5] * 100), "power": (-10, 0, 0.5, 1, 1.5, 2, 10), "p": (1, 100),
    "max_fpr": (1e-9, 0.5, 1), "top": (1e-9, 1), "normalize": ("true", "pred", "all"), "min_precision": (0, 0.5, 1),
    "min_recall": (0, 1), "min_specificity": (0, 1), "min_sensitivity": (0, 1),
}  # fmt: skip


def _plausible(random: Random, sent: Sent) -> Sent:
    """A request in JSON that stays well-formed: other numbers, options, outputs, rows; most of it is evaluated."""
    try:
        document = json.loads(sent.body)
        inputs, loss = document["inputs"], document.get("loss", {})
        match random.randrange(8):
            case 0:
                document["outputs"] = random.sample(("loss", "gradient", "metrics"), random.randrange(4))
            case 1:
                names = random.sample(METRIC_NAMES, random.randrange(5))
                document["metrics"] = {"names": ["default", *names][random.randrange(2) :]}
            case 2:
                name = random.choice(tuple(OPTIONS))
                document.setdefault("metrics", {})[name] = random.choice(OPTIONS[name])
            case 3:
                loss["reduction"] = random.choice(("mean", "sum", "none", "batchmean"))
            case 4:
                gradient = {"clip_norm": 1e-30, "clip_value": 1e-3, "clip_scope": "tensor", "dtype": "float16"}
                name = random.choice(tuple(gradient))
                document.setdefault("gradient", {})[name] = gradient[name]
            case 5:
                rows = random.choice((0, 1, 2, 3))
                document["inputs"] = {name: value[:rows] for name, value in inputs.items()}
            case 6:
                inputs[random.choice(("sample_weight", "cotangent"))] = random.choice(([0, 1, 0.5, 2], 1.0, [0] * 4))
            case _:
                part = random.choice([part for part in (loss, inputs) if part])
                changed = _number(random, part)
                document = {**document, "loss": changed} if part is loss else {**document, "inputs": changed}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return sent  # it was no longer such a request
    return replace(sent, body=json.dumps(document).encode())


def _number(random: Random, part: Any) -> Any:
    """One of the numbers in a part of a document replaced by another."""
    if isinstance(part, dict) and part:
        key = random.choice(tuple(part))
        return {**part, key: _number(random, part[key])}
    if isinstance(part, list) and part:
        at = random.randrange(len(part))
        return [*part[:at], _number(random, part[at]), *part[at + 1 :]]
    return part if isinstance(part, str | dict | list) and part not in NUMBERS else random.choice(NUMBERS)


def _headers(random: Random, sent: Sent) -> Sent:
    """A header that is missing, wrong, or too much."""
    name, value = random.choice(
        (
            ("Content-Type", random.choice(("", "application/json; charset=utf-16", "APPLICATION/JSON", "x" * 3000))),
            ("Content-Type", random.choice((safetensors.MEDIA_TYPE, "application/octet-stream", "application/json"))),
            ("Accept", random.choice(("", "*/*", "application/json", safetensors.MEDIA_TYPE, "text/html", ";;,q="))),
            ("Content-Encoding", random.choice(("gzip", "deflate", "zstd", "br", "identity", "gzip, gzip", "x" * 300))),
            ("Accept-Encoding", random.choice(("gzip", "gzip;q=0", "zstd", "*;q=", "deflate, br;q=1.0000"))),
            ("X-Request-ID", random.choice(("", "a" * 500, "\x7f\t\x1b[0m", "é", '{"a":1}', "a b"))),
            ("X-Request-Timeout-Ms", random.choice(("0", "-1", "1.5", "9" * 5000, "9" * 400, "60000", "1e3", " 5 "))),
            (oip.HEADER_LENGTH, random.choice(("", "0", "-1", "1", "10", "9" * 30, "1.0", "abc", str(len(sent.body))))),
            ("traceparent", random.choice(("", "00-0-0-0", "a" * 1000))),
        )
    )  # fmt: skip
    headers = {key: kept for key, kept in sent.headers.items() if key != name}
    return replace(sent, headers={**headers, name: value} if random.random() < 0.9 else headers)


def _compress(random: Random, sent: Sent) -> Sent:
    """The body in gzip, whole, cut, or with something after it."""
    packed = gzip.compress(sent.body)
    body = random.choice((packed, packed[: len(packed) // 2], packed + b"more", packed + packed, gzip.compress(packed)))
    return replace(sent, body=body, headers={**sent.headers, "Content-Encoding": "gzip"})


def _document(random: Random, document: Any) -> Any:
    """A JSON document with one place changed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            places.append((node, key))
            walk(child)

    document = json.loads(json.dumps(document))
    walk(document)
    if not places or random.random() < 0.05:
        return random.choice(ODD)
    parent, key = random.choice(places)
    match random.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            name = random.choice(("", "a" * 300, "name", "loss", "dtype", "\x00", "outputs", f"{key}s"))
            parent[name] = parent[key]
        case 2:
            other, place = random.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                parent[key] = json.loads(json.dumps(other[place]))
        case _:
            parent[key] = random.choice(ODD)
    return document


def _text(random: Random, text: bytes) -> bytes:
    """JSON text with one place changed: by the document's structure, or in a spelling."""
    match random.randrange(5):
        case 0 | 1 | 2:
            try:
                return json.dumps(_document(random, json.loads(text)), ensure_ascii=random.random() < 0.5).encode()
            except (ValueError, RecursionError):
                return text
        case 3:
            numbers = [i for i, byte in enumerate(text) if byte in b"0123456789"]
            at = random.choice(numbers) if numbers else random.randrange(len(text) + 1)
            return text[:at] + random.choice(SPELLINGS) + text[at + 1 :]
        case _:
            at = random.randrange(len(text) + 1)
            return text[:at] + random.choice(SPELLINGS) + text[at:]


def _json_text(random: Random, sent: Sent) -> Sent:
    return replace(sent, body=_text(random, sent.body))


def _safetensors_header(random: Random, sent: Sent) -> Sent:
    """The header changed, or the request in it, or the length that is said of it."""
    if len(sent.body) < 8:
        return sent
    (length,) = struct.unpack_from("<Q", sent.body)
    text, data = sent.body[8 : 8 + length], sent.body[8 + length :]
    match random.randrange(5):
        case 0:
            stated_length = random.choice(
                (0, 1, length - 1, length + 1, length + 8, 2**20, 2**20 + 1, 2**31, 2**63, 2**64 - 1)
            )
            return replace(sent, body=struct.pack("<Q", stated_length % 2**64) + text + data)
        case 1:
            data = random.choice((data[:-1], data + b"\0", b"", data[1:], data * 2))
        case 2 | 3:
            try:
                header = json.loads(text)
                inner = _text(random, header["__metadata__"]["request"].encode()).decode("utf-8", "replace")
                header["__metadata__"]["request"] = inner
                text = json.dumps(header).encode()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                pass
        case _:
            text = _text(random, text)
    return replace(sent, body=struct.pack("<Q", len(text)) + text + data)


def _oip_text(random: Random, sent: Sent) -> Sent:
    """The JSON part changed, or its length, or the bytes after it."""
    header = sent.headers.get(oip.HEADER_LENGTH, "")
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 9 else len(sent.body)
    text, data = sent.body[:length], sent.body[length:]
    headers = dict(sent.headers)
    match random.randrange(5):
        case 0:
            headers[oip.HEADER_LENGTH] = str(length + random.choice((-1, 1, 8, -8, 10**6)))
            return replace(sent, headers=headers)
        case 1:
            data = random.choice((data[:-1], data + b"\0", b"", data[1:], data * 2))
        case _:
            text = _text(random, text)
    if oip.HEADER_LENGTH in headers:
        headers[oip.HEADER_LENGTH] = str(len(text))
    return replace(sent, body=text + data, headers=headers)


def _path(random: Random, sent: Sent) -> Sent:
    models = ("mse", "nope", "", "..", "%2e%2e", "metrics.binary", "mse/versions/1", "a" * 2000, "%00", "%ff%0d%0a")
    model = random.choice(models)
    return replace(sent, path=f"/v2/models/{model}/infer")


Change = Callable[[Random, Sent], Sent]
ANYWHERE: tuple[Change, ...] = (_any_bytes, _headers, _compress)
CHANGES: dict[str, tuple[Change, ...]] = {
    "json": (*ANYWHERE, *(_json_text,) * 4, *(_plausible,) * 14),
    "safetensors": (*ANYWHERE, *(_safetensors_header,) * 7),
    "oip": (*ANYWHERE, _path, *(_oip_text,) * 7),
}
