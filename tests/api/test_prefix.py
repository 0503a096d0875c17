"""Behind a proxy with TLS that serves lossd below a path: no address leaves that path."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError

from lossd.configuration.settings import Settings
from lossd_client.errors import Problem, UnknownLoss
from serving import Running, running

PUBLIC = "https://loss.example/tools/loss"


class Proxy:
    """What a browser sees of the service at :data:`PUBLIC`; anything else is another program's.

    Args:
        service: What is behind it.
        http: Asks it.
        strips: Whether it takes its own path off a request's.
    """

    def __init__(self, service: Running, http: httpx.Client, *, strips: bool) -> None:
        self.service = service
        self.http = http
        self.strips = strips

    def get(self, url: str, method: str = "GET") -> tuple[str, httpx.Response]:
        """An answer, and the address it was found at after redirections."""
        for _ in range(3):
            assert url.startswith(f"{PUBLIC}/") or url == PUBLIC, url
            path = url.removeprefix(PUBLIC if self.strips else "https://loss.example") or "/"
            answer = self.http.request(method, f"{self.service.url}{path}")
            if "location" not in answer.headers:
                return url, answer
            url = urljoin(url, answer.headers["location"])
        raise AssertionError("it leads from here to there")


@pytest.fixture(scope="module", params=[True, False], ids=["taken off", "left"])
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with running(engine="inline", root_path="/tools/loss") as service, httpx.Client(timeout=60) as http:
        yield Proxy(service, http, strips=request.param)


PAGES = (
    "/", "/docs", "/docs/", "/redoc", "/redoc/", "/problems", "/problems/", "/problems/too-large", "/manual",
    "/manual/", "/manual/quickstart", "/v1/losses/",
)  # fmt: skip


def test_pages_and_what_they_refer_to_stay_below_the_path(proxy: Proxy) -> None:
    referred = {}
    for page in PAGES:
        at, answer = proxy.get(PUBLIC + page)
        assert answer.is_success, page
        if "html" in answer.headers["content-type"]:
            sources = re.findall(r'(?:src|href)="([^"#]+)"', answer.text) + re.findall(r"url: '([^']+)'", answer.text)
            assert sources, page
            referred |= {urljoin(at, source): page for source in sources}
    failed = {source: page for source, page in referred.items() if not proxy.get(source)[1].is_success}
    assert not failed


def test_types_of_problems_lead_to_their_pages(proxy: Proxy) -> None:
    for path, method in (("/v1/losses/nothing", "GET"), ("/v1/evaluate", "PUT")):
        at, answer = proxy.get(PUBLIC + path, method)
        assert answer.json()["type"].startswith("/tools/loss/problems/")
        page = proxy.get(urljoin(at, answer.json()["type"]))[1]
        assert answer.json()["title"] in page.text
    assert isinstance(Problem.from_json(proxy.get(f"{PUBLIC}/v1/losses/nothing")[1].json()), UnknownLoss)


def test_openapi_says_where_it_is(proxy: Proxy) -> None:
    assert proxy.get(f"{PUBLIC}/openapi.json")[1].json()["servers"] == [{"url": "/tools/loss"}]


def test_without_the_setting_redirections_and_pages_stay_all_the_same(service: Running) -> None:
    with httpx.Client(timeout=60) as http:
        proxy = Proxy(service, http, strips=True)
        for page in ("/docs/", "/problems/", "/v1/losses/?a=b"):
            assert proxy.get(PUBLIC + page)[1].is_success
    answer = httpx.get(f"{service.url}//elsewhere.example/docs/", timeout=60)
    assert not answer.headers.get("location", "").startswith(("//", "http"))


@pytest.mark.parametrize("path", ["loss", "https://a/b", "/a b", "//a", "/a?b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="is not a path"):
        Settings(root_path=path)


def raw(service: Running, sent: bytes) -> tuple[int, bytes]:
    """The status and body of the first answer to these bytes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET %s HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET %s HTTP/1.1\r\nHost: a\r\n" + 200 * b"a: b\r\n" + b"\r\n", 431),
        (b"GET %s HTTP/1.1\r\nHost: a\r\n", 408),  # and no more
    ],
)
@pytest.mark.parametrize("root", [b"/tools/loss", b""], ids=["left", "taken off"])
def test_what_is_refused_before_routing_stays_below_the_path(root: bytes, head: bytes, status: int) -> None:
    with running(engine="inline", root_path="/tools/loss", idle_timeout_ms=200) as service:
        found, body = raw(service, head % (root + b"/v1/losses"))
        assert found == status
        assert json.loads(body)["type"].startswith("/tools/loss/problems/")
        # An address that is not whole may be of any door.
        if status != 408:
            assert json.loads(raw(service, head % (root + b"/v2/models/mse"))[1]).keys() == {"error"}


def test_one_connection_too_many_is_answered_below_the_path() -> None:
    with running(engine="inline", root_path="/loss", max_connections=1) as service, httpx.Client() as first:
        assert first.get(f"{service.url}/health/live").is_success
        for root in (b"/loss", b""):
            status, body = raw(service, b"GET %s/v1/losses HTTP/1.1\r\nHost: a\r\n\r\n" % root)
            assert (status, json.loads(body)["type"]) == (503, "/loss/problems/unavailable")
            assert raw(service, b"GET %s/health/live HTTP/1.1\r\nHost: a\r\n\r\n" % root)[0] == 200
