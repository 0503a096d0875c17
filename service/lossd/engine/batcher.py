"""Which requests go together, and when: pure policy. No I/O, no clock, no timer.

Requests of one recipe join the open batch of that recipe until it is full; a batch leaves whenever a worker is free.
Nothing ever waits for company: what has arrived by then goes.
A batch worth going may be sent to a worker that is busy, which then has its next one at hand.

Clients take turns (start-time fair queueing). A request's turn comes when its client's earlier requests have had
theirs, in a virtual time that counts a worker's nanoseconds: those that are estimated when a request comes, and those
that its batch took in their place once it is done. A client that was away begins at the present.
Batches leave in the order of their requests' first turns: for a single client, the order in which they were opened.
Where several share a batch it goes at the turn of the one that is due first, and it stays small, so that sharing costs
that one nothing.
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

__all__ = ["WORTH_REQUESTS", "Batch", "Batcher", "Ticket"]

# So many requests make up for a batch's fixed cost: more would save little, and keep a worker waiting.
WORTH_REQUESTS = 16

# What several clients may share. As long as that takes, a batch takes anyway: its fixed cost outweighs it.
SHARED_BYTES = 512 << 10
# About how long a worker takes for a request however small.
REQUEST_NS = 30_000

# From this estimate on nobody else should wait for a batch.
LONG_NS = 250_000_000

_batch_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through the engine.

    Attributes:
        job: What it asks.
        future: Its answer.
        deadline: When it is no longer wanted, on the monotonic clock.
        lease: The slab its tensors are in.
        client: Whose it is.
        row: Its first row in the batch.
        position: Its place among the batch's requests.
        queued: When it was handed in, monotonic.
        sent: When its batch went to a worker, monotonic.
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
        """First and last byte (exclusive) of its tensor in a column of the slab."""
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
        recipe: What they share.
        lease: The slab.
        arrangement: Where its columns are, and its capacity.
        tickets: The requests, in the order of their rows.
        rows: Rows in use.
        deaths: How many workers died while they had it.
        long: Whether others should not wait for it: a lane is opened for them.
        turn: When it is due, in the batcher's virtual time.
        client: Whose requests it holds; None where they are several clients'.
        id: How replies name it.
    """

    recipe: Recipe
    lease: Lease
    arrangement: Arrangement
    tickets: list[Ticket] = field(default_factory=list)
    rows: int = 0
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
    def wanted(self) -> bool:
        """Whether anybody waits for any of it."""
        return not all(ticket.future.done() for ticket in self.tickets)

    def fits(self, job: Job, client: str = "") -> bool:
        """Whether there is room for one more of this client's."""
        recipe, rows, requests = self.recipe, self.rows + job.rows, len(self.tickets) + 1
        if not self.arrangement.holds(recipe, rows, requests):
            return False
        return client == self.client or rows * recipe.row_bytes + requests * recipe.request_bytes <= SHARED_BYTES

    def add(self, ticket: Ticket) -> None:
        """Give the request its rows.

        Raises:
            ValueError: The slab has none left for it.
        """
        if not self.arrangement.holds(self.recipe, self.rows + ticket.job.rows, len(self.tickets) + 1):
            raise ValueError(f"{ticket.job.rows} rows more than {self.rows} do not fit into {self.arrangement}")
        if not self.tickets:
            self.client, self.long = ticket.client, ticket.job.work_ns >= LONG_NS
        elif ticket.client != self.client:
            self.client = None
        ticket.row, ticket.position = self.rows, len(self.tickets)
        self.rows += ticket.job.rows
        self.tickets.append(ticket)
        self.lease.holders += 1

    def compact(self) -> list[Ticket]:
        """Drop requests whose answer nobody waits for, close the gaps they leave, and return them."""
        dropped = [t for t in self.tickets if t.future.done()]
        if not dropped:
            return dropped
        view = self.lease.slab.view
        kept = [t for t in self.tickets if not t.future.done()]
        self.tickets, self.rows = [], 0
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
        """Each request as a batch of its own, in the same slab."""
        batches = []
        for ticket in self.tickets:
            offsets = tuple(ticket.span(self.arrangement, i)[0] for i in range(len(self.recipe.columns)))
            ticket.row = ticket.position = 0
            arrangement = Arrangement(offsets, ticket.job.rows, 1, self.arrangement.nbytes)
            single = Batch(self.recipe, self.lease, arrangement, [ticket], ticket.job.rows, deaths=self.deaths - 1)
            single.turn, single.client, single.long = self.turn, ticket.client, ticket.job.work_ns >= LONG_NS
            batches.append(single)
        return batches

    def manifest(self) -> dict[str, Any]:
        """What a worker needs to know; a few bytes."""
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
    """The queue: open and full batches, by their turns.

    Args:
        on_drop: Called with each request that left the queue because nobody waits for it.
    """

    def __init__(self, on_drop: Callable[[Ticket], None]) -> None:
        self._on_drop = on_drop
        self._open: dict[str, Batch] = {}
        self._queued: dict[int, Batch] = {}
        # Heaps of turn and id, of short batches and of long ones; a batch that was moved forward is in one twice.
        self._orders: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
        self._present = 0.0
        self._next_turn: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(batch.tickets) for batch in self._queued.values())

    def __bool__(self) -> bool:
        return bool(self._queued)

    def joinable(self, job: Job, client: str = "") -> Batch | None:
        """The open batch that the client's job may join."""
        batch = self._open.get(job.recipe.text)
        return batch if batch is not None and batch.fits(job, client) else None

    def append(self, batch: Batch, ticket: Ticket, *, joinable: bool) -> None:
        """Queue a request that was added to a batch.

        Args:
            batch: Queued with it, unless it is already.
            ticket: The request.
            joinable: Whether others may join the batch, where it is new.
        """
        turn = self._next_turn.get(ticket.client, 0.0)
        if turn < self._present:
            turn = self._present
        self._next_turn[ticket.client] = turn + _weight(ticket)
        if batch.id not in self._queued:
            if joinable:
                self._open[batch.recipe.text] = batch
        elif turn >= batch.turn:
            return
        self._queue(batch, turn)

    def charge(self, batch: Batch, seconds: float, *, again: bool = False) -> None:
        """Count for the clients of a batch the time it took, in place of what was estimated when its requests came.

        Args:
            batch: It was evaluated, or given up.
            seconds: For so long it had a worker.
            again: Whether it will have one again: what was estimated is still to come.
        """
        if batch.client == "":  # there are no keys, and nobody to share with
            return
        counted = sum(map(_weight, batch.tickets))
        factor = seconds * 1e9 / counted - (not again)
        for ticket in batch.tickets:
            self._next_turn[ticket.client] += factor * _weight(ticket)

    def requeue(self, batches: Iterable[Batch]) -> None:
        """Put batches that were under way back: their turns are past, so that they go first, in their order."""
        for batch in batches:
            self._queue(batch, batch.turn)

    def next_batch(self, expire: Callable[[Ticket], None] = lambda _: None, *, short: bool = False) -> Batch | None:
        """The batch that goes next, without the requests nobody waits for; None where nothing waits.

        Args:
            expire: Called with each request before it goes; ends its future where it is too late.
            short: Leave those that are long.
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
        """Drop requests nobody waits for where they are half of a batch or more: no more is moved than is dropped."""
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
        """Whether the batch that goes next is worth its fixed cost as it is."""
        batch = self._first()
        return batch is not None and len(batch.tickets) >= WORTH_REQUESTS

    def waiting(self) -> Iterable[Ticket]:
        """Every queued request."""
        return (ticket for batch in self._queued.values() for ticket in batch.tickets)

    def _first(self, *, short: bool = False) -> Batch | None:
        """The batch that goes next."""
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
    """What a request counts for among its client's until it is done, in nanoseconds."""
    return ticket.job.work_ns + REQUEST_NS
