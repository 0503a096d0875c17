"""A signal for a worker reaches the worker, and never a process that was given its number later."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from unittest.mock import Mock

import orjson
import pytest

from lossd.configuration.settings import Settings
from lossd.engine.heartbeat import PROBE, Heartbeat
from lossd.engine.process_handle import ProcessHandle, own_descriptor
from lossd.engine.protocol import HELLO, Reply, encode_reply
from lossd.engine.remote_worker import RemoteWorker

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls of ``os.kill``, which are not carried out."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: calls.append((pid, number)))
    return calls


async def greeted(name: str, child: subprocess.Popen[bytes], *, descriptor: bool) -> RemoteWorker:
    """Return a front's end whose worker, which another process keeps, is said to be this child process."""
    worker = RemoteWorker(Mock(settings=Settings(), loop=asyncio.get_running_loop()), "cpu", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        worker.connect()
        with listener.accept()[0] as connection:
            heartbeat = Heartbeat()
            descriptors = [os.pidfd_open(child.pid)] if descriptor else []
            hello = encode_reply(Reply(HELLO, 0, 0, [(False, orjson.dumps({"pid": child.pid, "front": 1}))]))
            socket.send_fds(connection, [hello], [heartbeat.fd, *descriptors])
            while not worker.ready:
                await asyncio.sleep(0.001)
            heartbeat.close()
            for number in descriptors:
                os.close(number)
    return worker


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child process without ``os.kill``, which some tests replace."""
    if child.poll() is None:
        descriptor = os.pidfd_open(child.pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


def run(story: Callable[[subprocess.Popen[bytes]], object]) -> None:
    child = subprocess.Popen(SLEEP)
    try:
        asyncio.run(story(child))  # type: ignore[arg-type]
    finally:
        end(child)
        child.wait()


def test_a_collected_worker_s_number_gets_no_signal(kills: list[tuple[int, int]]) -> None:
    async def story(child: subprocess.Popen[bytes]) -> None:
        worker = await greeted(f"lossd-test-{os.getpid()}-collected", child, descriptor=True)
        end(child)
        assert child.wait() == -signal.SIGKILL  # its number may now be another process's
        worker._kill("hangs")
        assert kills == []
        worker.close()

    run(story)


def test_a_worker_is_killed_through_its_descriptor(kills: list[tuple[int, int]]) -> None:
    async def story(child: subprocess.Popen[bytes]) -> None:
        worker = await greeted(f"lossd-test-{os.getpid()}-killed", child, descriptor=True)
        worker._kill("hangs")
        assert await asyncio.to_thread(child.wait) == -signal.SIGKILL
        assert kills == []
        worker.close()

    run(story)


def test_without_descriptors_the_number_is_used(kills: list[tuple[int, int]]) -> None:
    async def story(child: subprocess.Popen[bytes]) -> None:
        worker = await greeted(f"lossd-test-{os.getpid()}-number", child, descriptor=False)
        worker._kill("hangs")
        assert kills == [(child.pid, signal.SIGKILL)]
        worker.close()

    run(story)


def test_a_closed_connection_leaves_no_number_and_no_descriptor() -> None:
    async def story(child: subprocess.Popen[bytes]) -> None:
        before = set(os.listdir("/proc/self/fd"))
        worker = await greeted(f"lossd-test-{os.getpid()}-closed", child, descriptor=True)
        worker.close()
        assert worker.pid is None, "metrics would read another process's memory"
        assert set(os.listdir("/proc/self/fd")) <= before

    run(story)


def test_a_process_has_a_descriptor_of_itself_and_closes_it() -> None:
    received: list[int] = []
    previous = signal.signal(PROBE, lambda number, _: received.append(number))
    try:
        with own_descriptor() as descriptors:
            [number] = descriptors
            handle = ProcessHandle(os.dup(number))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        handle.send(PROBE)
        handle.close()
        assert received == [PROBE]
    finally:
        signal.signal(PROBE, previous)


def test_a_system_without_descriptors_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with own_descriptor() as descriptors:
        assert descriptors == []
