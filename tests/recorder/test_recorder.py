"""The recorder's loop, with a store that does what a test says: groups, order, bounds, faults."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from lossd.recorder import recorder as loop
from lossd.recorder.client import Recorder
from lossd.recorder.files import StoreError
from lossd.recorder.protocol import FrameBuffer, encode, request_bytes
from lossd.recorder.recorder import Server
from lossd.recorder.store import NewBatch
from lossd_client.errors import InternalError, Problem, StorageFull, Unavailable, UnknownRun
from recorder.harness import soon, until

RUN_BYTES = 1 << 20


class FakeStore:
    """A store without a database.

    Attributes:
        groups: The names of the batches of each call of :meth:`count`.
        closed: Whether it was closed.
        may_count: Counting waits for it.
    """

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.closed = False
        self.may_count = threading.Event()
        self.may_count.set()
        self.retired = self.tidied = 0
        self.fault: Callable[[], None] | None = None

    def open(self) -> None:
        """Is open."""

    def close(self) -> None:
        self.closed = True

    def count(self, batches: Sequence[NewBatch]) -> list[dict[str, Any] | Problem]:
        self.groups.append([batch.name for batch in batches])
        assert self.may_count.wait(30)
        if self.fault is not None:
            self.fault()
        if any(batch.name == "poison" for batch in batches):
            raise RuntimeError("a fault of the store")
        unknown = UnknownRun("there is none")
        return [unknown if batch.run == "none" else {"batch": batch.name} for batch in batches]

    def find(self, owner: str, name: str, owner_of_run: str | None = None) -> dict[str, Any]:
        if self.fault is not None:
            self.fault()
        return {"name": name}

    def merged(self, run: str) -> tuple[dict[str, Any], bytes]:
        return {"id": run}, bytes(int(run))

    def retire(self) -> int:
        self.retired += 1
        return 1

    def tidy(self) -> bool:
        self.tidied += 1
        return self.tidied < 5

    def create(self, **_: Any) -> Any: ...

    def list(self, **_: Any) -> Any: ...

    def batch(self, **_: Any) -> Any: ...

    def batches(self, **_: Any) -> Any: ...

    def seal(self, **_: Any) -> Any: ...

    def delete(self, **_: Any) -> Any: ...


@contextmanager
def serving(make_store: Callable[[], Any]) -> Iterator[tuple[str, Server]]:
    address = f"lossd-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{address}")
        listener.listen(16)
        server = Server(listener, make_store, request_bytes(RUN_BYTES))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield address, server
        finally:
            server.stop()
            thread.join(timeout=20)
            assert not thread.is_alive()


@asynccontextmanager
async def asking(make_store: Callable[[], Any]) -> AsyncIterator[tuple[Recorder, Server]]:
    with serving(make_store) as (address, server):
        recorder = Recorder(address, RUN_BYTES)
        try:
            yield recorder, server
        finally:
            await recorder.close()
            await asyncio.sleep(0.01)


@contextmanager
def connected(recorder: Recorder) -> Iterator[socket.socket]:
    """A connection of another front, which waits 20 s at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as front:
        front.settimeout(20)
        front.connect(f"\0{recorder._address}")
        yield front


async def count(recorder: Recorder, name: str, run: str = "r") -> dict[str, Any]:
    outcome, _ = await recorder.ask("count", soon(), b"report", run=run, name=name, device="cpu", build="1")
    return dict(outcome)


def test_all_that_waits_is_one_transaction_and_is_answered_after_it() -> None:
    """While the first is committed, sixty-four more arrive; none of them is answered before their own commit."""

    async def run() -> None:
        store = FakeStore()
        async with asking(lambda: store) as (recorder, _):
            store.may_count.clear()
            first = asyncio.create_task(count(recorder, "first"))
            await until(lambda: len(store.groups) == 1)
            others = [asyncio.create_task(count(recorder, f"{number}")) for number in range(64)]
            await asyncio.sleep(0.1)
            assert not first.done()
            store.may_count.set()
            assert await first == {"batch": "first"}
            assert await asyncio.gather(*others) == [{"batch": f"{number}"} for number in range(64)]
            assert store.groups == [["first"], [f"{number}" for number in range(64)]]

    asyncio.run(run())


