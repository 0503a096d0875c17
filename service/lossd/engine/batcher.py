"""The policy of batching: which requests share a batch, and in which order batches are sent. No I/O, clock or timer.

Requests of one recipe join the open batch of that recipe until it is full. A batch is sent when a worker is free, with
the requests that have arrived by then: no request waits for others. A batch worth sending may go to a busy worker,
which then needs not wait for its next batch.

Clients take turns (start-time fair queueing). A request's turn is the time at which its client's earlier requests have
had theirs, in a virtual time that counts nanoseconds of a worker. An estimate is counted when a request arrives, and
replaced by the time that its batch took. A client that was idle starts at the present virtual time. Batches are sent in
the order of the first turn among their requests; for a single client, that is the order in which they were opened. A
batch of several clients is sent at the earliest turn, and stays small, so that sharing costs that client nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from lossd.arrangement import Arrangement
from lossd.engine.slab import Lease
from lossd.job import Job, Recipe

if TYPE_CHECKING:
    from asyncio import Future

    from lossd.engine.result import Result

__all__ = ["REQUEST_NS", "WORTH_REQUESTS", "Batch", "Batcher", "Ticket"]

# With so many requests, the fixed cost of a batch is small. More would save little, and keep a worker waiting.
WORTH_REQUESTS = 16

# The largest batch of several clients. It takes little longer than the fixed cost of any batch.
SHARED_BYTES = 512 << 10
# About how long a worker takes for the smallest request.
REQUEST_NS = 30_000

# A batch that takes longer must not make others wait.
LONG_NS = 250_000_000
# The largest error of an estimate that is learned. A short batch may take long once, as when the machine is busy.
MOST_ERROR = 100

_batch_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through the engine.

    Attributes:
        job: The job.
        future: Its result.
        deadline: When the result is no longer wanted, on the monotonic clock.
        lease: The slab that holds its tensors.
        client: The name of the API key.
        row: Its first row in the batch.
        position: Its index among the batch's requests.
        queued: When it was queued, on the monotonic clock.
        sent: When its batch was sent to a worker, on the monotonic clock.
    """

    job: Job
    future: Future[Result]
    deadline: float
    lease: Lease
    client: str = ""
    row: int = 0
    position: int = 0
    queued: float = 0.0
    sent: float = 0.0

    def span(self, arrangement: Arrangement, index: int) -> tuple[int, int]:
        """Return the first and last byte (exclusive) of its tensor in a column of the slab."""
        unit_bytes, per_row = self.job.recipe.units[index]
        if per_row:
            first = arrangement.offsets[index] + unit_bytes * self.row
            return first, first + unit_bytes * self.job.rows
        first = arrangement.offsets[index] + unit_bytes * self.position
        return first, first + unit_bytes


