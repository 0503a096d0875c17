"""HTTPS: renewal of the certificate while serving, and client certificates."""

from __future__ import annotations

import concurrent.futures
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from lossd.cli import main
from lossd.configuration.settings import Settings
from lossd_client import LossClient
from lossd_client.errors import ConnectionFailed
from serving import certificate, command

MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@dataclass
class Secure:
    """A service whose certificate and key lie in these files."""

    cert: Path
    key: Path
    url: str
    process: subprocess.Popen[str]
    log: IO[str]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    cert, key = certificate(tmp_path_factory.mktemp("tls"), "first")
    with command("--tls-cert", str(cert), "--tls-key", str(key)) as (url, process, log):
        yield Secure(cert, key, url, process, log)


@openssl
def test_a_certificate_and_its_successor(secure: Secure, tmp_path: Path) -> None:
    assert secure.url.startswith("https://")

    def answers(trusted: Path) -> bool:
        try:
            context = ssl.create_default_context(cafile=str(trusted))
            return httpx.post(f"{secure.url}/v1/evaluate", json=MSE, verify=context).json()["loss"] == 4
        except httpx.ConnectError:
            return False

    first = tmp_path / "known.pem"
    shutil.copy(secure.cert, first)
    assert answers(first)

    other_cert, other_key = certificate(tmp_path, "second")
    shutil.copy(other_cert, secure.cert)  # the key does not fit it yet
    secure.process.send_signal(signal.SIGHUP)
    while "is unchanged" not in (line := secure.log.readline()):
        assert line
    assert answers(first)

    shutil.copy(other_key, secure.key)
    secure.process.send_signal(signal.SIGHUP)
    while "was read again" not in (line := secure.log.readline()):
        assert line
    assert answers(other_cert)
    assert not answers(first)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        httpx.get(secure.url.replace("https", "http"))


@openssl
def test_large_answers_arrive_whole_over_tls(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.cert))  # what the client trusts
    random = np.random.default_rng(0)

    def ask(seed: int) -> None:
        prediction = random.standard_normal((1 << 20) + seed).astype(np.float32)
        with LossClient(secure.url) as client:
            answer = client.evaluate("mse", prediction, np.zeros_like(prediction), reduction="sum", metrics=[])
        assert answer.gradient is not None
        np.testing.assert_allclose(answer.gradient, 2 * prediction, rtol=1e-6)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [None] * 8


@openssl
def test_a_private_authority_is_given_to_client_and_command(secure: Secure) -> None:
    with LossClient(secure.url) as lossd, pytest.raises(ConnectionFailed, match="certificate"):
        lossd.losses()
    with LossClient(secure.url, cacert=secure.cert) as lossd:
        assert lossd.evaluate("mse", [1.0], [3.0]).loss == 4.0
    arguments = ["health", "--url", secure.url]
    assert CliRunner().invoke(main, arguments).exit_code == 3
    assert CliRunner().invoke(main, [*arguments, "--cacert", str(secure.cert)]).exit_code == 0
    listed = CliRunner().invoke(main, ["runs", "--url", secure.url, "--cacert", str(secure.cert), "--json"])
    assert listed.exit_code == 0, listed.output


def test_a_file_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    run = CliRunner().invoke(main, ["runs", "--url", "https://127.0.0.1:1", "--cacert", str(empty)])
    assert run.exit_code == 2
    assert "--cacert" in run.output
    with pytest.raises(ValueError, match="configure the certificates of http"):
        LossClient("https://127.0.0.1:1", cacert=empty, http=httpx.Client())


@openssl
def test_clients_may_need_a_certificate(tmp_path: Path) -> None:
    ca, _ = certificate(tmp_path, "authority")
    cert, key = certificate(tmp_path, "server", signed_by="authority", password="open sesame")
    client = certificate(tmp_path, "client", signed_by="authority")
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(ca), "--host", "0.0.0.0"]
    with command(*options, LOSSD_TLS_KEY_PASSWORD="open sesame") as (url, _, _):
        url = url.replace("0.0.0.0", "127.0.0.1")
        context = ssl.create_default_context(cafile=str(ca))
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
            httpx.get(f"{url}/health/live", verify=context)
        context.load_cert_chain(*map(str, client))
        assert httpx.post(f"{url}/v1/evaluate", json=MSE, verify=context).json()["loss"] == 4


def test_half_of_what_tls_needs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.touch()
    for setting in ("tls_key", "tls_client_ca"):
        with pytest.raises(ValidationError, match="need a tls_cert"):
            Settings(**{setting: file})


@pytest.mark.parametrize(("settings", "warned"), [
    ({}, False), ({"host": "::1"}, False), ({"host": "0.0.0.0"}, True),
    ({"host": "0.0.0.0", "api_key": "0123456789abcdef"}, False),
])  # fmt: skip
def test_whoever_listens_to_the_network_without_keys_is_told(
    settings: dict[str, str], warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lossd.api import server

    monkeypatch.setattr(server, "configure", lambda _: None)
    monkeypatch.setattr(server._Server, "run", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    server.serve(Settings(engine="inline", **settings))
    assert any("anybody may ask" in record.getMessage() for record in caplog.records) == warned
