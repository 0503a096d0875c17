"""A service listens on a Unix socket beside its port, for every client, with one front and with several."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from fronts.group import group
from lossd.cli import main
from lossd.configuration.preflight import StartError
from lossd.engine import worker_process
from lossd.fronts.unix_socket import UnixSocket
from lossd_client import AsyncLossClient, LossClient
from lossd_client.errors import ConnectionFailed
from serving import certificate, command
from waiting import eventually

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see collected

PREDICTION = np.random.default_rng(0).standard_normal((64, 10), dtype=np.float32)
TARGET = np.arange(64) % 10


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """httpcore leaves a Unix socket that it could not connect to the garbage collector: collect it in its own test."""
    yield
    gc.collect()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lossd.sock"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service's address on its port, and on its Unix socket."""
    path = tmp_path_factory.mktemp("served") / "lossd.sock"
    with command("--uds", str(path)) as (url, _, _):
        yield url, f"unix://{path}"


def test_the_client_gets_the_same_answer_by_either_address(served: tuple[str, str]) -> None:
    answers = []
    for url in served:
        with LossClient(url) as client:
            answers.append(client.evaluate("focal", PREDICTION, TARGET))
    by_port, by_socket = answers
    assert by_socket.loss == by_port.loss
    np.testing.assert_array_equal(by_socket.gradient, by_port.gradient)


def test_the_async_client_takes_the_socket_s_address(served: tuple[str, str]) -> None:
    async def ask(url: str) -> list[float]:
        async with AsyncLossClient(url) as client:
            calls = (client.evaluate("mse", PREDICTION, PREDICTION + k, outputs="loss") for k in range(4))
            return [found.loss for found in await asyncio.gather(*calls)]

    assert asyncio.run(ask(served[1])) == asyncio.run(ask(served[0]))


def test_a_large_body_is_streamed_both_ways(served: tuple[str, str]) -> None:
    large = np.random.default_rng(1).standard_normal((1 << 20, 4), dtype=np.float32)
    with LossClient(served[1]) as client:
        found = client.evaluate("mse", large, np.zeros_like(large))
    assert found.gradient is not None
    np.testing.assert_allclose(found.gradient, 2 * large / large.size, rtol=1e-6)


def test_the_command_line_takes_the_socket_s_address(served: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", prediction=PREDICTION, target=TARGET)
    ask = lambda *words: CliRunner().invoke(main, [*words, "--url", served[1]])  # noqa: E731
    evaluated = ask("evaluate", str(tmp_path / "batch.npz"), "--loss", "focal")
    assert evaluated.exit_code == 0, evaluated.output
    assert "loss" in evaluated.output
    health = ask("health")
    assert health.output == f"{served[1]} is ready\n"


def test_httpx_reaches_it_by_its_own_means(served: tuple[str, str]) -> None:
    transport = httpx.HTTPTransport(uds=served[1].removeprefix("unix://"))
    with httpx.Client(transport=transport) as http:
        assert http.get("http://localhost/health/ready").status_code == 200
        found = LossClient("http://localhost", http=http).evaluate("mse", PREDICTION, PREDICTION)
    assert found.loss == 0


def test_keys_are_asked_for_on_the_socket_too_but_no_certificate(tmp_path: Path, path: Path) -> None:
    cert, key = certificate(tmp_path, "service")
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    with command("--uds", str(path), *tls, LOSSD_API_KEY="a-key-of-24-characters--"):
        with LossClient(f"unix://{path}", api_key="a-key-of-24-characters--") as client:
            assert client.evaluate("mse", PREDICTION, PREDICTION).loss == 0
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
            assert http.post("http://localhost/v1/evaluate", json={}).status_code == 401


@pytest.mark.parametrize("fronts", [1, 2])
def test_what_was_accepted_is_answered_and_the_file_is_removed(path: Path, tmp_path: Path, fronts: int) -> None:
    with group(tmp_path, fronts, "--uds", str(path)) as service:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answers: list[float] = []
        begun, ending = threading.Barrier(5), threading.Event()

        def ask() -> None:  # in the end, it finds the service gone
            with suppress(ConnectionFailed), LossClient(f"unix://{path}", retries=0) as client:
                answers.append(client.evaluate("mse", PREDICTION, PREDICTION + 1).loss)
                begun.wait(60)
                while not ending.is_set():
                    answers.append(client.evaluate("mse", PREDICTION, PREDICTION + 1).loss)

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        begun.wait(60)
        service.parent.send_signal(signal.SIGTERM)
        eventually(lambda: not path.exists())
        ending.set()
        for thread in asking:
            thread.join(60)
        assert service.parent.wait(60) == 0
    assert len(answers) >= 4
    assert answers == pytest.approx([1.0] * len(answers))


def test_a_front_that_dies_leaves_the_socket_to_the_others(path: Path, tmp_path: Path) -> None:
    with group(tmp_path, 2, "--uds", str(path), "--uds-mode", "660") as service:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with LossClient(f"unix://{path}") as client:
            for _ in range(4):
                os.kill(service.fronts[0], signal.SIGKILL)
                assert client.evaluate("mse", PREDICTION, PREDICTION).loss == 0


def test_the_file_of_a_service_that_was_killed_is_replaced(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with command("--uds", str(path)), LossClient(f"unix://{path}") as client:
        assert client.evaluate("mse", PREDICTION, PREDICTION).loss == 0
    assert not path.exists()


def test_a_file_that_another_service_has_made_is_not_removed(path: Path) -> None:
    first = UnixSocket(path, 0o600)
    path.unlink()
    second = UnixSocket(path, 0o600)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_what_cannot_be_listened_on_is_refused_with_the_reason(path: Path, tmp_path: Path) -> None:
    used = UnixSocket(path, 0o600)
    with pytest.raises(StartError, match="another program listens on the Unix socket"):
        UnixSocket(path, 0o600)
    used.close()
    path.write_text("precious")
    with pytest.raises(StartError, match=r"lossd\.sock is not a socket"):
        UnixSocket(path, 0o600)
    assert path.read_text() == "precious"
    with pytest.raises(StartError, match="its folder does not exist"):
        UnixSocket(tmp_path / "none" / "lossd.sock", 0o600)
    with pytest.raises(StartError, match="longer than 107 bytes"):
        UnixSocket(tmp_path / ("a" * 107), 0o600)


def test_the_command_says_so_in_one_line(path: Path) -> None:
    path.write_text("precious")
    line = [sys.executable, "-m", "lossd.cli", "serve", "--port=0", "--uds", str(path)]
    run = worker_process.subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "Error: " in run.stderr
    assert "is not a socket (setting uds)" in run.stderr
    assert "Traceback" not in run.stderr


def test_nobody_connects_before_the_permissions_are_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    chmod = Path.chmod

    def looked_at(self: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(self.stat().st_mode))
        chmod(self, mode)

    monkeypatch.setattr(Path, "chmod", looked_at)
    UnixSocket(path, 0o666).close()
    assert seen == [0]


def test_the_client_says_that_nobody_listens(path: Path) -> None:
    with LossClient(f"unix://{path}", retries=0) as client, pytest.raises(ConnectionFailed, match=f"unix://{path}"):
        client.evaluate("mse", PREDICTION, PREDICTION)
