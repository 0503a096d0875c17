"""A service without compiled passes reports it, serves requests, and compiles the requested passes first."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import running

LONG_S = 240.0
MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [2.5, 0.0], "target": [3.0, -0.5]}, "outputs": ["loss"]}


def passes(http: httpx.Client) -> dict[str, float]:
    """By state, as Prometheus scrapes them."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [s for family in families for s in family.samples if s.name == "lossd_compiled_passes"]
    assert all((s.labels["worker"], s.labels["device"]) == ("0", "cpu") for s in samples)
    return {s.labels["state"]: s.value for s in samples}


def compiled(http: httpx.Client) -> dict[str, int]:
    body: dict[str, Any] = http.get("/health/ready").raise_for_status().json()
    assert body["status"] == "ready"
    return dict(body["compiled"])


@pytest.mark.timeout(2 * LONG_S)
def test_passes_become_ready_one_by_one_those_asked_for_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(cache_dir=tmp_path) as service, httpx.Client(base_url=service.url, timeout=60) as http:
        first = compiled(http)
        assert first["ready"] == first["failed"] == 0 < first["total"]
        seen = set()
        end = time.monotonic() + LONG_S
        while (ready := compiled(http)["ready"]) < 2:
            seen.add(ready)
            time.sleep(0.1)
            assert http.post("/v1/evaluate", json=MSE).raise_for_status().json()["loss"] == 0.25
            assert time.monotonic() < end
        assert seen == {0, 1}, "each is used as soon as it is there"
        states = passes(http)
        assert states["ready"] >= 2
        assert states["failed"] == 0
        assert sum(states.values()) == first["total"]
        assert http.post("/v1/evaluate", json=MSE).raise_for_status().json()["loss"] == 0.25
    log = capfd.readouterr().err
    assert re.search(rf"compiling {first['total']} of {first['total']} passes; their code is kept in {tmp_path}", log)
    # By default rows, rates, and these only later; what was begun before the first request is finished first.
    assert "elements" in re.findall(r"compiled (.+?) in [\d.]+ s: \d of \d+", log)[:2]
    with running(cache_dir=tmp_path) as service, httpx.Client(base_url=service.url, timeout=60) as http:
        assert compiled(http)["ready"] >= 2, "what is kept is there at once"
        assert http.post("/v1/evaluate", json=MSE).raise_for_status().json()["loss"] == 0.25


def test_where_nothing_is_to_be_compiled_there_is_nothing_to_say() -> None:
    with running(compiled=False) as service, httpx.Client(base_url=service.url, timeout=60) as http:
        assert compiled(http) == {"ready": 0, "failed": 0, "total": 0}
        assert passes(http) == {}
