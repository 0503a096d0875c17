"""A front's connection to the recorder: many callers, broken connections, callers that leave, deadlines."""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lossd.recorder.client import TOGETHER_BYTES, Recorder
from lossd.recorder.protocol import REPLY_BYTES, Frame, FrameBuffer, batches_of, encode, encode_problem, reply_of
from lossd_client.errors import DeadlineExceeded, InternalError, QuotaExceeded, Unavailable, UnknownRun
from recorder.harness import soon, until

Answer = Callable[["Peer", Frame], Awaitable[None]]


class Peer:
    """The other end: receives frames and answers as a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, number: int, outcome: Any, payload: bytes = b"") -> None:
        self.writer.write(encode({"id": number, "ok": outcome}, payload))


class Other:
    """A recorder that does what a test says.

    Attributes:
        received: The frames it has received, over all connections.
        connections: How many connections there were.
    """

    def __init__(self, answer: Answer) -> None:
        self.address = f"lossd-test-{secrets.token_hex(8)}"
        self.received: list[Frame] = []
        self.connections = 0
        self.tasks: list[Any] = []
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        peer, buffer = Peer(reader, writer), FrameBuffer(1 << 30)
        try:
            while data := await reader.read(1 << 16):
                buffer.feed(data)
                while not writer.is_closing() and (frame := buffer.take()) is not None:
                    self.received.append(frame)
                    await self._answer(peer, frame)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def answering(answer: Answer, run_bytes: int = 1 << 20) -> AsyncIterator[tuple[Recorder, Other]]:
    other = Other(answer)
    server = await asyncio.start_unix_server(other.serve, path=f"\0{other.address}")
    recorder = Recorder(other.address, run_bytes)
    try:
        yield recorder, other
    finally:
        await recorder.close()
        server.close()
        for task in other.tasks:
            task.cancel()
        await asyncio.gather(*other.tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports close in the next turns of the loop


async def echo(peer: Peer, frame: Frame) -> None:
    counted = frame.head["op"] == "count"
    value = [{"batch": batch.name} for batch in batches_of(frame)] if counted else frame.head.get("value")
    peer.send(frame.head["id"], value, frame.payload)


BATCH = {"run": "r", "name": "b", "device": "cpu", "build": "1"}


async def count_odd(peer: Peer, frame: Frame) -> None:
    """Answer with the names of batches, and refuse those that are even numbers."""
    names = [batch.name for batch in batches_of(frame)]
    refused = {name: reply_of(Unavailable(f"{name} is even", retry_after_s=2.0)) for name in names if not int(name) % 2}
    peer.send(frame.head["id"], [refused.get(name, {"batch": name}) for name in names])


def test_many_callers_share_one_connection_and_get_their_own_answers() -> None:
    """The answers come in the reverse order."""
    held: list[Frame] = []

    async def reverse(peer: Peer, frame: Frame) -> None:
        held.append(frame)
        if len(held) == 200:
            for one in reversed(held):
                await echo(peer, one)

    async def run() -> None:
        async with answering(reverse) as (recorder, other):
            questions = (recorder.ask("x", soon(), b"%d" % number, value=number) for number in range(200))
            assert await asyncio.gather(*questions) == [(number, b"%d" % number) for number in range(200)]
            assert other.connections == 1
            assert not recorder._questions

    asyncio.run(run())


def test_what_was_in_flight_is_asked_again_when_the_connection_breaks() -> None:
    """The first two connections break after ten questions; every caller gets its answer over the third."""
    seen = 0

    async def break_twice(peer: Peer, frame: Frame) -> None:
        nonlocal seen
        seen += 1
        if seen in (10, 20):
            peer.writer.transport.abort()
        elif seen > 20:
            await echo(peer, frame)

    async def run() -> None:
        async with answering(break_twice) as (recorder, other):
            answers = await asyncio.gather(*(recorder.ask("x", soon(), value=number) for number in range(50)))
            assert [value for value, _ in answers] == list(range(50))
            assert other.connections == 3

    asyncio.run(run())


def test_a_delete_that_is_asked_again_and_finds_nothing_has_deleted() -> None:
    """The first answer was lost. A delete that is asked once and finds nothing has an unknown name."""
    seen = 0

    async def lose_the_first(peer: Peer, frame: Frame) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            peer.writer.transport.abort()
        else:
            peer.writer.write(encode_problem(frame.head["id"], UnknownRun("there is none")))

    async def run() -> None:
        async with answering(lose_the_first) as (recorder, _):
            assert await recorder.ask("delete", soon(), owner="", name="a") == (None, b"")
            with pytest.raises(UnknownRun):
                await recorder.ask("delete", soon(), owner="", name="a")

    asyncio.run(run())


def test_a_caller_that_leaves_leaves_nothing_behind() -> None:
    """The reply that comes later is dropped, and the next caller gets its own."""
    held: list[tuple[Peer, Frame]] = []

    async def hold(peer: Peer, frame: Frame) -> None:
        if frame.head["op"] == "hold":
            held.append((peer, frame))
        else:
            await echo(peer, frame)

    async def run() -> None:
        async with answering(hold) as (recorder, _):
            tasks = [asyncio.create_task(recorder.ask("hold", soon(), value=number)) for number in range(20)]
            await until(lambda: len(held) == 20)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not recorder._questions
            for peer, frame in held:
                await echo(peer, frame)
            assert await recorder.ask("x", soon(), value="mine") == ("mine", b"")

    asyncio.run(run())


def test_the_store_s_problem_is_raised() -> None:
    async def refuse(peer: Peer, frame: Frame) -> None:
        peer.writer.write(encode_problem(frame.head["id"], Unavailable("the disk is away", retry_after_s=3.0)))

    async def run() -> None:
        async with answering(refuse) as (recorder, _):
            with pytest.raises(Unavailable, match="the disk is away") as raised:
                await recorder.ask("x", soon())
            assert raised.value.retry_after_s == 3.0

    asyncio.run(run())


def test_a_recorder_that_does_not_answer_has_until_the_deadline() -> None:
    async def never(peer: Peer, frame: Frame) -> None:
        """Does not answer."""

    async def run() -> None:
        async with answering(never) as (recorder, other):
            begin = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="may have done"):
                await recorder.ask("x", begin + 0.2)
            assert 0.2 <= time.monotonic() - begin < 5
            assert len(other.received) == 1
            assert not recorder._questions

    asyncio.run(run())


def test_where_nobody_listens_the_recorder_is_unavailable() -> None:
    async def run() -> None:
        recorder = Recorder(f"lossd-test-{secrets.token_hex(8)}", 1 << 20)
        with pytest.raises(Unavailable, match="cannot be reached") as raised:
            await recorder.ask("x", soon(0.2))
        assert raised.value.retry_after_s == 1.0
        await asyncio.sleep(0.3)
        assert recorder._connecting is None, "nobody waits, and nobody connects"
        await recorder.close()

    asyncio.run(run())


def test_a_recorder_that_accepts_and_dies_is_not_asked_in_a_hot_loop() -> None:
    async def die(peer: Peer, frame: Frame) -> None:
        peer.writer.transport.abort()

    async def run() -> None:
        async with answering(die) as (recorder, other):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await recorder.ask("x", soon(1.0))
            assert 2 <= other.connections <= 10, "0, 20, 40, 80, 160, 320, 640 ms apart"

    asyncio.run(run())


def test_a_report_over_a_run_s_bytes_is_refused_and_not_sent() -> None:
    async def run() -> None:
        async with answering(echo, run_bytes=1000) as (recorder, other):
            with pytest.raises(QuotaExceeded, match=r"1001 bytes.*1000"):
                await recorder.ask("count", soon(), bytes(1001), **BATCH)
            assert not other.received
            await recorder.ask("count", soon(), bytes(1000), **BATCH)

    asyncio.run(run())


def test_batches_asked_in_one_turn_are_sent_together_and_each_gets_its_own_outcome() -> None:
    """One frame has those whose reports are short, and a problem is that of one batch alone."""
    sizes = [100, 100, TOGETHER_BYTES, 1, 2, 3]

    async def run() -> None:
        async with answering(count_odd) as (recorder, other):
            named = [{**BATCH, "name": str(number)} for number in range(len(sizes))]
            questions = [
                recorder.ask("count", soon(), bytes(size), **batch) for size, batch in zip(sizes, named, strict=True)
            ]
            outcomes = await asyncio.gather(*questions, return_exceptions=True)
            assert outcomes[1::2] == [({"batch": str(number)}, b"") for number in (1, 3, 5)]
            assert [str(outcome) for outcome in outcomes[::2]] == ["0 is even", "2 is even", "4 is even"]
            assert [outcome.retry_after_s for outcome in outcomes[::2]] == [2.0] * 3
            groups = [[batch.name for batch in batches_of(frame)] for frame in other.received]
            assert groups == [["0", "1"], ["2"], ["3", "4", "5"]]
            assert [len(batch.report) for frame in other.received for batch in batches_of(frame)] == sizes

    asyncio.run(run())


def test_batches_whose_reply_was_lost_are_counted_over_the_next_connection() -> None:
    seen = 0

    async def break_first(peer: Peer, frame: Frame) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            peer.writer.transport.abort()
        else:
            await count_odd(peer, frame)

    async def run() -> None:
        async with answering(break_first) as (recorder, other):
            questions = (recorder.ask("count", soon(), b"r", **{**BATCH, "name": name}) for name in ("1", "3"))
            assert await asyncio.gather(*questions) == [({"batch": "1"}, b""), ({"batch": "3"}, b"")]
            assert other.connections == 2
            assert not recorder._questions

    asyncio.run(run())


def test_a_problem_of_all_batches_is_raised_for_each() -> None:
    async def refuse(peer: Peer, frame: Frame) -> None:
        peer.writer.write(encode_problem(frame.head["id"], Unavailable("the disk is away")))

    async def run() -> None:
        async with answering(refuse) as (recorder, _):
            questions = (recorder.ask("count", soon(), b"r", **{**BATCH, "name": name}) for name in "ab")
            first, second = await asyncio.gather(*questions, return_exceptions=True)
            assert isinstance(first, Unavailable)
            assert isinstance(second, Unavailable)
            assert first is not second, "an exception holds the traceback of one caller"

    asyncio.run(run())


def test_a_reply_about_other_batches_breaks_the_connection() -> None:
    seen = 0

    async def too_few_first(peer: Peer, frame: Frame) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            peer.send(frame.head["id"], [])
        else:
            await count_odd(peer, frame)

    async def run() -> None:
        async with answering(too_few_first) as (recorder, other):
            assert await recorder.ask("count", soon(), b"r", **{**BATCH, "name": "1"}) == ({"batch": "1"}, b"")
            assert other.connections == 2

    asyncio.run(run())


def test_a_batch_whose_caller_left_in_the_same_turn_is_not_sent() -> None:
    async def run() -> None:
        async with answering(count_odd) as (recorder, other):
            await recorder.ask("count", soon(), b"r", **{**BATCH, "name": "1"})
            left, kept = (recorder.begin("count", soon(), b"r", **{**BATCH, "name": name}) for name in ("3", "5"))
            left.cancel()
            assert await kept == ({"batch": "5"}, b"")
            assert [batch.name for frame in other.received for batch in batches_of(frame)] == ["1", "5"]

    asyncio.run(run())


def test_a_reply_that_is_no_frame_breaks_the_connection_alone() -> None:
    seen = 0

    async def nonsense_first(peer: Peer, frame: Frame) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            peer.writer.write(struct.pack("<II", REPLY_BYTES + 1, 10))
        else:
            await echo(peer, frame)

    async def run() -> None:
        async with answering(nonsense_first) as (recorder, other):
            assert await recorder.ask("x", soon(), value=1) == (1, b"")
            assert other.connections == 2

    asyncio.run(run())


def test_a_recorder_that_reads_slowly_does_not_fill_the_transport() -> None:
    """Sixteen megabytes are asked. The transport holds what one question brought beyond its limit, and no more."""
    reading = asyncio.Event()

    async def slowly(peer: Peer, frame: Frame) -> None:
        await reading.wait()
        await echo(peer, frame)

    async def run() -> None:
        async with answering(slowly) as (recorder, other):
            tasks = [asyncio.create_task(recorder.ask("x", soon(), bytes(1 << 18), value=n)) for n in range(64)]
            await until(lambda: bool(other.received))
            await asyncio.sleep(0.1)
            assert recorder._connection is not None
            assert recorder._connection._transport is not None
            assert recorder._connection._transport.get_write_buffer_size() < 1 << 20
            left = tasks.pop()
            left.cancel()
            reading.set()
            answers = await asyncio.gather(*tasks)
            assert [value for value, _ in answers] == list(range(63))
            assert len(other.received) == 63, "a question whose caller left before is not sent"

    asyncio.run(run())


def test_closing_tells_those_who_wait() -> None:
    async def never(peer: Peer, frame: Frame) -> None:
        """Does not answer."""

    async def run() -> None:
        async with answering(never) as (recorder, other):
            task = asyncio.create_task(recorder.ask("x", soon()))
            await until(lambda: len(other.received) == 1)
            await recorder.close()
            with pytest.raises(Unavailable, match="shutting down"):
                await task
            with pytest.raises(Unavailable, match="shutting down"):
                await recorder.ask("x", soon())

    asyncio.run(run())


def test_an_address_that_another_user_listens_at_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who listens; a report is sent to nobody else."""

    async def run() -> None:
        async with answering(echo) as (recorder, other):
            monkeypatch.setattr("lossd.recorder.peer.os.geteuid", lambda: 123_456)
            with pytest.raises(Unavailable):
                await recorder.ask("x", soon(0.2), b"secret")
            assert not other.received

    asyncio.run(run())


@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_both_event_loops_connect_to_an_abstract_address(policy: str) -> None:
    import uvloop

    async def run() -> None:
        async with answering(echo) as (recorder, _):
            assert await recorder.ask("x", soon(), b"p", value=1) == (1, b"p")

    (uvloop.run if policy == "uvloop" else asyncio.run)(run())


def test_an_internal_error_keeps_its_sentence() -> None:
    async def fail(peer: Peer, frame: Frame) -> None:
        peer.writer.write(encode_problem(frame.head["id"], InternalError("see the log")))

    async def run() -> None:
        async with answering(fail) as (recorder, _):
            with pytest.raises(InternalError, match="see the log"):
                await recorder.ask("x", soon())

    asyncio.run(run())


def test_a_client_that_asks_nothing_connects_to_nobody() -> None:
    async def run() -> None:
        async with answering(echo) as (recorder, other):
            await asyncio.sleep(0.05)
            assert other.connections == 0
            assert recorder._connection is None

    asyncio.run(run())
