"""A name with several records, and connections in other places than a plain client's. Real sockets."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client.fake import Caller, FakeService, Request, evaluation
from lossd_client import LossClient
from lossd_client.errors import ConnectionFailed
from serving import certificate

NAME = "replicas.test"
SMALL = (np.zeros((4, 3), np.float32), np.zeros(4, np.int64))


class Records:
    """The records of the name, which a test may change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records = ["127.0.0.1", "127.0.0.2"]
        self.lookups = 0
        original = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *arguments: Any, **keywords: Any) -> Any:
            if host != NAME:
                return original(host, port, *arguments, **keywords)
            self.lookups += 1
            if not self.records:
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (record, port)) for record in self.records]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    return Records(monkeypatch)


@pytest.fixture
def two() -> Iterator[list[FakeService]]:
    """Two services at the same port of two addresses."""
    first = FakeService()
    second = FakeService("127.0.0.2", first.port)
    yield [first, second]
    for each in (first, second):
        each.stop()


def test_all_records_are_used_under_the_name(ask: Caller, records: Records, two: list[FakeService]) -> None:
    url = f"http://{NAME}:{two[0].port}"
    assert ask(url, "score", [SMALL] * 8, "cross_entropy", in_flight=4).mean_loss == 0.0
    for each in two:
        assert len(each.requests) >= 2
        assert {request.headers["Host"] for request in each.requests} == {f"{NAME}:{two[0].port}"}
    assert 1 <= records.lookups <= 4


