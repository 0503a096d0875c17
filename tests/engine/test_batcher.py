"""The batcher is pure policy: all but one of these tests have no clock, no process and no event loop running."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossd.arrangement import Arrangement, arrange, arrange_shared
from lossd.configuration.settings import Settings
from lossd.cost import Cost
from lossd.engine.batcher import REQUEST_NS, Batch, Batcher, Ticket
from lossd.engine.inline import InlineEngine
from lossd.engine.slab import Lease, SlabPool
from lossd.job import Job, Recipe
from lossd.request.planning import make_plan


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def mse_job(rows: int, width: int = 3) -> Job:
    plan = make_plan({"loss": {"name": "mse"}, "outputs": ["loss", "gradient"]})
    return plan.job(dict.fromkeys(("prediction", "target"), ("float32", (rows, width))))


def shared(recipe: Recipe, budget_bytes: int) -> Arrangement:
    arrangement = arrange_shared(recipe, budget_bytes)
    assert arrangement is not None
    return arrangement


def ticket_for(job: Job, lease: Lease, loop, client: str = "") -> Ticket:
    return Ticket(job, loop.create_future(), deadline=0.0, lease=lease, client=client)


def enqueue(batcher: Batcher, batch: Batch, ticket: Ticket) -> None:
    batch.add(ticket)
    batcher.append(batch, ticket, joinable=True)


def fill(ticket: Ticket, batch: Batch, byte: int) -> None:
    for index in range(len(batch.recipe.inputs)):
        first, last = ticket.span(batch.arrangement, index)
        batch.lease.slab.view[first:last] = bytes([byte + index]) * (last - first)


def test_requests_of_one_recipe_share_a_batch_and_others_do_not(loop):
    batcher = Batcher(lambda ticket: None)
    pool = SlabPool(1 << 20)
    narrow, wide = mse_job(2, 3), mse_job(2, 4)
    arrangement = shared(narrow.recipe, 1 << 16)
    batch = Batch(narrow.recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    enqueue(batcher, batch, ticket_for(narrow, batch.lease, loop))
    assert batcher.joinable(mse_job(7, 3)) is batch
    assert batcher.joinable(wide) is None


def test_a_batch_that_was_sent_takes_no_further_request(loop):
    batcher = Batcher(lambda ticket: None)
    pool = SlabPool(1 << 20)
    job = mse_job(2)
    arrangement = shared(job.recipe, 1 << 16)
    batch = Batch(job.recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    enqueue(batcher, batch, ticket_for(job, batch.lease, loop))
    assert batcher.next_batch() is batch
    assert batcher.joinable(job) is None
    assert batcher.next_batch() is None


def test_a_full_batch_takes_no_further_request(loop):
    pool = SlabPool(1 << 20)
    job = mse_job(5)
    arrangement = arrange(job.recipe, rows=12, requests=8)
    batch = Batch(job.recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    for _ in range(2):
        batch.add(ticket_for(job, batch.lease, loop))
    assert not batch.fits(job)
    assert batch.fits(mse_job(2))


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    gone=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_dropping_requests_moves_the_bytes_of_the_others(sizes, gone):
    loop = asyncio.new_event_loop()
    dropped: list[Ticket] = []
    batcher = Batcher(dropped.append)
    pool = SlabPool(1 << 20)
    jobs = [mse_job(rows) for rows in sizes]
    arrangement = shared(jobs[0].recipe, 1 << 16)
    batch = Batch(jobs[0].recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    tickets = []
    for number, job in enumerate(jobs):
        ticket = ticket_for(job, batch.lease, loop)
        enqueue(batcher, batch, ticket)
        fill(ticket, batch, 2 * number)
        tickets.append(ticket)
    expected_gone = [t for t, left in zip(tickets, gone, strict=False) if left]
    for ticket in expected_gone:
        ticket.future.cancel()
    sent = batcher.next_batch()
    assert dropped == expected_gone
    kept = [t for t in tickets if t not in expected_gone]
    assert (sent.tickets if sent else []) == kept
    row = 0
    for ticket in kept:
        assert ticket.row == row
        row += ticket.job.rows
        number = tickets.index(ticket)
        for index in range(len(batch.recipe.inputs)):
            first, last = ticket.span(arrangement, index)
            assert bytes(batch.lease.slab.view[first:last]) == bytes([2 * number + index]) * (last - first)
    loop.close()


def test_singles_point_at_the_same_bytes(loop):
    pool = SlabPool(1 << 20)
    jobs = [mse_job(rows) for rows in (3, 1, 2)]
    arrangement = shared(jobs[0].recipe, 1 << 16)
    batch = Batch(jobs[0].recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    for job in jobs:
        batch.add(ticket_for(job, batch.lease, loop))
    before = [[t.span(arrangement, i) for i in range(len(batch.recipe.columns))] for t in batch.tickets]
    singles = batch.singles()
    after = [[b.tickets[0].span(b.arrangement, i) for i in range(len(b.recipe.columns))] for b in singles]
    assert after == before
    assert [b.rows for b in singles] == [3, 1, 2]


@given(rows=st.integers(1, 50), requests=st.integers(1, 5))
def test_columns_are_aligned_and_do_not_overlap(rows, requests):
    job = mse_job(rows)
    arrangement = arrange(job.recipe, rows, requests)
    ends = [*arrangement.offsets[1:], arrangement.nbytes]
    for column, offset, end in zip(job.recipe.columns, arrangement.offsets, ends, strict=True):
        assert offset % 64 == 0
        assert offset + column.unit_bytes * rows <= end


def overlap_job(kind: str, rows: int, width: int) -> Job:
    """A job with columns that count rows, requests, or both."""
    shape = (rows, width)
    if kind == "stack":
        return make_plan({"loss": {"name": "clip"}, "outputs": ["loss", "gradient"]}).job(
            dict.fromkeys(("first", "second"), ("float32", shape))
        )
    tensors = dict.fromkeys(("prediction", "target"), ("float64", shape))
    if kind == "both":
        tensors["cotangent"] = ("float32", ())
    return make_plan({"loss": {"name": "mse"}, "outputs": ["loss", "gradient"]}).job(tensors)


def spans(batch: Batch) -> list[tuple[int, int]]:
    """The bytes that the batch's requests own in each column, one after the other."""
    return [ticket.span(batch.arrangement, i) for ticket in batch.tickets for i in range(len(batch.recipe.columns))]


