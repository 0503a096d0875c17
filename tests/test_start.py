"""What keeps the service from starting is said in one sentence, with status 2, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch
from click.testing import CliRunner

from lossd.api import create_app
from lossd.cli import main
from lossd.configuration.preflight import StartError, check_variables
from lossd.configuration.settings import Settings
from lossd.engine import worker_process
from lossd.engine.inline import InlineEngine
from lossd.engine.process import ProcessEngine
from lossd.fronts.port import bind
from lossd_client import LossClient
from serving import certificate

SERVE = (sys.executable, "-m", "lossd.cli", "serve", "--port=0", "--threads=1", "--compiled=false")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(autouse=True)
def _sighup() -> object:
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # which the command blocks until it is ready


def refused(arguments: Sequence[object] = (), environment: Mapping[str, str] | None = None) -> str:
    """What ``lossd serve`` says, which must be one line, before it ends with status 2."""
    result = CliRunner(env=environment).invoke(main, ["serve", "--port=0", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


# Variables


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LOSSD_PROT", "LOSSD_PORT"),
        ("LOSSD_API_KEY_FILE", "LOSSD_API_KEYS_FILE"),
        ("LOSSD_TLS_CERTIFICATE", "LOSSD_TLS_CERT"),
        ("LOSSD__PORT", "LOSSD_PORT"),
        ("lossd_fornts", "LOSSD_FRONTS"),
        ("LOSSD_MAX_BODY", "LOSSD_MAX_BODY_BYTES"),
    ],
)
def test_a_misspelt_variable_is_refused_and_the_near_name_given(name: str, near: str) -> None:
    assert f"{name} is not a setting, did you mean {near}?" in refused(environment={name: "1"})


def test_every_variable_that_is_misspelt_is_named() -> None:
    message = refused(environment={"LOSSD_PROT": "1", "LOSSD_XYZZY": "1"})
    assert "LOSSD_PROT is not a setting" in message
    assert "LOSSD_XYZZY is not a setting (" in message, "nothing is near it"


def test_every_setting_is_a_variable_that_is_known() -> None:
    assert check_variables({f"LOSSD_{name.upper()}": "" for name in Settings.model_fields}) == []
    assert check_variables({"_LOSSD_COMPLETE": "bash_source", "LOSSDAY": "1", "PATH": "/bin"}) == []


LINKS = {
    "LOSSD_SERVICE_HOST": "10.96.0.7",
    "LOSSD_SERVICE_PORT": "80",
    "LOSSD_SERVICE_PORT_HTTP": "80",
    "LOSSD_PORT": "tcp://10.96.0.7:80",
    "LOSSD_PORT_80_TCP": "tcp://10.96.0.7:80",
    "LOSSD_PORT_80_TCP_PROTO": "tcp",
    "LOSSD_PORT_80_TCP_PORT": "80",
    "LOSSD_PORT_80_TCP_ADDR": "10.96.0.7",
    "LOSSD_GPU_SERVICE_HOST": "fd00::7",
    "LOSSD_GPU_PORT": "tcp://[fd00::7]:80",
}
"""What a pod finds beside Services called lossd and lossd-gpu."""


def test_the_address_of_a_service_of_that_name_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_variables(LINKS) == sorted(LINKS)
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    assert Settings(port=9000).port == 9000


@pytest.mark.parametrize("name", ["LOSSD_HTTP_PORT", "LOSSD_SERVICE_PORT", "LOSSD_SERVICE_HOST"])
def test_what_is_only_called_so_is_no_service_s_address(name: str) -> None:
    with pytest.raises(StartError, match=f"{name} is not a setting"):
        check_variables({name: "everywhere"})


def test_an_application_made_from_the_environment_looks_at_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_API_KEY_FILE", "keys")
    with pytest.raises(StartError, match="LOSSD_API_KEYS_FILE"):
        create_app()


# Sizes


@pytest.mark.parametrize("name", [n for n in Settings.model_fields if n.endswith(("_bytes", "_ms"))])
def test_no_size_or_time_is_negative_or_endless(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    for value in ("-1", "1e99", "some"):
        assert f"{option}: " in refused([option, value]), value


@pytest.mark.parametrize("name", ["max_body_bytes", "max_json_bytes", "queue_bytes", "batch_bytes", "stream_bytes"])
@pytest.mark.parametrize("value", ["0", "200"])
def test_a_size_that_nothing_fits_into_is_refused(name: str, value: str) -> None:
    message = refused(environment={f"LOSSD_{name.upper()}": value})
    assert message.startswith(f"Error: LOSSD_{name.upper()}: at least ")
    assert f"found '{value}'" in message


@pytest.mark.parametrize(
    ("less", "more"), [("queue_bytes=1MiB", "max_body_bytes=2MiB"), ("max_timeout_ms=10", "request_timeout_ms=20")]
)
def test_two_that_contradict_are_both_named(less: str, more: str) -> None:
    message = refused([f"--{one.replace('_', '-')}" for one in (less, more)])
    assert less.partition("=")[0] in message
    assert more.partition("=")[0] in message


def test_a_default_gives_way_to_what_is_set() -> None:
    settings = Settings(queue_bytes=1 << 20, max_timeout_ms=10)
    assert (settings.max_body_bytes, settings.request_timeout_ms) == (1 << 20, 10)
    assert "max_body_bytes" in refused(["--max-body-bytes=8GiB"]), "more than what queue_bytes is by default"


# Files


def test_files_that_cannot_be_what_they_should_are_named(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "localhost")
    other = tmp_path / "other"
    other.mkdir()
    _, other_key = certificate(other, "other")
    empty, noise = tmp_path / "empty", tmp_path / "noise"
    empty.touch()
    noise.write_bytes(b"\xff\xfe\x00 no text")
    cases: list[tuple[list[str], Path, str]] = [
        (["--api-keys-file={}"], empty, "has no key"),
        (["--api-keys-file={}"], noise, "is not a text"),
        (["--api-keys-file={}"], cert, "is not name:sha256hex"),
        (["--api-keys-file={}"], tmp_path / "absent", "a file is expected"),
        (["--api-keys-file={}"], tmp_path, "a file is expected"),
        (["--tls-cert={}", f"--tls-key={key}"], empty, "holds no certificate"),
        (["--tls-cert={}", f"--tls-key={key}"], noise, "holds no certificate"),
        ([f"--tls-cert={cert}", "--tls-key={}"], empty, "holds no private key"),
        ([f"--tls-cert={cert}", "--tls-key={}"], cert, "holds no private key"),
        (["--tls-cert={}"], cert, "holds no private key"),
        ([f"--tls-cert={cert}", "--tls-key={}"], other_key, "is not that of the certificate"),
        ([f"--tls-cert={cert}", f"--tls-key={key}", "--tls-client-ca={}"], empty, "holds no certificates"),
        ([f"--tls-cert={cert}", f"--tls-key={key}", "--tls-client-ca={}"], key, "holds no certificates"),
        (["--perceptual-weights={}"], empty, "holds no weights"),
        (["--perceptual-weights={}"], noise, "holds no weights"),
        (["--cache-dir={}"], empty, "is not a directory"),
    ]
    for arguments, path, detail in cases:
        for fronts in ("--fronts=1", "--fronts=2"):
            line = refused([fronts, *(argument.format(path) for argument in arguments)])
            assert detail in line
            assert str(path) in line


def test_a_key_that_is_encrypted_needs_its_password(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "localhost", password="sesame")
    arguments = [f"--tls-cert={cert}", f"--tls-key={key}"]
    assert "LOSSD_TLS_KEY_PASSWORD is not set" in refused(arguments)
    assert "LOSSD_TLS_KEY_PASSWORD does not decrypt" in refused(arguments, {"LOSSD_TLS_KEY_PASSWORD": "wrong"})


def test_unreadable_files_are_said_to_be(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "localhost")
    keys = tmp_path / "keys"
    keys.write_text("one:" + "0" * 64)
    for path, arguments in (
        (keys, [f"--api-keys-file={keys}"]),
        (key, [f"--tls-cert={cert}", f"--tls-key={key}"]),
        (cert, [f"--tls-cert={cert}", f"--tls-key={key}"]),
    ):
        mode = path.stat().st_mode
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        message = refused(arguments)
        path.chmod(mode)
        assert f"{path} cannot be read: Permission denied" in message


# The address


@pytest.mark.parametrize("fronts", [1, 2])
def test_a_port_that_is_taken_is_said_and_nothing_is_started(fronts: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused([f"--port={port}", f"--fronts={fronts}"])
    assert f"cannot listen on 127.0.0.1 port {port}: another program listens on it" in message


@pytest.mark.parametrize(
    ("host", "why"),
    [("192.0.2.1", "not an address of this machine"), ("no.such.host.invalid", "no address"), ("a" * 70, "no address")],
)
def test_an_address_that_is_not_here_is_said(host: str, why: str) -> None:
    assert why in refused([f"--host={host}"])


def test_a_port_that_needs_a_privilege_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    assert "ports below 1024 need a privilege" in refused(["--port=443"])


def test_a_name_s_address_that_is_not_here_does_not_matter_beside_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As localhost has ::1 where there is no IPv6."""
    here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    gone = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [gone, here])
    for shared in (False, True):
        [only] = bind("localhost", 0, shared=shared)
        assert only.getsockname()[0] == "127.0.0.1"
        only.close()


