"""The requests in progress by deadline. An expired one is found without a look at the others."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossd.engine.batcher import Ticket

__all__ = ["Deadlines"]

SLACK = 1024
"""How many entries of removed requests are kept besides one for each request."""


class Deadlines:
    """The requests in progress, and a heap of their deadlines.

    Removing a request leaves its entry in the heap. An entry holds no reference to the request, whose answer keeps
    shared memory mapped. Entries of removed requests are skipped when they are due, and :meth:`tidy` bounds their
    number.
    """

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets.values())

    def add(self, ticket: Ticket) -> None:
        """Add a request."""
        number = id(ticket)
        self._tickets[number] = ticket
        heappush(self._heap, (ticket.deadline, number))

    def remove(self, ticket: Ticket) -> None:
        """Remove a request, if it was added."""
        self._tickets.pop(id(ticket), None)

    def take_expired(self, now: float) -> Iterator[Ticket]:
        """Yield each request whose deadline has passed, once. It stays among the requests in progress.

        Args:
            now: The monotonic clock.
        """
        heap, tickets = self._heap, self._tickets
        while heap and heap[0][0] <= now:
            deadline, number = heappop(heap)
            ticket = tickets.get(number)
            # Of a removed request, the number may be another one's by now. That one has an entry of its own.
            if ticket is not None and ticket.deadline == deadline:
                yield ticket

    def tidy(self) -> None:
        """Drop the entries of removed requests, if they are many. The cost for each added request is constant."""
        if len(self._heap) > 2 * len(self._tickets) + SLACK:
            self._heap = [(ticket.deadline, number) for number, ticket in self._tickets.items()]
            heapify(self._heap)
