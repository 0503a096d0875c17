"""The choice of an address, held without a socket and by a clock of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest

from lossd_client import AsyncLossClient, LossClient, addresses, exchange
from lossd_client.addresses import Address, Addresses, AttemptOutcome, Name, split_urls
from lossd_client.calls import Call, HttpResponse, Resolve, Send, Stalled, Wait
from lossd_client.errors import ConnectionFailed, QueueFull, Unavailable

A, B, C = "http://a:8000", "http://b:8000", "http://c:8000"
NAME = "https://lossd.test:8443/prefix"
REFUSED = httpx.ConnectError("refused")
BROKEN = httpx.ReadError("reset")


def group_of(*urls: str, resolve: bool = False) -> Addresses:
    return Addresses(urls, resolve=resolve)


def by_url(group: Addresses) -> dict[str, Address]:
    return {address.url: address for name in group._names for address in name.addresses}


def fail(group: Addresses, url: str, now: float, outcome: AttemptOutcome = AttemptOutcome.FAILED) -> None:
    """One attempt at an address that fails."""
    others = [address for key, address in by_url(group).items() if key != url]
    chosen = group.choose(now, others)
    assert chosen.url == url
    group.release(chosen, outcome, now)


def resolve(group: Addresses, now: float, *records: str) -> Name:
    """The name that is due, and was resolved."""
    name = group.name_to_resolve(now)
    assert name is not None
    group.resolved(name, records, now)
    return name


# What is chosen


def test_the_one_with_fewest_in_flight_is_chosen() -> None:
    group = group_of(A, B, C)
    taken = [group.choose(0.0) for _ in range(6)]
    assert set(Counter(address.url for address in taken).values()) == {2}
    group.release(taken[3], AttemptOutcome.ANSWERED, 0.0)
    assert group.choose(0.0) is taken[3]


def test_one_call_after_the_other_visits_all_in_turn() -> None:
    group = group_of(A, B, C)
    seen = []
    for _ in range(9):
        seen.append(group.choose(0.0))
        group.release(seen[-1], AttemptOutcome.ANSWERED, 0.0)
    assert seen[:3] == seen[3:6] == seen[6:]
    assert {address.url for address in seen} == {A, B, C}


def test_clients_that_start_together_begin_with_different_addresses() -> None:
    assert {group_of(A, B, C).choose(0.0).url for _ in range(100)} == {A, B, C}


def test_one_that_failed_rests_a_second_whatever_is_in_flight_elsewhere() -> None:
    group = group_of(A, B)
    fail(group, A, 0.0)
    assert [group.choose(0.9).url for _ in range(20)] == [B] * 20
    assert group.choose(1.0).url == A


def test_one_attempt_finds_out_whether_it_is_back() -> None:
    group = group_of(A, B)
    fail(group, A, 0.0)
    assert group.choose(0.5).url == B
    assert group.choose(1.5).url == A
    assert [group.choose(1.6).url for _ in range(5)] == [B] * 5, "the first one has not ended"
    again = group.choose(2.6)
    assert again.url == A, "and may hang"
    group.release(again, AttemptOutcome.ANSWERED, 2.7)
    assert [group.choose(2.8).url for _ in range(3)] == [A] * 3


def test_if_all_rest_the_one_whose_rest_ends_first_is_chosen() -> None:
    group = group_of(A, B, C)
    for now, url in enumerate((B, C, A)):
        fail(group, url, now / 10)
    assert [group.choose(0.5).url for _ in range(3)] == [B, C, A]


def test_what_says_nothing_of_an_address_gives_it_no_rest() -> None:
    group = group_of(A, B)
    fail(group, A, 0.0, AttemptOutcome.UNKNOWN)
    assert {group.choose(0.0).url, group.choose(0.0).url} == {A, B}


def test_rests_double_while_an_address_is_silent() -> None:
    group = group_of(A, B)
    address, now = by_url(group)[A], 0.0
    for rest_s in (1.0, 2.0, 4.0, 8.0, 16.0, 16.0):
        fail(group, A, now, AttemptOutcome.SILENT)
        assert address.rests_until == now + rest_s
        now = address.rests_until
    fail(group, A, now)
    assert address.rests_until == now + 1.0, "what refuses costs no time"
    fail(group, A, now, AttemptOutcome.SILENT)
    assert address.rests_until == now + 1.0
    fail(group, A, now, AttemptOutcome.ANSWERED)
    assert address.rests_until == 0.0


def test_a_single_address_is_chosen_whatever_it_did() -> None:
    group = group_of(A)
    fail(group, A, 0.0)
    assert group.choose(0.0).url == A
    assert not group.another(0.0, [group.choose(0.0)])


def test_there_is_another_if_one_is_awake_or_all_rest() -> None:
    group = group_of(A, B)
    a, b = by_url(group)[A], by_url(group)[B]
    assert group.another(0.0, [a])
    fail(group, B, 0.0)
    assert not group.another(0.5, [a]), "b rests and a works"
    fail(group, A, 0.5)
    assert group.another(0.6, [a]), "both rest"
    assert not group.another(0.6, [a, b])


# Names


def test_a_name_is_as_many_addresses_as_it_has_records() -> None:
    group = group_of(NAME, resolve=True)
    name = group.name_to_resolve(0.0)
    assert name is not None
    assert (name.host, name.port) == ("lossd.test", 8443)
    assert group.name_to_resolve(0.0) is name, "nothing is known that another caller could go on with"
    group.resolved(name, ["10.0.0.1", "10.0.0.1", "fd00::1"], 0.0)
    found = by_url(group)
    assert set(found) == {"https://10.0.0.1:8443/prefix", "https://[fd00::1]:8443/prefix"}
    assert {address.name for address in found.values()} == {NAME}
    assert {str(address) for address in found.values()} == {f"{NAME} at 10.0.0.1", f"{NAME} at fd00::1"}


@pytest.mark.parametrize("records", [[], ["10.0.0.1"], ["10.0.0.1"] * 2])
def test_a_name_of_one_record_is_called_by_its_name(records: list[str]) -> None:
    group = group_of(NAME, resolve=True)
    name = group.name_to_resolve(0.0)
    assert name is not None
    group.resolved(name, records, 0.0)
    assert by_url(group)[NAME].name is None
    assert len(group) == 1


def test_names_are_resolved_again_and_what_stays_keeps_its_state() -> None:
    group = group_of(NAME, A, resolve=True)
    name = resolve(group, 0.0, "10.0.0.1", "10.0.0.2")
    resolve(group, 0.0)
    assert group.name_to_resolve(29.9) is None
    before = by_url(group)
    assert group.name_to_resolve(30.0) is name
    assert group.name_to_resolve(30.0) is not name, "another caller goes on with what is known"
    group.resolved(name, ["10.0.0.2", "10.0.0.3"], 30.1)
    after = by_url(group)
    assert set(after) == {"https://10.0.0.2:8443/prefix", "https://10.0.0.3:8443/prefix", A}
    assert after["https://10.0.0.2:8443/prefix"] is before["https://10.0.0.2:8443/prefix"]
    group.resolved(name, [], 60.2)
    assert by_url(group) == after, "a name server that is down takes nothing away"
    assert len(group) == 3


def test_a_failure_makes_its_name_due_but_not_more_often_than_each_second() -> None:
    group = group_of(NAME, resolve=True)
    name = resolve(group, 10.0)
    fail(group, NAME, 10.2)
    assert group.name_to_resolve(10.9) is None
    assert group.name_to_resolve(11.0) is name
    assert group.name_to_resolve(12.0) is None
    fail(group, NAME, 20.0)
    assert group.name_to_resolve(20.0) is name


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "a.localhost"])
def test_what_can_only_be_one_address_is_not_resolved(host: str) -> None:
    assert group_of(f"http://{host}:8000", resolve=True).name_to_resolve(1e9) is None
    assert group_of(NAME).name_to_resolve(1e9) is None


# URLs


@pytest.mark.parametrize(
    ("argument", "urls"),
    [
        ("http://a:8000/", ["http://a:8000"]),
        ("http://a:8000,http://b:8000/x/, http://a:8000", ["http://a:8000", "http://b:8000/x"]),
        (("http://a", "HTTP://b"), ["http://a", "HTTP://b"]),
    ],
)
def test_urls_are_one_text_or_many(argument: Any, urls: list[str]) -> None:
    assert split_urls(argument) == urls


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ([], "at least one address"),
        ("", "'' is not an address"),
        ("http://a,", "'' is not an address"),
        (
            "http://a:8000,b:8000",
            "'b:8000' is not an address; it must start with http:// or https://, as in http://b:8000",
        ),
        ("http://a,https://b", "the addresses http://a, https://b differ in their scheme"),
        (["http://a", "http://b:99999"], "with a port from 1 to 65535"),
        ("unix://run/lossd.sock", "give its whole path, as in unix:///run/lossd.sock"),
        ("unix:///run/a,unix:///run/b", "is a Unix socket, which can only be a service's one address"),
        ("unix:///run/a,http://b", "differ in their scheme"),
    ],
)
def test_urls_that_cannot_be_meant_are_refused_at_once(argument: Any, message: str) -> None:
    for kind in (LossClient, AsyncLossClient):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            kind(argument)


@pytest.mark.parametrize("stall_s", [0.0, -1.0, float("nan")])
def test_a_stall_lasts_some_time(stall_s: float) -> None:
    with pytest.raises(ValueError, match="stall_s is"):
        LossClient(A, stall_s=stall_s)


# Calls


class Clock:
    """A clock that only waiting moves; the services answer by their address, in their order."""

    def __init__(self, **script: list[HttpResponse | Exception]) -> None:
        self.now = 100.0
        self.script = {f"http://{name}:8000": replies for name, replies in script.items()}
        self.attempts: list[str] = []
        self.pauses: list[float] = []

    def hold(self, call: Call) -> Any:
        conversation = exchange.exchange(call)
        step: Any = next(conversation)
        try:
            while True:
                if isinstance(step, Wait):
                    self.pauses.append(step.seconds)
                    self.now += step.seconds
                    step = conversation.send(None)
                    continue
                assert isinstance(step, Send)
                self.attempts.append(step.address.url.removeprefix("http://")[0])
                reply = self.script[step.address.url].pop(0)
                step = conversation.throw(reply) if isinstance(reply, Exception) else conversation.send(reply)
        except StopIteration as end:
            return end.value


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Holds a call with addresses in the order of their names."""
    monkeypatch.setattr(addresses.random, "shuffle", lambda items: None)
    monkeypatch.setattr(exchange.random, "uniform", lambda low, high: high)

    def hold(clock: Clock, retries: int = 3, timeout_s: float = 60.0) -> Any:
        monkeypatch.setattr(exchange.time, "monotonic", lambda: clock.now)
        group = group_of(*clock.script)
        try:
            return clock.hold(Call("POST", "/v1/evaluate", {}, timeout_s, retries, "r-1", group))
        except Exception as error:
            return error
        finally:
            assert all(address.in_flight == 0 for address in group._all)

    return hold