def test_records_are_found_again(records: Records, two: list[FakeService], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd_client.addresses.RESOLVE_S", 0.0)
    records.records = ["127.0.0.1"]
    with LossClient(f"http://{NAME}:{two[0].port}") as lossd:
        for addresses, more in (
            (["127.0.0.1"], {0}),
            (["127.0.0.1", "127.0.0.2"], {0, 1}),
            ([], {0, 1}),
            (["127.0.0.2", "127.0.0.3"], {1}),
        ):
            records.records = addresses
            before = [len(each.requests) for each in two]
            for _ in range(4):
                lossd.evaluate("cross_entropy", *SMALL)
            assert {n for n, each in enumerate(two) if len(each.requests) > before[n]} == more, addresses


def test_a_record_that_refuses_is_left(ask: Caller, records: Records, two: list[FakeService]) -> None:
    records.records = ["127.0.0.3", "127.0.0.2"]
    url = f"http://{NAME}:{two[0].port}"
    assert ask(url, "score", [SMALL] * 6, "cross_entropy", in_flight=1).mean_loss == 0.0
    assert len(two[1].requests) == 6
    records.records = ["127.0.0.3", "127.0.0.4"]
    with pytest.raises(ConnectionFailed) as caught:
        ask(url, "health", client={"retries": 1})
    for record in records.records:
        assert f"cannot connect to {url}/health/live at {record} (" in str(caught.value)


def test_a_name_without_records_is_told_as_the_system_tells_it(ask: Caller, records: Records) -> None:
    records.records = []
    with pytest.raises(ConnectionFailed, match=f"cannot connect to http://{NAME}/health/live "):
        ask(f"http://{NAME}", "health", client={"retries": 0})


@contextmanager
def secure(folder: Path, subject: str) -> Iterator[tuple[list[FakeService], Path, list[str | None]]]:
    """Two services with one certificate, its file, and the names that clients ask for in their handshakes."""
    cert, key = certificate(folder, "server", subject=f"DNS:{subject}")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    named: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: named.append(name)
    first = FakeService(tls=tls)
    second = FakeService("127.0.0.2", first.port, tls)
    yield [first, second], cert, named
    first.stop()
    second.stop()


def test_the_certificate_is_the_name_s(
    ask: Caller, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secure(tmp_path, NAME) as (services, cert, named):
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        url = f"https://{NAME}:{services[0].port}"
        assert ask(url, "score", [SMALL] * 4, "cross_entropy").mean_loss == 0.0
        for service in services:
            assert {request.headers["Host"] for request in service.requests} == {f"{NAME}:{service.port}"}
        assert set(named) == {NAME}


def test_a_certificate_of_another_name_is_refused(
    ask: Caller, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secure(tmp_path, "other.test") as (services, cert, _):
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with pytest.raises(ConnectionFailed, match=r"certificate is not valid for 'replicas\.test'"):
            ask(f"https://{NAME}:{services[0].port}", "health", client={"retries": 0})


def test_a_client_of_ones_own_has_certificates_of_its_own(records: Records, tmp_path: Path) -> None:
    with secure(tmp_path, NAME) as (services, cert, named):
        with httpx.Client(verify=ssl.create_default_context(cafile=str(cert))) as http:
            lossd = LossClient(f"https://{NAME}:{services[0].port}", http=http)
            for _ in range(4):
                assert lossd.evaluate("cross_entropy", *SMALL).loss == 0.5
        assert [len(service.requests) for service in services] == [2, 2]
        assert set(named) == {NAME}


def test_a_transport_of_ones_own_resolves_names_itself(records: Records) -> None:
    hosts: Counter[str] = Counter()

    def answer(request: httpx.Request) -> httpx.Response:
        hosts[request.url.host] += 1
        if request.url.host == "a.test":
            raise httpx.ConnectError("no", request=request)
        reply = evaluation()
        return httpx.Response(200, headers=reply.headers, stream=httpx.ByteStream(reply.body))

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        lossd = LossClient(["http://a.test", f"http://{NAME}"], http=http)
        for _ in range(5):
            assert lossd.evaluate("cross_entropy", *SMALL).loss == 0.5
    assert hosts.keys() == {"a.test", NAME}
    assert hosts[NAME] == 5
    assert records.lookups == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_resolves_names_itself(
    variable: str, ask: Caller, records: Records, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, service.url)
    ask(f"http://{NAME}", "evaluate", "cross_entropy", *SMALL)
    assert [request.path for request in service.requests] == [f"http://{NAME}/v1/evaluate"]
    assert records.lookups == 0


def test_threads_share_the_addresses(two: list[FakeService]) -> None:
    def each(request: Request) -> Any:
        return evaluation({"loss": float(request.tensors["prediction"].numpy()[0, 0])})

    for service in two:
        service.default = each
    wrong: list[float] = []
    with LossClient([service.url for service in two]) as lossd:

        def ask(number: int) -> None:
            for turn in range(20):
                value = float(100 * number + turn)
                if lossd.evaluate("cross_entropy", np.full((4, 3), value, np.float32), SMALL[1]).loss != value:
                    wrong.append(value)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert sum(len(service.requests) for service in two) == 160
        assert min(len(service.requests) for service in two) > 40
        assert all(address.in_flight == 0 for address in lossd._service.addresses._all)


def test_a_forked_process_has_connections_of_its_own(two: list[FakeService]) -> None:
    with LossClient([service.url for service in two]) as lossd:
        for _ in range(4):
            lossd.evaluate("cross_entropy", *SMALL)
        connections = sum(service.connections for service in two)
        assert connections == 2
        lossd._service.addresses._lock.acquire()  # as another thread may hold it at that moment
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            try:
                losses = [lossd.evaluate("cross_entropy", *SMALL).loss for _ in range(4)]
                os._exit(0 if losses == [0.5] * 4 else 1)
            except BaseException:
                os._exit(2)
        lossd._service.addresses._lock.release()
        assert os.waitpid(pid, 0)[1] == 0
        assert sum(service.connections for service in two) == connections + 2
        assert lossd.evaluate("cross_entropy", *SMALL).loss == 0.5
        assert sum(service.connections for service in two) == connections + 2, "the parent's are as they were"


def test_a_closed_client_says_so(two: list[FakeService]) -> None:
    lossd = LossClient([service.url for service in two])
    lossd.close()
    with pytest.raises(RuntimeError, match="closed"):
        lossd.health()
    assert all(address.in_flight == 0 for address in lossd._service.addresses._all)