def test_each_of_a_group_gets_its_own_outcome() -> None:
    async def run() -> None:
        store = FakeStore()
        async with asking(lambda: store) as (recorder, _):
            store.may_count.clear()
            begin = asyncio.create_task(count(recorder, "a"))
            await until(lambda: len(store.groups) == 1)
            good, unknown = (asyncio.create_task(count(recorder, "b", run)) for run in ("r", "none"))
            await asyncio.sleep(0.1)
            store.may_count.set()
            await begin
            assert await good == {"batch": "b"}
            with pytest.raises(UnknownRun):
                await unknown

    asyncio.run(run())


def test_a_batch_that_breaks_the_store_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The group is rolled back, and each is counted alone; the log has the traceback, and no front is cut off."""

    async def run() -> None:
        store = FakeStore()
        async with asking(lambda: store) as (recorder, _):
            store.may_count.clear()
            first = asyncio.create_task(count(recorder, "first"))
            await until(lambda: len(store.groups) == 1)
            names = [*"abc", "poison", *"def"]
            others = [asyncio.create_task(count(recorder, name)) for name in names]
            await asyncio.sleep(0.1)
            store.may_count.set()
            outcomes = await asyncio.gather(first, *others, return_exceptions=True)
            for name, outcome in zip(["first", *names], outcomes, strict=True):
                if name == "poison":
                    assert isinstance(outcome, InternalError)
                    assert "a fault of the store" not in str(outcome), "the answer shows no internals"
                else:
                    assert outcome == {"batch": name}
            assert store.groups == [["first"], names, *([name] for name in names)]
            assert await count(recorder, "later") == {"batch": "later"}

    asyncio.run(run())
    assert "a fault of the store" in caplog.text


def test_a_full_disk_is_said_to_all_of_a_group() -> None:
    async def run() -> None:
        store = FakeStore()

        def full() -> None:
            raise StorageFull("the disk is full", retry_after_s=5.0)

        async with asking(lambda: store) as (recorder, _):
            store.fault = full
            outcomes = await asyncio.gather(*(count(recorder, name) for name in "ab"), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [StorageFull, StorageFull]
            store.fault = None
            assert await count(recorder, "c") == {"batch": "c"}

    asyncio.run(run())


@pytest.mark.parametrize(
    "arguments",
    [
        {"op": "drop_everything"},
        {"op": "__init__"},
        {"op": "find"},
        {"op": "find", "owner": "", "name": "a", "further": 1},
        {"op": "close"},
    ],
    ids=["unknown", "private", "too-few", "too-many", "no-operation"],
)
def test_a_wrong_question_is_answered_and_ends_nothing(arguments: dict[str, Any]) -> None:
    async def run() -> None:
        store = FakeStore()
        async with asking(lambda: store) as (recorder, _):
            with pytest.raises(InternalError):
                await recorder.ask(arguments["op"], soon(), **{k: v for k, v in arguments.items() if k != "op"})
            assert await recorder.ask("find", soon(), owner="", name="a") == ({"name": "a"}, b"")
            assert not store.closed

    asyncio.run(run())


def test_a_state_comes_as_bytes() -> None:
    async def run() -> None:
        async with asking(FakeStore) as (recorder, _):
            assert await recorder.ask("merged", soon(), run="3000000") == ({"id": "3000000"}, bytes(3_000_000))

    asyncio.run(run())


def test_a_front_that_reads_no_answers_does_not_fill_the_memory() -> None:
    """It asks for 400 states of a megabyte. A few are made, another front is served, and then all come."""
    total, size = 400, 1 << 20

    async def run() -> None:
        async with asking(FakeStore) as (recorder, server):
            await recorder.ask("find", soon(), owner="", name="a")
            with connected(recorder) as deaf:
                deaf.sendall(b"".join(encode({"id": n, "op": "merged", "run": f"{size}"}) for n in range(total)))
                await until(lambda: any(c.unsent for c in server._connections))
                for _ in range(20):
                    assert await recorder.ask("find", soon(), owner="", name="a") == ({"name": "a"}, b"")
                held = sum(c._unsent_bytes for c in server._connections)
                assert held <= loop.UNSENT_BYTES + 2 * size
                received = 0
                while received < total * size:
                    received += len(await asyncio.to_thread(deaf.recv, 1 << 20))

    asyncio.run(run())


def test_requests_behind_many_answers_are_answered_when_these_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read brings all of them, and the socket takes each answer at once."""
    monkeypatch.setattr(loop, "UNSENT_BYTES", 1)
    total = 5

    async def run() -> None:
        async with asking(FakeStore) as (recorder, _):
            await recorder.ask("find", soon(), owner="", name="a")
            with connected(recorder) as front:
                front.sendall(b"".join(encode({"id": n, "op": "merged", "run": "8"}) for n in range(total)))
                answers, frames = FrameBuffer(1 << 20), []
                while len(frames) < total:
                    answers.feed(await asyncio.to_thread(front.recv, 1 << 20))
                    while frame := answers.take():
                        frames.append(frame.head["id"])
                assert frames == list(range(total))

    asyncio.run(run())