@given(
    budget=st.integers(0, 5000),
    kind=st.sampled_from(["rows", "stack", "both"]),
    rows=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_no_two_requests_of_a_batch_share_a_byte(budget, kind, rows, width):
    loop = WithoutLoop()
    job = overlap_job(kind, rows, width)
    arrangement = arrange_shared(job.recipe, budget)
    if arrangement is None or not arrangement.holds(job.recipe, job.rows, 1):
        arrangement = arrange(job.recipe, job.rows, 1)
    else:
        assert arrangement.nbytes <= budget
    pool = SlabPool(0)
    slab = pool.take(arrangement.nbytes)
    batch = Batch(job.recipe, Lease(pool, slab), arrangement)
    batch.add(ticket_for(job, batch.lease, loop))
    while batch.fits(job) and len(batch.tickets) < 9:
        batch.add(ticket_for(job, batch.lease, loop))
    if not batch.fits(job):
        with pytest.raises(ValueError, match="do not fit"):
            batch.add(ticket_for(job, batch.lease, loop))
    taken = sorted(span for span in spans(batch) if span[0] < span[1])
    assert taken[0][0] >= 0
    assert taken[-1][1] <= arrangement.nbytes <= slab.size
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    pool.give(slab)


@pytest.mark.parametrize(("rows", "requests"), [(0, 1), (-1, 5), (1, 0), (3, -2)])
def test_a_slab_without_a_row_is_not_arranged(rows, requests):
    with pytest.raises(ValueError, match="at least one row of one request"):
        arrange(mse_job(3).recipe, rows, requests)


@pytest.mark.parametrize("batch_bytes", [1, 200, 400, 1000])
def test_a_batch_too_small_for_two_answers_each_by_itself(batch_bytes):
    settings = Settings(device="cpu", compiled=False).model_copy(update={"batch_bytes": batch_bytes})
    pairs = [(2.5, 0.0), (3.0, 0.0), (7.0, 5.0)]
    job = mse_job(1)

    def column(value):
        return memoryview(np.full(3, value, np.float32)).cast("B")

    async def losses():
        engine = InlineEngine(settings)
        await engine.start()
        futures = [
            engine.submit(job, {"prediction": column(p), "target": column(t)}, time.monotonic() + 60) for p, t in pairs
        ]
        found = []
        for future in futures:
            result = await future
            found.append(json.loads(result.text)["loss"])
            result.release()
        await engine.stop()
        return found

    assert asyncio.run(losses()) == [(p - t) ** 2 for p, t in pairs]


class WithoutLoop:
    """What a ticket needs of an event loop: futures that nobody awaits."""

    def create_future(self):
        return Future()


class Queue:
    """A batcher and the slabs its requests lie in; ``sent`` is whose requests each batch held, as they leave."""

    def __init__(self, loop) -> None:
        self.loop = loop
        self.pool = SlabPool(1 << 20)
        self.batcher = Batcher(lambda ticket: None)

    def put(self, client: str, job: Job) -> Ticket:
        batch = self.batcher.joinable(job, client)
        if batch is None:
            arrangement = shared(job.recipe, 8 << 20)
            batch = Batch(job.recipe, Lease(self.pool, self.pool.take(arrangement.nbytes)), arrangement)
        ticket = ticket_for(job, batch.lease, self.loop, client)
        enqueue(self.batcher, batch, ticket)
        return ticket

    def alone(self, client: str, job: Job) -> None:
        arrangement = arrange(job.recipe, job.rows, 1)
        batch = Batch(job.recipe, Lease(self.pool, self.pool.take(arrangement.nbytes)), arrangement)
        batch.add(ticket_for(job, batch.lease, self.loop, client))
        self.batcher.append(batch, batch.tickets[0], joinable=False)

    def take(self) -> list[str]:
        batch = self.batcher.next_batch()
        if batch is None:
            return []
        for _ in batch.tickets:
            batch.lease.release()
        return [ticket.client for ticket in batch.tickets]

    def close(self) -> None:
        """Give every slab back, each of which is an open file."""
        while self.take():
            pass
        self.pool.close()


def test_batches_of_one_client_are_sent_in_the_order_of_their_opening(loop):
    queue = Queue(loop)
    tickets = [queue.put("", mse_job(2, width)) for width in (5, 3, 9, 4)]
    queue.put("", mse_job(2, 3))  # joins the second
    assert [queue.batcher.next_batch().tickets[0] for _ in tickets] == tickets
    assert queue.take() == []


def test_a_newcomer_does_not_wait_behind_all_that_another_client_has_queued(loop):
    queue = Queue(loop)
    for width in range(1, 65):
        queue.put("greedy", mse_job(200, width))
    assert queue.take() == ["greedy"]
    queue.put("modest", mse_job(200, 70))
    assert ["modest"] in (queue.take(), queue.take())


def test_requests_of_several_clients_share_a_batch_which_goes_when_the_first_of_them_is_due(loop):
    queue = Queue(loop)
    for width in (8, 7, 6, 5):
        queue.put("greedy", mse_job(2, width))
    assert queue.take() == ["greedy"]
    queue.put("modest", mse_job(2, 5))
    assert queue.take() == ["greedy", "modest"]
    assert [queue.take(), queue.take(), queue.take()] == [["greedy"], ["greedy"], []]


def test_a_small_request_does_not_join_the_long_batch_of_another_client(loop):
    queue = Queue(loop)
    for _ in range(10):
        queue.put("greedy", mse_job(20_000))
    queue.put("modest", mse_job(2))
    assert queue.take() == ["greedy"] * 10  # it was there first
    assert queue.take() == ["modest"]
    queue.put("modest", mse_job(2))
    for _ in range(10):
        queue.put("greedy", mse_job(20_000))
    assert queue.take() == ["modest"], "what came later must not make it longer"


@given(
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 2000), min_size=2),
    data=st.data(),
)
@settings(max_examples=50)
def test_clients_with_work_get_equal_shares_however_much_each_has_queued(sizes, data):
    """Whenever all of them are backlogged, none is ahead of another by more than the largest request of each."""
    queue = Queue(WithoutLoop())
    widths = {client: 10 + index for index, client in enumerate(sizes)}  # recipes of their own: nothing is shared
    jobs = {client: mse_job(rows, widths[client]) for client, rows in sizes.items()}
    per_batch = {client: job.work_ns + REQUEST_NS for client, job in jobs.items()}
    served = dict.fromkeys(sizes, 0)
    for client in data.draw(st.permutations([*sizes, *sizes])):
        queue.alone(client, jobs[client])
    for _ in range(60):
        (client,) = queue.take()
        served[client] += per_batch[client]
        for _ in range(data.draw(st.integers(1, 2))):  # it is always backlogged, now more, now less
            queue.alone(client, jobs[client])
    for one in sizes:
        for other in sizes:
            assert served[one] - served[other] <= 2 * (per_batch[one] + per_batch[other])
    queue.close()  # Hypothesis makes hundreds


