"""``lossd health`` checks a service at any address, and prints its state in one sentence."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from lossd.cli import main
from lossd.fronts import health
from serving import certificate, command

ROOT = Path(__file__).parents[2]


def ask(*options: str, **environment: str) -> Result:
    """Run the command. On a busy machine a service may take longer to answer than the command waits by default."""
    return CliRunner().invoke(main, ["health", "--timeout", "60", *options], env=environment)


def listed(monkeypatch: pytest.MonkeyPatch, folder: Path, *services: tuple[str, int]) -> None:
    """Let these be all services of this machine; others may run on it."""
    head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
    lines = [f"0000000000000000: 00000002 00000000 00010000 0001 01 99 @lossd-health/{a}/{p}\n" for a, p in services]
    (folder / "unix").write_text(head + "".join(lines))
    monkeypatch.setattr(health, "SOCKETS", folder / "unix")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a service that ``lossd serve`` started."""
    with command() as (url, _, _):
        port = urlsplit(url).port
        assert port is not None
        yield port


def test_it_finds_the_service_by_itself_and_says_that_it_is_ready(
    port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ("127.0.0.1", port) in health.list_services()
    listed(monkeypatch, tmp_path, ("127.0.0.1", port))
    url = f"http://127.0.0.1:{port}"
    for options in ((), ("--live",), ("--port", str(port)), ("--url", url), ("--url", f"127.0.0.1:{port}")):
        found = ask(*options, LOSSD_PORT="8000")  # as the image has it, whatever the command line says
        assert found.exit_code == 0, found.output
        assert re.fullmatch(r"\S.* is (ready|live)\n", found.output)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("options", [(), ("--fronts", "2", "--engine", "process")], ids=["one front", "two fronts"])
def test_a_service_on_every_address_is_reached_over_ipv6_and_ipv4(options: tuple[str, ...]) -> None:
    with command("--host", "::", *options) as (url, _, _):
        port = urlsplit(url).port
        for where in (("--port", str(port)), *(("--url", f"http://{at}:{port}") for at in ("[::1]", "127.0.0.1"))):
            found = ask(*where)
            assert found.exit_code == 0, found.output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_neither_address_nor_certificates_nor_path_keep_it_from_asking(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "server")
    authority, _ = certificate(tmp_path, "authority")
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(authority)]
    with command(*options, "--host", "::", "--root-path", "/lossd", LOSSD_API_KEY="k" * 16) as (url, _, _):
        found = ask("--port", str(urlsplit(url).port))
        assert (found.exit_code, found.stderr) == (0, "")


def test_the_socket_answers_health_and_nothing_else(port: int) -> None:
    assert json.loads(health.check("127.0.0.1", port, "/health/live", 10).body)["status"] == "live"
    assert health.check("127.0.0.1", port, "/v1/losses", 10).status == 503


class Unwell(BaseHTTPRequestHandler):
    """Answers as a service that is not ready."""

    def do_GET(self) -> None:
        body = b'{"detail": "no worker is ready yet"}' if self.path == "/health/ready" else b"no JSON"
        self.send_response(503)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def unwell() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Unwell) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_not_ready_says_why_and_the_status_is_1(unwell: str) -> None:
    found = ask("--url", unwell)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == f"{unwell} is not ready: no worker is ready yet\n"
    found = ask("--url", unwell, "--live")
    assert found.stderr == f"{unwell} is not live: it answers with status 503\n"


def test_where_nobody_answers_the_status_is_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def say(*options: str, **environment: str) -> str:
        found = ask(*options, **environment)
        assert (found.exit_code, found.stdout) == (3, "")
        assert found.stderr.count("\n") == 1
        return found.stderr

    listed(monkeypatch, tmp_path)
    assert say() == "no service listens on this machine\n"
    listed(monkeypatch, tmp_path, ("127.0.0.1", 1), ("::", 2))
    assert say() == "no service listens on port 8000 on this machine; there are some on 1, 2\n"
    assert "port 3 " in say("--port", "3")
    assert "port 2 does not answer" in say(LOSSD_PORT="2")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(health.socket_path("127.0.0.1", 1))
        deaf.listen()
        assert say("--port", "1", "--timeout", "0.1") == "the service on port 1 does not answer within 0.1 seconds\n"
    with socket.create_server(("127.0.0.1", 0)) as gone:
        at = f"127.0.0.1:{gone.getsockname()[1]}"
    assert f"http://{at} does not answer" in say("--url", at)


@pytest.mark.parametrize("options", [("--port", "0"), ("--url", "ftp://a"), ("--port", "1", "--url", "a")])
def test_wrong_usage_is_told(options: tuple[str, ...]) -> None:
    assert ask(*options).exit_code == 2


def test_the_image_and_its_orchestrators_ask_by_it() -> None:
    assert re.search(r'^HEALTHCHECK .*CMD \["lossd", "health"\]$', (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_it_loads_no_more_than_it_needs() -> None:
    """It runs every few seconds, beside the work."""
    code = "import sys, lossd.cli.health; print({'numpy', 'torch', 'httpx', 'pydantic'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_health_of_several_addresses_is_asked_one_by_one() -> None:
    answer = ask("--url", "http://127.0.0.1:1,127.0.0.1:2")
    assert answer.exit_code == 2
    assert "ask one after the other" in answer.output