def answer(status: int = 200, retry_after: str | None = None) -> HttpResponse:
    return HttpResponse(status, {} if retry_after is None else {"retry-after": retry_after}, bytearray())


OK = answer()


@pytest.mark.parametrize(
    "failure", [REFUSED, BROKEN, Stalled(15.0), httpx.ConnectTimeout("slow"), *map(answer, (429, 500, 502, 503, 504))]
)
def test_the_next_attempt_is_at_another_address_at_once(failure: Any, held: Any) -> None:
    clock = Clock(a=[failure], b=[OK])
    assert held(clock) is OK
    assert (clock.attempts, clock.pauses) == (["a", "b"], [])


def test_refusals_cost_a_retry_when_all_have_refused(held: Any) -> None:
    clock = Clock(a=[REFUSED] * 3, b=[REFUSED] * 3, c=[REFUSED] * 3)
    failure = held(clock, retries=2)
    assert isinstance(failure, ConnectionFailed)
    assert "".join(clock.attempts) == "abcabcabc"
    assert clock.pauses == pytest.approx([0.1, 0.2])


def test_what_may_have_been_carried_out_costs_a_retry_each_time(held: Any) -> None:
    clock = Clock(a=[BROKEN] * 5, b=[BROKEN] * 5, c=[BROKEN] * 5)
    assert isinstance(held(clock, retries=3), ConnectionFailed)
    assert "".join(clock.attempts) == "abca", "a request that ends services reaches no more of them than before"


