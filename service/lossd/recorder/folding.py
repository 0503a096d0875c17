"""Merges the states of a run's batches, so that a few states hold what thousands of batches contributed.

The states of a run cover its batches in their order. A new one covers one batch. Once there are enough of these, they
become one state, a fold. An older fold is merged into the new one while it is less than twice as long, so each fold is
at least twice as long as the next. States whose length does not grow thus end in one fold, and states that grow with
their rows in a few, and a byte is rewritten as often as a logarithm of their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lossd.runs import encoding
from lossd.runs.state import RunState
from lossd_client.errors import InternalError, InvalidRequest

__all__ = [
    "PENDING",
    "PENDING_BYTES",
    "Covered",
    "described",
    "is_due",
    "merged",
    "oldest_to_fold",
    "read",
]

PENDING = 256
PENDING_BYTES = 32 << 20
"""So many batches, or bytes of their states, are folded."""

ROW, SMALL = 16, 8 << 10
"""So many states of up to so many stored bytes are merged one after the other."""


class Covered(NamedTuple):
    """A stored state: ``batches`` batches from ``ordinal`` on, and its bytes."""

    ordinal: int
    batches: int
    nbytes: int


def is_due(pending: int, pending_bytes: int) -> bool:
    """Return whether batches that no fold covers are to be folded."""
    return pending >= PENDING or (pending > 1 and pending_bytes >= PENDING_BYTES)


def oldest_to_fold(states: Sequence[Covered]) -> int:
    """Return the ordinal from which states become one fold.

    Args:
        states: The states of a run, in the order of their batches.
    """
    nbytes, start = 0, len(states)
    while start and (states[start - 1].batches == 1 or states[start - 1].nbytes < 2 * nbytes):
        start -= 1
        nbytes += states[start].nbytes
    return states[start].ordinal if start < len(states) else 0


def merged(stored: Iterable[bytes]) -> RunState:
    """Return one state of all rows.

    A table is copied when another one is merged into it. So states of about as many batches are merged, two at a time,
    which copies a table as often as a logarithm of their number. Small states are merged in a row before, because sums
    are then carried once, which takes a third of the time.

    Args:
        stored: States as :func:`packed` makes them.

    Raises:
        ValueError: There is none.
        InternalError: One is damaged.
    """
    waiting: list[tuple[int, RunState]] = []
    for size, state in _in_rows(stored):
        while waiting and waiting[-1][0] <= size:
            others, earlier = waiting.pop()
            earlier.merge(state)
            size, state = size + others, earlier
        waiting.append((size, state))
    if not waiting:
        raise ValueError("no states to merge")
    _, answer = waiting.pop()
    while waiting:
        _, earlier = waiting.pop()
        earlier.merge(answer)
        answer = earlier
    return answer


def _in_rows(stored: Iterable[bytes]) -> Iterator[tuple[int, RunState]]:
    """Yield how many states were merged, and the state: large ones alone, small ones in rows of ``ROW``."""
    row: RunState | None = None
    length = 0
    for data in stored:
        state = read(data)
        if len(data) > SMALL:
            yield 1, state
        elif row is None:
            row, length = state, 1
        else:
            row.merge(state)
            length += 1
        if row is not None and length == ROW:
            yield length, row
            row = None
    if row is not None:
        yield length, row


def described(stored: bytes) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    """Return the description and the parts of a stored state.

    Raises:
        InternalError: It is damaged.
    """
    try:
        return encoding.decode(encoding.unpacked(stored))
    except InvalidRequest as problem:
        raise InternalError(problem.detail) from problem


def read(stored: bytes) -> RunState:
    """Return a stored state.

    Raises:
        InternalError: It is damaged.
    """
    try:
        return RunState.decode(encoding.unpacked(stored))
    except InvalidRequest as problem:
        raise InternalError(problem.detail) from problem
