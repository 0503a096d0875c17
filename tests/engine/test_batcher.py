"""The batcher is pure policy: these tests have no clock, no process and no event loop running."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd.engine.batcher import Batch, Batcher, Ticket
from lossd.engine.slab import Lease, SlabPool, arrange, arrange_shared
from lossd.job import Job
from lossd.plan import Plan


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def mse_job(rows: int, width: int = 3) -> Job:
    plan = Plan.of({"loss": {"name": "mse"}, "outputs": ["loss", "gradient"]})
    return plan.job(dict.fromkeys(("prediction", "target"), ("float32", (rows, width))))


def ticket_for(job: Job, lease: Lease, loop) -> Ticket:
    return Ticket(job, loop.create_future(), deadline=0.0, lease=lease)


def fill(ticket: Ticket, batch: Batch, byte: int) -> None:
    for index in range(len(batch.recipe.inputs)):
        first, last = ticket.span(batch.arrangement, index)
        batch.lease.slab.view[first:last] = bytes([byte + index]) * (last - first)


def test_requests_of_one_recipe_share_a_batch_and_others_do_not(loop):
    batcher = Batcher(lambda ticket: None)
    pool = SlabPool(1 << 20)
    narrow, wide = mse_job(2, 3), mse_job(2, 4)
    arrangement = arrange_shared(narrow.recipe, 1 << 16)
    batch = Batch(narrow.recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    batch.add(ticket_for(narrow, batch.lease, loop))
    batcher.append(batch, joinable=True)
    assert batcher.joinable(mse_job(7, 3)) is batch
    assert batcher.joinable(wide) is None


def test_a_batch_that_left_takes_nobody_in(loop):
    batcher = Batcher(lambda ticket: None)
    pool = SlabPool(1 << 20)
    job = mse_job(2)
    arrangement = arrange_shared(job.recipe, 1 << 16)
    batch = Batch(job.recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    batch.add(ticket_for(job, batch.lease, loop))
    batcher.append(batch, joinable=True)
    assert batcher.next_batch() is batch
    assert batcher.joinable(job) is None
    assert batcher.next_batch() is None


def test_a_full_batch_takes_nobody_in(loop):
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
def test_dropping_requests_leaves_the_others_bytes_in_their_new_place(sizes, gone):
    loop = asyncio.new_event_loop()
    dropped: list[Ticket] = []
    batcher = Batcher(dropped.append)
    pool = SlabPool(1 << 20)
    jobs = [mse_job(rows) for rows in sizes]
    arrangement = arrange_shared(jobs[0].recipe, 1 << 16)
    batch = Batch(jobs[0].recipe, Lease(pool, pool.take(arrangement.nbytes)), arrangement)
    tickets = []
    for number, job in enumerate(jobs):
        ticket = ticket_for(job, batch.lease, loop)
        batch.add(ticket)
        fill(ticket, batch, 2 * number)
        tickets.append(ticket)
    batcher.append(batch, joinable=True)
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
    arrangement = arrange_shared(jobs[0].recipe, 1 << 16)
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


def test_a_slab_is_reused_and_a_surplus_one_closed():
    closed: list[int] = []
    pool = SlabPool(cache_bytes=1 << 16, on_close=closed.append)
    first, second = pool.take(100), pool.take(100)
    pool.give(first)
    pool.give(second)
    assert closed == [second.id]
    assert pool.take(100) is first
    assert pool.in_use == 1
