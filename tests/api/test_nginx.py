"""Behind nginx, which terminates TLS and serves lossd below /lossd/: no address leaves that path."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
import pytest

from lossd_client import LossClient
from lossd_client.errors import Problem, ShapeMismatch
from serving import Running, certificate, running

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl"),
]

# As docs/deployment.md has it, and who asks.
CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    {temporary}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        location /lossd/ {{
            proxy_pass http://127.0.0.1:{service}{taken_off};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_request_buffering off;
            client_max_body_size 1g;
        }}
        location / {{ return 418 "another program"; }}
    }}
}}
"""
TEMPORARY = " ".join(
    f"{kind}_temp_path {{folder}}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


@dataclass
class Public:
    """What the world sees.

    Attributes:
        url: Of the service, without a slash at its end.
        client: Trusts the certificate, and follows no redirection.
        ca: The certificate.
    """

    url: str
    client: httpx.Client
    ca: Path

    def follow(self, address: str) -> tuple[str, httpx.Response]:
        """What a browser finds there, and where it ends up: always at the service."""
        for _ in range(4):
            assert address == self.url or address.startswith(f"{self.url}/"), address
            answer = self.client.get(address)
            if "location" not in answer.headers:
                return address, answer
            address = urljoin(address, answer.headers["location"])
        raise AssertionError("it leads from here to there")


@pytest.fixture(scope="module", params=["", "/"], ids=["path left", "path taken off"])
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Public]:
    folder = tmp_path_factory.mktemp("nginx")
    cert, key = certificate(folder, "public")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with behind_a_proxy() as service:
        text = CONFIGURATION.format(
            folder=folder, port=port, cert=cert, key=key, service=service.port, taken_off=request.param,
            temporary=TEMPORARY.format(folder=folder),
        )  # fmt: skip
        (folder / "nginx.conf").write_text(text)
        command = [str(NGINX), "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]
        with (
            subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx,
            httpx.Client(verify=ssl.create_default_context(cafile=str(cert)), timeout=60) as client,
        ):
            try:
                wait_for(port, folder / "error.log")
                yield Public(f"https://127.0.0.1:{port}/lossd", client, cert)
            finally:
                nginx.terminate()


@contextmanager
def behind_a_proxy() -> Iterator[Running]:
    """A service that believes a proxy on this machine. Services that start meanwhile do not."""
    with ExitStack() as until:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
            service = until.enter_context(running(engine="inline", root_path="/lossd"))
        yield service


def wait_for(port: int, log: Path) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)


PAGES = ("", "/", "/docs", "/docs/", "/redoc", "/redoc/", "/problems", "/problems/", "/v1/losses/", "/v1/losses")


def test_pages_and_what_they_refer_to_stay_below_the_path(public: Public) -> None:
    referred = {}
    for page in PAGES:
        at, answer = public.follow(public.url + page)
        assert answer.status_code == 200, page
        if "html" in answer.headers["content-type"]:
            sources = re.findall(r'(?:src|href)="([^"#]+)"', answer.text) + re.findall(r"url: '([^']+)'", answer.text)
            assert sources, page
            referred |= {urljoin(at, source): page for source in sources}
    failed = {source: page for source, page in referred.items() if public.follow(source)[1].status_code != 200}
    assert not failed


def test_problems_of_every_origin_lead_to_their_pages(public: Public) -> None:
    crowded = {f"x-{i}": "a" for i in range(200)}  # refused before there is a route
    for answer, status in (
        (public.client.get(f"{public.url}/v1/losses/nothing"), 404),
        (public.client.put(f"{public.url}/v1/evaluate"), 405),
        (public.client.post(f"{public.url}/v1/evaluate", content=b"{", headers={"Content-Type": "a/b"}), 415),
        (public.client.get(f"{public.url}/v1/losses", headers=crowded), 431),
    ):
        assert answer.status_code == status
        at, page = public.follow(urljoin(public.url, answer.json()["type"]))
        assert urlsplit(at).path.startswith("/lossd/problems/")
        assert answer.json()["title"] in page.text
    assert public.client.get(f"{public.url}/v2/models/nothing").json().keys() == {"error"}


def test_a_page_served_there_may_ask(public: Public) -> None:
    """A browser names the public origin; the Host that nginx passes on is the same."""
    body = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}
    origin = public.url.removesuffix("/lossd")
    for headers in ({"Origin": origin, "Sec-Fetch-Site": "same-origin"}, {"Origin": origin}):
        assert public.client.post(f"{public.url}/v1/evaluate", json=body, headers=headers).json()["loss"] == 4
    assert public.client.head(f"{public.url}/v1/losses").status_code == 200


def test_the_client_asks_through_it(public: Public, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(public.ca))
    with LossClient(public.url) as client:
        prediction = np.linspace(0, 1, 1 << 20, dtype=np.float32)  # 4 MiB, both ways
        answer = client.evaluate("mse", prediction, np.zeros_like(prediction), reduction="sum", metrics=[])
        np.testing.assert_allclose(answer.gradient, 2 * prediction, rtol=1e-6)
        with pytest.raises(ShapeMismatch):
            client.evaluate("mse", [1.0], [1.0, 2.0])
        assert isinstance(Problem.from_json(public.client.get(f"{public.url}/v1/losses/nothing").json()), Problem)


def test_who_asked_is_believed_of_a_proxy_that_is_named_and_of_nobody_else(
    public: Public, caplog: pytest.LogCaptureFixture, service: Running
) -> None:
    def peer(client: httpx.Client, address: str, headers: dict[str, str]) -> str:
        caplog.clear()
        client.get(address, headers=headers)  # a problem, which is logged
        end = time.monotonic() + 30
        while not (found := re.search(r"peer=(\S+)", caplog.text)):
            assert time.monotonic() < end, caplog.text
            time.sleep(0.01)
        return found[1]

    forwarded_headers = {"X-Forwarded-For": "203.0.113.9"}
    # nginx replaces what a client says of itself.
    assert peer(public.client, f"{public.url}/v2/models/nothing", forwarded_headers) == "127.0.0.1"
    with behind_a_proxy() as behind, httpx.Client() as client:
        assert peer(client, f"{behind.url}/v2/models/nothing", forwarded_headers) == "203.0.113.9"
    with httpx.Client() as client:
        assert peer(client, f"{service.url}/v2/models/nothing", forwarded_headers) == "127.0.0.1"
