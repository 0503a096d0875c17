"""API keys: every form of a key, on every route, and the public paths."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from fastapi.routing import APIRoute
from pydantic import ValidationError

from lossd.api import create_app
from lossd.api.access import FOLDERS, PAGES
from lossd.cli import main
from lossd.configuration.keys import Keys, fresh_key, key_line
from lossd.configuration.settings import Settings
from lossd.engine import worker_process
from lossd_client import LossClient
from lossd_client.errors import Unauthorized
from serving import Running, openapi, running

MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}
OIP = {
    "inputs": [
        {"name": n, "shape": [1], "datatype": "FP32", "data": [v]} for n, v in (("prediction", 1), ("target", 3))
    ]
}
ALICE, BOB, SPARE = fresh_key(), fresh_key(), fresh_key()


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may ask\n{key_line('alice', ALICE)}\n\n{key_line('bob', BOB)}  # until spring\n")
    return file


@pytest.fixture(scope="module")
def guarded(keys_file: Path) -> Iterator[Running]:
    with running(engine="inline", api_keys_file=keys_file, api_key=SPARE) as service:
        yield service


@pytest.fixture(scope="module")
def http(guarded: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=30) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", [ALICE, BOB, SPARE], ids=["alice", "bob", "spare"])
@pytest.mark.parametrize(
    "form", [bearer, lambda key: {"Authorization": f"bEARER {key}"}, lambda key: {"X-API-Key": key}]
)
def test_a_known_key_opens_every_door(http: httpx.Client, key: str, form) -> None:
    headers = form(key)
    assert http.post("/v1/evaluate", json=MSE, headers=headers).json()["loss"] == 4
    assert http.post("/v2/models/mse/infer", json=OIP, headers=headers).is_success
    for path in ("/v1/losses", "/v1/metrics/f1", "/v2", "/v2/models/mse", "/metrics"):
        assert http.get(path, headers=headers).is_success, path


BAD = {
    "none": {},
    "unknown": bearer(fresh_key()),
    "cut short": bearer(ALICE[:-1]),
    "too long": bearer(ALICE + "A"),
    "its digest": bearer(hashlib.sha256(ALICE.encode()).hexdigest()),
    "its line": bearer(key_line("alice", ALICE)),
    "empty": {"Authorization": "Bearer"},
    "another scheme": {"Authorization": f"Basic {ALICE}"},
    "unknown by itself": {"X-API-Key": "alice"},
}


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD.keys())
def test_any_other_is_refused_before_the_request_is_looked_at(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.post("/v1/evaluate", content=b"not JSON", headers={**headers, "X-Request-ID": "mine"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="lossd"'
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["status"], problem["request_id"]) == ("/problems/unauthorized", 401, "mine")
    assert ("needs an API key" in problem["detail"]) == (
        headers.get("Authorization", "Basic").startswith("Basic") and "X-API-Key" not in headers
    )


@pytest.mark.parametrize("key", ["X-API-Key:%b \t", "X-API-Key: \t%b", "Authorization: Bearer %b  "])
def test_white_space_around_a_key_belongs_to_the_field(guarded: Running, key: str) -> None:
    """RFC 9110, section 5.5."""
    head = f"GET /v1/losses/mse HTTP/1.1\r\nHost: localhost \r\n{key}\r\nConnection: close\t\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as connection:
        connection.sendall(head % ALICE.encode())
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/v2/models/mse/infer", "/v2/models/mse", "/v2/nowhere", "/v2"])
def test_on_v2_the_refusal_is_an_error_and_nothing_else(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=OIP) if path.endswith("infer") else http.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert list(answer.json()) == ["error"]
    assert "API key" in answer.json()["error"]


OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/docs", "/redoc", "/openapi.json",
        "/docs/static/swagger-ui.css", "/problems", "/problems/unauthorized", "/manual",
        "/manual/quickstart")  # fmt: skip


@pytest.mark.parametrize("path", OPEN)
def test_health_and_pages_need_no_key(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200
    assert http.get(path, headers=bearer("a stale key in the browser")).status_code == 200


def test_every_other_route_is_protected(http: httpx.Client) -> None:
    app = create_app(Settings(engine="inline"))
    paths = {route.path for route in app.routes if isinstance(route, APIRoute)} | set(openapi()["paths"])
    closed = {path for path in paths if path not in PAGES and not path.startswith(FOLDERS)}
    assert {"/v1/evaluate", "/v1/losses", "/metrics", "/v2/models/{name}/infer"} <= closed
    for path in closed | {"/nowhere", "/v1/losses/", "/docs/../v1/losses"}:
        assert http.get(re.sub("{.*?}", "mse", path)).status_code == 401, path
    assert http.request("OPTIONS", "/v1/evaluate").status_code == 401


def test_a_path_that_only_begins_like_an_open_one_is_closed_or_serves_nothing(guarded: Running) -> None:
    for path in ("/docs/..%2fv1/losses", "/health/..%2f..%2fmetrics", "/docs/static/..%2f..%2fmetrics", "//v1/losses"):
        target = httpx.URL(guarded.url).copy_with(raw_path=path.encode())
        assert httpx.get(target).status_code in (401, 404), path


def test_large_bodies_without_a_key_are_refused_as_well(http: httpx.Client) -> None:
    answer = http.post("/v1/evaluate", content=b"0" * (8 << 20))
    assert answer.status_code == 401


def test_the_client_sends_its_key(guarded: Running) -> None:
    with LossClient(guarded.url, api_key=ALICE) as client:
        assert client.evaluate("mse", [1.0], [3.0]).loss == 4
    with LossClient(guarded.url) as client, pytest.raises(Unauthorized, match="needs an API key"):
        client.evaluate("mse", [1.0], [3.0])


def test_without_keys_nobody_is_asked(service: Running) -> None:
    assert httpx.get(f"{service.url}/v1/losses").is_success
    assert httpx.get(f"{service.url}/v1/losses", headers=bearer("whatever")).is_success


def test_metrics_may_be_public() -> None:
    with running(engine="inline", api_key=SPARE, metrics_public=True) as service:
        assert httpx.get(f"{service.url}/metrics").is_success
        assert httpx.get(f"{service.url}/v1/losses").status_code == 401


# Files


def test_whose_a_key_is(keys_file: Path) -> None:
    keys = Keys(keys_file, SPARE)
    assert [keys.name_of(key.encode()) for key in (ALICE, BOB, SPARE)] == ["alice", "bob", "default"]
    assert keys.name_of(b"") is None
    assert keys.name_of(bytes(range(256))) is None


def test_a_name_may_have_two_keys_while_one_takes_the_other_s_place(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{key_line('alice', ALICE)}\n{key_line('alice', BOB)}\n")
    keys = Keys(file)
    assert keys.name_of(ALICE.encode()) == keys.name_of(BOB.encode()) == "alice"


BAD_FILES = {
    "empty": ("# nobody\n", "has no key"),
    "the key itself": (f"alice:{ALICE}\n", "line 1"),
    "no name": (f"{key_line('alice', ALICE)}\n:{'0' * 64}\n", "line 2"),
    "upper case": (key_line("alice", ALICE).upper(), "line 1"),
    "a name for a label": (f"al ice:{'0' * 64}", "line 1"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_none_keeps_the_old_keys(
    text: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{key_line('alice', ALICE)}\n")
    app = create_app(Settings(engine="inline", api_keys_file=file))
    assert app.access is not None
    file.write_text(text)
    app.access.reload()
    assert app.access.keys.name_of(ALICE.encode()) == "alice"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert message in record.getMessage()
    assert ALICE not in record.getMessage()
    with pytest.raises(ValueError, match=message):
        create_app(Settings(engine="inline", api_keys_file=file))


@pytest.mark.parametrize("key", ["", "short", "sixteen spaces   ", "ключ, которому не место"])
def test_a_key_that_anyone_could_guess_or_none_could_send_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValidationError, match="visible ASCII") as caught:
        Settings(api_key=key)
    assert not key or key not in str(caught.value)
    run = CliRunner().invoke(main, ["serve"], env={"LOSSD_API_KEY": key})
    assert run.exit_code == 2
    assert "LOSSD_API_KEY: " in run.output
    assert not key or key not in run.output


def test_a_key_is_never_an_option_and_never_shown() -> None:
    assert "--api-key " not in CliRunner().invoke(main, ["serve", "--help"]).output
    assert SPARE not in repr(Settings(api_key=SPARE))


def test_a_fresh_key_and_its_line(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["key", "team-a"])
    assert run.exit_code == 0
    key = re.search(r"lossd_[\w-]{43}", run.stderr)
    assert key is not None
    file = tmp_path / "keys"
    file.write_text(run.stdout)
    assert Keys(file).name_of(key[0].encode()) == "team-a"
    assert key[0] not in run.stdout
    assert CliRunner().invoke(main, ["key", "team a"]).exit_code == 2


def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{key_line('alice', ALICE)}\n")
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port=0", "--engine=inline", "--compiled=false"]
    process = worker_process.subprocess.Popen(
        [*command, "--api-keys-file", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        announced = process.stdout.readline()
        assert "from this machine only" in announced
        url = re.search(r"http://\S+(?=,)", announced)
        assert url is not None

        def status(key: str) -> int:
            return httpx.get(f"{url[0]}/v1/losses", headers=bearer(key)).status_code

        assert (status(ALICE), status(BOB)) == (200, 401)
        for text, message in ((key_line("bob", BOB), "1 API keys are known"), ("nonsense", "are unchanged: line 1")):
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            while message not in (line := process.stderr.readline()):
                assert line, "the service ended"
            assert (status(ALICE), status(BOB)) == (401, 200)
        process.terminate()
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
        assert BOB not in log
    finally:
        process.kill()
        process.communicate()
