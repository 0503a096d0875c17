"""A front's connection to the recorder."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lossd.recorder.peer import is_own
from lossd.recorder.protocol import (
    COUNT,
    REPLY_BYTES,
    FrameBuffer,
    FrameError,
    NewBatch,
    encode,
    encode_batches,
    problem_of,
)
from lossd_client.errors import DeadlineExceeded, Problem, QuotaExceeded, Unavailable, UnknownRun

__all__ = ["Recorder"]

log = logging.getLogger("lossd.recorder")

SOCKET_BYTES = 1 << 20
LEAST_DELAY_S = 0.001
"""Timers are no finer."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.02, 1.0

TOGETHER_BYTES = 1 << 18
"""So many bytes of reports, but at least one report, are sent in one frame."""


@dataclass(slots=True)
class _Question:
    """A request without an answer yet.

    Attributes:
        number: Its number, which the reply has too.
        message: Its frame, or the batch to count; kept for asking again.
        deadline: When the answer is no longer wanted, on the monotonic clock.
        answer: Resolves with the reply's outcome and payload.
        sent: How often it was sent.
    """

    number: int
    message: bytes | NewBatch
    deadline: float
    answer: asyncio.Future[tuple[Any, bytes]]
    sent: int = 0


@dataclass(slots=True)
class _Delays:
    """The pauses between tries to connect: none at first, then doubling."""

    failures: int = field(default=0)

    def next_s(self) -> float:
        self.failures += 1
        return 0.0 if self.failures == 1 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(self.failures - 2, 10))


