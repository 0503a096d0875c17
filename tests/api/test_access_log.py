"""The access log: the fields of a line, what a line never contains, and the limit of lines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.api.observability import access_log as log
from lossd.api.observability.access_log import Allowance
from lossd.configuration.keys import fresh_key
from lossd.configuration.settings import Settings
from lossd.logs import JsonFormatter, LogLine, configure
from lossd_client import LossClient
from serving import Running, running

KEY = fresh_key()
MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [271.828125, 0.25], "target": [3.0, 0.5]}}
HEADERS = {"X-API-Key": KEY, "X-Request-ID": "mine", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}


class Collected(logging.Handler):
    """Every record, as it would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def one(self, **fields: Any) -> dict[str, Any]:
        """The line with these fields; it is written just after the answer has arrived."""
        for _ in range(500):
            documents = [json.loads(line) for line in self.lines]
            found = [d for d in documents if all(d.get(name) == value for name, value in fields.items())]
            if found:
                assert len(found) == 1
                return found[0]
            time.sleep(0.01)
        raise AssertionError(f"no line with {fields} in {self.lines}")


@pytest.fixture
def collected() -> Iterator[Collected]:
    handler, level = Collected(), log.log.level
    log.log.addHandler(handler)
    log.log.setLevel(logging.INFO)
    yield handler
    log.log.removeHandler(handler)
    log.log.setLevel(level)


@pytest.fixture
def service(collected: Collected) -> Iterator[Running]:
    with running(engine="inline", api_key=KEY) as service:
        yield service


def test_an_answered_request_says_who_asked_what_and_how_long_it_took(service: Running, collected: Collected) -> None:
    body = json.dumps(MSE).encode()
    headers = {**HEADERS, "Content-Type": "application/json"}
    answer = httpx.post(f"{service.url}/v1/evaluate", content=body, headers=headers)
    line = collected.one(request_id="mine")
    ms = line.pop("ms")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "logger": "lossd.access", "request_id": "mine", "method": "POST", "path": "/v1/evaluate",
        "client": "default", "peer": "127.0.0.1", "trace_id": "ab" * 16, "status": 200, "outcome": "ok", "loss": "mse",
        "bytes_in": len(body), "shapes": {"prediction": [2], "target": [2]}, "bytes_out": len(answer.content),
        "batch_requests": 1,
    }  # fmt: skip
    assert list(ms) == ["parse", "queue", "copy", "compute", "encode", "total"]
    assert 0 < sum(list(ms.values())[:-1]) <= ms["total"] < 30_000


@pytest.mark.parametrize("path", ["/v1/evaluate", "/v1/losses"])
def test_behind_a_proxy_the_peer_is_whom_a_trusted_one_names(path: str, monkeypatch, collected: Collected) -> None:
    for trusted, peer in (("127.0.0.1", "203.0.113.7"), ("192.0.2.1", "127.0.0.1"), ("by-default", "127.0.0.1")):
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
        if trusted == "by-default":
            monkeypatch.delenv("FORWARDED_ALLOW_IPS")
        with running(engine="inline") as service:
            headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Request-ID": trusted}
            if path == "/v1/evaluate":
                assert httpx.post(f"{service.url}{path}", json=MSE, headers=headers).status_code == 200
            else:
                assert httpx.get(f"{service.url}{path}", headers=headers).status_code == 200
            assert collected.one(request_id=trusted)["peer"] == peer


