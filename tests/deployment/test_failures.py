"""What clients see behind HAProxy, with the configuration of ``deploy/haproxy``, when a replica goes: nothing."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from benchmarks.dialects import Safetensors
from chaos.service import Service, processes, served
from deployment import network
from deployment.load import LARGE, SMALL, TRIES_S, Load, question, under_load, with_client, without_retries
from deployment.proxy import HAPROXY, Proxy, free_port, haproxy
from lossd_client import LossClient
from waiting import eventually

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

SETTLED_S = 3.0
"""How long requests are sent after a replica has gone: it is noticed within two seconds."""
PAUSE_S = 0.1
"""Between two requests of a connection once a replica has gone: all are busy when it goes, and some ask thereafter."""
SOON_S = 15.0
"""The longest that a request may take; the service's own limit is 60 s."""
VANISHED_S = 40.0
"""Less than any other limit. A connection to a machine that has vanished ends within 6 s, and evaluations follow."""


@contextmanager
def two_replicas(
    folder: Path, machine: network.Machine | None = None, *, engine: str = "process", more: str = ""
) -> Iterator[tuple[Proxy, Service, Service]]:
    """Serve twice behind HAProxy, whose ``global`` gets more lines. The first replica may run on another machine."""
    addresses = ["127.0.0.2" if machine is None else machine.address, "127.0.0.3"]
    port = free_port(addresses[1:] if machine else addresses)
    with ExitStack() as stack:
        services = []
        for address in reversed(addresses):  # the first service starts the process that others are forked from: here
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("NO_PROXY", "*")
                if machine is not None and address == machine.address:
                    environment.setenv("PYTHONPATH", machine.python_path(folder))
                settings = {
                    "host": address,
                    "runs": "off",
                    "lame_duck_ms": 2000,
                    "engine": engine,
                    "idle_timeout_ms": 120_000,
                }
                services.append(stack.enter_context(served(port=port, **settings)))
        yield stack.enter_context(haproxy(addresses, port, folder / "haproxy.log", more)), services[1], services[0]


def nothing_was_lost(load: Load) -> None:
    assert load.lost == []
    assert load.wrong == 0
    assert load.right.keys() == {"raw", "small", "large"}
    assert max(load.longest_s.values()) < SOON_S


def kill(service: Service) -> None:
    """End all processes of a service at once, as the death of its machine does."""
    for process in processes(service.process.pid):
        os.kill(process, signal.SIGKILL)


def test_a_replica_is_killed(tmp_path: Path) -> None:
    with two_replicas(tmp_path) as (proxy, first, _), under_load(proxy.url, raw=6, small=2, large=2) as load:
        load.wait_for(2)
        kill(first)
        load.pause_s = PAUSE_S
        time.sleep(SETTLED_S)
        load.wait_for(1)
    nothing_was_lost(load)


def test_a_replica_shuts_down(tmp_path: Path) -> None:
    with two_replicas(tmp_path) as (proxy, first, _), under_load(proxy.url, raw=6, small=2, large=2) as load:
        load.wait_for(2)
        first.process.send_signal(signal.SIGTERM)
        load.pause_s = PAUSE_S
        assert first.process.wait(30) == 0
        load.wait_for(1)
    nothing_was_lost(load)


@pytest.mark.timed  # HAProxy answers 503 to a request for which it connects at the moment it marks the replica down
@pytest.mark.skipif(bool(network.missing()), reason=network.missing())
def test_a_replica_is_cut_off(tmp_path: Path) -> None:
    machine = network.Machine(1)
    try:  # a network is cut for a front, whatever is behind it
        with (
            two_replicas(tmp_path, machine, engine="inline") as (proxy, _, _),
            under_load(proxy.url, raw=6, small=2, large=2) as load,
        ):
            load.wait_for(2)
            machine.cut()
            load.pause_s = PAUSE_S
            time.sleep(SETTLED_S)
            load.wait_for(1)
    finally:
        machine.close()
    nothing_was_lost(load)