class Recorder:
    """Asks the recorder, over one connection for all callers.

    The first question connects, which starts the recorder if there is none. If the connection breaks, all questions
    without an answer are asked again: every operation may be repeated.

    Args:
        address: The recorder's address, without the zero byte of abstract Unix sockets.
        run_bytes: The most bytes of a run, and so of a batch's report.
    """

    def __init__(self, address: str, run_bytes: int) -> None:
        self._address = address
        self._run_bytes = run_bytes
        self._numbers: Iterator[int] = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._delays = _Delays()
        self._closed = False
        # One timer for all questions: one for each takes as long as to send it. It is due at the first deadline that it
        # was set for, and later ones are looked at then.
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    async def ask(self, op: str, deadline: float, payload: bytes = b"", **arguments: Any) -> tuple[Any, bytes]:
        """Return the outcome of an operation and the payload of the reply; arguments and errors are :meth:`begin`'s."""
        question = self._question(op, deadline, payload, arguments)
        try:
            return await question.answer
        except UnknownRun:
            if op == "delete" and question.sent > 1:  # it was deleted, and the answer was lost
                return None, b""
            raise
        except asyncio.CancelledError:  # the caller left
            self._questions.pop(question.number, None)
            if self._connection is not None:
                self._connection.forget(question)
            raise

    def begin(
        self, op: str, deadline: float, payload: bytes = b"", **arguments: Any
    ) -> asyncio.Future[tuple[Any, bytes]]:
        """Ask for an operation, and return the future of its outcome and of the payload of the reply.

        Args:
            op: The operation: the name of a method of :class:`lossd.recorder.store.Store`.
            deadline: When the answer is no longer wanted, on the monotonic clock.
            payload: The report to count.
            arguments: The operation's arguments.

        Raises:
            QuotaExceeded: The payload has more bytes than a run may have.
            Unavailable: The service ends.

        The future has the operation's own problem, or one of these:

            * DeadlineExceeded: No answer came before the deadline. It is not known whether the operation was done.
            * Unavailable: The recorder could not be reached before the deadline, or the service ends.
        """
        return self._question(op, deadline, payload, arguments).answer

    def _question(self, op: str, deadline: float, payload: bytes, arguments: dict[str, Any]) -> _Question:
        if len(payload) > self._run_bytes:
            raise QuotaExceeded(
                f"the batch adds {len(payload)} bytes to the run, and a run may hold {self._run_bytes}; "
                "send fewer rows, or ask the operator for more (LOSSD_RUN_BYTES)"
            )
        if self._closed:
            raise _ends()
        loop, number = asyncio.get_running_loop(), self.next_number()
        message: bytes | NewBatch
        if op == COUNT:
            message = NewBatch(report=payload, **arguments)
        else:
            message = encode({"id": number, "op": op, **arguments}, payload)
        question = self._questions[number] = _Question(number, message, deadline, loop.create_future())
        if self._timer is None or deadline < self._due:
            self._set_timer(deadline)
        if self._connection is not None:
            self._connection.send(question)
        else:
            self._connect()
        return question

    def next_number(self) -> int:
        """Return the number of a new request."""
        return next(self._numbers)

    def _set_timer(self, deadline: float) -> None:
        """Look for questions past their deadlines at this time, and not at another."""
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(deadline - time.monotonic(), LEAST_DELAY_S)
        self._due, self._timer = deadline, asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        """End the questions past their deadlines, and forget those whose callers left."""
        self._timer = None
        now = time.monotonic()
        for question in self._waiting():
            if question.deadline > now:
                continue
            del self._questions[question.number]
            if self._connection is None or not question.sent:
                problem: Problem = Unavailable(
                    "the recorder of runs cannot be reached; try again later", retry_after_s=1.0
                )
            else:
                problem = DeadlineExceeded(
                    "the recorder of runs did not answer before the deadline; it may have done what was asked: ask "
                    "again"
                )
            question.answer.set_exception(problem)
        if self._questions:
            self._set_timer(min(question.deadline for question in self._questions.values()))

    def _waiting(self) -> list[_Question]:
        """Forget the questions whose callers left, and return the others."""
        self._questions = {n: question for n, question in self._questions.items() if not question.answer.done()}
        return list(self._questions.values())

    async def close(self) -> None:
        """Close the connection; callers that wait get Unavailable."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            connection = self._connection
            connection.close()
            await connection.lost.wait()
        for question in self._waiting():
            question.answer.set_exception(_ends())
        self._questions = {}

    # Connecting

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = asyncio.create_task(self._connect_until_answered())

    async def _connect_until_answered(self) -> None:
        """Connect and send all questions. Try again as long as there are any."""
        try:
            while self._connection is None and self._waiting():
                await asyncio.sleep(self._delays.next_s())
                try:
                    connection = await _Connection.open(self._address, self)
                except OSError as error:
                    log.debug("the recorder cannot be reached: %s", error)
                    continue
                if connection.lost.is_set():
                    continue
                self._connection = connection
                for question in self._waiting():
                    connection.send(question)
        finally:
            self._connecting = None

    def answered(self, number: int, problem: Problem | None, outcome: Any, payload: bytes = b"") -> None:
        """Give a problem, or an outcome, to its caller. It is dropped if the caller has left."""
        self._delays.failures = 0
        question = self._questions.pop(number, None)
        if question is None or question.answer.done():
            return
        if problem is None:
            question.answer.set_result((outcome, payload))
        else:
            question.answer.set_exception(problem)

    def lost(self, connection: _Connection) -> None:
        """Connect again, if callers wait."""
        if self._connection is connection:
            self._connection = None
            if self._waiting():
                self._connect()


class _Connection(asyncio.Protocol):
    """One connection to the recorder.

    Args:
        recorder: Whose it is.

    Attributes:
        lost: Set when it is closed.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.lost = asyncio.Event()
        self._recorder = recorder
        self._incoming = FrameBuffer(REPLY_BYTES)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._waiting: dict[int, _Question] = {}
        self._to_count: list[_Question] = []  # they are sent together when the event loop has done what is due
        self._counted: dict[int, Sequence[int]] = {}  # the questions of each request to count

    @staticmethod
    async def open(address: str, recorder: Recorder) -> _Connection:
        """Connect.

        Raises:
            OSError: Nobody listens, another user does, or too many connections wait.
        """
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            end.connect(f"\0{address}")
            if not is_own(end):
                raise PermissionError("another user listens at the recorder's address")
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: _Connection(recorder), sock=end)
        except BaseException:
            end.close()
            raise
        return connection

    def send(self, question: _Question) -> None:
        """Send a question, or keep it until the socket takes more."""
        if self._paused:
            self._waiting[question.number] = question
        elif isinstance(question.message, bytes):
            self._write(question.message, [question])
        else:
            if not self._to_count:
                asyncio.get_running_loop().call_soon(self._send_batches)
            self._to_count.append(question)

    def _send_batches(self) -> None:
        """Send the batches that were asked to be counted in this turn of the event loop."""
        questions, self._to_count = self._to_count, []
        together: list[_Question] = []
        nbytes = 0
        for question in questions:
            if question.answer.done():  # its caller left
                continue
            nbytes += len(cast("NewBatch", question.message).report)
            if together and nbytes > TOGETHER_BYTES:
                self._send_together(together)
                together, nbytes = [], len(cast("NewBatch", question.message).report)
            together.append(question)
        if together:
            self._send_together(together)

    def _send_together(self, questions: Sequence[_Question]) -> None:
        if self._paused:
            self._waiting |= {question.number: question for question in questions}
            return
        number = self._recorder.next_number()
        self._counted[number] = [question.number for question in questions]
        self._write(encode_batches(number, [cast("NewBatch", question.message) for question in questions]), questions)

    def _write(self, frame: bytes, questions: Sequence[_Question]) -> None:
        assert self._transport is not None
        if self._transport.is_closing():  # they are sent over the next connection
            return
        for question in questions:
            question.sent += 1
        self._transport.write(frame)

    def forget(self, question: _Question) -> None:
        """Do not send a question that waits: its caller left."""
        self._waiting.pop(question.number, None)

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no subclass

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        while self._waiting and not self._paused:
            number = next(iter(self._waiting))
            question = self._waiting.pop(number)
            if not question.answer.done():
                self.send(question)

    def data_received(self, data: bytes) -> None:
        self._incoming.feed(data)
        try:
            while (frame := self._incoming.take()) is not None:
                self._answered(*frame)
        except FrameError as error:
            log.error("the connection to the recorder is closed: %s", error)
            self.close()

    def _answered(self, head: dict[str, Any], payload: bytes) -> None:
        """Pass a reply on.

        Raises:
            FrameError: It is about other batches than those of its request.
        """
        outcome = head.get("ok")
        numbers = self._counted.pop(head["id"], None)
        if numbers is None:
            self._recorder.answered(head["id"], problem_of(head), outcome, payload)
        elif "problem" in head:
            for number in numbers:
                self._recorder.answered(number, problem_of(head), None)  # each caller gets an exception of its own
        elif isinstance(outcome, list) and len(outcome) == len(numbers):
            for number, each in zip(numbers, outcome, strict=True):
                self._recorder.answered(number, problem_of(each), each)
        else:
            raise FrameError(f"a reply about {len(numbers)} batches has another form")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._recorder.lost(self)


def _ends() -> Unavailable:
    return Unavailable("the service is shutting down", retry_after_s=1.0)
