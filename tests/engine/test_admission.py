"""How much is taken in: pure counting, no engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd.engine.admission import Budget
from lossd_client.errors import QueueFull, TooLarge


def fill(budget: Budget, client: str, nbytes: int) -> int:
    """How many requests of that size are admitted until one is refused."""
    for count in range(10_000):
        try:
            budget.admit(client, nbytes)
        except QueueFull:
            return count
    raise AssertionError("nothing was refused")


def test_bytes_and_requests_are_limited():
    assert fill(Budget(1000, 100), "", 100) == 10
    assert fill(Budget(1000, 7), "", 100) == 7


def test_a_greedy_client_is_refused_while_a_modest_one_is_admitted():
    budget = Budget(9000, 1000)
    assert fill(budget, "greedy", 100) == 45
    assert fill(budget, "modest", 100) == 23
    budget = Budget(1 << 30, 90)
    assert fill(budget, "greedy", 100) == 45
    assert fill(budget, "modest", 100) == 23


def test_clients_that_ask_for_all_they_can_get_come_to_equal_shares():
    budget = Budget(9000, 1000)
    held = {"first": fill(budget, "first", 100), "second": 0}
    for _ in range(60):  # what is released, both ask for again
        budget.release("first", 100)
        held["first"] -= 1
        for client in ("second", "first"):
            held[client] += fill(budget, client, 100)
    assert held["first"] == pytest.approx(30, abs=1)
    assert held["second"] == pytest.approx(30, abs=1)


def test_an_arriving_body_counts_for_its_client():
    budget = Budget(9000, 1000)
    for _ in range(45):
        budget.gather("greedy", 100)
    with pytest.raises(QueueFull, match="a key may hold no more than it leaves free: yours holds 4500 bytes"):
        budget.gather("greedy", 100)
    assert budget.gathered_bytes == 4500
    with pytest.raises(QueueFull, match="yours holds 0 requests and 4500 bytes"):
        budget.admit("greedy", 100)
    budget.gather("modest", 1200)
    budget.gather("modest", -1200)
    assert fill(budget, "modest", 100) == 23
    budget.gather("greedy", -4500)
    assert budget.gathered_bytes == 0
    budget.admit("greedy", 100)


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 400), st.booleans()), max_size=60))
def test_a_refused_request_holds_nothing(steps):
    budget, held = Budget(1000, 10), []
    for client, nbytes, leaves in steps:
        if leaves and held:
            budget.release(*held.pop())
        else:
            try:
                budget.admit(client, nbytes)
            except QueueFull:
                continue
            held.append((client, nbytes))
        assert budget.held.requests == len(held) <= 10
        assert budget.held.nbytes == sum(n for _, n in held) <= 1000
    for client, nbytes in held:
        budget.release(client, nbytes)
    assert (budget.held.requests, budget.held.nbytes) == (0, 0)


@pytest.mark.parametrize("client", ["", "a"])
@pytest.mark.parametrize("workers", [1, 3])
def test_after_the_time_it_names_the_request_is_taken(client, workers):
    """Simulated: workers that take 0.5 s for each 100 bytes, and a client that comes back when it was told to."""
    budget = Budget(2000, 1000)
    now, step_s = 0.0, 0.5 / workers
    waiting = fill(budget, client, 100)
    for _ in range(5):  # learn
        now += step_s
        budget.observe(100, 1, now - 0.5, now)
        budget.release(client, 100)
        budget.admit(client, 100)
    with pytest.raises(QueueFull) as refused:
        budget.admit(client, 300)
    told_s = refused.value.retry_after_s
    end, missing = now + told_s, 0
    while now + step_s <= end + 1e-9 and waiting:
        now += step_s
        budget.release(client, 100)
        waiting -= 1
        missing += 1
    budget.admit(client, 300)
    assert missing <= 4, "it must not name much more time than it takes"


def test_a_pause_between_batches_does_not_count_as_work():
    budget = Budget(1000, 100)
    for second in (10.0, 20.0, 90.0):
        budget.observe(100, 1, second, second + 1.0)
    assert budget.wait_s(500, 1) == pytest.approx(5.0)
    assert budget.wait_s(0, 3) == pytest.approx(3.0)


def test_a_refusal_names_a_time_before_any_batch_was_measured():
    budget = Budget(100, 1)
    budget.admit("", 10)
    with pytest.raises(QueueFull, match="queue_requests") as refused:
        budget.admit("", 10)
    assert refused.value.retry_after_s > 0


@pytest.mark.parametrize(("client", "most"), [("", 1000), ("a", 500)])
def test_a_request_that_can_never_fit_is_too_large(client, most):
    budget = Budget(1000, 10)
    with pytest.raises(TooLarge, match="queue_bytes"):
        budget.admit(client, most + 1)
    budget.admit(client, most)
    with pytest.raises(QueueFull):
        budget.admit(client, most)


def test_the_text_of_a_computed_answer_is_counted_and_never_refused():
    budget = Budget(9000, 1000)
    assert fill(budget, "", 100) == 90
    budget.add("", 400)
    assert budget.gathered_bytes == 400
    for _ in range(4):
        budget.release("", 100)
    with pytest.raises(QueueFull):
        budget.admit("", 100)  # the text holds what was released
    budget.add("", -400)
    assert fill(budget, "", 100) == 4