def test_without_retries_there_is_one_attempt(held: Any) -> None:
    clock = Clock(a=[REFUSED], b=[OK])
    assert isinstance(held(clock, retries=0), ConnectionFailed)
    assert clock.attempts == ["a"]


def test_the_client_waits_for_the_first_that_expects_it(held: Any) -> None:
    clock = Clock(a=[answer(429, "5"), OK], b=[answer(429, "2"), OK])
    assert held(clock) is OK
    assert clock.pauses == pytest.approx([2.1])


def test_a_full_queue_gives_no_rest_to_others(held: Any) -> None:
    clock = Clock(a=[answer(429, "1"), OK], b=[REFUSED])
    assert held(clock) is OK
    assert clock.attempts == ["a", "b", "a"], "b rests, a does not"


def test_services_that_start_are_asked_until_the_time_is_over(held: Any) -> None:
    clock = Clock(a=[answer(503)] * 200, b=[REFUSED] * 200)
    failure = held(clock, retries=1, timeout_s=30.0)
    assert isinstance(failure, (Unavailable, ConnectionFailed))
    assert 128 < clock.now < 130


def test_the_error_names_what_happened_at_each(held: Any) -> None:
    failure = held(Clock(a=[REFUSED] * 2, b=[answer(429)] * 2), retries=1)
    assert isinstance(failure, QueueFull)
    assert "cannot connect to http://a:8000/v1/evaluate (refused)" in str(failure)
    assert "http://b:8000 answers: " in str(failure)


