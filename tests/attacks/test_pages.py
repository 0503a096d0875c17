"""Public pages, requested without limit: a page that is the same for all clients is made once."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest

from lossd.api import catalogue

PAGES = (
    "/",
    "/openapi.json",
    "/docs/static/swagger-ui-bundle.js",
    "/docs/static/swagger-ui.css",
    "/docs/static/redoc.standalone.js",
    "/v1/losses",
    "/v1/metrics",
)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_packed_once_and_not_sent_to_who_has_it(
    path: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings: list[int] = []
    compress, write = gzip.compress, gzip.GzipFile.write

    def compressed(data: Any, *args: Any, **kwargs: Any) -> bytes:
        packings.append(len(data))
        return compress(data, *args, **kwargs)

    def written(self: gzip.GzipFile, data: Any) -> int:
        packings.append(len(data))
        return write(self, data)

    monkeypatch.setattr(gzip, "compress", compressed)
    monkeypatch.setattr(gzip.GzipFile, "write", written)
    answers = [http.get(path, headers={"Accept-Encoding": "gzip"}) for _ in range(4)]
    assert {(answer.status_code, answer.headers["content-encoding"]) for answer in answers} == {(200, "gzip")}
    assert len({answer.content for answer in answers}) == 1
    assert len(packings) <= 1
    plain = http.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == answers[0].content
    known = http.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": answers[0].headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


def test_the_catalogue_is_written_once(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [http.get(path).json() for path in ("/v1/losses", "/v1/metrics")]

    def described(*_: Any) -> Any:
        raise AssertionError("a loss was described again")

    monkeypatch.setattr(catalogue, "describe_loss", described)
    monkeypatch.setattr(catalogue.metrics, "describe", described)
    assert [http.get(path).json() for path in ("/v1/losses", "/v1/metrics")] == first