@dataclass(slots=True, eq=False)
class Batch:
    """Requests of one recipe in one slab.

    Attributes:
        recipe: The recipe of all requests.
        lease: The slab.
        arrangement: The layout of its columns, and its capacity.
        tickets: The requests, in the order of their rows.
        rows: The number of rows in use.
        work_ns: The estimated time of its requests, in nanoseconds.
        deaths: How many workers died while they evaluated it.
        long: Whether it takes so long that a lane is opened for other batches.
        turn: When it is due, in the batcher's virtual time.
        client: The client of all requests; None if they are several clients'.
        id: Its number in manifests and replies.
    """

    recipe: Recipe
    lease: Lease
    arrangement: Arrangement
    tickets: list[Ticket] = field(default_factory=list)
    rows: int = 0
    work_ns: int = 0
    deaths: int = 0
    long: bool = False
    turn: float = 0.0
    client: str | None = None
    id: int = field(default_factory=lambda: next(_batch_ids))

    @property
    def nbytes(self) -> int:
        """The bytes of its requests' tensors."""
        return self.rows * self.recipe.row_bytes + len(self.tickets) * self.recipe.request_bytes

    @property
    def awaited(self) -> bool:
        """Whether a client waits for any of its requests."""
        return not all(ticket.future.done() for ticket in self.tickets)

    def fits(self, job: Job, client: str = "") -> bool:
        """Return whether one more job of this client fits."""
        recipe, rows, requests = self.recipe, self.rows + job.rows, len(self.tickets) + 1
        if not self.arrangement.holds(recipe, rows, requests) or self.work_ns + job.work_ns > LONG_NS:
            return False
        return client == self.client or rows * recipe.row_bytes + requests * recipe.request_bytes <= SHARED_BYTES

    def add(self, ticket: Ticket) -> None:
        """Assign rows to a request.

        Raises:
            ValueError: The slab has no room for it.
        """
        if not self.arrangement.holds(self.recipe, self.rows + ticket.job.rows, len(self.tickets) + 1):
            raise ValueError(f"{ticket.job.rows} rows more than {self.rows} do not fit into {self.arrangement}")
        if not self.tickets:
            self.client = ticket.client
        elif ticket.client != self.client:
            self.client = None
        ticket.row, ticket.position = self.rows, len(self.tickets)
        self.rows += ticket.job.rows
        self.work_ns += ticket.job.work_ns
        self.tickets.append(ticket)
        self.lease.holders += 1

    def compact(self) -> list[Ticket]:
        """Remove requests whose clients left, close the gaps, and return the removed requests."""
        dropped = [t for t in self.tickets if t.future.done()]
        if not dropped:
            return dropped
        view = self.lease.slab.view
        kept = [t for t in self.tickets if not t.future.done()]
        self.tickets, self.rows = [], 0
        self.work_ns -= sum(ticket.job.work_ns for ticket in dropped)
        for ticket in kept:
            spans = [ticket.span(self.arrangement, index) for index in range(len(self.recipe.inputs))]
            ticket.row, ticket.position = self.rows, len(self.tickets)
            for index, (first, last) in enumerate(spans):
                target, end = ticket.span(self.arrangement, index)
                if target != first:
                    view[target:end] = bytes(view[first:last])
            self.rows += ticket.job.rows
            self.tickets.append(ticket)
        return dropped

    def singles(self) -> list[Batch]:
        """Return each request as a batch of its own, in the same slab."""
        batches = []
        for ticket in self.tickets:
            offsets = tuple(ticket.span(self.arrangement, i)[0] for i in range(len(self.recipe.columns)))
            ticket.row = ticket.position = 0
            arrangement = Arrangement(offsets, ticket.job.rows, 1, self.arrangement.nbytes)
            single = Batch(
                self.recipe, self.lease, arrangement, [ticket], ticket.job.rows, ticket.job.work_ns, self.deaths - 1
            )
            single.turn, single.client, single.long = self.turn, ticket.client, self.long
            batches.append(single)
        return batches

    def manifest(self) -> dict[str, Any]:
        """Return the description that a worker needs; a few hundred bytes."""
        manifest = {
            "batch": self.id,
            "slab": self.lease.slab.id,
            "recipe": self.recipe.text,
            "rows": [t.job.rows for t in self.tickets],
            "numbers": [t.job.numbers for t in self.tickets] if self.recipe.numbers else [],
            "offsets": self.arrangement.offsets,
        }
        if self.long:
            manifest["long"] = True
        return manifest


