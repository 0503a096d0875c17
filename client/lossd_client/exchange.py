"""One call: when it is retried, and how it ends. No I/O: both clients share this module.

A call is a conversation that returns the successful response (:mod:`lossd_client.calls`).
:mod:`lossd_client.addresses` chooses where each attempt goes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx

from lossd_client.addresses import Address, Addresses, AttemptOutcome
from lossd_client.calls import Call, Conversation, HttpResponse, Resolve, Send, Stalled, Wait
from lossd_client.errors import (
    ConnectionFailed,
    LossdError,
    MalformedBody,
    NotFound,
    Problem,
    QueueFull,
    Unavailable,
    UnreadableAnswer,
)
from lossd_client.wire import json
from lossd_client.wire.quoting import digits

__all__ = ["ask_each", "attempt", "exchange", "judge", "may_pass"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 8.0
LONGEST_PAUSE_UNAVAILABLE_S = 1.0

BAD_GATEWAY = 502
PROBLEM = "application/problem+json"


class FailedAttempt(NamedTuple):
    """What a failed attempt means.

    Attributes:
        outcome: What it says about the address.
        repeat: Whether the call is sent again.
        refused: Whether the request was surely not carried out.
    """

    outcome: AttemptOutcome
    repeat: bool = False
    refused: bool = False


def exchange(call: Call) -> Conversation[HttpResponse]:
    """Return the successful response to a call, after as many retries as it may have.

    Evaluation is pure, and the requests about runs are idempotent. So a request can be sent again even if the service
    has carried it out; :func:`judge` says after which failures. With several addresses the next attempt goes to another
    one at once. It costs no retry if the failed one refused the request. When all were tried, the client waits, no less
    than Retry-After says. Pauses grow and are random, so that clients that failed together do not retry together. A
    starting service answers 503, so 503 is retried until the deadline; other failures are retried ``call.retries``
    times. A DELETE that is sent again and finds nothing has succeeded: the answer to the first one was lost.

    Raises:
        LossdError: The error of the last attempt; with several addresses, it names what happened at each.
    """
    deadline = time.monotonic() + call.timeout_s
    pauses = counted_retries = 0
    failures: dict[Address, LossdError] = {}
    tried: dict[Address, LossdError] = {}  # since the last pause
    while True:
        address = yield from _chosen(call.addresses, tried)
        try:
            return (yield from attempt(call, address, deadline - time.monotonic()))
        except LossdError as failure:
            if failures and call.method == "DELETE" and isinstance(failure, NotFound):
                return HttpResponse(204, {}, bytearray())
            failures[address] = tried[address] = failure
            verdict, now = judge(failure), time.monotonic()
            another = verdict.repeat and call.addresses.another(now, tried)
            unavailable = any(_is_unavailable(each) for each in tried.values())
            pause_s = 0.0 if another else _pause_s(pauses, tried.values(), unavailable=unavailable)
            costs = not verdict.refused or not (another or unavailable)
            exhausted = call.retries == 0 or (costs and counted_retries == call.retries)
            if not verdict.repeat or exhausted or now + pause_s >= deadline:
                _name_all(failure, failures)
                raise
        counted_retries += costs
        if not another:
            yield Wait(pause_s)
            pauses += 1
            tried.clear()


def ask_each(call: Call, timeout_s: float) -> Conversation[HttpResponse]:
    """Return the successful response to a call that is sent once to each address until one succeeds.

    Raises:
        LossdError: The error of the last attempt.
    """
    deadline = time.monotonic() + timeout_s
    tried: dict[Address, LossdError] = {}
    while True:
        address = yield from _chosen(call.addresses, tried)
        try:
            return (yield from attempt(call, address, min(call.timeout_s, deadline - time.monotonic())))
        except LossdError as failure:
            tried[address] = failure
            if len(tried) >= len(call.addresses) or not may_pass(failure) or time.monotonic() >= deadline:
                _name_all(failure, tried)
                raise


def attempt(call: Call, address: Address, timeout_s: float) -> Conversation[HttpResponse]:
    """Return the successful response to a call that is sent once, to an address that was chosen.

    Raises:
        LossdError: The call failed.
    """
    outcome = AttemptOutcome.UNKNOWN
    try:
        try:
            response = yield Send(call, address, max(timeout_s, 0.001))
        except httpx.RequestError as error:
            raise _connection_failed(call, address, error) from error
        assert isinstance(response, HttpResponse)
        if not 200 <= response.status < 300:
            raise _failure(call, address, response)
        outcome = AttemptOutcome.ANSWERED
        return response
    except LossdError as failure:
        outcome = judge(failure).outcome
        raise
    finally:
        if outcome is not AttemptOutcome.ANSWERED or call.addresses.several:
            call.addresses.release(address, outcome, time.monotonic())


def judge(failure: LossdError) -> FailedAttempt:
    """Return what a failed attempt means.

    A call is repeated after a connection that failed, broke or stalled, after 429, 502 and 503, and after any status
    from 500 on without a problem document, because a proxy answers so. All else is lossd's own answer, and final.
    """
    if isinstance(failure, Problem):
        if failure.status == QueueFull.status:
            return FailedAttempt(AttemptOutcome.ANSWERED, repeat=True, refused=True)
        if failure.status == Unavailable.status:
            return FailedAttempt(AttemptOutcome.FAILED, repeat=True, refused=True)
        if failure.status == BAD_GATEWAY or (failure.status >= 500 and isinstance(failure.__cause__, UnreadableAnswer)):
            return FailedAttempt(AttemptOutcome.FAILED, repeat=True)
        return FailedAttempt(AttemptOutcome.ANSWERED)
    match failure.__cause__:
        case Stalled():
            return FailedAttempt(AttemptOutcome.SILENT, repeat=True)
        case httpx.ConnectTimeout():
            return FailedAttempt(AttemptOutcome.SILENT, repeat=True, refused=True)
        case httpx.ConnectError():
            return FailedAttempt(AttemptOutcome.FAILED, repeat=True, refused=True)
        case httpx.PoolTimeout():
            return FailedAttempt(AttemptOutcome.UNKNOWN, repeat=True)
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return FailedAttempt(AttemptOutcome.FAILED, repeat=True)
        case httpx.TimeoutException():
            return FailedAttempt(AttemptOutcome.FAILED)
        case _:
            return FailedAttempt(AttemptOutcome.UNKNOWN)


def may_pass(failure: LossdError) -> bool:
    """Return whether a service that is not ready may fail so."""
    return isinstance(failure, ConnectionFailed) or judge(failure).repeat


def _chosen(addresses: Addresses, tried: Collection[Address]) -> Conversation[Address]:
    """Return the address to try next, after a name whose records are due was resolved."""
    now = time.monotonic()
    if (name := addresses.name_to_resolve(now)) is not None:
        records = yield Resolve(name)
        assert isinstance(records, list)
        addresses.resolved(name, records, now)
    return addresses.choose(now, tried)


def _is_unavailable(failure: LossdError) -> bool:
    return isinstance(failure, Problem) and failure.status == Unavailable.status


def _pause_s(pauses: int, failures: Collection[LossdError], *, unavailable: bool) -> float:
    """Return how long to wait before all addresses are tried again: until the first of them expects a request."""
    longest_s = LONGEST_PAUSE_UNAVAILABLE_S if unavailable else LONGEST_PAUSE_S
    asked_for = [
        each.retry_after_s for each in failures if isinstance(each, Problem) and each.retry_after_s is not None
    ]
    return random.uniform(0, min(longest_s, FIRST_PAUSE_S * 2 ** min(pauses, 10))) + min(asked_for, default=0.0)


def _name_all(failure: LossdError, failures: Mapping[Address, LossdError]) -> None:
    """Let an error tell what happened at each address, if several were tried."""
    if len(failures) > 1:
        words = (
            each.detail if isinstance(each, ConnectionFailed) else f"{address} answers: {each.detail}"
            for address, each in failures.items()
        )
        failure.detail = "; ".join(words)


def _connection_failed(call: Call, address: Address, error: httpx.RequestError) -> ConnectionFailed:
    reason = str(error) or type(error).__name__
    at = f" at {httpx.URL(address.url).host}" if address.name else ""
    url = f"{address.caller_url}{call.path}{at}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        remedy = "is the service running there? Start one with: lossd serve"
        if "WRONG_VERSION_NUMBER" in reason or "record layer" in reason:
            remedy = "what runs there does not speak TLS: is its address http://?"
        detail = f"cannot connect to {url} ({reason}); {remedy}"
    elif isinstance(error, httpx.PoolTimeout):
        detail = f"no connection to {url} became free within {digits(call.timeout_s)} s; send fewer at once"
    elif isinstance(error, httpx.TimeoutException):
        detail = f"{url} did not answer within {digits(call.timeout_s)} s; raise timeout_s"
    else:
        detail = f"the connection to {url} broke before the answer was complete ({reason}); the log may say why"
    return ConnectionFailed(detail, request_id=call.request_id)


def _failure(call: Call, address: Address, response: HttpResponse) -> LossdError:
    """Return the error of an answer; its cause is an :class:`UnreadableAnswer` if it is no problem document."""
    request_id = response.headers.get("x-request-id") or call.request_id
    url = f"{address.caller_url}{call.path}"
    if response.status < 400:
        location = response.headers.get("location")
        remedy = f" to {location}; connect to that address instead" if location else ""
        return UnreadableAnswer(f"{url} answers with status {response.status}{remedy}", request_id=request_id)
    document: Any = None
    if response.media_type in (PROBLEM, json.MEDIA_TYPE):
        with suppress(MalformedBody):
            document = json.loads(response.body)
    documented = response.media_type == PROBLEM and isinstance(document, dict)
    text = " ".join(response.body[:200].decode("utf-8", "replace").split())
    detail = f"{url} answers with status {response.status} but no problem document; is it lossd? It says: {text!r}"
    failure = Problem.from_json(
        document if isinstance(document, dict) else {"detail": detail},
        status=response.status,
        request_id=request_id,
        retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
    )
    if not documented:
        failure.__cause__ = UnreadableAnswer(detail, request_id=request_id)
    return failure


def _retry_after_s(value: str) -> float | None:
    """Return Retry-After, a number of seconds or a date, as seconds from now."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return None
