"""A header field that is sent several times is one list of values (RFC 9110, section 5.3)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import httpx
import pytest

from serving import running

JSON, BINARY = "application/json", "application/vnd.safetensors"
BODY = b'{"loss": {"name": "mse"}, "inputs": {"prediction": [%b], "target": [%b]}}'
SMALL, LONG = (BODY % (numbers, numbers) for numbers in (b"1.5", b",".join([b"1.5"] * 1000)))
CURVE = "/v1/losses/mse/curve.json?points=41"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=30) as http:
        yield http


def evaluated(http: httpx.Client, body: bytes, *fields: tuple[str, str]) -> httpx.Response:
    return http.post("/v1/evaluate", content=body, headers=[("Content-Type", JSON), *fields])


@pytest.mark.parametrize(
    ("accepted", "answered"),
    [([BINARY, f"{JSON};q=0.5"], BINARY), ([f"{JSON};q=0.5", BINARY], BINARY), ([f"{BINARY};q=0.5", JSON], JSON)],
)
def test_accept(accepted: list[str], answered: str, http: httpx.Client) -> None:
    answer = evaluated(http, SMALL, *(("Accept", value) for value in accepted))
    assert answer.headers["content-type"] == answered


@pytest.mark.parametrize("accepted", [["gzip", "identity;q=0.5"], ["identity;q=0.5", "gzip"]])
def test_accept_encoding(accepted: list[str], http: httpx.Client) -> None:
    fields = [("Accept-Encoding", value) for value in accepted]
    assert evaluated(http, LONG, *fields).headers["content-encoding"] == "gzip"
    for path in ("/v1/losses", CURVE):
        assert http.get(path, headers=fields).headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("codings", [["gzip", "identity"], ["identity", "gzip"]])
def test_content_encoding(codings: list[str], http: httpx.Client) -> None:
    answer = evaluated(http, gzip.compress(SMALL), *(("Content-Encoding", value) for value in codings))
    assert answer.json()["loss"] == 0


def test_two_codings_are_refused(http: httpx.Client) -> None:
    answer = evaluated(http, gzip.compress(SMALL), ("Content-Encoding", "zstd"), ("Content-Encoding", "gzip"))
    assert (answer.status_code, "'zstd, gzip' is not read" in answer.text) == (415, True)


@pytest.mark.parametrize("path", ["/v1/losses", CURVE])
def test_if_none_match(path: str, http: httpx.Client) -> None:
    tag = http.get(path).headers["etag"]
    assert tag.startswith('W/"')  # the same for all encodings
    for stated in (['"other"', tag], [tag, '"other"'], [tag.removeprefix("W/")], ["*"]):
        assert http.get(path, headers=[("If-None-Match", value) for value in stated]).status_code == 304
    assert http.get(path, headers=[("If-None-Match", '"other"')]).status_code == 200
