"""What every engine does: admission, slabs, batching, deadlines.

Engines differ in where they evaluate batches: :class:`lossd.engine.process.ProcessEngine` in supervised worker
processes, :class:`lossd.engine.inline.InlineEngine` in this process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lossd.arrangement import Arrangement, arrange, arrange_shared
from lossd.caches import Cache
from lossd.compiled.passes import Progress
from lossd.engine.admission import Budget
from lossd.engine.batcher import WORTH_REQUESTS, Batch, Batcher, Ticket
from lossd.engine.long_waits import LongWaits
from lossd.engine.result import Result, Timings
from lossd.engine.slab import Lease, SlabPool
from lossd.engine.statistics import Stats, Vitals
from lossd.job import Job
from lossd_client.errors import DeadlineExceeded, Problem, TooLarge, Unavailable

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["Engine", "Upload"]

log = logging.getLogger("lossd.engine")

SWEEP_S = 0.025
STOPPING_S = 5.0
SHORT_S = 1.0


class Upload:
    """A request that is written into its own slab while its body arrives."""

    def __init__(self, engine: Engine, batch: Batch, ticket: Ticket) -> None:
        self._engine = engine
        self._batch = batch
        self._ticket = ticket

    def buffer(self, name: str) -> memoryview:
        """Where the bytes of an input belong."""
        names = [c.name for c in self._batch.recipe.inputs]
        first, last = self._ticket.span(self._batch.arrangement, names.index(name))
        return self._batch.lease.slab.view[first:last]

    def submit(self) -> asyncio.Future[Result]:
        """Hand it in: every input has been written."""
        return self._engine._enqueue(self._batch, self._ticket)

    def abandon(self) -> None:
        """Give it up before it was handed in."""
        self._engine._done_with(self._ticket)


class Engine(ABC):
    """What every engine does. One event loop, no threads of its own.

    Requests are taken in from the first moment on. While no worker is there they wait in the queue, within its limits
    and each until its own deadline, unless it is known that none will come.

    Args:
        settings: The sizes and limits.

    Attributes:
        on_failure: Called with a sentence where a worker cannot work and never could, so that whoever serves may end.
        fault: Why no worker can be started, where that has failed again and again; requests are refused with it.
        settled: Set when a worker is ready for the first time, or ``fault`` is known.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stats = Stats()
        self.budget = Budget(settings.queue_bytes, settings.queue_requests)
        self.pool = SlabPool(settings.cache_bytes, self._forget)
        self.batcher = Batcher(self._done_with)
        self.draining = False
        self.fault: str | None = None
        self.settled = asyncio.Event()
        self._flush_due = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._arrangements: Cache[tuple[object, ...], Arrangement] = Cache("arrangements")
        self.long_waits = LongWaits()
        self.on_failure: Callable[[str], None] = _go_on

    # For the API

    async def start(self) -> None:
        """Begin; returns before a worker is ready."""
        if self.settings.perceptual_weights is not None:  # the losses look there, here and in the workers
            os.environ["LOSSD_PERCEPTUAL_WEIGHTS"] = str(self.settings.perceptual_weights.absolute())
        self.loop = asyncio.get_running_loop()
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    async def stop(self) -> None:
        """Refuse new work, finish what was accepted (within ``drain_timeout_ms``), end."""
        self.draining = True
        deadline = time.monotonic() + self.settings.drain_timeout_ms / 1000
        while any(not t.future.done() for t in self._tickets()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)  # what nobody waits for any more is not waited for here either
        if self._sweeper is not None:
            self._sweeper.cancel()
        for ticket in self._tickets():
            if not ticket.future.done():
                ticket.future.set_exception(Unavailable("the service has shut down", retry_after_s=STOPPING_S))
        self._next_batch()  # there is none that anybody waits for: this drops all that were queued
        self.pool.close()

    def give_up(self, why: str) -> None:
        """Answer everybody that there will be no answer."""
        self.draining = True
        for ticket in self._tickets():
            if not ticket.future.done():
                ticket.future.set_exception(Unavailable(why, retry_after_s=5.0))

    @property
    def ready(self) -> bool:
        """Whether a worker is there to evaluate and new work is taken."""
        return self._has_worker and not self.draining

    @property
    def obstacle(self) -> str:
        """Why it is not ready, as a sentence; empty where it is."""
        if self.ready:
            return ""
        if self.draining:
            return "the service is shutting down"
        if self.fault is not None:
            return self.fault
        if self.settled.is_set():
            return "the service is starting a worker in place of one that ended; requests wait for it"
        return "the service is starting: no worker is ready yet; requests wait for one"

    @property
    def vitals(self) -> Sequence[Vitals]:
        """How the workers are."""
        return ()

    @property
    def compiled(self) -> Progress:
        """How far the compiled passes are, of all workers together."""
        return Progress(*map(sum, zip(Progress(), *(vitals.compiled for vitals in self.vitals), strict=True)))

    @property
    def in_progress(self) -> int:
        """Requests that were admitted and whose answers have not been sent."""
        return self.budget.held.requests

    def submit(
        self, job: Job, tensors: Mapping[str, memoryview], deadline: float, client: str = ""
    ) -> asyncio.Future[Result]:
        """Hand in a request whose tensors are at hand; they are copied before this returns.

        Args:
            job: The checked request.
            tensors: The bytes of each input of ``job.recipe.inputs``.
            deadline: When the answer is no longer wanted, on the monotonic clock.
            client: Whose it is: clients with different names get equal shares.

        Raises:
            QueueFull, Unavailable: Nothing was queued.
        """
        self._check_available()
        batch = None if job.recipe.alone else self.batcher.joinable(job, client)
        shared = not job.recipe.alone and 2 * job.nbytes <= self.settings.batch_bytes
        self._admit(job, client)
        if batch is None:
            batch = self._open(job, client, shared=shared)
        ticket = Ticket(job, self.loop.create_future(), deadline, batch.lease, client)
        batch.add(ticket)
        view, arrangement = batch.lease.slab.view, batch.arrangement
        try:
            for index, column in enumerate(job.recipe.inputs):
                first, last = ticket.span(arrangement, index)
                view[first:last] = tensors[column.name]
        except BaseException:  # its place in the batch is taken: it goes the way of those that nobody waits for
            ticket.future.cancel()
            self._enqueue(batch, ticket, joinable=shared)
            raise
        return self._enqueue(batch, ticket, joinable=shared)

    def upload(self, job: Job, deadline: float, client: str = "") -> Upload:
        """A slab of its own for a request whose body is still arriving.

        Raises:
            QueueFull, Unavailable: Nothing is held.
        """
        self._check_available()
        self._admit(job, client)
        batch = self._open(job, client, shared=False)
        ticket = Ticket(job, self.loop.create_future(), deadline, batch.lease, client)
        batch.add(ticket)
        return Upload(self, batch, ticket)

    # Inside

    @property
    @abstractmethod
    def _has_worker(self) -> bool:
        """Whether a worker is there to evaluate."""

    def worker_ready(self) -> None:
        """A worker is there: what has waited for it goes."""
        self.fault = None
        self.settled.set()
        self.dispatch()

    def _report_fault(self, fault: str) -> None:
        """No worker will come soon: who waits for one is told, by the next sweep, and so is who asks from now on."""
        if self.fault is None:
            log.error("%s", fault)
        self.fault = fault
        self.settled.set()

    def _check_available(self) -> None:
        if self.draining or self.fault is not None:
            raise Unavailable(self.obstacle, retry_after_s=STOPPING_S)

    def _admit(self, job: Job, client: str) -> None:
        """Count a job in.

        Raises:
            TooLarge: It will never be evaluated.
            QueueFull: There is no room now.
        """
        most_ms, work_ms = self.settings.max_work_ms, job.work_ns // 1_000_000
        if work_ms > most_ms:
            raise TooLarge(
                f"this request would take about {work_ms / 1000:.0f} s of one core, at most {most_ms / 1000:g} s are "
                "given to one (setting max_work_ms); send smaller batches, or fewer terms"
            )
        self.budget.admit(client, job.held_bytes)

    def _open(self, job: Job, client: str, *, shared: bool) -> Batch:
        """A batch for a job that was admitted; where there is no memory or file for it, it no longer is.

        Raises:
            Unavailable: That is so.
        """
        arrangement = self._arrangement(job, shared=shared)
        try:
            slab = self.pool.take(arrangement.nbytes)
        except OSError as error:
            self.budget.release(client, job.held_bytes)
            why = os.strerror(error.errno) if error.errno else str(error)
            raise Unavailable(
                f"the service has no memory or file descriptor left for this request ({why})", retry_after_s=SHORT_S
            ) from None
        return Batch(job.recipe, Lease(self.pool, slab), arrangement)

    def _arrangement(self, job: Job, *, shared: bool) -> Arrangement:
        """That of a batch which a job opens; clients repeat themselves, so most are known already."""
        recipe = job.recipe
        key = recipe.text, job.cost, job.rows, shared
        found = self._arrangements.get(key)
        if found is None:
            found = arrange_shared(recipe, self.settings.batch_bytes, job.cost) if shared else None
            if found is None or not found.holds(recipe, job.rows, 1):
                found = arrange(recipe, job.rows, 1)
            self._arrangements.put(key, found, 1024 + len(recipe.text))
        return found

    def _enqueue(self, batch: Batch, ticket: Ticket, *, joinable: bool = False) -> asyncio.Future[Result]:
        """Queue a ticket, and its batch where that is new.

        It leaves once all that has arrived was read, or its batch is worth going: a worker need not wait for the rest.
        """
        ticket.queued = time.monotonic()
        self.batcher.append(batch, ticket, joinable=joinable)
        if len(batch.tickets) == WORTH_REQUESTS:
            self.dispatch()
        elif not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)
        return ticket.future

    def _flush(self) -> None:
        self._flush_due = False
        self.dispatch()

    @abstractmethod
    def dispatch(self) -> None:
        """Send batches to whoever is free."""

    @abstractmethod
    def _under_way(self) -> Sequence[Batch]:
        """The batches that are being evaluated."""

    @abstractmethod
    def _forget(self, slab_id: int) -> None:
        """A slab is closed: whoever maps it may let go."""

    def _next_batch(self, *, short: bool = False) -> Batch | None:
        now = time.monotonic()
        batch = self.batcher.next_batch(lambda ticket: self._expire(ticket, now), short=short)
        if batch is not None:
            for ticket in batch.tickets:
                ticket.sent = now
        return batch

    def resolve(self, batch: Batch, answers: Sequence[bytes | Problem], copy_s: float, compute_s: float) -> None:
        """Give each request of an evaluated batch its answer."""
        self.stats.count(batch)
        recipe, view, size = batch.recipe, batch.lease.slab.view, len(batch.tickets)
        if size:
            self.budget.observe(batch.nbytes, size, batch.tickets[0].sent, time.monotonic())
            if compute_s:
                self.batcher.charge(batch, compute_s)
        columns = [
            (column.name, offset, unit_bytes, per_row)
            for column, offset, (unit_bytes, per_row) in zip(
                recipe.columns, batch.arrangement.offsets, recipe.units, strict=True
            )
        ][len(recipe.inputs) :]
        for ticket, answer in zip(batch.tickets, answers, strict=True):
            if ticket.future.done():  # abandoned or expired under way
                self._done_with(ticket)
            elif isinstance(answer, Problem):
                ticket.future.set_exception(answer)
                self._done_with(ticket)
            else:
                tensors = {}
                for name, offset, unit_bytes, per_row in columns:
                    first = offset + unit_bytes * (ticket.row if per_row else ticket.position)
                    tensors[name] = view[first : first + unit_bytes * (ticket.job.rows if per_row else 1)]
                timings = Timings(ticket.sent - ticket.queued, copy_s, compute_s)
                ticket.future.set_result(
                    Result(ticket.job, answer, tensors, timings, size, partial(self._done_with, ticket))
                )

    def _fail(self, batch: Batch, problem: Problem) -> None:
        self.resolve(batch, [problem] * len(batch.tickets), 0.0, 0.0)

    def _done_with(self, ticket: Ticket) -> None:
        self.budget.release(ticket.client, ticket.job.held_bytes)
        ticket.lease.release()

    def _sweep(self) -> None:
        """Answer what is past its deadline or waits in vain, and let go of what nobody waits for any more."""
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        if not self.in_progress:
            return
        now = time.monotonic()
        self.long_waits.check(now)
        for ticket in self._tickets():
            self._expire(ticket, now)
        self.batcher.purge()
        if self.batcher:  # a worker may be free again that another front kept busy
            self.dispatch()

    def _expire(self, ticket: Ticket, now: float) -> None:
        """Answer a request whose deadline has passed, or for which no worker will come."""
        if ticket.future.done():
            return
        if self.fault is not None:
            ticket.future.set_exception(Unavailable(self.fault, retry_after_s=STOPPING_S))
        elif ticket.deadline <= now:
            waited_ms = round((now - ticket.queued) * 1000)
            detail = f"the request's deadline passed {waited_ms} ms after it was queued; it was dropped"
            if not self._has_worker:
                detail += f": {self.obstacle}"
            ticket.future.set_exception(DeadlineExceeded(detail))

    def _tickets(self) -> list[Ticket]:
        """Every request that is queued or being evaluated."""
        return [*self.batcher.waiting(), *(t for batch in self._under_way() for t in batch.tickets)]


def _go_on(why: str) -> None:
    log.error("%s", why)