def test_a_frame_over_the_limit_closes_its_connection_alone() -> None:
    async def run() -> None:
        async with asking(FakeStore) as (recorder, _):
            await recorder.ask("find", soon(), owner="", name="a")
            with connected(recorder) as other:
                other.sendall(struct.pack("<II", request_bytes(RUN_BYTES) + 1, 10))
                assert other.recv(1) == b"", "it is closed"
            assert await recorder.ask("find", soon(), owner="", name="a") == ({"name": "a"}, b"")

    asyncio.run(run())


@pytest.mark.parametrize(
    "batches",
    [None, 3, [["r", "b"]], [["r", "b", "cpu", "1", 4]], [["r", "b", "cpu", "1", 2]], [["r", "b", "cpu", "1", "3"]]],
    ids=["none", "a-number", "too-few", "more-bytes", "fewer-bytes", "no-length"],
)
def test_a_request_to_count_that_describes_no_batches_closes_its_connection_alone(batches: Any) -> None:
    async def run() -> None:
        store = FakeStore()
        async with asking(lambda: store) as (recorder, _):
            assert await count(recorder, "a") == {"batch": "a"}
            with connected(recorder) as other:
                other.sendall(encode({"id": 1, "op": "count", "batches": batches}, b"abc"))
                assert other.recv(1) == b"", "it is closed"
            assert await count(recorder, "b") == {"batch": "b"}
            assert store.groups == [["a"], ["b"]]

    asyncio.run(run())


def test_half_a_frame_holds_nobody_up() -> None:
    async def run() -> None:
        async with asking(FakeStore) as (recorder, _):
            with connected(recorder) as other:
                other.sendall(encode({"id": 1, "op": "find", "owner": "", "name": "a"})[:-3])
                assert await recorder.ask("find", soon(), owner="", name="a") == ({"name": "a"}, b"")

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_user_s_connection_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """Any user sees the address; the kernel says who connects."""
    with serving(FakeStore) as (address, _):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                    other.settimeout(20)
                    other.connect(f"\0{address}")
                    try:
                        other.sendall(encode({"id": 1, "op": "find", "owner": "", "name": "a"}))
                        status = 0 if other.recv(1) == b"" else 2
                    except ConnectionError:
                        status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "another user" in caplog.text