@pytest.mark.skipif(bool(network.missing()), reason=network.missing())
def test_a_machine_leaves_its_address_to_the_next() -> None:
    for _ in range(5):
        network.Machine(3).close()


@contextmanager
def half_answered(url: str) -> Iterator[http.client.HTTPResponse]:
    """Yield the answer to a large request. Of its body, little more arrives than what is read."""
    large = question(LARGE, 0)
    post = Safetensors("/v1/evaluate").post(
        ({"loss": {"name": "focal"}}, {"prediction": large.prediction, "target": large.target})
    )
    host, _, port = url.rpartition("/")[2].partition(":")
    with closing(http.client.HTTPConnection(host, int(port))) as connection:
        connection.sock = socket.socket()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sock.settimeout(TRIES_S)
        connection.sock.connect((host, int(port)))
        connection.request("POST", post.path, post.body, dict(post.headers))
        yield connection.getresponse()


def wait_until_all_has_arrived(*ports: int) -> None:
    """Wait until no byte of a request is on its way to these ports, or in the proxy between them."""
    quiet = 0
    while quiet < 5:
        time.sleep(0.1)
        quiet = quiet + 1 if network.nothing_is_sent_to(ports) else 0


@pytest.mark.timed  # HAProxy 2.6 does not bound what a vanished machine has not acknowledged: docs/scaling.md
@pytest.mark.skipif(bool(network.missing()), reason=network.missing())
def test_what_a_machine_has_taken_that_vanishes_is_answered_by_another(tmp_path: Path) -> None:
    """It has acknowledged all bytes, and no health check misses it: only probes of its connections go unanswered.

    Of one answer, the client has a part: its connection breaks, for it cannot be answered again.
    """
    machine, more = network.Machine(2), "tune.rcvbuf.server 262144\n    tune.sndbuf.client 262144"
    small, large = question(SMALL, 0), question(LARGE, 0)
    try:
        with ExitStack() as stack:
            proxy, first, second = stack.enter_context(two_replicas(tmp_path, machine, more=more))
            proxy.check_no_more(2)
            halves = [stack.enter_context(half_answered(proxy.url)) for _ in range(2)]
            workers = [*first.workers(), *second.workers()]
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            client = stack.enter_context(closing(LossClient(proxy.url, timeout_s=TRIES_S)))
            asks = [stack.enter_context(without_retries(proxy.url)) for _ in range(2)]
            asks += [stack.enter_context(with_client(client)) for _ in range(2)]
            questions = [small, small, large, large]
            threads = stack.enter_context(ThreadPoolExecutor(len(asks) + len(halves)))
            answers = [threads.submit(ask, q.prediction, q.target) for ask, q in zip(asks, questions, strict=True)]
            # Each replica has as many requests as the other: one half answered, one small and one large.
            eventually(lambda: first.held()[0] == second.held()[0] == 3)
            wait_until_all_has_arrived(proxy.port, first.port)
            machine.cut()
            begin = time.monotonic()
            os.kill(second.workers()[0], signal.SIGCONT)
            # Clients read at once. HAProxy 2.6 notices what broke behind a full buffer only at its time-out.
            rests = [threads.submit(body_of, half) for half in halves]
            for answer, expected in zip(answers, questions, strict=True):
                assert expected.answered_by(*answer.result())
            bodies = [rest.result() for rest in rests]
            assert time.monotonic() - begin < VANISHED_S
            (whole,) = [body for body in bodies if body is not None]
            answer = Safetensors("/v1/evaluate").read({}, whole)
            assert large.answered_by(answer["loss"], answer["gradient"])
    finally:
        machine.close()


def body_of(answer: http.client.HTTPResponse) -> bytes | None:
    """Return the body of an answer; None if its connection breaks."""
    try:
        return answer.read()
    except (http.client.IncompleteRead, ConnectionError):
        return None
