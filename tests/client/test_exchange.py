"""The conversation with a service, held without one: no socket, no clock, no chance."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from lossd_client import calls, exchange
from lossd_client.addresses import Addresses
from lossd_client.calls import Body, Call, HttpResponse, Send, Stalled, Wait
from lossd_client.errors import (
    ConnectionFailed,
    InternalError,
    LossdError,
    NotFound,
    Problem,
    QueueFull,
    Unauthorized,
    Unavailable,
    UnreadableAnswer,
)

BASE, PATH = "http://lossd.test", "/v1/evaluate"
URL = BASE + PATH


class Clock:
    """A clock that only waiting moves, and chance that always draws the longest pause."""

    def __init__(self) -> None:
        self.now = 100.0

    def hold(
        self, call: Call, *script: HttpResponse | Exception, seconds_each: float = 0.0
    ) -> tuple[Any, list[float], list[float]]:
        """The outcome of a call, the pauses it made, and the time-outs it was sent with."""
        conversation = exchange.exchange(call)
        replies = iter(script)
        pauses: list[float] = []
        timeouts: list[float] = []
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Wait):
                    pauses.append(step.seconds)
                    self.now += step.seconds
                    step = conversation.send(None)
                    continue
                timeouts.append(step.timeout_s)
                self.now += seconds_each
                reply = next(replies)
                step = conversation.throw(reply) if isinstance(reply, Exception) else conversation.send(reply)
        except StopIteration as end:
            return end.value, pauses, timeouts
        except LossdError as error:
            return error, pauses, timeouts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(exchange.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(exchange.random, "uniform", lambda low, high: high)
    return clock


def call(retries: int = 3, timeout_s: float = 60.0) -> Call:
    return Call("POST", PATH, {}, timeout_s, retries, "r-1", Addresses([BASE], resolve=False), Body([b"body"]))


def answer(status: int = 200, document: Any = None, **headers: str) -> HttpResponse:
    named = httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    if document is not None:
        named.setdefault("content-type", "application/problem+json")
    return HttpResponse(status, named, bytearray(json.dumps(document).encode() if document is not None else b""))


REFUSED = httpx.ConnectError("[Errno 111] Connection refused")
OK = answer()


def test_the_first_good_answer_ends_it(clock: Clock) -> None:
    assert clock.hold(call(), OK) == (OK, [], [60.0])


@pytest.mark.parametrize(
    "failure",
    [
        answer(429),
        answer(503),
        REFUSED,
        httpx.ConnectTimeout("slow"),
        httpx.PoolTimeout("full"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("disconnected"),
        Stalled(15.0),
        *map(answer, (500, 502, 504, 520)),
        answer(502, {"type": "about:blank", "detail": "no replica"}),
    ],
    ids=str,
)
def test_what_may_pass_is_repeated_with_growing_pauses(failure: HttpResponse | Exception, clock: Clock) -> None:
    outcome, pauses, timeouts = clock.hold(call(), failure, failure, failure, OK)
    assert outcome is OK
    assert pauses == pytest.approx([0.1, 0.2, 0.4])
    assert timeouts == pytest.approx([60.0, 59.9, 59.7, 59.3])


@pytest.mark.parametrize(
    "failure",
    [
        *map(answer, (400, 401, 404, 413, 415, 422, 302)),
        *(answer(status, {"detail": "lossd says so"}) for status in (422, 500, 504, 507)),
        httpx.ReadTimeout("slow"),
    ],
    ids=str,
)
def test_what_will_not_pass_is_not_repeated(failure: HttpResponse | Exception, clock: Clock) -> None:
    outcome, pauses, _ = clock.hold(call(), failure, OK)
    assert isinstance(outcome, LossdError)
    assert pauses == []


def test_repetitions_are_counted(clock: Clock) -> None:
    outcome, pauses, _ = clock.hold(call(retries=2), *[REFUSED] * 5)
    assert isinstance(outcome, ConnectionFailed)
    assert len(pauses) == 2
    assert clock.hold(call(retries=0), answer(503), OK)[1] == []


def test_a_service_that_is_unavailable_is_asked_until_the_time_is_over(clock: Clock) -> None:
    starting = answer(503, {"type": "/problems/unavailable", "detail": "starting"}, retry_after="1")
    outcome, pauses, _ = clock.hold(call(retries=1), *[starting] * 20, OK)
    assert outcome is OK
    assert len(pauses) == 20
    assert min(pauses) >= 1.0
    assert max(pauses) <= 2.0
    begun = clock.now
    outcome, pauses, _ = clock.hold(call(retries=1), *[starting] * 60)
    assert type(outcome) is Unavailable
    assert 58 < clock.now - begun < 60


def test_what_a_service_was_unavailable_for_is_not_counted_as_a_repetition(clock: Clock) -> None:
    outcome, pauses, _ = clock.hold(call(retries=2), REFUSED, *[answer(503)] * 5, REFUSED, *[answer(503)] * 5, OK)
    assert outcome is OK
    assert len(pauses) == 12
    assert isinstance(clock.hold(call(retries=1), REFUSED, answer(503), REFUSED, OK)[0], ConnectionFailed)


def test_pauses_stop_growing(clock: Clock) -> None:
    pauses = clock.hold(call(retries=10, timeout_s=1000), *[REFUSED] * 10, OK)[1]
    assert pauses[-1] == exchange.LONGEST_PAUSE_S


def test_pauses_are_drawn_from_nothing_to_the_longest(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(exchange.random, "uniform", lambda low, high: drawn.append((low, high)) or 0.0)
    assert clock.hold(call(), REFUSED, answer(503, retry_after="2"), OK)[1] == [0.0, 2.0]
    assert drawn == [(0, 0.1), (0, 0.2)]


@pytest.mark.parametrize("seconds", ["3", "3.0"])
def test_retry_after_is_obeyed(seconds: str, clock: Clock) -> None:
    outcome, pauses, _ = clock.hold(call(), answer(429, retry_after=seconds), OK)
    assert outcome is OK
    assert pauses == pytest.approx([3.1])


def test_retry_after_may_be_a_date(clock: Clock) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    (pause,) = clock.hold(call(), answer(503, retry_after=date), OK)[1]
    assert 18 < pause < 20.2
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert clock.hold(call(), answer(503, retry_after=past), OK)[1] == pytest.approx([0.1])


@pytest.mark.parametrize("value", ["soon", "", "-5", "nan"])
def test_a_retry_after_without_meaning_is_passed_over(value: str, clock: Clock) -> None:
    assert clock.hold(call(), answer(503, retry_after=value), OK)[1] == pytest.approx([0.1])


@pytest.mark.parametrize("value", ["61", "inf", "1e400"])
def test_no_pause_outlasts_the_deadline(value: str, clock: Clock) -> None:
    outcome, pauses, _ = clock.hold(call(), answer(429, {"detail": "full"}, retry_after=value), OK)
    assert type(outcome) is QueueFull
    assert outcome.retry_after_s == float(value)
    assert pauses == []


def test_repetitions_share_one_deadline(clock: Clock) -> None:
    outcome, _, timeouts = clock.hold(call(retries=100, timeout_s=1.0), *[REFUSED] * 100, seconds_each=0.25)
    assert isinstance(outcome, ConnectionFailed)
    assert timeouts == pytest.approx([1.0, 0.65, 0.2])


def test_the_service_is_told_the_time_that_is_left() -> None:
    post = call()
    request = Send(post, post.addresses.choose(0.0), 0.25).request()
    assert request.headers == {"host": "lossd.test", "content-length": "4", "x-request-timeout-ms": "250"}
    assert request.extensions["timeout"] == httpx.Timeout(1.25, connect=0.25, pool=0.25).as_dict()


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (REFUSED, f"cannot connect to {URL} ([Errno 111] Connection refused); is the service running there? "),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "what runs there does not speak TLS"),
        (httpx.ReadTimeout(""), f"{URL} did not answer within 60 s; raise timeout_s"),
        (httpx.PoolTimeout(""), f"no connection to {URL} became free within 60 s"),
        (httpx.RemoteProtocolError("bye"), f"the connection to {URL} broke before the answer was complete (bye)"),
        (httpx.ReadError(""), "was complete (ReadError)"),
    ],
)
def test_no_answer_says_where_and_what_to_do(error: Exception, detail: str, clock: Clock) -> None:
    outcome = clock.hold(call(retries=0), error)[0]
    assert isinstance(outcome, ConnectionFailed)
    assert detail in outcome.detail
    assert outcome.request_id == "r-1"
    assert outcome.__cause__ is error


def test_a_problem_is_raised_as_its_class(clock: Clock) -> None:
    document = {"type": "/problems/unauthorized", "status": 401, "detail": "no key", "request_id": "r-9"}
    outcome = clock.hold(call(), answer(401, document))[0]
    assert type(outcome) is Unauthorized
    assert str(outcome) == "no key (request r-9)"


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (502, InternalError), (503, Unavailable), (418, Problem)]
)
@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("text/html", b"<h1>\xffOops</h1>\n "),
        ("application/json", b"<h1>\xffOops</h1>"),
        ("application/json", b'["<h1>"]'),
        ("", b"<h1>"),
    ],
)
def test_an_error_that_is_not_lossds_keeps_its_status_and_words(
    status: int, kind: type[Problem], media_type: str, body: bytes, clock: Clock
) -> None:
    reply = HttpResponse(status, httpx.Headers({"content-type": media_type}), bytearray(body))
    outcome = clock.hold(call(retries=0), reply)[0]
    assert type(outcome) is kind
    assert outcome.status == status
    assert f"{URL} answers with status {status} but no problem document; is it lossd? It says: " in outcome.detail
    assert "<h1>" in outcome.detail
    assert outcome.request_id == "r-1"


def test_a_redirect_says_where_to(clock: Clock) -> None:
    outcome = clock.hold(call(), answer(308, location="https://lossd.test/v1/evaluate"))[0]
    assert type(outcome) is UnreadableAnswer
    assert "status 308 to https://lossd.test/v1/evaluate; connect to that address instead" in outcome.detail


# Bodies


def test_small_pieces_are_put_together_and_large_ones_cut_up() -> None:
    large = bytes(range(256)) * 2048
    pieces = [b"head", memoryview(b"small"), memoryview(large), b"", b"tail", memoryview(b"end")]
    body = Body(pieces)
    chunks = list(body)
    assert b"".join(chunks) == b"headsmall" + large + b"tailend"
    assert [len(chunk) for chunk in chunks] == [9, *[calls.CHUNK_BYTES] * 4, 7]
    assert body.nbytes == len(b"".join(chunks))
    assert list(body) == chunks, "it can be sent again"
    assert list(Body([])) == []


class Response:
    """What a received needs of one."""

    def __init__(self, **headers: str) -> None:
        self.status_code = 200
        self.headers = httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    "headers",
    [{"content_length": "6"}, {}, {"content_length": "3", "content_encoding": "gzip"}, {"content_length": "x"}],
)
def test_an_answer_is_gathered_whatever_was_announced(headers: dict[str, str]) -> None:
    received = calls.ReceivedResponse(Response(**headers))  # type: ignore[arg-type]
    for chunk in (b"ab", b"", b"cde", b"f"):
        received.add(chunk)
    assert received.response().body == bytearray(b"abcdef")


def test_headers_that_come_twice_are_one() -> None:
    headers = [(b"Server-Timing", b"parse;dur=1"), (b"X-ID", b"\xfc"), (b"server-timing", b"cdn;dur=2")]
    answer = calls.ReceivedResponse(httpx.Response(200, headers=headers)).response()
    assert answer.headers == {"server-timing": "parse;dur=1, cdn;dur=2", "x-id": "ü"}


def test_both_kinds_of_client_send_the_same_body() -> None:
    async def gather(body: Body) -> list[bytes]:
        return [chunk async for chunk in body]

    body = Body([b"head", memoryview(bytes(calls.CHUNK_BYTES + 1))])
    assert asyncio.run(gather(body)) == list(body)


def test_an_announced_answer_is_gathered_in_place() -> None:
    received = calls.ReceivedResponse(Response(content_length="6"))  # type: ignore[arg-type]
    buffer = received._buffer
    received.add(b"abc")
    received.add(b"def")
    assert received.response().body is buffer