def test_attempts_that_are_abandoned_are_no_longer_in_flight() -> None:
    group = group_of(A, B)
    conversation = exchange.exchange(Call("GET", "/", {}, 1.0, 0, "r-1", group))
    next(conversation)
    assert sum(address.in_flight for address in group._all) == 1
    conversation.close()
    assert sum(address.in_flight for address in group._all) == 0


def test_a_record_is_reached_under_its_name() -> None:
    group = group_of(NAME, resolve=True)
    conversation = exchange.exchange(Call("GET", "/v1/losses", {"accept": "*/*"}, 60.0, 0, "r-1", group, stall_s=15.0))
    step = next(conversation)
    assert isinstance(step, Resolve)
    step = conversation.send(["10.0.0.1", "10.0.0.2"])
    assert isinstance(step, Send)
    request = step.request()
    assert request.url in ("https://10.0.0.1:8443/prefix/v1/losses", "https://10.0.0.2:8443/prefix/v1/losses")
    assert request.headers["host"] == "lossd.test:8443"
    assert request.extensions["sni_hostname"] == "lossd.test"
    assert request.extensions["timeout"]["connect"] == 2.0
    probe = step.probe().request()
    assert probe.url.path == "/prefix/health/live"
    assert probe.url.host == request.url.host
    assert probe.headers["host"] == "lossd.test:8443"
    with pytest.raises(ConnectionFailed, match=r"cannot connect to https://lossd.test:8443/prefix/v1/losses at 10\."):
        conversation.throw(REFUSED)


def test_an_attempt_leaves_time_for_another_address() -> None:
    call = Call("GET", "/", {}, 9.0, 0, "r-1", group_of(A, B), stall_s=15.0)
    assert Send(call, by_url(call.addresses)[A], 9.0).quiet_s == 3.0
    alone = Call("GET", "/", {}, 9.0, 0, "r-1", group_of(A), stall_s=15.0)
    assert Send(alone, by_url(alone.addresses)[A], 9.0).quiet_s == 15.0


def test_a_unix_socket_and_a_client_of_one_s_own_exclude_each_other() -> None:
    with httpx.Client() as http, pytest.raises(ValueError, match=r"httpx\.HTTPTransport\(uds='/run/lossd.sock'\)"):
        LossClient("unix:///run/lossd.sock", http=http)
