"""A worker's connections: turns, comers and goers, and those who do not listen."""

from __future__ import annotations

import contextlib
import resource
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from engine.sending import Sender
from lossd.engine import worker_connections
from lossd.engine.protocol import HELLO, Reply
from lossd.engine.worker_connections import FrontConnection, FrontConnections


class Place:
    """FrontConnections that find each other, with nobody in between."""

    def __init__(self) -> None:
        self.address = f"\0lossd-test-{secrets.token_hex(8)}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen()
        self.parent, theirs = socket.socketpair()
        self.greeted: list[FrontConnection] = []
        self.fronts = FrontConnections(theirs, self.listener, self.greet)
        self.senders: list[Sender] = []

    def greet(self, front: FrontConnection) -> None:
        self.greeted.append(front)
        front.send(Reply(HELLO, 0, 0, [(False, b"{}")]))

    def sender(self) -> Sender:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        self.senders.append(Sender(connection))
        self.fronts.receive()
        return self.senders[-1]

    def close(self) -> None:
        for one in (self.parent, self.listener, *(s.connection for s in self.senders)):
            one.close()
        for front in self.greeted:
            if not front.gone:
                front.close()


@pytest.fixture
def place() -> Iterator[Place]:
    one = Place()
    yield one
    one.close()


def test_each_front_is_greeted_with_its_own_number(place):
    for _ in range(3):
        assert [r.batch for r in place.sender().replies(1)] == [HELLO]
    assert [front.number for front in place.greeted] == [1, 2, 3, 4]


def test_fronts_take_turns_and_their_numbers_are_their_own(place):
    one, other = place.sender(), place.sender()
    for sender in (one, other):
        sender.send(7, seed=id(sender) % 100)
    received = place.fronts.receive()
    assert [manifest["batch"] for _, manifest in received] == [7, 7]
    assert {front.number for front, _ in received} == {2, 3}
    memories = [bytes(front.slab(manifest)[:24]) for front, manifest in received]
    assert memories[0] != memories[1]


def test_the_slabs_of_a_front_are_unmapped_when_it_leaves(place):
    sender = place.sender()
    sender.send(1)
    ((front, manifest),) = place.fronts.receive()
    front.slab(manifest)
    sender.send(2)  # its slab arrives and is never mapped
    sender.connection.close()
    assert [m["batch"] for _, m in place.fronts.receive()] == [2]
    assert place.fronts.receive() == []
    assert front.gone
    assert front._slabs == {}
    assert place.fronts  # the one that keeps the worker is still there


def test_a_front_that_does_not_read_is_dropped_and_does_not_hold_up_the_others(place, monkeypatch):
    monkeypatch.setattr(worker_connections, "SEND_TIMEOUT_S", 1)
    deaf, other = place.sender(), place.sender()
    answer = Reply(1, 0, 0, [(False, bytes(8 << 20))])
    place.fronts.reply(place.greeted[1], answer)
    assert place.greeted[1].gone
    place.fronts.reply(place.greeted[2], Reply(1, 0, 0, []))
    assert [r.batch for r in other.replies(2)] == [HELLO, 1]
    assert not place.greeted[2].gone
    assert deaf.connection.fileno() != -1


def test_a_worker_without_a_free_file_does_not_spin_while_a_front_waits(place):
    taken = [socket.socket(socket.AF_UNIX)]
    taken[0].connect(place.address)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0].fileno() + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(socket.socket())
        begin, used = time.monotonic(), time.process_time()
        while time.monotonic() - begin < 0.5:
            assert place.fronts.receive() == []
        assert time.process_time() - used < 0.1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken[1:]:
            one.close()
    place.fronts.receive()  # now it is accepted
    assert Sender(taken[0]).replies(1)[0].batch == HELLO
    taken[0].close()


def test_a_worker_ends_when_all_fronts_have_left(place):
    sender = place.sender()
    place.parent.close()
    assert place.fronts.receive() == []
    assert place.fronts
    sender.connection.close()
    assert place.fronts.receive() == []
    assert not place.fronts


def test_a_partial_manifest_is_kept_until_it_is_complete(place):
    sender = place.sender()
    whole: list[bytes] = []
    through, back = socket.socketpair()
    Sender(through).send(3)
    text, fds, _, _ = socket.recv_fds(back, 1 << 16, 4)
    whole.append(text)
    socket.send_fds(sender.connection, [text[:50]], fds)
    assert place.fronts.receive() == []
    sender.connection.sendall(text[50:])
    ((front, manifest),) = place.fronts.receive()
    assert manifest["batch"] == 3
    assert len(front.slab(manifest)) == manifest["size"]
    for one in (through, back):
        one.close()


@pytest.mark.parametrize("several", [False, True])
def test_polling_returns_a_message_at_once_and_sleeps_without_one(several, monkeypatch):
    ours, theirs = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX) if several else None
    if listener is not None:
        listener.bind(f"\0lossd-test-{secrets.token_hex(8)}")
        listener.listen()
    sender, looks = Sender(ours), []

    def yielded() -> None:
        looks.append(len(looks))
        if len(looks) == 5:
            sender.send(1)

    monkeypatch.setattr(worker_connections.os, "sched_yield", yielded)
    fronts = FrontConnections(theirs, listener, lambda front: None)
    assert [m["batch"] for _, m in fronts.receive(poll_s=30)] == [1]
    assert len(looks) == 5
    threading.Timer(0.1, sender.send, [2]).start()
    assert [m["batch"] for _, m in fronts.receive(poll_s=1e-4)] == [2]
    looks.clear()
    ours.close()
    while fronts:
        assert fronts.receive(poll_s=30) == []
    assert len(looks) <= 2
    if listener is not None:
        listener.close()