def test_a_client_pays_for_the_time_its_batches_took(loop):
    """Two ask for the same bytes; the one whose batch took a second waits until the other has had a gigabyte."""
    queue = Queue(loop)
    job = mse_job(10_000)
    queue.alone("greedy", job)
    long = queue.batcher.next_batch()
    queue.batcher.charge(long, 1.0)
    share = round(1e9 / (job.work_ns + REQUEST_NS))
    for _ in range(share + 10):
        queue.alone("greedy", job)
        queue.alone("modest", job)
    order = [queue.take()[0] for _ in range(share + 20)]
    assert order.index("greedy") == pytest.approx(share, abs=2)


def test_work_that_is_stated_counts_before_it_is_done(loop):
    queue = Queue(loop)
    plan = make_plan({"loss": {"name": "supcon"}, "outputs": ["loss"]})
    heavy = plan.job({"embedding": ("float32", (1000, 1)), "label": ("int32", (1000,))})
    for _ in range(3):
        queue.alone("greedy", heavy)
        queue.alone("modest", mse_job(1000))
        queue.alone("modest", mse_job(1000))
    assert heavy.nbytes < mse_job(1000).nbytes
    assert [queue.take()[0] for _ in range(9)] == ["greedy", *["modest"] * 6, "greedy", "greedy"]


