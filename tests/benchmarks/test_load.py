"""The load generators measure what they say, and every workload is one the service answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks import load
from benchmarks.dialects import Safetensors
from benchmarks.load import Address, Post
from benchmarks.workloads import WORKLOADS, focal
from serving import running

LOSSD = Safetensors("/v1/evaluate")
GENERATORS = [load.sockets, pytest.param(load.wrk, marks=pytest.mark.skipif(not load.have_wrk(), reason="no wrk here"))]


SECONDS = {load.sockets: 0.2, load.wrk: 1}
"""Of a round; wrk takes whole ones."""


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with running(engine="inline") as service:
        host, _, port = service.url.removeprefix("http://").partition(":")
        yield host, int(port)


@pytest.mark.parametrize("generate", GENERATORS)
@pytest.mark.timed
def test_a_round_is_counted_and_timed(generate: Callable[..., load.Measurement], address: Address) -> None:
    seconds = SECONDS[generate]
    measured = generate(address, [LOSSD.post(focal((64, 10)))], connections=4, seconds=seconds)
    assert measured.failures == 0
    assert seconds <= measured.seconds < seconds + 4
    assert measured.requests >= 8
    assert measured.per_second == measured.requests / measured.seconds
    assert 0 < measured.p50_ms <= measured.p99_ms < 1000 * measured.seconds


@pytest.mark.parametrize("generate", GENERATORS)
def test_answers_that_refuse_are_failures(generate: Callable[..., load.Measurement], address: Address) -> None:
    refused = Post("/v1/evaluate", LOSSD.post(focal((64, 10))).headers, b"no safetensors")
    measured = generate(address, [refused], connections=2, seconds=SECONDS[generate])
    assert measured.failures == measured.requests > 0
    assert measured.per_second == 0


@pytest.mark.parametrize("letter", sorted(WORKLOADS.keys() - {"L"}))  # L is 97 MB, and is M but for its size
def test_the_service_answers_every_request_of_a_workload(letter: str, address: Address) -> None:
    posts = [LOSSD.post(question) for question in WORKLOADS[letter]().requests]
    measured = load.sockets(address, posts, connections=1, seconds=0, at_least=len(posts))
    assert (measured.requests, measured.failures) == (len(posts), 0)
