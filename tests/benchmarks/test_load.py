"""The load generators measure what they say, and every workload is one the service answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks import load
from benchmarks.workloads import WORKLOADS, safetensors_body
from serving import running

HEADERS = {"Content-Type": "application/vnd.safetensors"}
GENERATORS = [load.sockets, pytest.param(load.wrk, marks=pytest.mark.skipif(not load.have_wrk(), reason="no wrk here"))]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(engine="inline") as service:
        yield f"{service.url}/v1/evaluate"


@pytest.mark.parametrize("generate", GENERATORS)
def test_a_round_is_counted_and_timed(generate: Callable[..., load.Measurement], url: str) -> None:
    body = safetensors_body(*WORKLOADS["S"]().requests[0])
    measured = generate(url, [body], HEADERS, connections=4, seconds=1)
    assert measured.failures == 0
    assert 1.0 <= measured.seconds < 5.0
    assert measured.requests >= 8
    assert 0 < measured.p50_ms <= measured.p99_ms < 1000 * measured.seconds


@pytest.mark.parametrize("generate", GENERATORS)
def test_answers_that_refuse_are_failures(generate: Callable[..., load.Measurement], url: str) -> None:
    measured = generate(url, [b"no safetensors"], HEADERS, connections=2, seconds=1)
    assert measured.failures == measured.requests > 0


@pytest.mark.parametrize("letter", sorted(WORKLOADS.keys() - {"L"}))  # L is 97 MB, and is M but for its size
def test_the_service_answers_every_request_of_a_workload(letter: str, url: str) -> None:
    bodies = [safetensors_body(*request) for request in WORKLOADS[letter]().requests]
    measured = load.sockets(url, bodies, HEADERS, connections=1, seconds=0, at_least=len(bodies))
    assert (measured.requests, measured.failures) == (len(bodies), 0)