def test_a_store_that_cannot_be_opened_is_said_in_words_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has one line for each reason, however often opening was tried."""
    monkeypatch.setattr(loop, "REOPEN_S", 0.02)
    reasons = ["another lossd (process 1) has opened it; stop it"] * 5 + ["the disk is away"] * 5
    tried: list[str] = []
    store = FakeStore()
    may_try = threading.Event()

    def make() -> FakeStore:
        if len(tried) == 5:
            may_try.wait(20)
        if len(tried) < len(reasons):
            tried.append(reasons[len(tried)])
            raise StoreError(tried[-1])
        return store

    async def run() -> None:
        async with asking(make) as (recorder, _):
            with pytest.raises(Unavailable, match=r"another lossd .* has opened it; stop it") as raised:
                await recorder.ask("find", soon(), owner="", name="a")
            assert raised.value.retry_after_s is not None
            with pytest.raises(Unavailable, match="another lossd"):
                await count(recorder, "a")
            may_try.set()
            await until(lambda: len(tried) == len(reasons))
            end = time.monotonic() + 20
            while True:
                try:
                    assert await count(recorder, "a") == {"batch": "a"}
                    break
                except Unavailable as problem:
                    assert "the disk is away" in str(problem)  # noqa: PT017
                    assert time.monotonic() < end

    with caplog.at_level(logging.INFO, "lossd.recorder"):
        asyncio.run(run())
    messages = [record.getMessage() for record in caplog.records if record.name == "lossd.recorder"]
    assert [sum(reason in line for line in messages) for reason in sorted(set(reasons))] == [1, 1]
    assert any("is open, after it was not" in line for line in messages)


@pytest.mark.parametrize(
    "cause", [StorageFull("no room"), OSError(errno.ENOSPC, "no room"), OSError(errno.EDQUOT, "over the quota")]
)
def test_a_full_disk_at_opening_is_storage_full(cause: Exception) -> None:
    """507 stays 507, also if the store was never open."""

    def make() -> FakeStore:
        raise StoreError("the disk is full") from cause

    async def run() -> None:
        async with asking(make) as (recorder, _):
            with pytest.raises(StorageFull, match="the disk is full"):
                await count(recorder, "a")

    asyncio.run(run())


def test_a_store_that_breaks_is_closed_and_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REOPEN_S", 0.02)
    stores: list[FakeStore] = []

    def make() -> FakeStore:
        stores.append(FakeStore())
        return stores[-1]

    async def run() -> None:
        async with asking(make) as (recorder, _):
            await recorder.ask("find", soon(), owner="", name="a")

            def broken() -> None:
                raise StoreError("the file was replaced")

            stores[0].fault = broken
            with pytest.raises(Unavailable, match="the file was replaced"):
                await recorder.ask("find", soon(), owner="", name="a")
            assert stores[0].closed
            await until(lambda: len(stores) == 2)
            assert await count(recorder, "a") == {"batch": "a"}

    asyncio.run(run())


def test_house_is_kept_at_the_start_and_each_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old runs are retired at once and hourly; a piece is tidied between two turns, until nothing is left to tidy."""
    monkeypatch.setattr(loop, "RETIRE_S", 0.2)
    store = FakeStore()

    async def run() -> None:
        async with asking(lambda: store) as (recorder, _):
            await recorder.ask("find", soon(), owner="", name="a")
            await until(lambda: store.retired >= 3)
            assert store.tidied >= 5
            before = store.tidied
            await recorder.ask("find", soon(), owner="", name="a")
            await until(lambda: store.tidied > before)

    asyncio.run(run())


def test_what_has_arrived_is_answered_before_the_end() -> None:
    """The end is asked for while the store commits; what arrived meanwhile is counted and answered too."""

    async def run() -> None:
        store = FakeStore()
        async with asking(lambda: store) as (recorder, server):
            store.may_count.clear()
            first = asyncio.create_task(count(recorder, "first"))
            await until(lambda: len(store.groups) == 1)
            others = [asyncio.create_task(count(recorder, f"{number}")) for number in range(8)]
            await asyncio.sleep(0.1)
            server.stop()
            store.may_count.set()
            assert len(await asyncio.gather(first, *others)) == 9
            await until(lambda: store.closed)

    asyncio.run(run())