# Devices and workers


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cuda:²", "cpu:1", "cuda,", "", "cuda:0,tpu"])
def test_what_is_no_device_is_refused(device: str) -> None:
    assert "is not a device" in refused([f"--device={device}"])


def said_by(kind: type[ProcessEngine] | type[InlineEngine], **settings: object) -> list[str]:
    """What an engine says of why it cannot work, until it is stopped."""

    async def run() -> list[str]:
        engine, reasons = kind(Settings(threads=1, compiled=False, **settings)), []  # type: ignore[arg-type]
        failed = asyncio.Event()

        def note(why: str) -> None:
            reasons.append(why)
            failed.set()

        engine.on_failure = note
        await engine.start()
        with suppress(TimeoutError):
            await asyncio.wait_for(failed.wait(), 90)
        await engine.stop()
        return reasons

    return asyncio.run(run())


@NO_CUDA
@pytest.mark.parametrize("kind", [ProcessEngine, InlineEngine])
def test_a_device_that_is_not_there_is_said_before_anything_is_asked_of_it(
    kind: type[ProcessEngine] | type[InlineEngine],
) -> None:
    [reason] = said_by(kind, device="cuda:0")
    assert reason.startswith("cuda:0 cannot be used: ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_device_of_a_higher_number_than_there_are_is_said() -> None:
    [reason] = said_by(ProcessEngine, device="cuda:64")
    assert reason.startswith("there is no cuda:64: the CUDA devices of this machine are cuda:0")


def test_a_worker_that_never_was_ready_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd.engine.worker_process.COMMAND", (sys.executable, "-c", "raise SystemExit(41)"))
    assert said_by(ProcessEngine) == [
        "the worker on cpu ended 3 times before it was ready, the last time with status 41; see the log"
    ]


@NO_CUDA
@pytest.mark.parametrize("fronts", [1, 2])
def test_a_service_without_its_device_ends(fronts: int) -> None:
    command = [*SERVE, "--device=cuda", f"--fronts={fronts}"]
    run = worker_process.subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert run.returncode == 2
    assert "cuda cannot be used" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_a_service_whose_workers_cannot_start_ends(tmp_path: Path) -> None:
    """As it does of several fronts, see test_serve_starts; here nothing is forked from a process that has torch."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is broken')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(SERVE, capture_output=True, text=True, timeout=110, env=os.environ | {"PYTHONPATH": path})
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("Error: the worker on cpu ended 3 times before it was ready")


# The surroundings


CLOSED = """
import os, sys
os.closerange(0, 3)
sys.stdin = sys.stdout = sys.stderr = None
from lossd.cli import main
main(sys.argv[3:])
"""


@pytest.mark.parametrize(("descriptors", "fronts"), [("closed", 1), ("closed", 2), ("full", 1), ("full", 2)])
def test_standard_descriptors_that_are_closed_or_full_are_no_obstacle(descriptors: str, fronts: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*SERVE[:4], f"--port={port}", *SERVE[5:], f"--fronts={fronts}"]
    if (descriptors, fronts) == ("closed", 2):  # Python itself starts in another way without them
        process = subprocess.Popen(["bash", "-c", f"exec {' '.join(command)} <&- >&- 2>&-"])
    else:
        if descriptors == "closed":
            command = [sys.executable, "-c", CLOSED, *command[1:]]
        with open("/dev/full", "w") as full:
            process = worker_process.subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=full, stderr=full, env=os.environ
            )
    try:
        with LossClient(f"http://127.0.0.1:{port}") as client:
            client.wait_until_ready(timeout_s=100)
            assert client.evaluate("mse", [1.0, 2.0], [1.0, 4.0]).loss == 2.0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fronts", [1, 2])
def test_a_reload_while_it_starts_is_a_reload_and_not_its_end(fronts: int, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one:" + "0" * 64)
    command = [*SERVE, f"--api-keys-file={keys}", f"--fronts={fronts}"]
    pipe = subprocess.PIPE
    with worker_process.subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not int(status.read_text().partition("SigBlk:")[2].split()[0], 16) & 1 << (signal.SIGHUP - 1):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGHUP)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert " listens on " in line
        url = line.split(" listens on ")[1].partition(",")[0]
        assert httpx.get(f"{url}/health/live").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        if fronts == 1:  # a front that is not started yet reads them anyway
            assert "1 API keys are known" in process.stderr.read()
