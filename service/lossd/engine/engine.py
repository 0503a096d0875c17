"""What every engine does: admission, slabs, batching, deadlines.

Engines differ in where they evaluate batches: :class:`lossd.engine.process.ProcessEngine` in supervised worker
processes, :class:`lossd.engine.inline.InlineEngine` in this process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lossd.arrangement import Arrangement, arrange, arrange_shared
from lossd.caches import Cache
from lossd.compiled.passes import CompileProgress
from lossd.configuration.preflight import StartError
from lossd.engine.admission import Budget
from lossd.engine.backlog import Backlog
from lossd.engine.batcher import WORTH_REQUESTS, Batch, Batcher, Ticket
from lossd.engine.deadlines import Deadlines
from lossd.engine.long_waits import LongWaits
from lossd.engine.result import Result, Timings
from lossd.engine.slab import Lease, SlabPool
from lossd.engine.statistics import Load, Stats, Vitals
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
        """Return the memory for the bytes of an input."""
        names = [c.name for c in self._batch.recipe.inputs]
        first, last = self._ticket.span(self._batch.arrangement, names.index(name))
        return self._batch.lease.slab.view[first:last]

    def submit(self) -> asyncio.Future[Result]:
        """Queue the request; every input has been written."""
        return self._engine._enqueue(self._batch, self._ticket)

    def abandon(self) -> None:
        """Give the slab back; the request is not queued."""
        self._engine._done_with(self._ticket)


class Engine(ABC):
    """Base class of the engines. It runs in one event loop, without threads of its own.

    Requests are accepted from the start. Without a worker they wait in the queue, within its limits and until their
    deadlines, unless ``fault`` is set.

    Args:
        settings: The sizes and limits.

    Attributes:
        on_failure: Called with a sentence if a worker cannot start and none ever was ready, so that the service ends.
        fault: Why no worker can be started, after several attempts; None otherwise. Requests are refused with it.
        settled: Set when a worker is ready for the first time, or when ``fault`` is set.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stats = Stats()
        self.budget = Budget(settings.queue_bytes, settings.queue_requests)
        self.pool = SlabPool(settings.cache_bytes, self._forget)
        self.batcher = Batcher(self._done_with)
        self.backlog = Backlog()
        self.draining = self._retiring = False
        self._cpu: tuple[int, float] | None = None  # the clock of the event loop's thread, and its start
        self.fault: str | None = None
        self.settled = asyncio.Event()
        self._deadlines = Deadlines()
        self._flush_due = self._purge_due = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._arrangements: Cache[tuple[object, ...], Arrangement] = Cache("arrangements")
        self.long_waits = LongWaits()
        self.on_failure: Callable[[str], None] = _go_on

    # For the API

    async def start(self) -> None:
        """Start the engine; return before a worker is ready."""
        if self.settings.perceptual_weights is not None:  # losses read it, in this process and in the workers
            os.environ["LOSSD_PERCEPTUAL_WEIGHTS"] = str(self.settings.perceptual_weights.absolute())
        self.loop = asyncio.get_running_loop()
        clock = time.pthread_getcpuclockid(threading.get_ident())
        self._cpu = clock, time.clock_gettime(clock)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    async def start_ready(self) -> None:
        """Start the engine, and return when a worker is ready.

        Raises:
            StartError: No worker can start; it says why.
        """
        on_failure, self.on_failure = self.on_failure, self._report_fault
        try:
            await self.start()
            self.dispatch()  # a lazy engine loads torch for it
            await self.settled.wait()
        finally:
            self.on_failure = on_failure
        if self.fault is not None:
            raise StartError(self.fault)

    async def stop(self) -> None:
        """Refuse new requests, finish the accepted ones within ``drain_timeout_ms``, and end."""
        self.draining = True
        deadline = time.monotonic() + self.settings.drain_timeout_ms / 1000
        while any(not t.future.done() for t in self._deadlines) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)  # requests whose clients left are not waited for
        if self._sweeper is not None:
            self._sweeper.cancel()
        for ticket in self._deadlines:
            if not ticket.future.done():
                ticket.future.set_exception(Unavailable("the service has shut down", retry_after_s=STOPPING_S))
        self._next_batch()  # no request is wanted any more: this drops the queue
        self.pool.close()

    def retire(self) -> None:
        """Be not ready from now on, so that no more requests are routed here; those that come are evaluated."""
        self._retiring = True

    def give_up(self, why: str) -> None:
        """Refuse all requests with this reason."""
        self.draining = self._purge_due = True
        for ticket in self._deadlines:
            if not ticket.future.done():
                ticket.future.set_exception(Unavailable(why, retry_after_s=5.0))

    @property
    def ready(self) -> bool:
        """Whether a worker is ready and new requests are welcome."""
        return self._has_worker and not (self.draining or self._retiring)

    @property
    def obstacle(self) -> str:
        """Why the engine is not ready, as a sentence; empty if it is."""
        if self.ready:
            return ""
        if self.draining or self._retiring:
            return "the service is shutting down"
        if self.fault is not None:
            return self.fault
        if self.settled.is_set():
            return "the service is starting a worker in place of one that ended; requests wait for it"
        return "the service is starting: no worker is ready yet; requests wait for one"

    @property
    def vitals(self) -> Sequence[Vitals]:
        """The state of each worker."""
        return ()

    @property
    def load(self) -> Load:
        """How busy this front and its workers are. Any thread may read it while the engine runs."""
        front_busy_s = 0.0
        if self._cpu is not None:
            clock, start_s = self._cpu
            front_busy_s = time.clock_gettime(clock) - start_s - self._polled_s
        backlog_s = self.backlog.seconds(list(self._deadlines), self.settings.device.count(",") + 1)
        return Load(front_busy_s, self._worker_busy_s, backlog_s)

    @property
    def compiled(self) -> CompileProgress:
        """The progress of the compiled passes, summed over the workers."""
        return CompileProgress(
            *map(sum, zip(CompileProgress(), *(vitals.compiled for vitals in self.vitals), strict=True))
        )

    @property
    def in_progress(self) -> int:
        """The number of admitted requests whose answers have not been sent."""
        return self.budget.held.requests

    def submit(
        self, job: Job, tensors: Mapping[str, memoryview], deadline: float, client: str = ""
    ) -> asyncio.Future[Result]:
        """Queue a request, and return the future of its result. The tensors are copied before this returns.

        Args:
            job: The checked request.
            tensors: The bytes of each input of ``job.recipe.inputs``.
            deadline: When the answer is no longer wanted, on the monotonic clock.
            client: The name of the API key; clients with different names get equal shares.

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
        except BaseException:  # it has rows in the batch: it is dropped like a request whose client left
            self.drop(ticket.future)
            self._enqueue(batch, ticket, joinable=shared)
            raise
        return self._enqueue(batch, ticket, joinable=shared)

    def upload(self, job: Job, deadline: float, client: str = "") -> Upload:
        """Return an upload: a slab of its own for a request whose body is still arriving.

        Raises:
            QueueFull, Unavailable: No memory is held.
        """
        self._check_available()
        self._admit(job, client)
        batch = self._open(job, client, shared=False)
        ticket = Ticket(job, self.loop.create_future(), deadline, batch.lease, client)
        batch.add(ticket)
        return Upload(self, batch, ticket)

    def drop(self, future: asyncio.Future[Result]) -> None:
        """Release a request that is no longer waited for: cancel it, or release its result.

        A future may also be cancelled directly. The request's memory is then held until its turn in the queue.
        """
        if future.cancel() or future.cancelled():
            self._purge_due = True
        elif future.exception() is None:
            future.result().release()

    # Inside

    @property
    @abstractmethod
    def _has_worker(self) -> bool:
        """Whether a worker is ready."""

    @property
    @abstractmethod
    def _worker_busy_s(self) -> Mapping[int, float]:
        """See :class:`~lossd.engine.statistics.Load`."""

    @property
    def _polled_s(self) -> float:
        """CPU seconds of the event loop that were spent on polling."""
        return 0.0

    def worker_ready(self) -> None:
        """Send the queued batches, now that a worker is ready."""
        self.fault = None
        self.settled.set()
        self.dispatch()

    def _report_fault(self, fault: str) -> None:
        """Set ``fault``: the next sweep refuses the requests that wait, and later requests are refused at once."""
        if self.fault is None:
            log.error("%s", fault)
        self.fault = fault
        self.settled.set()

    def _check_available(self) -> None:
        if self.draining or self.fault is not None:
            raise Unavailable(self.obstacle, retry_after_s=STOPPING_S)

    def _admit(self, job: Job, client: str) -> None:
        """Count a job in the budget.

        Raises:
            TooLarge: The job is over a limit.
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
        """Return a new batch for an admitted job.

        Raises:
            Unavailable: There is no memory or file descriptor for it; the job is no longer admitted.
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
        """Return the arrangement of a new batch for a job; most are cached, because clients repeat their requests."""
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
        """Queue a ticket, and its batch if that is new; return the ticket's future.

        The batch is dispatched when all that has arrived was read, or when it is worth sending without the rest.
        """
        ticket.queued = time.monotonic()
        self._deadlines.add(ticket)
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
        """Send queued batches to free workers."""

    @abstractmethod
    def _forget(self, slab_id: int) -> None:
        """Unmap a slab that was closed, wherever it is mapped."""

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
                self.backlog.observe(batch, copy_s + compute_s)
                self.batcher.charge(batch, compute_s)
                self.batcher.learn(batch, compute_s)
        columns = [
            (column.name, offset, unit_bytes, per_row)
            for column, offset, (unit_bytes, per_row) in zip(
                recipe.columns, batch.arrangement.offsets, recipe.units, strict=True
            )
        ][len(recipe.inputs) :]
        for ticket, answer in zip(batch.tickets, answers, strict=True):
            if ticket.future.done():  # abandoned or expired during the evaluation
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
        self._deadlines.remove(ticket)
        self.budget.release(ticket.client, ticket.job.held_bytes)
        ticket.lease.release()

    def _sweep(self) -> None:
        """Refuse requests past their deadlines or without hope of a worker, and drop those whose clients left."""
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        if not self.in_progress:
            return
        now = time.monotonic()
        self.long_waits.check(now)
        self._deadlines.tidy()
        for ticket in self._deadlines.take_expired(now) if self.fault is None else self._deadlines:
            self._expire(ticket, now)
        if self._purge_due:
            self._purge_due = False
            self.batcher.purge()
        if self.batcher:  # another front may have kept a worker busy that is free now
            self.dispatch()

    def _expire(self, ticket: Ticket, now: float) -> None:
        """Refuse a request whose deadline has passed, or for which no worker will be ready."""
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
        else:
            return
        self._purge_due = True


def _go_on(why: str) -> None:
    log.error("%s", why)