@pytest.mark.parametrize("door", ["/v1/evaluate", "/v2/models/mse/infer"])
def test_both_doors_have_lines_for_large_bodies_too(service: Running, collected: Collected, door: str) -> None:
    values = np.zeros((300, 500), np.float32)
    if door.startswith("/v1"):
        with LossClient(service.url, api_key=KEY) as client:
            client.evaluate("mse", values, values)
    else:
        data = values.tobytes()
        inputs = [
            {"name": n, "shape": values.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
            for n in ("prediction", "target")
        ]
        text = json.dumps({"inputs": inputs}).encode()
        headers = {"X-API-Key": KEY, "Inference-Header-Content-Length": str(len(text))}
        assert httpx.post(f"{service.url}{door}", content=text + 2 * data, headers=headers).is_success
    line = collected.one(path=door)
    assert line["shapes"] == {"prediction": [300, 500], "target": [300, 500]}
    assert line["bytes_in"] > 1_200_000


REFUSED = {
    "no key": ({}, MSE, 401, "unauthorized", {}),
    "not a number": (
        {"X-API-Key": KEY},
        {"loss": {"name": "mse"}, "inputs": {"prediction": [271.828125], "target": ["NaN"]}},
        422,
        "invalid-value",
        {"loss": "mse", "shapes": {"prediction": [1], "target": [1]}},
    ),
    "no such loss": ({"X-API-Key": KEY}, {"loss": {"name": "x"}, "inputs": {}}, 404, "unknown-loss", {}),
}


@pytest.mark.parametrize(("headers", "body", "status", "outcome", "more"), REFUSED.values(), ids=REFUSED.keys())
def test_a_problem_is_told_with_what_was_known(
    headers, body, status, outcome, more, service: Running, collected: Collected
) -> None:
    assert httpx.post(f"{service.url}/v1/evaluate", json=body, headers=headers).status_code == status
    line = collected.one(status=status)
    assert (line["level"], line["outcome"], list(line["ms"])) == ("warning", outcome, ["total"])
    assert {name: line.get(name) for name in ("loss", "shapes")} == {"loss": None, "shapes": None} | more


def test_pages_have_lines_and_probes_only_where_they_fail(service: Running, collected: Collected) -> None:
    with httpx.Client(base_url=service.url, headers=HEADERS) as http:
        for path in ("/health/ready", "/metrics", "/v2/health/live", "/v1/losses", "/v2/models/nothing", "/nowhere"):
            http.get(path)
    lines = {json.loads(line)["path"]: json.loads(line) for line in collected.lines}
    assert {path: line["status"] for path, line in lines.items()} == {
        "/v1/losses": 200,
        "/v2/models/nothing": 404,
        "/nowhere": 404,
    }
    assert {line["request_id"] for line in lines.values()} == {"mine"}
    assert {line["client"] for line in lines.values()} == {"default"}


def test_neither_values_nor_keys_are_ever_told(service: Running, collected: Collected) -> None:
    with httpx.Client(base_url=service.url) as http:
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {KEY}x"}):
            for door in ("/v1/evaluate", "/v2/models/mse/infer", "/v1/losses"):
                http.post(door, json=MSE, headers=headers)
                http.post(door, content=b'{"inputs": [271.828125', headers=headers)
    for _ in range(500):  # a line is written just after the answer has arrived
        if len(collected.lines) < 18:
            time.sleep(0.01)
    assert len(collected.lines) == 18
    assert [line for line in collected.lines if KEY in line or "271.8" in line] == []


def test_an_allowance_a_second_and_what_is_over_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    allowance = Allowance(3, "answers")
    assert [allowance.take(10 + i / 10) for i in range(9)] == [True] * 3 + [False] * 6
    assert not caplog.records
    assert allowance.take(11.0)
    assert [record.getMessage() for record in caplog.records] == ["left_out=6 of=answers"]
    unlimited = Allowance(0, "answers")
    assert all(unlimited.take(10.0) for _ in range(1000))


@pytest.mark.parametrize(
    ("settings", "logged"),
    [
        ({}, ["ok", "unknown-loss"]),
        ({"access_log": "problems"}, ["unknown-loss"]),
        ({"access_log": "none"}, []),
        ({"access_log_per_s": 1}, ["ok", "unknown-loss"]),
    ],
)
def test_which_requests_have_lines(settings: dict[str, Any], logged: list[str], collected: Collected) -> None:
    with running(engine="inline", **settings) as service, httpx.Client(base_url=service.url) as http:
        http.post("/v1/evaluate", json=MSE)
        http.post("/v1/evaluate", json={"loss": {"name": "x"}, "inputs": {}})
        if "access_log_per_s" in settings:
            for _ in range(20):
                http.post("/v1/evaluate", json=MSE)
                http.post("/v1/evaluate", json={"loss": {"name": "x"}, "inputs": {}})
    outcomes = [json.loads(line).get("outcome") for line in collected.lines]
    assert sorted(set(filter(None, outcomes))) == logged
    assert len(outcomes) < 10


def test_a_quiet_level_leaves_the_problems(collected: Collected) -> None:
    log.log.setLevel(logging.WARNING)
    with running(engine="inline") as service:
        assert httpx.post(f"{service.url}/v1/evaluate", json=MSE).is_success
        assert httpx.post(f"{service.url}/v1/evaluate").status_code == 415
    assert [json.loads(line)["status"] for line in collected.lines] == [415]


# Form


def record(message: Any, **more: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "lossd", "levelno": 30, "levelname": "WARNING", "msg": message, **more})


def test_every_other_message_is_json_too() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        failed = record("request %s failed", args=("a\nb",), exc_info=sys.exc_info())
    document = json.loads(JsonFormatter().format(failed))
    assert (document["level"], document["logger"], document["message"]) == ("warning", "lossd", "request a\nb failed")
    assert "ValueError: no" in document["traceback"]


def test_a_line_for_reading_cannot_draw_on_the_terminal() -> None:
    line = LogLine(
        path="/v1/\x1b[2Jx\n2026 INFO fake", shapes={"prediction": (64, 10), "target": ()}, ms={"total": 1.5}
    )
    text = logging.Formatter("%(message)s").format(record(line))
    assert text == "path=/v1/\ufffd[2Jx\ufffd2026 INFO fake shapes=prediction:64x10,target: ms=total:1.5"


@pytest.mark.parametrize(("form", "terminal", "json_lines"), [
    ("auto", True, False), ("auto", False, True), ("json", True, True), ("text", False, False),
])  # fmt: skip
def test_the_form_of_the_log(
    form: str, terminal: bool, json_lines: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    configure(Settings(log_format=form))
    logging.getLogger("lossd.test").warning("told")
    assert capsys.readouterr().err.startswith("{") == json_lines
