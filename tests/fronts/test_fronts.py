"""Several fronts on one port with one worker: what they share, and what happens when one ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from chaos.bodies import HEADERS, safetensors_body
from chaos.http import head
from chaos.service import cpu_s, written_bytes
from fronts.group import Group, group, is_alive
from lossd.cli import main
from waiting import eventually


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with group(tmp_path_factory.mktemp("fronts"), 2) as one:
        yield one


def ask(client: httpx.Client, seed: int, rows: int = 8) -> int:
    """Ask, check an answer there is against what is computed here, and return the status."""
    random = np.random.default_rng(seed)
    prediction, target = random.standard_normal((2, rows, 3))
    inputs = {"prediction": prediction.tolist(), "target": target.tolist()}
    answer = client.post("/v1/evaluate", json={"loss": {"name": "mse"}, "inputs": inputs})
    if answer.status_code == 200:
        assert answer.json()["loss"] == pytest.approx(np.mean((prediction - target) ** 2), rel=1e-5)
    return answer.status_code


def maps(pid: int) -> int:
    """How many slabs a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("lossd-slab")


def is_computing(pid: int) -> bool:
    """Whether a process has a core, or waits for one."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"


def fails_where_its_connection_ends(client: httpx.Client) -> None:
    """Where that happens between two requests, a client would only open another one, to another front."""
    addresses: set[tuple[str, int]] = set()

    def check(response: httpx.Response) -> None:
        addresses.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        if len(addresses) > 1:
            raise httpx.ReadError("the connection has ended")

    client.event_hooks = {"response": [check]}


class Load:
    """Threads that ask without pause, each over its own connection to a front."""

    def __init__(self, one: Group, each: int = 3) -> None:
        self.one = one
        self.each = each
        self.answered: dict[int, int] = {}
        self.statuses: set[int] = set()
        self.broken: list[int] = []
        self.stop = threading.Event()

    def __enter__(self) -> Load:
        self.pool = ThreadPoolExecutor(16)
        self.futures = [
            self.pool.submit(self._ask, pid, client, 1000 * number)
            for number in range(self.each)
            for pid, client in self.one.client_of_each().items()
        ]
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for future in self.futures:
            future.result()
        self.pool.shutdown()

    def goes_on(self) -> None:
        """Wait until every front that has clients left has answered some more."""
        before = dict(self.answered)
        pids = [pid for pid in self.one.fronts if pid not in self.broken]
        pids = [pid for pid in pids if pid in before] or pids
        eventually(lambda: all(self.answered.get(pid, 0) >= before.get(pid, 0) + 20 for pid in pids))

    def _ask(self, pid: int, client: httpx.Client, seed: int) -> None:
        fails_where_its_connection_ends(client)
        with closing(client):
            while not self.stop.is_set():
                seed += 1
                try:
                    self.statuses.add(ask(client, seed))
                except httpx.TransportError:
                    self.broken.append(pid)
                    return
                self.answered[pid] = self.answered.get(pid, 0) + 1


def test_fronts_share_one_port_and_one_worker(shared):
    assert len(shared.fronts) == 2
    assert len(shared.workers) == 1
    for client in shared.client_of_each().values():
        with closing(client):
            assert ask(client, 1) == 200
            assert client.get("/health/ready").status_code == 200


def test_one_of_them_answers_lossd_health(shared):
    assert CliRunner().invoke(main, ["health", "--port", str(shared.port)]).exit_code == 0


def test_every_front_shows_what_all_have_counted(shared):
    clients = shared.client_of_each()
    before = shared.metric('lossd_requests_total{loss="mse",outcome="ok"}')
    for number, client in enumerate(clients.values()):
        for seed in range(3 + number):
            ask(client, seed)
    for client in clients.values():
        with closing(client):
            page = client.get("/metrics").text
            assert f'lossd_requests_total{{loss="mse",outcome="ok"}} {before + 7}' in page
            assert f'lossd_request_seconds_count{{stage="total"}} {before + 7}' in page
            assert f'nv_inference_count{{model="mse",version="1"}} {before + 7}' in page
            assert len(re.findall(r"^process_cpu_seconds_total ", page, re.MULTILINE)) == 1
            (stats,) = client.get("/v2/models/mse/stats").json()["model_stats"]
            assert (stats["inference_count"], stats["execution_count"]) == (before + 7, before + 7)
            assert stats["last_inference"] > 1.7e12


WORKER_BUSY = 'lossd_worker_busy_seconds_total{worker="0"}'
FRONT_BUSY = "lossd_front_busy_seconds_total"


@pytest.mark.timed
def test_the_time_of_a_worker_counts_once_for_all_its_fronts(shared):
    """The worker always has work of both fronts: each would count all of its time, or half if they shared."""
    embedding = [[row % 7, row % 11, 1] for row in range(1200)]
    body = {"loss": {"name": "supcon"}, "inputs": {"embedding": embedding, "label": [row % 5 for row in range(1200)]}}

    def ask_on(client: httpx.Client) -> None:
        for _ in range(3):
            assert client.post("/v1/evaluate", json=body | {"outputs": ["loss"]}).status_code == 200

    clients = [*shared.client_of_each().values(), *shared.client_of_each().values()]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask_on, client) for client in clients]
        eventually(lambda: shared.metric("lossd_queue_requests") >= 3)
        began, before = time.monotonic(), {name: shared.metric(name) for name in (WORKER_BUSY, FRONT_BUSY)}
        inner = time.monotonic()
        eventually(lambda: any(one.done() for one in futures))
        inner = time.monotonic() - inner
        busy_s = {name: shared.metric(name) - value for name, value in before.items()}
        wall_s = time.monotonic() - began
        for one, client in zip(futures, clients, strict=True):
            one.result()
            client.close()
    assert 0.7 * inner <= busy_s[WORKER_BUSY] <= wall_s
    assert 0 < busy_s[FRONT_BUSY] <= 2 * wall_s


def test_all_fronts_together_hold_no_more_than_the_budget(tmp_path):
    """Uploads of three times the budget, of which only the last byte is missing."""
    budget, each = 64 << 20, 4 << 20
    zeros = np.zeros(each // 4, np.float32)
    body = safetensors_body({"loss": {"name": "mse"}, "outputs": ["loss"]}, prediction=zeros, target=zeros)
    sent = head("POST", "/v1/evaluate", HEADERS, len(body)) + body[:-1]
    with group(tmp_path, 2, f"--queue-bytes={budget}") as one, ExitStack() as stack:
        idle = written_bytes(one.parent.pid)
        for _ in range(3 * budget // len(body)):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=60))
            with suppress(ConnectionError):  # it is refused
                connection.sendall(sent)
        eventually(lambda: one.metric("lossd_queue_bytes") > budget - 2 * len(body))
        time.sleep(0.5)
        assert one.metric("lossd_queue_bytes") <= budget
        assert budget / 2 < written_bytes(one.parent.pid) - idle < 1.2 * budget


def test_a_killed_front_is_replaced_and_the_others_never_notice(shared):
    counted = 0.0
    restarts = shared.metric("lossd_front_restarts_total")
    (worker,) = shared.workers
    killed, _ = shared.fronts
    with Load(shared) as load:
        counted = shared.metric('lossd_requests_total{loss="mse",outcome="ok"}')
        busy_s = [shared.metric(name) for name in (WORKER_BUSY, FRONT_BUSY)]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: load.broken.count(killed) == 3)
        load.goes_on()
        eventually(lambda: len(shared.fronts) == 2 and killed not in shared.fronts)
        assert shared.metric('lossd_requests_total{loss="mse",outcome="ok"}') >= counted
        assert all(shared.metric(n) >= s > 0 for n, s in zip((WORKER_BUSY, FRONT_BUSY), busy_s, strict=True))
    assert load.statuses == {200}
    assert set(load.broken) == {killed}
    assert shared.workers == [worker]
    for client in shared.client_of_each().values():
        with closing(client):
            assert ask(client, 5) == 200
    assert shared.metric("lossd_front_restarts_total") == restarts + 1
    assert shared.metric("lossd_queue_requests") == shared.metric("lossd_slabs_in_use") == 0


def test_a_worker_lets_go_of_the_slabs_of_a_front_that_is_gone(shared):
    (worker,) = shared.workers
    for client in shared.client_of_each().values():
        with closing(client):
            ask(client, 1)
    gone, other = shared.fronts
    both = maps(worker)
    assert both >= 2
    os.kill(gone, signal.SIGKILL)
    eventually(lambda: maps(worker) < both)
    assert maps(worker) == maps(other)
    eventually(lambda: len(shared.fronts) == 2)
    for client in shared.client_of_each().values():
        client.close()


def test_what_a_dead_front_has_left_in_the_worker_ends_within_seconds(shared):
    """Nobody waits for it any more, and it would take half a minute."""
    mined = {"loss": {"name": "mined_triplet", "mining": "all"}}
    request = {"loss": {"name": "weighted_sum", "terms": [mined] * 12}, "outputs": ["loss"]}
    embedding = np.random.default_rng(0).standard_normal((3000, 1)).astype("f4")
    body = safetensors_body(request, embedding=embedding, label=np.arange(3000) % 7)
    with ThreadPoolExecutor(1) as pool:
        (worker,) = shared.workers
        dead, other = shared.client_of_each().items()
        begun_s = cpu_s([worker])
        unanswered = pool.submit(dead[1].post, "/v1/evaluate", content=body, headers=HEADERS)
        eventually(lambda: cpu_s([worker]) > begun_s + 0.5)
        os.kill(dead[0], signal.SIGKILL)
        killed_s = cpu_s([worker])
        while worker in shared.workers and is_computing(worker):
            assert cpu_s([worker]) < killed_s + 10
            time.sleep(0.1)
        with pytest.raises(httpx.TransportError):
            unanswered.result()
        with closing(dead[1]), closing(other[1]):
            assert ask(other[1], 1) == 200
    eventually(lambda: len(shared.fronts) == 2 and dead[0] not in shared.fronts)


def test_a_killed_worker_loses_no_accepted_request_of_any_front(shared):
    restarts = shared.metric("lossd_worker_restarts_total")
    with Load(shared) as load:
        for kill in range(2):
            (worker,), busy_s = shared.workers, shared.metric(WORKER_BUSY)
            os.kill(worker, signal.SIGKILL)
            assert shared.metric(WORKER_BUSY) >= busy_s > 0
            eventually(lambda n=kill: shared.metric("lossd_worker_restarts_total") == restarts + n + 1)
            eventually(lambda: shared.metric("lossd_ready") == 1)
            assert shared.metric(WORKER_BUSY) >= busy_s
            load.goes_on()
    assert load.statuses == {200}
    assert load.broken == []
    assert shared.metric("lossd_queue_requests") == shared.metric("lossd_slabs_in_use") == 0


def finishes_what_it_accepted(one: Group) -> None:
    """End a group by SIGTERM while each front waits for its worker."""
    (worker,) = one.workers
    clients = list(one.client_of_each().values())
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, client, seed) for seed, client in enumerate(clients)]
        eventually(lambda: one.metric("lossd_queue_requests") == 2)
        one.parent.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(one.port))
        os.kill(worker, signal.SIGCONT)
        assert [answer.result() for answer in answers] == [200, 200]
    assert one.parent.wait(timeout=30) == 0
    assert not is_alive(worker)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sighup_reaches_every_front_and_nobody_outlives_the_parent(tmp_path):
    keys = tmp_path / "keys"
    old, new = "old-key-0123456789", "new-key-0123456789"
    keys.write_text(f"one:{sha256(old.encode()).hexdigest()}\n")
    with group(tmp_path, 2, f"--api-keys-file={keys}", "--metrics-public=true") as one:
        clients = one.client_of_each().values()

        def statuses(key: str) -> list[int]:
            return [c.get("/v1/losses/mse", headers={"X-API-Key": key}).status_code for c in clients]

        assert (statuses(old), statuses(new)) == ([200, 200], [401, 401])
        keys.write_text(f"one:{sha256(new.encode()).hexdigest()}\n")
        one.parent.send_signal(signal.SIGHUP)
        eventually(lambda: (statuses(old), statuses(new)) == ([401, 401], [200, 200]))
        for client in clients:
            client.close()
        kept = list(one.children)
        assert len(kept) == 3
        one.parent.kill()
        one.parent.wait()
        eventually(lambda: not any(map(is_alive, kept)))


def test_a_port_that_is_taken_is_said_and_nothing_is_started(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(AssertionError, match="cannot listen on"),
        group(tmp_path, 2, f"--port={taken.getsockname()[1]}"),
    ):
        pass


def test_fronts_that_cannot_start_are_not_tried_for_ever(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("this is no key file\n")
    with (
        pytest.raises(AssertionError, match=r"line 1 of .* is not name:sha256hex"),
        group(tmp_path, 2, f"--api-keys-file={keys}"),
    ):
        pass


SCARCE = """
import errno, os, subprocess, sys
start = subprocess.Popen.__init__
def scarce(self, args, *rest, **more):
    left = os.environ["STARTS_THAT_FAIL"]
    if "serve" in args and os.path.getsize(left):
        os.truncate(left, os.path.getsize(left) - 1)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    start(self, args, *rest, **more)
subprocess.Popen.__init__ = scarce
"""


def test_a_front_for_which_there_is_no_process_is_tried_again_and_sigterm_lets_all_finish(tmp_path, monkeypatch):
    left = tmp_path / "left"
    left.write_text("xx")
    (tmp_path / "sitecustomize.py").write_text(SCARCE)
    monkeypatch.setenv("STARTS_THAT_FAIL", str(left))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with group(tmp_path, 2) as one:
        assert len(one.fronts) == 2
        assert one.log.count("a front cannot be started") == 2
        left.write_text("x")
        os.kill(one.fronts[0], signal.SIGKILL)
        eventually(lambda: one.log.count("a front cannot be started") == 3 and len(one.fronts) == 2)
        finishes_what_it_accepted(one)