class Batcher:
    """The queue of open and full batches, in the order of their turns.

    Args:
        on_drop: Called with each request that is dropped because its client left.
    """

    def __init__(self, on_drop: Callable[[Ticket], None]) -> None:
        self._on_drop = on_drop
        self._open: dict[str, Batch] = {}
        self._queued: dict[int, Batch] = {}
        # Heaps of turn and id: one of short batches, one of long. A batch that was moved forward is in its heap twice.
        self._orders: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
        self._present = 0.0
        self._next_turn: dict[str, float] = {}
        self._long_ns: dict[str, int] = {}  # by model, where estimates were too low: the estimate of a long batch

    def __len__(self) -> int:
        return sum(len(batch.tickets) for batch in self._queued.values())

    def __bool__(self) -> bool:
        return bool(self._queued)

    def joinable(self, job: Job, client: str = "") -> Batch | None:
        """Return the open batch that the client's job may join; None if there is none."""
        batch = self._open.get(job.recipe.text)
        return batch if batch is not None and batch.fits(job, client) else None

    def append(self, batch: Batch, ticket: Ticket, *, joinable: bool) -> None:
        """Queue a request that was added to a batch.

        Args:
            batch: The batch; it is queued too, unless it is queued already.
            ticket: The request.
            joinable: Whether others may join the batch, if it is new.
        """
        turn = self._next_turn.get(ticket.client, 0.0)
        if turn < self._present:
            turn = self._present
        self._next_turn[ticket.client] = turn + _weight(ticket)
        if batch.id not in self._queued:
            batch.long = ticket.job.work_ns >= self._long_ns.get(batch.recipe.model, LONG_NS)
            if joinable:
                self._open[batch.recipe.text] = batch
        elif turn >= batch.turn:
            return
        self._queue(batch, turn)

    def charge(self, batch: Batch, seconds: float, *, again: bool = False) -> None:
        """Replace the estimates of a batch's requests by the time that it took.

        Args:
            batch: A batch that was evaluated, or given up.
            seconds: The time that it took of a worker.
            again: Whether it will be evaluated again; the estimates then stay.
        """
        if batch.client == "":  # without keys there is one client
            return
        counted = sum(map(_weight, batch.tickets))
        factor = seconds * 1e9 / counted - (not again)
        for ticket in batch.tickets:
            self._next_turn[ticket.client] += factor * _weight(ticket)

    def learn(self, batch: Batch, seconds: float) -> None:
        """Learn from the time of a batch how far the estimates of its loss are too low.

        The next batches of the loss are long if they take long with that error. A long batch corrects the error.

        Args:
            batch: A batch that was evaluated.
            seconds: The time that it took of a worker.
        """
        if batch.long or seconds * 1e9 >= LONG_NS:
            error = min(MOST_ERROR, seconds * 1e9 / max(1, batch.work_ns))
            self._long_ns[batch.recipe.model] = int(LONG_NS / max(1.0, error))

    def requeue(self, batches: Iterable[Batch]) -> None:
        """Queue batches again that were being evaluated. Their turns are past, so they are sent first, in order."""
        for batch in batches:
            self._queue(batch, batch.turn)

    def next_batch(self, expire: Callable[[Ticket], None] = lambda _: None, *, short: bool = False) -> Batch | None:
        """Return the next batch, without requests whose clients left; None if the queue is empty.

        Args:
            expire: Called with each request before it is sent; refuses a request past its deadline.
            short: Whether to skip long batches.
        """
        while (batch := self._first(short=short)) is not None:
            heappop(self._orders[batch.long])
            del self._queued[batch.id]
            self._present = max(self._present, batch.turn)
            for ticket in batch.tickets:
                expire(ticket)
            if self._open.get(batch.recipe.text) is batch:
                del self._open[batch.recipe.text]
            for ticket in batch.compact():
                self._on_drop(ticket)
            if batch.tickets:
                return batch
        return None

    def purge(self) -> None:
        """Drop requests whose clients left from batches with at least half of such requests: few others move."""
        for batch in list(self._queued.values()):
            if 2 * sum(ticket.future.done() for ticket in batch.tickets) < len(batch.tickets):
                continue
            for ticket in batch.compact():
                self._on_drop(ticket)
            if not batch.tickets:
                del self._queued[batch.id]
                if self._open.get(batch.recipe.text) is batch:
                    del self._open[batch.recipe.text]

    @property
    def worth_going(self) -> bool:
        """Whether the next batch has enough requests to be sent to a busy worker."""
        batch = self._first()
        return batch is not None and len(batch.tickets) >= WORTH_REQUESTS

    def waiting(self) -> Iterable[Ticket]:
        """Return every queued request."""
        return (ticket for batch in self._queued.values() for ticket in batch.tickets)

    def _first(self, *, short: bool = False) -> Batch | None:
        """Return the next batch without removing it."""
        first: Batch | None = None
        for order in self._orders[: 1 if short else 2]:
            while order:
                turn, number = order[0]
                batch = self._queued.get(number)
                if batch is not None and batch.turn == turn:
                    if first is None or turn < first.turn:
                        first = batch
                    break
                heappop(order)
        return first

    def _queue(self, batch: Batch, turn: float) -> None:
        batch.turn = turn
        self._queued[batch.id] = batch
        heappush(self._orders[batch.long], (turn, batch.id))


def _weight(ticket: Ticket) -> int:
    """Return the estimate of a request's time, in nanoseconds."""
    return ticket.job.work_ns + REQUEST_NS