def test_an_idle_client_gains_no_credit(loop):
    queue = Queue(loop)
    for _ in range(20):
        queue.alone("busy", mse_job(100))
        assert queue.take() == ["busy"]
    for _ in range(4):
        queue.alone("back", mse_job(100))
        queue.alone("busy", mse_job(100))
    order = [queue.take()[0] for _ in range(8)]
    assert all({*order[i : i + 2]} == {"back", "busy"} for i in range(0, 8, 2))


def test_the_batches_of_a_dead_worker_are_sent_first_and_in_order(loop):
    queue = Queue(loop)
    for width in (3, 4, 5, 6):
        queue.put("greedy", mse_job(2, width))
    under_way = [queue.batcher.next_batch() for _ in range(2)]
    queue.put("modest", mse_job(2, 7))
    queue.batcher.requeue(under_way)
    assert [queue.batcher.next_batch(), queue.batcher.next_batch()] == under_way
    assert ["modest"] in (queue.take(), queue.take())


def job_of(milliseconds: float) -> Job:
    """A request with this estimate."""
    return replace(mse_job(1), cost=Cost(0, round(milliseconds * 1e6)))


def sent(queue: Queue) -> Batch:
    """The next batch."""
    batch = queue.batcher.next_batch()
    assert batch is not None
    for _ in batch.tickets:
        batch.lease.release()
    return batch


def test_requests_join_a_batch_until_it_would_take_long(loop):
    """The first one, by which the batch is arranged, says nothing of those that join."""
    queue = Queue(loop)
    for milliseconds in (1, 100, 100, 100, 5000):
        queue.put("", job_of(milliseconds))
    assert [len(sent(queue).tickets) for _ in range(3)] == [3, 1, 1]
    queue.put("", job_of(1))
    queue.put("", job_of(5000))
    assert [sent(queue).long for _ in range(2)] == [False, True]


def test_what_took_long_is_long_the_next_time_though_its_estimate_is_short(loop):
    queue = Queue(loop)
    for took_s, long in ((2.0, False), (2.0, True), (0.1, True), (0.1, False)):
        queue.put("", job_of(100))
        batch = sent(queue)
        assert batch.long == long, f"before {took_s} s"
        queue.batcher.learn(batch, took_s)


def test_one_pause_of_the_machine_does_not_make_a_small_request_long(loop):
    queue = Queue(loop)
    queue.put("", job_of(0.1))
    queue.batcher.learn(sent(queue), 5.0)
    queue.put("", job_of(0.1))
    assert not sent(queue).long
